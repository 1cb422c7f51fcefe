"""What the simulated world offers: capacity pools whose capacity and price change in steps.

Knows pools and instants; must not know who launches there, nor where the numbers come from.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from skyserve.model.offering import CapacityType, Offering

BEGIN_AT = 1_700_006_400.0
"""When a market begins whose origin tells no date: midnight UTC, so that hours and days are easy to read."""


@dataclass(frozen=True, slots=True)
class Steps:
    """A number that changes now and then: `values[i]` holds from `offsets[i]` on, seconds since the market began.

    The first offset is 0; offsets grow, and neighbouring values differ.
    """

    offsets: tuple[float, ...]
    values: tuple[float, ...]

    @classmethod
    def of(cls, changes: Iterable[tuple[float, float]]) -> Steps:
        """From (offset, value) in order; the first holds from the beginning, and repeated values are left out."""
        offsets: list[float] = []
        values: list[float] = []
        for offset, value in changes:
            if values and values[-1] == value:
                continue
            if offsets and offsets[-1] >= offset:
                values[-1] = value
                continue
            offsets.append(offset if offsets else 0.0)
            values.append(value)
        return cls(tuple(offsets), tuple(values))

    @classmethod
    def rows(cls, values: Sequence[float], gap_s: float) -> Steps:
        """From one value for each `gap_s` seconds."""
        return cls.of((row * gap_s, value) for row, value in enumerate(values))

    def at(self, offset: float) -> float:
        """The value at an instant."""
        return self.values[max(0, bisect_right(self.offsets, offset) - 1)]

    def next_change(self, offset: float) -> float | None:
        """The first instant after `offset` at which it changes; None when it never does again."""
        following = bisect_right(self.offsets, offset)
        return self.offsets[following] if following < len(self.offsets) else None

    def times(self, factor: float) -> Steps:
        """Every value multiplied."""
        return Steps(self.offsets, tuple(value * factor for value in self.values))

    def whole(self) -> Steps:
        """Every value rounded down."""
        return Steps.of(zip(self.offsets, map(math.floor, self.values), strict=True))

    def part(self, begin_s: float, end_s: float) -> Steps:
        """What happens between two instants, counted from the first of them."""
        inside = [(at - begin_s, v) for at, v in zip(self.offsets, self.values, strict=True) if begin_s < at < end_s]
        return Steps.of([(0.0, self.at(begin_s)), *inside])

    def on_ticks(self, tick_s: float) -> Iterator[tuple[int, float]]:
        """(tick, value) for each tick at which another value is seen than at the one before; a value that comes and
        goes between two ticks is never seen."""
        seen: dict[int, float] = {}
        for offset, value in zip(self.offsets, self.values, strict=True):
            seen[math.ceil(offset / tick_s - 1e-9)] = value
        before: float | None = None
        for tick, value in seen.items():
            if value != before:
                yield tick, value
            before = value


@dataclass(frozen=True, slots=True)
class MarketPool:
    """One capacity pool. `capacity` is how many machines can be held there, None for any number; `price` is US dollars
    an hour. The offering's own price is that of the beginning."""

    offering: Offering
    capacity: Steps | None
    price: Steps

    @property
    def name(self) -> str:
        """The pool's name, as the rest of the product knows it."""
        return self.offering.pool

    @property
    def is_spot(self) -> bool:
        """Whether machines there can be taken back."""
        return self.offering.capacity_type is CapacityType.SPOT


