"""Decisions that the production loop logged, replayed. End-to-end tests replay their own (e2e/conftest.py)."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

from tests.controller.rig import chat, rig
from tests.decide.builders import observation
from tests.replay.replay import differences

from skyserve.clock import VirtualClock
from skyserve.decide.reconcile import decide
from skyserve.model.codec import dumps
from skyserve.model.service import UpdateMode
from skyserve.providers.fake import FakeProvider


def test_every_logged_decision_replays_to_the_same_plan(tmp_path: Path) -> None:
    async def scenario() -> None:
        clock = VirtualClock()
        cloud = FakeProvider(clock)
        r = await rig(tmp_path, cloud, clock, chat(2))
        ready = await r.until_ready(2)
        cloud.preempt(ready[0].instance_id or "")
        await r.until_ready(1)
        await r.until_ready(2)
        await r.store.put_version(chat(2, "better"), mode=UpdateMode.ROLLING, now=clock.now())
        for _ in range(40):
            await r.step()
        await r.store.want_down("chat", purge=False)
        while not (await r.step()).finished:
            pass
        entries = await r.store.decisions("chat")
        assert len(entries) > 10
        stored = [(dumps(entry.observation), dumps(entry.plan)) for entry in entries]
        assert differences(stored) == []
        await r.close()

    asyncio.run(scenario())


def test_a_decision_that_would_be_another_today_is_found() -> None:
    seen = observation()
    plan = decide(seen)
    other = replace(plan, target=plan.target + 1)
    assert differences([(dumps(seen), dumps(plan)), (dumps(seen), dumps(other))]) == [1]
