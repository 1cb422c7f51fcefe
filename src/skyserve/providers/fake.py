"""A cloud that exists in memory only and does as it is told: slow, silent, out of capacity, taking machines back.

For tests, demonstrations and the simulator. Time is the clock's that it is given; nothing runs in the background: what
an instance is at some instant follows from its launch and its `Behaviour`. It must not know who asks.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass

from skyserve.clock import Clock
from skyserve.errors import (
    CapacityUnavailable,
    CredentialsRejected,
    OrderRejected,
    ProviderUnavailable,
    QuotaExceeded,
    Throttled,
)
from skyserve.model.evidence import Instance, InstanceState
from skyserve.model.offering import CapacityType, Location, Offering
from skyserve.model.resources import Quantity, ResourceChoice, Resources
from skyserve.providers.base import Candidates, Capabilities, CheckResult, Exit, LaunchOrder, OrderOf

_FOLLOW_INTERVAL_S = 1.0


@dataclass(frozen=True, slots=True)
class Behaviour:
    """The life of an instance: it boots, sets up, then runs for `run_s` seconds and exits with `exit_code`.

    `failed_setup` makes the exit code setup's. `output` is what setup and run print, each when it begins.
    """

    boot_s: float = 30.0
    setup_s: float = 10.0
    run_s: float = math.inf
    exit_code: int = 0
    failed_setup: bool = False
    output: tuple[str, str] = ("setting up", "listening")


NORMAL = Behaviour()
SLOW = Behaviour(boot_s=1800.0)
NEVER_READY = Behaviour(boot_s=math.inf)
BAD = Behaviour(run_s=0.0, exit_code=1)
BAD_SETUP = Behaviour(exit_code=1, failed_setup=True)

SMALL = Offering("fake", "small", Location("fake", "here", "here-a"), CapacityType.ON_DEMAND, None, 4, 16, 0.2)
SMALL_SPOT = Offering("fake", "small", Location("fake", "here", "here-a"), CapacityType.SPOT, None, 4, 16, 0.06)


class FakeProvider:
    """A scripted cloud. Its public attributes may be changed at any time and hold from then on.

    `behaviour`: of instances launched from now on. `capacity`: how many instances a pool can hold, by its name; pools
    not named are endless. `quota`: how many instances there may be in all. `silent`, `credentials_rejected`,
    `throttled_for_s`: how every call fails. `listing_lag_s`: how long a new instance is missing from the listing.
    `shutdown_s`: how long an instance takes to go. `calls` counts the calls by method.
    """

    def __init__(
        self,
        clock: Clock,
        *,
        name: str = "fake",
        offerings: Sequence[Offering] = (SMALL, SMALL_SPOT),
        capabilities: Capabilities | None = None,
        address_of: Callable[[LaunchOrder], str] | None = None,
    ) -> None:
        self.name = name
        self.title = name.capitalize()
        self.capabilities = capabilities or Capabilities(spot=True, poll_interval_s=5.0, listing_grace_s=30.0)
        self.catalog = tuple(offerings)
        self.behaviour = NORMAL
        self.capacity: dict[str, int] = {}
        self.quota: int | None = None
        self.silent = False
        self.credentials_rejected = False
        self.throttled_for_s: float | None = None
        self.listing_lag_s = 0.0
        self.shutdown_s = 5.0
        self.calls: Counter[str] = Counter()
        self._clock = clock
        self._address_of = address_of or (lambda order: f"127.0.0.1:{order.port}")
        self._machines: dict[str, _Machine] = {}

    def listen(self, changed: Callable[[], None], order_of: OrderOf) -> None:
        """Time alone changes a cloud in memory: there is never any news."""

    async def check(self) -> CheckResult:
        """Usable unless told otherwise."""
        self.calls["check"] += 1
        if self.credentials_rejected:
            return CheckResult(False, "the credentials were rejected", "set credentials_rejected to False")
        return CheckResult(not self.silent, "no answer" if self.silent else "a cloud in memory")

    async def offerings(self, want: ResourceChoice) -> Candidates:
        """What of the catalog fits."""
        self._answer("offerings")
        found: dict[Offering, None] = {}
        refusals: list[tuple[str, str]] = []
        for resources in want.alternatives:
            fitting = [offering for offering in self.catalog if _fits(offering, resources)]
            found.update(dict.fromkeys(fitting))
            if not fitting:
                asked = resources.accelerators or resources.instance_type or resources.cloud or "these resources"
                refusals.append((str(asked), f"{self.name} has nothing that fits"))
        return Candidates(tuple(found), tuple(refusals))

    async def launch(self, order: LaunchOrder) -> Instance:
        """A new machine in memory, if capacity and quota allow."""
        self._answer("launch")
        now = self._clock.now()
        known = self._machines.get(order.token)
        if known is None:
            self._find_room(order, now)
            address = self._address_of(order)
            known = _Machine(self.name, order, self.behaviour, now, address, now + self.listing_lag_s)
            self._machines[order.token] = known
        return known.instance(now)

    async def instances(self) -> Sequence[Instance]:
        """All machines that are not gone."""
        self._answer("instances")
        now = self._clock.now()
        return tuple(machine.instance(now) for machine in self._machines.values() if machine.listed(now))

    async def terminate(self, instance_id: str) -> None:
        """The machine is gone `shutdown_s` later."""
        self._answer("terminate")
        machine = self._machines.get(instance_id)
        if machine is not None and machine.stopping_at is None:
            machine.stopping_at = self._clock.now()
            machine.gone_at = machine.stopping_at + self.shutdown_s

    async def stop(self, instance_id: str) -> None:
        """Raises OrderRejected."""
        raise OrderRejected(f"instances of {self.name} cannot be stopped")

    async def start(self, instance_id: str) -> None:
        """Raises OrderRejected."""
        raise OrderRejected(f"instances of {self.name} cannot be stopped, nor started again")

    async def execute(self, instance_id: str, script: str, env: Mapping[str, str]) -> AsyncIterator[bytes | Exit]:
        """Prints the script and is done: nothing runs in memory."""
        self._answer("execute")
        if instance_id not in self._machines:
            raise OrderRejected(f"{self.name} has no instance {instance_id}")
        yield f"{script}\n".encode()
        yield Exit(0)

    async def logs(self, instance_id: str, *, follow: bool, tail: int | None) -> AsyncIterator[bytes]:
        """What the behaviour printed so far."""
        self._answer("logs")
        machine = self._machines.get(instance_id)
        if machine is None:
            return
        lines = machine.output(self._clock.now())
        shown = len(lines) if tail is None else min(tail, len(lines))
        for line in lines[len(lines) - shown :]:
            yield line
        told = len(lines)
        while follow and not machine.ended(self._clock.now()):
            await self._clock.sleep(_FOLLOW_INTERVAL_S)
            lines = machine.output(self._clock.now())
            for line in lines[told:]:
                yield line
            told = len(lines)

    async def release(self, service: str) -> None:
        """Forget the service's machines that are gone, with their output."""
        self._answer("release")
        now = self._clock.now()
        for token, machine in list(self._machines.items()):
            if machine.order.service == service and machine.gone_at <= now:
                del self._machines[token]

    async def close(self) -> None:
        """Nothing is held."""

    def preempt(self, instance_id: str) -> None:
        """Take a machine back: it is listed as preempted until it is terminated."""
        self._machines[instance_id].preempted = True

    def announce(self, instance_id: str, reclaim_at: float) -> None:
        """Give notice that a machine will be taken back at `reclaim_at`, Unix seconds; then it is."""
        self._machines[instance_id].reclaim_at = reclaim_at

    def vanish(self, instance_id: str) -> None:
        """Let a machine disappear without a trace in the listing."""
        self._machines[instance_id].gone_at = self._clock.now()

    def order(self, instance_id: str) -> LaunchOrder:
        """What an instance was launched with."""
        return self._machines[instance_id].order

    def _answer(self, method: str) -> None:
        """Count the call, and fail it if told so."""
        self.calls[method] += 1
        if self.silent:
            raise ProviderUnavailable(f"{self.name} does not answer")
        if self.credentials_rejected:
            raise CredentialsRejected(f"{self.name} rejects the credentials")
        if self.throttled_for_s is not None:
            raise Throttled(f"too many calls to {self.name}", retry_after_s=self.throttled_for_s)

    def _find_room(self, order: LaunchOrder, now: float) -> None:
        present = [machine for machine in self._machines.values() if machine.gone_at > now and not machine.preempted]
        if self.quota is not None and len(present) >= self.quota:
            raise QuotaExceeded(f"the quota of {self.quota} instances of {self.name} is used up")
        pool = order.offering.pool
        held = sum(machine.order.offering.pool == pool for machine in present)
        if held >= self.capacity.get(pool, math.inf):
            raise CapacityUnavailable(f"no capacity in {pool}: {held} of {self.capacity[pool]} taken")


