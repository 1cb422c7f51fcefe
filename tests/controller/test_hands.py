"""Provider calls that go wrong: none is lost, none is repeated faster than it can have an effect."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

from tests.controller.rig import chat, rig

from skyserve.clock import VirtualClock
from skyserve.controller.offers import PATIENCE_S, Offers
from skyserve.controller.watch import Watch
from skyserve.errors import StoreUnavailable, Throttled
from skyserve.model.decision import Launch, ReasonCode, Terminate
from skyserve.model.evidence import Instance, Listing, Silent
from skyserve.model.replica import ReplicaStatus
from skyserve.model.resources import ResourceChoice
from skyserve.model.service import ReadinessProbe, ServiceSpec, UpdateMode
from skyserve.providers.base import Candidates, LaunchOrder
from skyserve.providers.fake import SMALL, FakeProvider

ELSEWHERE = replace(SMALL, provider="other", location=replace(SMALL.location, cloud="other"), price_per_hour=9.0)


class Moody(FakeProvider):
    """A cloud whose adapter has a defect, or that never answers, in the calls that are named."""

    def __init__(self, clock: VirtualClock) -> None:
        super().__init__(clock)
        self.broken: set[str] = set()
        self.hanging: set[str] = set()

    async def _mood(self, method: str) -> None:
        self.calls[method] += method in self.broken
        if method in self.broken:
            raise AttributeError("'NoneType' object has no attribute 'items'")
        if method in self.hanging:
            await asyncio.Event().wait()

    async def offerings(self, want: ResourceChoice) -> Candidates:
        await self._mood("offerings")
        return await super().offerings(want)

    async def launch(self, order: LaunchOrder) -> Instance:
        await self._mood("launch")
        return await super().launch(order)

    async def instances(self) -> tuple[Instance, ...]:
        await self._mood("instances")
        return tuple(await super().instances())

    async def terminate(self, instance_id: str) -> None:
        await self._mood("terminate")
        await super().terminate(instance_id)


def test_a_defect_in_an_adapter_is_an_unclear_answer_and_not_a_hot_loop(tmp_path: Path) -> None:
    async def scenario() -> None:
        clock = VirtualClock()
        cloud, other = Moody(clock), FakeProvider(clock, name="other", offerings=(ELSEWHERE,))
        cloud.broken = {"launch"}
        r = await rig(tmp_path, cloud, clock, chat(1), other)
        for _ in range(50):
            await r.step(0.02)
        assert cloud.calls["launch"] == 1
        assert "AttributeError" in r.plans[-1].replicas[0].detail
        (ready,) = await r.until_ready(1)
        assert ready.offering == ELSEWHERE, "after a minute without a clear answer another place is tried"
        await r.close()

    asyncio.run(scenario())


def test_a_refused_termination_waits_for_a_later_listing(tmp_path: Path) -> None:
    async def scenario() -> None:
        clock = VirtualClock()
        cloud = Moody(clock)
        r = await rig(tmp_path, cloud, clock, chat(1))
        await r.until_ready(1)
        await r.store.want_down("chat", purge=True)
        cloud.broken = {"terminate"}
        await r.step()
        for _ in range(5):
            await r.world.store.load("chat")
            await r.step(0)  # nudged, and nothing new was listed
        assert cloud.calls["terminate"] == 1
        await r.step()
        assert cloud.calls["terminate"] == 2
        cloud.broken.clear()
        for _ in range(6):
            plan = await r.step()
        assert plan.finished
        await r.close()

    asyncio.run(scenario())


def test_a_throttled_termination_waits_as_long_as_it_was_told(tmp_path: Path) -> None:
    async def scenario() -> None:
        clock = VirtualClock()
        cloud = FakeProvider(clock)
        r = await rig(tmp_path, cloud, clock, chat(1))
        (ready,) = await r.until_ready(1)
        await r.store.want_down("chat", purge=True)
        real, refused = cloud.terminate, 0

        async def throttled(instance_id: str) -> None:
            nonlocal refused
            refused += 1
            raise Throttled("slowly", retry_after_s=60.0)

        cloud.terminate = throttled  # type: ignore[method-assign]
        for _ in range(10):
            await r.step(5)
        assert refused == 1
        cloud.terminate = real  # type: ignore[method-assign]
        plans = [await r.step(5) for _ in range(8)]
        assert plans[-1].finished
        assert ready.instance_id in {a.instance_id for p in plans for a in p.actions if isinstance(a, Terminate)}
        await r.close()

    asyncio.run(scenario())


def test_a_cloud_that_breaks_or_hangs_keeps_no_service_from_the_others(tmp_path: Path) -> None:
    async def scenario() -> None:
        clock = VirtualClock()
        broken, hanging = Moody(clock), Moody(clock)
        broken.broken = hanging.hanging = {"offerings", "instances"}
        fine = FakeProvider(clock, name="fine")
        offers = Offers({"broken": broken, "fine": fine}, clock)
        assert await offers.of(chat(1), ())
        offered = await offers.ask(chat(1))
        assert offered.refusals[0][0] == "broken"
        assert "AttributeError" in offered.refusals[0][1]
        stuck = Offers({"hanging": hanging, "fine": fine}, clock)
        async with asyncio.timeout(PATIENCE_S + 5):
            assert await stuck.of(chat(1), ()) == ()
        stuck.close()
        watch = Watch(broken, clock, lambda tags: None)
        await watch.ask()
        answer = watch.everything()
        assert isinstance(answer, Silent)
        assert "AttributeError" in answer.why
        broken.broken = set()
        await watch.ask()
        assert isinstance(watch.everything(), Listing)

    asyncio.run(scenario())


def test_replicas_of_a_provider_that_is_gone_can_be_purged(tmp_path: Path) -> None:
    async def scenario() -> None:
        clock = VirtualClock()
        r = await rig(tmp_path, FakeProvider(clock), clock, chat(1))
        await r.until_ready(1)
        await r.close()
        other = FakeProvider(clock, name="other", offerings=(ELSEWHERE,))
        successor = await rig(tmp_path, other, clock)
        plan = await successor.step()
        assert [x.status for x in plan.replicas] == [ReplicaStatus.READY]
        assert plan.waiting[0].code is ReasonCode.PROVIDER_SILENT
        await successor.store.want_down("chat", purge=True)
        await successor.step()
        assert (await successor.step()).finished
        await successor.close()

    asyncio.run(scenario())


def test_damaged_secrets_of_one_version_do_not_stop_the_next(tmp_path: Path) -> None:
    async def scenario() -> None:
        clock = VirtualClock()
        probe = ReadinessProbe(headers={"Authorization": "Bearer $KEY"})
        spec = ServiceSpec(name="chat", run="serve", readiness_probe=probe, secrets={"KEY": "f1"})
        r = await rig(tmp_path, FakeProvider(clock), clock, spec)
        r.world.secrets.put("chat-u1", 1, {"KEY": "v"})
        await r.until_ready(1)
        (tmp_path / "secrets" / "chat-u1" / "1.json").write_text("{")
        await r.store.put_version(replace(spec, secrets={"KEY": "f2"}), mode=UpdateMode.ROLLING, now=clock.now())
        r.world.secrets.put("chat-u1", 2, {"KEY": "w"})
        troubles: set[str] = set()
        for _ in range(60):
            try:
                plan = await r.step()
            except StoreUnavailable as error:
                troubles.add(error.message)
        assert any("damaged" in trouble for trouble in troubles)
        assert [(x.status, x.version) for x in plan.replicas] == [(ReplicaStatus.READY, 2)]
        await r.close()

    asyncio.run(scenario())


def test_an_order_whose_secrets_cannot_be_read_fails_and_is_not_repeated_at_once(tmp_path: Path) -> None:
    async def scenario() -> None:
        clock = VirtualClock()
        spec = ServiceSpec(name="chat", run="serve", secrets={"KEY": "f1"})
        r = await rig(tmp_path, FakeProvider(clock), clock, spec)
        r.world.secrets.put("chat-u1", 1, {"KEY": "v"})
        (tmp_path / "secrets" / "chat-u1" / "1.json").write_text("{")
        for _ in range(400):
            plan = await r.step(10)
        assert plan.waiting[0].code is ReasonCode.GAVE_UP
        assert "damaged" in plan.waiting[0].text
        assert sum(isinstance(a, Launch) for p in r.plans for a in p.actions) == 8
        await r.close()

    asyncio.run(scenario())
