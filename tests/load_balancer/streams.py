"""The two ends of many silent streams, each a program of its own: a process has only so many descriptors.

python streams.py replica           prints its port; a line on its input sends an event to every stream
python streams.py clients PORT N    opens N streams, prints how many have begun; a line: how many events have come
"""

from __future__ import annotations

import asyncio
import resource
import sys

import uvloop

REQUEST = b"GET /v1/stream HTTP/1.1\r\nHost: x\r\nAccept: text/event-stream\r\n\r\n"
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
EVENT = b"data: x\n\n"
CHUNK = b"%x\r\n%b\r\n" % (len(EVENT), EVENT)
AT_ONCE = 200


class Stream(asyncio.Protocol):
    """A replica's end: begins to answer, and then says nothing."""

    def __init__(self, streams: set[asyncio.Transport]) -> None:
        self._streams = streams

    def connection_made(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._streams.add(transport)

    def data_received(self, data: bytes) -> None:
        if data.endswith(b"\r\n\r\n"):
            self._transport.write(HEAD)

    def connection_lost(self, exc: Exception | None) -> None:
        self._streams.discard(self._transport)


class Listener(asyncio.Protocol):
    """A client's end."""

    def __init__(self) -> None:
        self.begun = asyncio.get_running_loop().create_future()
        self.heard = b""

    def connection_made(self, transport: asyncio.Transport) -> None:
        transport.write(REQUEST)

    def data_received(self, data: bytes) -> None:
        self.heard += data
        if not self.begun.done() and b"\r\n\r\n" in self.heard:
            self.begun.set_result(self.heard == HEAD)
            self.heard = b""

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.begun.done():
            self.begun.set_result(False)


async def replica() -> None:
    """Serve until the input ends."""
    loop, streams = asyncio.get_running_loop(), set()
    server = await loop.create_server(lambda: Stream(streams), "127.0.0.1", 0, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    while await loop.run_in_executor(None, sys.stdin.readline):
        for stream in streams:
            stream.write(CHUNK)


async def clients(port: int, count: int) -> None:
    """Hold the streams until the input ends."""
    loop, made = asyncio.get_running_loop(), []
    for start in range(0, count, AT_ONCE):
        opening = [loop.create_connection(Listener, "127.0.0.1", port) for _ in range(min(AT_ONCE, count - start))]
        opened = [listener for _, listener in await asyncio.gather(*opening)]
        await asyncio.gather(*(listener.begun for listener in opened))
        made += opened
    print(sum(listener.begun.result() for listener in made), flush=True)
    while await loop.run_in_executor(None, sys.stdin.readline):
        print(sum(listener.heard == CHUNK for listener in made), flush=True)


if __name__ == "__main__":
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    _, role, *rest = sys.argv
    uvloop.run(replica() if role == "replica" else clients(int(rest[0]), int(rest[1])))
