"""The provider contract, against the machine that the tests run on and against a cloud in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from tests.contract.provider_suite import EXITS, FAILS_SETUP, SERVES, ProviderContract, Rig
from tests.providers.local_rig import LocalRig, local_rig

from skyserve.clock import VirtualClock
from skyserve.model.evidence import Instance
from skyserve.providers.base import LaunchOrder, Provider
from skyserve.providers.fake import BAD, SMALL, Behaviour, FakeProvider
from skyserve.providers.instrument import Instrumented

RUN = {SERVES: "echo listening; exec sleep 1000", EXITS: "echo listening; exit 3", FAILS_SETUP: "exit 0"}
BEHAVIOUR = {
    SERVES: Behaviour(),
    EXITS: replace(BAD, exit_code=3),
    FAILS_SETUP: Behaviour(failed_setup=True, exit_code=4),
}


class LocalHandles:
    """The suite's handles on real processes."""

    def __init__(self, rig: LocalRig) -> None:
        self.provider: Provider = rig.provider
        self.until = rig.until
        self._rig = rig
        self._order = rig.order()
        self._offering = self._order.offering

    async def launch(
        self, token: str, life: str = SERVES, *, service: str = "chat-u1", replica_id: int = 1
    ) -> Instance:
        setup = "echo setting up; exit 4" if life == FAILS_SETUP else None
        order = replace(self._order, token=token, service=service, replica_id=replica_id, run=RUN[life], setup=setup)
        return await self.provider.launch(replace(order, offering=self._offering))

    def fill_up(self) -> None:
        self._offering = replace(self._offering, instance_type=f"host-{self._rig.machine.vcpus + 1:g}cpu")


class FakeHandles:
    """The suite's handles on machines in memory: time passes because the suite waits."""

    def __init__(self, *, instrumented: bool = False) -> None:
        self.clock = VirtualClock()
        self.fake = FakeProvider(self.clock)
        self.provider: Provider = Instrumented(self.fake, self.clock) if instrumented else self.fake

    async def launch(
        self, token: str, life: str = SERVES, *, service: str = "chat-u1", replica_id: int = 1
    ) -> Instance:
        self.fake.behaviour = BEHAVIOUR[life]
        order = LaunchOrder(service, service, replica_id, 1, token, "v1", SMALL, RUN[life], None, 8080)
        return await self.provider.launch(order)

    async def until(self, true_of: Callable[[Sequence[Instance]], bool]) -> Sequence[Instance]:
        for _ in range(600):
            if true_of(listed := await self.provider.instances()):
                return listed
            await self.clock.advance(1.0)
        raise AssertionError(f"still {listed}")

    def fill_up(self) -> None:
        self.fake.capacity[SMALL.pool] = 0


class TestLocalProvider(ProviderContract):
    @pytest.fixture
    def rig(self, tmp_path: Path) -> Iterator[Rig]:
        with local_rig(tmp_path) as rig:
            yield LocalHandles(rig)


class TestFakeProvider(ProviderContract):
    @pytest.fixture
    def rig(self) -> Rig:
        return FakeHandles()


class TestInstrumentedProvider(ProviderContract):
    @pytest.fixture
    def rig(self) -> Rig:
        return FakeHandles(instrumented=True)
