"""What the last minute was like: requests under way and held, answers by replica and by version. For autoscaling, and
for telling a bad version from a good one.

It knows numbers and instants of the caller's monotonic clock; it must not know sockets, requests or policies.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from operator import sub
from typing import Protocol

from skyserve.model.evidence import BOUNDS_S, LoadReport, VersionAnswers

WINDOW_S = 60.0
"""The span of the steady numbers."""
BURST_S = 6.0
"""The span of those that tell a burst."""
STEADY_S = 0.6
"""What was there at each look for so long is there, and no coincidence."""
JUMP = 4
"""That many more requests than were told of last, and half as many again, are worth a report at once."""
MARK_S = 5.0
"""How often the counts are remembered, to tell by how much they have grown within the window."""
QUIET_S = 60.0
"""An open answer in which nothing has moved for so long is not worth a replica of its own."""
KEPT_VERSIONS = 8
_BINS = len(BOUNDS_S) + 1


class Tally:
    """What became of the requests that replicas of one version got. Only grows."""

    __slots__ = ("answers", "errors", "first_byte", "whole")

    def __init__(self) -> None:
        self.answers = 0
        self.errors = 0
        self.first_byte = [0] * _BINS
        self.whole = [0] * _BINS

    def count(self, status: int, first_byte: int, whole: int) -> None:
        """An answer came to its end; the last two are the bins that its durations belong to."""
        self.answers += 1
        if status >= 500:
            self.errors += 1
        else:
            self.first_byte[first_byte] += 1
            self.whole[whole] += 1

    def fail(self) -> None:
        """An answer broke off, or never began."""
        self.answers += 1
        self.errors += 1


class Counted(Protocol):
    """A replica's page, as far as it is looked at here. `taken_s` sums up how long its requests were under way."""

    replica_id: int
    own: int
    done: int
    taken_s: float


@dataclass(frozen=True, slots=True)
class _Mark:
    """The counts at one instant."""

    at: float
    done: dict[int, tuple[int, float]]
    first_byte: list[int]
    whole: list[int]


@dataclass(slots=True)
class Recent:
    """Looked at four times a second. `tallies` are the versions', by number; `finished_per_s` are answers of the last
    minute that came to their end, a second."""

    now: float
    tallies: dict[int, Tally] = field(default_factory=dict)
    quiet: int = 0
    finished_per_s: float = 0.0
    _told: int = 0
    _looks: deque[tuple[float, int]] = field(default_factory=deque)
    _marks: deque[_Mark] = field(default_factory=deque)

    def tally(self, version: int) -> Tally:
        """Where the answers of a version are counted. Those of the oldest are forgotten in time."""
        known = self.tallies.get(version)
        if known is None:
            known = self.tallies[version] = Tally()
            for old in sorted(self.tallies)[:-KEPT_VERSIONS]:
                del self.tallies[old]
        return known

    def look(self, now: float, pages: Iterable[Counted], under_way: int, held: int) -> bool:
        """Some time has passed; whether what is seen is worth a report at once. `under_way` are the requests that
        replicas have, those of other workers among them, while all else is this worker's own."""
        passed_s, self.now = now - self.now, now
        for page in pages:
            page.taken_s += page.own * passed_s
        self._looks.append((now, max(0, under_way + held - self.quiet)))
        while self._looks[0][0] <= now - WINDOW_S:
            self._looks.popleft()
        if not self._marks or now - self._marks[-1].at >= MARK_S:
            self._mark(now, pages)
        self.finished_per_s = sum(self._rates(pages)[0].values())
        return self._steady() >= self._told * 1.5 + JUMP

    def _steady(self) -> int:
        return min((count for at, count in self._looks if at > self.now - STEADY_S), default=0)

    def _mark(self, now: float, pages: Iterable[Counted]) -> None:
        done = {page.replica_id: (page.done, page.taken_s) for page in pages}
        self._marks.append(_Mark(now, done, self._sum("first_byte"), self._sum("whole")))
        while len(self._marks) > 1 and self._marks[1].at <= now - WINDOW_S:
            self._marks.popleft()

    def _sum(self, name: str) -> list[int]:
        counts: Iterable[list[int]] = (getattr(tally, name) for tally in self.tallies.values())
        return [sum(column) for column in zip([0] * _BINS, *counts, strict=True)]

    def tell(self, load: LoadReport, pages: Iterable[Counted]) -> LoadReport:
        """The report with what is known here."""
        self._told = self._steady()
        first = self._first()
        done_per_s, busy = self._rates(pages)
        return replace(
            load,
            ongoing=self._mean(WINDOW_S),
            burst_ongoing=self._mean(BURST_S),
            steady_ongoing=self._told,
            quiet=self.quiet,
            first_byte=_grown(self._sum("first_byte"), first.first_byte),
            whole=_grown(self._sum("whole"), first.whole),
            done_per_s=done_per_s,
            busy=busy,
            versions=tuple(self._answers(version) for version in sorted(self.tallies)),
        )

    def _first(self) -> _Mark:
        return self._marks[0] if self._marks else _Mark(self.now, {}, [0] * _BINS, [0] * _BINS)

    def _rates(self, pages: Iterable[Counted]) -> tuple[dict[int, float], dict[int, float]]:
        """Answers finished a second, and mean requests under way, by replica, of those that had any."""
        first, done_per_s, busy = self._first(), dict[int, float](), dict[int, float]()
        passed_s = self.now - first.at
        for page in pages if passed_s > 0 else ():
            done, taken_s = first.done.get(page.replica_id, (0, 0.0))
            if page.done > done or page.taken_s > taken_s:
                done_per_s[page.replica_id] = round((page.done - done) / passed_s, 4)
                busy[page.replica_id] = round((page.taken_s - taken_s) / passed_s, 4)
        return done_per_s, busy

    def _mean(self, span_s: float) -> float:
        counts = [count for at, count in self._looks if at > self.now - span_s]
        return round(sum(counts) / len(counts), 3) if counts else 0.0

    def _answers(self, version: int) -> VersionAnswers:
        tally = self.tallies[version]
        return VersionAnswers(version, tally.answers, tally.errors, tuple(tally.first_byte), tuple(tally.whole))


