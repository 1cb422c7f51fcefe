"""The production loop around a cloud in memory, a real database and a virtual clock; door and probes are stand-ins."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from skyserve.clock import VirtualClock
from skyserve.controller.act import Hands
from skyserve.controller.files import Files
from skyserve.controller.loop import World, step
from skyserve.controller.metric import MetricQuestion
from skyserve.controller.offers import Offers
from skyserve.controller.probe import Question
from skyserve.controller.watch import Watch
from skyserve.model.decision import Plan
from skyserve.model.evidence import LoadReport, ProbeResult
from skyserve.model.replica import Replica, ReplicaStatus
from skyserve.model.routing import RoutingTable
from skyserve.model.scaling import EngineSample, MetricReading
from skyserve.model.service import ReplicaPolicy, ReplicaTls, ServiceSpec
from skyserve.providers.base import Provider
from skyserve.providers.fake import FakeProvider
from skyserve.store.secrets import SecretStore
from skyserve.store.sql import SqlStore, open_store


class QuietDoor:
    """A door that obeys every table at once and has no requests."""

    def __init__(self, clock: VirtualClock) -> None:
        self._clock = clock
        self.tables: list[RoutingTable] = []
        self.trouble = ""

    @property
    def load(self) -> LoadReport | None:
        return LoadReport(self._clock.now(), "b", self.tables[-1].number) if self.tables else None

    def publish(self, table: RoutingTable) -> None:
        self.tables.append(table)


class KindProber:
    """Every replica that is asked is well, unless it is listed as sick."""

    def __init__(self, clock: VirtualClock) -> None:
        self._clock = clock
        self._asked: dict[int, Question] = {}
        self.sick: set[int] = set()

    def follow(self, questions: Mapping[int, Question]) -> None:
        self._asked = dict(questions)

    def results(self) -> Mapping[int, ProbeResult]:
        now = self._clock.now()
        return {id_: ProbeResult(id_, now, id_ not in self.sick, "GET / answered 500") for id_ in self._asked}

    def hurry(self, replica_id: int) -> None:
        pass


class QuietScraper:
    """Says what it was given, and remembers what it was told to read."""

    def __init__(self) -> None:
        self.pages: Mapping[int, str] = {}
        self.metric: MetricQuestion | None = None
        self.tls: Mapping[int, ReplicaTls] = {}
        self.heard: Mapping[int, EngineSample] = {}
        self.value: MetricReading | None = None

    def follow(
        self,
        pages: Mapping[int, str],
        metric: MetricQuestion | None,
        tls: Mapping[int, ReplicaTls] | None = None,
    ) -> None:
        self.pages, self.metric, self.tls = pages, metric, tls or {}

    def samples(self) -> Mapping[int, EngineSample]:
        return self.heard

    def reading(self) -> MetricReading | None:
        return self.value


class FixedRoster:
    """Providers that are there from the beginning."""

    def __init__(self, *providers: Provider) -> None:
        self.providers = {provider.name: provider for provider in providers}

    def look_again(self) -> tuple[str, ...]:
        return ()


@dataclass
class Rig:
    """One service; `step` lets time pass and takes one turn. A new `Rig` on the same home is a new controller."""

    home: Path
    clock: VirtualClock
    cloud: FakeProvider
    store: SqlStore
    world: World
    plans: list[Plan] = field(default_factory=list)

    async def step(self, seconds: float = 5.0) -> Plan:
        await self.clock.advance(seconds)
        for watch in self.world.watches.values():
            await watch.ask()
        plan = await step(self.world)
        for _ in range(20):
            await asyncio.sleep(0)
        self.plans.append(plan)
        return plan

    async def until_ready(self, count: int, steps: int = 40) -> list[Replica]:
        for _ in range(steps):
            plan = await self.step()
            ready = [r for r in plan.replicas if r.status is ReplicaStatus.READY]
            if len(ready) == count:
                return ready
        raise AssertionError(f"{count} replicas are not ready after {steps} steps: {plan.replicas}")

    async def close(self) -> None:
        await self.world.hands.close()
        await self.store.close()


def chat(replicas: int = 2, run: str = "serve") -> ServiceSpec:
    return ServiceSpec(name="chat", run=run, replica_policy=ReplicaPolicy(replicas, replicas))


async def rig(
    home: Path, cloud: FakeProvider, clock: VirtualClock, spec: ServiceSpec | None = None, *others: FakeProvider
) -> Rig:
    """A controller for service `chat`; with a spec the service is created first. `others` are further clouds."""
    store = await asyncio.to_thread(open_store, home / "state.db")
    if spec is not None:
        await store.create(spec, uid="u1", port=30001, now=clock.now())
    providers = {each.name: each for each in (cloud, *others)}
    secrets = SecretStore(home / "secrets")
    nudged = asyncio.Event()
    world = World(
        service="chat",
        holder="here",
        store=store,
        secrets=secrets,
        clock=clock,
        watches={name: Watch(each, clock, lambda tags: None) for name, each in providers.items()},
        offers=Offers(providers, clock),
        prober=KindProber(clock),  # type: ignore[arg-type]
        scraper=QuietScraper(),
        hands=Hands(providers, secrets, Files(home / "files"), clock, nudged.set),
        door=QuietDoor(clock),  # type: ignore[arg-type]
        nudged=nudged,
    )
    return Rig(home, clock, cloud, store, world)
