"""Made-up markets: the same for the same seed, and like the published ones."""

from __future__ import annotations

import statistics
from itertools import combinations, pairwise

from tests.sim.worlds import DAY, HOUR

from skyserve.model.offering import CapacityType, Location, Offering
from skyserve.model.resources import Accelerator
from skyserve.sim.market import Market, MarketPool
from skyserve.sim.synthetic import STEP_S, market

V100 = Accelerator("V100", 1)
ZONES = [f"us-{side}-{number}{letter}" for side in ("east", "west") for number in (1, 2) for letter in "abc"]


def offering(zone: str, accelerator: Accelerator | None = V100) -> Offering:
    return Offering("aws", "p3", Location("aws", zone[:-1], zone), CapacityType.SPOT, accelerator, 8, 61, 0.9)


LASTING = Offering("aws", "p3", Location("aws", "us-east-1"), CapacityType.ON_DEMAND, V100, 8, 61, 3.06)


def rows(made: Market, pool: MarketPool) -> list[float]:
    assert pool.capacity is not None
    return [pool.capacity.at(row * STEP_S) for row in range(int(made.length_s / STEP_S))]


def test_a_seed_is_a_market() -> None:
    offers = [offering(zone) for zone in ZONES]
    assert market(offers, 2 * DAY, 7) == market(offers, 2 * DAY, 7)
    assert market(offers, 2 * DAY, 7).pools != market(offers, 2 * DAY, 8).pools


def test_a_pool_does_not_depend_on_the_others() -> None:
    alone = market([offering(ZONES[3])], 2 * DAY, 7).pools[0]
    assert market([offering(zone) for zone in ZONES], 2 * DAY, 7).pools[3] == alone


def test_what_is_not_spot_is_endless_at_one_price() -> None:
    (pool,) = market([LASTING], DAY).pools
    assert (pool.capacity, pool.price.values) == (None, (3.06,))


def test_machines_with_accelerators_come_and_go_as_published() -> None:
    made = market([offering(zone) for zone in ZONES], 20 * DAY, 1)
    days = made.length_s / DAY
    series = [rows(made, pool) for pool in made.pools]
    available = [statistics.fmean(float(value > 0) for value in one) for one in series]
    assert 0.1 < min(available) < 0.6
    assert 0.75 < max(available) <= 1.0
    assert statistics.fmean(float(any(values)) for values in zip(*series, strict=True)) > 0.95, "one is always there"
    ups = [length for one in series for length in runs(one)]
    assert 0.5 <= len(ups) / len(series) / days <= 12, "interruptions a day and zone"
    assert statistics.fmean(ups) > 4 * statistics.median(ups), "what has lasted lasts on"
    drops = [(a, b) for one in series for a, b in pairwise(one) if b < a]
    assert 0.3 < statistics.fmean(float(after == 0) for _, after in drops) < 0.75, "often all at once"


def test_zones_of_a_region_go_together_more_than_others() -> None:
    together: dict[bool, list[float]] = {True: [], False: []}
    for seed in range(4):
        made = market([offering(zone) for zone in ZONES], 20 * DAY, seed)
        flags = {p.offering.location: [float(v > 0) for v in rows(made, p)] for p in made.pools}
        for one, other in combinations(flags, 2):
            if len(set(flags[one])) == len(set(flags[other])) == 2:
                together[one.region == other.region].append(statistics.correlation(flags[one], flags[other]))
    near, far = statistics.fmean(together[True]), statistics.fmean(together[False])
    assert 0.15 < near < 0.5
    assert -0.05 < far < 0.2
    assert near > far


def test_machines_without_accelerators_are_nearly_always_there() -> None:
    made = market([offering(zone, None) for zone in ZONES], 10 * DAY, 3)
    assert statistics.fmean(float(v > 0) for pool in made.pools for v in rows(made, pool)) > 0.9


def test_prices_wander_about_that_of_the_offering() -> None:
    made = market([offering(zone) for zone in ZONES], 20 * DAY, 5)
    for pool in made.pools:
        assert 20 < len(pool.price.values) < 400
        assert 0.6 < min(pool.price.values) <= max(pool.price.values) < 1.4
        assert pool.price.next_change(HOUR) is not None


def runs(values: list[float]) -> list[float]:
    """How long each stretch with capacity lasts that ends, seconds."""
    found, length = [], 0
    for value in values:
        if value > 0:
            length += 1
        elif length:
            found.append(length * STEP_S)
            length = 0
    return found
