"""Requests to come: at which instants, and how many tokens each brings and asks for.

Knows distributions and chance, which it is given. Must not know files (see request_files), replicas or queues.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import accumulate
from random import Random
from statistics import NormalDist
from typing import Protocol

Batch = tuple[list[float], list[float], list[float]]
"""Instants in order, in seconds from the beginning; tokens that come in with each request, tokens that it gets."""

_BATCH = 4096
_LARGEST_WINDOW = 50_000
_TABLE = 4096


@dataclass(frozen=True, slots=True)
class Lengths:
    """Pairs of prompt tokens and answer tokens, all equally likely."""

    prompt: tuple[float, ...]
    answer: tuple[float, ...]

    def draw(self, rng: Random, count: int) -> tuple[list[float], list[float]]:
        """That many pairs."""
        picked = rng.choices(range(len(self.prompt)), k=count)
        prompt, answer = self.prompt, self.answer
        return [prompt[i] for i in picked], [answer[i] for i in picked]


@cache
def usual_lengths() -> Lengths:
    """Those of the Azure 2023 conversation trace, as two log-normal distributions fitted to its 19,366 requests.

    Means 1,155 and 211 tokens there, 1,226 and 213 here; both tails are cut where those of the trace end.
    """
    return paired(_log_normal(6.633, 0.985, 14050), _log_normal(5.019, 0.859, 1000))


def paired(prompt: Sequence[float], answer: Sequence[float]) -> Lengths:
    """Two tables of lengths, drawn from independently of each other."""
    shuffled = list(answer)
    Random(0).shuffle(shuffled)
    return Lengths(tuple(prompt), tuple(shuffled))


def _log_normal(mu: float, sigma: float, most: float) -> list[float]:
    normal = NormalDist(mu, sigma)
    return [min(most, round(math.exp(normal.inv_cdf((i + 0.5) / _TABLE)))) for i in range(_TABLE)]


def from_histogram(weights: Sequence[tuple[float, float]]) -> list[float]:
    """A table for `paired` from lengths with their weights."""
    ordered = sorted(weights)
    ends = list(accumulate(weight for _, weight in ordered))
    table, at = [], 0
    for i in range(_TABLE):
        while at < len(ends) - 1 and ends[at] < (i + 0.5) / _TABLE * ends[-1]:
            at += 1
        table.append(ordered[at][0])
    return table


class Requests(Protocol):
    """Where requests come from. The same `rng` gives the same requests; they never end."""

    @property
    def text(self) -> str:
        """What they are, in a few words."""
        ...

    @property
    def mean_rate(self) -> float:
        """Requests a second, on average over a long time."""
        ...

    def batches(self, rng: Random) -> Iterator[Batch]:
        """The requests in order, in pieces of bounded size; a piece may be empty."""
        ...


@dataclass(frozen=True, slots=True)
class Poisson:
    """Requests that know nothing of each other, at the same rate all the time."""

    rate: float
    lengths: Lengths

    @property
    def text(self) -> str:
        """See Requests."""
        return f"Poisson, {self.rate:g} requests/s"

    @property
    def mean_rate(self) -> float:
        """See Requests."""
        return self.rate

    def batches(self, rng: Random) -> Iterator[Batch]:
        """See Requests."""
        log, chance, mean_gap, at = math.log, rng.random, 1 / self.rate, 0.0
        while True:
            gaps = [-mean_gap * log(1.0 - chance()) for _ in range(_BATCH)]
            instants = list(accumulate(gaps, initial=at))[1:]
            at = instants[-1]
            yield (instants, *self.lengths.draw(rng, _BATCH))


@dataclass(frozen=True, slots=True)
class Recorded:
    """Requests as they once came, again and again. `scale` makes them come that many times as fast.

    `instants` begin at 0. Without lengths of their own, the requests draw from `lengths`.
    """

    name: str
    instants: array[float]
    prompt: array[float] | None
    answer: array[float] | None
    lengths: Lengths
    scale: float = 1.0

    @property
    def text(self) -> str:
        """See Requests."""
        return f"{self.name}, {len(self.instants)} requests, {self.mean_rate:.3g} a second, repeated"

    @property
    def mean_rate(self) -> float:
        """See Requests."""
        return len(self.instants) / self.period_s

    @property
    def period_s(self) -> float:
        """After how long they begin anew: what the recording lasts, and the mean gap."""
        count = len(self.instants)
        last = self.instants[-1] / self.scale
        return last * count / (count - 1) if count > 1 and last > 0 else 1.0

    def batches(self, rng: Random) -> Iterator[Batch]:
        """See Requests."""
        begin, faster = 0.0, 1 / self.scale
        while True:
            for first in range(0, len(self.instants), _BATCH):
                piece = slice(first, first + _BATCH)
                instants = [begin + at * faster for at in self.instants[piece]]
                yield (instants, *self._lengths(rng, piece, len(instants)))
            begin += self.period_s

    def _lengths(self, rng: Random, piece: slice, count: int) -> tuple[list[float], list[float]]:
        if self.prompt is None or self.answer is None:
            return self.lengths.draw(rng, count)
        return self.prompt[piece].tolist(), self.answer[piece].tolist()


@dataclass(frozen=True, slots=True)
class Flow:
    """The requests of one client during one window: so many a second, with gaps of this distribution.

    `pattern` is `gamma` or `weibull`, of this shape; a shape of 1 makes both of them exponential.
    """

    client: str
    rate: float
    pattern: str = "gamma"
    shape: float = 1.0

    def gap(self, rng: Random) -> float:
        """A gap between two requests, as a multiple of the mean gap."""
        if self.shape == 1.0:
            return -math.log(1.0 - rng.random())
        if self.pattern == "weibull":
            return rng.weibullvariate(1 / math.gamma(1 + 1 / self.shape), self.shape)
        return rng.gammavariate(self.shape, 1 / self.shape)


@dataclass(frozen=True, slots=True)
class Flows:
    """Rates that change from window to window, by client, again and again.

    `windows[i]` holds from `i * window_s` on. A client's gaps run on from one window into the next.
    """

    name: str
    windows: tuple[tuple[Flow, ...], ...]
    window_s: float
    lengths: Lengths
    scale: float = 1.0
    _rates: list[float] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_rates", [self.scale * sum(flow.rate for flow in window) for window in self.windows])

    @property
    def text(self) -> str:
        """See Requests."""
        mean, most = self.mean_rate, max(self._rates)
        return f"{self.name}, {mean:.3g} requests/s, {most:.3g} at most, {self._days():.3g} days, repeated"

    @property
    def mean_rate(self) -> float:
        """See Requests."""
        return sum(self._rates) / len(self._rates)

    def batches(self, rng: Random) -> Iterator[Batch]:
        """See Requests."""
        begin, left = 0.0, dict[str, float]()
        while True:
            for window, rate in zip(self.windows, self._rates, strict=True):
                pieces = max(1, math.ceil(rate * self.window_s / _LARGEST_WINDOW))
                for piece in range(pieces):
                    instants = self._instants(rng, window, begin + piece * self.window_s / pieces, pieces, left)
                    yield (instants, *self.lengths.draw(rng, len(instants)))
                begin += self.window_s

    def _days(self) -> float:
        return len(self.windows) * self.window_s / 86400

    def _instants(
        self, rng: Random, window: tuple[Flow, ...], begin: float, pieces: int, left: dict[str, float]
    ) -> list[float]:
        """The arrivals of a piece of a window; `left` is how much of its gap, in mean gaps, a client has before it."""
        instants: list[float] = []
        for flow in window:
            rate = flow.rate * self.scale
            mean_gaps = rate * self.window_s / pieces
            ahead = left.get(flow.client)
            if ahead is None:
                ahead = flow.gap(rng) * rng.random()
            while ahead < mean_gaps:
                instants.append(begin + ahead / rate)
                ahead += flow.gap(rng)
            left[flow.client] = ahead - mean_gaps
        instants.sort()
        return instants