@dataclass(frozen=True, slots=True)
class Market:
    """All pools, from `begin_at` (Unix seconds) for `length_s` seconds."""

    name: str
    pools: tuple[MarketPool, ...]
    length_s: float
    begin_at: float = BEGIN_AT

    @property
    def spot(self) -> tuple[MarketPool, ...]:
        """The pools whose machines can be taken back."""
        return tuple(pool for pool in self.pools if pool.is_spot)

    @property
    def on_demand(self) -> MarketPool | None:
        """The cheapest pool, at the beginning, whose machines stay; None when there is none."""
        lasting = [pool for pool in self.pools if not pool.is_spot]
        return min(lasting, key=lambda pool: (pool.price.values[0], pool.name), default=None)

    def capacity(self, pool: MarketPool, at: float) -> float:
        """How many machines a pool can hold at an instant."""
        return math.inf if pool.capacity is None else pool.capacity.at(at - self.begin_at)

    def price(self, pool: MarketPool, at: float) -> float:
        """What a machine of a pool costs an hour at an instant."""
        return pool.price.at(at - self.begin_at)

    def next_change(self, at: float) -> float | None:
        """The first instant after `at` at which any capacity or price changes; None when none does again."""
        offset = at - self.begin_at
        lines = [line for pool in self.pools for line in (pool.capacity, pool.price) if line is not None]
        changes = [change for line in lines if (change := line.next_change(offset)) is not None]
        return self.begin_at + min(changes) if changes else None

    def times(self, factor: float) -> Market:
        """With the capacity of every spot pool multiplied, and rounded down: there is no half of a machine."""
        return self._changed(lambda pool: replace(pool, capacity=pool.capacity and pool.capacity.times(factor).whole()))

    def priced(self, factor: float) -> Market:
        """With the price of every spot pool multiplied."""
        return self._changed(lambda pool: priced(pool, pool.price.times(factor)))

    def part(self, begin_s: float, end_s: float) -> Market:
        """From `begin_s` to `end_s` of it, seconds since it began, as a market of its own."""

        def cut(pool: MarketPool) -> MarketPool:
            capacity = pool.capacity and pool.capacity.part(begin_s, end_s)
            return replace(priced(pool, pool.price.part(begin_s, end_s)), capacity=capacity)

        pools = tuple(cut(pool) for pool in self.pools)
        length_s = max(0.0, min(self.length_s, end_s) - begin_s)
        return Market(self.name, pools, length_s, self.begin_at + begin_s)

    def joined(self, other: Market) -> Market:
        """The pools of both, begun at the same time, for as long as both last. A pool of both is this market's."""
        mine = {pool.name for pool in self.pools}
        pools = self.pools + tuple(pool for pool in other.pools if pool.name not in mine)
        length_s = min(self.length_s, other.length_s)
        return Market(f"{self.name}+{other.name}", pools, length_s, self.begin_at)

    def only(self, wanted: Callable[[Offering], bool]) -> Market:
        """With those pools alone whose offering is wanted."""
        return replace(self, pools=tuple(pool for pool in self.pools if wanted(pool.offering)))

    def _changed(self, change: Callable[[MarketPool], MarketPool]) -> Market:
        return replace(self, pools=tuple(change(pool) if pool.is_spot else pool for pool in self.pools))


def priced(pool: MarketPool, price: Steps) -> MarketPool:
    """A pool at another price."""
    return replace(pool, offering=replace(pool.offering, price_per_hour=price.values[0]), price=price)


class Meter:
    """What a machine of one pool costs from one tick to another: the price seen at each tick holds until the next."""

    def __init__(self, price: Steps, tick_s: float) -> None:
        self._ticks: list[int] = []
        self._rates: list[float] = []
        for tick, rate in price.on_ticks(tick_s):
            self._ticks.append(tick)
            self._rates.append(rate)
        self._hours = tick_s / 3600.0
        self._sums = [0.0]
        for (tick, rate), (following, _) in pairwise(zip(self._ticks, self._rates, strict=True)):
            self._sums.append(self._sums[-1] + (following - tick) * rate)

    def cost(self, first: int, end: int) -> float:
        """US dollars for the ticks from `first` up to, and without, `end`."""
        return 0.0 if end <= first else (self._until(end) - self._until(first)) * self._hours

    def _until(self, tick: int) -> float:
        index = bisect_right(self._ticks, tick) - 1
        return self._sums[index] + (tick - self._ticks[index]) * self._rates[index]
