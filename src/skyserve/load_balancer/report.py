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

    def observe(self, value: float) -> int:
        """One more; the bin that it belongs to."""
        place = bisect_left(self.bounds, value)
        self.counts[place] += 1
        self.total += value
        return place


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

    def answered_at_once(self, status: int, size: int, took_s: float) -> int:
        """An answer has come whole, its body of `size` bytes: all there is to count about it. The bin of its time."""
        self.responses[status] = self.responses.get(status, 0) + 1
        self.bytes_out += size
        first_byte, whole = self.first_byte, self.whole
        place = bisect_left(first_byte.bounds, took_s)
        first_byte.counts[place] += 1
        first_byte.total += took_s
        whole.counts[place] += 1
        whole.total += took_s
        return place

    def retried(self) -> None:
        """A request is sent once more."""
        self.retries += 1

    def window_s(self, now: float, span_s: int = WINDOW_S) -> float:
        """Seconds that `arrivals_per_s` covers: the span, or the door's life while that is shorter; at least 1."""
        return min(float(span_s), max(1.0, now - self._started_at))

    def arrivals_per_s(self, now: float, span_s: int = WINDOW_S) -> float:
        """Mean rate of arrivals over the span, a minute at most."""
        self._slide(now)
        # Part of the oldest second has left the span already; its arrivals are taken as evenly spread.
        size = len(self._buckets)
        recent = sum(self._buckets[(self._last - back) % size] for back in range(span_s))
        oldest = self._buckets[(self._last - span_s) % size]
        return (recent + oldest * (1.0 - (now - self._started_at) % 1.0)) / self.window_s(now, span_s)

    def _slide(self, now: float) -> None:
        second = int(now - self._started_at)
        if second == self._last:
            return
        for skipped in range(max(self._last + 1, second - WINDOW_S), second + 1):
            self._buckets[skipped % len(self._buckets)] = 0
        self._last = max(self._last, second)
