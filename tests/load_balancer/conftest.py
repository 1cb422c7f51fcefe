"""A door between raw sockets: replicas that do exactly what a test says, and clients that see every byte."""

from __future__ import annotations

import asyncio
import socket
import ssl
import struct
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any

import pytest
import uvloop

from skyserve.load_balancer.door import Door
from skyserve.load_balancer.server import Server, open_listener
from skyserve.model.routing import Endpoint, RoutingTable
from skyserve.model.service import LoadBalancer, ReplicaTls, Tls

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
PATIENCE_S = 5.0
RECEIVED = 256 * 1024
"""Bytes that the kernel takes in for a replica that does not read; it would else take in more and more."""
MAY_REPEAT = LoadBalancer(retry="idempotent")
"""What the tests begin with; those of what is not repeated say so."""
SETTLING_TURNS = 40


@dataclass
class Request:
    """What a replica received."""

    head: bytes
    body: bytes = b""

    @property
    def line(self) -> bytes:
        return self.head.split(b"\r\n", 1)[0]

    def all(self, name: str) -> list[bytes]:
        lines = (line.partition(b":") for line in self.head.split(b"\r\n")[1:])
        return [value.strip() for key, _, value in lines if key.lower() == name.lower().encode()]

    def one(self, name: str) -> bytes | None:
        values = self.all(name)
        assert len(values) <= 1
        return values[0] if values else None


@dataclass
class Answer:
    """What a client received. `whole` is false when the answer broke off."""

    status: int
    head: bytes
    body: bytes = b""
    whole: bool = True
    all: Callable[[str], list[bytes]] = field(default=lambda name: [], repr=False)

    def one(self, name: str) -> bytes | None:
        values = self.all(name)
        assert len(values) <= 1
        return values[0] if values else None


class Wire:
    """One end of a connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def read_head(self) -> bytes:
        return await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), PATIENCE_S)

    async def read_chunked(self, *, raw: bool = False) -> bytes:
        payload, everything = b"", b""
        while True:
            line = await asyncio.wait_for(self.reader.readuntil(b"\r\n"), PATIENCE_S)
            size = int(line.split(b";")[0], 16)
            everything += line
            if size == 0:
                break
            chunk = await asyncio.wait_for(self.reader.readexactly(size + 2), PATIENCE_S)
            everything, payload = everything + chunk, payload + chunk[:-2]
        while line != b"\r\n":
            line = await asyncio.wait_for(self.reader.readuntil(b"\r\n"), PATIENCE_S)
            everything += line
        return everything if raw else payload

    async def answer(self, method: str = "GET") -> Answer:
        """The next whole answer; interim ones are passed over."""
        head = await self.read_head()
        request = Request(head)
        status = int(head.split(b" ", 2)[1])
        if 100 <= status < 200 and status != 101:
            return await self.answer(method)
        found = Answer(status, head, all=request.all)
        if method == "HEAD" or status in (101, 204, 304):
            return found
        try:
            if request.one("transfer-encoding"):
                found.body = await self.read_chunked()
            elif (length := request.one("content-length")) is not None:
                found.body = await asyncio.wait_for(self.reader.readexactly(int(length)), PATIENCE_S)
            else:
                found.body = await asyncio.wait_for(self.reader.read(), PATIENCE_S)
        except asyncio.IncompleteReadError as broken:
            found.body, found.whole = broken.partial, False
        except ConnectionResetError:
            found.whole = False
        return found

    async def ended(self) -> bool:
        """Whether the other side ends the connection, with nothing more to read."""
        with suppress(ConnectionError):
            return await asyncio.wait_for(self.reader.read(), PATIENCE_S) == b""
        return True

    def close(self) -> None:
        self.writer.close()

    def reset(self) -> None:
        """Vanish with a reset, whatever is still to be sent."""
        linger = struct.pack("ii", 1, 0)
        self.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.writer.transport.abort()


Script = Callable[["Wire", Request], Awaitable[None]]


async def answer_ok(wire: Wire, request: Request) -> None:
    wire.send(OK)


class Replica:
    """A server that runs a script for each request, and remembers what came."""

    def __init__(self, id_: int, script: Script, host: str) -> None:
        self.id = id_
        self.host = host
        self.script = script
        self.accepted = 0
        self.requests: list[Request] = []
        self.wires: list[Wire] = []
        self.left = 0
        self.port = 0
        self.tls: ReplicaTls | None = None
        self.context: ssl.SSLContext | None = None
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self, port: int = 0) -> None:
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        listener = socket.create_server((self.host, port or self.port), family=family)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVED)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # accepted sockets inherit both
        self._server = await asyncio.start_server(self._serve, sock=listener, limit=2**20, ssl=self.context)
        self.port = listener.getsockname()[1]

    @property
    def address(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    async def stop(self) -> None:
        """Refuse from now on, and cut what is open."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for task in list(self._tasks):
            task.cancel()
        for wire in self.wires:
            wire.writer.transport.abort()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        self._tasks.add(task)
        self.accepted += 1
        wire = Wire(reader, writer)
        self.wires.append(wire)
        try:
            while not writer.is_closing():
                request = Request(await reader.readuntil(b"\r\n\r\n"))
                if request.one("transfer-encoding"):
                    request.body = await wire.read_chunked(raw=True)
                elif not request.one("expect"):
                    request.body = await reader.readexactly(int(request.one("content-length") or 0))
                self.requests.append(request)
                await self.script(wire, request)
        except (asyncio.IncompleteReadError, ConnectionError):
            self.left += 1
        except asyncio.CancelledError:
            pass
        finally:
            writer.close()
            self._tasks.discard(task)