def _grown(now: Sequence[int], before: Sequence[int]) -> tuple[int, ...]:
    """By how much; a version that was forgotten meanwhile takes nothing away."""
    return tuple(max(0, one) for one in map(sub, now, before))


def merged(
    whole: LoadReport, own: LoadReport, others: Sequence[LoadReport], gone: Sequence[VersionAnswers]
) -> LoadReport:
    """The report `whole` with what several workers' reports make together, of the numbers told here. `gone` is what
    workers that have ended had counted by version. Requests under way are known to each of them for all."""
    reports = [own, *others]
    more = sum(report.held - report.quiet for report in others)
    return replace(
        whole,
        burst_arrivals_per_s=sum(report.burst_arrivals_per_s for report in reports),
        ongoing=max(0.0, own.ongoing + more),
        burst_ongoing=max(0.0, own.burst_ongoing + more),
        steady_ongoing=max(0.0, own.steady_ongoing + more),
        quiet=sum(report.quiet for report in reports),
        first_byte=_added([report.first_byte for report in reports]),
        whole=_added([report.whole for report in reports]),
        done_per_s=_by_replica(report.done_per_s for report in reports),
        busy=_by_replica(report.busy for report in reports),
        versions=by_version([*gone, *(row for report in reports for row in report.versions)]),
    )


def _by_replica(rates: Iterable[Mapping[int, float]]) -> dict[int, float]:
    summed: dict[int, float] = {}
    for one in rates:
        for replica_id, rate in one.items():
            summed[replica_id] = summed.get(replica_id, 0.0) + rate
    return summed


def by_version(rows: Iterable[VersionAnswers]) -> tuple[VersionAnswers, ...]:
    """One row for each version."""
    summed: dict[int, VersionAnswers] = {}
    for row in rows:
        known = summed.get(row.version)
        summed[row.version] = (
            row
            if known is None
            else VersionAnswers(
                row.version,
                known.answers + row.answers,
                known.errors + row.errors,
                _added([known.first_byte, row.first_byte]),
                _added([known.whole, row.whole]),
            )
        )
    return tuple(summed[version] for version in sorted(summed))


def _added(rows: Sequence[Sequence[int]]) -> tuple[int, ...]:
    filled = [row for row in rows if row]
    return tuple(sum(column) for column in zip(*filled, strict=True))
