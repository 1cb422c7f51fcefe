"""The replica behind the proxies of this benchmark: as little work for each request as Python can do.

    python origin.py PORTS      prints one line with the ports it listens on, and serves until it is killed

`POST` is answered with 1 KiB of JSON. `GET /EVENTS/RATE` is answered with a stream of events of 200 bytes, chunked,
each carrying the time it was sent.
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
    """Answers requests whose heads and bodies come whole, as the generator and the proxies here send them."""

    def __init__(self, loop: asyncio.AbstractEventLoop, rng: Random) -> None:
        self._loop = loop
        self._rng = rng
        self._data = b""
        self._left = 0
        self._period_s = 0.0
        self._due_at = 0.0

    def connection_made(self, transport: asyncio.Transport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._data += data
        while (end := self._data.find(b"\r\n\r\n")) >= 0:
            if self._data.startswith(b"GET"):
                self._begin_stream(self._data[: self._data.index(b"\r\n")].split(b" ")[1])
                self._data = self._data[end + 4 :]
                continue
            start = self._data.lower().index(b"content-length:") + 15
            size = end + 4 + int(self._data[start : self._data.index(b"\r\n", start)])
            if len(self._data) < size:
                return
            self._data = self._data[size:]
            self._transport.write(ANSWER)

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
