"""HTTP/1.1 framing with exact offsets: where a head ends, what it says, where its body ends.

Pure: bytes in, values out. It knows the grammar and nothing of sockets, replicas or policies. It is strict on purpose:
a message that two readers could read in two ways is refused, so nothing can be smuggled past it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

HEAD_LIMIT = 64 * 1024
"""Bytes of a request or response head, its empty line included."""

URI_LIMIT = 32 * 1024
"""Bytes of a request target."""

TRAILER_LIMIT = 16 * 1024
"""Bytes of all trailer fields of one chunked body."""

CHUNK_LINE_LIMIT = 1024
"""Bytes of one chunk-size line with its extensions."""

PLAIN_CHUNK_LIMIT = 4096
"""Bytes of a chunk that is recognized at a glance. Events are nearly always shorter."""

_FIRST_LINE_LIMIT = URI_LIMIT + 64
_MOST_DIGITS = 18
"""Of a Content-Length."""
_LENGTH_LINE = b"\r\ncontent-length: "

_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]++"
_TEXT = rb"[\t\x20-\x7e\x80-\xff]*+"
_REQUEST_LINE = re.compile(rb"(" + _TOKEN + rb") ([\x21-\x7e\x80-\xff]++) HTTP/([0-9])\.([0-9])\r\n")
_STATUS_LINE = re.compile(rb"HTTP/1\.([01]) ([1-9][0-9][0-9])(?: (" + _TEXT + rb"))?\r\n")
_FIELD_LINES = re.compile(rb"(?:" + _TOKEN + rb":" + _TEXT + rb"\r\n)*+\r\n")
_FIELD = re.compile(rb"(" + _TOKEN + rb"):[ \t]*+(" + _TEXT + rb")\r\n")
_CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})(?:[ \t]*+;" + _TEXT + rb")?\r\n")
_PLAIN_CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})\r\n")
_BLANK_LINES = re.compile(rb"(?:\r\n)*+")
_BARE_LF = re.compile(rb"(?<!\r)\n")
_HOST = re.compile(rb"[A-Za-z0-9\-._~%!$&'()*+;=:\[\]]*")
_ABSOLUTE = re.compile(rb"https?://([^/?#]+)(.*)", re.IGNORECASE)
_TOKEN_START = re.compile(_TOKEN)


def _special_fields(names: str) -> re.Pattern[bytes]:
    """Finds those among the lines of a head that has been found well-formed, each from the line end before it."""
    return re.compile(rb"\r\n(?i:(" + names.replace(" ", "|").encode() + rb")):[ \t]*+([^\r]*)")


_REQUEST_SPECIAL = _special_fields(
    "host content-length transfer-encoding connection keep-alive proxy-connection proxy-authorization te upgrade"
    " x-forwarded-for x-forwarded-proto x-forwarded-host forwarded x-request-id"
)
_RESPONSE_SPECIAL = _special_fields(
    "content-length transfer-encoding connection keep-alive proxy-connection proxy-authenticate te upgrade"
)
_NOTHING: frozenset[bytes] = frozenset()
_NOT_IN_TRAILERS = frozenset(b"host content-length transfer-encoding connection".split())

_SIZE, _CHUNK_END, _TRAILER = range(3)
"""The lines of a chunked body: one with a size, the empty one after a chunk's data, those after the last chunk."""


def _plain_lines() -> list[bytes]:
    lines = [b"no chunk"] * PLAIN_CHUNK_LIMIT
    for size in range(1, PLAIN_CHUNK_LIMIT):
        line = b"%x\r\n" % size
        if len(line) + size + 2 < PLAIN_CHUNK_LIMIT:
            lines[len(line) + size + 2] = line
    return lines


_PLAIN_LINES = _plain_lines()
"""By the length of one whole chunk: the size line that it begins with, as all common servers write it."""


def is_plain_chunk(data: bytes) -> bool:
    """Whether `data`, which begins where a chunk may, is exactly one chunk. False says nothing."""
    size = len(data)
    return size < PLAIN_CHUNK_LIMIT and data[-2:] == b"\r\n" and data.startswith(_PLAIN_LINES[size])


