"""The simulated senses and hands that the production loop is given, on a clock that stands still while it thinks.

Nothing here suspends: a step of the loop is driven to its end at once. It must not decide anything.
"""

from __future__ import annotations

from collections.abc import Collection, Coroutine, Mapping, Sequence
from dataclasses import replace
from typing import Protocol, TypeVar

from skyserve.controller.act import refusal
from skyserve.controller.metric import MetricQuestion
from skyserve.controller.probe import Question
from skyserve.decide.optimize import rank, shortlisted
from skyserve.errors import CapacityUnavailable
from skyserve.model.decision import Launch, Observation, Plan, Terminate
from skyserve.model.evidence import Listing, LoadReport, Outcome, OutcomeKind, ProbeResult
from skyserve.model.health import Cooldown
from skyserve.model.offering import Offering
from skyserve.model.replica import Replica
from skyserve.model.routing import RoutingTable
from skyserve.model.scaling import EngineSample
from skyserve.model.service import ReplicaTls, ServiceSpec
from skyserve.sim.cloud import Cloud
from skyserve.sim.market import Market
from skyserve.sim.result import Served

T = TypeVar("T")


class Traffic(Protocol):
    """The requests of a service."""

    def advance(
        self, from_at: float, to_at: float, ready: Sequence[tuple[int, float]], leaving: Collection[int] = ()
    ) -> LoadReport:
        """Move on to `to_at` with these replicas (id, relative speed) ready, and those in `leaving` finishing what
        they have; what the door then reports."""
        ...

    def count_from_here(self) -> None:
        """Forget what was counted: the measured part begins."""
        ...

    def served(self) -> Served:
        """What became of the requests."""
        ...


