"""The door's face: client connections, the listening socket, the sweep, and stopping in peace.

It knows how a client's connection is kept, and hands each request to an exchange. It must not know replicas.
"""

from __future__ import annotations

import asyncio
import logging
import select
import socket
import struct
from itertools import islice
from typing import cast

from skyserve.load_balancer.door import Door
from skyserve.load_balancer.forward import Exchange
from skyserve.load_balancer.framing import (
    BadMessage,
    KnownHead,
    RequestHead,
    check_request_start,
    head_end,
    parse_request_head,
    with_length,
    without_blank_lines,
)
from skyserve.load_balancer.headers import Failure, began_in_json, error_bytes
from skyserve.load_balancer.tls import Certificate
from skyserve.load_balancer.upstream import WRITE_BUFFER, set_options

BACKLOG = 2048
"""Connections that may wait to be accepted."""

AHEAD_LIMIT = 64 * 1024
"""Bytes of following requests that are read while one is answered."""

REMEMBERED = 2048
"""Bytes of a request head that are remembered for the next one on the same connection."""

OLDEST = 64
"""Connections that are looked at for an idle one when there are too many."""

SWEEP_S = 0.25

COUNT_S = 2.0
"""How often open answers in which nothing moves are counted."""

logger = logging.getLogger("skyserve.load_balancer")

_RESET = struct.pack("ii", 1, 0)
_POLL_GONE = getattr(select, "POLLRDHUP", 0)
_ERROR_CODES = {414: "uri_too_long", 431: "head_too_large", 405: "method_not_allowed", 505: "http_version"}


