"""A local provider in a home of its own, and the proof that nothing of it is left."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TypedDict, Unpack

from skyserve.config import Config
from skyserve.model.evidence import Instance, InstanceState
from skyserve.model.offering import CapacityType, Offering
from skyserve.model.resources import ResourceChoice, Resources
from skyserve.providers.base import LaunchOrder
from skyserve.providers.isolation import Isolation
from skyserve.providers.local import LOCATION, LocalProvider
from skyserve.providers.local_instance import LocalInstance
from skyserve.providers.machine import Machine

BIG = Machine(vcpus=64, memory_gib=256)
HOST = Offering("local", "host", LOCATION, CapacityType.ON_DEMAND, None, BIG.vcpus, BIG.memory_gib, 0.0)
DECLARED_PORT = 18080
SERVES = "echo listening; exec sleep 1000"
PATIENCE_S = 20.0


class Tuning(TypedDict, total=False):
    """Settings of the provider that tests shorten, or switch on."""

    isolation: Isolation
    grace_s: float
    stop_patience_s: float
    log_bytes: int


class LocalRig:
    """The provider under test. `until` polls, as processes take real time."""

    def __init__(self, home: Path, machine: Machine = BIG, **tuning: Unpack[Tuning]) -> None:
        self.home = home
        self.config = Config(home=home, inherited_env={"PATH": os.environ["PATH"], "USER": "tester"})
        self.machine = machine
        self._tuning = tuning
        self.provider = self.another_controller()

    def another_controller(self) -> LocalProvider:
        """A provider on the same home, as a controller that starts again makes one."""
        return LocalProvider(self.config, self.machine, **self._tuning)

    def order(self, run: str = SERVES, *, replica_id: int = 1, setup: str | None = None, **rest: object) -> LaunchOrder:
        """An order; its token is `t` and the replica's number unless given."""
        order = LaunchOrder("chat-u1", "chat", replica_id, 1, f"t{replica_id}", "v1", HOST, run, setup, DECLARED_PORT)
        return replace(order, **rest)

    def offering(self, resources: Resources) -> Offering:
        """What the provider offers for these resources."""
        [offering] = asyncio.run(self.provider.offerings(ResourceChoice((resources,)))).offerings
        return offering

    def instance(self, token: str = "t1") -> LocalInstance:
        """The files of an instance."""
        return LocalInstance(self.home / "local" / "instances" / token)

    async def until(self, true_of: Callable[[Sequence[Instance]], bool]) -> Sequence[Instance]:
        """Poll the listing until this holds."""
        deadline = time.monotonic() + PATIENCE_S
        while not true_of(listed := await self.provider.instances()):
            assert time.monotonic() < deadline, f"still {listed}"
            await asyncio.sleep(0.02)
        return listed

    async def up(self, *orders: LaunchOrder) -> Sequence[Instance]:
        """Launch all at once and wait until all run."""
        await asyncio.gather(*(self.provider.launch(order) for order in orders))
        return await self.until(in_state(InstanceState.RUNNING, count=len(orders)))

    async def ended(self, order: LaunchOrder) -> Instance:
        """Launch, and wait until it has ended by itself."""
        await self.provider.launch(order)
        listed = await self.until(lambda all_: any(_is(one, order.token, InstanceState.EXITED) for one in all_))
        return next(one for one in listed if one.token == order.token)

    async def clear(self) -> None:
        """Terminate everything and wait until it is gone."""
        for instance in await self.provider.instances():
            await self.provider.terminate(instance.id)
        await self.until(lambda listed: not listed)

    async def logs(self, token: str = "t1", *, tail: int | None = None) -> str:
        """The whole log of an instance."""
        return b"".join([data async for data in self.provider.logs(token, follow=False, tail=tail)]).decode()

    async def logged(self, text: str, token: str = "t1") -> str:
        """Wait for a text to appear in a log; the log."""
        deadline = time.monotonic() + PATIENCE_S
        while text not in (log := await self.logs(token)):
            assert time.monotonic() < deadline, f"{text!r} is not in {log!r}"
            await asyncio.sleep(0.02)
        return log

    def leftovers(self) -> list[str]:
        """Processes that work in this home, were started for it, or speak of it."""
        home = os.fsencode(self.home)
        return [f"{pid}: {command!r}" for pid, command in _processes() if home in command]


@contextmanager
def local_rig(home: Path, machine: Machine = BIG, **tuning: Unpack[Tuning]) -> Iterator[LocalRig]:
    """A rig; at the end everything is terminated, and no process may be left."""
    rig = LocalRig(home, machine, **tuning)
    yield rig
    asyncio.run(rig.clear())
    wait_until(lambda: not rig.leftovers())
    assert rig.leftovers() == []


def in_state(state: InstanceState, *, count: int = 1) -> Callable[[Sequence[Instance]], bool]:
    """Whether exactly so many instances are listed, all in this state."""
    return lambda listed: len(listed) == count and all(instance.state is state for instance in listed)


def wait_until(true: Callable[[], bool]) -> None:
    """Wait a little for something to become true; whoever needs it asserts it afterwards."""
    deadline = time.monotonic() + PATIENCE_S
    while not true() and time.monotonic() < deadline:
        time.sleep(0.02)


def environment(pid: int) -> Mapping[str, str]:
    """The environment that a process was started with."""
    entries = Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")
    return dict(entry.split("=", 1) for entry in entries if "=" in entry)


def _is(instance: Instance, token: str, state: InstanceState) -> bool:
    return instance.token == token and instance.state is state


def _processes() -> Iterator[tuple[int, bytes]]:
    """Every process, with its command line, working directory and environment in one string."""
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            facts = [(entry / "cmdline").read_bytes(), os.fsencode(os.readlink(entry / "cwd"))]
            facts.append((entry / "environ").read_bytes())
        except OSError:
            continue
        yield int(entry.name), b"\0".join(facts)
