"""The books on replicas: requests in flight, idle connections, ejection, time to first byte. Keyed by replica id.

It knows counts and instants (seconds of the caller's monotonic clock), and sockets only as things that can be closed.
It must not know HTTP or policies. Nothing else in the door counts.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Generic, Protocol, TypeVar

from skyserve.load_balancer.board import Board, read_verdict, verdict
from skyserve.load_balancer.recent import Recent, Tally
from skyserve.model.routing import Endpoint

IDLE_LIMIT_S = 4.0
"""How long a connection may lie idle. Common servers close theirs after 5 s."""

EJECTION_S = 1.0
"""The first time that a replica which refuses connections is left out; it doubles each time."""

EJECTION_MAX_S = 10.0

STRIKES = 3
"""Connections in a row that end without an answer before a replica is left out like one that refuses."""

_EWMA_WEIGHT = 0.2


class Closable(Protocol):
    """A connection, as far as the pool knows it."""

    idle_since: float

    def close(self) -> None:
        """Close it now."""
        ...


Conn = TypeVar("Conn", bound=Closable)


class Upstream(Generic[Conn]):
    """The door's page on one replica. Policies read it; only the pool writes it.

    `in_flight` are the requests of all workers, as far as is known here; `own` are those of this one. `heard` is what
    was last said about it among them. `done` of this one's have come to their end, and `taken_s` is how long all of
    them together were under way. `tally` is its version's.
    """

    __slots__ = (
        "accepted_at",
        "address",
        "done",
        "draining",
        "ejected_until",
        "ejection_s",
        "ewma_s",
        "heard",
        "idle",
        "in_flight",
        "listed_at",
        "own",
        "refuses",
        "removed",
        "replica_id",
        "strikes",
        "suspect",
        "taken_s",
        "tally",
        "tls",
        "trial",
        "weight",
    )

    def __init__(self, row: Endpoint, now: float, tally: Tally) -> None:
        self.listed_at = now
        self.tally = tally
        self.done = 0
        self.taken_s = 0.0
        self.replica_id = row.replica_id
        self.address = row.address
        self.tls = row.tls
        self.weight = row.weight
        self.draining = row.draining
        self.removed = False
        self.in_flight = 0
        self.own = 0
        self.ewma_s = 0.0
        self.accepted_at = float("-inf")
        self.heard = 0
        self.idle: list[Conn] = []
        self.forgive()

    def forgive(self) -> None:
        """Forget what was held against it."""
        self.strikes = 0
        self.suspect = False
        self.refuses = False
        self.ejection_s = 0.0
        self.ejected_until = 0.0
        self.trial = False

    @property
    def leaving(self) -> bool:
        """It gets no new requests."""
        return self.draining or self.removed

    def usable(self, now: float) -> bool:
        """Not ejected, or due for its one trial."""
        return not self.ejected_until or (now >= self.ejected_until and not self.trial)

    def reachable(self, now: float) -> bool:
        """Not known to refuse connections, or due for its trial."""
        return not self.refuses or self.usable(now)


class Pool(Generic[Conn]):
    """All pages. `on_news` is called when the controller should hear something at once."""

    def __init__(self, on_news: Callable[[], None], recent: Recent | None = None) -> None:
        self._on_news = on_news
        self._pages: dict[int, Upstream[Conn]] = {}
        self.recent = recent or Recent(0.0)
        self._routable: tuple[Upstream[Conn], ...] = ()
        self._ejected = 0
        self.ejections = 0
        self._most: int | None = None
        self._slow_start_s = 0.0
        self._warm_at = 0.0
        self._board: Board | None = None
        self._news = b""

    def share(self, board: Board | None) -> None:
        """Tell other workers what is in flight here and who is ejected, and hear it of them. None: there are none."""
        joins = board is not self._board
        self._board = board
        for page in self._pages.values():
            if board is None:
                page.in_flight = page.own
            else:
                board.write(page.replica_id, page.own)
                if joins:
                    page.heard = board.told(page.replica_id)

    def limit(self, most: int | None, slow_start_s: float) -> None:
        """Give no replica more than `most` requests at once, and a new one its full share only after a while."""
        self._most = most
        self._slow_start_s = slow_start_s

    @property
    def limited(self) -> bool:
        """Whether a replica can be full."""
        return self._most is not None

    @property
    def busy(self) -> bool:
        """Whether there are replicas, and each of them is full."""
        most = self._most
        return most is not None and bool(self._routable) and all(page.in_flight >= most for page in self._routable)

    def apply(self, rows: Iterable[Endpoint], now: float) -> None:
        """Take over a new list of replicas. Requests under way are left alone."""
        listed = {row.replica_id: row for row in rows}
        for page in list(self._pages.values()):
            if page.replica_id not in listed:
                page.removed = True
                self._drop_idle(page)
                self._forget_if_gone(page)
        for row in listed.values():
            page = self._pages.get(row.replica_id) or self._new_page(row, now)
            moved = (page.address, page.tls) != (row.address, row.tls)
            if page.leaving or moved:
                self._start_afresh(page)
            if row.draining or moved:
                self._drop_idle(page)
            if (page.leaving and not row.draining) or moved:
                page.listed_at = now
            page.removed = False
            page.tally = self.recent.tally(row.version)
            page.address, page.tls, page.weight, page.draining = row.address, row.tls, row.weight, row.draining
        self._routable = tuple(self._pages[id_] for id_ in sorted(listed) if not self._pages[id_].draining)
        self._warm_at = self._slow_start_s + max((page.listed_at for page in self._routable), default=0.0)
        self._count_ejected()

    def pages(self) -> Collection[Upstream[Conn]]:
        """The pages of all replicas that are listed, or still have requests."""
        return self._pages.values()

    def page(self, replica_id: int) -> Upstream[Conn] | None:
        """The page of a replica that is listed, or still has requests."""
        return self._pages.get(replica_id)

    def candidates(self, now: float, tried: Collection[int]) -> Sequence[Upstream[Conn]]:
        """The replicas that may take a request which has been on `tried`.

        Those that are ejected only because they drop requests are among them when there is no other: to wait for one
        that is there would be in vain.
        """
        if self._board is not None:
            self._look_at(self._board)
        if not self._ejected and not tried and self._most is None:
            return self._routable if now >= self._warm_at else self._warm_enough(self._routable, now)
        untried = self.last_resort(tried)
        usable = [page for page in untried if page.usable(now)]
        if now < self._warm_at:
            usable = list(self._warm_enough(usable, now))
        return usable or [page for page in untried if page.reachable(now)]

    def last_resort(self, tried: Collection[int]) -> Sequence[Upstream[Conn]]:
        """Those too that are ejected: better than nothing. But none that is full."""
        most = self._most
        return [
            page for page in self._routable if page.replica_id not in tried and (most is None or page.in_flight < most)
        ]

    def _warm_enough(self, pages: Sequence[Upstream[Conn]], now: float) -> Sequence[Upstream[Conn]]:
        """Without the new ones that have their share already: of what the busiest one has, as much as they are old."""
        old = [page.in_flight for page in pages if now - page.listed_at >= self._slow_start_s]
        if not old or len(old) == len(pages):
            return pages
        busiest, span = max(old), self._slow_start_s
        return [
            page
            for page in pages
            if now - page.listed_at >= span or page.in_flight < busiest * (now - page.listed_at) / span or not busiest
        ]

    def enter(self, page: Upstream[Conn], now: float) -> None:
        """A request goes to this replica."""
        page.own += 1
        page.in_flight += 1
        if self._board is not None:
            self._board.write(page.replica_id, page.own)
        if page.ejected_until and now >= page.ejected_until:
            page.trial = True
            self._tell(page, verdict(now + EJECTION_S, page.ejection_s, refuses=page.refuses))

    def leave(self, page: Upstream[Conn]) -> None:
        """A request has left this replica, one way or another."""
        page.own -= 1
        page.in_flight -= 1
        if self._board is not None:
            self._board.write(page.replica_id, page.own)
        page.trial = False
        if page.own == 0 and (page.draining or page.removed):
            self._forget_if_gone(page)
            self._on_news()

    def connected(self, page: Upstream[Conn], now: float) -> None:
        """It accepted a connection, so it no longer refuses. What it left unanswered is not forgotten."""
        page.accepted_at = now
        page.refuses = False
        if page.suspect and page.strikes < STRIKES:
            strikes = page.strikes
            self._forgive(page)
            page.strikes, page.suspect = strikes, strikes > 0

    def answered(self, page: Upstream[Conn], after_s: float) -> None:
        """It began to answer, `after_s` seconds after it was asked."""
        page.ewma_s = after_s if page.ewma_s == 0.0 else page.ewma_s + _EWMA_WEIGHT * (after_s - page.ewma_s)
        if page.suspect:
            self._forgive(page)

    def refused(self, page: Upstream[Conn], now: float) -> None:
        """It refused a connection or could not be reached."""
        page.refuses = True
        self._suspect(page)
        self._eject(page, now)

    def unanswered(self, page: Upstream[Conn], now: float) -> None:
        """It took a request on a fresh connection and ended that without a byte."""
        page.strikes += 1
        page.tally.fail()
        self._suspect(page)
        if page.strikes >= STRIKES:
            self._eject(page, now)

    def take_idle(self, page: Upstream[Conn], now: float, limit_s: float = IDLE_LIMIT_S) -> Conn | None:
        """The connection used last, if that is less than `limit_s` ago. The older ones are closed in time."""
        if not page.idle or now - page.idle[-1].idle_since >= limit_s:
            return None
        return page.idle.pop()

    def put_idle(self, page: Upstream[Conn], connection: Conn, now: float) -> None:
        """Keep a connection for the next request."""
        if page.draining or page.removed:
            connection.close()
            return
        connection.idle_since = now
        page.idle.append(connection)

    def lost_idle(self, page: Upstream[Conn], connection: Conn) -> None:
        """An idle connection ended by itself."""
        if connection in page.idle:
            page.idle.remove(connection)

    def close_old(self, now: float) -> None:
        """Close what has been idle for too long."""
        for page in self._pages.values():
            while page.idle and now - page.idle[0].idle_since >= IDLE_LIMIT_S:
                page.idle.pop(0).close()

    def close_idle(self) -> None:
        """Close every idle connection."""
        for page in self._pages.values():
            self._drop_idle(page)

    def in_flight(self) -> dict[int, int]:
        """Requests under way by replica id, those of replicas that are leaving included."""
        return {page.replica_id: page.own for page in self._pages.values()}

    def under_way(self) -> int:
        """Requests that replicas have, those of all workers among them."""
        if self._board is None:
            return sum(page.own for page in self._pages.values())
        return sum(self._board.total(page.replica_id) for page in self._pages.values())

    def suspects(self) -> tuple[int, ...]:
        """Ids of the replicas that refused, could not be reached or did not answer, and have not been well since."""
        return tuple(page.replica_id for page in self._pages.values() if page.suspect)

    def _suspect(self, page: Upstream[Conn]) -> None:
        if not page.suspect:
            page.suspect = True
            self._on_news()

    def _eject(self, page: Upstream[Conn], now: float) -> None:
        page.trial = False
        if now < page.ejected_until:  # tried as a last resort: that says nothing new
            return
        page.ejection_s = min(EJECTION_MAX_S, page.ejection_s * 2 or EJECTION_S)
        page.ejected_until = now + page.ejection_s
        self.ejections += 1
        self._tell(page, verdict(page.ejected_until, page.ejection_s, refuses=page.refuses))
        self._drop_idle(page)
        self._count_ejected()

    def _forgive(self, page: Upstream[Conn]) -> None:
        if page.ejected_until:
            self._tell(page, 0)
        page.forgive()
        self._count_ejected()

    def _new_page(self, row: Endpoint, now: float) -> Upstream[Conn]:
        page: Upstream[Conn] = Upstream(row, now, self.recent.tally(row.version))
        self._pages[row.replica_id] = page
        self._start_afresh(page)
        return page

    def _start_afresh(self, page: Upstream[Conn]) -> None:
        """Forget what was held against it; what was said before now concerns it no more."""
        page.forgive()
        if self._board is not None:
            page.heard = self._board.told(page.replica_id)

    def _look_at(self, board: Board) -> None:
        """See what other workers have in flight, and whom they have found not to be well, or well again."""
        for page in self._routable:
            page.in_flight = board.total(page.replica_id)
        news = board.news()
        if news == self._news:
            return
        self._news = news
        for page in self._routable:
            said = board.told(page.replica_id)
            if said != page.heard:
                page.heard = said
                self._believe(page, said)
        self._count_ejected()

    def _believe(self, page: Upstream[Conn], said: int) -> None:
        """Take over another worker's verdict. The controller has heard of it from that one."""
        if not said:
            page.forgive()
            return
        page.ejected_until, page.ejection_s, page.refuses = read_verdict(said)
        page.suspect, page.trial = True, False
        if not page.refuses:
            page.strikes = STRIKES
        self._drop_idle(page)

    def _tell(self, page: Upstream[Conn], said: int) -> None:
        if self._board is not None:
            page.heard = said
            self._board.tell(page.replica_id, said)

    def _count_ejected(self) -> None:
        self._ejected = sum(1 for page in self._routable if page.ejected_until)

    def _drop_idle(self, page: Upstream[Conn]) -> None:
        idle, page.idle = page.idle, []
        for connection in idle:
            connection.close()

    def _forget_if_gone(self, page: Upstream[Conn]) -> None:
        if page.removed and page.own == 0:
            self._pages.pop(page.replica_id, None)
