"""One request on its way: to a replica, to another one when that is safe, and the answer back.

It knows the rules of HTTP between client and replica and when a request may be repeated. It must not know how clients'
connections are kept, nor how a replica is chosen.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

from skyserve.load_balancer.answer import Answer, is_whole
from skyserve.load_balancer.door import Door, Page
from skyserve.load_balancer.framing import (
    NO_BODY,
    BadMessage,
    Body,
    ChunkedBody,
    KnownHead,
    RequestHead,
    ResponseHead,
    UntilCloseBody,
    is_plain_chunk,
    request_body,
)
from skyserve.load_balancer.headers import Failure, error_bytes, redirect_bytes, request_parts, speaks_json
from skyserve.load_balancer.pool import IDLE_LIMIT_S
from skyserve.load_balancer.recent import QUIET_S
from skyserve.load_balancer.upstream import UpstreamConnection, connect

KEPT_LIMIT = 1024 * 1024
"""Bytes of a request body that are kept, so that the request can be sent once more."""

HELD_BODY_LIMIT = 64 * 1024
"""Bytes of a request body that are read in any case while there is no replica to send them to."""

HELD_BODIES = 32 * 1024 * 1024
"""Bytes that those who wait share beyond that, each up to KEPT_LIMIT: a client whose body has been read whole is seen
to leave, while the farewell of another is stuck behind its own data."""

MAX_SENT = 3
"""Replicas that one request may be sent to. A refused connection does not count: nothing was sent."""

STALE_WINDOW_S = 1.0
"""A connection out of the pool that ends this soon had most likely been closed before the request reached it."""

REMEMBERED = 2048
"""Bytes of a replica's last head that are remembered for the next one."""

YOUNG_S = 1.0
"""A connection that was in use so lately is not closed for idleness: good enough for what cannot be sent again."""

_NOBODY: frozenset[int] = frozenset()

_TOO_LARGE = "the request body is larger than this service takes"

_SAFE_TO_REPEAT = frozenset((b"GET", b"HEAD", b"OPTIONS", b"PUT", b"DELETE", b"TRACE"))


class Client(Protocol):
    """The client's connection, as an exchange sees it. `peer` is its IP address, `scheme` http or https."""

    peer: bytes
    scheme: bytes
    read_paused: bool
    write_paused: bool

    def write(self, data: bytes, /) -> None:
        """Send bytes."""
        ...

    def half_close(self) -> bool:
        """Send no more, but read on; False where TLS has no word for that."""
        ...

    def over(self, *, keep: bool) -> None:
        """The answer is complete; `keep` the connection for the next request, or close it."""
        ...

    def cut(self, *, reset: bool) -> None:
        """The answer broke off: close so that the client can tell, by a reset where the end means the end."""
        ...

    def update_reading(self) -> None:
        """Whether more of the request is wanted may have changed."""
        ...


