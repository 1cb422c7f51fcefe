"""Offerings -> an order of preference, the first of it that can be asked, and why not the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from skyserve.decide.health import blocking, in_force
from skyserve.model.health import Cooldown, CooldownKind
from skyserve.model.offering import CapacityType, Offering
from skyserve.model.resources import Accelerator, ResourceChoice, Resources
from skyserve.model.service import ServiceSpec

SHORTLIST = 48
"""Offerings that a decision looks at: the best that can be asked now. Thousands may fit; no decision needs them all."""
EXPLAINED = 12
"""Rejections that a reason names one by one; the rest is counted."""

_AFTER = {
    CooldownKind.CAPACITY: "no capacity",
    CooldownKind.QUOTA: "a quota",
    CooldownKind.THROTTLED: "too many calls",
    CooldownKind.CREDENTIALS: "rejected credentials",
    CooldownKind.UNAVAILABLE: "no clear answer",
}


@dataclass(frozen=True, slots=True)
class Choice:
    """The offering to take, or None and when to ask again; `rejected` are the others, each with the reason;
    `why` is what the first to come back refused with."""

    offering: Offering | None
    rejected: tuple[tuple[str, str], ...]
    why: str = ""
    retry_at: float | None = None


def rank(offerings: Sequence[Offering], spec: ServiceSpec) -> tuple[Offering, ...]:
    """Offerings within the price limit, best first: the alternative's place in an ordered list, then the price of a
    unit of throughput, then the price, then the name, so that the order of the input never matters."""
    choice, throughput = spec.resources, _throughput(spec)

    def preference(offering: Offering) -> tuple[int, float, float, str]:
        place = _alternative(offering, choice) if choice.ordered else 0
        price = offering.price_per_hour
        return place, price / _units(offering, throughput), price, offering.pool

    affordable = {o.pool: o for o in offerings if _within_limit(o, choice)}
    return tuple(sorted(affordable.values(), key=preference))


def shortlisted(ranked: Sequence[Offering], health: Sequence[Cooldown], now: float) -> tuple[Offering, ...]:
    """The offerings that a decision looks at, best first. Spot and what stands in for it are no rivals: each has a list
    of its own."""
    spot = [o for o in ranked if o.capacity_type is CapacityType.SPOT]
    others = [o for o in ranked if o.capacity_type is not CapacityType.SPOT]
    known = in_force(health, now)
    return (*shortlist(spot, known, now), *shortlist(others, known, now))


def shortlist(ranked: Sequence[Offering], health: Sequence[Cooldown], now: float) -> tuple[Offering, ...]:
    """The first SHORTLIST offerings that can be asked now, and the cooling ones that stand before the last of them."""
    short: list[Offering] = []
    free = cooling = 0
    for offering in ranked:
        if blocking(offering, health, now) is None:
            free += 1
            short.append(offering)
        elif cooling < SHORTLIST:
            cooling += 1
            short.append(offering)
        if free == SHORTLIST:
            break
    return tuple(short)


def choose(ranked: Sequence[Offering], health: Sequence[Cooldown], now: float) -> Choice:
    """The first offering that nothing forbids. Offerings come in order of preference."""
    chosen: Offering | None = None
    first_back: Cooldown | None = None
    rejected: list[tuple[str, str]] = []
    for offering in ranked:
        block = blocking(offering, health, now)
        if block is not None:
            rejected.append((offering.pool, cooling_text(block)))
            first_back = block if first_back is None or block.until_at < first_back.until_at else first_back
        elif chosen is None:
            chosen = offering
        else:
            rejected.append((offering.pool, f"dearer or less preferred: ${offering.price_per_hour:.2f}/h"))
    shown = told(rejected)
    if chosen is not None or first_back is None:
        return Choice(chosen, shown)
    return Choice(None, shown, first_back.why, first_back.until_at)


def cooling_text(block: Cooldown) -> str:
    """Until when a place is left alone, UTC, and after what."""
    minutes = int(block.until_at) // 60
    clock = f"{minutes // 60 % 24:02d}:{minutes % 60:02d}:{int(block.until_at) % 60:02d} UTC"
    return f"cooling down until {clock} after {_AFTER[block.kind]}: {block.why}"


def told(rejected: Sequence[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    """The first EXPLAINED rejections one by one, and how many there are beside them."""
    if len(rejected) <= EXPLAINED:
        return tuple(rejected)
    rest = len(rejected) - EXPLAINED
    return (*rejected[:EXPLAINED], (f"{rest} more pools", "not looked at: a better one was there, or they cool too"))


def _throughput(spec: ServiceSpec) -> Mapping[str, float]:
    target = spec.replica_policy.target_qps_per_replica
    return target if isinstance(target, Mapping) else {}


def unit_price(offering: Offering, spec: ServiceSpec) -> float:
    """Price per hour of a replica's worth of throughput: of the machine, where the policy names no rates."""
    return offering.price_per_hour / _units(offering, _throughput(spec))


def weight(offering: Offering | None, spec: ServiceSpec) -> float:
    """A replica's capacity beside others of its service, which load balancing policies may go by."""
    return 1.0 if offering is None else _units(offering, _throughput(spec))


def _units(offering: Offering, throughput: Mapping[str, float]) -> float:
    """What one replica on this offering is worth: its target rate where the policy names one for its accelerator."""
    accelerator = offering.accelerator
    if not throughput or accelerator is None:
        return 1.0
    exact = throughput.get(str(accelerator))
    return exact or throughput.get(accelerator.name) or min(throughput.values())


def _within_limit(offering: Offering, choice: ResourceChoice) -> bool:
    limits = [r.max_hourly_cost for r in choice.alternatives if _fits(offering, r)]
    return not limits or any(limit is None or offering.price_per_hour <= limit for limit in limits)


def asked_for(offering: Offering, choice: ResourceChoice) -> Resources:
    """The alternative that an offering answers; the first one where it answers none."""
    index = _alternative(offering, choice)
    return choice.alternatives[index if index < len(choice.alternatives) else 0]


def _alternative(offering: Offering, choice: ResourceChoice) -> int:
    """The first alternative that an offering belongs to; one that fits none stands last."""
    places = (i for i, resources in enumerate(choice.alternatives) if _fits(offering, resources))
    return next(places, len(choice.alternatives))


def _fits(offering: Offering, resources: Resources) -> bool:
    place = offering.location
    on_demand = offering.capacity_type is not CapacityType.SPOT
    return (
        resources.cloud in (None, place.cloud)
        and resources.region in (None, place.region)
        and (resources.zone is None or resources.zone == place.zone)
        and resources.instance_type in (None, offering.instance_type)
        and (resources.use_spot or on_demand)  # on-demand machines may stand in for spot
        and _same(resources.accelerators, offering.accelerator)
    )


def _same(wanted: Accelerator | None, offered: Accelerator | None) -> bool:
    if wanted is None:
        return True
    return offered is not None and offered.name == wanted.name and abs(offered.count - wanted.count) < 0.01
