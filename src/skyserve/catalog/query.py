"""Which machines satisfy a request, at what price, and why the others do not. Knows prices and requests; knows no
files, no accounts, and not what is free at this moment."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import NamedTuple

from skyserve.catalog.row import ARM64
from skyserve.catalog.shelf import Place, Shape, Shelf, whole
from skyserve.catalog.table import Table
from skyserve.model import accelerators
from skyserve.model.offering import Offering
from skyserve.model.resources import Accelerator, Quantity, ResourceChoice, Resources

DEFAULT_CPUS = Quantity(8, at_least=True)
"""vCPUs of a machine of which nothing at all was asked."""

_ANY = (None, "*")
_COUNT_TOLERANCE = 0.01  # a third of a GPU is written 0.33 and 0.3333
_EPSILON = 1e-6
_LARGEST_DISK_GIB = {"aws": 16384, "azure": 4095, "gcp": 65536}
"""Largest disk that a machine can start from."""

ZONAL_CLOUDS = frozenset({"gcp"})
"""Clouds that have an accelerator in some zones of a region only: there a region alone is no place."""

_CLOSED_REGIONS = ("us-gov-", "usgov", "cn-", "china")
"""Regions that need an account of their own: they are an answer only for those who name them."""


class Obstacle(Enum):
    """Why a machine is not an answer; the first that applies, in this order."""

    CLOUD = "on a cloud that is not asked for or not enabled"
    DISK = "no disk of that size"
    INSTANCE_TYPE = "another instance type"
    COUNT = "another number of accelerators"
    ARCHITECTURE = "an Arm machine"
    CPUS = "not that many vCPUs"
    MEMORY = "not that much memory"
    PLACE = "region or zone not asked for"
    NOT_SPOT = "no spot price"
    NOT_ON_DEMAND = "no on-demand price"
    COST = "above max_hourly_cost"
    UNKNOWN_ACCELERATOR = "no price of this accelerator"
    UNKNOWN_CLOUD = "no prices of this cloud"
    UNKNOWN_TYPE = "no price of this instance type"


@dataclass(frozen=True, slots=True)
class Refusal:
    """How many machines one alternative did not take for one reason. `nearest` are names that may have been meant."""

    alternative: int
    obstacle: Obstacle
    count: int = 0
    nearest: tuple[str, ...] = ()

    def __str__(self) -> str:
        if self.nearest:
            return f"{self.obstacle.value}; did you mean {' or '.join(self.nearest)}?"
        return f"{self.obstacle.value} ({self.count})" if self.count else self.obstacle.value


@dataclass(frozen=True, slots=True)
class Feasible:
    """Every machine that satisfies an alternative, with that alternative's index, best first."""

    offerings: tuple[tuple[int, Offering], ...]
    refusals: tuple[Refusal, ...]


class Constraint(Enum):
    """What can be relaxed; the values are the YAML's keys."""

    MEMORY = "memory"
    CPUS = "cpus"
    ZONE = "zone"
    REGION = "region"
    CLOUD = "cloud"
    USE_SPOT = "use_spot"
    MAX_HOURLY_COST = "max_hourly_cost"
    INSTANCE_TYPE = "instance_type"
    ACCELERATOR_COUNT = "accelerators"


@dataclass(frozen=True, slots=True)
class Relaxation:
    """Without `constraint`, the alternative could run on `offering`."""

    constraint: Constraint
    alternative: int
    offering: Offering


@dataclass(frozen=True, slots=True)
class Group:
    """The cheapest offering of one cloud for one alternative, and in how many more pools that cloud has it."""

    alternative: int
    offering: Offering
    further_pools: int


@dataclass(frozen=True, slots=True)
class Price:
    """What an instance type costs, at least, an hour; `region` is where, and `spot_region` where its spot price is.

    None where it is not offered or not known.
    """

    cloud: str
    instance_type: str
    accelerator: Accelerator
    accelerator_memory_gib: float | None
    vcpus: float
    memory_gib: float
    region: str | None
    price_per_hour: float | None
    spot_region: str | None
    spot_price_per_hour: float | None