@dataclass(slots=True)
class _Machine:
    """One machine in memory: its past, from which its present follows. Instants are Unix seconds."""

    provider: str
    order: LaunchOrder
    behaviour: Behaviour
    launched_at: float
    address: str
    listed_at: float
    stopping_at: float | None = None
    gone_at: float = math.inf
    preempted: bool = False
    reclaim_at: float | None = None

    @property
    def setup_at(self) -> float:
        return self.launched_at + self.behaviour.boot_s

    @property
    def run_at(self) -> float:
        return math.inf if self.behaviour.failed_setup else self.setup_at + self.behaviour.setup_s

    @property
    def exit_at(self) -> float:
        if self.behaviour.failed_setup:
            return self.setup_at + self.behaviour.setup_s
        return self.run_at + self.behaviour.run_s

    def listed(self, now: float) -> bool:
        return self.listed_at <= now < self.gone_at

    def ended(self, now: float) -> bool:
        return self.preempted or self.stopping_at is not None or now >= min(self.exit_at, self.gone_at)

    def state(self, now: float) -> InstanceState:
        if self.stopping_at is not None:
            return InstanceState.STOPPING
        if self.preempted or (self.reclaim_at is not None and now >= self.reclaim_at):
            return InstanceState.PREEMPTED
        if now >= self.exit_at:
            return InstanceState.EXITED
        if now >= self.run_at:
            return InstanceState.RUNNING
        return InstanceState.SETUP if now >= self.setup_at else InstanceState.STARTING

    def output(self, now: float) -> list[bytes]:
        until = now if self.stopping_at is None else min(now, self.stopping_at)
        begun = zip((self.setup_at, self.run_at), self.behaviour.output, strict=True)
        return [f"{text}\n".encode() for at, text in begun if at <= until]

    def instance(self, now: float) -> Instance:
        state = self.state(now)
        exited = state is InstanceState.EXITED
        output = b"".join(self.output(now)).decode().rstrip()
        return Instance(
            id=self.order.token,
            provider=self.provider,
            service=self.order.service,
            token=self.order.token,
            state=state,
            address=self.address if now >= self.run_at else None,
            setup_started_at=self.setup_at if now >= self.setup_at else None,
            exit_code=self.behaviour.exit_code if exited else None,
            failed_phase=("setup" if self.behaviour.failed_setup else "run") if exited else None,
            detail=output if exited else "",
            reclaim_at=self.reclaim_at,
        )


def _fits(offering: Offering, resources: Resources) -> bool:
    place = offering.location
    wanted = (resources.cloud, resources.region, resources.zone, resources.instance_type, resources.accelerators)
    given = (place.cloud, place.region, place.zone, offering.instance_type, offering.accelerator)
    spot = offering.capacity_type is CapacityType.SPOT
    limit = resources.max_hourly_cost
    return (
        all(want in (None, have) for want, have in zip(wanted, given, strict=True))
        and resources.use_spot == spot
        and _enough(resources.cpus, offering.vcpus, offering.vcpus)
        and _enough(resources.memory, offering.memory_gib, offering.vcpus)
        and (limit is None or offering.price_per_hour <= limit)
    )


def _enough(want: Quantity | None, have: float, vcpus: float) -> bool:
    if want is None:
        return True
    amount = want.amount * vcpus if want.per_vcpu else want.amount
    return have >= amount if want.at_least or want.per_vcpu else have == amount
