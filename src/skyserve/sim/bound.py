"""What the wanted replicas would cost on demand, and what they cost at least: with perfect knowledge and no cold start.

Pure arithmetic on a market; knows no policy and no machine.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

from skyserve.sim.market import Market, MarketPool

Wanted = Sequence[tuple[float, int]]
"""Instants, Unix seconds, and how many replicas were wanted from then on."""


def wanted_cost(market: Market, wanted: Wanted, end_at: float) -> float:
    """The wanted replicas on demand all the time, in the pool that is cheapest at the beginning; without one, spot."""
    pool = market.on_demand
    if pool is None:
        return 0.0
    steps = _intervals(wanted, [pool], market.begin_at, end_at)
    return sum(number * market.price(pool, at) * (until - at) / 3600.0 for at, until, number in steps)


def bound_cost(market: Market, wanted: Wanted, end_at: float, tick_s: float) -> float | None:
    """Whoever knows all and needs no time: at each tick the cheapest capacity there is, and on-demand for the rest.

    None where that is not enough at some time, because there is no on-demand pool.
    """
    total = 0.0
    for at, until, number in _on_ticks(market, wanted, end_at, tick_s):
        left = number
        for price, capacity in sorted((market.price(pool, at), market.capacity(pool, at)) for pool in market.pools):
            taken = min(left, int(min(capacity, left)))
            total += taken * price * (until - at) / 3600.0
            left -= taken
            if not left:
                break
        if left:
            return None
    return total


def _on_ticks(market: Market, wanted: Wanted, end_at: float, tick_s: float) -> Iterator[tuple[float, float, int]]:
    """Stretches in which nothing changes that is seen at ticks: (from, until, wanted)."""
    ticks = {
        tick
        for pool in market.pools
        for line in (pool.capacity, pool.price)
        if line is not None
        for tick, _ in line.on_ticks(tick_s)
    }
    instants = {market.begin_at + tick * tick_s for tick in ticks}
    yield from _cut(wanted, instants, end_at)


def _intervals(
    wanted: Wanted, pools: Sequence[MarketPool], begin_at: float, end_at: float
) -> Iterator[tuple[float, float, int]]:
    instants = {begin_at + offset for pool in pools for offset in pool.price.offsets}
    yield from _cut(wanted, instants, end_at)


def _cut(wanted: Wanted, instants: set[float], end_at: float) -> Iterator[tuple[float, float, int]]:
    if not wanted:
        return
    edges = sorted({at for at in instants if wanted[0][0] < at < end_at} | {at for at, _ in wanted} | {end_at})
    numbers = dict(wanted)
    number = 0
    for at, until in pairwise(edges):
        number = numbers.get(at, number)
        yield at, until, number
