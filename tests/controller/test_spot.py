"""A spot service through the production loop: what providers are asked, what is lost, and what stands in for it."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

from tests.controller.rig import FixedRoster, rig

from skyserve.clock import VirtualClock
from skyserve.config import Config
from skyserve.controller import demands
from skyserve.controller.supervisor import Supervisor
from skyserve.model.decision import Launch, ReasonCode
from skyserve.model.offering import CapacityType, Location, Offering
from skyserve.model.replica import Replica, ReplicaStatus
from skyserve.model.resources import Accelerator, ResourceChoice, Resources
from skyserve.model.service import ReplicaPolicy, ServiceSpec
from skyserve.providers.base import Capabilities
from skyserve.providers.fake import FakeProvider
from skyserve.store.secrets import SecretStore
from skyserve.store.sql import open_store

L4 = Accelerator("L4", 1)


def pool(zone: str, price: float, capacity_type: CapacityType = CapacityType.SPOT) -> Offering:
    return Offering("fake", "g6.xlarge", Location("fake", zone[:-1], zone), capacity_type, L4, 4, 16, price)


EAST, WEST = pool("east1", 0.30), pool("west1", 0.32)
NORTH = pool("north1", 0.40)
ON_DEMAND = pool("east1", 1.00, CapacityType.ON_DEMAND)
SPOT = ResourceChoice((Resources(accelerators=L4, use_spot=True),))


def chat(replicas: int = 2, **policy: object) -> ServiceSpec:
    wanted = replace(ReplicaPolicy(replicas, replicas), **policy)  # type: ignore[arg-type]
    return ServiceSpec(name="chat", run="serve", replica_policy=wanted, resources=SPOT)


def of_kind(replicas: tuple[Replica, ...] | list[Replica], kind: CapacityType) -> list[Replica]:
    return [r for r in replicas if r.offering and r.offering.capacity_type is kind and r.counts]


def test_a_provider_is_asked_for_what_may_stand_in_only_where_it_has_spot() -> None:
    clock = VirtualClock()
    with_spot = FakeProvider(clock, capabilities=Capabilities(spot=True))
    want, _ = demands.deliverable(chat(), with_spot)
    assert want is not None
    assert [one.use_spot for one in want.alternatives] == [True, False]
    without = FakeProvider(clock, capabilities=Capabilities(spot=False))
    assert demands.deliverable(chat(), without)[0] is None
    want, _ = demands.deliverable(chat(dynamic_ondemand_fallback=False), with_spot)
    assert want is not None
    assert [one.use_spot for one in want.alternatives] == [True]


def test_what_is_lost_is_stood_in_for_and_comes_back_to_spot(tmp_path: Path) -> None:
    async def scenario() -> None:
        clock = VirtualClock()
        cloud = FakeProvider(clock, offerings=(EAST, WEST, NORTH, ON_DEMAND))
        spec = chat(spot_placer="dynamic_fallback", dynamic_ondemand_fallback=True)
        r = await rig(tmp_path, cloud, clock, spec)
        for _ in range(120):
            plan = await r.step(20)
        spot = of_kind(plan.replicas, CapacityType.SPOT)
        assert {one.offering for one in spot} == {EAST, WEST}
        assert all(one.status is ReplicaStatus.READY for one in spot)
        assert not of_kind(plan.replicas, CapacityType.ON_DEMAND)
        (lost,) = [one for one in spot if one.offering == EAST]
        cloud.capacity[EAST.pool] = 0
        cloud.preempt(lost.instance_id or "")
        plan = await r.step(5)
        codes = [action.because.code for action in plan.actions if isinstance(action, Launch)]
        assert ReasonCode.ON_DEMAND_FALLBACK in codes
        for _ in range(120):
            plan = await r.step(20)
        assert [one.offering for one in of_kind(plan.replicas, CapacityType.SPOT)] == [WEST, NORTH]
        assert not of_kind(plan.replicas, CapacityType.ON_DEMAND)
        removed = [n.because.code for plan in r.plans for n in plan.notes] + [
            action.because.code for plan in r.plans for action in plan.actions
        ]
        assert ReasonCode.BACK_TO_SPOT in removed
        await r.close()

    asyncio.run(scenario())


def test_what_was_learnt_outlives_the_controller(tmp_path: Path) -> None:
    async def scenario() -> None:
        clock = VirtualClock()
        cloud = FakeProvider(clock, offerings=(EAST, WEST, NORTH, ON_DEMAND))
        cloud.capacity[EAST.pool] = 0
        spec = chat(spot_placer="dynamic_fallback", dynamic_ondemand_fallback=True)
        r = await rig(tmp_path, cloud, clock, spec)
        for _ in range(10):
            plan = await r.step(20)
        assert plan.memory.placement.avoided == (str(EAST.location),)
        await r.close()
        again = await rig(tmp_path, cloud, clock)
        plan = await again.step(20)
        assert plan.memory.placement.avoided == (str(EAST.location),)
        await again.close()

    asyncio.run(scenario())


def test_the_plan_shows_the_mix_to_start_with(tmp_path: Path) -> None:
    async def scenario() -> None:
        clock = VirtualClock()
        cloud = FakeProvider(clock, offerings=(EAST, WEST, ON_DEMAND))
        store = await asyncio.to_thread(open_store, tmp_path / "state.db")
        config = Config(tmp_path, inherited_env={})
        secrets = SecretStore(config.secrets_dir)
        supervisor = Supervisor(config, store, FixedRoster(cloud), clock, secrets)  # type: ignore[arg-type]
        offered, _ = await supervisor.plan(chat())
        mix = await supervisor.preview(chat(), offered)
        assert mix is not None
        assert mix.replicas == 2
        assert mix.on_demand_per_hour == 2.0
        assert mix.expected_per_hour is not None
        assert mix.expected_per_hour < 2.0
        assert mix.availability is not None
        assert sum(part.count for part in mix.parts if part.capacity_type == "SPOT") >= 2
        on_demand = replace(chat(), resources=ResourceChoice((Resources(accelerators=L4),)))
        assert await supervisor.preview(on_demand, offered) is None
        await supervisor.close()

    asyncio.run(scenario())
