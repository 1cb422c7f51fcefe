"""A spec, a market and a setting -> what the production loop makes of them. The only entry to the simulator.

A tick: capacity is applied and machines above it are taken back, machines that have come up answer, the loop sees it
and acts, then everything alive is paid for until the next tick. Ticks at which nothing can happen are passed over.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from skyserve.controller.loop import World, step
from skyserve.decide.optimize import unit_price
from skyserve.errors import Infeasible, UsageError
from skyserve.model.decision import Plan
from skyserve.model.offering import Offering
from skyserve.model.service import Kind, ServiceSpec
from skyserve.sim.bound import bound_cost, wanted_cost
from skyserve.sim.cloud import USUAL, Cloud, Setting
from skyserve.sim.market import Market
from skyserve.sim.result import Run
from skyserve.sim.world import (
    NoSecrets,
    SimulatedDoor,
    SimulatedHands,
    SimulatedOffers,
    SimulatedProber,
    SimulatedScraper,
    SimulatedWatch,
    StandingClock,
    Traffic,
    drive,
)
from skyserve.store.memory import MemoryStore

MOST_STEPS = 8
"""Steps at one instant, each because of what the one before it did. What is not done then waits for the next tick."""

Progress = Callable[[float], None]
"""Told, now and then, how much of a run is done: 0 to 1."""
_TOLD_EVERY = 0.01


@dataclass(slots=True)
class _Tally:
    """Ticks of the measured part, with enough ready replicas and in all; and how the two numbers changed."""

    first: int
    enough: int = 0
    counted: int = 0
    wanted: list[tuple[float, int]] = field(default_factory=list)
    ready: list[tuple[float, int]] = field(default_factory=list)

    def count(self, tick: int, following: int, wanted: int, ready: int) -> None:
        ticks = following - max(tick, self.first)
        if ticks > 0:
            self.counted += ticks
            self.enough += ticks if ready >= wanted else 0

    def note(self, at: float, wanted: int, ready: int) -> None:
        for changes, number in ((self.wanted, wanted), (self.ready, ready)):
            if not changes or changes[-1][1] != number:
                changes.append((at, number))


class Simulation:
    """One service on one market. `run` may be called once."""

    def __init__(
        self, spec: ServiceSpec, market: Market, setting: Setting = USUAL, traffic: Traffic | None = None
    ) -> None:
        _refuse_senseless(spec, market, setting)
        self._spec = replace(spec, secrets={}, load_balancer=replace(spec.load_balancer, api_keys=()))
        self._market, self._setting, self._traffic = market, setting, traffic
        self._last = int(market.length_s / setting.tick_s + 1e-9)
        self._first = min(setting.ticks(setting.leave_out_s), self._last)
        self._clock = StandingClock(market.begin_at)
        self._store = MemoryStore(decisions_kept=0)
        state = drive(self._store.create(self._spec, uid="sim", port=0, now=market.begin_at))
        self._cloud = Cloud(market, setting, f"{state.name}-{state.uid}")
        self._hands = SimulatedHands(self._cloud, self._clock)
        self._offers = SimulatedOffers(market, self._clock)
        self._door = SimulatedDoor(self._clock)
        providers = dict.fromkeys(pool.offering.provider for pool in market.pools)
        self._world = World(
            service=state.name,
            holder="simulator",
            store=self._store,
            secrets=NoSecrets(),
            clock=self._clock,
            watches={name: SimulatedWatch(name, self._cloud, self._clock) for name in providers},
            offers=self._offers,
            prober=SimulatedProber(self._cloud),
            scraper=SimulatedScraper(),
            hands=self._hands,
            door=self._door,
            nudged=asyncio.Event(),
        )
        self._prices = _price_ticks(market, setting)
        self._follows_load = traffic is not None and spec.replica_policy.follows_load
        self._speeds: dict[int, float] = {}
        self._steps = 0

    def run(self, policy: str = "", progress: Progress = lambda done: None) -> Run:
        """The whole time of the market."""
        tally = _Tally(self._first)
        tick, told = 0, 0.0
        wake_at = self._clock.at
        wanted = ready = 0
        price_change = next(self._prices, self._last)
        while tick < self._last:
            self._clock.at = self._cloud.instant(tick)
            if self._traffic is not None and tick == self._first:
                self._traffic.count_from_here()
            seen = self._cloud.turn(tick)
            seen |= self._hands.hear()
            if price_change <= tick:
                self._offers.look_again()
                seen = True
                price_change = next(self._prices, self._last)
            if seen or self._clock.at >= wake_at or self._follows_load or self._door.done:
                plan = self._think()
                wake_at = plan.wake_at
                wanted, ready = plan.memory.autoscale.target or 0, len(self._door.ready)
                tally.note(self._clock.at, wanted, ready)
            following = min(self._last, max(tick + 1, self._next(tick, wake_at, price_change)))
            tally.count(tick, following, wanted, ready)
            self._pass_time(tick, following)
            tick = following
            if tick / self._last >= told + _TOLD_EVERY:
                told = tick / self._last
                progress(told)
        return self._result(policy, tally)

    def _think(self) -> Plan:
        """Step until a step leads to nothing more at this instant."""
        for _ in range(MOST_STEPS):
            self._hands.news = self._door.news = False
            plan = drive(step(self._world))
            self._steps += 1
            if not (self._hands.news or self._door.news):
                break
        if self._traffic is not None:
            self._speeds = {row.id: self._speed(row.offering) for row in plan.replicas if row.offering is not None}
        return plan

    def _speed(self, offering: Offering) -> float:
        """How fast a replica is, where the policy names rates by accelerator; the largest of them is 1."""
        rates = self._spec.replica_policy.target_qps_per_replica
        if not isinstance(rates, Mapping) or not offering.price_per_hour:
            return 1.0
        return offering.price_per_hour / unit_price(offering, self._spec) / max(rates.values())

    def _next(self, tick: int, wake_at: float, price_change: int) -> int:
        """The next tick at which there is something to do."""
        unfinished = self._hands.waits or self._hands.news or self._door.news
        draining = self._traffic is not None and self._door.leaving
        if self._follows_load or unfinished or draining:
            return tick + 1
        woken = tick + self._setting.ticks(wake_at - self._clock.at)
        following = min(self._cloud.next_event, price_change, woken)
        return min(following, self._first) if tick < self._first else following

    def _pass_time(self, tick: int, following: int) -> None:
        if self._traffic is not None:
            ready = tuple((replica_id, self._speeds.get(replica_id, 1.0)) for replica_id in self._door.ready)
            until_at = self._cloud.instant(following)
            self._door.hear(self._traffic.advance(self._clock.at, until_at, ready, self._door.leaving))

    def _result(self, policy: str, tally: _Tally) -> Run:
        begin_at, end_at = self._cloud.instant(self._first), self._cloud.instant(self._last)
        machines = tuple(self._cloud.machines(self._first, self._last))
        wanted = _since(tally.wanted, begin_at)
        return Run(
            policy=policy or policy_name(self._spec),
            begin_at=begin_at,
            end_at=end_at,
            wanted=wanted,
            ready=_since(tally.ready, begin_at),
            machines=machines,
            refusals=tuple(refused for refused in self._hands.refusals if refused[0] >= begin_at),
            cost=sum(machine.cost for machine in machines),
            on_demand_cost=wanted_cost(self._market, wanted, end_at),
            bound_cost=bound_cost(self._market, wanted, end_at, self._setting.tick_s),
            availability=tally.enough / tally.counted if tally.counted else 0.0,
            steps=self._steps,
            served=self._traffic.served() if self._traffic is not None else None,
        )


def simulate(
    spec: ServiceSpec,
    market: Market,
    setting: Setting = USUAL,
    *,
    traffic: Traffic | None = None,
    policy: str = "",
    progress: Progress = lambda done: None,
) -> Run:
    """Run a service on a market for as long as that lasts. The same arguments give the same run.

    Raises Infeasible when no pool fits the spec, UsageError for a setting that makes no sense.
    """
    return Simulation(spec, market, setting, traffic).run(policy, progress)


def repeat(
    spec: ServiceSpec,
    market_of: Callable[[int], Market],
    seeds: Iterable[int],
    setting: Setting = USUAL,
    *,
    traffic_of: Callable[[int], Traffic | None] = lambda seed: None,
    progress: Progress = lambda done: None,
) -> tuple[Run, ...]:
    """One run for each seed, each on a market and with requests of its own."""
    chosen = tuple(seeds)
    runs: list[Run] = []
    for number, seed in enumerate(chosen):

        def of_all(done: float, before: int = number) -> None:
            progress((before + done) / len(chosen))

        mine = replace(setting, seed=seed)
        runs.append(simulate(spec, market_of(seed), mine, traffic=traffic_of(seed), progress=of_all))
    return tuple(runs)


def policy_name(spec: ServiceSpec) -> str:
    """What to call a service's placement in tables."""
    policy = spec.replica_policy
    name = policy.spot_placer or "cheapest first"
    return f"{name} +{policy.num_overprovision}" if policy.num_overprovision else name