class Clients(dict["ClientConnection", None]):
    """The client connections that are open, oldest first, and `most` of them."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self._most = most

    def admit(self, client: ClientConnection) -> bool:
        """Take in one more. When that is too many, an old one without a request has to go; False when none is found."""
        if len(self) >= self._most:
            idle = next((old for old in islice(self, OLDEST) if old.exchange is None), None)
            if idle is None:
                return False
            idle.end(now=True)
            self.pop(idle, None)
        self[client] = None
        return True


class ClientConnection(asyncio.Protocol):
    """One client. Its requests are answered one after the other, in order."""

    __slots__ = (
        "_ahead",
        "_closing",
        "_deadline_at",
        "_door",
        "_head_started",
        "_heard_at",
        "_last",
        "_others",
        "_scanned",
        "_serving",
        "_transport",
        "_unsent",
        "_unsent_at",
        "exchange",
        "peer",
        "read_paused",
        "scheme",
        "write",
        "write_paused",
    )

    def __init__(self, door: Door, others: Clients, scheme: bytes) -> None:
        self._door = door
        self._others = others
        self.scheme = scheme
        self.peer = b"unknown"
        self.exchange: Exchange | None = None
        self.write_paused = False
        self._ahead = b""
        self._scanned = 0
        self._last: KnownHead[RequestHead] | None = None
        self._head_started = False
        self._serving = False
        self._closing = False
        self.read_paused = False
        self._heard_at = door.time()
        self._deadline_at = self._heard_at + door.limits.idle_s
        self._unsent = 0
        self._unsent_at = 0.0

    # ---- asyncio --------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio."""
        self._transport = cast(asyncio.Transport, transport)
        self.write = self._transport.write  # see Client; a call less for each event
        self._transport.set_write_buffer_limits(high=WRITE_BUFFER)
        address = transport.get_extra_info("peername")
        if address:
            self.peer = str(address[0]).encode()
        if not self._others.admit(self):
            self._reject(503, "too_many_connections", "too many clients are connected", retry_after_s=1)
            self._transport.close()

    def data_received(self, data: bytes) -> None:
        """See asyncio."""
        if self._closing:
            return
        exchange = self.exchange
        if exchange is None:
            self._ahead = self._ahead + data if self._ahead else data
            self._serve()
            return
        if exchange.tunnel or not exchange.body.done:
            self._heard_at = self._door.time()
            used = self._feed(exchange, data, 0)
            if used == len(data):
                return
            data = data[used:]
        self._ahead += data
        self.update_reading()

    def eof_received(self) -> bool:
        """See asyncio. A client that ends its side while it waits has left: nobody would read the answer."""
        exchange = self.exchange
        if exchange is None:
            return False
        if exchange.tunnel:
            stays = self._transport.can_write_eof()
            exchange.client_eof(leaves=not stays)
            return stays
        self._vanish()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio."""
        self._closing = True
        self._others.pop(self, None)
        exchange, self.exchange = self.exchange, None
        if exchange is not None:
            exchange.client_gone()

    def pause_writing(self) -> None:
        """See asyncio."""
        self.write_paused = True
        if self.exchange is not None:
            self.exchange.client_full()

    def resume_writing(self) -> None:
        """See asyncio."""
        self.write_paused = False
        if self.exchange is not None:
            self.exchange.client_full()
        elif not self._closing:
            self._serve()

    # ---- for the exchange (see forward.Client) --------------------------------------------------------------------

    def half_close(self) -> bool:
        """See Client."""
        able = self._transport.can_write_eof()
        if able:
            self._transport.write_eof()
        return able

    def over(self, *, keep: bool) -> None:
        """See Client."""
        exchange, self.exchange = self.exchange, None
        self._deadline_at = self._door.time() + self._door.limits.idle_s
        if keep:
            if self._ahead or self.read_paused or self.write_paused:
                self._serve()
        elif exchange is not None and (self._ahead or not exchange.body.done):
            self._linger()
        else:
            self._closing = True
            self._transport.close()

    def cut(self, *, reset: bool) -> None:
        """See Client."""
        self.exchange = None
        self._closing = True
        if reset:
            sock: socket.socket | None = self._transport.get_extra_info("socket")
            if sock is not None:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            self._transport.abort()
        else:
            self._transport.close()

    def update_reading(self) -> None:
        """See Client."""
        exchange = self.exchange
        if exchange is not None and exchange.tunnel and self._ahead:
            ahead, self._ahead = self._ahead, b""
            exchange.feed(ahead, 0)
        if exchange is None:  # not the next request while the client does not take the last answers
            pause = self.write_paused and not self._closing
        else:
            pause = exchange.choked or len(self._ahead) > AHEAD_LIMIT
        if pause == self.read_paused or self._transport.is_closing():
            return
        self.read_paused = pause
        if pause:
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()

    # ---- requests -------------------------------------------------------------------------------------------------

    def _serve(self) -> None:
        if self._serving:  # an answer that needed no waiting: the loop below goes on
            return
        self._serving = True
        while self._ahead and self.exchange is None and not (self._closing or self.write_paused):
            if not self._next_request():
                break
        self._serving = False
        if self.read_paused or self.write_paused:
            self.update_reading()

    def _next_request(self) -> bool:
        """Take the next request out of what has been read; False when it is not whole or not clear."""
        data = self._ahead
        if data.startswith(b"\r\n"):
            data, self._scanned = without_blank_lines(data), 0
        try:
            head, end = self._read_head(data)
            if head is None:
                self._ahead = data
                return self._incomplete(data)
        except BadMessage as bad:
            self._reject(bad.status, _ERROR_CODES.get(bad.status, "bad_request"), str(bad))
            return False
        self._scanned, self._head_started = 0, False
        whole = end + head.length if head.length is not None else 0
        if end <= whole <= len(data):  # it has come with its body, as most do
            self._ahead = data[whole:]
            self.exchange = exchange = Exchange(self._door, self, head, data[end:whole])
            exchange.start()
            return True
        self._ahead = b""
        exchange = self.exchange = Exchange(self._door, self, head)
        self._heard_at = self._door.time()
        if end < len(data):
            end = self._feed(exchange, data, end)
        if not self._closing:
            self._ahead = data[end:]
            exchange.start()
        return True

    def _read_head(self, data: bytes) -> tuple[RequestHead | None, int]:
        """The head that `data` begins with, and where it ends; none while it is not whole. Raises BadMessage.

        One like the last on this connection, as most clients send, has been understood."""
        last = self._last
        if last is not None:
            end, length = last.find(data)
            if end:
                head = last.head
                return (head if length is None or length == head.length else with_length(head, length)), end
        end = head_end(data, self._scanned)
        if end < 0:
            return None, end
        head = parse_request_head(data[:end])
        if end <= REMEMBERED:
            self._last = KnownHead(data[:end], head)
        return head, end

    def _incomplete(self, data: bytes) -> bool:
        if data:
            check_request_start(data)
            self._scanned = len(data)
            if not self._head_started:
                self._head_started = True
                self._deadline_at = self._door.time() + self._door.limits.head_s
        return False

    def _feed(self, exchange: Exchange, data: bytes, start: int) -> int:
        try:
            return exchange.feed(data, start)
        except BadMessage as bad:
            exchange.bad_request(bad)
            return len(data)

    def _reject(self, status: int, code: str, message: str, *, retry_after_s: int | None = None) -> None:
        self._door.counters.responded(status)
        failure = Failure(status, code, message, retry_after_s)
        self.write(error_bytes(failure, json=began_in_json(self._ahead), connection=b"close", with_body=True))
        self._linger()

    def _linger(self) -> None:
        """Close, but only after the client had a chance to read: closing on unread bytes would destroy the answer."""
        self._closing = True
        self._ahead = b""
        self._deadline_at = self._door.time() + self._door.limits.linger_s
        self.half_close()
        if self.read_paused:
            self.update_reading()

    def _vanish(self) -> None:
        exchange, self.exchange = self.exchange, None
        self._closing = True
        self._transport.abort()
        if exchange is not None:
            exchange.client_gone()

    # ---- the sweep ------------------------------------------------------------------------------------------------

    def check(self, now: float) -> None:
        """See to deadlines."""
        if self._takes_nothing(now):
            self._vanish()
        elif self.exchange is not None:
            if self._sends_nothing(self.exchange, now):
                self.exchange.body_stalled()
            else:
                self.exchange.check(now)
        elif now < self._deadline_at or self._unsent:
            return
        elif self._closing:
            self._transport.abort()
        elif self._head_started:
            self._reject(408, "request_timeout", "the request head took too long")
        else:
            self._closing = True
            self._transport.close()

    def _takes_nothing(self, now: float) -> bool:
        """Whether nothing has gone out for too long of what waits for the client."""
        unsent = self._transport.get_write_buffer_size()
        if not unsent or unsent != self._unsent:
            self._unsent, self._unsent_at = unsent, now
            return False
        return now - self._unsent_at >= self._door.limits.stall_s

    def _sends_nothing(self, exchange: Exchange, now: float) -> bool:
        """Whether a body that is wanted has not come on for too long."""
        if exchange.body.done or exchange.tunnel or self.read_paused:
            self._heard_at = now
        return now - self._heard_at >= self._door.limits.stall_s

    @property
    def unheard(self) -> int | None:
        """The descriptor of a waiting client whose leaving cannot be heard, because it is not being read."""
        if not self.read_paused or self.exchange is None or self.exchange.tunnel:
            return None
        sock: socket.socket | None = self._transport.get_extra_info("socket")
        return None if sock is None or self._transport.is_closing() else sock.fileno()

    def left(self) -> None:
        """The client was found to have left."""
        self._vanish()

    def end(self, *, now: bool) -> None:
        """Close when idle, or in any case and at once."""
        if now:
            self._transport.abort()
        elif self.exchange is None and not self._closing:
            self._closing = True
            self._transport.close()


class Server:
    """Accepts clients, sweeps, stops."""

    def __init__(self, door: Door, most_clients: int = 10_000) -> None:
        self._door = door
        self._clients = Clients(most_clients)
        self._listener: socket.socket | None = None
        self._listening: asyncio.Server | None = None
        self._changing: asyncio.Task[None] | None = None
        self._certificate: Certificate | None = None
        self._table = 0
        self._stop_at: float | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._due_at = 0.0
        self._count_at = 0.0
        self._loop = asyncio.get_running_loop()
        self.stopped: asyncio.Future[None] = self._loop.create_future()

    async def start(self, listener: socket.socket, certificate: Certificate | None = None) -> None:
        """Serve on a bound socket, with TLS when there is a certificate."""
        self._listener, self._certificate = listener, certificate
        await self._listen(listener)
        self._sweep()

    async def _listen(self, listener: socket.socket) -> None:
        scheme, context = (b"https", self._certificate.context) if self._certificate else (b"http", None)
        self._listening = await self._loop.create_server(
            lambda: ClientConnection(self._door, self._clients, scheme),
            sock=listener.dup(),
            backlog=BACKLOG,
            ssl=context,
        )

    def _follow_tls(self, now: float) -> None:
        """Use the certificate that the table names. When it cannot be used nobody is served: never without it."""
        table, listener = self._door.table, self._listener
        if self._certificate is not None:
            self._certificate.refresh(now)
        used = self._certificate.files if self._certificate else None
        if listener is None or self._changing is not None or not table.number:
            return
        if table.tls == used and self._listening is not None:
            return
        if self._listening is not None:
            self._listening.close()
            self._listening = None
        try:
            self._certificate = Certificate(table.tls) if table.tls else None
        except OSError as error:
            if table.number != self._table:
                logger.error("the endpoint is closed: the TLS key and certificate cannot be used: %s", error)
            self._table = table.number
            return
        self._changing = self._loop.create_task(self._listen(listener))
        self._changing.add_done_callback(self._changed)

    def _changed(self, changing: asyncio.Task[None]) -> None:
        self._changing = None
        if not changing.cancelled() and changing.exception() is not None:
            logger.error("the endpoint is closed: %s", changing.exception())
        if self._listener is None and self._listening is not None:  # told to stop meanwhile
            self._listening.close()
            self._listening = None

    def stop(self, grace_s: float) -> None:
        """Accept nothing more; `stopped` is set when the requests under way are done, or after `grace_s`."""
        for listening in (self._listening, self._listener):
            if listening is not None:
                listening.close()
        self._listening = self._listener = None
        stop_at = self._door.time() + grace_s
        self._stop_at = stop_at if self._stop_at is None else min(self._stop_at, stop_at)
        self._door.stop()
        self._sweep()

    def _sweep(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        now = self._door.time()
        if 0.0 < self._due_at <= self._loop.time():
            self._door.counters.lag.observe(self._loop.time() - self._due_at)
        self._door.sweep()
        self._follow_tls(now)
        for client in list(self._clients):
            client.check(now)
        if now >= self._count_at:
            self._count_at = now + COUNT_S
            open_ = (client.exchange for client in self._clients)
            self._door.recent.quiet = sum(exchange is not None and exchange.quiet(now) for exchange in open_)
        self._find_unheard()
        if self._stop_at is not None and self._finish(now, self._stop_at):
            return
        self._due_at = self._loop.time() + (SWEEP_S if self._stop_at is None else SWEEP_S / 5)
        self._timer = self._loop.call_at(self._due_at, self._sweep)

    def _find_unheard(self) -> None:
        silent = {fd: client for client in self._clients if (fd := client.unheard) is not None}
        if not silent or not _POLL_GONE:
            return
        poll = select.poll()
        for descriptor in silent:
            poll.register(descriptor, _POLL_GONE)
        for descriptor, _ in poll.poll(0):
            silent[descriptor].left()

    def _finish(self, now: float, stop_at: float) -> bool:
        for client in list(self._clients):
            client.end(now=now >= stop_at)
        if self._clients and now < stop_at:
            return False
        self._door.pool.close_idle()
        if not self.stopped.done():
            self.stopped.set_result(None)
        return True


def open_listener(host: str, port: int, *, alone: bool = True) -> socket.socket:
    """A socket bound to the address, which other workers of the same door can share. Raises OSError: EADDRINUSE among
    others, when `alone` and somebody is there, be it another door."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    if alone and port:
        with socket.socket(family, socket.SOCK_STREAM) as first:
            first.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                first.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            first.bind((host, port))
    listener = socket.create_server((host, port), family=family, backlog=BACKLOG, reuse_port=True)
    set_options(listener)  # accepted sockets inherit them
    listener.setblocking(False)
    return listener
