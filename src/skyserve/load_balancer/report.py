"""What the door counts for the controller: arrivals, answers by status, retries.

It knows numbers and instants of the caller's monotonic clock; it must not know sockets or replicas.
"""

from __future__ import annotations

from bisect import bisect_left

from skyserve.model.evidence import BOUNDS_S

WINDOW_S = 60
"""The span that the rate of arrivals is a mean of."""


class Histogram:
    """How many values fell below each of `bounds`, and their sum."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...] = BOUNDS_S) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        """One more."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value


class Counters:
    """Counts that only grow, and the rate of arrivals over a sliding window."""

    __slots__ = (
        "_buckets",
        "_last",
        "_started_at",
        "bytes_in",
        "bytes_out",
        "clients_gone",
        "cuts",
        "first_byte",
        "lag",
        "requests_total",
        "responses",
        "retries",
        "whole",
    )

    def __init__(self, now: float) -> None:
        self._started_at = now
        self._last = 0
        # One bucket a second: the window's, and the one that is just sliding out of it.
        self._buckets = [0] * (WINDOW_S + 1)
        self.requests_total = 0
        self.responses: dict[int, int] = {}
        self.retries = 0
        self.cuts = 0
        self.clients_gone = 0
        self.bytes_in = 0
        self.bytes_out = 0
        self.first_byte = Histogram()
        self.whole = Histogram()
        self.lag = Histogram()

    def arrived(self, now: float) -> None:
        """A request has come."""
        self.requests_total += 1
        if int(now - self._started_at) != self._last:
            self._slide(now)
        self._buckets[self._last % len(self._buckets)] += 1

    def responded(self, status: int) -> None:
        """An answer has begun, a replica's or our own."""
        self.responses[status] = self.responses.get(status, 0) + 1

    def answered_at_once(self, status: int, size: int, took_s: float) -> None:
        """An answer has come whole, its body of `size` bytes: all there is to count about it."""
        self.responses[status] = self.responses.get(status, 0) + 1
        self.bytes_out += size
        first_byte, whole = self.first_byte, self.whole
        place = bisect_left(first_byte.bounds, took_s)
        first_byte.counts[place] += 1
        first_byte.total += took_s
        whole.counts[place] += 1
        whole.total += took_s

    def retried(self) -> None:
        """A request is sent once more."""
        self.retries += 1

    def window_s(self, now: float) -> float:
        """Seconds that `arrivals_per_s` covers: the window, or the door's life while that is shorter; at least 1."""
        return min(float(WINDOW_S), max(1.0, now - self._started_at))

    def arrivals_per_s(self, now: float) -> float:
        """Mean rate of arrivals over the window."""
        self._slide(now)
        # Part of the oldest second has left the window already; its arrivals are taken as evenly spread.
        oldest = self._buckets[(self._last + 1) % len(self._buckets)]
        gone = (now - self._started_at) % 1.0
        return (sum(self._buckets) - oldest * gone) / self.window_s(now)

    def _slide(self, now: float) -> None:
        second = int(now - self._started_at)
        if second == self._last:
            return
        for skipped in range(max(self._last + 1, second - WINDOW_S), second + 1):
            self._buckets[skipped % len(self._buckets)] = 0
        self._last = max(self._last, second)