async def settled() -> None:
    """Let what has been sent arrive. Turns of the loop count, not only time: a machine that is busy does fewer."""
    for _ in range(SETTLING_TURNS):
        await asyncio.sleep(0.001)


class Rig:
    """A door, its replicas and its clients."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self._ahead_s = 0.0
        self.door = Door("boot", lambda: loop.time() + self._ahead_s, Random(1))
        self.server = Server(self.door)
        self.port = 0
        self.replicas: list[Replica] = []
        self._clients: list[Wire] = []
        self._number = 0
        self.door.settings = MAY_REPEAT
        self._settings = MAY_REPEAT

    def later(self, seconds: float) -> None:
        """Set the door's clock ahead, and have it look at it."""
        self._ahead_s += seconds
        self.server._sweep()

    async def start(self) -> None:
        listener = open_listener("127.0.0.1", 0)
        self.port = listener.getsockname()[1]
        await self.server.start(listener)

    async def stop(self) -> None:
        for wire in self._clients:
            wire.writer.transport.abort()
        if not self.server.stopped.done():
            self.server.stop(0.0)
        await self.server.stopped
        for replica in self.replicas:
            await replica.stop()
        await asyncio.sleep(0.01)

    async def replica(
        self,
        script: Script = answer_ok,
        *,
        listed: bool = True,
        host: str = "127.0.0.1",
        files: Tls | None = None,
        tls: ReplicaTls | None = None,
    ) -> Replica:
        """A replica; with `files` it speaks TLS, and the door does to it as `tls` says: trusting them, if not said."""
        replica = Replica(len(self.replicas) + 1, script, host)
        replica.tls = tls
        if files is not None:
            replica.context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            replica.context.load_cert_chain(files.certfile, files.keyfile)
            replica.tls = tls or ReplicaTls(ca_file=files.certfile)
        await replica.start()
        self.replicas.append(replica)
        if listed:
            self.list(*self.replicas)
        return replica

    def list(self, *replicas: Replica, draining: tuple[Replica, ...] = (), **fields: Any) -> None:
        """Push a table with these replicas; other settings stay unless they are given."""
        old = self.door.table
        settings = self._settings = fields.pop("settings", self._settings)
        rows = [Endpoint(replica.id, replica.address, tls=replica.tls) for replica in replicas]
        rows += [Endpoint(replica.id, replica.address, draining=True, tls=replica.tls) for replica in draining]
        self._number += 1
        policy = fields.pop("policy", old.policy)
        keys = fields.pop("api_keys", old.api_keys)
        closing = fields.pop("closing", False)
        table = RoutingTable(self._number, policy, settings, tuple(rows), closing, api_keys=keys)
        assert not fields
        assert self.door.apply(table)

    def settings(self, **fields: Any) -> None:
        self.list(*self.replicas, settings=replace(MAY_REPEAT, **fields))

    async def client(self, port: int = 0) -> Wire:
        wire = Wire(*await asyncio.open_connection("127.0.0.1", port or self.port, limit=2**20))
        self._clients.append(wire)
        return wire

    async def ask(self, request: bytes, method: str | None = None) -> Answer:
        """One request on a connection of its own."""
        wire = await self.client()
        wire.send(request)
        answer = await wire.answer(method or request.split(b" ", 1)[0].decode())
        wire.close()
        return answer

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait for something that must happen soon."""
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < deadline, "it did not happen"
            await asyncio.sleep(0.002)

    async def stalled(self) -> None:
        """Wait until the door stands still because its only client does not read."""
        still, deadline = 0, time.monotonic() + PATIENCE_S
        while still < SETTLING_TURNS:
            assert time.monotonic() < deadline, "it goes on"
            await asyncio.sleep(0.001)
            still = still + 1 if all(client.write_paused for client in self.server._clients) else 0

    def busy(self) -> int:
        return sum(self.door.pool.in_flight().values())


Run = Callable[[Callable[[Rig], Awaitable[None]]], None]


@pytest.fixture(params=["uvloop", "asyncio"])
def rig(request: pytest.FixtureRequest) -> Run:
    """Runs a scenario with a fresh rig, and sees that every count is back at zero in the end. On both loops."""
    return _runner(uvloop.new_event_loop if request.param == "uvloop" else asyncio.new_event_loop)


@pytest.fixture
def rig_once() -> Run:
    """The same, for what cannot depend on the loop."""
    return _runner(uvloop.new_event_loop)


def _runner(factory: Callable[[], asyncio.AbstractEventLoop]) -> Run:
    async def whole(scenario: Callable[[Rig], Awaitable[None]]) -> None:
        rig = Rig()
        await rig.start()
        try:
            await asyncio.wait_for(scenario(rig), 20.0)
            for wire in rig._clients:
                if not wire.writer.is_closing():
                    wire.reset()  # a farewell may be stuck for good behind data that the door does not read
            await rig.until(lambda: rig.busy() == 0 and len(rig.door.hold) == 0)
        finally:
            await rig.stop()

    def run(scenario: Callable[[Rig], Awaitable[None]]) -> None:
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(whole(scenario))

    return run
