"""What a client can hold on to without doing anything, and for how long; on a clock that the test sets ahead."""

from __future__ import annotations

import asyncio
import socket
from dataclasses import replace

import pytest
from tests.load_balancer.conftest import settled

from skyserve.load_balancer.limits import Limits
from skyserve.load_balancer.server import Server, open_listener
from skyserve.model.routing import Endpoint, RoutingTable

GET = b"GET / HTTP/1.1\r\nHost: x\r\nAccept: application/json\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: x\r\nAccept: application/json\r\nContent-Length: 9\r\n\r\nabc"
LIMITS = Limits()


async def never(wire, request) -> None:
    await wire.reader.read()
    raise ConnectionResetError


def endless(announce: bytes):
    async def script(wire, request) -> None:
        wire.send(b"HTTP/1.1 200 OK\r\n%b\r\n\r\n" % announce)
        while True:
            wire.send(b"10000\r\n" + b"x" * 65536 + b"\r\n")
            await wire.writer.drain()

    return script


def test_a_client_without_a_request_is_let_go(rig) -> None:
    async def scenario(rig) -> None:
        await rig.replica()
        silent, served = await rig.client(), await rig.client()
        rig.later(LIMITS.idle_s - 10)
        served.send(GET)
        await served.answer()
        rig.later(20)
        assert await silent.ended()
        served.send(GET)
        assert (await served.answer()).body == b"ok"
        rig.later(LIMITS.idle_s)
        assert await served.ended()

    rig(scenario)


def test_a_head_that_takes_too_long_is_a_408(rig) -> None:
    async def scenario(rig) -> None:
        client = await rig.client()
        for _ in range(3):  # more bytes give no more time
            client.send(b"GET")
            await settled()
            rig.later(LIMITS.head_s / 2)
        answer = await client.answer()
        assert (answer.status, answer.one("connection")) == (408, b"close")
        assert await client.ended()

    rig(scenario)


def test_what_is_sent_after_an_early_answer_is_thrown_away_for_a_while_only(rig) -> None:
    async def scenario(rig) -> None:
        client = await rig.client()
        client.send(b"nonsense\n\n")
        assert (await client.answer()).status == 400
        client.send(b"x" * 1000)
        await settled()
        assert len(rig.server._clients) == 1
        rig.later(LIMITS.linger_s)
        await rig.until(lambda: not rig.server._clients)

    rig(scenario)


def test_a_client_that_stops_reading_is_let_go(rig) -> None:
    async def scenario(rig) -> None:
        replica = await rig.replica(endless(b"Transfer-Encoding: chunked"))
        client = await rig.client()
        client.send(GET)
        await client.read_head()
        client.writer.transport.pause_reading()
        await rig.stalled()
        rig.later(0.0)
        rig.later(LIMITS.stall_s)
        await rig.until(lambda: rig.busy() == 0)
        await rig.until(lambda: replica.left == 1)

    rig(scenario)


def test_a_client_that_reads_slowly_is_not(rig) -> None:
    async def scenario(rig) -> None:
        await rig.replica(endless(b"Transfer-Encoding: chunked"))
        client = await rig.client()
        client.send(GET)
        await client.read_head()
        for _ in range(3):
            await client.reader.readexactly(8 * 1024 * 1024)
            await settled()
            rig.later(LIMITS.stall_s * 0.8)
        assert rig.busy() == 1

    rig(scenario)


def test_a_stream_without_events_is_not_a_client_that_stalls(rig) -> None:
    async def quiet(wire, request) -> None:
        wire.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        await go.wait()
        wire.send(b"1\r\na\r\n0\r\n\r\n")

    go = asyncio.Event()

    async def scenario(rig) -> None:
        await rig.replica(quiet)
        client = await rig.client()
        client.send(GET)
        await client.read_head()
        for _ in range(2):
            rig.later(LIMITS.stall_s * 10)
            await settled()
        go.set()
        assert await client.read_chunked() == b"a"

    rig(scenario)


@pytest.mark.parametrize("held", [False, True])
def test_an_upload_that_stops_is_a_408(rig, held: bool) -> None:
    async def scenario(rig) -> None:
        if not held:
            await rig.replica()
        client = await rig.client()
        rig.settings(queue_timeout_seconds=10_000.0)
        client.send(POST)
        await settled()
        for _ in range(2):
            rig.later(LIMITS.stall_s * 0.7)
            await settled()
            client.send(b"d")
            await settled()
        assert rig.busy() + len(rig.door.hold) == 1
        rig.later(LIMITS.stall_s)
        answer = await client.answer()
        assert (answer.status, b"request_timeout" in answer.body) == (408, True)
        assert rig.busy() + len(rig.door.hold) == 0

    rig(scenario)


