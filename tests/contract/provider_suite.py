"""What every provider must do, whatever it stands for. A test module subclasses ProviderContract and provides `rig`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

import pytest
import tests.contract.provider_cases  # noqa: F401 - registers the cases
from tests.contract.playing import CASES, Case, Outcome
from tests.contract.world import Cannot, World

from skyserve.errors import CapacityUnavailable
from skyserve.model.evidence import Instance, InstanceState
from skyserve.model.resources import ResourceChoice, Resources
from skyserve.providers.base import Provider

SERVES, EXITS, FAILS_SETUP = "serves", "exits with 3", "setup exits with 4"


class Rig(Protocol):
    """A provider under test, and the handles that the suite needs on its world."""

    provider: Provider

    async def launch(
        self, token: str, life: str = SERVES, *, service: str = "chat-u1", replica_id: int = 1
    ) -> Instance:
        """Launch a replica that will lead the given life."""
        ...

    async def until(self, true_of: Callable[[Sequence[Instance]], bool]) -> Sequence[Instance]:
        """Let time pass until this holds for the listing, or fail."""
        ...

    def fill_up(self) -> None:
        """See to it that the next launch finds no capacity."""
        ...


def gone(instances: Sequence[Instance]) -> bool:
    return not instances


def all_in(state: InstanceState) -> Callable[[Sequence[Instance]], bool]:
    return lambda instances: bool(instances) and all(instance.state is state for instance in instances)


async def output(rig: Rig, instance_id: str, *, follow: bool = False, tail: int | None = None) -> bytes:
    return b"".join([data async for data in rig.provider.logs(instance_id, follow=follow, tail=tail)])


class ProviderContract:
    """Tests that hold for every provider."""

    def test_says_whether_it_is_usable(self, rig: Rig) -> None:
        result = asyncio.run(rig.provider.check())
        assert result.usable
        assert result.reason

    def test_offerings_carry_its_name_and_refusals_a_reason(self, rig: Rig) -> None:
        want = ResourceChoice((Resources(), Resources(cloud="nowhere")))
        candidates = asyncio.run(rig.provider.offerings(want))
        assert candidates.offerings
        assert {offering.provider for offering in candidates.offerings} == {rig.provider.name}
        [(alternative, reason)] = candidates.refusals
        assert alternative
        assert reason

    def test_a_launched_instance_is_listed_until_it_is_terminated(self, rig: Rig) -> None:
        async def scenario() -> None:
            launched = await rig.launch("t1")
            assert (launched.provider, launched.service, launched.token) == (rig.provider.name, "chat-u1", "t1")
            [running] = await rig.until(all_in(InstanceState.RUNNING))
            assert running.id == launched.id
            assert running.address
            assert running.setup_started_at
            await rig.provider.terminate(launched.id)
            await rig.until(gone)

        asyncio.run(scenario())

    def test_the_same_token_gives_the_same_instance(self, rig: Rig) -> None:
        async def scenario() -> None:
            first = await rig.launch("t1")
            again, and_again = await asyncio.gather(rig.launch("t1"), rig.launch("t1"))
            assert {first.id, again.id, and_again.id} == {first.id}
            assert len(await rig.until(all_in(InstanceState.RUNNING))) == 1

        asyncio.run(scenario())

    def test_concurrent_launches_of_one_token_make_one_instance(self, rig: Rig) -> None:
        async def scenario() -> None:
            launched = await asyncio.gather(*(rig.launch("t1") for _ in range(3)))
            assert len({instance.id for instance in launched}) == 1
            assert len(await rig.until(all_in(InstanceState.RUNNING))) == 1

        asyncio.run(scenario())

    def test_one_listing_holds_all_services(self, rig: Rig) -> None:
        async def scenario() -> None:
            await rig.launch("t1", service="chat-u1")
            await rig.launch("t2", service="code-u2")
            listed = await rig.until(all_in(InstanceState.RUNNING))
            assert {(instance.token, instance.service) for instance in listed} == {("t1", "chat-u1"), ("t2", "code-u2")}

        asyncio.run(scenario())

    def test_an_application_that_exits_is_told_with_its_code(self, rig: Rig) -> None:
        async def scenario() -> None:
            await rig.launch("t1", EXITS)
            [instance] = await rig.until(all_in(InstanceState.EXITED))
            assert (instance.exit_code, instance.failed_phase) == (3, "run")
            assert instance.detail
            await rig.provider.terminate(instance.id)
            await rig.until(gone)

        asyncio.run(scenario())

    def test_a_failed_setup_is_told_with_its_code(self, rig: Rig) -> None:
        async def scenario() -> None:
            await rig.launch("t1", FAILS_SETUP)
            [instance] = await rig.until(all_in(InstanceState.EXITED))
            assert (instance.exit_code, instance.failed_phase, instance.address) == (4, "setup", None)

        asyncio.run(scenario())

    def test_terminate_may_be_repeated_and_may_miss(self, rig: Rig) -> None:
        async def scenario() -> None:
            instance = await rig.launch("t1")
            await rig.provider.terminate("never-launched")
            await rig.provider.terminate(instance.id)
            await rig.provider.terminate(instance.id)
            await rig.until(gone)
            await rig.provider.terminate(instance.id)

        asyncio.run(scenario())

    def test_no_room_is_capacity_unavailable(self, rig: Rig) -> None:
        async def scenario() -> str:
            rig.fill_up()
            try:
                await rig.launch("t1")
            except CapacityUnavailable as error:
                return error.message
            return ""

        assert asyncio.run(scenario())

    def test_logs_can_be_cut_to_the_tail_and_outlive_the_instance(self, rig: Rig) -> None:
        async def scenario() -> None:
            instance = await rig.launch("t1", EXITS)
            await rig.until(all_in(InstanceState.EXITED))
            whole = await output(rig, instance.id)
            assert len(whole.splitlines()) > 1
            assert await output(rig, instance.id, tail=1) == whole.splitlines(keepends=True)[-1]
            await rig.provider.terminate(instance.id)
            await rig.until(gone)
            assert await output(rig, instance.id) == whole

        asyncio.run(scenario())

    def test_following_logs_ends_with_the_instance(self, rig: Rig) -> None:
        async def scenario() -> None:
            instance = await rig.launch("t1")
            following = asyncio.create_task(output(rig, instance.id, follow=True))
            await rig.until(all_in(InstanceState.RUNNING))
            await rig.provider.terminate(instance.id)
            await rig.until(gone)
            assert b"listening\n" in await asyncio.wait_for(following, 5)

        asyncio.run(scenario())

    def test_logs_of_an_unknown_instance_are_empty(self, rig: Rig) -> None:
        assert asyncio.run(output(rig, "never-launched", follow=True)) == b""

    def test_release_forgets_the_logs_and_may_be_repeated(self, rig: Rig) -> None:
        async def scenario() -> None:
            instance = await rig.launch("t1", EXITS)
            await rig.until(all_in(InstanceState.EXITED))
            await rig.provider.terminate(instance.id)
            await rig.until(gone)
            await rig.provider.release("chat-u1")
            await rig.provider.release("chat-u1")
            await rig.provider.release("never-launched")
            assert await output(rig, instance.id) == b""

        asyncio.run(scenario())


@pytest.mark.timeout(300)
class Contract:
    """Every case of `provider_cases` on the world of one provider. `title` heads its column in the table."""

    title: str

    @staticmethod
    def world(home: Path) -> AbstractContextManager[World]:
        """A world in an empty directory."""
        raise NotImplementedError

    @pytest.mark.parametrize("case", CASES, ids=str)
    def test_case(self, case: Case, outcomes: Mapping[str, Outcome]) -> None:
        outcome = outcomes[case.name]
        if isinstance(outcome, Cannot):
            pytest.skip(f"cannot: {outcome}")
        if outcome is not None:
            raise outcome