class BadMessage(ValueError):
    """A message that is not clear HTTP. `status` is what a client that sent it is answered."""

    def __init__(self, text: str, status: int = 400) -> None:
        super().__init__(text)
        self.status = status


@dataclass(slots=True)
class RequestHead:
    """A request head, understood.

    `fields` are the lines of the end-to-end fields as they came, each behind a line end; `special` holds, by lower-case
    name, the values of those that the door itself has to read or write. `length` is None when the body is chunked.
    `target` is in origin form (or `*`). It is not to be changed: the next request on its connection may have it again.
    `written` is what `headers.request_parts` keeps here for that one; as a head does, it belongs to one connection.
    """

    method: bytes
    target: bytes
    minor: int
    host: bytes | None
    fields: bytes
    special: dict[bytes, list[bytes]]
    named: frozenset[bytes]
    length: int | None
    keep_alive: bool
    upgrade: bytes | None
    written: bytes | None = None

    @property
    def lines(self) -> list[bytes]:
        """The end-to-end fields one by one."""
        return self.fields.split(b"\r\n")[1:]


@dataclass(slots=True)
class ResponseHead:
    """A response head, understood. `fields` are as in RequestHead. `length` is None when unknown; then the body is
    `chunked` or ends with the connection.

    `plain` is the whole head as it came, when nothing in it belongs to this connection alone: it can be passed on as it
    is. `fields` are empty then.
    """

    status: int
    reason: bytes
    minor: int
    fields: bytes
    named: frozenset[bytes]
    length: int | None
    chunked: bool
    coding: bytes | None
    keep_alive: bool
    upgrade: bytes | None
    plain: bytes | None = None


H = TypeVar("H", RequestHead, ResponseHead)


class KnownHead(Generic[H]):
    """A head that has been understood, to tell another one that differs in nothing but the number in Content-Length."""

    __slots__ = ("_after", "_before", "head")

    def __init__(self, block: bytes, head: H) -> None:
        self.head: H = head
        self._before, self._after = block, b""
        line = -1 if head.length is None else block.lower().find(_LENGTH_LINE)
        start = line + len(_LENGTH_LINE)
        end = block.find(b"\r", start)
        if line >= 0 and block[start:end].isdigit():
            self._before, self._after = block[:start], block[end:]

    def find(self, data: bytes) -> tuple[int, int | None]:
        """Where the same head ends that `data` begins with, or 0; and its length."""
        before, after = self._before, self._after
        start = len(before)
        if data[:start] == before:
            if not after:
                return start, self.head.length
            line_end = data.find(b"\r", start, start + _MOST_DIGITS + 1)
            number, end = data[start:line_end], line_end + len(after)
            if number.isdigit() and data[line_end:end] == after:
                return end, int(number)
        return 0, None


def head_end(data: bytes, scanned: int = 0, start: int = 0) -> int:
    """The offset just past the empty line that ends the head which begins at `start`, or -1 while it has not come.

    `scanned` says how far an earlier call has looked. Raises BadMessage on a bare line feed or a head too long.
    """
    found = data.find(b"\r\n\r\n", max(start, scanned - 3))
    if found >= 0 and found + 4 - start <= HEAD_LIMIT:
        return found + 4
    if found < 0 and _BARE_LF.search(data, max(start, scanned - 1)):
        raise BadMessage("a line ends without a carriage return")
    if found >= 0 or len(data) - start > HEAD_LIMIT:
        raise _too_long(data[start:])
    return -1


def _too_long(data: bytes) -> BadMessage:
    if b"\r\n" in data[:_FIRST_LINE_LIMIT]:
        return BadMessage("the head is too long", 431)
    return BadMessage("the request target is too long", 414)


def without_blank_lines(data: bytes) -> bytes:
    """What follows the empty lines that some clients send after a body."""
    blank = _BLANK_LINES.match(data)
    return data[blank.end() :] if blank else data


def check_request_start(data: bytes) -> None:
    """Refuse early what can never become a request head. Raises BadMessage."""
    if not _TOKEN_START.match(data):
        raise BadMessage("this is not HTTP")
    if len(data) > _FIRST_LINE_LIMIT and b"\r\n" not in data[:_FIRST_LINE_LIMIT]:
        raise _too_long(data)


