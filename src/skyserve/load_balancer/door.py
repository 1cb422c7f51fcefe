"""What all connections of the door share: the table in force, the books, the queue, the counters.

It decides which replica takes a request and who waits. It must not know sockets; its clock is handed in.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Collection
from itertools import count
from random import Random
from typing import Protocol

from skyserve.clock import SystemClock
from skyserve.load_balancer import keys
from skyserve.load_balancer.framing import KnownHead, RequestHead, ResponseHead
from skyserve.load_balancer.hold import Hold
from skyserve.load_balancer.knock import Knocks
from skyserve.load_balancer.limits import Limits
from skyserve.load_balancer.policies import LeastLoad, Policy, make_policy
from skyserve.load_balancer.pool import Pool, Upstream
from skyserve.load_balancer.recent import Recent
from skyserve.load_balancer.report import Counters
from skyserve.load_balancer.shares import Lots
from skyserve.load_balancer.upstream import UpstreamConnection
from skyserve.load_balancer.wire import DoorReport
from skyserve.model.evidence import LoadReport
from skyserve.model.routing import RoutingTable

logger = logging.getLogger("skyserve.load_balancer")

Page = Upstream[UpstreamConnection]

DEFAULT_LIMITS = Limits()

BURST_S = 6
"""The span of the rate of arrivals that tells a burst, seconds."""

UNKNOWN_S = 5.0
"""When a client should come again of which nothing is known."""

LONGEST_S = 3600


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

    def show_key(self) -> None:
        """The API keys have changed: be refused when its own is none of them any more."""
        ...


class Door:
    """The shared state. `time` is a monotonic clock in seconds; `on_news` is called when the controller should hear
    of something at once, and may be set later. `refusing`: the service closes, or this process does.
    `id_prefix` and the next of `ids` make the id of a request that has none.
    `heads` are the last plain ones of short answers, by replica id.
    `keys` are the API keys that requests need, None when they need none."""

    def __init__(self, boot: str, time: Callable[[], float], rng: Random, limits: Limits = DEFAULT_LIMITS) -> None:
        self.boot = boot
        self.time = time
        self.rng = rng
        self.limits = limits
        self.on_news: Callable[[], None] = _no_news
        self.table = RoutingTable(number=0)
        self.settings = self.table.settings
        self.keys: keys.Keys | None = None
        self.recent = Recent(time())
        self.pool: Pool[UpstreamConnection] = Pool(self._news, self.recent)
        self.knocks = Knocks(self.pool, time, lambda: self.settings.connect_timeout_seconds)
        self.hold: Hold[Waiting] = Hold(self._news)
        self.counters = Counters(time())
        self.id_prefix = b"%016x" % rng.getrandbits(64)
        self.ids = count()
        self.heard_at = time()
        self.heads: dict[int, KnownHead[ResponseHead]] = {}
        self.refusing = False
        self.wall: Callable[[], float] = SystemClock().now
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
        self._change_keys(table)
        if self.refusing:
            self.give_up_held()
        else:
            self.release_held()
        self._news()
        return True

    def _change_keys(self, table: RoutingTable) -> None:
        """Whoever waits was let in by the keys before, or while none were known: it has to show its own again."""
        before, self.keys = self.keys, keys.for_table(table, self.keys)
        if self.keys is not None and self.keys is not before:
            for held in self.hold:
                held.show_key()

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
        if self.recent.look(now, self.pool.pages(), self.pool.under_way(), len(self.hold)):
            self._news()

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
            burst_arrivals_per_s=counters.arrivals_per_s(now, BURST_S),
            burst_window_s=counters.window_s(now, BURST_S),
        )
        load = self.recent.tell(load, self.pool.pages())
        return DoorReport(load, self.pool.suspects(), dict(counters.responses), counters.retries)

    def retry_after_s(self) -> int:
        """After how many seconds a client that cannot be served now should come again.

        While no replica is ready, when the next one is expected; one that is late is given as long again as it is late.
        While all are busy, how long those that wait will take, by what was finished in the last minute.
        """
        if self.pool.busy:
            done = self.recent.finished_per_s
            return _whole_seconds(len(self.hold) / done if done else UNKNOWN_S)
        start_s = self.table.start_s or UNKNOWN_S
        if self.table.ready_at is None:
            return _whole_seconds(start_s)
        left_s = self.table.ready_at - self.wall()
        return _whole_seconds(left_s if left_s > 0 else min(-left_s, start_s))

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


def _whole_seconds(seconds: float) -> int:
    return min(LONGEST_S, max(1, math.ceil(seconds)))


def _no_news() -> None:
    return None
