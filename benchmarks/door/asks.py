"""What the loads ask for: requests to an API for completions, which is all that routers for language models pass on.

What the origin shall do stands in the field `user`: `stream/EVENTS/RATE` (events of 200 bytes, so many a second;
without events the stream stays silent and open), `bytes/N`, or anything else for 1 KiB.
"""

from __future__ import annotations

import re

KEY = b"0123456789abcdef0123456789abcdef"
"""The API key that each request shows; the door checks it, the others pass it on."""
LARGE = 8 * 1024 * 1024
USER = re.compile(rb'"user": ?"([a-z]+)/([0-9]+)(?:/([0-9]+))?"')
_HEAD = (
    b"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1:8000\r\nAccept: %b\r\nUser-Agent: benchmark/1\r\n"
    b"Authorization: Bearer " + KEY + b"\r\nContent-Type: application/json\r\n"
    b"Content-Length: %d\r\n\r\n%b"
)
_BODY = b'{"model":"m","user":"%b","stream":%b,"prompt":"%b"}'


def completion(user: bytes, size: int = 0, *, stream: bool = False) -> bytes:
    """A request whose prompt makes its body `size` bytes long, or nearly empty."""
    words = b"true" if stream else b"false"
    prompt = b"x" * (size - len(_BODY % (user, words, b"")))
    body = _BODY % (user, words, prompt)
    return _HEAD % (b"text/event-stream" if stream else b"application/json", len(body), body)


POST = completion(b"one", 1024)
UPLOAD = completion(b"one", LARGE)
DOWNLOAD = completion(b"bytes/%d" % LARGE)


def events(count: int, rate: float) -> bytes:
    """The request for a stream."""
    return completion(b"stream/%d/%d" % (count, rate), stream=True)
