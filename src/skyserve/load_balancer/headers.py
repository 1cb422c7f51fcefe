"""Heads as the door writes them: hop-by-hop fields out, forwarding fields in; and the door's own answers.

Pure: values in, bytes out. It must not know sockets or replicas' states.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from http import HTTPStatus
from json import dumps

from skyserve.load_balancer.framing import RequestHead, ResponseHead

# What `Connection` may name and we do not drop: words of its own, and fields that no client may take away.
_NOT_DROPPED = frozenset(b"close keep-alive upgrade te host content-length transfer-encoding".split())

REMEMBERED = 255
"""Bytes of a host for which the forwarding fields are kept; longer ones are nobody's, and would fill the memory."""

_FORWARDING = frozenset((b"x-forwarded-for", b"x-forwarded-proto", b"x-forwarded-host", b"forwarded"))

_API = b"/v1/"
_SAYS_JSON = re.compile(rb"\r\n(?:accept|content-type):[^\r\n]*json", re.IGNORECASE)

_ERROR_TYPES = {429: "rate_limit_error", 502: "server_error", 503: "server_error", 504: "server_error"}


def request_parts(
    head: RequestHead, *, peer: bytes, scheme: bytes, request_id: bytes, address: str
) -> tuple[bytes, bytes, bytes]:
    """The head that goes to a replica at `address` for a client at IP address `peer`: up to the request's id, that, and
    the rest. The first part is the same for the next request that has this head."""
    start = head.written or _start(head, peer, scheme, address)
    special = head.special
    if b"x-request-id" in special:
        request_id = special[b"x-request-id"][0]
    if head.length is None:
        end = b"\r\nTransfer-Encoding: chunked\r\n\r\n"
    elif b"content-length" in special:
        end = b"\r\nContent-Length: %d\r\n\r\n" % head.length
    else:
        end = b"\r\n\r\n"
    if head.upgrade is not None:
        end = b"\r\nConnection: Upgrade\r\nUpgrade: %b%b" % (head.upgrade, end)
    return start, request_id, end


def _start(head: RequestHead, peer: bytes, scheme: bytes, address: str) -> bytes:
    special = head.special
    host = head.host if head.host is not None else address.encode()
    if len(host) <= REMEMBERED and _FORWARDING.isdisjoint(special):
        forwarding = _forwarding(peer, scheme, host)
    else:
        forwarding = _forwarding_on(special, peer, scheme, host)
    fields = _without(head.fields, head.named) if head.named else head.fields
    start = b"%b %b HTTP/1.1\r\nHost: %b%b%b\r\nX-Request-ID: " % (head.method, head.target, host, fields, forwarding)
    if head.host is not None:
        head.written = start
    return start


@lru_cache(1024)
def _forwarding(peer: bytes, scheme: bytes, host: bytes) -> bytes:
    return b"\r\nX-Forwarded-For: %b\r\nX-Forwarded-Proto: %b\r\nX-Forwarded-Host: %b\r\nForwarded: %b" % (
        peer,
        scheme,
        host,
        _element(peer, scheme, host),
    )


def _forwarding_on(special: dict[bytes, list[bytes]], peer: bytes, scheme: bytes, host: bytes) -> bytes:
    """The same for a request that has come through another proxy, which has written some of it."""
    return b"\r\nX-Forwarded-For: %b\r\nX-Forwarded-Proto: %b\r\nX-Forwarded-Host: %b\r\nForwarded: %b" % (
        b", ".join([*special.get(b"x-forwarded-for", ()), peer]),
        special[b"x-forwarded-proto"][0] if b"x-forwarded-proto" in special else scheme,
        special[b"x-forwarded-host"][0] if b"x-forwarded-host" in special else host,
        b", ".join([*special.get(b"forwarded", ()), _element(peer, scheme, host)]),
    )


def _element(peer: bytes, scheme: bytes, host: bytes) -> bytes:
    node = b'"[%b]"' % peer if b":" in peer else peer
    return b'for=%b;host="%b";proto=%b' % (node, host, scheme)


def response_bytes(head: ResponseHead, *, connection: bytes, coding: bytes | None) -> bytes:
    """The head that goes to the client. `connection` is our own word on it (empty: nothing to say); `coding` the
    transfer coding of the body that follows."""
    if head.plain is not None:
        return b"%bConnection: %b\r\n\r\n" % (head.plain[:-2], connection) if connection else head.plain
    fields = _without(head.fields, head.named) if head.named else head.fields
    parts = [b"HTTP/1.1 %d %b%b" % (head.status, head.reason, fields)]
    if head.length is not None and head.status >= 200 and head.status != 204:
        parts.append(b"Content-Length: %d" % head.length)
    if coding is not None:
        parts.append(b"Transfer-Encoding: %b" % coding)
    if head.status == 101 and head.upgrade is not None:
        parts.append(b"Upgrade: %b" % head.upgrade)
    if connection:
        parts.append(b"Connection: %b" % connection)
    parts.append(b"\r\n")
    return b"\r\n".join(parts)


def _without(fields: bytes, named: frozenset[bytes]) -> bytes:
    dropped = named - _NOT_DROPPED
    if not dropped or not fields:
        return fields
    lines = fields.split(b"\r\n")[1:]
    return b"".join(b"\r\n" + line for line in lines if line.partition(b":")[0].lower() not in dropped)


def speaks_json(target: bytes, fields: bytes) -> bool:
    """Whether a client reads JSON: it sends some, accepts some, or uses the API that speaks it. `fields` are the lines
    of its request's fields, each behind a line end."""
    return target.startswith(_API) or _SAYS_JSON.search(fields) is not None


def began_in_json(data: bytes) -> bool:
    """The same of a request that is not understood: by as much of its head as there is."""
    head = data.lstrip(b"\r\n").partition(b"\r\n\r\n")[0]
    return speaks_json(head.partition(b" ")[2], head)


@dataclass(frozen=True, slots=True)
class Failure:
    """An error of the door itself: a status, a word for programs, a sentence for people."""

    status: int
    code: str
    message: str
    retry_after_s: int | None = None


def error_bytes(failure: Failure, *, json: bool, connection: bytes, with_body: bool) -> bytes:
    """The error in the shape that clients of LLM servers parse, or as the sentence alone."""
    head = b"HTTP/1.1 %d %b\r\nContent-Type: %b\r\n" % (
        failure.status,
        HTTPStatus(failure.status).phrase.encode(),
        b"application/json" if json else b"text/plain; charset=utf-8",
    )
    body = _error_json(failure) if json else f"{failure.message}\n".encode()
    if failure.retry_after_s is not None:
        head += b"Retry-After: %d\r\n" % failure.retry_after_s
    return _own(head, connection, body, with_body=with_body)


def _error_json(failure: Failure) -> bytes:
    kind = _ERROR_TYPES.get(failure.status, "invalid_request_error")
    return dumps({"error": {"message": failure.message, "type": kind, "code": failure.code}}).encode()


def redirect_bytes(address: str, target: bytes, *, tls: bool, connection: bytes) -> bytes:
    """A 307 to the replica at `address`."""
    path = target if target.startswith(b"/") else b"/"
    head = b"HTTP/1.1 307 Temporary Redirect\r\nLocation: %b://%b%b\r\n" % (
        b"https" if tls else b"http",
        address.encode(),
        path,
    )
    return _own(head, connection, b"", with_body=False)


def _own(head: bytes, connection: bytes, body: bytes, *, with_body: bool) -> bytes:
    if connection:
        head += b"Connection: %b\r\n" % connection
    return b"%bContent-Length: %d\r\n\r\n%b" % (head, len(body), body if with_body else b"")