def parse_request_head(block: bytes) -> RequestHead:
    """Read a whole request head, empty line included. Raises BadMessage."""
    line = _REQUEST_LINE.match(block)
    if line is None:
        raise BadMessage("the request line is malformed")
    method, target, major, minor_digit = line.groups()
    if major != b"1" or minor_digit not in b"01":
        raise BadMessage("only HTTP/1.0 and HTTP/1.1 are spoken here", 505)
    if len(target) > URI_LIMIT:
        raise BadMessage("the request target is too long", 414)
    if method == b"CONNECT":
        raise BadMessage("CONNECT is not offered", 405)
    minor = 1 if minor_digit == b"1" else 0
    fields, special = _split_fields(block, line.end(), _REQUEST_SPECIAL)
    host = _host(special, minor)
    if not target.startswith(b"/"):
        target, host = _other_target(method, target, host)
    named = _named(special) if b"connection" in special else _NOTHING
    return RequestHead(
        method,
        target,
        minor,
        host,
        fields,
        special,
        named,
        _request_length(special, minor),
        _keeps_alive(named, minor),
        _upgrade(special, named, minor) if b"upgrade" in special else None,
    )


def with_length(head: RequestHead, length: int) -> RequestHead:
    """The same head, but for the number in its Content-Length."""
    return RequestHead(
        head.method,
        head.target,
        head.minor,
        head.host,
        head.fields,
        {**head.special, b"content-length": [b"%d" % length]},
        head.named,
        length,
        head.keep_alive,
        head.upgrade,
        head.written,
    )


def parse_response_head(block: bytes) -> ResponseHead:
    """Read a whole response head, empty line included. Raises BadMessage."""
    line = _STATUS_LINE.match(block)
    if line is None:
        raise BadMessage("the status line is malformed", 502)
    minor = 1 if line[1] == b"1" else 0
    plain = _plain_response(block, line) if minor else None
    return plain or _any_response(block, line, minor)


def _plain_response(block: bytes, line: re.Match[bytes]) -> ResponseHead | None:
    """The head when it says nothing but how long its body is, as nearly all do; None for any other."""
    start, status, reason = line.end(), int(line[2]), line[3]
    found = _RESPONSE_SPECIAL.findall(block, start - 2, len(block) - 4)
    if len(found) > 1 or reason is None or status < 200 or status == 204:
        return None
    length, chunked = None, False
    if found:
        name, value = found[0]
        if len(name) == 14 and value.isdigit() and len(value) <= _MOST_DIGITS:  # it is Content-Length
            length = int(value)
        elif len(name) == 17 and value.lower() == b"chunked":  # it is Transfer-Encoding
            chunked = True
        else:
            return None
    if not _FIELD_LINES.fullmatch(block, start):
        raise BadMessage("a header field is malformed")
    coding = b"chunked" if chunked else None
    return ResponseHead(status, reason, 1, b"", _NOTHING, length, chunked, coding, True, None, block)


def _any_response(block: bytes, line: re.Match[bytes], minor: int) -> ResponseHead:
    fields, special = _split_fields(block, line.end(), _RESPONSE_SPECIAL)
    named = _named(special) if b"connection" in special else _NOTHING
    coding = b", ".join(special[b"transfer-encoding"]) if b"transfer-encoding" in special else None
    lengths = special.get(b"content-length")
    if lengths is not None and len(set(lengths)) > 1:
        raise BadMessage("the response has two lengths", 502)
    chunked = coding is not None and _ends_chunked(coding)
    # A length beside a transfer coding means nothing, and such a sender is not trusted with a second request.
    confused = coding is not None and (bool(lengths) or minor == 0)
    return ResponseHead(
        int(line[2]),
        line[3] or b"",
        minor,
        fields,
        named,
        _length(lengths[0], 502) if lengths and coding is None else None,
        chunked,
        coding,
        _keeps_alive(named, minor) and not confused,
        b", ".join(special[b"upgrade"]) if b"upgrade" in special else None,
    )


