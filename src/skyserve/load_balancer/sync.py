"""The door's back entrance: a Unix socket on which the controller pushes routing tables and hears of the load.

It knows the words of `wire.py` and the file the last table is kept in. It must not know HTTP.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path
from typing import cast

from skyserve.load_balancer import metrics, wire
from skyserve.load_balancer.crew import Crew
from skyserve.load_balancer.door import Door
from skyserve.load_balancer.keys import with_keys_in_force
from skyserve.model.routing import RoutingTable

REPORT_S = 1.0
"""How often the controller hears of the load when nothing calls for it sooner."""

LINE_LIMIT = 8 * 1024 * 1024

UNREAD_LIMIT = 1024 * 1024
"""Bytes of reports that may wait for a controller that does not read before it is dropped."""

SCRAPE_LIMIT = 16 * 1024
"""Bytes of a request for metrics."""

GREETING_S = 0.1
"""Who has said nothing for so long is no HTTP client and is greeted."""

logger = logging.getLogger("skyserve.load_balancer")


class TableFile:
    """The last table, kept so that a door that starts without a controller serves on."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / "table.json"
        self._keys: tuple[str, ...] | None = None  # those in the file

    def load(self) -> RoutingTable | None:
        """The table, or None when there is none that can be read."""
        try:
            order = wire.decode_order(self._path.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, wire.BadWord) as error:
            logger.warning("the kept routing table cannot be read: %s", error)
            return None
        if not isinstance(order, RoutingTable):
            return None
        self._keys = order.api_keys
        return order

    def save(self, table: RoutingTable) -> None:
        """Replace it whole. A full disk must not stop the traffic, so a failure is only logged; but a table with other
        API keys must not come back to life: without any, a door that starts waits for its controller."""
        aside = self._path.with_name(f".table.{os.getpid()}")
        try:
            with open(aside, "wb", opener=_private) as file:
                file.write(wire.encode_table(table))
            aside.replace(self._path)
            self._keys = table.api_keys
        except OSError as error:
            logger.warning("the routing table cannot be kept: %s", error)
            self._forget(aside)
            if table.api_keys != self._keys:
                self._forget(self._path)

    def _forget(self, path: Path) -> None:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            logger.error("%s cannot be removed: %s", path, error)


class AdminServer:
    """The socket and those connected to it."""

    def __init__(self, door: Door, tables: TableFile, port: int, on_stop: Callable[[float], None]) -> None:
        self._door = door
        self._tables = tables
        self._port = port
        self._on_stop = on_stop
        self._loop = asyncio.get_running_loop()
        self._ends: set[AdminConnection] = set()
        self._server: asyncio.Server | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._soon: asyncio.Handle | None = None
        self.crew: Crew | None = None
        self._path: Path | None = None
        self._inode = 0

    async def start(self, path: Path) -> None:
        """Listen at `path`, which a dead door may have left behind. Raises OSError."""
        listener = _open_socket(path)
        self._path, self._inode = path, _inode(path)
        self._server = await self._loop.create_unix_server(lambda: AdminConnection(self), sock=listener)
        self._door.on_news = self.report_soon
        self._tick()

    def close(self) -> None:
        """Say the last report, hang up, and take the socket file away if it is still ours."""
        for handle in (self._timer, self._soon):
            if handle is not None:
                handle.cancel()
        self._report()
        for end in list(self._ends):
            end.transport.close()
        if self._server is not None:
            self._server.close()
        if self._path is not None:
            with contextlib.suppress(FileNotFoundError):
                if _inode(self._path) == self._inode:
                    self._path.unlink()

    def joined(self, end: AdminConnection) -> None:
        """Somebody connected."""
        self._ends.add(end)
        door = self._door
        end.say(wire.encode_hello(wire.Hello(door.boot, os.getpid(), door.table.number, self._port)))
        end.say(wire.encode_report(self._merged()))

    def left(self, end: AdminConnection) -> None:
        """Somebody hung up."""
        self._ends.discard(end)

    def heard(self, line: bytes) -> None:
        """Obey one line. Raises wire.BadWord."""
        order = wire.decode_order(line)
        if isinstance(order, wire.Stop):
            self.stop(order.grace_s)
            return
        table = with_keys_in_force(order, self._door.table)
        if self.obey(table):
            self._tables.save(table)
        else:
            self.report_soon()

    def stop(self, grace_s: float) -> None:
        """Have all workers finish what they have, in so many seconds."""
        if self.crew is not None:
            self.crew.stop(grace_s)
        self._on_stop(grace_s)

    def obey(self, table: RoutingTable) -> bool:
        """Take over a table, here and in the other workers; False when it is not new."""
        if self.crew is None:
            return self._door.apply(table)
        fresh = self._door.apply(self.crew.share(table))
        if fresh:
            self.crew.follow(table)
            self._door.pool.share(self.crew.board)
        return fresh

    def metrics(self) -> str:
        """The numbers for operators."""
        others = self.crew.samples() if self.crew is not None else []
        return metrics.text([metrics.samples(self._door), *others])

    def _merged(self) -> wire.DoorReport:
        own = self._door.report()
        return own if self.crew is None else self.crew.merged(own)

    def report_soon(self) -> None:
        """Report before the loop turns again; any number of calls make one report."""
        if self._soon is None:
            self._soon = self._loop.call_soon(self._report)

    def _tick(self) -> None:
        self._timer = self._loop.call_later(REPORT_S, self._tick)
        if self.crew is not None:
            self.crew.look()
        self._report()

    def _report(self) -> None:
        self._soon = None
        if self._ends:
            line = wire.encode_report(self._merged())
            for end in list(self._ends):
                end.say(line)


