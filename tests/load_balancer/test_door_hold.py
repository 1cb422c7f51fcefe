"""Waiting without a replica, leaving while waiting, draining, closing, redirecting."""

from __future__ import annotations

import asyncio
import json

import pytest
from tests.load_balancer.conftest import settled

from skyserve.load_balancer import forward

GET = b"GET / HTTP/1.1\r\nHost: x\r\nAccept: application/json\r\n\r\n"


async def never(wire, request) -> None:
    await wire.reader.read()
    raise ConnectionResetError


def test_requests_wait_in_order_for_the_first_replica(rig) -> None:
    async def scenario(rig) -> None:
        clients = [await rig.client() for _ in range(20)]
        for n, client in enumerate(clients):
            client.send(b"GET /%d HTTP/1.1\r\nHost: x\r\n\r\n" % n)
            await rig.until(lambda n=n: len(rig.door.hold) == n + 1)
        assert rig.door.report().load.held == 20
        assert rig.door.report().load.requests_total == 20
        order = []
        enter = rig.door.choose
        rig.door.choose = lambda request, tried: order.append(request.target) or enter(request, tried)
        await rig.replica()
        for client in clients:
            assert (await client.answer()).body == b"ok"
        assert order == [b"/%d" % n for n in range(20)]

    rig(scenario)


def test_the_queue_is_bounded(rig) -> None:
    async def scenario(rig) -> None:
        rig.settings(queue_size=2)
        waiting = [asyncio.create_task(rig.ask(GET)) for _ in range(2)]
        await rig.until(lambda: len(rig.door.hold) == 2)
        answer = await rig.ask(GET)
        assert answer.status == 429
        assert int(answer.one("retry-after")) > 0
        assert json.loads(answer.body)["error"]["code"] == "queue_full"
        await rig.replica()
        assert [answer.status for answer in await asyncio.gather(*waiting)] == [200, 200]

    rig(scenario)


def test_waiting_ends_at_the_deadline(rig) -> None:
    async def scenario(rig) -> None:
        rig.settings(queue_timeout_seconds=9.0)
        client = await rig.client()
        client.send(GET)
        await rig.until(lambda: len(rig.door.hold) == 1)
        rig.later(8.0)
        assert len(rig.door.hold) == 1
        rig.later(2.0)
        answer = await client.answer()
        assert answer.status == 503
        assert answer.one("retry-after") == b"5"
        assert json.loads(answer.body)["error"]["code"] == "no_replica_ready"
        client.send(GET.replace(b"GET", b"HEAD"))  # the connection lives on
        await rig.until(lambda: len(rig.door.hold) == 1)
        rig.later(9.0)
        assert (await client.answer("HEAD")).status == 503

    rig(scenario)


def test_the_body_of_a_held_request_is_not_swallowed(rig) -> None:
    size = 32 * 1024 * 1024

    async def scenario(rig) -> None:
        client = await rig.client()
        client.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % size)
        client.send(b"x" * size)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(client.writer.drain(), 0.3)
        (held,) = rig.door.hold
        assert held._kept_size < 2 * forward.KEPT_LIMIT
        client.reset()
        await rig.until(lambda: len(rig.door.hold) == 0)

    rig(scenario)


def test_the_bodies_of_all_who_wait_are_bounded_together(rig_once, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forward, "HELD_BODIES", 2 * 1024 * 1024)

    async def scenario(rig) -> None:
        for n in range(12):
            client = await rig.client()
            client.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9999999\r\n\r\n" + b"x" * 2_000_000)
            await rig.until(lambda n=n: len(rig.door.hold) == n + 1)
        await settled()
        kept = [held._kept_size for held in rig.door.hold]
        assert kept[0] > 900_000  # alone, it may have much
        assert kept[-1] < 600_000
        assert sum(kept) < 8 * 1024 * 1024

    rig_once(scenario)


