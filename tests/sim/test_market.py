"""Numbers that change in steps, the markets made of them, and what machines cost there."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.sim.worlds import HOUR, a_market, on_demand_pool, spot_pool

from skyserve.sim.market import Market, Meter, Steps

LINE = Steps.of([(0.0, 4.0), (100.0, 4.0), (200.0, 0.0), (290.0, 2.0), (300.0, 1.0)])

changes = st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 9)), min_size=1, max_size=30).map(
    lambda pairs: Steps.of(sorted((float(offset), float(value)) for offset, value in pairs))
)


def test_repeated_values_are_left_out() -> None:
    assert (LINE.offsets, LINE.values) == ((0.0, 200.0, 290.0, 300.0), (4.0, 0.0, 2.0, 1.0))


def test_the_first_value_holds_from_the_beginning() -> None:
    assert Steps.of([(50.0, 3.0), (60.0, 4.0)]).at(0.0) == 3.0


@pytest.mark.parametrize(
    ("offset", "value", "change"), [(0.0, 4.0, 200.0), (199.9, 4.0, 200.0), (200.0, 0.0, 290.0), (900.0, 1.0, None)]
)
def test_a_value_holds_until_the_next_change(offset: float, value: float, change: float | None) -> None:
    assert (LINE.at(offset), LINE.next_change(offset)) == (value, change)


def test_rows_are_steps() -> None:
    assert Steps.rows([1, 1, 2, 0], 30.0) == Steps((0.0, 60.0, 90.0), (1, 2, 0))


def test_what_comes_and_goes_between_two_ticks_is_not_seen() -> None:
    assert list(LINE.on_ticks(100.0)) == [(0, 4.0), (2, 0.0), (3, 1.0)]


def test_a_part_begins_with_what_held_then() -> None:
    assert LINE.part(250.0, 299.0) == Steps((0.0, 40.0), (0.0, 2.0))


@given(changes, st.integers(1, 700))
def test_ticks_see_the_value_of_their_instant(line: Steps, tick_s: int) -> None:
    seen = dict(line.on_ticks(float(tick_s)))
    value = None
    for tick in range(5001 // tick_s + 2):
        value = seen.get(tick, value)
        assert value == line.at(tick * tick_s)
    assert all(earlier != later for (_, earlier), (_, later) in pairwise(line.on_ticks(float(tick_s))))


@given(changes, st.integers(1, 700), st.integers(0, 40), st.integers(0, 40))
def test_a_bill_is_the_sum_of_its_ticks(price: Steps, tick_s: int, first: int, end: int) -> None:
    one_by_one = sum(price.at(tick * tick_s) * tick_s / HOUR for tick in range(first, end))
    assert Meter(price, float(tick_s)).cost(first, end) == pytest.approx(one_by_one)


def test_a_market_tells_capacity_price_and_the_next_change() -> None:
    pool, endless = spot_pool("us-east-1a", {0: 2, 600: 0}, 1.5), on_demand_pool()
    market = a_market(pool, endless)
    begin = market.begin_at
    assert [market.capacity(pool, begin + s) for s in (0, 599, 600)] == [2, 2, 0]
    assert market.capacity(endless, begin) == float("inf")
    assert (market.price(pool, begin), market.price(endless, begin)) == (1.5, 3.0)
    assert (market.next_change(begin), market.next_change(begin + 600)) == (begin + 600, None)
    assert (market.spot, market.on_demand) == ((pool,), endless)


def test_factors_are_for_spot_alone() -> None:
    market = a_market(spot_pool("us-east-1a", {0: 2}, 1.5), on_demand_pool()).times(4).priced(2.0)
    spot, endless = market.pools
    assert (market.capacity(spot, market.begin_at), market.price(spot, market.begin_at)) == (8, 3.0)
    assert spot.offering.price_per_hour == 3.0
    assert market.price(endless, market.begin_at) == 3.0


def test_a_half_is_a_market_of_its_own() -> None:
    market = a_market(spot_pool("us-east-1a", {0: 2, 3 * HOUR: 5}), hours=4.0)
    half = market.part(2 * HOUR, 4 * HOUR)
    assert (half.begin_at, half.length_s) == (market.begin_at + 2 * HOUR, 2 * HOUR)
    assert half.pools[0].capacity == Steps((0.0, HOUR), (2, 5))


def test_joined_markets_last_as_long_as_both() -> None:
    one = a_market(spot_pool("us-east-1a", {0: 1}), on_demand_pool(), hours=3.0)
    other = Market("other", (spot_pool("eu-west-1a", {0: 1}), on_demand_pool(price=9.0)), 2 * HOUR)
    both = one.joined(other)
    assert (both.name, both.length_s) == ("small+other", 2 * HOUR)
    assert [pool.offering.location.region for pool in both.pools] == ["us-east-1", "us-east-1", "eu-west-1"]
    assert both.on_demand is one.pools[1], "a pool of both is the first one's"


def test_a_part_of_a_machine_is_none() -> None:
    market = a_market(spot_pool("us-east-1a", {0: 5, 60: 4}))
    (pool,) = market.times(0.5).pools
    assert pool.capacity is not None
    assert set(pool.capacity.values) == {2}
