"""What all connections of the door share: the table in force, the books, the queue, the counters.

It decides which replica takes a request and who waits. It must not know sockets; its clock is handed in.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from itertools import count
from random import Random
from typing import Protocol

from skyserve.load_balancer.framing import RequestHead, ResponseHead
from skyserve.load_balancer.hold import Hold
from skyserve.load_balancer.knock import Knocks
from skyserve.load_balancer.limits import Limits
from skyserve.load_balancer.policies import LeastLoad, Policy, make_policy
from skyserve.load_balancer.pool import Pool, Upstream
from skyserve.load_balancer.report import Counters
from skyserve.load_balancer.shares import Lots
from skyserve.load_balancer.upstream import UpstreamConnection
from skyserve.load_balancer.wire import DoorReport
from skyserve.model.evidence import LoadReport
from skyserve.model.routing import RoutingTable

logger = logging.getLogger("skyserve.load_balancer")

Page = Upstream[UpstreamConnection]

DEFAULT_LIMITS = Limits()


class Waiting(Protocol):
    """A request that waits for a replica."""

    hold_until: float

    def resume(self) -> None:
        """Go to a replica now, or go on waiting when none of those there are will do."""
        ...

    def reconsider(self, now: float) -> None:
        """Some time has passed: give up when it has become clear that waiting is in vain."""
        ...

    def give_up(self) -> None:
        """Its deadline has passed, or the service closes: answer so."""
        ...


class Door:
    """The shared state. `time` is a monotonic clock in seconds; `on_news` is called when the controller should hear
    of something at once, and may be set later. `refusing`: the service closes, or this process does.
    `id_prefix` and the next of `ids` make the id of a request that has none.
    `heads` are the last plain ones of short answers, by replica id."""

    def __init__(self, boot: str, time: Callable[[], float], rng: Random, limits: Limits = DEFAULT_LIMITS) -> None:
        self.boot = boot
        self.time = time
        self.rng = rng
        self.limits = limits
        self.on_news: Callable[[], None] = _no_news
        self.table = RoutingTable(number=0)
        self.settings = self.table.settings
        self.pool: Pool[UpstreamConnection] = Pool(self._news)
        self.knocks = Knocks(self.pool, time, lambda: self.settings.connect_timeout_seconds)
        self.hold: Hold[Waiting] = Hold(self._news)
        self.counters = Counters(time())
        self.id_prefix = b"%016x" % rng.getrandbits(64)
        self.ids = count()
        self.heard_at = time()
        self.heads: dict[int, ResponseHead] = {}
        self.refusing = False
        self._stopping = False
        self.body_limit: float = _bytes(self.settings.max_body_mib)
        self._policy: Policy = LeastLoad()
        self._lots = Lots(lambda: self._policy_named(self.table.policy, self.settings.session_key))

    def apply(self, table: RoutingTable) -> bool:
        """Obey `table` from now on. False, and nothing changes, when one as new is in force."""
        self.heard_at = self.time()
        if table.number <= self.table.number:
            return False
        anew = (table.policy, table.settings.session_key) != (self.table.policy, self.settings.session_key)
        if anew:
            self._policy = self._policy_named(table.policy, table.settings.session_key)
        self.table, self.settings = table, table.settings
        self._lots.follow(table, anew=anew)
        self.body_limit = _bytes(table.settings.max_body_mib)
        self.pool.limit(table.settings.max_concurrency_per_replica, table.settings.slow_start_seconds)
        self.pool.apply(table.endpoints, self.time())
        self.heads.clear()
        self.refusing = self._stopping or table.closing
        if self.refusing:
            self.give_up_held()
        else:
            self.release_held()
        self._news()
        return True

    def stop(self) -> None:
        """Take no new requests; those that wait are told so."""
        self.refusing = self._stopping = True
        self.give_up_held()
        self.knocks.stop()
        self.pool.close_idle()

    def choose(self, request: RequestHead, tried: Collection[int]) -> Page | None:
        """The replica for a request that has been on `tried`, or None when it has to wait."""
        candidates = self.pool.candidates(self.time(), tried)
        if not candidates and not self.hold:
            candidates = self.pool.last_resort(tried)
        if self.table.shares and candidates:
            return self._lots.pick(request, candidates, self.rng)
        return self._policy.pick(request, candidates, self.rng) if candidates else None

    def release_held(self) -> None:
        """Let those who wait go on, in order, while there are replicas to go to."""
        for held in self.hold:
            if not self.pool.candidates(self.time(), ()):
                return
            held.resume()

    def give_up_held(self) -> None:
        """Answer everybody who waits."""
        for held in self.hold:
            held.give_up()

    def sweep(self) -> None:
        """What has to be done from time to time: deadlines, trials of ejected replicas, old idle connections."""
        now = self.time()
        for held in self.hold.expired(now):
            held.give_up()
        for held in self.hold:
            held.reconsider(now)
        if self.hold:
            self.release_held()
        self.pool.close_old(now)

    def report(self) -> DoorReport:
        """The state of the door for the controller. `load.at` is left to whoever hears it."""
        now, counters = self.time(), self.counters
        load = LoadReport(
            at=0.0,
            boot=self.boot,
            table=self.table.number,
            in_flight=self.pool.in_flight(),
            held=len(self.hold),
            requests_total=counters.requests_total,
            arrivals_per_s=counters.arrivals_per_s(now),
            window_s=counters.window_s(now),
        )
        return DoorReport(load, self.pool.suspects(), dict(counters.responses), counters.retries)

    def _news(self) -> None:
        self.on_news()

    def _policy_named(self, name: str, session_key: str) -> Policy:
        policy = make_policy(name, session_key)
        if policy is None:
            logger.warning("no load balancing policy is called %r; least_load is used", name)
            return LeastLoad()
        return policy


def _bytes(mib: float | None) -> float:
    return float("inf") if mib is None else mib * 1024 * 1024


def _no_news() -> None:
    return None
