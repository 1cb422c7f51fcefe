"""Framing against a corpus of smuggling attempts, and against two parsers that were written by others."""

from __future__ import annotations

import re

import h11
import httptools
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skyserve.load_balancer.framing import (
    HEAD_LIMIT,
    PLAIN_CHUNK_LIMIT,
    URI_LIMIT,
    BadMessage,
    ChunkedBody,
    KnownHead,
    LengthBody,
    UntilCloseBody,
    head_end,
    is_plain_chunk,
    parse_request_head,
    parse_response_head,
    request_body,
    response_body,
    with_length,
)

H = b"Host: x\r\n"

SMUGGLING = {
    "both lengths": (b"POST / HTTP/1.1\r\n" + H + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
    "two lengths": (b"POST / HTTP/1.1\r\n" + H + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\n", 400),
    "equal lengths": (b"POST / HTTP/1.1\r\n" + H + b"Content-Length: 3\r\ncontent-length: 3\r\n\r\n", 400),
    "a list of lengths": (b"POST / HTTP/1.1\r\n" + H + b"Content-Length: 3, 3\r\n\r\n", 400),
    "a signed length": (b"POST / HTTP/1.1\r\n" + H + b"Content-Length: +3\r\n\r\n", 400),
    "a negative length": (b"POST / HTTP/1.1\r\n" + H + b"Content-Length: -1\r\n\r\n", 400),
    "an empty length": (b"POST / HTTP/1.1\r\n" + H + b"Content-Length:\r\n\r\n", 400),
    "a hexadecimal length": (b"POST / HTTP/1.1\r\n" + H + b"Content-Length: 0x3\r\n\r\n", 400),
    "a length beyond all": (b"POST / HTTP/1.1\r\n" + H + b"Content-Length: " + b"9" * 30 + b"\r\n\r\n", 400),
    "a length with digits of others": (b"POST / HTTP/1.1\r\n" + H + b"Content-Length: \xb2\r\n\r\n", 400),
    "two codings": (b"POST / HTTP/1.1\r\n" + H + b"Transfer-Encoding: gzip, chunked\r\n\r\n", 400),
    "coding twice": (b"POST / HTTP/1.1\r\n" + H + b"Transfer-Encoding: chunked\r\n" * 2 + b"\r\n", 400),
    "an unknown coding": (b"POST / HTTP/1.1\r\n" + H + b"Transfer-Encoding: xchunked\r\n\r\n", 400),
    "a coding with a tab within": (b"POST / HTTP/1.1\r\n" + H + b"Transfer-Encoding: \x0bchunked\r\n\r\n", 400),
    "an empty coding": (b"POST / HTTP/1.1\r\n" + H + b"Transfer-Encoding:\r\n\r\n", 400),
    "a coding in HTTP/1.0": (b"POST / HTTP/1.0\r\n" + H + b"Transfer-Encoding: chunked\r\n\r\n", 400),
    "bare line feeds": (b"GET / HTTP/1.1\nHost: x\n\n", 400),
    "one bare line feed": (b"GET / HTTP/1.1\r\n" + H + b"A: b\nC: d\r\n\r\n", 400),
    "a bare carriage return": (b"GET / HTTP/1.1\r\n" + H + b"A: b\rC: d\r\n\r\n", 400),
    "a folded line": (b"GET / HTTP/1.1\r\n" + H + b"A: b\r\n c\r\n\r\n", 400),
    "a folded first line": (b"GET / HTTP/1.1\r\n A: b\r\n" + H + b"\r\n", 400),
    "a space before the colon": (b"POST / HTTP/1.1\r\n" + H + b"Content-Length : 3\r\n\r\n", 400),
    "a tab before the colon": (b"POST / HTTP/1.1\r\n" + H + b"Transfer-Encoding\t: chunked\r\n\r\n", 400),
    "a NUL in a value": (b"GET / HTTP/1.1\r\n" + H + b"A: b\0c\r\n\r\n", 400),
    "a NUL in the target": (b"GET /\0 HTTP/1.1\r\n" + H + b"\r\n", 400),
    "no name": (b"GET / HTTP/1.1\r\n" + H + b": b\r\n\r\n", 400),
    "no colon": (b"GET / HTTP/1.1\r\n" + H + b"abc\r\n\r\n", 400),
    "no host": (b"GET / HTTP/1.1\r\n\r\n", 400),
    "two hosts": (b"GET / HTTP/1.1\r\n" + H + H + b"\r\n", 400),
    "two hosts in one": (b"GET / HTTP/1.1\r\nHost: a, b\r\n\r\n", 400),
    "a host with a path": (b"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", 400),
    "a host with a user": (b"GET / HTTP/1.1\r\nHost: u@a\r\n\r\n", 400),
    "two spaces": (b"GET  / HTTP/1.1\r\n" + H + b"\r\n", 400),
    "a tab for a space": (b"GET\t/ HTTP/1.1\r\n" + H + b"\r\n", 400),
    "a space at the end": (b"GET / HTTP/1.1 \r\n" + H + b"\r\n", 400),
    "no version": (b"GET /\r\n" + H + b"\r\n", 400),
    "a relative target": (b"GET a HTTP/1.1\r\n" + H + b"\r\n", 400),
    "a star for GET": (b"GET * HTTP/1.1\r\n" + H + b"\r\n", 400),
    "another scheme": (b"GET file:///etc HTTP/1.1\r\n" + H + b"\r\n", 400),
    "another version": (b"GET / HTTP/1.2\r\n" + H + b"\r\n", 505),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\n", 505),
    "connect": (b"CONNECT a:443 HTTP/1.1\r\n" + H + b"\r\n", 405),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00", 400),
    "a long target": (b"GET /" + b"a" * URI_LIMIT + b" HTTP/1.1\r\n" + H + b"\r\n", 414),
    "a target without end": (b"GET /" + b"a" * HEAD_LIMIT * 2, 414),
    "a long head": (b"GET / HTTP/1.1\r\n" + H + b"A: " + b"b" * HEAD_LIMIT + b"\r\n\r\n", 431),
    "a head without end": (b"GET / HTTP/1.1\r\n" + H + b"A: b\r\n" * HEAD_LIMIT, 431),
    "a line without colon or end": (b"GET / HTTP/1.1\r\n" + H + b"a" * (HEAD_LIMIT - 100) + b"\r\n\r\n", 400),
}

BAD_CHUNKS = {
    "a size in decimal words": b"five\r\nhello\r\n0\r\n\r\n",
    "a signed size": b"+5\r\nhello\r\n0\r\n\r\n",
    "a prefixed size": b"0x5\r\nhello\r\n0\r\n\r\n",
    "a size with a space": b"5 \r\nhello\r\n0\r\n\r\n",
    "a size with a space before": b" 5\r\nhello\r\n0\r\n\r\n",
    "no size": b"\r\nhello\r\n0\r\n\r\n",
    "a size that wraps": b"fffffffffffffffff\r\nhello\r\n0\r\n\r\n",
    "a bare line feed after the size": b"5\nhello\r\n0\r\n\r\n",
    "a bare line feed in an extension": b"5;a\nb\r\nhello\r\n0\r\n\r\n",
    "a carriage return in an extension": b"5;a\rb\r\nhello\r\n0\r\n\r\n",
    "a NUL in an extension": b"5;\0\r\nhello\r\n0\r\n\r\n",
    "more than its size": b"4\r\nhello\r\n0\r\n\r\n",
    "less than its size": b"6\r\nhello\r\n0\r\n\r\n",
    "a bare line feed after the chunk": b"5\r\nhello\n0\r\n\r\n",
    "a bare line feed at the end": b"5\r\nhello\r\n0\r\n\n",
    "a folded trailer": b"0\r\nA: b\r\n c\r\n\r\n",
    "a length in the trailers": b"0\r\nContent-Length: 5\r\n\r\n",
    "an extension without end": b"5;" + b"a" * 5000,
    "trailers without end": b"0\r\n" + b"A: b\r\n" * 5000,
}


def read_request(data: bytes):
    end = head_end(data)
    if end < 0:
        return None
    return parse_request_head(data[:end])


@pytest.mark.parametrize("name", SMUGGLING)
def test_smuggling_is_refused_and_the_connection_ends(rig_once, name: str) -> None:
    """Whatever the head says besides: a client that speaks JSON is told so in JSON."""
    data, status = SMUGGLING[name]
    speaks_json = data.replace(H, H + b"Accept: application/json\r\n", 1)

    async def scenario(rig) -> None:
        replica = await rig.replica()
        for sent in (data, speaks_json):
            client = await rig.client()
            client.send(sent + (b"GET /evil HTTP/1.1\r\nHost: x\r\n\r\n" if sent.endswith(b"\r\n\r\n") else b""))
            answer = await client.answer()
            assert answer.status == status
            assert answer.one("connection") == b"close"
            if sent is data:
                assert answer.one("content-type") == b"text/plain; charset=utf-8"
                assert re.fullmatch(rb"[ -~]+\n", answer.body)
            elif H in data and status != 414:  # else its fields have not come when it is refused
                assert b'"invalid_request_error"' in answer.body
            assert await client.ended()
        assert replica.requests == []

    rig_once(scenario)


def feed_all(body: ChunkedBody, data: bytes, step: int) -> None:
    for start in range(0, len(data), step):
        body.feed(data[start : start + step], 0)


@pytest.mark.parametrize("name", BAD_CHUNKS)
def test_bad_chunks_are_refused(name: str) -> None:
    for step in (1, 3, 10**6):
        body, data = ChunkedBody(), BAD_CHUNKS[name]
        with pytest.raises(BadMessage):
            feed_all(body, data, step)
        assert not body.done


@pytest.mark.parametrize("together", [True, False])
def test_bad_chunks_end_the_exchange(rig, together: bool) -> None:
    async def script(wire, request) -> None:
        raise AssertionError("a request that is not whole was taken for one")

    async def scenario(rig) -> None:
        replica = await rig.replica(script)
        client = await rig.client()
        head = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        bad = b"5\r\nhello\r\nzz\r\n\r\n"
        client.send(head + bad if together else head)
        if not together:
            await rig.until(lambda: replica.accepted == 1)
            client.send(bad)
        answer = await client.answer()
        assert (answer.status, answer.one("connection")) == (400, b"close")
        assert await client.ended()

    rig(scenario)


def test_long_garbage_is_refused_in_linear_time() -> None:
    for filler in (b"a", b"a:", b" ", b"\t", b"a: b\r\n"):
        block = b"GET / HTTP/1.1\r\n" + filler * (60_000 // len(filler)) + b"\x00\r\n\r\n"
        with pytest.raises(BadMessage):
            parse_request_head(block)


def test_a_head_that_comes_in_pieces() -> None:
    data = b"GET / HTTP/1.1\r\nHost: x\r\nA: b\r\n\r\nrest"
    scanned = 0
    for size in range(len(data) - 4):
        assert head_end(data[:size], scanned) == -1
        scanned = size
    assert head_end(data, scanned) == len(data) - 4


def test_which_body_an_answer_has() -> None:
    def body(head: bytes, method: bytes = b"GET"):
        return response_body(parse_response_head(b"HTTP/1.1 " + head + b"\r\n\r\n"), method)

    assert isinstance(body(b"200 OK"), UntilCloseBody)
    assert isinstance(body(b"200 OK\r\nContent-Length: 5\r\ncontent-length: 5"), LengthBody)
    assert isinstance(body(b"200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked"), ChunkedBody)
    assert isinstance(body(b"200 OK\r\nTransfer-Encoding: gzip, Chunked"), ChunkedBody)
    assert isinstance(body(b"200 OK\r\nTransfer-Encoding: gzip"), UntilCloseBody)
    for nothing in (body(b"204 No"), body(b"304 No\r\nContent-Length: 5"), body(b"200 OK", b"HEAD")):
        assert nothing.done
    both = parse_response_head(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n")
    assert not both.keep_alive


# ---- differential: what others accept as valid, we must read the same ------------------------------------------------

token = st.text("abcXYZ019-_.!#$%&'*+^`|~", min_size=1, max_size=12).map(str.encode)
value = st.text([chr(c) for c in range(0x21, 0x7F)] + [" ", "\t"], max_size=30).map(lambda text: text.strip().encode())
reserved = (
    b"host",
    b"content-length",
    b"transfer-encoding",
    b"connection",
    b"upgrade",
    b"te",
    b"keep-alive",
    b"expect",
)
plain = st.lists(st.tuples(token.filter(lambda name: name.lower() not in reserved), value), max_size=6)
chunks = st.lists(st.binary(min_size=1, max_size=40), max_size=5)
target = st.text([chr(c) for c in range(0x21, 0x7F) if chr(c) not in "#"], max_size=30).map(lambda t: b"/" + t.encode())


def chunked(parts: list[bytes], trailers: list[tuple[bytes, bytes]]) -> bytes:
    body = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts)
    return body + b"0\r\n" + b"".join(b"%b: %b\r\n" % field for field in trailers) + b"\r\n"


@st.composite
def messages(draw, start: bytes, host: bool) -> bytes:
    fields = list(draw(plain))
    parts = draw(chunks)
    if draw(st.booleans()):
        fields.append((draw(st.sampled_from([b"Transfer-Encoding", b"transfer-ENCODING"])), b"chunked"))
        body = chunked(parts, draw(plain))
    else:
        body = b"".join(parts)
        fields.append((b"Content-Length", b"%d" % len(body)))
    if host:
        fields.append((b"Host", b"x"))
    fields = draw(st.permutations(fields))
    return start + b"".join(b"%b: %b\r\n" % field for field in fields) + b"\r\n" + body


requests = st.tuples(st.sampled_from([b"GET", b"POST", b"PUT", b"DELETE"]), target).flatmap(
    lambda line: messages(b"%b %b HTTP/1.1\r\n" % line, True)
)
responses = st.sampled_from([b"200 OK", b"404 Not Found", b"500 "]).flatmap(
    lambda line: messages(b"HTTP/1.1 " + line + b"\r\n", False)
)


def by_h11(role, data: bytes) -> tuple[object, bytes, int]:
    """Head, payload and length of the first message, as h11 sees it."""
    connection = h11.Connection(role)
    if role is h11.CLIENT:
        connection.send(h11.Request(method="GET", target="/", headers=[("Host", "x")]))
        connection.send(h11.EndOfMessage())
    connection.receive_data(data)
    head, payload = connection.next_event(), b""
    while not isinstance(event := connection.next_event(), h11.EndOfMessage):
        payload += bytes(event.data)
    return head, payload, len(data) - len(connection.trailing_data[0])


def payload_of(body, data: bytes, end: int, step: int) -> int:
    """Feed in steps; the offset of the end."""
    while not body.done:
        piece = data[end : end + step]
        used = body.feed(piece, 0)
        assert used == len(piece) or body.done
        end += used
    return end


@settings(max_examples=150, deadline=None)
@given(requests, st.integers(1, 50), st.binary(max_size=10))
def test_requests_are_read_as_others_read_them(data: bytes, step: int, rest: bytes) -> None:
    theirs, payload, size = by_h11(h11.SERVER, data)
    end = head_end(data + rest)
    ours = parse_request_head(data[:end])
    assert (ours.method, ours.target, ours.host) == (theirs.method, theirs.target, b"x")
    lines = [line.partition(b":") for line in ours.lines]
    keys = {name.lower() for name, _, _ in lines}
    expected = [(name, value) for name, value in theirs.headers if name in keys]
    assert [(name.lower(), value.strip(b" \t")) for name, _, value in lines] == expected
    assert payload_of(request_body(ours), data + rest, end, step) == size == len(data)
    decoding = ChunkedBody(decode=True)
    if ours.length is None:
        payload_of(decoding, data, end, step)
        assert decoding.take() == payload


class Seen:
    def __init__(self) -> None:
        self.url, self.headers, self.body, self.complete = b"", [], b"", 0

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value))

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        self.complete += 1


@settings(max_examples=150, deadline=None)
@given(requests, st.integers(1, 50))
def test_requests_end_where_httptools_ends_them(data: bytes, step: int) -> None:
    seen = Seen()
    httptools.HttpRequestParser(seen).feed_data(data)
    assert seen.complete == 1
    head = parse_request_head(data[: head_end(data)])
    assert head.target == seen.url
    assert payload_of(request_body(head), data + b"XYZ", head_end(data), step) == len(data)


@settings(max_examples=150, deadline=None)
@given(responses, st.integers(1, 50))
def test_answers_are_read_as_others_read_them(data: bytes, step: int) -> None:
    theirs, _, size = by_h11(h11.CLIENT, data)
    end = head_end(data)
    ours = parse_response_head(data[:end])
    assert (ours.status, ours.reason) == (theirs.status_code, theirs.reason)
    assert payload_of(response_body(ours, b"GET"), data + b"next", end, step) == size == len(data)


tokens = st.sampled_from(
    [
        b"\r\n",
        b"\n",
        b"\r",
        b" ",
        b"\t",
        b":",
        b"\x00",
        b"5",
        b"Content-Length",
        b"Content-Length: 1\r\n",
        b"Host: y\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"chunked",
        b",",
        b"a",
        b"A: b\r\n",
        b" HTTP/1.1",
        b"\xe9",
        b"Connection: close\r\n",
    ]
)


@settings(max_examples=500, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 3), tokens), min_size=1, max_size=3))
def test_a_damaged_request_that_we_take_is_taken_the_same_by_h11(damages: list[tuple[int, int, bytes]]) -> None:
    data = b"POST /p HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nab"
    for position, removed, inserted in damages:
        data = data[:position] + inserted + data[position + removed :]
    try:
        head = read_request(data)
    except BadMessage:
        return
    if head is None or head.length is None or len(data) < head_end(data) + head.length:
        return
    if not head.target.isascii():  # h11 is pickier here; clients send such targets, and we pass them as they come
        return
    theirs, payload, _ = by_h11(h11.SERVER, data)
    assert (head.method, head.length) == (theirs.method, len(payload))
    assert theirs.target in (head.target, b"http://" + (head.host or b"") + head.target)


