"""Requests and answers through the door: what must arrive unchanged, what must change, what must stream."""

from __future__ import annotations

import asyncio
import socket

import pytest
from tests.load_balancer.conftest import settled

GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "PATCH", "PUT", "DELETE", "PROPFIND", "x-own!"])
def test_any_method_passes(rig_once, method: str) -> None:
    async def scenario(rig) -> None:
        replica = await rig.replica()
        answer = await rig.ask(b"%b /p HTTP/1.1\r\nHost: x\r\n\r\n" % method.encode(), method)
        assert answer.status == 200
        assert replica.requests[0].line == b"%b /p HTTP/1.1" % method.encode()

    rig_once(scenario)


@pytest.mark.parametrize("target", [b"/a%2Fb/../c//d?x=%20&y=%C3%A9#z", b"/\xc3\xa9?a=[1]|{2}", b"*"])
def test_the_target_is_not_touched(rig_once, target: bytes) -> None:
    async def scenario(rig) -> None:
        replica = await rig.replica()
        method = b"OPTIONS" if target == b"*" else b"GET"
        await rig.ask(b"%b %b HTTP/1.1\r\nHost: x\r\n\r\n" % (method, target))
        assert replica.requests[0].line.split(b" ")[1] == target

    rig_once(scenario)


def test_an_absolute_target_is_put_in_origin_form(rig) -> None:
    async def scenario(rig) -> None:
        replica = await rig.replica()
        await rig.ask(b"GET http://real.example:80?q HTTP/1.1\r\nHost: other\r\n\r\n")
        assert replica.requests[0].line == b"GET /?q HTTP/1.1"
        assert replica.requests[0].one("host") == b"real.example:80"

    rig(scenario)


def test_request_fields_are_rewritten(rig_once) -> None:
    async def scenario(rig) -> None:
        replica = await rig.replica()
        await rig.ask(
            b"GET / HTTP/1.1\r\nHost: api.example:30001\r\n"
            b"Connection: close, X-Mine, Host, Content-Length\r\nX-Mine: 1\r\n"
            b"Keep-Alive: timeout=9\r\nProxy-Authorization: secret\r\nTE: trailers\r\nAuthorization: Bearer t\r\n"
            b"X-Forwarded-For: 10.1.1.1\r\nX-Dup: a\r\nX-Dup: b\r\nX-Request-ID: mine\r\n\r\n"
        )
        got = replica.requests[0]
        for gone in ("connection", "x-mine", "keep-alive", "proxy-authorization", "te"):
            assert got.all(gone) == []
        assert got.one("host") == b"api.example:30001"
        assert got.one("authorization") == b"Bearer t"
        assert got.one("x-forwarded-for") == b"10.1.1.1, 127.0.0.1"
        assert got.one("x-forwarded-proto") == b"http"
        assert got.one("x-forwarded-host") == b"api.example:30001"
        assert got.one("x-request-id") == b"mine"
        assert got.all("x-dup") == [b"a", b"b"]

    rig_once(scenario)


def test_a_request_id_is_made(rig) -> None:
    async def scenario(rig) -> None:
        replica = await rig.replica()
        await rig.ask(GET)
        await rig.ask(GET)
        ids = [request.one("x-request-id") for request in replica.requests]
        assert len(set(ids)) == 2
        assert all(len(id_) == 32 for id_ in ids)

    rig(scenario)


def test_answer_fields_are_left_alone_but_for_hop_by_hop_ones(rig) -> None:
    async def script(wire, request) -> None:
        wire.send(
            b"HTTP/1.1 200 Fine  indeed\r\nSet-Cookie: a=1\r\nset-cookie: b=2, c\r\nConnection: X-Hop\r\nX-Hop: 1\r\n"
            b"Keep-Alive: timeout=5\r\nEmpty:\r\nContent-Length: 2\r\n\r\nok"
        )

    async def scenario(rig) -> None:
        await rig.replica(script)
        answer = await rig.ask(GET)
        assert answer.head.startswith(b"HTTP/1.1 200 Fine  indeed\r\nSet-Cookie: a=1\r\nset-cookie: b=2, c\r\n")
        assert answer.one("empty") == b""
        for gone in ("connection", "x-hop", "keep-alive"):
            assert answer.all(gone) == []

    rig(scenario)


