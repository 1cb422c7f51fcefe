"""What holds for every provider, case by case. Each has services of its own and leaves nothing behind."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from tests.contract.playing import How, case
from tests.contract.world import EXITS, FAILS_SETUP, SERVES, Stage, Trouble, all_in, hang_up

from skyserve.errors import (
    CapacityUnavailable,
    CredentialsRejected,
    OrderRejected,
    ProviderError,
    ProviderUnavailable,
    QuotaExceeded,
    Throttled,
)
from skyserve.model.evidence import InstanceState
from skyserve.model.resources import Quantity, ResourceChoice, Resources
from skyserve.providers.base import LaunchOrder

NOTICE_BOUND_S = 5.0
"""How soon an announced interruption must be known."""
NOTICE_S = 25.0
SECRETS = {"API_KEY": "s3cret value with 'quotes'"}
ENVS = {"MODEL": "tiny"}


# ---- what it offers


@case("check")
async def says_whether_it_is_usable(at: Stage) -> None:
    result = await at.provider.check()
    assert result.usable, result
    assert result.reason


@case("offerings")
async def offerings_carry_its_name_and_refusals_a_reason(at: Stage) -> None:
    impossible = replace(at.world.resources, instance_type=None, cpus=Quantity(100_000))
    candidates = await at.provider.offerings(ResourceChoice((at.world.resources, impossible)))
    assert candidates.offerings
    assert {offering.provider for offering in candidates.offerings} == {at.provider.name}
    [(alternative, reason)] = candidates.refusals
    assert alternative
    assert reason
    elsewhere = await at.provider.offerings(ResourceChoice((Resources(cloud="nowhere"),)))
    assert not elsewhere.offerings


# ---- a life


@case("launch to end")
async def a_launched_instance_is_listed_until_it_is_terminated(at: Stage) -> None:
    async with at.world.gate() as gate:
        order = at.order(setup=gate.wait)
        launched = await at.launch(order)
        assert (launched.provider, launched.service, launched.token) == (at.provider.name, order.service, order.token)
        in_setup = await at.only(InstanceState.SETUP)
        assert in_setup.setup_started_at
        gate.open()
        running = await at.only(InstanceState.RUNNING)
    assert running.id == in_setup.id == launched.id
    assert running.setup_started_at == in_setup.setup_started_at
    await at.answers(running)
    await at.end(running)


@case("probe", "application")
async def a_replica_answers_at_its_address_and_has_all_that_was_ordered(at: Stage) -> None:
    order = with_files(at)
    await at.launch(order)
    seen = await at.answers(await at.only(InstanceState.RUNNING))
    given = {
        **ENVS,
        **SECRETS,
        "SKYPILOT_SERVE_REPLICA_ID": "1",
        "SKYPILOT_TASK_ID": order.token,
        "SKYPILOT_NUM_NODES": "1",
        "SKYPILOT_NODE_RANK": "0",
        "SKYSERVE_SERVICE": order.service_name,
        "SKYSERVE_REPLICA_ID": "1",
        "SKYSERVE_VERSION": "1",
    }
    assert {name: seen["env"].get(name) for name in given} == given
    assert seen["env"]["PORT"] == seen["env"]["SKYSERVE_REPLICA_PORT"]
    assert seen["files"] == {"data.txt": "workdir\n", "assets/model.txt": "file_mount\n"}


@case("application exit")
async def an_application_that_exits_is_told_with_its_code(at: Stage) -> None:
    await at.launch(EXITS)
    exited = await at.only(InstanceState.EXITED)
    assert (exited.exit_code, exited.failed_phase) == (3, "run")
    assert at.world.last_words in exited.detail
    await at.end(exited)


@case("failed setup")
async def a_failed_setup_is_told_with_its_code(at: Stage) -> None:
    await at.launch(FAILS_SETUP)
    exited = await at.only(InstanceState.EXITED)
    assert (exited.exit_code, exited.failed_phase, exited.address) == (4, "setup", None)
    assert "setting up" in exited.detail


@case("terminate twice")
async def terminate_may_be_repeated_and_may_miss(at: Stage) -> None:
    instance = await at.launch()
    await at.provider.terminate("never-launched")
    await at.provider.terminate(instance.id)
    await at.provider.terminate(instance.id)
    await at.gone()
    await at.provider.terminate(instance.id)
    await at.gone()


@case("stop and start")
async def a_stopped_instance_goes_on_without_its_setup(at: Stage) -> None:
    order = at.order(SERVES, setup="echo setting up")
    await at.launch(order)
    running = await at.only(InstanceState.RUNNING)
    if not at.provider.capabilities.stops:
        with pytest.raises(OrderRejected):
            await at.provider.stop(running.id)
        with pytest.raises(OrderRejected):
            await at.provider.start(running.id)
        at.need("stop")
        raise AssertionError("capabilities.cannot does not say why")
    await at.provider.stop(running.id)
    stopped = await at.only(InstanceState.STOPPED)
    assert stopped.id == running.id
    await at.provider.start(running.id)
    again = await at.only(InstanceState.RUNNING)
    assert again.id == running.id
    await at.answers(again)
    assert (await at.output(again)).splitlines().count(b"setting up") == 1


# ---- one token, one machine; one listing, everything


@case("retry by token")
async def the_same_token_gives_the_same_instance(at: Stage) -> None:
    order = at.order()
    first = await at.launch(order)
    again = [await at.launch(order), *await asyncio.gather(at.launch(order), at.launch(order))]
    assert {one.id for one in again} == {first.id}
    running = await at.only(InstanceState.RUNNING)
    assert (await at.launch(order)).id == running.id == first.id
    await at.only(InstanceState.RUNNING)


@case("concurrent retry")
async def concurrent_launches_of_one_token_make_one_instance(at: Stage) -> None:
    order = at.order()
    launched = await asyncio.gather(*(at.launch(order) for _ in range(3)))
    assert len({one.id for one in launched}) == 1
    assert (await at.only(InstanceState.RUNNING)).id == launched[0].id


@case("list over services")
async def one_listing_holds_all_services(at: Stage) -> None:
    orders = [at.order(), at.order(service=at.other_service)]
    launched = await asyncio.gather(*(at.launch(order) for order in orders))
    listed = await at.until(lambda listed: len(listed) == 2)
    assert {(one.id, one.service, one.token) for one in listed} == {
        (one.id, order.service, order.token) for one, order in zip(launched, orders, strict=True)
    }


@case("two services")
async def two_services_run_side_by_side_and_end_alone(at: Stage) -> None:
    first, second = await asyncio.gather(at.launch(), at.launch(at.order(service=at.other_service)))
    both = {one.service: one for one in await at.until(all_in(InstanceState.RUNNING, 2))}
    assert {one.id for one in both.values()} == {first.id, second.id}
    assert first.id != second.id
    for service, one in both.items():
        seen = await at.answers(one)
        assert seen["env"]["SKYPILOT_TASK_ID"] == one.token, service
    await at.provider.terminate(first.id)
    left = await at.only(InstanceState.RUNNING)
    await at.provider.release(at.service)
    assert left.id == second.id
    await at.answers(left)
    assert (await at.only(InstanceState.RUNNING)).address == both[at.other_service].address


@case("orphan")
async def an_instance_that_nobody_asked_for_is_listed_and_can_be_ended(at: Stage) -> None:
    other = at.world.controller()
    try:
        launched = await at.launch(by=other)
    finally:
        await hang_up(other)
    [found] = await at.until(lambda listed: len(listed) == 1)
    assert (found.id, found.service, found.token) == (launched.id, launched.service, launched.token)
    await at.end(found)


@case("another installation", "stranger")
async def another_installations_instances_are_neither_seen_nor_touched(at: Stage) -> None:
    stranger = at.world.stranger()
    try:
        theirs = await at.launch(by=stranger)
        ours = await at.launch()
        [seen] = await at.until(lambda listed: len(listed) == 1)
        assert seen.token == ours.token
        await at.end(seen)
        await at.provider.release(at.service)
        assert [one.token for one in await stranger.instances()] == [theirs.token]
        await stranger.terminate(theirs.id)
        async with asyncio.timeout(20):
            while await stranger.instances():
                await at.world.pass_time()
        await stranger.release(at.service)
    finally:
        await hang_up(stranger)


# ---- output, and scripts beside


@case("logs")
async def logs_can_be_cut_to_the_tail_and_outlive_the_instance(at: Stage) -> None:
    instance = await at.launch(EXITS)
    await at.only(InstanceState.EXITED)
    whole = await at.output(instance)
    assert len(whole.splitlines()) > 1
    assert await at.output(instance, tail=1) == whole.splitlines(keepends=True)[-1]
    await at.end(instance)
    assert await at.output(instance) == whole
    assert await at.output(instance, tail=1) == whole.splitlines(keepends=True)[-1]


@case("follow logs")
async def following_logs_ends_with_the_instance(at: Stage) -> None:
    instance = await at.launch()
    await at.only(InstanceState.RUNNING)
    following = asyncio.create_task(at.output(instance, follow=True))
    await at.logged(instance, b"listening\n")
    assert not following.done()
    await at.end(instance)
    async with asyncio.timeout(10):
        assert b"listening\n" in await following


@case("logs of nobody")
async def logs_of_an_unknown_instance_are_empty(at: Stage) -> None:
    assert await at.output("never-launched", follow=True) == b""


@case("release")
async def release_forgets_the_logs_and_may_be_repeated(at: Stage) -> None:
    instance = await at.launch(EXITS)
    await at.only(InstanceState.EXITED)
    await at.end(instance)
    for service in (at.service, at.service, "never-launched"):
        await at.provider.release(service)
    assert await at.output(instance) == b""


@case("execute")
async def a_script_runs_beside_the_replica(at: Stage) -> None:
    at.need("execute")
    with pytest.raises(OrderRejected):
        await at.executed("never-launched", "true", {})
    instance = await at.launch(with_files(at))
    await at.only(InstanceState.RUNNING)
    output, code = await at.executed(instance.id, 'echo "$GIVEN"; cat data.txt', {"GIVEN": "two words"})
    assert code == 0
    if "application" in at.world.cannot:
        return
    assert output == b"two words\nworkdir\n"
    assert await at.executed(instance.id, "echo no >&2; exit 5", {}) == (b"no\n", 5)
    await at.answers(await at.only(InstanceState.RUNNING))


# ---- taken back


@case("interruption notice", "spot", "notice", how=How.ALONE)
async def an_announced_interruption_is_known_within_seconds(at: Stage) -> None:
    await at.launch(at.spot_order())
    running = await at.only(InstanceState.RUNNING)
    assert running.reclaim_at is None
    told, began_at = at.world.news, at.world.now()
    at.world.take_back(running, NOTICE_S)
    [noticed] = await at.until(lambda listed: [one.reclaim_at is not None for one in listed] == [True])
    while at.world.reports and at.world.news == told and at.world.now() - began_at <= NOTICE_BOUND_S:
        await at.world.pass_time()
    assert at.world.now() - began_at <= NOTICE_BOUND_S
    assert noticed.state is InstanceState.RUNNING, "it goes on until it is taken"
    assert noticed.reclaim_at is not None
    assert noticed.reclaim_at > at.world.now()


@case("preemption", "spot")
async def an_instance_that_was_taken_back_is_told_until_it_is_terminated(at: Stage) -> None:
    await at.launch(at.spot_order())
    running = await at.only(InstanceState.RUNNING)
    at.world.take_back(running, 0.0)
    preempted = await at.only(InstanceState.PREEMPTED)
    assert preempted.id == running.id
    await at.end(preempted)


# ---- refusals


@case("capacity refusal", how=How.ALONE)
async def no_room_is_capacity_unavailable_and_passes(at: Stage) -> None:
    await refused_and_then_not(at, Trouble.CAPACITY, CapacityUnavailable)


@case("quota refusal", how=How.ALONE)
async def a_full_quota_is_quota_exceeded_and_passes(at: Stage) -> None:
    await refused_and_then_not(at, Trouble.QUOTA, QuotaExceeded)


@case("throttling", how=How.ALONE)
async def too_many_calls_are_throttled_with_a_pause(at: Stage) -> None:
    refusal = await refused_and_then_not(at, Trouble.THROTTLED, Throttled, listing=True)
    assert isinstance(refusal, Throttled)
    assert refusal.retry_after_s > 0


@case("rejected credentials", how=How.ALONE)
async def rejected_credentials_are_told_as_such(at: Stage) -> None:
    at.need(Trouble.CREDENTIALS.value)
    with at.world.trouble(Trouble.CREDENTIALS):
        checked = await at.provider.check()
        assert not checked.usable
        assert checked.hint
    await refused_and_then_not(at, Trouble.CREDENTIALS, CredentialsRejected, listing=True)


@case("silent provider", how=How.ALONE)
async def silence_raises_and_changes_nothing(at: Stage) -> None:
    at.need(Trouble.SILENT.value)
    order = at.order()
    await at.launch(order)
    before = await at.only(InstanceState.RUNNING)
    with at.world.trouble(Trouble.SILENT):
        if at.world.silence_raises:
            with pytest.raises(ProviderUnavailable):
                await at.provider.instances()
            with pytest.raises(ProviderUnavailable):
                await at.provider.launch(at.order())
        else:
            assert await at.listed() == [before]
    assert await at.only(InstanceState.RUNNING) == before
    assert (await at.launch(order)).id == before.id
    await at.answers(before)


# ---- the controller is started again


@case("restart before boot")
async def a_restart_while_it_boots_loses_nothing(at: Stage) -> AsyncIterator[None]:
    order = with_files(at)
    yield
    launched = await at.launch(order)
    yield
    assert [one.id for one in await at.listed()] == [launched.id]
    running = await at.only(InstanceState.RUNNING)
    seen = await at.answers(running)
    assert seen["env"]["API_KEY"] == SECRETS["API_KEY"]
    assert seen["files"] == {"data.txt": "workdir\n", "assets/model.txt": "file_mount\n"}


@case("restart during setup")
async def a_restart_during_setup_does_not_repeat_it(at: Stage) -> AsyncIterator[None]:
    async with at.world.gate() as gate:
        launched = await at.launch(at.order(setup=f"echo setting up; {gate.wait}", secrets=SECRETS))
        in_setup = await at.only(InstanceState.SETUP)
        yield
        yield
        assert [one.id for one in await at.listed()] == [launched.id]
        assert (await at.only(InstanceState.SETUP)).setup_started_at == in_setup.setup_started_at
        gate.open()
        running = await at.only(InstanceState.RUNNING)
    assert (await at.answers(running))["env"]["API_KEY"] == SECRETS["API_KEY"]
    assert (await at.output(running)).splitlines().count(b"setting up") == 1


@case("restart while running")
async def a_restart_does_not_disturb_what_runs(at: Stage) -> AsyncIterator[None]:
    order = at.order(secrets=SECRETS)
    await at.launch(order)
    before = await at.only(InstanceState.RUNNING)
    seen = await at.answers(before)
    yield
    yield
    assert [one.id for one in await at.listed()] == [before.id]
    assert (await at.launch(order)).id == before.id
    assert await at.only(InstanceState.RUNNING) == before
    assert (await at.answers(before))["pid"] == seen["pid"]
    assert b"listening\n" in await at.output(before)
    await at.end(before)


@case("restart during shutdown")
async def a_restart_while_it_ends_does_not_keep_it(at: Stage) -> AsyncIterator[None]:
    instance = await at.launch()
    await at.only(InstanceState.RUNNING)
    yield
    await at.provider.terminate(instance.id)
    yield
    await at.gone()
    await at.provider.terminate(instance.id)
    assert b"listening\n" in await at.output(instance)


# ---- at the very end


@case("nothing left over", how=How.ALONE)
async def nothing_is_left_of_all_these_cases(at: Stage) -> None:
    give_up_at = time.monotonic() + 10
    while at.world.leftovers() and time.monotonic() < give_up_at:  # what is on its way out is not listed everywhere
        await at.world.pass_time()
    assert at.world.leftovers() == []


# ---- what several cases do


def with_files(at: Stage) -> LaunchOrder:
    """An order with variables, a secret, a workdir and a file mount."""
    folder = Path(at.world.home) / f"files-{at.service}"
    (folder / "work").mkdir(parents=True, exist_ok=True)
    (folder / "work" / "data.txt").write_text("workdir\n")
    (folder / "model.txt").write_text("file_mount\n")
    mounts = {"assets/model.txt": str(folder / "model.txt")}
    return at.order(envs=ENVS, secrets=SECRETS, workdir=str(folder / "work"), file_mounts=mounts)


async def refused_and_then_not(
    at: Stage, trouble: Trouble, kind: type[ProviderError], *, listing: bool = False
) -> ProviderError:
    """A launch is refused while there is trouble, without a trace; afterwards the same order is accepted."""
    at.need(trouble.value)
    order = at.world.troubled(trouble, at.order())
    with at.world.trouble(trouble):
        with pytest.raises(kind) as refusal:
            await at.launch(order)
        if listing:
            with pytest.raises(kind):
                await at.provider.instances()
    assert type(refusal.value) is kind
    assert refusal.value.message
    assert not await at.listed()
    await at.launch(at.order(token=order.token))
    await at.until(lambda listed: len(listed) == 1)
    return refusal.value