def _ends_chunked(coding: bytes) -> bool:
    codings = [one.strip(b" \t") for one in coding.lower().split(b",")]
    if b"chunked" in codings[:-1]:  # some would look for chunks in this, and some not
        raise BadMessage("the Transfer-Encoding is not understood", 502)
    return codings[-1] == b"chunked"


def _split_fields(block: bytes, start: int, pattern: re.Pattern[bytes]) -> tuple[bytes, dict[bytes, list[bytes]]]:
    if not _FIELD_LINES.fullmatch(block, start):
        raise BadMessage("a header field is malformed")
    special: dict[bytes, list[bytes]] = {}
    kept: list[bytes] = []
    position, end = start - 2, len(block) - 4
    for found in pattern.finditer(block, position, end):
        name, value = found[1].lower(), found[2].rstrip(b" \t")
        if name in special:
            special[name].append(value)
        else:
            special[name] = [value]
        first, last = found.span()
        if first > position:
            kept.append(block[position:first])
        position = last
    kept.append(block[position:end])
    return b"".join(kept), special


def _host(special: dict[bytes, list[bytes]], minor: int) -> bytes | None:
    hosts = special.get(b"host")
    if hosts is None:
        if minor:
            raise BadMessage("the Host field is missing")
        return None
    if len(hosts) > 1 or not _HOST.fullmatch(hosts[0]):
        raise BadMessage("the Host field is malformed or repeated")
    return hosts[0]


def _other_target(method: bytes, target: bytes, host: bytes | None) -> tuple[bytes, bytes | None]:
    if target == b"*" and method == b"OPTIONS":
        return target, host
    absolute = _ABSOLUTE.fullmatch(target)
    if absolute is None or not _HOST.fullmatch(absolute[1]):
        raise BadMessage("the request target is malformed")
    path = absolute[2]
    return (path if path.startswith(b"/") else b"/" + path), absolute[1]


def _named(special: dict[bytes, list[bytes]]) -> frozenset[bytes]:
    tokens = b",".join(special[b"connection"]).lower().split(b",")
    return frozenset(token.strip(b" \t") for token in tokens)


def _keeps_alive(named: frozenset[bytes], minor: int) -> bool:
    return b"close" not in named and (minor == 1 or b"keep-alive" in named)


def _upgrade(special: dict[bytes, list[bytes]], named: frozenset[bytes], minor: int) -> bytes | None:
    if minor == 0 or b"upgrade" not in named:
        return None
    value = b", ".join(special[b"upgrade"])
    # A tunnel of HTTP/2 would carry many requests past the counting of one.
    return None if b"h2c" in value.lower() else value


def _length(value: bytes, status: int) -> int:
    if not value.isdigit() or len(value) > _MOST_DIGITS:
        raise BadMessage("the Content-Length is not a number", status)
    return int(value)


def _request_length(special: dict[bytes, list[bytes]], minor: int) -> int | None:
    lengths = special.get(b"content-length")
    codings = special.get(b"transfer-encoding")
    if codings is None:
        if lengths is None:
            return 0
        if len(lengths) > 1:
            raise BadMessage("the Content-Length is repeated")
        return _length(lengths[0], 400)
    if lengths is not None:
        raise BadMessage("both Content-Length and Transfer-Encoding are given")
    if minor == 0 or len(codings) > 1 or codings[0].lower() != b"chunked":
        raise BadMessage("the Transfer-Encoding is not understood")
    return None


class Body(Protocol):
    """Finds the end of one body in the bytes that pass."""

    done: bool

    def feed(self, data: bytes, start: int) -> int:
        """Look at `data` from `start` on; the offset up to which it belongs to this body. Raises BadMessage."""
        ...


class LengthBody:
    """A body of a known number of bytes."""

    __slots__ = ("_left", "done")

    def __init__(self, length: int) -> None:
        self._left = length
        self.done = length == 0

    def feed(self, data: bytes, start: int) -> int:
        """See Body."""
        available = len(data) - start
        if available < self._left:
            self._left -= available
            return len(data)
        end = start + self._left
        self._left = 0
        self.done = True
        return end


