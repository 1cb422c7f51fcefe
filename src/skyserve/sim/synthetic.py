"""Made-up spot markets for pools of which no record is at hand. Knows what is published of spot capacity in general,
and nothing of any pool in particular but its price.

Every pool has a hidden pressure that wanders at several paces at once: minutes, hours, a day. Where it exceeds what the
pool can bear, capacity shrinks, and then is gone. So up-times and down-times are heavy-tailed, as they are in reality:
most are short, and what has lasted lasts on. Part of the pressure is common to a region, less to the world. The same
seed gives the same market, and a pool in it does not depend on which others there are.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random
from statistics import NormalDist

from skyserve.model.offering import CapacityType, Offering
from skyserve.sim.market import Market, MarketPool, Steps

STEP_S = 300.0
"""How often a capacity is looked at, in the published records too."""
_PACES = ((0.01, 900.0), (0.06, 7200.0), (0.93, 64800.0))
"""Parts of the pressure: (share of its variance, how long it takes to forget, seconds)."""


@dataclass(frozen=True, slots=True)
class Climate:
    """What pools are like; the defaults are what was published of spot machines with accelerators.

    `availability` are the least and greatest share of the time that a pool has capacity, `bare_availability` the same
    for machines without accelerators. `in_region` and `across` are the correlations of the hidden pressure, which make
    some .3 and .1 between the capacities that are seen. `capacity` is the most machines that a pool holds; a decline of
    `narrowness` in the pressure takes it from there to nothing: the narrower, the more often all are lost at once.
    `price_drift` is the standard deviation of a price's logarithm in the long run.
    """

    availability: tuple[float, float] = (0.2, 0.97)
    bare_availability: tuple[float, float] = (0.93, 0.999)
    in_region: float = 0.6
    across: float = 0.2
    capacity: int = 16
    narrowness: float = 0.15
    price_drift: float = 0.06


GPU_SPOT = Climate()
"""Sources: Mao et al. (SkyServe, EuroSys 2025): 16.7-90.4 % available by zone with accelerators, 95.6-99.9 % without;
zones of a region correlated by .3 and more, regions hardly. Wu et al. (Can't Be Late, NSDI 2024), whose records of V100
show 2-8 interruptions a day and zone, up-times of half an hour in the median and nearly three hours in the mean, and
36-72 % of the declines taking all of a zone. Prices wander by some tens of per cent within weeks."""


def market(offerings: Sequence[Offering], length_s: float, seed: int = 0, climate: Climate = GPU_SPOT) -> Market:
    """A market of these pools: spot capacity comes and goes, and its price wanders about that of the offering; all
    other capacity is endless, at one price."""
    world = _Pressure(Random(f"{seed}/world"), length_s)
    regions: dict[str, _Pressure] = {}
    pools: list[MarketPool] = []
    for offering in offerings:
        if offering.capacity_type is not CapacityType.SPOT:
            pools.append(MarketPool(offering, None, Steps((0.0,), (offering.price_per_hour,))))
            continue
        region = f"{offering.location.cloud}/{offering.location.region}"
        if region not in regions:
            regions[region] = _Pressure(Random(f"{seed}/{region}"), length_s)
        own = Random(f"{seed}/{offering.pool}")
        pools.append(_pool(offering, (world, regions[region]), own, length_s, climate))
    return Market(f"made-up market {seed}", tuple(pools), length_s)


class _Pressure:
    """A number that wanders about 0 with variance 1, one value for each step."""

    def __init__(self, random: Random, length_s: float) -> None:
        self.values = list(_wander(random, math.ceil(length_s / STEP_S)))


def _wander(random: Random, steps: int) -> Iterator[float]:
    """The sum of processes that each forget at a pace of their own (Ornstein-Uhlenbeck), begun long ago."""
    keeps = [math.exp(-STEP_S / memory_s) for _, memory_s in _PACES]
    kicks = [math.sqrt(share * (1 - keep * keep)) for (share, _), keep in zip(_PACES, keeps, strict=True)]
    parts = [random.gauss(0.0, math.sqrt(share)) for share, _ in _PACES]
    gauss = random.gauss
    for _ in range(steps):
        yield sum(parts)
        parts = [part * keep + kick * gauss(0.0, 1.0) for part, keep, kick in zip(parts, keeps, kicks, strict=True)]


def _pool(
    offering: Offering, common: tuple[_Pressure, _Pressure], random: Random, length_s: float, climate: Climate
) -> MarketPool:
    least, most = climate.availability if offering.accelerator else climate.bare_availability
    availability = random.uniform(least, most)
    limit = NormalDist().inv_cdf(availability)
    size = random.randint(max(1, climate.capacity // 4), climate.capacity)
    world, region = common
    weights = [math.sqrt(v) for v in (climate.across, climate.in_region - climate.across, 1 - climate.in_region)]
    own = _Pressure(random, length_s)
    capacity: list[float] = []
    for parts in zip(world.values, region.values, own.values, strict=True):
        pressure = sum(weight * part for weight, part in zip(weights, parts, strict=True))
        slack = (limit - pressure) / climate.narrowness
        capacity.append(math.ceil(size * min(1.0, slack)) if slack > 0 else 0)
    price = Steps.of(_prices(offering, random, length_s, climate))
    return MarketPool(offering, Steps.rows(capacity, STEP_S), price)


def _prices(offering: Offering, random: Random, length_s: float, climate: Climate) -> Iterator[tuple[float, float]]:
    """Changes some hours apart, drawn back to the offering's price within a week."""
    drift = climate.price_drift
    offset, away = 0.0, random.gauss(0.0, drift)
    while offset < length_s:
        yield offset, round(offering.price_per_hour * math.exp(away), 4) or offering.price_per_hour
        gap_s = STEP_S * math.ceil(random.expovariate(1 / 21600.0) / STEP_S)
        keep = math.exp(-gap_s / 604800.0)
        offset += gap_s
        away = away * keep + drift * math.sqrt(1 - keep * keep) * random.gauss(0.0, 1.0)
