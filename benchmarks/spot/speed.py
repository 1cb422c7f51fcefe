"""How fast the simulator and the production loop decide: CPU seconds of one core.

    python benchmarks/spot/speed.py

Plays thirty days of a made-up market with nine zones, ticks of 20 s and sixteen replicas; then takes turns of the
production loop with a thousand replicas in an SQLite database, where nothing changes and where a zone is lost.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from pathlib import Path

from skyserve.clock import VirtualClock
from skyserve.controller.act import Hands
from skyserve.controller.cluster import NoDoor
from skyserve.controller.files import Files
from skyserve.controller.loop import World, step
from skyserve.controller.offers import Offers
from skyserve.controller.watch import Watch
from skyserve.model.evidence import ProbeResult
from skyserve.model.offering import CapacityType, Location, Offering
from skyserve.model.replica import ReplicaStatus
from skyserve.model.resources import Accelerator, ResourceChoice, Resources
from skyserve.model.service import ReplicaPolicy, ServiceSpec
from skyserve.providers.fake import FakeProvider
from skyserve.sim import synthetic
from skyserve.sim.cloud import Setting
from skyserve.sim.run import simulate
from skyserve.sim.world import SimulatedScraper
from skyserve.store.secrets import SecretStore
from skyserve.store.sql import open_store

DAY_S = 86400.0
GPU = Accelerator("V100", 1)
PRICES = {"us-east-1": 1.20, "us-east-2": 0.92, "us-west-2": 0.94}


def zones(provider: str) -> tuple[Offering, ...]:
    """Nine zones of spot machines in three regions, and on-demand ones."""
    spot = [
        Offering(provider, "gpu", Location(provider, region, region + zone), CapacityType.SPOT, GPU, 8, 61, price)
        for region, price in PRICES.items()
        for zone in "abc"
    ]
    lasting = Offering(provider, "gpu", Location(provider, "us-east-1"), CapacityType.ON_DEMAND, GPU, 8, 61, 3.06)
    return (*spot, lasting)


def service(replicas: int) -> ServiceSpec:
    wanted = ResourceChoice((Resources(accelerators=GPU, use_spot=True),))
    return ServiceSpec("chat", "serve", replica_policy=ReplicaPolicy(replicas, replicas), resources=wanted)


def month() -> None:
    market = synthetic.market(zones("aws"), 30 * DAY_S, seed=1)
    began = time.process_time()
    run = simulate(service(16), market, Setting(tick_s=20.0))
    took = time.process_time() - began
    print(f"30 days, 9 zones, ticks of 20 s, 16 replicas: {took:.1f} s of CPU, {run.steps} turns of the loop")


class Well:
    """Every replica that is asked answers that it is ready."""

    def __init__(self, clock: VirtualClock) -> None:
        self._clock = clock
        self._asked: tuple[int, ...] = ()

    def follow(self, questions: object) -> None:
        self._asked = tuple(questions)  # type: ignore[arg-type]

    def results(self) -> dict[int, ProbeResult]:
        return {id_: ProbeResult(id_, self._clock.now(), True) for id_ in self._asked}


async def thousand(home: Path, replicas: int = 1000) -> None:
    clock = VirtualClock()
    cloud = FakeProvider(clock, offerings=zones("fake"))
    store = await asyncio.to_thread(open_store, home / "state.db")
    await store.create(service(replicas), uid="u1", port=30001, now=clock.now())
    secrets, providers = SecretStore(home / "secrets"), {"fake": cloud}
    watch = Watch(cloud, clock, lambda tags: None)
    world = World(
        service="chat",
        holder="here",
        store=store,
        secrets=secrets,
        clock=clock,
        watches={"fake": watch},
        offers=Offers(providers, clock),
        prober=Well(clock),
        scraper=SimulatedScraper(),
        hands=Hands(providers, secrets, Files(home / "files"), clock, lambda: None),
        door=NoDoor(),
        nudged=asyncio.Event(),
    )

    async def turn(seconds: float) -> float:
        await clock.advance(seconds)
        await watch.ask()
        began = time.process_time()
        plan = await step(world)
        took = time.process_time() - began
        await asyncio.sleep(0.05)
        turn.ready = [r for r in plan.replicas if r.status is ReplicaStatus.READY]  # type: ignore[attr-defined]
        return took * 1000

    for _ in range(15):
        await turn(60)
    quiet = [await turn(1) for _ in range(20)]
    held = turn.ready  # type: ignore[attr-defined]
    print(f"{len(held)} ready replicas, nothing changes: {statistics.median(quiet):.0f} ms of CPU a turn, median of 20")
    zone = held[0].offering.location
    lost = [r for r in held if r.offering.location == zone]
    cloud.capacity[held[0].offering.pool] = 0
    for replica in lost:
        cloud.preempt(replica.instance_id)
    print(f"{len(lost)} of them are lost at once: {await turn(1):.0f} ms of CPU for that turn")
    await world.hands.close()
    await store.close()


def main() -> None:
    month()
    with tempfile.TemporaryDirectory() as home:
        asyncio.run(thousand(Path(home)))


if __name__ == "__main__":
    main()