class UntilCloseBody:
    """A body that ends where the connection does; `done` is never true."""

    __slots__ = ("done",)

    def __init__(self) -> None:
        self.done = False

    def feed(self, data: bytes, start: int) -> int:
        """See Body."""
        return len(data)


class ChunkedBody:
    """A chunked body with its trailers. With `decode`, the payload is collected for `take`.

    `between`: the next byte is the first one of a chunk. What is one plain chunk then changes nothing here, and whoever
    knows it as such (see `is_plain_chunk`) need not feed it.
    """

    __slots__ = ("_expected", "_left", "_line", "_payload", "_trailer_size", "between", "done")

    def __init__(self, *, decode: bool = False) -> None:
        self._left = 0
        self._line = b""
        self._expected = _SIZE
        self._trailer_size = 0
        self._payload: list[bytes] | None = [] if decode else None
        self.between = True
        self.done = False

    def feed(self, data: bytes, start: int) -> int:
        """See Body."""
        position, size = start, len(data)
        while position < size and not self.done:
            if self._left:
                end = min(position + self._left, size)
                if self._payload is not None:
                    self._payload.append(data[position:end])
                self._left -= end - position
                position = end
            else:
                position = self._whole_chunk(data, position) or self._part_of_line(data, position)
        self.between = self._expected == _SIZE and not self._left and not self._line
        return position

    def take(self) -> bytes:
        """The payload since the last call."""
        payload, self._payload = self._payload, []
        return b"".join(payload or ())

    def _whole_chunk(self, data: bytes, position: int) -> int:
        """The end of the chunk that begins here, or 0 when it is not plain and whole. Events nearly always are."""
        if self._expected != _SIZE or self._line:
            return 0
        plain = _PLAIN_CHUNK_SIZE.match(data, position)
        if plain is None:
            return 0
        begin = plain.end()
        end = begin + int(plain[1], 16)
        if end == begin or data[end : end + 2] != b"\r\n":
            return 0
        if self._payload is not None:
            self._payload.append(data[begin:end])
        return end + 2

    def _part_of_line(self, data: bytes, position: int) -> int:
        end = data.find(b"\n", position) + 1
        if end:
            line, self._line = self._line + data[position:end], b""
            self._read_line(line)
            return end
        self._line += data[position:]
        limit = TRAILER_LIMIT if self._expected == _TRAILER else CHUNK_LINE_LIMIT
        if len(self._line) > limit:
            raise BadMessage("a line of the chunked body is too long")
        return len(data)

    def _read_line(self, line: bytes) -> None:
        if self._expected == _SIZE:
            size = _CHUNK_SIZE.fullmatch(line)
            if size is None or len(line) > CHUNK_LINE_LIMIT:
                raise BadMessage("a chunk size is malformed")
            self._left = int(size[1], 16)
            self._expected = _CHUNK_END if self._left else _TRAILER
        elif self._expected == _CHUNK_END:
            if line != b"\r\n":
                raise BadMessage("a chunk is longer than its size")
            self._expected = _SIZE
        else:
            self._read_trailer(line)

    def _read_trailer(self, line: bytes) -> None:
        if line == b"\r\n":
            self.done = True
            return
        self._trailer_size += len(line)
        field = _FIELD.fullmatch(line)
        if field is None or self._trailer_size > TRAILER_LIMIT or field[1].lower() in _NOT_IN_TRAILERS:
            raise BadMessage("a trailer field is malformed")


NO_BODY: Body = LengthBody(0)
"""Where there is nothing to find any more; feeding it changes nothing."""


def request_body(head: RequestHead) -> Body:
    """The reader of a request's body."""
    return ChunkedBody() if head.length is None else LengthBody(head.length)


def response_body(head: ResponseHead, method: bytes, *, decode: bool = False) -> Body:
    """The reader of the body of the answer to `method`. `decode` collects the payload of a chunked one."""
    if method == b"HEAD" or head.status in (204, 304):
        return LengthBody(0)
    if head.chunked:
        return ChunkedBody(decode=decode)
    return UntilCloseBody() if head.length is None else LengthBody(head.length)
