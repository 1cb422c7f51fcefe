"""The replica behind the proxies of this benchmark: as little work for each request as Python can do.

    python origin.py PORTS      prints one line with the ports it listens on, and serves until it is killed

`POST` is answered with 1 KiB of JSON once its body is there. `GET /EVENTS/RATE` is answered with a stream of events of
200 bytes, chunked, each carrying the time it was sent; without events (`GET /0/0`) the stream stays silent and open.
`GET /BYTES` is answered with so many bytes.
"""

from __future__ import annotations

import asyncio
import sys
import time
from random import Random

import uvloop

BODY = b'{"text":"' + b"x" * 1012 + b'"}\n'
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(BODY), BODY)
STREAM = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-cache\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n"
)
EVENT = b"c8\r\ndata: %020d " + b"y" * 171 + b"\n\n\r\n"


class Connection(asyncio.Protocol):
    """Answers requests, one after the other."""

    def __init__(self, loop: asyncio.AbstractEventLoop, rng: Random) -> None:
        self._loop = loop
        self._rng = rng
        self._data = b""
        self._left = 0
        self._body_left = 0
        self._period_s = 0.0
        self._due_at = 0.0

    def connection_made(self, transport: asyncio.Transport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        if self._body_left:
            data = self._take_body(data)
        self._data += data
        while (end := self._data.find(b"\r\n\r\n") + 4) >= 4:
            head, rest = self._data[:end], self._data[end:]
            if head.startswith(b"GET"):
                self._data = rest
                self._answer_get(head.split(b" ", 2)[1].rstrip(b"?"))  # one proxy adds a question mark
                continue
            start = head.lower().index(b"content-length:") + 15
            self._body_left = int(head[start : head.index(b"\r\n", start)])
            self._data = self._take_body(rest)

    def _take_body(self, data: bytes) -> bytes:
        taken = min(self._body_left, len(data))
        self._body_left -= taken
        if not self._body_left:
            self._transport.write(ANSWER)
        return data[taken:]

    def _answer_get(self, target: bytes) -> None:
        if target == b"/0/0":
            self._transport.write(STREAM)
        elif target.count(b"/") == 2:
            self._begin_stream(target)
        elif target[1:].isdigit():
            size = int(target[1:])
            self._transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size + bytes(size))
        else:  # a question after the state of health, or for models
            self._transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")

    def _begin_stream(self, target: bytes) -> None:
        _, events, rate = target.split(b"/")
        self._left, self._period_s = int(events), 1.0 / float(rate)
        self._due_at = self._loop.time() + self._rng.random() * self._period_s
        self._transport.write(STREAM)
        self._loop.call_at(self._due_at, self._send_event)

    def _send_event(self) -> None:
        if self._transport.is_closing():
            return
        self._left -= 1
        self._transport.write(EVENT % time.monotonic_ns())
        if not self._left:
            self._transport.write(b"0\r\n\r\n")
            return
        self._due_at += self._period_s
        self._loop.call_at(self._due_at, self._send_event)


async def serve(count: int) -> None:
    """Listen on `count` ports."""
    loop, rng = asyncio.get_running_loop(), Random(1)
    servers = [await loop.create_server(lambda: Connection(loop, rng), "127.0.0.1", 0) for _ in range(count)]
    print(*(server.sockets[0].getsockname()[1] for server in servers), flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1])))
