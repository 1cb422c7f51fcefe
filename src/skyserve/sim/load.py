"""Simulated requests on simulated replicas: who waits, who is served, how long it takes, what the door would report.

Knows replicas by id and speed only. Must not know machines, prices or the clock: instants come from the caller.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush, heapreplace
from itertools import islice
from random import Random

from skyserve.model.evidence import LoadReport
from skyserve.model.service import LoadBalancer
from skyserve.sim.arrivals import Batch, Requests
from skyserve.sim.result import Served

_WINDOW_S = 60.0
_BURST_S = 6.0
WAITS_S = (0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
"""Limits for which it is told how many requests did not wait longer, seconds."""
_PERCENTILES = (50.0, 90.0, 95.0, 99.0)
_SHORTEST_S = 0.001

# How busy a slot is, as one number: requests in flight times _ONE, plus when it was last given one. The least of these
# belongs to the replica that has the fewest requests and, among equals, has waited longest.
_ONE = 1 << 40
_TURN = _ONE - 1
_CLOSED = 1 << 60

# Durations are counted in bins of equal ratio, 1 % wide: from a microsecond to some 40 years.
_BINS = 3500
_BINS_PER_E = 100.0
_FIRST_BIN = 1400.0
_NOTHING_S = 1e-6


@dataclass(frozen=True, slots=True)
class Speed:
    """What one replica of relative speed 1 does: tokens a second it reads, tokens a second it writes for each request,
    and how many requests it works on at once. What exceeds that waits; below it requests do not slow each other down.

    The defaults are those of a model of 8 billion parameters on one A100 under vLLM: in a published sweep with 1,024
    tokens in and 128 out (Llama-3.1-8B, A100-40GB, vLLM 0.23) each request gets some 60 tokens a second up to eight at
    once, where the curve has its knee; reading is bound by arithmetic, half of 312 teraflops at 16 gigaflops a token.
    """

    prefill_tokens_per_s: float = 8000.0
    decode_tokens_per_s: float = 60.0
    concurrency: int = 8

    def seconds(self, prompt: Sequence[float], answer: Sequence[float]) -> list[float]:
        """How long each of these requests takes from its start to its last token."""
        reads, writes, least = 1 / self.prefill_tokens_per_s, 1 / self.decode_tokens_per_s, _SHORTEST_S
        return [max(least, comes * reads + goes * writes) for comes, goes in zip(prompt, answer, strict=True)]


class Durations:
    """Percentiles of any number of durations, to half a per cent, in bounded memory."""

    __slots__ = ("bins", "none")

    def __init__(self) -> None:
        self.bins = [0] * _BINS
        self.none = 0
        """How many took no time at all."""

    def add(self, seconds: float) -> None:
        """Count one."""
        if seconds < _NOTHING_S:
            self.none += 1
        else:
            self.bins[int(math.log(seconds) * _BINS_PER_E + _FIRST_BIN)] += 1

    def within(self, seconds: float) -> int:
        """How many took no longer, to half a per cent of the limit."""
        last = int(math.log(max(seconds, _NOTHING_S)) * _BINS_PER_E + _FIRST_BIN)
        return self.none + sum(self.bins[: last + 1])

    def percentiles(self) -> dict[float, float]:
        """The usual ones; nothing when nothing was counted."""
        total, seen, found = self.none + sum(self.bins), self.none, dict[float, float]()
        wanted = [percent for percent in _PERCENTILES if total]
        while wanted and seen >= wanted[0] / 100 * total:
            found[wanted.pop(0)] = 0.0
        for place, count in enumerate(self.bins):
            seen += count
            while count and wanted and seen >= wanted[0] / 100 * total - 1e-9:
                found[wanted.pop(0)] = math.exp((place + 0.5 - _FIRST_BIN) / _BINS_PER_E)
        return found


@dataclass(frozen=True, slots=True)
class _Level:
    """How it stood at one instant: requests under way and waiting, and by replica those under way and those done."""

    at: float
    ongoing: int
    in_flight: dict[int, int]
    done: dict[int, int]


_Running = tuple[float, int, float, float]
"""When it ends, its slot, when it arrived, when it was begun."""
_Waiting = tuple[float, float, float]
"""Since when it waits, when it arrived, its seconds of work."""


class Traffic:
    """One service's requests, door and replicas, moved on by `advance`. The same seed gives the same requests,
    whatever becomes of them.

    Requests go to the replica with the fewest of them. Where all are full, or none is ready, they wait in a queue of
    `queue_size` for at most `queue_timeout_seconds`, and are rejected beyond that. What a lost replica was working on
    is begun anew elsewhere, before all that waits.
    """

    def __init__(
        self, requests: Requests, *, speed: Speed = Speed(), door: LoadBalancer | None = None, seed: int = 0
    ) -> None:
        door = door or LoadBalancer()
        self._batches = requests.batches(Random(seed))
        self._speed = speed
        self._queue_size, self._patience_s = door.queue_size, door.queue_timeout_seconds
        self._full = speed.concurrency * _ONE
        self._began_at: float | None = None
        self._ready: tuple[tuple[int, float], ...] = ()
        self._leaving: frozenset[int] = frozenset()
        # Replicas by slot. The last slot is nobody's and always closed, so that there is a least one.
        self._slot_of: dict[int, int] = {}
        self._loads: list[int] = [_CLOSED]
        self._pace: list[float] = [1.0]
        self._done: list[int] = [0]
        self._running: list[_Running] = []
        self._queue: deque[_Waiting] = deque()
        self._again: deque[_Waiting] = deque()
        self._recent: deque[list[float]] = deque()
        self._instants: list[float] = []
        self._work: list[float] = []
        self._next = 0
        self._taken = 0
        self._levels: deque[_Level] = deque()
        self._latency, self._waited = Durations(), Durations()
        self._requests_total = self._requests_before = self._rejected = self._retried = 0

    def advance(
        self, from_at: float, to_at: float, ready: Sequence[tuple[int, float]], leaving: Collection[int] = ()
    ) -> LoadReport:
        """Move on to `to_at` with these replicas (id, relative speed) ready all the time; say what the door then says.

        Replicas that are no longer among them are lost with their requests, but those in `leaving` finish theirs.
        """
        if self._began_at is None:
            self._began_at = from_at
            self._take(next(self._batches))
        self._depart(from_at)
        if tuple(ready) != self._ready or frozenset(leaving) != self._leaving:
            self._change(from_at, tuple(ready), frozenset(leaving))
        while True:
            end = bisect_right(self._instants, to_at, self._next)
            self._arrive(end)
            if self._next < len(self._instants):
                break
            self._take(next(self._batches))
        self._depart(to_at)
        self._expire(to_at)
        return self._report(to_at)

    def count_from_here(self) -> None:
        """Forget what was counted: the measured part begins."""
        self._latency, self._waited = Durations(), Durations()
        self._requests_before, self._rejected, self._retried = self._requests_total, 0, 0

    def served(self) -> Served:
        """What became of the requests so far. Those that still run or wait are neither completed nor rejected."""
        return Served(
            requests=self._requests_total - self._requests_before,
            completed=self._latency.none + sum(self._latency.bins),
            rejected=self._rejected,
            retried=self._retried,
            latency_s=self._latency.percentiles(),
            waited_s=self._waited.percentiles(),
            waited_within={limit: self._waited.within(limit) for limit in WAITS_S},
        )

    def _take(self, batch: Batch) -> None:
        """Make a batch the present one. Batches lie in time one after the other."""
        relative, prompt, answer = batch
        began_at = self._began_at or 0.0
        self._instants = [began_at + at for at in relative]
        self._work = self._speed.seconds(prompt, answer)
        self._next = 0
        self._recent.append(self._instants)

    def _arrive(self, end: int) -> None:
        """Let the requests of the present batch up to `end` arrive, and meanwhile let others finish."""
        running, loads, pace, full = self._running, self._loads, self._pace, self._full
        bins, none_waited, turn, log = self._latency.bins, 0, self._taken, math.log
        instants, work, per_e, first = self._instants, self._work, _BINS_PER_E, _FIRST_BIN
        done, queued = self._done, self._queue or self._again
        for i in range(self._next, end):
            at = instants[i]
            while running and running[0][0] <= at:
                if queued:
                    self._hand_over()
                    queued = self._queue or self._again
                    continue
                ended, slot, arrived, begun = heappop(running)
                loads[slot] -= _ONE
                done[slot] += 1
                bins[int(log(ended - arrived) * per_e + first)] += 1
                if begun == arrived:
                    none_waited += 1
                else:
                    self._waited.add(begun - arrived)
            least = min(loads)
            if least < full:
                turn += 1
                slot = loads.index(least)
                loads[slot] = (least | _TURN) + 1 + turn
                heappush(running, (at + work[i] * pace[slot], slot, at, at))
            else:
                self._wait(at, work[i])
                queued = self._queue
        self._requests_total += max(0, end - self._next)
        self._next, self._taken = max(end, self._next), turn
        self._waited.none += none_waited

    def _depart(self, until_at: float) -> None:
        """Let requests finish, and those that wait take their places."""
        while self._running and self._running[0][0] <= until_at:
            self._hand_over()

    def _hand_over(self) -> None:
        """Let the next request finish; the first that waits takes its place."""
        ended, slot, arrived, begun = self._running[0]
        self._latency.add(ended - arrived)
        self._waited.add(begun - arrived)
        self._done[slot] += 1
        waiting = self._first_waiting(ended) if self._loads[slot] < _CLOSED else None
        if waiting is None:
            heappop(self._running)
            self._loads[slot] -= _ONE
            return
        _, came_at, work = waiting
        heapreplace(self._running, (ended + work * self._pace[slot], slot, came_at, ended))

    def _first_waiting(self, now: float) -> _Waiting | None:
        self._expire(now)
        if self._again:
            return self._again.popleft()
        return self._queue.popleft() if self._queue else None

    def _wait(self, at: float, work: float) -> None:
        if len(self._queue) >= self._queue_size:
            self._expire(at)
        if len(self._queue) >= self._queue_size:
            self._rejected += 1
        else:
            self._queue.append((at, at, work))

    def _expire(self, now: float) -> None:
        """Reject what has waited too long."""
        too_old = now - self._patience_s
        for waiting in (self._again, self._queue):
            while waiting and waiting[0][0] < too_old:
                waiting.popleft()
                self._rejected += 1

    def _change(self, now: float, ready: tuple[tuple[int, float], ...], leaving: frozenset[int]) -> None:
        """Let replicas go and come, and give those that have room what waits."""
        self._ready, self._leaving = ready, leaving
        stay = {replica_id for replica_id, _ in ready}
        for replica_id, slot in list(self._slot_of.items()):
            if replica_id in stay:
                continue
            if replica_id not in leaving:
                self._lose(now, slot)
            self._loads[slot] |= _CLOSED
            if self._loads[slot] < _CLOSED + _ONE:
                del self._slot_of[replica_id]
        for replica_id, speed in ready:
            if replica_id not in self._slot_of:
                self._slot_of[replica_id] = self._free_slot()
                self._loads[self._slot_of[replica_id]] = 0
                self._done[self._slot_of[replica_id]] = 0
            slot = self._slot_of[replica_id]
            self._loads[slot] &= ~_CLOSED
            self._pace[slot] = 1 / speed
        self._fill(now)

    def _free_slot(self) -> int:
        used = set(self._slot_of.values())
        slot = next(i for i in range(len(self._loads)) if i not in used)
        if slot == len(self._loads) - 1:
            self._loads.append(_CLOSED)
            self._pace.append(1.0)
            self._done.append(0)
        return slot

    def _lose(self, now: float, slot: int) -> None:
        """What ran there has to be done again."""
        lost = sorted((run for run in self._running if run[1] == slot), key=lambda run: run[2])
        if lost:
            # In place, and not by a new list: `_arrive` holds on to this one.
            self._running[:] = [run for run in self._running if run[1] != slot]
            heapify(self._running)
        for ended, _, arrived, begun in lost:
            self._again.append((now, arrived, max(_SHORTEST_S, (ended - begun) / self._pace[slot])))
        self._retried += len(lost)
        self._loads[slot] = _CLOSED

    def _fill(self, now: float) -> None:
        """Begin what waits wherever there is room."""
        while self._again or self._queue:
            least = min(self._loads)
            if least >= self._full:
                return
            waiting = self._first_waiting(now)
            if waiting is None:
                return
            self._taken += 1
            slot = self._loads.index(least)
            self._loads[slot] = (least | _TURN) + 1 + self._taken
            _, arrived, work = waiting
            heappush(self._running, (now + work * self._pace[slot], slot, arrived, now))

    def _report(self, now: float) -> LoadReport:
        began_at = now if self._began_at is None else self._began_at
        window_s = min(_WINDOW_S, max(1.0, now - began_at))
        while len(self._recent) > 1 and (not self._recent[0] or self._recent[0][-1] <= now - window_s):
            self._recent.popleft()
        in_flight, held = dict(self._in_flight()), len(self._queue) + len(self._again)
        done = {replica_id: self._done[slot] for replica_id, slot in self._slot_of.items()}
        levels = self._levels
        levels.append(_Level(now, held + sum(in_flight.values()), in_flight, done))
        while len(levels) > 1 and levels[1].at <= now - _WINDOW_S:
            levels.popleft()
        done_per_s, busy = self._rates(levels)
        last = [level.ongoing for level in levels if level.at >= now - 1.0]
        if len(last) == 1 and len(levels) > 1:
            last.append(levels[-2].ongoing)
        return LoadReport(
            at=now,
            boot="sim",
            table=0,
            in_flight=in_flight,
            held=held,
            requests_total=self._requests_total,
            arrivals_per_s=self._arrivals(now, window_s) / window_s,
            window_s=window_s,
            burst_arrivals_per_s=self._arrivals(now, min(_BURST_S, window_s)) / min(_BURST_S, window_s),
            burst_window_s=min(_BURST_S, window_s),
            ongoing=_mean(levels, now - _WINDOW_S),
            burst_ongoing=_mean(levels, now - _BURST_S),
            steady_ongoing=min(last),
            done_per_s=done_per_s,
            busy=busy,
        )

    def _arrivals(self, now: float, seconds: float) -> int:
        return sum(bisect_right(batch, now) - bisect_right(batch, now - seconds) for batch in self._recent)

    def _rates(self, levels: deque[_Level]) -> tuple[dict[int, float], dict[int, float]]:
        """Requests finished a second, and mean requests under way, by replica, over what is remembered of it."""
        first: dict[int, tuple[float, int]] = {}
        sums: dict[int, tuple[int, int]] = {}
        for level in levels:
            for replica_id, count in level.in_flight.items():
                first.setdefault(replica_id, (level.at, level.done[replica_id]))
                total, number = sums.get(replica_id, (0, 0))
                sums[replica_id] = total + count, number + 1
        last = levels[-1]
        done_per_s = {
            replica_id: (last.done[replica_id] - first[replica_id][1]) / (last.at - first[replica_id][0])
            for replica_id in last.in_flight
            if last.at > first[replica_id][0]
        }
        return done_per_s, {one: sums[one][0] / sums[one][1] for one in done_per_s}

    def _in_flight(self) -> Iterator[tuple[int, int]]:
        for replica_id, slot in self._slot_of.items():
            yield replica_id, (self._loads[slot] & ~_CLOSED) >> 40


def _mean(levels: deque[_Level], since_at: float) -> float:
    recent = [level.ongoing for level in levels if level.at > since_at]
    return sum(recent) / len(recent) if recent else 0.0


def requests_per_replica(requests: Requests, speed: Speed) -> float:
    """How many of these requests a second one replica of relative speed 1 can do, if it is never idle."""
    seconds: list[float] = []
    for _, prompt, answer in islice(requests.batches(Random(0)), 50):
        seconds += speed.seconds(prompt, answer)
        if len(seconds) >= 1000:
            break
    return speed.concurrency * len(seconds) / sum(seconds) if seconds else 0.0