def test_an_upload_on_a_connection_of_long_standing_has_its_time(rig) -> None:
    async def scenario(rig) -> None:
        await rig.replica()
        client = await rig.client()
        for _ in range(4):
            rig.later(LIMITS.idle_s - 20)
            client.send(GET)
            await client.answer()
        client.send(POST)
        await settled()
        client.send(b"defghi")
        assert (await client.answer()).body == b"ok"

    rig(scenario)


def test_an_answer_that_has_begun_is_not_cut_for_a_slow_upload(rig) -> None:
    async def early(wire, request) -> None:
        wire.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n")
        await go.wait()
        wire.send(b"0\r\n\r\n")

    go = asyncio.Event()

    async def scenario(rig) -> None:
        await rig.replica(early)
        client = await rig.client()
        client.send(b"POST / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 9\r\n\r\nabc")
        await client.read_head()
        rig.later(LIMITS.stall_s * 2)
        await settled()
        go.set()
        assert await client.read_chunked() == b"a"

    rig(scenario)


@pytest.mark.parametrize("mode", ["redirect", "proxy"])
def test_a_client_that_asks_and_does_not_read_fills_no_memory(rig_once, mode: str) -> None:
    """The door's own answers come at once; they too must wait until the client takes them."""

    async def scenario(rig) -> None:
        if mode == "redirect":
            await rig.replica()
        rig.list(*rig.replicas, settings=replace(rig.door.settings, mode=mode, queue_size=0))
        client = await rig.client()
        client.writer.transport.pause_reading()
        client.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        client.send(GET.replace(b"/", b"/" + b"x" * 90, 1) * 100_000)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(client.writer.drain(), 1.0)
        (served,) = rig.server._clients
        assert served._transport.get_write_buffer_size() < 1024 * 1024
        answered = rig.door.counters.requests_total
        assert answered < 50_000
        client.writer.transport.resume_reading()
        while rig.door.counters.requests_total < answered + 1000:  # it goes on when the client does
            assert await client.reader.read(65536)

    rig_once(scenario)


def test_a_replica_that_does_not_accept_is_passed_over(rig) -> None:
    async def scenario(rig) -> None:
        rig.settings(connect_timeout_seconds=0.1)
        with socket.socket() as full:
            full.bind(("127.0.0.1", 0))
            full.listen(0)
            queued = [socket.socket() for _ in range(3)]
            for one in queued:
                one.setblocking(False)
                one.connect_ex(full.getsockname())
            await settled()
            alive = await rig.replica(listed=False)
            address = f"127.0.0.1:{full.getsockname()[1]}"
            rig._number += 1
            rig.door.apply(
                RoutingTable(
                    rig._number,
                    settings=rig.door.settings,
                    endpoints=(Endpoint(0, address), Endpoint(alive.id, alive.address)),
                )
            )
            assert (await rig.ask(POST + b"defghi")).body == b"ok"
            assert rig.door.pool.suspects() == (0,)
            for one in queued:
                one.close()

    rig(scenario)


def test_it_speaks_ipv6_on_both_sides(rig) -> None:
    async def scenario(rig) -> None:
        try:
            listener = open_listener("::1", 0)
        except OSError:
            pytest.skip("no IPv6 here")
        replica = await rig.replica(listed=False)
        behind = await asyncio.start_server(replica._serve, "::1", 0)
        rig._number += 1
        address = f"[::1]:{behind.sockets[0].getsockname()[1]}"
        rig.door.apply(RoutingTable(rig._number, endpoints=(Endpoint(1, address),)))
        server = Server(rig.door)
        await server.start(listener)
        rig.port = listener.getsockname()[1]
        reader, writer = await asyncio.open_connection("::1", rig.port)
        writer.write(b"GET / HTTP/1.0\r\n\r\n")
        assert (await reader.read()).endswith(b"ok")
        writer.close()
        request = replica.requests[0]
        assert (request.one("host"), request.one("x-forwarded-for")) == (address.encode(), b"::1")
        behind.close()
        server.stop(0.0)
        await server.stopped

    rig(scenario)


def test_when_too_many_are_connected_the_oldest_idle_one_has_to_go(rig) -> None:
    async def scenario(rig) -> None:
        await rig.replica(never)
        rig.server._clients._most = 3
        busy, idle, newer = [await rig.client() for _ in range(3)]
        busy.send(GET)
        await rig.until(lambda: rig.busy() == 1)
        late = await rig.client()
        assert await idle.ended()
        for client in (newer, late):
            client.send(GET)
        await rig.until(lambda: rig.busy() == 3)
        one_too_many = await rig.client()
        answer = await one_too_many.answer()
        assert (answer.status, answer.body, answer.one("retry-after")) == (
            503,
            b"too many clients are connected\n",
            b"1",
        )
        assert await one_too_many.ended()
        assert len(rig.server._clients) == 3

    rig(scenario)
