"""Calls are limited, counted, and answered in the contract's terms only."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace

import pytest

from skyserve.clock import VirtualClock
from skyserve.errors import CapacityUnavailable, ProviderUnavailable, Throttled
from skyserve.model.evidence import Instance
from skyserve.providers.base import LaunchOrder
from skyserve.providers.fake import SMALL, FakeProvider
from skyserve.providers.instrument import Instrumented

ORDER = LaunchOrder("chat-u1", "chat", 1, 1, "t1", "v1", SMALL, "serve", None, 8080)


class Broken(FakeProvider):
    """Lets the errors of its SDK out, never answers `terminate`, and breaks off its logs."""

    async def instances(self) -> Sequence[Instance]:
        raise ConnectionResetError("peer is gone")

    async def launch(self, order: LaunchOrder) -> Instance:
        raise KeyError("instanceId")

    async def terminate(self, instance_id: str) -> None:
        await asyncio.Event().wait()

    async def logs(self, instance_id: str, *, follow: bool, tail: int | None) -> AsyncIterator[bytes]:
        yield b"begin\n"
        raise TimeoutError("read timed out")


def test_foreign_errors_become_silence_with_their_cause() -> None:
    provider = Instrumented(Broken(VirtualClock()), VirtualClock())
    with pytest.raises(ProviderUnavailable, match="could not answer `instances`: ConnectionResetError") as raised:
        asyncio.run(provider.instances())
    assert isinstance(raised.value.__cause__, ConnectionResetError)
    with pytest.raises(ProviderUnavailable, match="instanceId"):
        asyncio.run(provider.launch(ORDER))


def test_a_call_that_takes_too_long_is_silence() -> None:
    async def scenario() -> None:
        clock = VirtualClock()
        provider = Instrumented(Broken(clock), clock, timeout_s=30)
        call = asyncio.create_task(provider.terminate("t1"))
        for _ in range(3):  # until the call and its limit are both under way
            await asyncio.sleep(0)
        await clock.advance(29)
        assert not call.done()
        await clock.advance(2)
        with pytest.raises(ProviderUnavailable, match="did not answer `terminate` within 30 s"):
            await call
        assert provider.stats["terminate"].slowest_s >= 30

    asyncio.run(scenario())


def test_logs_that_break_off_are_silence_after_what_came() -> None:
    async def scenario() -> None:
        provider = Instrumented(Broken(VirtualClock()), VirtualClock())
        log = provider.logs("t1", follow=False, tail=None)
        assert await anext(log) == b"begin\n"
        with pytest.raises(ProviderUnavailable):
            await anext(log)

    asyncio.run(scenario())


def test_calls_and_errors_are_counted_by_method_and_code() -> None:
    async def scenario() -> Instrumented:
        clock = VirtualClock()
        cloud = FakeProvider(clock)
        provider = Instrumented(cloud, clock)
        await provider.launch(ORDER)
        cloud.throttled_for_s = 3.0
        with pytest.raises(Throttled) as raised:
            await provider.instances()
        assert raised.value.retry_after_s == 3.0
        cloud.throttled_for_s = None
        cloud.capacity[SMALL.pool] = 0
        for token in ("t2", "t3"):
            with pytest.raises(CapacityUnavailable):
                await provider.launch(replace(ORDER, token=token))
        return provider

    stats = asyncio.run(scenario()).stats
    assert stats["launch"].calls == 3
    assert stats["launch"].errors == {"CAPACITY_UNAVAILABLE": 2}
    assert stats["instances"].errors == {"THROTTLED": 1}


def test_it_is_the_provider_it_watches() -> None:
    cloud = FakeProvider(VirtualClock(), name="cumulus")
    provider = Instrumented(cloud, VirtualClock())
    assert (provider.name, provider.capabilities) == ("cumulus", cloud.capabilities)