def _refuse_senseless(spec: ServiceSpec, market: Market, setting: Setting) -> None:
    if spec.kind is not Kind.SERVICE:
        raise UsageError("a cluster cannot be simulated: nothing replaces its machine", hint="simulate a service")
    if not market.pools:
        raise Infeasible(f"nothing in the market {market.name!r} fits what the service asks for")
    if setting.tick_s <= 0:
        raise UsageError(f"a tick must last longer than {setting.tick_s:g}s")
    if min(setting.cold_start_s, setting.cold_start_spread, setting.notice_s, setting.leave_out_s) < 0:
        raise UsageError("durations cannot be negative")
    if market.length_s <= setting.leave_out_s:
        text = f"the market lasts {market.length_s:g}s, and the first {setting.leave_out_s:g}s are left out"
        raise UsageError(text, hint="simulate for longer, or leave out less")


def _price_ticks(market: Market, setting: Setting) -> Iterator[int]:
    """The ticks, but the first, at which another price is seen somewhere."""
    ticks = {tick for pool in market.pools for tick, _ in pool.price.on_ticks(setting.tick_s)}
    return iter(sorted(ticks - {0}))


def _since(changes: list[tuple[float, int]], begin_at: float) -> tuple[tuple[float, int], ...]:
    """The changes from `begin_at` on, with the number that holds at `begin_at` as the first of them."""
    before = [number for at, number in changes if at <= begin_at]
    after = [(at, number) for at, number in changes if at > begin_at]
    return ((begin_at, before[-1]), *after) if before else tuple(after)
