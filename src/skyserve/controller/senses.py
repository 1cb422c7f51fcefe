"""What the loop needs of the senses and hands around it: one small interface each, so that a simulated world can stand
where providers, replicas and the door are. Knows values; must not know how any of them is got."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from skyserve.controller.metric import MetricQuestion
from skyserve.controller.probe import Question
from skyserve.model.decision import Observation, Plan
from skyserve.model.evidence import Listing, LoadReport, Outcome, ProbeResult, Silent
from skyserve.model.health import Cooldown
from skyserve.model.offering import Offering
from skyserve.model.routing import RoutingTable
from skyserve.model.scaling import EngineSample, MetricReading
from skyserve.model.service import ReplicaTls, ServiceSpec


class Watching(Protocol):
    """What one provider said last."""

    def answer(self, tag: str) -> Listing | Silent:
        """What is known of one service's instances."""
        ...


class Quoting(Protocol):
    """What the providers could give."""

    async def of(self, spec: ServiceSpec, health: Sequence[Cooldown]) -> tuple[Offering, ...]:
        """The best that a spec could run on, in order."""
        ...


class Probing(Protocol):
    """Asks replicas whether they are ready."""

    def follow(self, questions: Mapping[int, Question]) -> None:
        """Ask exactly these replicas from now on."""
        ...

    def results(self) -> Mapping[int, ProbeResult]:
        """The latest answer of each replica that is being asked."""
        ...


class Scraping(Protocol):
    """Reads what the number of replicas may follow beside the requests at the door."""

    def follow(
        self,
        pages: Mapping[int, str],
        metric: MetricQuestion | None,
        tls: Mapping[int, ReplicaTls] | None = None,
    ) -> None:
        """Read exactly these from now on: the metrics pages of replicas, by their ids, and the user's metric. `tls` is
        for replicas that speak it."""
        ...

    def samples(self) -> Mapping[int, EngineSample]:
        """What the engine of each replica said lately; nothing of those that are silent."""
        ...

    def reading(self) -> MetricReading | None:
        """The user's metric as last read."""
        ...


class Acting(Protocol):
    """Does what a plan asks for, and tells what came of it."""

    def start(self, observation: Observation, plan: Plan) -> None:
        """Start every call the plan asks for. Nothing is waited for."""
        ...

    def outcomes(self) -> tuple[Outcome, ...]:
        """What calls came to since the last committed step."""
        ...

    def seen(self, outcomes: tuple[Outcome, ...]) -> None:
        """These are part of a committed step: forget them."""
        ...

    def in_flight(self, listings: Mapping[str, object]) -> tuple[str, ...]:
        """Calls under way, and those too recent for the listings to show what they did."""
        ...


class Doorkeeping(Protocol):
    """Where the requests come in. `load` is what was last reported of them, None when nothing is heard."""

    @property
    def load(self) -> LoadReport | None: ...

    def publish(self, table: RoutingTable) -> None:
        """Let requests go where the table says."""
        ...


class SecretReading(Protocol):
    """The values of secrets."""

    def get(self, tag: str, version: int) -> Mapping[str, str]:
        """Those of one version, by name. Raises StoreUnavailable."""
        ...