@pytest.mark.parametrize(
    ("method", "head", "body"),
    [
        ("HEAD", b"200 OK\r\nContent-Length: 9", b""),
        ("HEAD", b"200 OK\r\nTransfer-Encoding: chunked", b""),
        ("GET", b"204 No Content", b""),
        ("GET", b"304 Not Modified\r\nContent-Length: 9", b""),
        ("GET", b"200 OK\r\nContent-Length: 0", b""),
        ("GET", b"200", b"until the end"),
        ("GET", b"500 Oops\r\nContent-Length: 3", b"bad"),
    ],
)
def test_where_an_answer_ends(rig_once, method: str, head: bytes, body: bytes) -> None:
    async def script(wire, request) -> None:
        wire.send(b"HTTP/1.1 " + head + b"\r\n\r\n" + body)
        if head == b"200":
            wire.close()

    async def scenario(rig) -> None:
        replica = await rig.replica(script)
        client = await rig.client()
        for _ in range(2):
            if client.reader.at_eof():
                client = await rig.client()
            client.send(b"%b / HTTP/1.1\r\nHost: x\r\n\r\n" % method.encode())
            answer = await client.answer(method)
            assert (answer.body, answer.whole) == (body, True)
            assert (answer.one("connection") == b"close") == (head == b"200")
            await asyncio.sleep(0)
        assert replica.accepted == (2 if head == b"200" else 1)

    rig_once(scenario)


