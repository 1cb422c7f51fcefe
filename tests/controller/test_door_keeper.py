"""The controller's end of the door, against doors that cannot start, fall silent, or say nothing at all."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from skyserve.clock import SystemClock
from skyserve.controller import door as keeper
from skyserve.controller.door import Door, DoorPlace
from skyserve.load_balancer import wire
from skyserve.model.evidence import LoadReport
from skyserve.model.routing import RoutingTable


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[DoorPlace]:
    monkeypatch.setattr(keeper, "SILENCE_S", 0.2)
    monkeypatch.setattr(keeper, "GREETING_S", 0.2)
    monkeypatch.setattr(keeper, "QUICK_DEATH_S", 0.05)
    with tempfile.TemporaryDirectory(prefix="sky-") as root:  # a socket's path must be short
        yield DoorPlace("chat", Path(root) / "chat", Path(root) / "s", "127.0.0.1", 1)


@asynccontextmanager
async def kept(place: DoorPlace) -> AsyncIterator[Door]:
    door = Door(place, SystemClock(), lambda: None, lambda _: None)
    task = asyncio.create_task(door.run())
    try:
        yield door
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def eventually(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not done():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)


@asynccontextmanager
async def fake_door(place: DoorPlace, greeting: bytes, times: int = 99) -> AsyncIterator[list[list[bytes]]]:
    """Greets the first few that connect, and then only listens; what it heard, by connection."""
    heard: list[list[bytes]] = []
    ends: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        lines: list[bytes] = []
        heard.append(lines)
        ends.append(writer)
        writer.write(greeting if len(heard) <= times else b"")
        with contextlib.suppress(ConnectionError):
            while line := await reader.readline():
                lines.append(line)
        writer.close()

    server = await asyncio.start_unix_server(serve, place.socket)
    try:
        yield heard
    finally:
        server.close()
        for end in ends:
            end.close()
        await asyncio.sleep(0.05)


@pytest.fixture
def bystander() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "60"]) as process:
        yield process
        process.kill()


def test_a_door_that_cannot_be_started_is_told_and_tried_again(place: DoorPlace) -> None:
    async def scenario() -> None:
        place.directory.write_text("a file in the way")
        async with kept(place) as door:
            await eventually(lambda: "cannot be started" in door.trouble)
            place.directory.unlink()
            await eventually(lambda: (place.directory / "door.log").exists())
            await door.stop()

    asyncio.run(scenario())


def test_silence_is_answered_with_a_new_connection_and_not_with_a_kill(
    place: DoorPlace, bystander: subprocess.Popen[bytes]
) -> None:
    async def scenario() -> None:
        hello = wire.encode_hello(wire.Hello("b", bystander.pid, 0, 1))
        async with fake_door(place, hello) as heard, kept(place) as door:
            door.publish(RoutingTable(7))
            await eventually(lambda: len(heard) >= 3 and bool(heard[2]))
            assert bystander.poll() is None
            assert b'"number":7' in heard[2][0], "and it is told the table again"

    asyncio.run(scenario())


def test_a_door_that_no_longer_greets_is_killed(place: DoorPlace, bystander: subprocess.Popen[bytes]) -> None:
    async def scenario() -> None:
        hello = wire.encode_hello(wire.Hello("b", bystander.pid, 0, 1))
        async with fake_door(place, hello, times=1), kept(place):
            await eventually(lambda: bystander.poll() is not None)

    asyncio.run(scenario())


def test_a_table_that_differs_in_its_number_alone_is_pushed(place: DoorPlace) -> None:
    async def scenario() -> None:
        report = wire.encode_report(wire.DoorReport(LoadReport(0.0, "b", 0)))
        async with fake_door(place, report) as heard, kept(place) as door:
            await eventually(lambda: len(heard) == 1)
            for number in (1, 1, 2):
                door.publish(RoutingTable(number))
            await eventually(lambda: len(heard[0]) == 2)
            assert [b'"number":%d' % n in line for n, line in zip((1, 2), heard[0], strict=True)] == [True, True]

    asyncio.run(scenario())
