"""The same request, sent straight to a replica and through the door, gets the same answer and is received the same.

Documented differences are spelled out here, and there are no others: `ADDED` and `HOP_BY_HOP`, and what a case names.
"""

from __future__ import annotations

import gzip
import json
from base64 import b64encode
from dataclasses import dataclass
from hashlib import sha1

import pytest
from tests.load_balancer.conftest import Request, Rig, Wire

from skyserve.load_balancer import headers

ADDED = {b"x-forwarded-for", b"x-forwarded-proto", b"x-forwarded-host", b"forwarded", b"x-request-id"}
HOP_BY_HOP = {b"connection", b"keep-alive", b"te", b"transfer-encoding", b"upgrade", b"proxy-authorization"}
SSE = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def ok(body: bytes, *fields: bytes, status: bytes = b"200 OK") -> bytes:
    head = b"\r\n".join((b"HTTP/1.1 " + status, *fields, b"Content-Length: %d" % len(body)))
    return head + b"\r\n\r\n" + body


def get(target: bytes = b"/", *fields: bytes, method: bytes = b"GET", version: bytes = b"1.1") -> bytes:
    host = (b"Host: api.example:8080",) if version == b"1.1" else ()
    return b"\r\n".join((b"%b %b HTTP/%b" % (method, target, version), *host, *fields, b"", b""))


def post(body: bytes, *fields: bytes, method: bytes = b"POST") -> bytes:
    return get(b"/v1/x", *fields, b"Content-Length: %d" % len(body), method=method) + body


def chunked(body: bytes, *fields: bytes) -> bytes:
    return get(b"/v1/x", *fields, b"Transfer-Encoding: chunked", method=b"POST") + body


@dataclass(frozen=True)
class Case:
    """A request, what the replica answers, and what is meant to differ for the client or for the replica."""

    request: bytes
    answer: bytes = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
    count: int = 1
    methods: tuple[bytes, ...] = ()
    closes: bool = False
    client_differs: frozenset[str] = frozenset()
    replica_differs: frozenset[str] = frozenset()


def old(request: bytes, answer: bytes, *client_differs: str) -> Case:
    """A client that speaks HTTP/1.0: the replica sees HTTP/1.1 and a host."""
    differs = frozenset({"version", "host"})
    return Case(request, answer, closes=True, client_differs=frozenset(client_differs), replica_differs=differs)


COOKIES = (b"Set-Cookie: a=1; Path=/", b"Set-Cookie: b=2; Expires=Wed, 09 Jun 2027 10:18:14 GMT", b"set-cookie: c=3")
MANY = tuple(b"X-Field-%d: %d" % (n, n) for n in range(200))
TRACE = b"traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
EARLY = b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\n\r\n"
ORDER = (b"GET", b"POST", b"HEAD", b"HEAD", b"GET")
PIECES = b'4\r\nWiki\r\n6;ext="a b"\r\npedia \r\nE;x\r\nin \r\n\r\nchunks.\r\n0\r\n'

