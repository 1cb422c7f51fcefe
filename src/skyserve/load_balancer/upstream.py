"""One connection to a replica. It carries one exchange at a time and lies idle in the pool between two.

It knows its socket and whose turn it is. It must not know HTTP.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from typing import Protocol, cast

from skyserve.load_balancer.pool import Pool, Upstream
from skyserve.trust import context_for

WRITE_BUFFER = 256 * 1024
"""Bytes that may wait for a slow reader before the other side is no longer read."""

logger = logging.getLogger("skyserve.load_balancer")

_KEEPALIVE = {"TCP_KEEPIDLE": 30, "TCP_KEEPALIVE": 30, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3}


class Carried(Protocol):
    """The exchange on a connection, as the connection sees it."""

    def upstream_data(self, data: bytes) -> None:
        """Bytes of the answer."""
        ...

    def upstream_eof(self) -> bool:
        """The replica will send no more. True keeps the connection open for writing."""
        ...

    def upstream_lost(self, *, clean: bool) -> None:
        """The connection is gone; `clean` when the replica ended it in order."""
        ...

    def upstream_full(self) -> None:
        """The replica reads too slowly, or fast enough again."""
        ...


class UpstreamConnection(asyncio.Protocol):
    """See the module."""

    __slots__ = ("_eof", "_paused", "carried", "idle_since", "page", "pool", "reused", "transport", "write_paused")

    def __init__(self, pool: Pool[UpstreamConnection], page: Upstream[UpstreamConnection]) -> None:
        self.pool = pool
        self.page = page
        self.carried: Carried | None = None
        self.idle_since = 0.0
        self.reused = False
        self.write_paused = False
        self._paused = False
        self._eof = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio."""
        self.transport = cast(asyncio.Transport, transport)
        self.transport.set_write_buffer_limits(high=WRITE_BUFFER)
        set_options(transport.get_extra_info("socket"))

    def data_received(self, data: bytes) -> None:
        """See asyncio. What nobody asked for ends the connection: it may be half of something."""
        carried = self.carried
        if carried is not None:
            carried.upstream_data(data)
        else:
            self._retire()

    def eof_received(self) -> bool:
        """See asyncio."""
        self._eof = True
        if self.carried is not None:
            return self.carried.upstream_eof() and self.can_half_close
        self._retire()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio."""
        if self.carried is not None and exc is not None and self.can_half_close:
            self._hear_last_words(self.carried)
        if self.carried is not None:
            self.carried.upstream_lost(clean=self._eof and exc is None)
        else:
            self.pool.lost_idle(self.page, self)

    def pause_writing(self) -> None:
        """See asyncio."""
        self.write_paused = True
        if self.carried is not None:
            self.carried.upstream_full()

    def resume_writing(self) -> None:
        """See asyncio."""
        self.write_paused = False
        if self.carried is not None:
            self.carried.upstream_full()

    def set_reading(self, *, wanted: bool) -> None:
        """Read on, or leave the bytes in the kernel."""
        if wanted != self._paused or self.transport.is_closing():
            return
        self._paused = not wanted
        if wanted:
            self.transport.resume_reading()
        else:
            self.transport.pause_reading()

    @property
    def reading(self) -> bool:
        """Whether the replica's bytes are being read."""
        return not self._paused

    @property
    def can_half_close(self) -> bool:
        """Whether one side can end alone, for which TLS has no word; nor can what the kernel still has be read then."""
        return self.transport.can_write_eof()

    def let_go(self) -> bool:
        """End the turn of the exchange; False, and nothing changes, when something is left over from it."""
        if self._eof or self.transport.is_closing() or self.transport.get_write_buffer_size():
            return False
        self.carried = None
        if self._paused:
            self.set_reading(wanted=True)  # the next answer must not find it paused
        return True

    def close(self) -> None:
        """See Closable."""
        self.transport.abort()

    def _hear_last_words(self, carried: Carried) -> None:
        """Read what the kernel still has. A replica that answers early and closes makes our next write fail, and the
        loop then gives the connection up with the answer unread."""
        sock = self.transport.get_extra_info("socket")
        with contextlib.suppress(OSError), socket.fromfd(sock.fileno(), sock.family, sock.type) as copy:
            while self.carried is carried and (words := copy.recv(WRITE_BUFFER, socket.MSG_DONTWAIT)):
                carried.upstream_data(words)

    def _retire(self) -> None:
        self.pool.lost_idle(self.page, self)
        self.transport.abort()


async def connect(
    pool: Pool[UpstreamConnection], page: Upstream[UpstreamConnection], timeout_s: float
) -> UpstreamConnection:
    """A new connection to a replica, the handshake of TLS included. Raises OSError when it refuses, does not prove who
    it is, or cannot be reached within `timeout_s`."""
    name, _, port = page.address.rpartition(":")
    host, tls = name.strip("[]"), page.tls
    loop = asyncio.get_running_loop()
    try:
        context, server_name = (context_for(tls), tls.server_name or host) if tls else (None, None)
        async with asyncio.timeout(timeout_s):
            _, connection = await loop.create_connection(
                lambda: UpstreamConnection(pool, page), host, int(port), ssl=context, server_hostname=server_name
            )
    except OSError as error:
        if tls and not page.refuses and not isinstance(error, ConnectionError | TimeoutError):
            logger.warning("replica %d: no TLS with %s: %s", page.replica_id, page.address, error)
        raise
    return connection


def set_options(sock: socket.socket) -> None:
    """Send at once, and have the kernel find out when a silent peer is gone: machines vanish without a word."""
    real = socket.socket(sock.family, sock.type, sock.proto, sock.fileno())  # uvloop's own makes one for each option
    try:
        real.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # asyncio forgets it for some sockets it accepts
        real.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in _KEEPALIVE.items():
            option = getattr(socket, name, None)
            if option is not None:
                real.setsockopt(socket.IPPROTO_TCP, option, value)
    finally:
        real.detach()