class Exchange:
    """One request and its answer. It is counted on a replica's page from the choice to its end."""

    __slots__ = (
        "_active",
        "_active_at",
        "_answer",
        "_chunks",
        "_client",
        "_client_ended",
        "_connecting",
        "_connection",
        "_door",
        "_dropped_at",
        "_dropped_by",
        "_first_byte",
        "_head",
        "_kept",
        "_kept_size",
        "_page",
        "_sent_at",
        "_sent_to",
        "_started_at",
        "_stays",
        "_tried",
        "_upstream_ended",
        "body",
        "hold_until",
        "tunnel",
    )

    def __init__(self, door: Door, client: Client, head: RequestHead, body: bytes | None = None) -> None:
        """`body` is the whole of it, when it has come; otherwise it is fed."""
        self._door = door
        self._client = client
        self._head = head
        self.body: Body = request_body(head) if body is None else NO_BODY
        self.tunnel = False
        self.hold_until = 0.0
        self._page: Page | None = None
        self._connection: UpstreamConnection | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._kept: list[bytes] | None = []
        self._kept_size = 0
        if body:
            self._kept.append(body)
            self._kept_size = len(body)
            door.counters.bytes_in += self._kept_size
        self._tried = _NOBODY
        self._sent_to = _NOBODY
        self._dropped_by = -1
        self._dropped_at = 0.0
        self._sent_at = 0.0
        self._active = False
        self._first_byte = 0  # the bin of it
        self._active_at = 0.0
        self._started_at = 0.0
        self._answer: Answer | None = None  # until a byte of one has come that is not there whole
        self._chunks: ChunkedBody | None = None
        self._stays = False
        self._client_ended = False
        self._upstream_ended = False

    # ---- from the client ------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Go to a replica, or wait for one."""
        door = self._door
        now = self._started_at = door.time()
        door.counters.arrived(now)
        if door.refusing:
            self._refuse_closing()
            return
        if (self._head.length or 0) > door.body_limit:
            self._refuse_body()
            return
        if door.hold.waiting:
            door.release_held()
        if not self._begin(now):
            self._wait()

    def feed(self, data: bytes, start: int) -> int:
        """Bytes from the client; the offset up to which they belong to this exchange. Raises BadMessage."""
        if self.tunnel:
            self._active = True
            if self._connection is not None:
                self._connection.transport.write(data[start:])
            return len(data)
        end = self.body.feed(data, start)
        if self._kept_size + end - start > self._door.body_limit and self._head.length is None:
            self.body = UntilCloseBody()  # where the next request begins is of no interest any more
            raise BadMessage(_TOO_LARGE, 413)
        if end > start:
            self._pass_on(data[start:end] if end - start < len(data) else data)
        return end

    def fail(self, status: int, code: str, message: str, *, retry_after_s: int | None = None) -> None:
        """Answer with an error of our own; nothing of another answer may have been sent."""
        self._leave(reuse=False)
        keep = self._keep()
        counters = self._door.counters
        counters.responded(status)
        counters.whole.observe(self._door.time() - self._started_at)
        head = self._head
        self._client.write(
            error_bytes(
                Failure(status, code, message, retry_after_s),
                json=speaks_json(head.target, head.fields),
                connection=self._connection_word(keep=keep),
                with_body=head.method != b"HEAD",
            )
        )
        self._client.over(keep=keep)

    def bad_request(self, bad: BadMessage) -> None:
        """The client's body is not clear HTTP."""
        if self._answered:
            self._cut()
        elif bad.status == 413:
            self._refuse_body()
        else:
            self.fail(bad.status, "bad_request", str(bad))

    def body_stalled(self) -> None:
        """The client does not send the body that it promised. An answer that has begun goes on all the same."""
        if not self._answered:
            self.fail(408, "request_timeout", "the request body stopped coming")

    def client_gone(self) -> None:
        """The client has left: so does the request, wherever it is."""
        self._door.counters.clients_gone += 1
        self._leave(reuse=False)

    def client_eof(self, *, leaves: bool) -> None:
        """In a tunnel, the client sends no more; it also `leaves` where it cannot do the one without the other."""
        self._client_ended = True
        connection = self._connection
        if self._upstream_ended or leaves or (connection is not None and not connection.can_half_close):
            self._close_tunnel()
        elif connection is not None:
            connection.transport.write_eof()

    def client_full(self) -> None:
        """The client reads too slowly, or fast enough again."""
        if self._connection is not None:
            self._connection.set_reading(wanted=not self._client.write_paused)

    @property
    def choked(self) -> bool:
        """No more of the request is wanted for now."""
        if self._connection is not None:
            return self._connection.write_paused
        share = HELD_BODIES // (len(self._door.hold) or 1)
        return self._kept_size > max(HELD_BODY_LIMIT, min(KEPT_LIMIT, share))

    def check(self, now: float) -> None:
        """See whether the replica has been silent for too long, or the whole has taken too long."""
        settings, connection = self._door.settings, self._connection
        whole_s = settings.request_timeout_seconds
        if self._active:  # the sweep comes often enough to tell when that was
            self._active, self._active_at = False, now
        if self.tunnel:
            return
        if whole_s is not None and now - self._started_at > whole_s:
            self._time_out("request_timeout", f"the request took more than {whole_s:g} s")
            return
        limit, first_s = settings.stream_timeout_seconds, settings.first_byte_timeout_seconds
        if first_s is not None and not self._answered:
            limit = first_s if limit is None else min(limit, first_s)
        if limit is None or connection is None or now - self._active_at <= limit:
            return
        if connection.reading and (self.body.done or connection.write_paused):  # else it is the client that is slow
            self._time_out("replica_timeout", f"the replica did not answer within {limit:g} s")

    def quiet(self, now: float) -> bool:
        """Whether its answer has begun, and nothing has moved for so long that it may have been left open."""
        return now - self._active_at > QUIET_S and self._answered and self._connection is not None

    def _time_out(self, code: str, message: str) -> None:
        if self._answered:
            self._cut()
        else:
            if self._page is not None:
                self._page.tally.fail()
            self.fail(504, code, message)

    # ---- waiting --------------------------------------------------------------------------------------------------

    def resume(self) -> None:
        """See Waiting."""
        page = self._door.choose(self._head, self._tried)
        if page is not None:
            self._door.hold.remove(self)
            self._go(page, self._door.time())

    def reconsider(self, now: float) -> None:
        """See Waiting. The replica that dropped this request may not have died of anything: then waiting is in vain."""
        settled_at = self._dropped_at + self._door.limits.settle_s
        if self._dropped_by < 0 or now < settled_at:
            return
        page = self._door.pool.page(self._dropped_by)
        if page is None or page.leaving:
            return
        if page.accepted_at >= settled_at:
            self._fail_unanswered("; it is still there, and there is no other one to ask")
        else:
            self._door.knocks.knock(page)

    def give_up(self) -> None:
        """See Waiting."""
        if self._door.refusing:
            self._refuse_closing()
        elif self._sent_to:
            self._fail_unanswered(", and no other one became ready in time")
        elif self._door.pool.busy:
            again_s = self._door.retry_after_s()
            self.fail(503, "replicas_busy", "every replica has as many requests as it may", retry_after_s=again_s)
        else:
            again_s = self._door.retry_after_s()
            self.fail(503, "no_replica_ready", "no replica became ready in time", retry_after_s=again_s)

    def _wait(self) -> None:
        settings, now = self._door.settings, self._door.time()
        if not self.hold_until:
            self.hold_until = now + settings.queue_timeout_seconds
        full = len(self._door.hold) >= settings.queue_size
        if self.hold_until <= now or settings.queue_size == 0 or (full and self._sent_to):
            self.give_up()
        elif full:
            why = "every replica has as many requests as it may" if self._door.pool.busy else "no replica is ready"
            again_s = self._door.retry_after_s()
            self.fail(429, "queue_full", f"{why} and too many requests wait", retry_after_s=again_s)
        else:
            self._tried = self._sent_to  # one that only refused may come back
            self._door.hold.add(self)
            self._client.update_reading()

    def _refuse_closing(self) -> None:
        self.fail(503, "service_closing", "the service is going down", retry_after_s=5)

    def _refuse_body(self) -> None:
        self.fail(413, "body_too_large", _TOO_LARGE)

    # ---- to a replica ---------------------------------------------------------------------------------------------

    def _begin(self, now: float) -> bool:
        page = self._door.choose(self._head, self._tried)
        if page is None:
            return False
        self._go(page, now)
        return True

    def _go(self, page: Page, now: float) -> None:
        door = self._door
        if door.settings.mode == "redirect":
            self._redirect(page)
            return
        self._page = page
        door.pool.enter(page, now)
        if self._tried:
            door.counters.retried()
        connection = door.pool.take_idle(page, now, YOUNG_S)
        if connection is None and page.idle and self._repeatable and (self._head.length or 0) <= KEPT_LIMIT:
            connection = door.pool.take_idle(page, now, IDLE_LIMIT_S)
        if connection is not None:
            connection.reused = True
            self._send(connection, now)
        else:
            self._connect(page)

    def _redirect(self, page: Page) -> None:
        keep = self._keep()
        word = self._connection_word(keep=keep)
        self._door.counters.responded(307)
        self._client.write(redirect_bytes(page.address, self._head.target, tls=page.tls is not None, connection=word))
        self._client.over(keep=keep)

    def _connect(self, page: Page) -> None:
        self._connecting = asyncio.get_running_loop().create_task(self._connected(page))

    async def _connected(self, page: Page) -> None:
        pool = self._door.pool
        try:
            connection = await connect(pool, page, self._door.settings.connect_timeout_seconds)
        except (OSError, UnicodeError):  # the latter from a name that cannot be a host's
            self._connecting = None
            pool.refused(page, self._door.time())
            self._try_another(page)
            return
        self._connecting = None
        now = self._door.time()
        pool.connected(page, now)
        self._send(connection, now)

    def _send(self, connection: UpstreamConnection, now: float) -> None:
        door, client = self._door, self._client
        self._connection = connection
        connection.carried = self
        self._sent_at = self._active_at = now
        head = request_parts(
            self._head,
            peer=client.peer,
            scheme=client.scheme,
            request_id=b"%b%016x" % (door.id_prefix, next(door.ids)),
            address=connection.page.address,
        )
        connection.transport.write(b"".join((*head, *(self._kept or ()))))
        if client.write_paused:
            connection.set_reading(wanted=False)
        if client.read_paused or connection.write_paused:
            client.update_reading()

    def _pass_on(self, piece: bytes) -> None:
        self._kept_size += len(piece)
        self._door.counters.bytes_in += len(piece)
        if self._kept is not None:
            self._kept.append(piece)
            if self._connection is not None and self._kept_size > KEPT_LIMIT:
                self._kept = None
        if self._connection is not None:
            self._active = True
            self._connection.transport.write(piece)
        elif self._kept_size > HELD_BODY_LIMIT and self.choked:
            self._client.update_reading()

    def _try_another(self, page: Page) -> None:
        if len(self._sent_to) >= MAX_SENT:
            self._fail_unanswered()
            return
        self._tried |= {page.replica_id}
        self._page = None
        self._give_place(page)
        if self._begin(self._door.time()):
            return
        if self._door.refusing:
            self._refuse_closing()
        else:
            self._wait()

    # ---- from the replica -----------------------------------------------------------------------------------------

    def upstream_data(self, data: bytes) -> None:
        """See Carried."""
        self._active = True
        chunks = self._chunks
        if chunks is not None and chunks.between and is_plain_chunk(data):  # as events nearly always are
            self._door.counters.bytes_out += len(data)
            self._client.write(data)
        elif self.tunnel:
            self._client.write(data)
        elif self._answer is not None and self._answer.head is not None:
            self._relay(self._answer, b"", data)
        else:
            try:
                self._read_first(data)
            except BadMessage as bad:
                self.fail(502, "bad_gateway", f"the replica's answer is not HTTP: {bad}")

    def upstream_eof(self) -> bool:
        """See Carried."""
        if self.tunnel and not self._client_ended:
            self._upstream_ended = True
            if self._client.half_close():
                return True
        self.upstream_lost(clean=True)
        return False

    def upstream_lost(self, *, clean: bool) -> None:
        """See Carried."""
        answer = self._answer
        if self.tunnel:
            self._close_tunnel(reset=not clean)
        elif answer is None or answer.head is None:
            self._lost_unanswered()
        elif clean and answer.ends_with_connection:
            self._complete(answer.head, reuse=False)
        else:
            self._cut()

    def upstream_full(self) -> None:
        """See Carried."""
        self._client.update_reading()

    @property
    def _answered(self) -> bool:
        """Whether the client has the head of an answer."""
        return self._answer is not None and self._answer.head is not None

    @property
    def _repeatable(self) -> bool:
        """Whether it may be sent again after a replica has had it in its hands."""
        allowed = self._door.settings.retry == "idempotent" or self._head.method in _SAFE_TO_REPEAT
        return allowed and self._kept is not None

    def _lost_unanswered(self) -> None:
        connection, page, now = self._connection, self._page, self._door.time()
        if connection is None or page is None:
            return
        self._drop_connection()
        stale = connection.reused and now - self._sent_at < STALE_WINDOW_S
        begun = self._answer is not None
        if not begun:
            self._sent_to |= {page.replica_id}
            self._dropped_by, self._dropped_at = page.replica_id, now
            if not stale:
                self._door.pool.unanswered(page, now)
        if begun or not self._repeatable:
            self._fail_unanswered()
        elif stale:
            self._door.counters.retried()
            self._connect(page)
        else:
            self._try_another(page)

    def _fail_unanswered(self, more: str = "") -> None:
        who = "the replica" if len(self._sent_to) < 2 else f"each of {len(self._sent_to)} replicas"
        self.fail(502, "bad_gateway", f"{who} closed the connection without an answer{more}", retry_after_s=1)

    def _read_first(self, data: bytes) -> None:
        """Read what comes before the answer's body, or a short answer at once. Raises BadMessage."""
        page, request = self._page, self._head
        if page is None:
            return
        known = self._door.heads.get(page.replica_id)
        if known is not None and self._answer is None and request.minor and request.method != b"HEAD":
            end, length = known.find(data)
            if end and length == len(data) - end:
                self._pass_whole(page, known.head.status, data, end)
                return
        answer = self._answer = self._answer or Answer(request)
        interim, rest = answer.read_head(data)
        if interim:
            self._client.write(interim)
        head = answer.head
        if head is None:
            return
        if head.plain is not None and is_whole(head, request, len(data), len(rest)):
            if len(head.plain) <= REMEMBERED:
                self._door.heads[page.replica_id] = KnownHead(head.plain, head)
            self._pass_whole(page, head.status, data, len(head.plain))
        else:
            self._begin_answer(page, answer, head, rest)

    def _pass_whole(self, page: Page, status: int, data: bytes, end: int) -> None:
        """Pass on an answer that came all at once, as the short ones do. Its head, a plain one, is up to `end`."""
        door, stays = self._door, self._keep()
        now = door.time()
        place = door.counters.answered_at_once(status, len(data) - end, now - self._started_at)
        page.done += 1
        page.tally.count(status, place, place)
        door.pool.answered(page, now - self._sent_at)
        if not stays:
            data = b"%bConnection: close%b" % (data[: end - 2], data[end - 4 :])
        self._client.write(data)
        connection, self._page = self._connection, None
        if connection is not None and self.body.done and connection.let_go():
            self._connection = None
            door.pool.put_idle(page, connection, now)
        else:
            self._drop_connection()
        self._give_place(page)
        self._client.over(keep=stays)

    def _begin_answer(self, page: Page, answer: Answer, head: ResponseHead, rest: bytes) -> None:
        now = self._door.time()
        self._door.pool.answered(page, now - self._sent_at)
        self._first_byte = self._door.counters.first_byte.observe(now - self._started_at)
        self._kept = None
        if head.status == 101:
            self._open_tunnel(answer, head, rest)
            return
        self._door.counters.responded(head.status)
        answer.begin(head)
        self._chunks = answer.chunks
        self._stays = self._keep() and not answer.ends_clients_connection
        self._relay(answer, answer.head_bytes(head, self._connection_word(keep=self._stays)), rest)

    def _relay(self, answer: Answer, prefix: bytes, data: bytes) -> None:
        try:
            payload = answer.relay(data)
        except BadMessage:
            if prefix:
                self._client.write(prefix)
            self._cut()
            return
        self._door.counters.bytes_out += len(payload)
        if prefix or payload:
            self._client.write(prefix + payload if prefix else payload)
        if answer.done and answer.head is not None:
            self._complete(answer.head, reuse=answer.exact)

    def _open_tunnel(self, answer: Answer, head: ResponseHead, rest: bytes) -> None:
        if self._head.upgrade is None or not self.body.done:
            self.fail(502, "bad_gateway", "the replica switches protocols without being asked to")
            return
        self._door.counters.responded(101)
        self.tunnel = True
        self._client.write(answer.head_bytes(head, b"Upgrade") + rest)
        self._client.update_reading()

    def _close_tunnel(self, *, reset: bool = False) -> None:
        connection = self._connection
        if connection is not None and not reset:
            self._connection = connection.carried = None
            connection.transport.close()  # unlike an abort, this delivers what is still to be written
        self._leave(reuse=False)
        self._client.cut(reset=reset)

    # ---- the end --------------------------------------------------------------------------------------------------

    def _keep(self) -> bool:
        """Whether the client's connection can carry another request after this one."""
        return self._head.keep_alive and self.body.done and not self._door.refusing

    def _connection_word(self, *, keep: bool) -> bytes:
        if not keep:
            return b"close"
        return b"" if self._head.minor else b"keep-alive"

    def _complete(self, head: ResponseHead, *, reuse: bool) -> None:
        place = self._door.counters.whole.observe(self._door.time() - self._started_at)
        if self._page is not None:
            self._page.done += 1
            self._page.tally.count(head.status, self._first_byte, place)
        self._leave(reuse=reuse and self.body.done and head.keep_alive)
        self._client.over(keep=self._stays)

    def _cut(self) -> None:
        self._door.counters.cuts += 1
        if self._page is not None:
            self._page.tally.fail()
        self._leave(reuse=False)
        self._client.cut(reset=self._answer is not None and self._answer.ends_clients_connection)

    def _leave(self, *, reuse: bool) -> None:
        """Let go of the queue and the replica, whatever the state; the second time nothing happens."""
        if self.hold_until:  # it may be in the queue
            self._door.hold.remove(self)
        if self._connecting is not None:
            self._connecting.cancel()
            self._connecting = None
        connection, page = self._connection, self._page
        if connection is not None and reuse and connection.let_go():
            self._connection = None
            self._door.pool.put_idle(connection.page, connection, self._door.time())
        else:
            self._drop_connection()
        if page is not None:
            self._page = None
            self._give_place(page)

    def _give_place(self, page: Page) -> None:
        door = self._door
        door.pool.leave(page)
        if door.hold.waiting and door.pool.limited:
            asyncio.get_running_loop().call_soon(door.release_held)

    def _drop_connection(self) -> None:
        connection = self._connection
        if connection is not None:
            self._connection = connection.carried = None
            connection.close()
