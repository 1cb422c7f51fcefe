"""What the door counts for the controller: arrivals, answers by status, retries.

It knows numbers and instants of the caller's monotonic clock; it must not know sockets or replicas.
"""

from __future__ import annotations

WINDOW_S = 60
"""The span that the rate of arrivals is a mean of."""


class Counters:
    """Counts that only grow, and the rate of arrivals over a sliding window."""

    __slots__ = ("_buckets", "_last", "_started_at", "requests_total", "responses", "retries")

    def __init__(self, now: float) -> None:
        self._started_at = now
        self._last = 0
        # One bucket a second: the window's, and the one that is just sliding out of it.
        self._buckets = [0] * (WINDOW_S + 1)
        self.requests_total = 0
        self.responses: dict[int, int] = {}
        self.retries = 0

    def arrived(self, now: float) -> None:
        """A request has come."""
        self.requests_total += 1
        self._slide(now)
        self._buckets[self._last % len(self._buckets)] += 1

    def responded(self, status: int) -> None:
        """An answer has begun, a replica's or our own."""
        self.responses[status] = self.responses.get(status, 0) + 1

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
