"""Who is killed when: what the other side sees, and how often the request was executed. One row is one promise."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.load_balancer.conftest import Replica, Request, Rig, Wire
from tests.load_balancer.test_door_tls import certify

from skyserve.model.service import Tls

GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
LENGTH = b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n"
UNTIL_CLOSE = b"HTTP/1.1 200 OK\r\n\r\n"
SOON_S = 0.05


@dataclass(frozen=True)
class Death:
    """The first replica dies after it has `said` something; `None` is before it accepts. What the client sees: a
    `status`, and whether the answer is `whole`. `executed`: how often a replica had the request in its hands."""

    request: bytes
    retry: str
    said: bytes | None
    status: int
    whole: bool
    executed: int


DEATHS = {
    "before it accepts, GET": Death(GET, "safe", None, 200, True, 1),
    "before it accepts, POST": Death(POST, "safe", None, 200, True, 1),
    "before it accepts, POST that may be repeated": Death(POST, "idempotent", None, 200, True, 1),
    "before the head, GET": Death(GET, "safe", b"", 200, True, 2),
    "before the head, POST": Death(POST, "safe", b"", 502, True, 1),
    "before the head, POST that may be repeated": Death(POST, "idempotent", b"", 200, True, 2),
    "in the head, GET": Death(GET, "safe", CHUNKED[:20], 502, True, 1),
    "in the head, POST that may be repeated": Death(POST, "idempotent", CHUNKED[:20], 502, True, 1),
    "after the head, chunks": Death(GET, "idempotent", CHUNKED, 200, False, 1),
    "after the head, a length": Death(GET, "idempotent", LENGTH, 200, False, 1),
    "after the head, until the end": Death(POST, "idempotent", UNTIL_CLOSE, 200, False, 1),
    "in the body, chunks": Death(POST, "idempotent", CHUNKED + b"3\r\nabc\r\n", 200, False, 1),
    "in the body, in a chunk": Death(GET, "safe", CHUNKED + b"3\r\na", 200, False, 1),
    "in the body, a length": Death(GET, "safe", LENGTH + b"abc", 200, False, 1),
    "in the body, until the end": Death(GET, "safe", UNTIL_CLOSE + b"abc", 200, False, 1),
    "in the trailers": Death(GET, "safe", CHUNKED + b"0\r\nX: y\r\n", 200, False, 1),
}


@pytest.fixture(params=["plain", "tls"])
def files(request: pytest.FixtureRequest, tmp_path: Path) -> Tls | None:
    """How replicas speak: the same has to hold for both."""
    return certify(tmp_path, "replica") if request.param == "tls" else None


@pytest.mark.parametrize("name", DEATHS)
def test_a_replica_is_killed(rig, files: Tls | None, name: str) -> None:
    death = DEATHS[name]

    async def scenario(rig: Rig) -> None:
        async def die(wire: Wire, request: Request) -> None:
            wire.send(death.said or b"")
            if death.said:
                await rig.until(lambda: not wire.writer.transport.get_write_buffer_size())
                await asyncio.sleep(0.02)  # the bytes travel, and are not destroyed by the reset
            wire.reset()

        victim, heir = await rig.replica(die, files=files), await rig.replica(files=files)
        rig.settings(retry=death.retry)
        if death.said is None:
            await victim.stop()
        answer = await rig.ask(death.request)
        assert (answer.status, answer.whole) == (death.status, death.whole)
        assert len(victim.requests) + len(heir.requests) == death.executed
        if death.status == 502:
            assert answer.one("retry-after") == b"1"

    rig(scenario)


async def silent(wire: Wire, request: Request) -> None:
    await wire.reader.read()
    raise ConnectionResetError


async def head_only(wire: Wire, request: Request) -> None:
    wire.send(CHUNKED)
    await silent(wire, request)


async def a_part(wire: Wire, request: Request) -> None:
    wire.send(CHUNKED + b"3\r\nabc\r\n")
    await silent(wire, request)


@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize("script", [silent, head_only, a_part])
def test_a_client_is_killed_and_its_replica_hears_of_it_at_once(rig, script, files: Tls | None, reset: bool) -> None:
    async def scenario(rig: Rig) -> None:
        replica = await rig.replica(script, files=files)
        other = await rig.replica(script, files=files)
        rig.list(replica)
        taken = []
        for count in range(1, 6):
            client = await rig.client()
            client.send(POST)
            await rig.until(lambda count=count: len(replica.requests) == count)
            if script is not silent:
                await client.read_head()
            started_at = time.monotonic()
            client.reset() if reset else client.close()
            await rig.until(lambda count=count: replica.left == count)
            taken.append(time.monotonic() - started_at)
        assert min(taken) < SOON_S, "nothing waits for a timer; the slow ones are the machine's"
        assert (len(replica.requests), len(other.requests)) == (5, 0)
        await rig.until(lambda: rig.busy() == 0)

    rig(scenario)


def test_a_client_that_is_killed_while_it_waits_was_never_there(rig) -> None:
    async def scenario(rig: Rig) -> None:
        client = await rig.client()
        client.send(POST)
        await rig.until(lambda: len(rig.door.hold) == 1)
        client.reset()
        await rig.until(lambda: len(rig.door.hold) == 0)
        replica = await rig.replica()
        assert (await rig.ask(POST)).body == b"ok"
        assert len(replica.requests) == 1

    rig(scenario)


@pytest.mark.parametrize("sent", [b"", b"ab"])
def test_a_client_that_is_killed_in_its_body_takes_the_request_along(rig, sent: bytes) -> None:
    async def scenario(rig: Rig) -> None:
        replica: Replica = await rig.replica(silent)
        client = await rig.client()
        client.send(POST.replace(b"abc", sent))
        await rig.until(lambda: replica.accepted == 1)
        client.reset()
        await rig.until(lambda: replica.left == 1)
        assert replica.requests == []

    rig(scenario)
