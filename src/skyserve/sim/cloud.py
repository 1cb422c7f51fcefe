"""All simulated providers at once: machines that are launched, become ready, are taken back and are paid for.

Time comes in ticks. Knows a market and machines; must not know why anything is launched or ended.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import count
from random import Random

from skyserve.model.evidence import Instance, InstanceState
from skyserve.model.offering import Offering
from skyserve.model.replica import Replica
from skyserve.sim.market import Market, MarketPool, Meter
from skyserve.sim.result import Machine

_NEVER = 1 << 60


@dataclass(frozen=True, slots=True)
class Setting:
    """How the simulated world works. Durations are seconds.

    A cold start lasts from the launch to the first good answer and is paid for; `cold_start_spread` is the standard
    deviation of its logarithm, 0 for always the same. However long it is, the readiness probe waits for it. `notice_s`
    is how long before it a machine hears that it will be taken back. What happens in the first `leave_out_s` is not
    counted.
    """

    tick_s: float = 20.0
    cold_start_s: float = 183.0
    cold_start_spread: float = 0.0
    notice_s: float = 0.0
    leave_out_s: float = 3600.0
    seed: int = 0

    def ticks(self, seconds: float) -> int:
        """The first tick, counted from now, at which so many seconds have passed."""
        return math.ceil(seconds / self.tick_s - 1e-9)


USUAL = Setting()


@dataclass(eq=False, slots=True)
class _Pool:
    """A pool, what it holds now (oldest first), and its changes of capacity still to come."""

    market: MarketPool
    meter: Meter
    live: list[_Machine] = field(default_factory=list)
    capacity: float = math.inf


@dataclass(eq=False, slots=True)
class _Machine:
    """One machine; instants are ticks. `instance` is how its provider shows it."""

    replica_id: int
    pool: _Pool
    instance: Instance
    launched: int
    warm: int
    ready: int | None = None
    reclaim: int | None = None
    ended: int = _NEVER


class Cloud:
    """The machines of one service on one market. `tick` is now."""

    def __init__(self, market: Market, setting: Setting, tag: str) -> None:
        self._begin_at, self._setting, self._tag = market.begin_at, setting, tag
        self._random = Random(setting.seed)
        self._pools = {pool.name: _Pool(pool, Meter(pool.price, setting.tick_s)) for pool in market.pools}
        changes = _changes(list(self._pools.values()), setting.tick_s)
        self._changes = sorted(changes, key=lambda change: change[0])
        self._next_change = 0
        self._due: list[tuple[int, int, _Machine]] = []
        self._serial = count()
        self._by_id: dict[str, _Machine] = {}
        self._listed: dict[str, dict[str, Instance]] = {pool.offering.provider: {} for pool in market.pools}
        self._ended: list[_Machine] = []
        self.tick = 0
        self.warm: dict[int, int] = {}
        """Replicas whose machine has been up for a cold start, and since which tick."""

    def instant(self, tick: int) -> float:
        """When a tick is, Unix seconds."""
        return self._begin_at + tick * self._setting.tick_s

    @property
    def next_event(self) -> int:
        """The next tick at which `turn` has something to do."""
        change = self._changes[self._next_change][0] if self._next_change < len(self._changes) else _NEVER
        return min(change, self._due[0][0] if self._due else _NEVER)

    def turn(self, tick: int) -> bool:
        """Let a tick begin: capacity changes, machines are taken back or come up. Whether anything can be seen of it
        from outside."""
        self.tick = tick
        seen = False
        while self._next_change < len(self._changes) and self._changes[self._next_change][0] <= tick:
            _, pool, capacity = self._changes[self._next_change]
            self._next_change += 1
            pool.capacity = capacity
            seen |= self._fit(pool)
        while self._due and self._due[0][0] <= tick:
            seen |= self._happen(heapq.heappop(self._due)[2])
        return seen

    def launch(self, replica: Replica, offering: Offering) -> str | None:
        """A machine for a replica: its id, or None where the pool has no room. The same token gives the same one."""
        instance_id = f"i-{replica.token}"
        if instance_id in self._by_id:
            return instance_id
        pool = self._pools[offering.pool]
        if len(pool.live) >= pool.capacity:
            return None
        warm = self.tick + self._cold_start()
        instance = Instance(
            id=instance_id,
            provider=offering.provider,
            service=self._tag,
            token=replica.token,
            state=InstanceState.RUNNING,
            address=f"{instance_id}:{replica.id}",
            setup_started_at=self.instant(warm),
        )
        machine = _Machine(replica.id, pool, instance, self.tick, warm)
        pool.live.append(machine)
        self._by_id[instance_id] = machine
        self._show(machine, instance)
        self._plan(machine.warm, machine)
        return instance_id

    def terminate(self, instance_id: str) -> None:
        """The machine is gone at once, and costs nothing from this tick on."""
        machine = self._by_id.get(instance_id)
        if machine is None:
            return
        del self._listed[machine.instance.provider][instance_id]
        del self._by_id[instance_id]
        self._end(machine)

    def listing(self, provider: str) -> tuple[Instance, ...]:
        """What a provider shows."""
        return tuple(self._listed.get(provider, {}).values())

    def machines(self, first: int, end: int) -> Iterator[Machine]:
        """All machines that cost something between two ticks, and what they cost then, in the order of launching."""
        here = [machine for pool in self._pools.values() for machine in pool.live]
        for machine in sorted([*self._ended, *here], key=lambda one: (one.launched, one.replica_id)):
            ended = min(machine.ended, end)
            cost = machine.pool.meter.cost(max(first, machine.launched), ended)
            if ended <= first:
                continue
            offering = machine.pool.market.offering
            yield Machine(
                replica_id=machine.replica_id,
                location=offering.location,
                instance_type=offering.instance_type,
                capacity_type=offering.capacity_type,
                launched_at=self.instant(machine.launched),
                ready_at=None if machine.ready is None else self.instant(machine.ready),
                ended_at=self.instant(ended),
                preempted=machine.instance.state is InstanceState.PREEMPTED,
                cost=cost,
            )

    def _cold_start(self) -> int:
        setting = self._setting
        spread = setting.cold_start_spread
        stretch = math.exp(self._random.gauss(0.0, spread)) if spread else 1.0
        return setting.ticks(setting.cold_start_s * stretch)

    def _plan(self, tick: int, machine: _Machine) -> None:
        """Look at a machine at that tick; the present one counts as one to come."""
        heapq.heappush(self._due, (tick, next(self._serial), machine))

    def _fit(self, pool: _Pool) -> bool:
        """Take the youngest machines back that a pool has no room for any more, or announce it."""
        staying = [machine for machine in pool.live if machine.reclaim is None]
        surplus = staying[int(min(len(staying), pool.capacity)) :]
        notice = self._setting.ticks(self._setting.notice_s)
        for machine in reversed(surplus):
            if not notice:
                self._take_back(machine)
                continue
            machine.reclaim = self.tick + notice
            self._plan(machine.reclaim, machine)
            self._show(machine, replace(machine.instance, reclaim_at=self.instant(machine.reclaim)))
        return bool(surplus)

    def _happen(self, machine: _Machine) -> bool:
        """What was due for a machine: it is taken back, or has come up. Nothing, when it is gone."""
        if machine.ended <= self.tick:
            return False
        if machine.reclaim is not None and machine.reclaim <= self.tick:
            self._take_back(machine)
            return True
        if machine.ready is None and machine.warm <= self.tick:
            machine.ready = self.tick
            self.warm[machine.replica_id] = self.tick
            return True
        return False

    def _take_back(self, machine: _Machine) -> None:
        """Shown as taken back until somebody terminates it."""
        self._end(machine)
        self._show(machine, replace(machine.instance, state=InstanceState.PREEMPTED))

    def _end(self, machine: _Machine) -> None:
        if machine.ended <= self.tick:
            return
        machine.ended = self.tick
        machine.pool.live.remove(machine)
        self.warm.pop(machine.replica_id, None)
        self._ended.append(machine)

    def _show(self, machine: _Machine, instance: Instance) -> None:
        machine.instance = instance
        self._listed[instance.provider][instance.id] = instance


def _changes(pools: list[_Pool], tick_s: float) -> Iterator[tuple[int, _Pool, float]]:
    for pool in pools:
        if pool.market.capacity is not None:
            for tick, value in pool.market.capacity.on_ticks(tick_s):
                yield tick, pool, value