def test_a_held_request_whose_body_turns_out_bad_is_gone(rig) -> None:
    async def scenario(rig) -> None:
        client = await rig.client()
        client.send(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
        await rig.until(lambda: len(rig.door.hold) == 1)
        client.send(b"zz\r\n")
        assert (await client.answer()).status == 400
        assert len(rig.door.hold) == 0
        replica = await rig.replica()
        assert (await rig.ask(GET)).body == b"ok"
        assert len(replica.requests) == 1

    rig(scenario)


@pytest.mark.parametrize("how", ["close", "reset"])
@pytest.mark.parametrize("phase", ["held", "held with a body", "unanswered", "streaming", "uploading"])
def test_a_client_that_leaves_takes_its_request_along(rig, phase: str, how: str) -> None:
    async def stream(wire, request) -> None:
        wire.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n")
        await never(wire, request)

    async def deaf(wire, request) -> None:
        await gone.wait()
        raise ConnectionResetError

    gone = asyncio.Event()

    async def scenario(rig) -> None:
        replica = None
        if not phase.startswith("held"):
            replica = await rig.replica({"streaming": stream, "uploading": deaf}.get(phase, never))
        client = await rig.client()
        large = phase in ("held with a body", "uploading")
        length = 64 * 1024 * 1024 if large else 0
        expect = b"Expect: 100-continue\r\n" if phase == "uploading" else b""
        client.send(b"POST / HTTP/1.1\r\nHost: x\r\n%bContent-Length: %d\r\n\r\n" % (expect, length))
        if large:
            client.send(b"x" * 12 * 1024 * 1024)
        await rig.until(lambda: len(rig.door.hold) + rig.busy() == 1)
        if phase == "streaming":
            await client.read_head()
        await settled()
        if how == "close" and not large:
            client.close()
        else:
            client.reset()
        await rig.until(lambda: len(rig.door.hold) + rig.busy() == 0)
        gone.set()
        if replica is not None:
            await rig.until(lambda: replica.left == 1)

    rig(scenario)


@pytest.mark.parametrize("size", [900_000, 1_400_000])
def test_a_client_that_leaves_in_the_middle_of_a_held_upload_is_seen(rig, size: int) -> None:
    """Of the larger one not all is read, so its end cannot arrive as an event."""

    async def scenario(rig) -> None:
        client = await rig.client()
        client.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9999999\r\n\r\n" + b"x" * size)
        await rig.until(lambda: len(rig.door.hold) == 1)
        await settled()
        client.close()
        await rig.until(lambda: len(rig.door.hold) == 0)

    rig(scenario)


@pytest.mark.parametrize("how", ["draining", "removed"])
def test_a_replica_that_leaves_the_table_ends_its_work(rig, how: str) -> None:
    go = asyncio.Event()

    async def slow(wire, request) -> None:
        wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nab")
        await go.wait()
        wire.send(b"cd")

    async def scenario(rig) -> None:
        leaving = await rig.replica(slow)
        client = await rig.client()
        client.send(GET)
        await client.read_head()
        staying = await rig.replica()
        rig.list(staying, draining=(leaving,) if how == "draining" else ())
        for _ in range(4):
            assert (await rig.ask(GET)).body == b"ok"
        assert len(leaving.requests) == 1
        assert rig.door.report().load.in_flight[leaving.id] == 1
        news = []
        rig.door.on_news = lambda: news.append(rig.door.report().load.in_flight.get(leaving.id, 0))
        go.set()
        assert await client.reader.readexactly(4) == b"abcd"
        await rig.until(lambda: news == [0])
        await rig.until(lambda: leaving.left == 1)  # its connection is not kept

    rig(scenario)


def test_a_replica_that_comes_back_keeps_its_count(rig) -> None:
    async def scenario(rig) -> None:
        replica = await rig.replica(never)
        client = await rig.client()
        client.send(GET)
        await rig.until(lambda: rig.busy() == 1)
        rig.list()
        rig.list(replica)
        assert rig.door.report().load.in_flight == {replica.id: 1}
        client.close()
        await rig.until(lambda: rig.door.report().load.in_flight == {replica.id: 0})

    rig(scenario)


def test_closing_refuses_and_lets_finish(rig) -> None:
    go = asyncio.Event()

    async def slow(wire, request) -> None:
        await go.wait()
        wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    async def scenario(rig) -> None:
        held = asyncio.create_task(rig.ask(GET))
        await rig.until(lambda: len(rig.door.hold) == 1)
        rig.list(closing=True)
        assert (await held).status == 503
        replica = await rig.replica(slow)
        under_way = asyncio.create_task(rig.ask(GET))
        await rig.until(lambda: rig.busy() == 1)
        rig.list(replica, closing=True)
        answer = await rig.ask(GET)
        assert (answer.status, answer.one("connection")) == (503, b"close")
        go.set()
        assert (await under_way).body == b"ok"

    rig(scenario)


def test_stopping_waits_for_what_is_under_way(rig) -> None:
    go = asyncio.Event()

    async def slow(wire, request) -> None:
        await go.wait()
        wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    async def scenario(rig) -> None:
        await rig.replica(slow)
        idle = await rig.client()
        under_way = asyncio.create_task(rig.ask(GET))
        await rig.until(lambda: rig.busy() == 1)
        rig.server.stop(10.0)
        assert await idle.ended()
        with pytest.raises(ConnectionRefusedError):
            await rig.client()
        go.set()
        answer = await under_way
        assert (answer.body, answer.one("connection")) == (b"ok", b"close")
        await rig.server.stopped

    rig(scenario)


def test_the_grace_has_an_end(rig) -> None:
    async def scenario(rig) -> None:
        replica = await rig.replica(never)
        client = await rig.client()
        client.send(GET)
        await rig.until(lambda: rig.busy() == 1)
        rig.server.stop(0.1)
        await rig.server.stopped
        assert await client.ended()
        await rig.until(lambda: replica.left == 1)

    rig(scenario)


@pytest.mark.parametrize("body", [b"", b"abc"])
def test_redirect_names_the_replica(rig, body: bytes) -> None:
    async def scenario(rig) -> None:
        rig.settings(mode="redirect")
        client = await rig.client()
        client.send(b"POST /v1/x%%20y?z=1 HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        await rig.until(lambda: len(rig.door.hold) == 1)
        first, second = await rig.replica(), await rig.replica()
        answer = await client.answer()
        assert answer.status == 307
        assert answer.one("location") == b"http://%b/v1/x%%20y?z=1" % first.address.encode()
        client.send(GET)
        assert (await client.answer()).one("location") == b"http://%b/" % second.address.encode()
        assert first.requests == second.requests == []
        client.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n")
        answer = await client.answer()
        assert (answer.status, answer.one("connection")) == (307, b"close")

    rig(scenario)
