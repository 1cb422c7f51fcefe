"""The provider contract's worlds that need nothing: this machine, and a cloud in memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

from tests.contract.world import EXITS, FAILS_SETUP, SERVES, Gate, Trouble, World
from tests.providers.local_rig import HOST, LocalRig, local_rig

from skyserve.clock import VirtualClock
from skyserve.model.evidence import Instance
from skyserve.providers.base import LaunchOrder, Provider
from skyserve.providers.fake import BAD, SMALL, SMALL_SPOT, Behaviour, FakeProvider
from skyserve.providers.instrument import Instrumented


class LocalWorld(World):
    """Replicas as processes of this machine."""

    offering = HOST
    cannot: ClassVar[Mapping[str, str]] = {
        Trouble.QUOTA.value: "nobody limits what may run on this machine but its size",
        Trouble.THROTTLED.value: "this machine may be asked as often as one likes",
        Trouble.CREDENTIALS.value: "this machine asks for no credentials",
        Trouble.SILENT.value: "this machine answers as long as anything runs on it",
    }

    def __init__(self, rig: LocalRig) -> None:
        super().__init__(rig.home)
        self._rig = rig

    def controller(self) -> Provider:
        return self._rig.another_controller()

    def stranger(self) -> Provider:
        return LocalRig(self.home / "stranger", self._rig.machine).provider

    def troubled(self, kind: Trouble, order: LaunchOrder) -> LaunchOrder:
        assert kind is Trouble.CAPACITY
        too_big = replace(self.offering, instance_type=f"host-{self._rig.machine.vcpus + 1:g}cpu")
        return replace(order, offering=too_big)

    @contextmanager
    def trouble(self, kind: Trouble) -> Iterator[None]:
        assert kind is Trouble.CAPACITY
        yield


@contextmanager
def local_world(home: Path) -> Iterator[World]:
    with local_rig(home) as rig:
        yield LocalWorld(rig)


class FakeWorld(World):
    """Machines in memory. Time passes because a case waits, so they go on one at a time."""

    offering = SMALL
    spot_offering = SMALL_SPOT
    at_once = 1
    last_words = "listening"
    cannot: ClassVar[Mapping[str, str]] = {
        "application": "nothing runs in memory",
        "restart": "a cloud in memory ends with its controller",
        "stranger": "a cloud in memory has one user",
        "stop": "instances in memory cannot be stopped",
    }

    def __init__(self, home: Path, *, instrumented: bool = False) -> None:
        super().__init__(home)
        self.clock = VirtualClock()
        self.fake = FakeProvider(self.clock)
        self._provider: Provider = Instrumented(self.fake, self.clock) if instrumented else self.fake

    def controller(self) -> Provider:
        self.fake.behaviour = Behaviour()
        return self._provider

    def now(self) -> float:
        return self.clock.now()

    async def pass_time(self) -> None:
        await self.clock.advance(1.0)
        await asyncio.sleep(0)

    def order(self, life: str, service: str, token: str) -> LaunchOrder:
        lives = {
            SERVES: Behaviour(),
            EXITS: replace(BAD, exit_code=3),
            FAILS_SETUP: Behaviour(failed_setup=True, exit_code=4),
        }
        self.fake.behaviour = lives[life]
        return super().order(life, service, token)

    @asynccontextmanager
    async def gate(self) -> AsyncIterator[Gate]:
        """Setup takes ten seconds, and nothing holds it back."""
        yield Gate("", lambda: None)

    def take_back(self, instance: Instance, notice_s: float) -> None:
        if notice_s:
            self.fake.announce(instance.id, self.now() + notice_s)
        else:
            self.fake.preempt(instance.id)

    @contextmanager
    def trouble(self, kind: Trouble) -> Iterator[None]:
        fake = self.fake
        if kind is Trouble.CAPACITY:
            fake.capacity[SMALL.pool] = 0
        fake.quota = 0 if kind is Trouble.QUOTA else None
        fake.throttled_for_s = 3.0 if kind is Trouble.THROTTLED else None
        fake.credentials_rejected = kind is Trouble.CREDENTIALS
        fake.silent = kind is Trouble.SILENT
        try:
            yield
        finally:
            fake.capacity.clear()
            fake.quota = fake.throttled_for_s = None
            fake.credentials_rejected = fake.silent = False


@contextmanager
def fake_world(home: Path, *, instrumented: bool = False) -> Iterator[World]:
    yield FakeWorld(home, instrumented=instrumented)
