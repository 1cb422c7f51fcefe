"""The replica behind the proxies of this benchmark: as little work for each request as Python can do.

    python origin.py PORTS      prints one line with the ports it listens on, and serves until it is killed

`POST` is answered, once its body is there, as the body asks (see `asks.py`): with 1 KiB of JSON, with so many bytes, or
with a stream of events of 200 bytes, chunked, each carrying the time it was sent. `GET /EVENTS/RATE` is a short way to
ask for a stream.
"""

from __future__ import annotations

import asyncio
import sys
import time
from random import Random

import uvloop
from asks import USER

BODY = b'{"text":"' + b"x" * 1012 + b'"}\n'
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(BODY), BODY)
STREAM = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-cache\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n"
)
MODEL_LIST = b'{"object":"list","data":[{"id":"m","object":"model","owned_by":"x","created":1}]}'
JSON = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
MODELS, HEALTH = JSON % (len(MODEL_LIST), MODEL_LIST), JSON % (2, b"{}")
LAST_CHUNK = b"0\r\n\r\n"
READ = 4096
"""Bytes of a body that are looked at for what to do: a proxy may write it anew."""
EVENT = b"c8\r\ndata: %020d " + b"y" * 171 + b"\n\n\r\n"


class Connection(asyncio.Protocol):
    """Answers requests, one after the other."""

    def __init__(self, loop: asyncio.AbstractEventLoop, rng: Random) -> None:
        self._loop = loop
        self._rng = rng
        self._data = b""
        self._left = 0
        self._body_left = 0
        self._body = b""
        self._chunked = False
        self._tail = b""
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
            self._body = b""
            start = head.lower().find(b"content-length:") + 15
            self._chunked = start < 15
            self._body_left = -1 if self._chunked else int(head[start : head.index(b"\r\n", start)])
            self._data = self._take_body(rest)

    def _take_body(self, data: bytes) -> bytes:
        if self._chunked:  # nothing follows before the answer, and no prompt here ends like a body
            taken, self._tail = len(data), (self._tail + data)[-len(LAST_CHUNK) :]
            self._body_left = 0 if self._tail == LAST_CHUNK else -1
        else:
            taken = min(self._body_left, len(data))
            self._body_left -= taken
        if len(self._body) < READ:
            self._body += data[:taken]
        if not self._body_left:
            self._answer_post()
        return data[taken:]

    def _answer_post(self) -> None:
        asked = USER.search(self._body)
        if asked is None:
            self._transport.write(ANSWER)
        elif asked[1] == b"bytes":
            self._send_bytes(int(asked[2]))
        else:
            self._begin_stream(int(asked[2]), float(asked[3]))

    def _answer_get(self, target: bytes) -> None:
        parts = target.split(b"/")[1:]
        if len(parts) == 2 and all(part.isdigit() for part in parts):
            self._begin_stream(int(parts[0]), float(parts[1]))
        else:  # a question after the state of health, or for models
            self._transport.write(MODELS if b"models" in target else HEALTH)

    def _send_bytes(self, size: int) -> None:
        head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
        self._transport.write(head % size + bytes(size))

    def _begin_stream(self, events: int, rate: float) -> None:
        if not events:
            self._transport.write(STREAM)
            return
        self._left, self._period_s = events, 1.0 / rate
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