@dataclass(frozen=True, slots=True)
class _Ask:
    """One alternative, ready to be searched for."""

    index: int
    want: Resources
    clouds: Collection[str] | None
    any_count: bool = False

    @property
    def cpus(self) -> Quantity | None:
        want = self.want
        nothing = want.accelerators is None and want.instance_type is None and want.memory is None
        return DEFAULT_CPUS if nothing and want.cpus is None else want.cpus

    def allows_cloud(self, cloud: str) -> bool:
        return self.want.cloud in (*_ANY, cloud) and (self.clouds is None or cloud in self.clouds)

    def shape_obstacle(self, shape: Shape) -> Obstacle | None:
        """What is wrong with a hardware, if anything."""
        want = self.want
        if want.instance_type is not None and shape.instance_type.lower() != want.instance_type.lower():
            return Obstacle.INSTANCE_TYPE
        if want.accelerators and not self.any_count and not _same(shape.accelerator_count, want.accelerators.count):
            return Obstacle.COUNT
        if shape.arch == ARM64 and want.accelerators is None and want.instance_type is None:
            return Obstacle.ARCHITECTURE
        if not _fits(self.cpus, shape.vcpus, shape.vcpus):
            return Obstacle.CPUS
        return None if _fits(want.memory, shape.memory_gib, shape.vcpus) else Obstacle.MEMORY

    def allows_place(self, place: Place) -> bool:
        """Whether a machine can be had there. Where zones are not known, one of that region's is believed."""
        region, zone = place
        if self.want.region in _ANY and region.startswith(_CLOSED_REGIONS):
            return False
        if self.want.region not in (*_ANY, region):
            return False
        if self.want.zone in (*_ANY, zone):
            return True
        return zone is None and (self.want.zone or "").startswith(region)


class _Match(NamedTuple):
    """A pool that satisfies an alternative; in order, matches are by price, then by name."""

    price: float
    cloud: str
    instance_type: str
    region: str
    zone: str
    accelerator: str
    alternative: int
    pool: int
    shelf: Shelf

    def offering(self, want: Resources) -> Offering:
        """The pool as the rest of the product knows it, in the zone that was asked for where none is known."""
        offering = self.shelf.offering(self.pool, want.use_spot)
        if self.zone or want.zone in _ANY:
            return offering
        return replace(offering, location=replace(offering.location, zone=want.zone))


def feasible(table: Table, want: ResourceChoice, *, clouds: Collection[str] | None = None) -> Feasible:
    """Every capacity pool on the allowed `clouds` (None: all) that satisfies an alternative.

    Cheapest first; with `ordered`, all of the first alternative come before those of the second. A pool that several
    alternatives would take counts for the first of them. The order depends on nothing but prices and names.
    """
    asks = [_Ask(index, alternative, clouds) for index, alternative in enumerate(want.alternatives)]
    taken: dict[tuple[Shelf, bool], set[int]] = {}
    matches: list[_Match] = []
    refusals: list[Refusal] = []
    for ask in asks:
        found, refused = _search(table, ask)
        for match in found:
            pools = taken.setdefault((match.shelf, ask.want.use_spot), set())
            if match.pool not in pools:
                pools.add(match.pool)
                matches.append(match)
        refusals += refused
    matches.sort()
    if want.ordered:
        matches.sort(key=lambda match: match.alternative)
    alternatives = want.alternatives
    offerings = tuple((match.alternative, match.offering(alternatives[match.alternative])) for match in matches)
    return Feasible(offerings, tuple(refusals))


def relax(table: Table, want: ResourceChoice, *, clouds: Collection[str] | None = None) -> Relaxation | None:
    """Which single constraint, left out, would make a request possible that is not: the one that leads to the
    cheapest machine. None when it takes more than one."""
    best: tuple[_Match, Constraint, Resources] | None = None
    for index, alternative in enumerate(want.alternatives):
        for constraint, relaxed in _relaxed(_Ask(index, alternative, clouds)):
            found, _ = _search(table, relaxed)
            if found:
                first = min(found, key=_fewest_changes(alternative))
                if best is None or first[:-1] < best[0][:-1]:
                    best = (first, constraint, relaxed.want)
    if best is None:
        return None
    match, constraint, want_less = best
    return Relaxation(constraint, match.alternative, match.offering(want_less))