class AdminConnection(asyncio.Protocol):
    """One controller, or one curious operator."""

    __slots__ = ("_admin", "_buffer", "_greeting", "transport")

    def __init__(self, admin: AdminServer) -> None:
        self._admin = admin
        self._buffer = bytearray()
        self._greeting: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio."""
        self.transport = cast(asyncio.Transport, transport)
        self._greeting = asyncio.get_running_loop().call_later(GREETING_S, self._greet)

    def data_received(self, data: bytes) -> None:
        """See asyncio."""
        self._buffer += data
        if self._greeting is not None:
            if self._buffer.startswith(b"GET "):
                self._show_metrics()
                return
            self._greet()
        *lines, rest = self._buffer.split(b"\n")
        self._buffer = rest
        try:
            for line in lines:
                self._admin.heard(bytes(line))
        except wire.BadWord as error:
            logger.warning("the admin socket heard what it does not know: %s", error)
            self.transport.abort()
        if len(rest) > LINE_LIMIT:
            logger.warning("the admin socket heard a line without end")
            self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio."""
        if self._greeting is not None:
            self._greeting.cancel()
        self._admin.left(self)

    def _greet(self) -> None:
        if self._greeting is not None:
            self._greeting.cancel()
            self._greeting = None
            self._admin.joined(self)

    def _show_metrics(self) -> None:
        """Answer one HTTP request, for whoever scrapes; it gets nothing else."""
        if self._greeting is not None:
            self._greeting.cancel()
        if b"\r\n\r\n" not in self._buffer:
            if len(self._buffer) > SCRAPE_LIMIT:
                self.transport.abort()
            return
        found = self._buffer.split(b" ", 2)[1] == b"/metrics"
        body = self._admin.metrics().encode() if found else b"there is /metrics\n"
        status = b"200 OK" if found else b"404 Not Found"
        kind = metrics.CONTENT_TYPE.encode() if found else b"text/plain"
        head = b"HTTP/1.1 %b\r\nContent-Type: %b\r\nContent-Length: %d\r\nConnection: close\r\n\r\n"
        self.transport.write(head % (status, kind, len(body)) + body)
        self.transport.close()

    def say(self, line: bytes) -> None:
        """Send one line, unless the other end has stopped reading."""
        if self.transport.get_write_buffer_size() > UNREAD_LIMIT:
            self.transport.abort()
        else:
            self.transport.write(line)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _inode(path: Path) -> int:
    return path.stat().st_ino


def _open_socket(path: Path) -> socket.socket:
    parent = path.parent
    parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    seen = parent.stat()
    if seen.st_uid != os.getuid():
        raise PermissionError(f"{parent} belongs to somebody else")
    if not seen.st_mode & stat.S_ISVTX:  # a shared directory such as /tmp stays as it is
        parent.chmod(0o700)
    if path.is_socket():
        path.unlink()
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)
    try:
        listener.bind(str(path))
    except OSError:
        listener.close()
        raise
    finally:
        os.umask(before)
    listener.setblocking(False)
    return listener