def test_chunked_bodies_pass_both_ways_with_extensions_and_trailers(rig) -> None:
    body = b"5;a=b\r\nhello\r\n1 ; c\r\n!\r\n0\r\nX-Sum: 12\r\nX-Other: y\r\n\r\n"

    async def script(wire, request) -> None:
        wire.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n" + request.body)

    async def scenario(rig) -> None:
        replica = await rig.replica(script)
        client = await rig.client()
        for step in (len(body), 1, 7):
            client.send(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: Chunked\r\n\r\n")
            for start in range(0, len(body), step):
                client.send(body[start : start + step])
                await asyncio.sleep(0)
            await client.read_head()
            assert await client.read_chunked(raw=True) == body
            assert replica.requests[-1].body == body
        assert replica.accepted == 1

    rig(scenario)


def test_an_http_1_0_client_gets_what_it_understands(rig) -> None:
    async def script(wire, request) -> None:
        assert request.line == b"GET / HTTP/1.1"
        assert request.one("host") == rig_address[0]
        wire.send(b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n")
        wire.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
        await settled()
        wire.send(b"1\r\n!\r\n0\r\nX: y\r\n\r\n")

    rig_address: list[bytes] = []

    async def scenario(rig) -> None:
        replica = await rig.replica(script)
        rig_address.append(replica.address.encode())
        client = await rig.client()
        client.send(b"GET / HTTP/1.0\r\n\r\n")
        head = await client.read_head()
        assert b"ransfer" not in head
        assert b"103" not in head
        assert await client.reader.read() == b"hello!"

    rig(scenario)


def test_an_http_1_0_client_may_keep_its_connection(rig) -> None:
    async def scenario(rig) -> None:
        await rig.replica()
        client = await rig.client()
        for _ in range(2):
            client.send(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
            answer = await client.answer()
            assert (answer.body, answer.one("connection")) == (b"ok", b"keep-alive")
        client.send(b"GET / HTTP/1.0\r\n\r\n")
        assert (await client.answer()).one("connection") == b"close"
        assert await client.ended()

    rig(scenario)


@pytest.mark.parametrize(
    ("head", "kept"),
    [
        (b"HTTP/1.1 200 OK\r\n", True),
        (b"HTTP/1.1 200 OK\r\nConnection: close\r\n", False),
        (b"HTTP/1.0 200 OK\r\n", False),
        (b"HTTP/1.0 200 OK\r\nConnection: Keep-Alive\r\n", True),
    ],
)
def test_upstream_connections_are_used_again_when_they_may_be(rig, head: bytes, kept: bool) -> None:
    async def script(wire, request) -> None:
        wire.send(head + b"Content-Length: 2\r\n\r\nok")

    async def scenario(rig) -> None:
        replica = await rig.replica(script)
        client = await rig.client()
        for _ in range(5):
            client.send(GET)
            assert (await client.answer()).body == b"ok"
        assert replica.accepted == (1 if kept else 5)

    rig(scenario)


def test_pipelined_requests_are_answered_in_order(rig) -> None:
    async def script(wire, request) -> None:
        path = request.line.split(b" ")[1]
        await asyncio.sleep(0.02 if path == b"/0" else 0)
        wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(path), path))

    async def scenario(rig) -> None:
        await rig.replica(script)
        client = await rig.client()
        pieces = [b"POST /%d HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc" % n for n in range(50)]
        client.send(b"\r\n".join(pieces))  # the odd empty line is forgiven
        for n in range(50):
            assert (await client.answer()).body == b"/%d" % n

    rig(scenario)


def test_expect_continue_is_passed_through(rig) -> None:
    async def script(wire, request) -> None:
        assert request.one("expect") == b"100-continue"
        wire.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        assert await wire.reader.readexactly(3) == b"abc"
        wire.send(b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    async def scenario(rig) -> None:
        await rig.replica(script)
        client = await rig.client()
        client.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n")
        assert await client.read_head() == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.send(b"abc")
        assert b"103 Early Hints\r\nLink: </x>" in await client.read_head()
        answer = await client.answer()
        assert (answer.status, answer.body, answer.all("connection")) == (200, b"ok", [])

    rig(scenario)


def test_an_answer_before_the_body_has_come_ends_the_connection_in_order(rig) -> None:
    async def script(wire, request) -> None:
        wire.send(b"HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\n\r\nbig")
        await wire.reader.read()

    async def scenario(rig) -> None:
        await rig.replica(script)
        client = await rig.client()
        client.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9999\r\nExpect: 100-continue\r\n\r\n")
        answer = await client.answer()
        assert (answer.status, answer.body, answer.one("connection")) == (413, b"big", b"close")
        client.send(b"x" * 100)  # too late, but it must not destroy the answer
        assert await client.ended()

    rig(scenario)


def test_events_are_relayed_one_by_one(rig) -> None:
    go = asyncio.Event()

    async def script(wire, request) -> None:
        wire.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        for n in range(3):
            go.clear()
            wire.send(b"9\r\ndata: %d\n\n\r\n" % n)
            await go.wait()
        wire.send(b"0\r\n\r\n")

    async def scenario(rig) -> None:
        await rig.replica(script)
        client = await rig.client()
        client.send(GET)
        await client.read_head()
        for n in range(3):
            assert await client.reader.readexactly(14) == b"9\r\ndata: %d\n\n\r\n" % n
            go.set()
        assert await client.reader.readexactly(5) == b"0\r\n\r\n"

    rig(scenario)


def test_what_looks_like_a_chunk_inside_a_chunk_is_none(rig) -> None:
    inside = b"2\r\nab\r\n"
    pieces = [
        b"7\r\n",
        inside,
        b"\r\n",
        b"3;",
        b"a=b\r\nabc\r\n",
        inside,
        b"7\r",
        b"\n" + inside[:-1],
        inside[-1:] + b"\r\n",
    ]
    ended = b"7\r\n2\r\nab\r\n\r\n0\r\n\r\n"

    async def script(wire, request) -> None:
        wire.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for piece in [*pieces, ended]:
            await asyncio.sleep(0.01)
            wire.send(piece)

    async def scenario(rig) -> None:
        replica = await rig.replica(script)
        client = await rig.client()
        for _ in range(2):
            client.send(GET)
            await client.read_head()
            assert await client.read_chunked(raw=True) == b"".join(pieces) + ended
        assert replica.accepted == 1

    rig(scenario)


def test_200_streams_at_once_are_complete(rig) -> None:
    async def script(wire, request) -> None:
        wire.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        for n in range(10):
            wire.send(b"b\r\ndata: %03d\n\n\r\n" % n)
            await asyncio.sleep(0.01)
        wire.send(b"0\r\n\r\n")

    async def scenario(rig) -> None:
        replicas = [await rig.replica(script) for _ in range(2)]
        answers = await asyncio.gather(*(rig.ask(GET) for _ in range(200)))
        assert all(answer.whole and answer.body.count(b"data:") == 10 for answer in answers)
        assert [len(replica.requests) for replica in replicas] == [100, 100]

    rig(scenario)


def test_large_bodies_stream_with_bounded_buffers(rig) -> None:
    """Neither side reads for a while; the other must stop being read, and nothing may be lost."""
    size = 24 * 1024 * 1024
    block = b"x" * 65536
    hurry = asyncio.Event()
    seen = []

    async def script(wire, request) -> None:
        await hurry.wait()
        got = 0
        while got < size:
            got += len(await wire.reader.read(1 << 20))
        wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
        for _ in range(size // len(block)):
            wire.send(block)
            await wire.writer.drain()
            seen.append(len(block))

    async def scenario(rig) -> None:
        await rig.replica(script)
        client = await rig.client()
        client.send(b"POST / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n" % size)
        sent = 0
        try:
            while sent < size:
                client.send(block)
                sent += len(block)
                await asyncio.wait_for(client.writer.drain(), 0.3)
        except TimeoutError:
            hurry.set()
        assert sent < size  # somebody pushed back
        client.send(b"x" * (size - sent))
        await client.read_head()
        await settled()
        assert sum(seen) < size
        assert await client.reader.readexactly(size) == b"x" * size

    rig(scenario)


def test_websocket_is_a_tunnel_with_half_close(rig) -> None:
    async def script(wire, request) -> None:
        assert request.one("upgrade") == b"websocket"
        assert request.one("connection").lower() == b"upgrade"
        wire.send(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nhi")
        said = await wire.reader.read()  # until the client ends its side
        wire.send(b"you said " + said)
        wire.writer.write_eof()
        await asyncio.sleep(0)

    async def scenario(rig) -> None:
        await rig.replica(script)
        client = await rig.client()
        client.send(b"GET /ws HTTP/1.1\r\nHost: x\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n\r\n")
        assert (await client.answer()).one("upgrade") == b"websocket"
        assert await client.reader.readexactly(2) == b"hi"
        client.send(b"\x81\x00GET / HTTP/1.1\n\n")
        await settled()
        assert rig.busy() == 1
        client.writer.write_eof()
        assert await client.reader.read() == b"you said \x81\x00GET / HTTP/1.1\n\n"

    rig(scenario)


def test_a_tunnel_ends_with_its_replica(rig) -> None:
    async def script(wire, request) -> None:
        wire.send(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: w\r\n\r\n")
        await settled()
        wire.writer.transport.abort()

    async def scenario(rig) -> None:
        await rig.replica(script)
        client = await rig.client()
        client.send(b"GET /ws HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: w\r\n\r\n")
        await client.answer()
        assert await client.ended()

    rig(scenario)


def test_an_upgrade_that_is_not_taken_is_a_request_like_any_other(rig) -> None:
    async def scenario(rig) -> None:
        await rig.replica()
        client = await rig.client()
        for _ in range(2):
            client.send(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
            assert (await client.answer()).body == b"ok"

    rig(scenario)


def test_http2_is_not_tunnelled(rig) -> None:
    async def scenario(rig) -> None:
        replica = await rig.replica()
        await rig.ask(
            b"GET / HTTP/1.1\r\nHost: x\r\n"
            b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: A\r\n\r\n"
        )
        for gone in ("upgrade", "connection", "http2-settings"):
            assert replica.requests[0].all(gone) == []

    rig(scenario)


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
        b"nonsense\r\n\r\n",
        b"HTTP/1.1 200 OK\nContent-Length: 0\n\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        b"HTTP/1.1 200 OK\r\nA: b\r\n folded\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"y" * 70000 + b"\r\n\r\n",
    ],
)
def test_an_answer_that_is_not_http_is_a_502(rig_once, answer: bytes) -> None:
    async def script(wire, request) -> None:
        wire.send(answer)
        await wire.reader.read()

    async def scenario(rig) -> None:
        replica = await rig.replica(script)
        found = await rig.ask(GET.replace(b"\r\n\r\n", b"\r\nAccept: application/json\r\n\r\n"))
        assert (found.status, b'"bad_gateway"' in found.body) == (502, True)
        assert len(replica.requests) == 1

    rig_once(scenario)


@pytest.mark.parametrize(
    "start",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nzz\r\n",
    ],
)
@pytest.mark.parametrize("reset", [False, True])
def test_a_replica_that_dies_in_the_middle_cannot_be_overlooked(rig, start: bytes, reset: bool) -> None:
    async def script(wire, request) -> None:
        wire.send(start)
        await settled()
        wire.writer.transport.abort() if reset else wire.close()

    async def scenario(rig) -> None:
        replica = await rig.replica(script)
        await rig.replica()
        rig.list(replica)
        answer = await rig.ask(GET)
        assert (answer.status, answer.whole) == (200, False)
        assert len(replica.requests) == 1  # an answer that has begun is never begun again

    rig(scenario)


def test_an_answer_without_a_length_that_is_reset_is_reset(rig) -> None:
    async def script(wire, request) -> None:
        wire.send(b"HTTP/1.1 200 OK\r\n\r\nabc")
        await settled()
        wire.reset()

    async def scenario(rig) -> None:
        await rig.replica(script)
        client = await rig.client()
        client.send(GET)
        await client.read_head()
        with pytest.raises(ConnectionResetError):
            await client.reader.read()

    rig(scenario)


def test_too_many_bytes_in_an_answer_go_to_nobody(rig) -> None:
    async def script(wire, request) -> None:
        wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil")

    async def scenario(rig) -> None:
        replica = await rig.replica(script)
        client = await rig.client()
        for _ in range(2):
            client.send(GET)
            assert (await client.answer()).body == b"ok"
        assert replica.accepted == 2

    rig(scenario)


def test_unasked_bytes_on_an_idle_connection_end_it(rig) -> None:
    async def scenario(rig) -> None:
        replica = await rig.replica()
        assert (await rig.ask(GET)).body == b"ok"
        replica.wires[0].send(b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n")
        await rig.until(lambda: replica.left == 1)
        assert (await rig.ask(GET)).body == b"ok"
        assert replica.accepted == 2

    rig(scenario)


def test_a_connection_that_was_paused_is_fit_for_the_next_request(rig) -> None:
    """A client slower than the last bytes of an answer must not leave a paused connection in the pool."""
    size = 8 * 1024 * 1024

    async def script(wire, request) -> None:
        wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size + b"x" * size)

    async def scenario(rig) -> None:
        replica = await rig.replica(script)
        for _ in range(4):
            client = await rig.client()
            client.send(GET)
            await client.read_head()
            await settled()
            assert len(await client.reader.readexactly(size)) == size
        assert replica.accepted == 1

    rig(scenario)


def test_no_delay_is_set_on_both_sides(rig) -> None:
    async def scenario(rig) -> None:
        await rig.replica()
        client = await rig.client()
        client.send(GET)
        await client.answer()
        pages = rig.door.pool.candidates(0.0, ())
        transports = [next(iter(rig.server._clients))._transport, pages[0].idle[0].transport]
        for transport in transports:
            sock = transport.get_extra_info("socket")
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)

    rig(scenario)


def test_an_early_answer_outlives_the_connection_it_came_on(rig) -> None:
    """The replica closes on a body that it has not read, so the door's writing fails, often before its reading."""
    size = 4 * 1024 * 1024

    async def script(wire, request) -> None:
        wire.send(b"HTTP/1.1 413 Too Large\r\nConnection: close\r\nContent-Length: 3\r\n\r\nbig")
        wire.close()

    async def scenario(rig) -> None:
        replica = await rig.replica(script)
        for count in range(1, 16):
            client = await rig.client()
            client.send(b"POST / HTTP/1.1\r\nHost: x\r\nExpect: 1\r\nContent-Length: %d\r\n\r\n" % size + b"x" * size)
            answer = await client.answer()
            assert (answer.status, answer.body) == (413, b"big")
            assert len(replica.requests) == count
        assert rig.door.pool.suspects() == ()

    rig(scenario)


def test_a_storm_of_interim_answers_passes_with_bounded_buffers(rig) -> None:
    interim, count = b"HTTP/1.1 102 Processing\r\n\r\n", 20_000

    async def script(wire, request) -> None:
        for _ in range(count // 1000):
            wire.send(interim * 1000)
            await wire.writer.drain()
        wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    async def scenario(rig) -> None:
        await rig.replica(script)
        client = await rig.client()
        client.send(GET)
        assert await client.reader.readexactly(len(interim) * count) == interim * count
        assert (await client.answer()).body == b"ok"

    rig(scenario)


def test_early_data_waits_for_the_tunnel(rig) -> None:
    async def script(wire, request) -> None:
        await settled()
        wire.send(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: w\r\n\r\n")
        wire.send(b"got " + await wire.reader.readexactly(5))
        await wire.reader.read()

    async def scenario(rig) -> None:
        await rig.replica(script)
        client = await rig.client()
        client.send(b"GET /ws HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: w\r\n\r\nhello")
        await client.answer()
        assert await client.reader.readexactly(9) == b"got hello"

    rig(scenario)


def test_a_head_like_the_last_is_understood_like_the_last_and_no_other_is(rig_once) -> None:
    async def scenario(rig) -> None:
        replica = await rig.replica()
        client = await rig.client()
        kinds = [(b"/a", b"x"), (b"/a", b"x"), (b"/b", b"x"), (b"/a", b"y"), (b"/a", b"y")]
        for target, host in kinds:
            client.send(b"POST %b HTTP/1.1\r\nHost: %b\r\nContent-Length: 3\r\n\r\nabc" % (target, host))
            assert (await client.answer()).body == b"ok"
        assert [(one.line.split(b" ")[1], one.one("host")) for one in replica.requests] == kinds
        assert len({one.one("x-request-id") for one in replica.requests}) == len(kinds)

    rig_once(scenario)


@pytest.mark.parametrize("step", [10_000, 40, 1])
def test_a_short_answer_is_the_same_in_one_piece_and_in_many(rig_once, step: int) -> None:
    answer = b"HTTP/1.1 201 Made\r\nA: b\r\nContent-Length: 9\r\nC: d\r\n\r\n123456789"

    async def script(wire, request) -> None:
        for start in range(0, len(answer), step):
            wire.send(answer[start : start + step])
            await asyncio.sleep(0.001)

    async def scenario(rig) -> None:
        replica = await rig.replica(script)
        client = await rig.client()
        for keep in (True, True, False):
            client.send(GET if keep else GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
            whole = await client.reader.readuntil(b"123456789")
            assert whole == (answer if keep else answer.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        assert await client.ended()
        assert replica.accepted == 1

    rig_once(scenario)


def test_heads_that_differ_in_their_length_only_are_told_apart(rig_once) -> None:
    async def script(wire, request) -> None:
        wire.send(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\nA: b\r\n\r\n%b" % (len(request.body), request.body))

    async def scenario(rig) -> None:
        replica = await rig.replica(script)
        client = await rig.client()
        bodies = [b"abc", b"", b"x" * 1000, b"abc", b"defg"]
        for body in bodies:
            client.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\nC: d\r\n\r\n%b" % (len(body), body))
            assert (await client.answer()).body == body
        assert [(one.body, one.all("content-length")) for one in replica.requests] == [
            (body, [b"%d" % len(body)]) for body in bodies
        ]
        client.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: +3\r\nC: d\r\n\r\nabc")
        assert (await client.answer()).status == 400

    rig_once(scenario)