def cheapest_per_group(offerings: Iterable[tuple[int, Offering]]) -> tuple[Group, ...]:
    """For a table of plans: per cloud and alternative only the first offering, in the order given."""
    groups: dict[tuple[str, int], list[Offering]] = {}
    for index, offering in offerings:
        groups.setdefault((offering.location.cloud, index), []).append(offering)
    return tuple(Group(index, found[0], len(found) - 1) for (_, index), found in groups.items())


def prices(
    table: Table, accelerator: str, count: float | None, cloud: str | None, region: str | None, all_regions: bool
) -> tuple[Price, ...]:
    """What instance types with an accelerator cost, cheapest first: a price per type, or with `all_regions` per type
    and region. None means any; with a `region`, prices there."""
    best: dict[tuple[str, str, float, str | None], Price] = {}
    for name in table.clouds if cloud is None else {cloud}.intersection(table.clouds):
        shelf = table.shelf(name, accelerators.canonical(accelerator))
        for price in _pool_prices(shelf, count, region) if shelf else ():
            where = (price.region or price.spot_region) if all_regions else None
            key = (name, price.instance_type, price.accelerator.count, where)
            best[key] = _cheaper(best[key], price) if key in best else price
    return tuple(sorted(best.values(), key=_price_order))


def _search(table: Table, ask: _Ask) -> tuple[list[_Match], list[Refusal]]:
    """What satisfies one alternative, in no particular order, and why the rest does not."""
    unknown = _unknown(table, ask)
    if unknown:
        return [], [unknown]
    tally: Counter[Obstacle] = Counter()
    matches: list[_Match] = []
    for cloud in table.clouds:
        for accelerator in _accelerators(table, cloud, ask.want):
            obstacle = _cloud_obstacle(cloud, ask)
            if obstacle:
                tally[obstacle] += table.rows_with(cloud, accelerator)
            elif shelf := table.shelf(cloud, accelerator):
                matches += _matches(shelf, ask, tally)
    if ask.want.instance_type and not matches and set(tally) <= {Obstacle.INSTANCE_TYPE, Obstacle.CLOUD}:
        return [], [Refusal(ask.index, Obstacle.UNKNOWN_TYPE)]
    return matches, [Refusal(ask.index, obstacle, tally[obstacle]) for obstacle in Obstacle if tally[obstacle]]


def _unknown(table: Table, ask: _Ask) -> Refusal | None:
    want = ask.want
    if want.cloud not in (*_ANY, *table.clouds):
        return Refusal(ask.index, Obstacle.UNKNOWN_CLOUD)
    known = table.accelerators()
    if want.accelerators is None or want.accelerators.name in known:
        return None
    close = accelerators.nearest(want.accelerators.name, known)
    return Refusal(ask.index, Obstacle.UNKNOWN_ACCELERATOR, nearest=close)


def _accelerators(table: Table, cloud: str, want: Resources) -> Sequence[str | None]:
    """Shelves worth a look. A machine asked for by type comes bare, if it can, or with what is built into it."""
    if want.accelerators is not None:
        return (want.accelerators.name,)
    if want.instance_type is None:
        return (None,)
    bare = table.shelf(cloud, None)
    wanted = want.instance_type.lower()
    if bare and any(shape.instance_type.lower() == wanted for shape in bare.shapes):
        return (None,)
    return table.accelerators_of(cloud)


def _cloud_obstacle(cloud: str, ask: _Ask) -> Obstacle | None:
    if not ask.allows_cloud(cloud):
        return Obstacle.CLOUD
    return Obstacle.DISK if (ask.want.disk_size or 0) > _LARGEST_DISK_GIB.get(cloud, float("inf")) else None


def _matches(shelf: Shelf, ask: _Ask, tally: Counter[Obstacle]) -> Iterator[_Match]:
    want = ask.want
    name, places, place_of = shelf.accelerator or "", shelf.places, shelf.place_of
    allowed = [ask.allows_place(place) for place in places]
    column, missing = (
        (shelf.spot_prices, Obstacle.NOT_SPOT) if want.use_spot else (shelf.prices, Obstacle.NOT_ON_DEMAND)
    )
    limit = float("inf") if want.max_hourly_cost is None else want.max_hourly_cost + _EPSILON
    for shape, pools in shelf.pools_by_shape():
        obstacle = ask.shape_obstacle(shape)
        if obstacle:
            tally[obstacle] += len(pools)
            continue
        cloud, instance_type = shelf.cloud, shape.instance_type
        for pool in pools:
            place, price = place_of[pool], column[pool]
            if not allowed[place]:
                tally[Obstacle.PLACE] += 1
            elif price is None:
                tally[missing] += 1
            elif price > limit:
                tally[Obstacle.COST] += 1
            else:
                region, zone = places[place]
                yield _Match(price, cloud, instance_type, region, zone or "", name, ask.index, pool, shelf)