def drive(coroutine: Coroutine[None, None, T]) -> T:
    """Run what never waits to its end, without an event loop."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        result: T = done.value
        return result
    coroutine.close()
    raise RuntimeError("a simulated step waited for something: nothing would ever wake it")


class StandingClock:
    """A clock that is set. Whoever would sleep by it would never wake."""

    def __init__(self, at: float) -> None:
        self.at = at

    def now(self) -> float:
        """The virtual instant, Unix seconds."""
        return self.at

    async def sleep(self, seconds: float) -> None:
        """Raises RuntimeError: nothing in a step may wait."""
        raise RuntimeError("a simulated step may not wait")


class SimulatedWatch:
    """What one simulated provider says, now."""

    def __init__(self, provider: str, cloud: Cloud, clock: StandingClock) -> None:
        self._provider, self._cloud, self._clock = provider, cloud, clock

    def answer(self, tag: str) -> Listing:
        """Its machines: those of one service are all that there are."""
        return Listing(self._clock.at, self._cloud.listing(self._provider))


class SimulatedOffers:
    """The pools of a market at the prices of the moment."""

    def __init__(self, market: Market, clock: StandingClock) -> None:
        self._market, self._clock = market, clock
        self._known: dict[tuple[str, float], Offering] = {}
        self._ranked: tuple[Offering, ...] = ()
        self._ranked_for: ServiceSpec | None = None

    def look_again(self) -> None:
        """Prices may have changed."""
        self._ranked_for = None

    async def of(self, spec: ServiceSpec, health: Sequence[Cooldown]) -> tuple[Offering, ...]:
        """The best of them, in the order and number that the production code puts them."""
        now = self._clock.at
        if self._ranked_for is not spec:
            self._ranked, self._ranked_for = rank(self._offerings(now), spec), spec
        return shortlisted(self._ranked, health, now)

    def _offerings(self, now: float) -> list[Offering]:
        found = []
        for pool in self._market.pools:
            price = self._market.price(pool, now)
            key = (pool.name, price)
            if key not in self._known:
                self._known[key] = replace(pool.offering, price_per_hour=price)
            found.append(self._known[key])
        return found


class SimulatedProber:
    """A replica answers once its machine has been up for a cold start."""

    def __init__(self, cloud: Cloud) -> None:
        self._cloud = cloud
        self._told: dict[int, ProbeResult] = {}

    def follow(self, questions: Mapping[int, Question]) -> None:
        """Every machine that has come up answers, whether it is asked or not."""

    def results(self) -> Mapping[int, ProbeResult]:
        """One good answer for each, from when it came up."""
        warm = self._cloud.warm
        if warm.keys() != self._told.keys():
            known = self._told
            self._told = {id_: known.get(id_) or self._answer(id_, tick) for id_, tick in warm.items()}
        return self._told

    def _answer(self, replica_id: int, tick: int) -> ProbeResult:
        return ProbeResult(replica_id, self._cloud.instant(tick), True)


class SimulatedScraper:
    """Nothing is known of engines and of what users measure themselves, so nothing is said of it."""

    def follow(
        self,
        pages: Mapping[int, str],
        metric: MetricQuestion | None,
        tls: Mapping[int, ReplicaTls] | None = None,
    ) -> None:
        """There is nobody to ask."""

    def samples(self) -> Mapping[int, EngineSample]:
        """None at all."""
        return {}

    def reading(self) -> None:
        """None."""


class SimulatedHands:
    """Machines are launched and ended at once; a refusal is heard of at the next tick.

    `news` is set when something happened that a step at the same instant would see.
    """

    def __init__(self, cloud: Cloud, clock: StandingClock) -> None:
        self._cloud, self._clock = cloud, clock
        self._outcomes: dict[str, Outcome] = {}
        self._asked: dict[str, Replica] = {}
        self.news = False
        self.refusals: list[tuple[float, str]] = []

    @property
    def waits(self) -> bool:
        """Whether a refusal is on its way."""
        return bool(self._asked)

    def hear(self) -> bool:
        """Take the refusals of the tick before; whether there were any."""
        heard, self._asked = self._asked, {}
        for token, replica in heard.items():
            error = CapacityUnavailable(f"no capacity in {_pool(replica)}")
            self._outcomes[token] = refusal(token, error, self._clock.at)
        return bool(heard)

    def outcomes(self) -> tuple[Outcome, ...]:
        """What launches came to since the last committed step."""
        return tuple(self._outcomes[key] for key in sorted(self._outcomes))

    def seen(self, outcomes: tuple[Outcome, ...]) -> None:
        """These are part of a committed step: forget them."""
        for outcome in outcomes:
            self._outcomes.pop(outcome.key, None)

    def in_flight(self, listings: Mapping[str, object]) -> tuple[str, ...]:
        """Launches that will be refused."""
        return tuple(sorted(self._asked))

    def start(self, observation: Observation, plan: Plan) -> None:
        """End and launch what the plan says, in this order: what is given back can be had again."""
        for action in plan.actions:
            if isinstance(action, Terminate):
                self._cloud.terminate(action.instance_id)
                self.news = True
        for action in plan.actions:
            if isinstance(action, Launch):
                self._launch(action.replica)

    def _launch(self, replica: Replica) -> None:
        if replica.offering is None or replica.token in self._asked:
            return
        now = self._clock.at
        instance_id = self._cloud.launch(replica, replica.offering)
        if instance_id is None:
            self._asked[replica.token] = replica
            self.refusals.append((now, replica.offering.pool))
            return
        accepted = Outcome(replica.token, OutcomeKind.ACCEPTED, now, instance_id=instance_id)
        self._outcomes[replica.token] = accepted
        self.news = True


class SimulatedDoor:
    """Obeys every routing table at once. Without traffic there is never a request; with it, this is what is known.

    `ready` are the replicas that new requests may go to, `leaving` those that finish what they have.
    """

    def __init__(self, clock: StandingClock) -> None:
        self._clock = clock
        self._number = 0
        self._report: LoadReport | None = None
        self.news = False
        self.ready: tuple[int, ...] = ()
        self.leaving: tuple[int, ...] = ()

    @property
    def load(self) -> LoadReport | None:
        """What there is to do, as of the last tick."""
        return self._report

    @property
    def done(self) -> bool:
        """Whether one of those that leave has nothing left to do."""
        busy = self._report.in_flight if self._report is not None else {}
        return any(not busy.get(replica_id) for replica_id in self.leaving)

    def hear(self, report: LoadReport) -> None:
        """Traffic moved on."""
        self._report = replace(report, table=self._number)

    def publish(self, table: RoutingTable) -> None:
        """Obey a table. That one goes that has nothing left to do is news."""
        if table.number == self._number:
            return
        self._number = table.number
        self.ready = tuple(row.replica_id for row in table.endpoints if not row.draining)
        self.leaving = tuple(row.replica_id for row in table.endpoints if row.draining)
        self.news |= bool(self.leaving)
        if self._report is None:
            self._report = LoadReport(self._clock.at, "sim", table.number)
        else:
            self._report = replace(self._report, table=table.number)


class NoSecrets:
    """A simulated replica has nothing to hide: its probe is never really asked."""

    def get(self, tag: str, version: int) -> Mapping[str, str]:
        """None at all."""
        return {}


def _pool(replica: Replica) -> str:
    return replica.offering.pool if replica.offering else "nowhere"
