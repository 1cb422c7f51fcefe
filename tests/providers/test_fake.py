"""The scripted cloud does as it is told."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace

import pytest

from skyserve.clock import VirtualClock
from skyserve.errors import (
    CapacityUnavailable,
    CredentialsRejected,
    ProviderError,
    ProviderUnavailable,
    QuotaExceeded,
    Throttled,
)
from skyserve.model.evidence import InstanceState
from skyserve.model.offering import Offering
from skyserve.model.resources import Quantity, ResourceChoice, Resources
from skyserve.providers.base import LaunchOrder
from skyserve.providers.fake import BAD, NEVER_READY, SLOW, SMALL, SMALL_SPOT, Behaviour, FakeProvider


def order(token: str = "t1", offering: Offering = SMALL) -> LaunchOrder:
    return LaunchOrder("chat-u1", "chat", 1, 1, token, "v1", offering, "serve", None, 8080)


async def state(cloud: FakeProvider) -> list[InstanceState]:
    return [instance.state for instance in await cloud.instances()]


def test_time_alone_brings_an_instance_up() -> None:
    async def scenario() -> list[list[InstanceState]]:
        clock = VirtualClock()
        cloud = FakeProvider(clock, address_of=lambda order: f"10.0.0.1:{order.port}")
        cloud.behaviour = Behaviour(boot_s=10, setup_s=5, run_s=100, exit_code=2)
        await cloud.launch(order())
        seen = [await state(cloud)]
        for seconds in (10, 5, 100):
            await clock.advance(seconds)
            seen.append(await state(cloud))
        [instance] = await cloud.instances()
        assert instance.address == "10.0.0.1:8080"
        assert instance.setup_started_at == clock.now() - 105
        return seen

    names = [[state.name for state in states] for states in asyncio.run(scenario())]
    assert names == [["STARTING"], ["SETUP"], ["RUNNING"], ["EXITED"]]


@pytest.mark.parametrize(
    ("behaviour", "expected"),
    [(SLOW, InstanceState.STARTING), (NEVER_READY, InstanceState.STARTING), (BAD, InstanceState.EXITED)],
)
def test_machines_may_be_slow_never_ready_or_bad(behaviour: Behaviour, expected: InstanceState) -> None:
    async def scenario() -> list[InstanceState]:
        clock = VirtualClock()
        cloud = FakeProvider(clock)
        cloud.behaviour = behaviour
        await cloud.launch(order())
        await clock.advance(600)
        return await state(cloud)

    assert asyncio.run(scenario()) == [expected]


def _silent(cloud: FakeProvider) -> None:
    cloud.silent = True


def _throttled(cloud: FakeProvider) -> None:
    cloud.throttled_for_s = 7.0


def _rejected(cloud: FakeProvider) -> None:
    cloud.credentials_rejected = True


@pytest.mark.parametrize(
    ("tell", "error"),
    [(_silent, ProviderUnavailable), (_throttled, Throttled), (_rejected, CredentialsRejected)],
)
def test_every_call_can_be_told_to_fail(tell: Callable[[FakeProvider], None], error: type[ProviderError]) -> None:
    async def scenario() -> None:
        cloud = FakeProvider(VirtualClock())
        tell(cloud)
        for call in (
            cloud.launch(order()),
            cloud.instances(),
            cloud.terminate("t1"),
            cloud.offerings(ResourceChoice()),
        ):
            with pytest.raises(error):
                await call
        assert (await cloud.check()).usable is (tell is _throttled)

    asyncio.run(scenario())


def test_capacity_is_counted_by_pool_and_quota_over_all() -> None:
    async def scenario() -> None:
        cloud = FakeProvider(VirtualClock())
        cloud.capacity[SMALL_SPOT.pool] = 1
        cloud.quota = 2
        await cloud.launch(order("t1", SMALL_SPOT))
        with pytest.raises(CapacityUnavailable, match="1 of 1 taken"):
            await cloud.launch(order("t2", SMALL_SPOT))
        await cloud.launch(order("t3"))
        with pytest.raises(QuotaExceeded):
            await cloud.launch(order("t4"))
        assert cloud.calls["launch"] == 4
        assert cloud.order("t1").offering == SMALL_SPOT

    asyncio.run(scenario())


def test_machines_are_taken_back_and_vanish_on_command() -> None:
    async def scenario() -> None:
        clock = VirtualClock()
        cloud = FakeProvider(clock)
        await cloud.launch(order("t1", SMALL_SPOT))
        await cloud.launch(order("t2", SMALL_SPOT))
        await clock.advance(60)
        cloud.preempt("t1")
        cloud.vanish("t2")
        assert await state(cloud) == [InstanceState.PREEMPTED]
        await cloud.terminate("t1")
        await clock.advance(cloud.shutdown_s)
        assert await cloud.instances() == ()

    asyncio.run(scenario())


def test_a_new_machine_may_be_missing_from_the_listing_for_a_while() -> None:
    async def scenario() -> None:
        clock = VirtualClock()
        cloud = FakeProvider(clock)
        cloud.listing_lag_s = 20
        await cloud.launch(order())
        assert await cloud.instances() == ()
        await clock.advance(20)
        assert await state(cloud) == [InstanceState.STARTING]

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("resources", "fits"),
    [
        (Resources(), (SMALL,)),
        (Resources(use_spot=True), (SMALL_SPOT,)),
        (Resources(cpus=Quantity(4), memory=Quantity(4, per_vcpu=True)), (SMALL,)),
        (Resources(cpus=Quantity(2)), ()),
        (Resources(cpus=Quantity(2, at_least=True), memory=Quantity(16)), (SMALL,)),
        (Resources(max_hourly_cost=0.1), ()),
        (Resources(zone="here-b"), ()),
    ],
    ids=str,
)
def test_offers_only_what_fits(resources: Resources, fits: tuple[Offering, ...]) -> None:
    cloud = FakeProvider(VirtualClock(), offerings=(SMALL, SMALL_SPOT))
    candidates = asyncio.run(cloud.offerings(ResourceChoice((resources,))))
    assert candidates.offerings == fits
    assert bool(candidates.refusals) is not bool(fits)


def test_a_fake_may_have_any_name_and_catalog() -> None:
    elsewhere = replace(SMALL, provider="other")
    cloud = FakeProvider(VirtualClock(), name="other", offerings=(elsewhere,))
    assert asyncio.run(cloud.launch(order(offering=elsewhere))).provider == "other"
