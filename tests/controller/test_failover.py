"""From a pool that is out of capacity to the next: another shape, another region, another cloud, and back."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

from tests.controller.rig import Rig, rig

from skyserve.clock import VirtualClock
from skyserve.decide.health import FIRST_WAIT_S
from skyserve.model.decision import Launch, Plan, ReasonCode
from skyserve.model.health import CooldownKind
from skyserve.model.offering import CapacityType, Location, Offering
from skyserve.model.resources import Accelerator, ResourceChoice, Resources
from skyserve.model.service import ReplicaPolicy, ServiceSpec
from skyserve.providers.fake import FakeProvider

L4 = Accelerator("L4", 1)


def pool(cloud: str, instance_type: str, region: str, price: float) -> Offering:
    return Offering(cloud, instance_type, Location(cloud, region), CapacityType.ON_DEMAND, L4, 4, 16, price)


CHEAPEST = pool("first", "g6.xlarge", "east", 0.80)
OTHER_SHAPE = pool("first", "g6.2xlarge", "east", 0.98)
OTHER_REGION = pool("first", "g6.xlarge", "west", 1.10)
OTHER_CLOUD = pool("second", "g2-standard-4", "north", 1.40)
SPEC = ServiceSpec(
    name="chat",
    run="serve",
    replica_policy=ReplicaPolicy(1, 1),
    resources=ResourceChoice((Resources(accelerators=L4),)),
)


def launches(plans: list[Plan]) -> list[Launch]:
    return [action for plan in plans for action in plan.actions if isinstance(action, Launch)]


async def two_clouds(home: Path) -> tuple[Rig, FakeProvider, FakeProvider]:
    clock = VirtualClock()
    first = FakeProvider(clock, name="first", offerings=(OTHER_REGION, CHEAPEST, OTHER_SHAPE))
    second = FakeProvider(clock, name="second", offerings=(OTHER_CLOUD,))
    return await rig(home, first, clock, SPEC, second), first, second


def test_each_step_of_a_failover_is_taken_at_once_and_explained(tmp_path: Path) -> None:
    async def scenario() -> None:
        r, first, _ = await two_clouds(tmp_path)
        for offering in (CHEAPEST, OTHER_SHAPE, OTHER_REGION):
            first.capacity[offering.pool] = 0
        began_at = r.clock.now()
        for _ in range(5):
            await r.step(0.1)
        asked = launches(r.plans)
        assert [x.replica.offering for x in asked] == [CHEAPEST, OTHER_SHAPE, OTHER_REGION, OTHER_CLOUD]
        assert r.clock.now() - began_at < 1, "the next offering is asked at once"
        assert [x.replica.token for x in asked] == [f"chat-u1-1-{attempt}" for attempt in (1, 2, 3, 4)]
        for number, launch in enumerate(asked):
            refused = [why for _, why in launch.because.rejected if why.startswith("cooling down until")]
            assert len(refused) == number
            assert all("after no capacity: no capacity in first/" in why for why in refused)
        refused = [n.because for plan in r.plans for n in plan.notes if n.because.code is ReasonCode.LAUNCH_REFUSED]
        assert [x.text.partition(":")[0] for x in refused] == [
            x.pool.partition(":")[0] for x in (CHEAPEST, OTHER_SHAPE, OTHER_REGION)
        ]
        await r.until_ready(1)
        await r.close()

    asyncio.run(scenario())


def test_no_pool_is_asked_twice_within_its_cool_down_not_even_by_another_controller(tmp_path: Path) -> None:
    async def scenario() -> None:
        r, first, second = await two_clouds(tmp_path)
        for offering in (*first.catalog, *second.catalog):
            (first if offering in first.catalog else second).capacity[offering.pool] = 0
        asked: list[tuple[float, str]] = []
        for turn in range(400):
            if turn == 100:
                await r.close()
                r = await rig(tmp_path, first, r.clock, None, second)
            plan = await r.step(1)
            asked += [(r.clock.now(), x.replica.offering.pool) for x in launches([plan]) if x.replica.offering]
        by_pool = {name: [at for at, other in asked if other == name] for _, name in asked}
        assert len(by_pool) == 4
        first_s = FIRST_WAIT_S[CooldownKind.CAPACITY]
        for instants in by_pool.values():
            waits = [b - a for a, b in pairwise(instants)]
            assert waits == sorted(waits), "waits grow"
            assert all(wait >= first_s * 2**i for i, wait in enumerate(waits))
        await r.close()

    asyncio.run(scenario())


def test_a_preempted_replica_is_placed_again_at_todays_prices(tmp_path: Path) -> None:
    async def scenario() -> None:
        r, first, _ = await two_clouds(tmp_path)
        (before,) = await r.until_ready(1)
        assert before.offering == CHEAPEST
        first.catalog = (replace(CHEAPEST, price_per_hour=9.0), OTHER_SHAPE)
        await r.clock.advance(400)
        first.preempt(before.instance_id or "")
        await r.step()
        (after,) = await r.until_ready(1)
        assert after.offering == OTHER_SHAPE
        await r.close()

    asyncio.run(scenario())