CASES: dict[str, Case] = {
    # Methods.
    **{f"method {name}": Case(get(method=name.encode())) for name in ("GET", "DELETE", "OPTIONS", "TRACE", "PROPFIND")},
    **{f"method {name}": Case(post(b"{}", method=name.encode())) for name in ("POST", "PUT", "PATCH", "QUERY", "m-x!")},
    "method HEAD": Case(get(method=b"HEAD"), b"HTTP/1.1 200 OK\r\nContent-Length: 999\r\nETag: x\r\n\r\n"),
    "method HEAD of a chunked one": Case(get(method=b"HEAD"), SSE),
    "method OPTIONS of all": Case(get(b"*", method=b"OPTIONS"), ok(b"", b"Allow: GET, POST")),
    "preflight": Case(
        get(b"/", b"Origin: https://a.b", b"Access-Control-Request-Method: POST", method=b"OPTIONS"),
        b"HTTP/1.1 204 No Content\r\nAccess-Control-Allow-Origin: *\r\n\r\n",
    ),
    # Targets, byte for byte.
    "target encoded": Case(get(b"/a%2Fb%2e%2E/%c3%A9%20+%00")),
    "target dots and slashes": Case(get(b"//a/./../b//c/")),
    "target query": Case(get(b"/p?a=1&a=2&b=%26;c=?/:@!$'()*+,&&")),
    "target empty query": Case(get(b"/?")),
    "target not ASCII": Case(get(b"/\xc3\xa9?q=\xff")),
    "target odd": Case(get(b'/a[1]{2}|\\^`"<>#frag')),
    "target long": Case(get(b"/" + b"x" * 30_000)),
    "target absolute": Case(get(b"http://api.example:8080/p?q"), replica_differs=frozenset({"target"})),
    # Bodies of requests.
    "body none": Case(get(method=b"POST")),
    "body empty": Case(post(b"")),
    "body like a request": Case(post(b"\r\n\r\nGET /evil HTTP/1.1\r\nHost: x\r\n\r\n")),
    "body of a GET": Case(post(b"abc", method=b"GET")),
    "body binary": Case(post(bytes(range(256)) * 16, b"Content-Type: application/octet-stream")),
    "body of 3 MiB": Case(post(b"x" * 3 * 1024 * 1024)),
    "body chunked": Case(chunked(b"3\r\nabc\r\n0\r\n\r\n")),
    "body chunked with extensions and trailers": Case(
        chunked(PIECES + b"X-Sum: 1\r\nX-T: \r\n\r\n", b"Trailer: X-Sum")
    ),
    "body chunked and empty": Case(chunked(b"0\r\n\r\n")),
    "body chunked with large sizes": Case(chunked(b"00FA0\r\n" + b"y" * 4000 + b"\r\n0\r\n\r\n")),
    "body compressed": Case(post(gzip.compress(b"{}" * 99, mtime=0), b"Content-Encoding: gzip")),
    # Fields of requests.
    "field names as written": Case(get(b"/", b"X-MiXeD: 1", b"lower: 2", b"UPPER: 3")),
    "field repeated": Case(get(b"/", b"Accept: a", b"X: 1", b"Accept: b", b"Cookie: a=1; b=2", b"Cookie: c=3")),
    "field values": Case(get(b"/", b"E:", b"S:   inner  spaces   ", b"T:\ttab\t", b"O: caf\xe9", b'Q: "a, b"')),
    "fields many": Case(get(b"/", *MANY)),
    "field of 40 KiB": Case(get(b"/", b"X-Big: " + b"v" * 40_000)),
    "trace context": Case(get(b"/", TRACE, b"tracestate: a=1,b=2", b"baggage: k=v")),
    "authorization": Case(get(b"/", b"Authorization: Bearer sk-abc.def"), ok(b"no", status=b"401 Unauthorized")),
    "conditional": Case(get(b"/", b'If-None-Match: "x"'), b'HTTP/1.1 304 Not Modified\r\nETag: "x"\r\n\r\n'),
    "conditional with a length": Case(get(), b"HTTP/1.1 304 Not Modified\r\nContent-Length: 77\r\n\r\n"),
    "range": Case(get(b"/", b"Range: bytes=2-4"), ok(b"cde", b"Content-Range: bytes 2-4/9", status=b"206 Partial")),
    "range of many parts": Case(get(b"/", b"Range: bytes=0-1,4-"), ok(b"--b\r\n\r\nab\r\n--b--", status=b"206 Some")),
    "range not there": Case(get(), ok(b"", b"Content-Range: bytes */9", status=b"416 Range Not Satisfiable")),
    "range if": Case(get(b"/", b"Range: bytes=0-1", b'If-Range: "v"')),
    # Answers.
    "cookies": Case(get(), ok(b"x", *COOKIES)),
    "redirect": Case(get(), ok(b"", b"Location: http://other/%2F?a=b", status=b"308 Permanent Redirect")),
    "challenge": Case(get(), ok(b"", b"WWW-Authenticate: Bearer", b"WWW-Authenticate: Basic", status=b"401 No")),
    "reason odd": Case(get(), ok(b"t", status=b"418 I'm a  teapot \xe2\x98\x95")),
    "reason empty": Case(get(), ok(b"t", status=b"299 ")),
    "too many": Case(post(b"{}"), ok(b'{"error":{}}', b"Retry-After: 7", status=b"429 Too Many Requests")),
    "failed": Case(post(b"{}"), ok(b"oops", status=b"500 Internal Server Error")),
    "unavailable": Case(post(b"{}"), ok(b"loading", b"Retry-After: 3", status=b"503 Service Unavailable")),
    "no content": Case(get(method=b"DELETE"), b"HTTP/1.1 204 No Content\r\n\r\n"),
    "reset content": Case(get(), ok(b"", status=b"205 Reset Content")),
    "answer chunked": Case(get(), SSE + b"8\r\ndata: 1\n\r\n8\r\ndata: 2\n\r\n0\r\n\r\n"),
    "answer chunked with trailers": Case(get(), SSE + PIECES + b"X-Sum: 1\r\nServer-Timing: a;dur=1\r\n\r\n"),
    "answer until the end": Case(get(), b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nuntil the end", closes=True),
    "answer of an old server": Case(
        get(), b"HTTP/1.0 200 OK\r\n\r\nold", closes=True, client_differs=frozenset({"version"})
    ),
    "answer compressed": Case(get(), ok(gzip.compress(b"a" * 999, mtime=0), b"Content-Encoding: gzip", b"Vary: *")),
    "answer of 3 MiB": Case(get(), ok(b"y" * 3 * 1024 * 1024)),
    "answer with a large head": Case(get(), ok(b"", b"X-Large: " + b"z" * 40_000, *MANY[:50])),
    "hints": Case(get(), EARLY + EARLY + ok(b"x")),
    "processing": Case(post(b"{}"), b"HTTP/1.1 102 Processing\r\n\r\n" * 3 + ok(b"x")),
    "date and server": Case(get(), ok(b"x", b"Date: Thu, 01 Jan 1970 00:00:00 GMT", b"Server: mine/1", b"Via: 1.1 a")),
    # Connections.
    "pipelined": Case(get(b"/1") + post(b"2") + get(b"/3", method=b"HEAD") * 2 + get(b"/5"), count=5, methods=ORDER),
    "close": Case(get(b"/", b"Connection: close"), closes=True),
    "old client": old(get(version=b"1.0"), ok(b"old")),
    "old client and a chunked answer": old(get(version=b"1.0"), SSE + PIECES + b"\r\n", "coding"),
    "old client that keeps": Case(
        get(b"/", b"Connection: keep-alive", version=b"1.0") * 2,
        count=2,
        replica_differs=frozenset({"version", "host"}),
    ),
    "expect": Case(get(b"/", b"Expect: 100-continue", b"Content-Length: 0", method=b"POST"), EARLY + ok(b"x")),
}


def test_there_are_enough_cases() -> None:
    assert len(CASES) >= 60


@pytest.mark.parametrize("name", CASES)
def test_same_answer_and_same_request(rig_once, name: str) -> None:
    case = CASES[name]

    async def script(wire: Wire, request: Request) -> None:
        wire.send(
            case.answer if not request.head.startswith(b"HEAD") else case.answer.partition(b"\r\n\r\n")[0] + b"\r\n\r\n"
        )
        if case.closes and (request.one("connection") == b"close" or b"ontent-" not in case.answer):
            wire.close()

    async def scenario(rig: Rig) -> None:
        replica = await rig.replica(script)
        seen, received = [], []
        for port in (replica.port, rig.port):
            wire = await rig.client(port)
            replica.requests.clear()
            wire.send(case.request)
            seen.append([await what_the_client_sees(wire, case, n) for n in range(case.count)])
            if case.closes and "host" not in case.replica_differs:
                assert await wire.ended()
            received.append([what_the_replica_sees(request, case) for request in replica.requests])
        assert seen[0] == seen[1]
        assert received[0] == received[1]
        assert len(received[1]) == case.count

    rig_once(scenario)


async def what_the_client_sees(wire: Wire, case: Case, number: int) -> list[object]:
    method = case.methods[number] if case.methods else case.request.partition(b" ")[0]
    seen: list[object] = []
    while True:
        line, fields = head_of(await wire.read_head())
        version, status, *_ = line.split(b" ")
        seen.append(line[len(version) :] if "version" in case.client_differs else line)
        left_out = HOP_BY_HOP if status >= b"200" or status == b"101" else set()
        seen.append(compared(fields, left_out))
        if status >= b"200":
            break
    own = dict(fields)
    if method == b"HEAD" or status in (b"204", b"304"):
        body = b""
    elif own.get(b"transfer-encoding") == b"chunked":
        body = await wire.read_chunked(raw="coding" not in case.client_differs)
    elif b"content-length" in own:
        body = await wire.reader.readexactly(int(own[b"content-length"]))
    else:
        body = await wire.reader.read()
    return [*seen, body]


def what_the_replica_sees(request: Request, case: Case) -> list[object]:
    line, fields = head_of(request.head)
    method, target, version = line.split(b" ")
    left_out = ADDED | HOP_BY_HOP | ({b"host"} if "host" in case.replica_differs else set())
    return [
        method,
        target.removeprefix(b"http://api.example:8080") if "target" in case.replica_differs else target,
        None if "version" in case.replica_differs else version,
        compared(fields, left_out),
        request.body,
    ]


def compared(fields: list[tuple[bytes, bytes]], left_out: set[bytes]) -> list[tuple[bytes, bytes]]:
    """The fields in their order, but for the length: the door writes it after the others."""
    kept = [field for field in fields if field[0] not in left_out]
    return sorted(kept, key=lambda field: field[0] == b"content-length")


def head_of(head: bytes) -> tuple[bytes, list[tuple[bytes, bytes]]]:
    line, *rest = head.removesuffix(b"\r\n\r\n").split(b"\r\n")
    pairs = [one.partition(b":") for one in rest]
    return line, [(name.lower(), value.strip(b" \t")) for name, _, value in pairs]


def test_what_the_door_adds_for_the_replica(rig_once) -> None:
    async def scenario(rig: Rig) -> None:
        replica = await rig.replica()
        await rig.ask(get())
        await rig.ask(
            get(b"/", b"Forwarded: for=9.9.9.9;proto=https", b"X-Forwarded-For: 9.9.9.9", b"X-Request-ID: me")
        )
        fresh, chained = replica.requests
        assert fresh.one("forwarded") == b'for=127.0.0.1;host="api.example:8080";proto=http'
        assert fresh.one("x-forwarded-for") == b"127.0.0.1"
        assert chained.one("forwarded") == b"for=9.9.9.9;proto=https, " + fresh.one("forwarded")
        assert chained.one("x-forwarded-for") == b"9.9.9.9, 127.0.0.1"
        assert chained.one("x-request-id") == b"me"
        assert {name for name, _ in head_of(fresh.head)[1]} == ADDED | {b"host"}

    rig_once(scenario)


def test_hosts_that_nobody_has_are_not_remembered(rig_once) -> None:
    async def scenario(rig: Rig) -> None:
        replica = await rig.replica()
        client = await rig.client()
        before = headers._forwarding.cache_info().misses
        for host in (b"a" * 300, b"b" * 20_000):
            client.send(b"GET / HTTP/1.1\r\nHost: %b\r\n\r\n" % host)
            await client.answer()
            assert replica.requests[-1].one("x-forwarded-host") == host
        assert headers._forwarding.cache_info().misses == before

    rig_once(scenario)


@pytest.mark.parametrize(
    ("request_", "status", "code"),
    [
        (b"CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n", 405, b"method_not_allowed"),
        (get(b"/", b"X: " + b"y" * 70_000), 431, b"head_too_large"),
        (b"GET /v1/" + b"x" * 40_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 414, b"uri_too_long"),
        (b"GET / HTTP/2.0\r\nHost: x\r\n\r\n", 505, b"http_version"),
        (get(b"/", b"X : y"), 400, b"bad_request"),
        (b"GET / HTTP/1.1\r\n\r\n", 400, b"bad_request"),
        (post(b"abc", b"Transfer-Encoding: chunked"), 400, b"bad_request"),
        (post(b"abc", b"Content-Length: 4"), 400, b"bad_request"),
    ],
)
def test_what_is_refused_reaches_nobody(rig_once, request_: bytes, status: int, code: bytes) -> None:
    async def scenario(rig: Rig) -> None:
        replica = await rig.replica()
        for speaks in (request_.replace(b"\r\n", b"\r\nAccept: application/json\r\n", 1), request_):
            answer = await rig.ask(speaks)
            assert (answer.status, answer.one("connection")) == (status, b"close")
            if speaks is not request_:
                message = json.loads(answer.body)["error"]["message"]
                assert json.loads(answer.body)["error"]["code"] == code.decode()
            elif b" /v1/" not in request_:
                assert answer.one("content-type") == b"text/plain; charset=utf-8"
                assert answer.body.decode() == f"{message}\n"
        assert replica.accepted == 0

    rig_once(scenario)


# ---- tunnels ------------------------------------------------------------------------------------------------

SWITCH = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"


def frame(opcode: int, payload: bytes, *, last: bool = True, mask: bytes = b"") -> bytes:
    """One frame of a WebSocket; a client's are masked."""
    size, masked = len(payload), 0x80 if mask else 0
    if size < 126:
        length = bytes([masked | size])
    elif size < 65536:
        length = bytes([masked | 126]) + size.to_bytes(2, "big")
    else:
        length = bytes([masked | 127]) + size.to_bytes(8, "big")
    if mask:
        key = (mask * (size // 4 + 1))[:size]
        payload = (int.from_bytes(payload, "big") ^ int.from_bytes(key, "big")).to_bytes(size, "big")
    return bytes([(0x80 if last else 0) | opcode]) + length + mask + payload


async def read_frame(wire: Wire) -> tuple[int, bool, bytes]:
    first, second = await wire.reader.readexactly(2)
    size = second & 0x7F
    if size > 125:
        size = int.from_bytes(await wire.reader.readexactly(2 if size == 126 else 8), "big")
    mask = await wire.reader.readexactly(4) if second & 0x80 else b""
    payload = await wire.reader.readexactly(size)
    if mask:
        key = (mask * (size // 4 + 1))[:size]
        payload = (int.from_bytes(payload, "big") ^ int.from_bytes(key, "big")).to_bytes(size, "big")
    return first & 0x0F, bool(first & 0x80), payload


async def echo(wire: Wire, request: Request, accept: bytes = b"") -> None:
    """A WebSocket server that says back what it hears, frame by frame, answers pings, and closes when it is told to."""
    proof = b64encode(sha1(accept + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())
    wire.send(SWITCH.replace(b"\r\n\r\n", b"\r\nSec-WebSocket-Accept: %b\r\n\r\n" % proof))
    while True:
        opcode, last, payload = await read_frame(wire)
        wire.send(frame({9: 10}.get(opcode, opcode), payload, last=last))
        await wire.writer.drain()
        if opcode == 8:
            wire.close()
            return


def test_a_websocket_carries_large_messages_fragments_and_pings(rig) -> None:
    large = bytes(range(256)) * 4096
    frames = [
        (1, True, b"hello"),
        (2, True, large),
        (9, True, b"are you there"),
        (1, False, b"in "),
        (0, False, b"three "),
        (9, True, b"a ping in between"),
        (0, True, b"parts"),
        (2, True, b""),
        (2, True, large[:70_000]),
        (8, True, b"\x03\xe8bye"),
    ]

    async def scenario(rig: Rig) -> None:
        await rig.replica(echo)
        client = await rig.client()
        client.send(
            b"GET /ws HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        assert (await client.answer()).status == 101
        for opcode, last, payload in frames:
            client.send(frame(opcode, payload, last=last, mask=b"\x12\x34\x56\x78"))
            assert await read_frame(client) == ({9: 10}.get(opcode, opcode), last, payload)
        for opcode, last, payload in frames[:2]:  # after its farewell the tunnel is gone, for both
            client.send(frame(opcode, payload, last=last, mask=b"abcd"))
        assert await client.ended()

    rig(scenario)


def test_any_protocol_is_tunnelled(rig) -> None:
    async def script(wire: Wire, request: Request) -> None:
        assert request.one("upgrade") == b"my-proto/2"
        wire.send(SWITCH.replace(b"websocket", b"my-proto/2"))
        wire.send((await wire.reader.readexactly(4))[::-1])

    async def scenario(rig: Rig) -> None:
        await rig.replica(script)
        client = await rig.client()
        client.send(get(b"/", b"Connection: upgrade", b"Upgrade: my-proto/2"))
        assert (await client.answer()).one("upgrade") == b"my-proto/2"
        client.send(b"abcd")
        assert await client.reader.readexactly(4) == b"dcba"

    rig(scenario)