@pytest.mark.parametrize("coding", [b"chunked, identity", b"chunked, chunked", b"Chunked ,gzip"])
def test_an_answer_whose_chunks_some_would_look_for_is_refused(coding: bytes) -> None:
    with pytest.raises(BadMessage):
        parse_response_head(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: %b\r\n\r\n" % coding)


PLAIN = [
    (b"200 OK\r\nA: b", True),
    (b"200 OK\r\nContent-Length: 5\r\nA: b", True),
    (b"200 OK\r\ncontent-length:5", True),
    (b"404 Not Found\r\nTransfer-Encoding: Chunked\r\nX-Connection: close", True),
    (b"304 Not Modified\r\nContent-Length: 5", True),
    (b"200", False),
    (b"204 No Content\r\nContent-Length: 0", False),
    (b"103 Early Hints\r\nA: b", False),
    (b"200 OK\r\nConnection: keep-alive\r\nContent-Length: 5", False),
    (b"200 OK\r\nKeep-Alive: timeout=5", False),
    (b"200 OK\r\nTransfer-Encoding: gzip", False),
    (b"200 OK\r\nContent-Length: 5\r\nContent-Length: 5", False),
    (b"200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked", False),
]


@pytest.mark.parametrize(("said", "plain"), PLAIN)
def test_only_what_concerns_no_connection_is_passed_on_as_it_is(said: bytes, plain: bool) -> None:
    block = b"HTTP/1.1 " + said + b"\r\n\r\n"
    head = parse_response_head(block)
    assert (head.plain == block) == plain
    assert parse_response_head(block.replace(b"HTTP/1.1", b"HTTP/1.0")).plain is None


@pytest.mark.parametrize("bad", [b"A : b", b" folded", b"A: \x00", b"noname", b": b", b"Content-Length: 5\r\nA\x7f: b"])
def test_a_plain_head_is_read_as_strictly(bad: bytes) -> None:
    with pytest.raises(BadMessage):
        parse_response_head(b"HTTP/1.1 200 OK\r\n" + bad + b"\r\n\r\n")


@settings(max_examples=150, deadline=None)
@given(responses)
def test_a_plain_head_says_what_its_parts_say(data: bytes) -> None:
    block = data[: head_end(data)]
    head, parts = (
        parse_response_head(block),
        parse_response_head(block.replace(b"\r\n\r\n", b"\r\nKeep-Alive: 5\r\n\r\n")),
    )
    assert (parts.plain, parts.status, parts.length, parts.chunked) == (None, head.status, head.length, head.chunked)


def damaged(data: bytes, damages: list[tuple[int, int, bytes]]) -> bytes:
    for position, removed, inserted in damages:
        data = data[:position] + inserted + data[position + removed :]
    return data


@settings(max_examples=500, deadline=None)
@given(
    st.sampled_from([b"\r\nContent-Length: 2\r\nA: b", b"\r\nA: b\r\ncontent-length: 10", b"\r\nA: b"]),
    st.lists(st.tuples(st.integers(0, 60), st.integers(0, 3), tokens), max_size=2),
    st.integers(0, 10**18 - 1),
)
def test_what_is_known_of_a_request_is_what_is_read_in_it(
    fields: bytes, damages: list[tuple[int, int, bytes]], length: int
) -> None:
    first = b"POST /p HTTP/1.1\r\nHost: x" + fields + b"\r\n\r\n"
    known = KnownHead(first, parse_request_head(first))
    other = damaged(first.replace(b": 2\r", b": %d\r" % length), damages) + b"more\r\n\r\n"
    end, found = known.find(other)
    if not end:
        assert damages or not length
        return
    read = parse_request_head(other[: head_end(other)])
    assert (end, found or 0) == (head_end(other), read.length)
    ours = known.head if found in (None, known.head.length) else with_length(known.head, found)
    for head in (ours, read):
        for place, number in enumerate(head.special.get(b"content-length", ())):
            head.special[b"content-length"][place] = b"%d" % int(number)
    assert ours == read


@pytest.mark.parametrize(
    "number", [b"", b"+3", b"-1", b"3 ", b"3, 3", b"0x3", b"1_0", b"3" * 19, b"3\r\nA: b", b"\xb2"]
)
def test_no_other_number_makes_a_head_known(number: bytes) -> None:
    head = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %b\r\n\r\n"
    known = KnownHead(head % b"2", parse_request_head(head % b"2"))
    assert known.find(head % b"2" + b"ab") == (len(head % b"2"), 2)
    assert known.find(head % b"17") == (len(head % b"17"), 17)
    for cut in range(len(head)):
        assert known.find((head % b"17")[:cut]) == (0, None)
    assert known.find(head % number) == (0, None)


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 5000), st.lists(st.tuples(st.integers(-3, 8), st.integers(0, 3), tokens), max_size=2))
def test_a_plain_chunk_is_one_chunk(size: int, damages: list[tuple[int, int, bytes]]) -> None:
    chunk = b"%x\r\n%b\r\n" % (size, b"y" * size)
    if 0 < size < PLAIN_CHUNK_LIMIT - 10 and not damages:
        assert is_plain_chunk(chunk)
    chunk = damaged(chunk, damages)
    if not is_plain_chunk(chunk):
        return
    body = ChunkedBody(decode=True)
    assert body.feed(chunk, 0) == len(chunk)
    assert body.between
    assert not body.done
    assert len(body.take()) == int(chunk.partition(b"\r\n")[0], 16)


def test_only_where_a_chunk_may_begin_is_one_looked_for() -> None:
    for piece in (b"1", b"3\r", b"3\r\n", b"3\r\na", b"3\r\nabc", b"3\r\nabc\r", b"0\r\n", b"0\r\n\r\n"):
        body = ChunkedBody()
        assert body.between
        body.feed(piece, 0)
        assert not body.between or body.done
    body.feed(b"", 0)
    assert not is_plain_chunk(b"0\r\n\r\n")
