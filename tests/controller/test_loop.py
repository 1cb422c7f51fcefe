"""The loop itself: intent before action, crashes anywhere, silence, orphans, replay."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest
from tests.controller.rig import Rig, chat, rig

from skyserve.clock import VirtualClock
from skyserve.controller import loop
from skyserve.errors import Conflict, LeaseLost, StoreUnavailable
from skyserve.model.decision import Launch, ReasonCode, Terminate
from skyserve.model.replica import ReplicaStatus
from skyserve.model.service import UpdateMode
from skyserve.providers.fake import BAD, SMALL, FakeProvider
from skyserve.store.base import Store


async def machines(cloud: FakeProvider) -> set[str]:
    return {instance.token for instance in await cloud.instances()}


def test_a_service_becomes_ready_and_its_table_lists_it(tmp_path: Path) -> None:
    async def scenario() -> None:
        clock = VirtualClock()
        cloud = FakeProvider(clock)
        r = await rig(tmp_path, cloud, clock, chat(2))
        ready = await r.until_ready(2)
        assert {x.id for x in ready} == {1, 2}
        table = r.world.door.tables[-1]  # type: ignore[attr-defined]
        assert [e.replica_id for e in table.endpoints] == [1, 2]
        await r.close()

    asyncio.run(scenario())


class _Dying:
    """A store that lets the controller die before or after a commit."""

    def __init__(self, store: Store, *, after: bool) -> None:
        self._store = store
        self._after = after

    def __getattr__(self, name: str) -> object:
        return getattr(self._store, name)

    async def commit(self, *args: object, **kwargs: object) -> int:
        if self._after:
            await self._store.commit(*args, **kwargs)  # type: ignore[arg-type]
        raise KeyboardInterrupt


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("at_step", range(8))
def test_a_crash_around_any_commit_launches_nothing_twice(tmp_path: Path, at_step: int, after: bool) -> None:
    async def first_life(clock: VirtualClock, cloud: FakeProvider) -> None:
        r = await rig(tmp_path, cloud, clock, chat(3))
        for _ in range(at_step):
            await r.step()
        r.world.store = _Dying(r.store, after=after)  # type: ignore[assignment]
        with pytest.raises(KeyboardInterrupt):
            await r.step()
        await r.close()

    async def second_life(clock: VirtualClock, cloud: FakeProvider) -> None:
        r = await rig(tmp_path, cloud, clock)
        ready = await r.until_ready(3)
        assert {x.id for x in ready} == {1, 2, 3}
        assert await machines(cloud) == {x.token for x in ready}
        await r.close()

    async def scenario() -> None:
        clock = VirtualClock()
        cloud = FakeProvider(clock)
        await first_life(clock, cloud)
        await second_life(clock, cloud)

    asyncio.run(scenario())


def test_a_launch_that_was_committed_but_not_asked_for_is_asked_for_by_the_successor(tmp_path: Path) -> None:
    async def scenario() -> None:
        clock = VirtualClock()
        cloud = FakeProvider(clock)
        r = await rig(tmp_path, cloud, clock, chat(1))
        r.world.store = _Dying(r.store, after=True)  # type: ignore[assignment]
        with pytest.raises(KeyboardInterrupt):
            await r.step()
        assert not await machines(cloud)
        await r.close()
        successor = await rig(tmp_path, cloud, clock)
        plan = await successor.step()
        (launch,) = plan.actions
        assert isinstance(launch, Launch)
        assert launch.because.code is ReasonCode.RETRY_LAUNCH
        await successor.until_ready(1)
        await successor.close()

    asyncio.run(scenario())


def test_silence_changes_nothing_and_loss_is_answered(tmp_path: Path) -> None:
    async def scenario() -> None:
        clock = VirtualClock()
        cloud = FakeProvider(clock)
        r = await rig(tmp_path, cloud, clock, chat(2))
        before = await r.until_ready(2)
        cloud.silent = True
        for _ in range(10):
            plan = await r.step(60)
            assert [(x.id, x.status) for x in plan.replicas] == [(x.id, x.status) for x in before]
            assert plan.waiting[0].code is ReasonCode.PROVIDER_SILENT
        cloud.silent = False
        cloud.vanish(before[0].instance_id or "")
        plan = await r.step()
        assert [x.display_status for x in plan.replicas][:2] == ["LOST", "READY"]
        assert {x.id for x in await r.until_ready(2)} == {2, 3}
        await r.close()

    asyncio.run(scenario())


def test_an_orphan_with_our_tag_is_ended(tmp_path: Path) -> None:
    async def scenario() -> None:
        clock = VirtualClock()
        cloud = FakeProvider(clock)
        r = await rig(tmp_path, cloud, clock, chat(1))
        (ready,) = await r.until_ready(1)
        order = cloud.order(ready.instance_id or "")
        await cloud.launch(replace(order, token="chat-u1-99-1"))
        plan = await r.step()
        (end,) = plan.actions
        assert isinstance(end, Terminate)
        assert end.because.code is ReasonCode.ORPHAN
        for _ in range(3):
            await r.step()
        assert await machines(cloud) == {ready.token}
        await r.close()

    asyncio.run(scenario())


def test_a_full_pool_is_cooled_and_the_next_offering_taken(tmp_path: Path) -> None:
    async def scenario() -> None:
        clock = VirtualClock()
        cloud = FakeProvider(clock, offerings=(SMALL, replace(SMALL, instance_type="medium", price_per_hour=0.4)))
        cloud.capacity[SMALL.pool] = 0
        r = await rig(tmp_path, cloud, clock, chat(1))
        (ready,) = await r.until_ready(1)
        assert ready.offering == cloud.catalog[1]
        assert ready.attempt == 2
        launches = [a for plan in r.plans for a in plan.actions if isinstance(a, Launch)]
        assert "cooling" in launches[1].because.rejected[0][1]
        await r.close()

    asyncio.run(scenario())


def test_a_version_that_always_fails_stops_costing_money(tmp_path: Path) -> None:
    async def scenario() -> None:
        clock = VirtualClock()
        cloud = FakeProvider(clock)
        cloud.behaviour = BAD
        r = await rig(tmp_path, cloud, clock, chat(1))
        for _ in range(400):
            await r.step(10)
        assert not await machines(cloud)
        assert r.plans[-1].waiting[0].code is ReasonCode.GAVE_UP
        assert cloud.calls["launch"] == 8
        await r.store.put_version(chat(1, "mended"), mode=UpdateMode.ROLLING, now=clock.now())
        cloud.behaviour = FakeProvider(clock).behaviour
        await r.until_ready(1)
        await r.close()

    asyncio.run(scenario())


def test_a_conflict_and_a_full_disk_are_waited_out(tmp_path: Path) -> None:
    async def scenario() -> None:
        clock = VirtualClock()
        cloud = FakeProvider(clock)
        r = await rig(tmp_path, cloud, clock, chat(1))
        failing = _Failing(r.store, [Conflict("stale"), StoreUnavailable("database or disk is full")])
        r.world.store = failing  # type: ignore[assignment]
        task = asyncio.create_task(loop.run(r.world))
        await _drive(r, lambda: failing.commits > 3)
        assert r.world.trouble == ""
        assert failing.troubles == ["database or disk is full"]
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await r.close()

    asyncio.run(scenario())


def test_a_lease_that_was_lost_is_asked_for_again_at_once(tmp_path: Path) -> None:
    async def scenario() -> None:
        clock = VirtualClock()
        r = await rig(tmp_path, FakeProvider(clock), clock, chat(1))
        await r.step()
        assert r.world.lease is not None
        r.world.lease = replace(r.world.lease, fence=r.world.lease.fence - 1)
        with pytest.raises(LeaseLost):
            await r.step(0)
        await r.step(0)
        await r.close()

    asyncio.run(scenario())


class _Failing:
    def __init__(self, store: Store, errors: list[Exception]) -> None:
        self._store = store
        self._errors = errors
        self.commits = 0
        self.troubles: list[str] = []

    def __getattr__(self, name: str) -> object:
        return getattr(self._store, name)

    async def commit(self, *args: object, **kwargs: object) -> int:
        if self._errors:
            error = self._errors.pop(0)
            self.troubles = [str(error)]
            raise error
        self.commits += 1
        return await self._store.commit(*args, **kwargs)  # type: ignore[arg-type]


async def _drive(r: Rig, done: object) -> None:
    for _ in range(500):
        await r.clock.advance(0.5)
        for watch in r.world.watches.values():
            await watch.ask()
        await asyncio.sleep(0.002)  # the store works on a thread of its own
        if done():  # type: ignore[operator]
            return
    raise AssertionError("the loop did not get on")


def test_taking_down_leaves_no_machine(tmp_path: Path) -> None:
    async def scenario() -> None:
        clock = VirtualClock()
        cloud = FakeProvider(clock)
        r = await rig(tmp_path, cloud, clock, chat(3))
        await r.step()
        await r.store.want_down("chat", purge=False)
        for _ in range(30):
            plan = await r.step()
            if plan.finished:
                break
        assert plan.finished
        assert not await machines(cloud)
        assert all(x.status is not ReplicaStatus.READY for x in plan.replicas)
        await r.close()

    asyncio.run(scenario())
