"""The load generator of this benchmark.

    python load.py PORT post CONNECTIONS SECONDS
    python load.py PORT mixed CONNECTIONS SECONDS              the same, each request of another size than the last
    python load.py PORT stream STREAMS SECONDS RATE
    python load.py PORT upload|download CONNECTIONS SECONDS    8 MiB bodies
    python load.py PORT idle STREAMS 0                         holds silent streams until its input ends

Prints one JSON line: `done` (requests or events), `bad` (answers or streams that are not as they should be), and
`p50_us` and `p99_us` of the request latencies or of the events' delays from origin to here.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import statistics
import sys
import time
from collections.abc import Sequence

import asks
import uvloop
from asks import DOWNLOAD, LARGE, POST, UPLOAD

SAME = [POST]
MIXED = [asks.completion(b"one", 1024 + 37 * n % 101 - 50) for n in range(101)]
ANSWER_SIZE = 1024
EVENT_MARK = b"data: "
SILENCE = asks.events(0, 0)


class Poster(asyncio.Protocol):
    """Sends the next request when the answer to the last one is whole."""

    def __init__(self, until_ns: int, requests: Sequence[bytes] = SAME, answer_size: int = ANSWER_SIZE) -> None:
        self._until_ns = until_ns
        self._requests = itertools.cycle(requests)
        self._answer_size = answer_size
        self.latencies_ns: list[int] = []
        self.bad = 0
        self.done = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._send()

    def _send(self) -> None:
        self._data = b""
        self._left = -1
        self._sent_ns = time.monotonic_ns()
        self._transport.write(next(self._requests))

    def data_received(self, data: bytes) -> None:
        if self._left < 0:
            self._data += data
            head = self._data.find(b"\r\n\r\n")
            if head < 0:
                return
            self._left, data = self._answer_size, self._data[head + 4 :]
        self._left -= len(data)
        if self._left > 0:
            return
        now = time.monotonic_ns()
        self.latencies_ns.append(now - self._sent_ns)
        self.bad += not self._data.startswith(b"HTTP/1.1 200") or self._left < 0
        if now < self._until_ns:
            self._send()
        else:
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self.bad += time.monotonic_ns() < self._until_ns
        self.done.set_result(None)


class Listener(asyncio.Protocol):
    """Reads one stream of events and how long each was on its way."""

    def __init__(self, request: bytes, events: int) -> None:
        self._request = request
        self._events = events
        self._rest = b""
        self.latencies_ns: list[int] = []
        self.bad = 0
        self.done = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        now = time.monotonic_ns()
        data = self._rest + data
        position = data.find(EVENT_MARK)
        while position >= 0 and position + 26 <= len(data):
            self.latencies_ns.append(now - int(data[position + 6 : position + 26]))
            position = data.find(EVENT_MARK, position + 26)
        self._rest = data[-30:] if position < 0 else data[position:]
        if position < 0 and EVENT_MARK in self._rest:
            self._rest = self._rest[self._rest.index(EVENT_MARK) + 6 :]
        if data.endswith(b"\r\n0\r\n\r\n"):
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self.bad = int(len(self.latencies_ns) != self._events)
        self.done.set_result(None)


class Holder(asyncio.Protocol):
    """Has a stream that says nothing."""

    def __init__(self) -> None:
        self.begun = asyncio.get_running_loop().create_future()
        self._data = b""

    def connection_made(self, transport: asyncio.Transport) -> None:
        transport.write(SILENCE)

    def data_received(self, data: bytes) -> None:
        self._data += data
        if b"\r\n\r\n" in self._data and not self.begun.done():
            self.begun.set_result(self._data.startswith(b"HTTP/1.1 200"))

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.begun.done():
            self.begun.set_result(False)


async def hold(port: int, count: int) -> None:
    """Hold silent streams until the input ends."""
    loop = asyncio.get_running_loop()
    made: list[Holder] = []
    for _ in range(count):
        _, holder = await loop.create_connection(Holder, "127.0.0.1", port)
        made.append(holder)
    bad = sum(not good for good in await asyncio.gather(*(one.begun for one in made)))
    print(json.dumps({"done": count, "bad": bad, "p50_us": 0, "p99_us": 0}), flush=True)
    await loop.run_in_executor(None, sys.stdin.read)


async def run(port: int, kind: str, count: int, seconds: float, rate: float) -> None:
    """One pass."""
    loop = asyncio.get_running_loop()
    events = int(seconds * rate)
    request = asks.events(events, rate)
    until_ns = time.monotonic_ns() + int(seconds * 1e9)
    made: list[Poster | Listener] = []
    for _ in range(count):
        make = {
            "post": lambda: Poster(until_ns),
            "mixed": lambda: Poster(until_ns, MIXED),
            "upload": lambda: Poster(until_ns, [UPLOAD]),
            "download": lambda: Poster(until_ns, [DOWNLOAD], LARGE),
            "stream": lambda: Listener(request, events),
        }[kind]
        _, protocol = await loop.create_connection(make, "127.0.0.1", port)
        made.append(protocol)
    _, unfinished = await asyncio.wait([one.done for one in made], timeout=seconds * 3 + 10)
    latencies = sorted(latency for one in made for latency in one.latencies_ns) or [0]
    found = {
        "done": len(latencies),
        "bad": sum(one.bad for one in made) + len(unfinished),
        "p50_us": statistics.median(latencies) / 1e3,
        "p99_us": latencies[int(len(latencies) * 0.99)] / 1e3,
    }
    print(json.dumps(found))


if __name__ == "__main__":
    _, port, kind, count, seconds, *rest = sys.argv
    if kind == "idle":
        uvloop.run(hold(int(port), int(count)))
        sys.exit()
    uvloop.run(run(int(port), kind, int(count), float(seconds), float(rest[0]) if rest else 0.0))