def _relaxed(ask: _Ask) -> Iterator[tuple[Constraint, _Ask]]:
    """The same alternative without one of its constraints, for each that it has."""
    want = ask.want
    anywhere = replace(want, cloud=None, region=None, zone=None)
    relaxed = (
        (Constraint.MEMORY, replace(ask, want=replace(want, memory=None))),
        (Constraint.CPUS, replace(ask, want=replace(want, cpus=None))),
        (Constraint.ZONE, replace(ask, want=replace(want, zone=None))),
        (Constraint.REGION, replace(ask, want=replace(want, region=None, zone=None))),
        (Constraint.CLOUD, replace(ask, want=anywhere, clouds=None)),
        (Constraint.USE_SPOT, replace(ask, want=replace(want, use_spot=False))),
        (Constraint.MAX_HOURLY_COST, replace(ask, want=replace(want, max_hourly_cost=None))),
        (Constraint.INSTANCE_TYPE, replace(ask, want=replace(want, instance_type=None))),
        (Constraint.ACCELERATOR_COUNT, replace(ask, any_count=want.accelerators is not None)),
    )
    return ((constraint, less) for constraint, less in relaxed if less != ask)


def _fewest_changes(want: Resources) -> Callable[[_Match], tuple[bool, _Match]]:
    """More accelerators than asked still do; fewer only when there is nothing else."""
    asked = want.accelerators.count if want.accelerators else 0.0

    def order(match: _Match) -> tuple[bool, _Match]:
        count = match.shelf.shapes[match.shelf.shape_of[match.pool]].accelerator_count
        return count + _COUNT_TOLERANCE < asked, match

    return order


def _pool_prices(shelf: Shelf, count: float | None, region: str | None) -> Iterator[Price]:
    for shape, pools in shelf.pools_by_shape():
        if count is not None and not _same(shape.accelerator_count, count):
            continue
        for pool in pools:
            where = shelf.places[shelf.place_of[pool]][0]
            if region == where or (region is None and not where.startswith(_CLOSED_REGIONS)):
                yield _price(shelf, shape, pool, where)


def _price(shelf: Shelf, shape: Shape, pool: int, region: str) -> Price:
    price, spot = shelf.prices[pool], shelf.spot_prices[pool]
    return Price(
        shelf.cloud,
        shape.instance_type,
        Accelerator(shelf.accelerator or "", whole(shape.accelerator_count)),
        shape.accelerator_memory_gib,
        shape.vcpus,
        shape.memory_gib,
        None if price is None else region,
        price,
        None if spot is None else region,
        spot,
    )


def _cheaper(one: Price, other: Price) -> Price:
    """The better of both on-demand prices, and the better of both spot prices."""
    if _lower(other.price_per_hour, one.price_per_hour):
        one = replace(one, region=other.region, price_per_hour=other.price_per_hour)
    if _lower(other.spot_price_per_hour, one.spot_price_per_hour):
        one = replace(one, spot_region=other.spot_region, spot_price_per_hour=other.spot_price_per_hour)
    return one


def _lower(one: float | None, other: float | None) -> bool:
    return one is not None and (other is None or one < other)


def _price_order(price: Price) -> tuple[float, str, str, str]:
    known = [amount for amount in (price.price_per_hour, price.spot_price_per_hour) if amount is not None]
    return known[0], price.cloud, price.instance_type, price.region or price.spot_region or ""


def _fits(want: Quantity | None, have: float, vcpus: float) -> bool:
    """`8` is 8, `8+` is 8 or more, and `4x` is at least that many GiB for every vCPU."""
    if want is None:
        return True
    if want.per_vcpu:
        return have + _EPSILON >= want.amount * vcpus
    if want.at_least:
        return have + _EPSILON >= want.amount
    return abs(have - want.amount) < _COUNT_TOLERANCE


def _same(one: float, other: float) -> bool:
    return abs(one - other) <= _COUNT_TOLERANCE
