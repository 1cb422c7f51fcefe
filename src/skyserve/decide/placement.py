"""`risk_aware`: where the replicas of a spot service run, how many extras there are, and how many are on-demand.

Of all mixes worth considering it takes the one with the smallest

    (cost share)² + value x (share of the time with too few replicas ready)

The cost share is the mix's price relative to the wanted replicas on demand. The share of the time is the rate of losses
that leave fewer than the wanted number ready, times how long a replacement takes. The square makes availability cheap
where spot is: at a fifth of the on-demand price an extra replica is bought early, at a half only when a loss is likely.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from skyserve.decide import hazard
from skyserve.decide.hazard import AHEAD_S, Learnt
from skyserve.model.placement import Held, Mix, PlacementMemory, View

VALUE = 22.0
"""Weight of unavailability at VALUE_AT and with an outage of VALUE_OUTAGE_S."""
VALUE_AT = 0.995
VALUE_OUTAGE_S = 240.0
OUTAGE_EXPONENT = 0.75
"""Slower starts make every loss dearer in time than money can mend: the weight falls with the length of an outage."""
USUAL_SHARE = 0.4
"""The cost share at which risk and price are compared when pools are put into an order."""
NO_STAND_IN = 10.0
"""Price of on-demand, relative to the dearest pool, where nothing may stand in: no mix counts on it if it can help."""
TRIFLE = 0.05
"""A share of the unavailability that is allowed, below which less of it is worth nothing."""
WORTH_MOVING = 1.15
"""A mix must be better than what there is by this much: moving back and forth is worth nothing."""
MOST_POOLS = 16
"""Spreading over more pools than this is not considered: it changes little."""
REACTION_S = 60.0
"""From a loss until a replacement is asked for: notice, refusals, another pool."""
REVIEW_S = 300.0
"""How long a decision stands if nothing happens."""
SETTLE_S = 60.0
"""How long it stands after a launch, whose fate is known by then."""


@dataclass(frozen=True, slots=True)
class Site:
    """A pool as the plan sees it: price as a share of on-demand, losses to expect per second, and replicas it has.

    `room` is how many may be hoped for, `sure` how many may be counted on: only what is there, where the last answer
    was no or it was full lately.
    """

    name: str
    location: str
    region: str
    price: float
    losses_per_s: float
    live: int
    room: int
    sure: int

    @property
    def proven(self) -> Site:
        """The same, without hope."""
        return self if self.room == self.sure else replace(self, room=self.sure)


@dataclass(frozen=True, slots=True)
class Plan:
    """A mix that may be moved towards: replicas by pool, and on-demand ones. `cost` is a share of all on-demand without
    the cost of starts, `risk` the share of the time in which too few are expected to be ready."""

    spot: tuple[tuple[Site, int], ...]
    on_demand: int
    cost: float
    risk: float
    score: float

    @property
    def count(self) -> int:
        """All replicas of it."""
        return sum(count for _, count in self.spot) + self.on_demand


def place(view: View) -> Mix:
    """The steps to take now towards the best mix there is."""
    memory = view.memory
    wanted = view.wanted + view.spare
    if _nothing_new(view):
        return Mix((), memory.on_demand, (), memory, memory.wake_at, memory.text)
    learnt = hazard.learn(view)
    sites = sites_of(view, learnt)
    cold_start_s = learnt.ready_s or view.cold_start_s
    plan = best_plan([site.proven for site in sites], view, wanted, cold_start_s)
    hope = best_plan(sites, view, wanted, cold_start_s)
    lookout = _lookout(plan, sites, learnt, view.now)
    launch = _launches(plan, hope, lookout)
    let_go = _let_go(view, plan, lookout)
    ready = sum(one.ready for one in view.held if one.spot and one.id not in let_go)
    on_demand = _on_demand(view, plan, ready)
    alive = len(view.held) - len(let_go) + len(launch) + on_demand - _standing_in(view.held)
    after = PlacementMemory(
        at=view.now,
        pools=tuple(learnt.records.values()),
        ready_s=learnt.ready_s,
        losses=learnt.losses,
        expected=learnt.expected,
        wake_at=_wake_at(view, plan, launch, on_demand),
        wanted=wanted,
        availability=view.availability,
        alive=alive,
        on_demand=on_demand,
        planned=_planned(memory, plan, on_demand, lasting=on_demand > wanted - ready),
        text=_text(plan, wanted),
    )
    return Mix(launch, on_demand, let_go, after, after.wake_at, after.text, _facts(plan, view, learnt))


def _nothing_new(view: View) -> bool:
    """Whether the last answer stands: nothing happened, and it is not time to look again."""
    memory = view.memory
    return (
        memory.at is not None
        and not view.events
        and view.now < memory.wake_at
        and len(view.held) == memory.alive
        and view.wanted + view.spare == memory.wanted
        and view.availability == memory.availability
    )


def _standing_in(held: Iterable[Held]) -> int:
    return sum(not one.spot for one in held)


# ---- the plan


def sites_of(view: View, learnt: Learnt) -> list[Site]:
    """The pools that hold replicas or may be asked."""
    live, _ = hazard.spot_by_pool(view.held)
    unit = unit_per_hour(view)
    found = []
    for pool in view.pools:
        count, free = live.get(pool.name, 0), pool.cooling_until_at <= view.now
        if not count and not free:
            continue
        record = learnt.records[pool.name]
        room = hazard.room(record, view.now, count, free=free)
        doubtful = hazard.is_unproven(record) or hazard.is_full(record, view.now)
        site = Site(
            name=pool.name,
            location=pool.location,
            region=pool.region,
            price=pool.price_per_hour / unit,
            losses_per_s=learnt.pace * hazard.losses_per_s(record, view.now),
            live=count,
            room=room,
            sure=min(room, count) if doubtful else room,
        )
        found.append(site)
    return found


def unit_per_hour(view: View) -> float:
    """The price that prices are shares of: of an on-demand replica, or of the dearest spot one where none stands in."""
    return view.on_demand_per_hour or max((pool.price_per_hour for pool in view.pools), default=0.0) or 1.0


def best_plan(sites: Sequence[Site], view: View, wanted: int, cold_start_s: float) -> Plan:
    """The mix of least score. Considered are at most `most` replicas in a pool, for every useful `most`: without cover,
    or with so many extras that no single pool takes the service below `wanted`. What no pool can hold is on-demand."""
    judge = _Judge(view, wanted, cold_start_s)
    best = judge.plan((), wanted)
    spreads = range(1, min(wanted, len(sites), MOST_POOLS) + 1)
    for most in sorted({-(-wanted // pools) for pools in spreads}):
        cheapest = sorted(sites, key=partial(judge.price, most=most))
        safest = sorted(sites, key=partial(judge.weigh, most=most))
        roomy = sorted(safest, key=partial(_is_narrow, most=most))
        covered = ((most, _regions_first(cheapest)), (most, _regions_first(safest)))
        for extra, order in ((0, roomy), (0, safest), (0, safest[:1]), *covered):
            plan = judge.plan(*_filled(order, wanted + extra, most, wanted))
            if plan.score < best.score - 1e-9:
                best = plan
    held = judge.plan(*_as_it_is(sites, wanted))
    return held if held.score <= best.score * WORTH_MOVING else best


def _as_it_is(sites: Sequence[Site], wanted: int) -> tuple[tuple[tuple[Site, int], ...], int]:
    """What there is on spot, and on-demand replicas for what it lacks."""
    spot = tuple((site, site.live) for site in sites if site.live)
    return spot, max(0, wanted - sum(site.live for site in sites))


def _is_narrow(site: Site, most: int) -> bool:
    return site.room < most


def _regions_first(order: Iterable[Site]) -> list[Site]:
    """The first site of each region before the second of any, otherwise in the given order."""
    seen: set[str] = set()
    first: list[Site] = []
    rest: list[Site] = []
    for site in order:
        (rest if site.region in seen else first).append(site)
        seen.add(site.region)
    return first + rest


def _filled(order: Iterable[Site], count: int, most: int, wanted: int) -> tuple[tuple[tuple[Site, int], ...], int]:
    """So many replicas in the pools, in their order, at most `most` in each; and the on-demand ones for the rest."""
    spot = []
    for site in order:
        here = min(count, most, site.room)
        if here > 0:
            spot.append((site, here))
            count -= here
            if not count:
                break
    return tuple(spot), min(count, wanted)


class _Judge:
    """Scores mixes for one decision."""

    __slots__ = ("_on_demand_price", "_outage_s", "_standing_in", "_start", "_trifle", "_value", "_wanted", "_weight")

    def __init__(self, view: View, wanted: int, cold_start_s: float) -> None:
        self._wanted = wanted
        self._standing_in = _standing_in(view.held)
        self._on_demand_price = NO_STAND_IN if view.on_demand_per_hour is None else 1.0
        self._outage_s = cold_start_s + REACTION_S
        self._start = cold_start_s / AHEAD_S
        precision = (1 - VALUE_AT) / max(1e-6, 1 - view.availability)
        self._value = VALUE * precision * math.pow(VALUE_OUTAGE_S / self._outage_s, OUTAGE_EXPONENT)
        self._trifle = TRIFLE * (1 - view.availability)
        self._weight = self._value * self._outage_s * wanted / (2 * USUAL_SHARE)

    def price(self, site: Site, most: int) -> float:
        """What so many replicas there cost, with the starts of those that are missing."""
        return site.price * (most + max(0, most - site.live) * self._start)

    def weigh(self, site: Site, most: int) -> float:
        """The same, and what its losses weigh at the usual cost share."""
        return self.price(site, most) + site.losses_per_s * self._weight

    def plan(self, spot: tuple[tuple[Site, int], ...], on_demand: int) -> Plan:
        """A mix with its score."""
        cost = on_demand * self._on_demand_price
        starts = max(0, on_demand - self._standing_in) * self._on_demand_price
        for site, count in spot:
            cost += count * site.price
            starts += max(0, count - site.live) * site.price
        risk = self._outage_s * self._shortages_per_s(spot, on_demand)
        share = (cost + starts * self._start) / self._wanted
        return Plan(spot, on_demand, cost / self._wanted, risk, share * share + self._value * max(risk, self._trifle))

    def _shortages_per_s(self, spot: tuple[tuple[Site, int], ...], on_demand: int) -> float:
        """Losses after which fewer than wanted are ready: of a pool that holds more than there are extras, or of a
        second one with the first or before it is replaced, which takes half an outage on average."""
        extras = sum(count for _, count in spot) + on_demand - self._wanted
        rate = 0.0
        for site, count in spot:
            if count > extras:
                rate += site.losses_per_s
                continue
            for other, others in spot:
                if others > extras - count and other is not site:
                    rate += site.losses_per_s * self._together(site, other)
        return rate

    def _together(self, site: Site, other: Site) -> float:
        """How likely another pool is lost with one, or soon after."""
        if other.location == site.location:
            return hazard.SAME_LOCATION
        return hazard.SAME_REGION if other.region == site.region else other.losses_per_s * self._outage_s / 2


# ---- the steps


def _on_demand(view: View, plan: Plan, ready: int) -> int:
    """What is planned, and whatever spot does not carry now. Planned ones stay until as many replicas are ready as the
    new plan has, so that it is made before the old one is broken; those that merely fill a gap go when it is filled."""
    if view.on_demand_per_hour is None:
        return 0
    wanted = view.wanted + view.spare
    stay = min(view.memory.planned, _standing_in(view.held), plan.count - ready)
    return min(wanted, max(plan.on_demand, wanted - ready, stay))


def _planned(memory: PlacementMemory, plan: Plan, on_demand: int, *, lasting: bool) -> int:
    """How many of the on-demand replicas are part of a plan rather than filling a gap."""
    return max(plan.on_demand, min(memory.planned, on_demand)) if lasting else plan.on_demand


def _launches(plan: Plan, hope: Plan, lookout: Site | None) -> tuple[str, ...]:
    """What the plan lacks, the lookout, and a scout for each pool that a better plan would count on, if it is as good
    as one hopes: one replica, whose fate will tell."""
    names: list[str] = []
    for site, count in plan.spot:
        names += [site.name] * max(0, count - site.live)
    if hope.score < plan.score:
        names += [site.name for site, count in hope.spot if count > site.live >= site.sure]
    if lookout is not None and not lookout.live and lookout.name not in names:
        names.append(lookout.name)
    return tuple(names)


def _lookout(plan: Plan, sites: Sequence[Site], learnt: Learnt, now: float) -> Site | None:
    """While on-demand serves by plan, one spot replica stands in the most promising other pool, to see when it is calm
    again."""
    if not plan.on_demand:
        return None
    planned = {site.name for site, _ in plan.spot}

    def promise(site: Site) -> tuple[bool, float, float]:
        return site.live > 0, (1 - site.price) * hazard.chance(learnt.records[site.name], now), -site.losses_per_s

    return max((site for site in sites if site.name not in planned), key=promise, default=None)


def _let_go(view: View, plan: Plan, lookout: Site | None) -> tuple[int, ...]:
    """Spot replicas beyond the plan, the dearest and youngest first: a ready one only when as many stay ready as the
    plan has, one that starts only when fewer are wanted than before. Else it is seen what it is good for when it is
    ready, as plans change faster than replicas start."""
    excess, _ = hazard.spot_by_pool(view.held)
    for site, count in (*plan.spot, *([] if lookout is None else [(lookout, 1)])):
        excess[site.name] = excess.get(site.name, 0) - count
    if all(count <= 0 for count in excess.values()):
        return ()
    ready = sum(one.ready for one in view.held)
    fewer = view.wanted + view.spare < view.memory.wanted
    gone: list[int] = []
    for one in sorted(view.spot, key=lambda one: (-one.price_per_hour, one.ready, -one.asked_at, -one.id)):
        if excess[one.pool] > 0 and (ready > plan.count if one.ready else fewer):
            ready -= one.ready
            excess[one.pool] -= 1
            gone.append(one.id)
    return tuple(gone)


def _wake_at(view: View, plan: Plan, launch: tuple[str, ...], on_demand: int) -> float:
    """When the answer may differ although nothing has happened."""
    if launch or on_demand != _standing_in(view.held):
        return view.now + SETTLE_S
    cold_start_s = view.memory.ready_s or view.cold_start_s
    ready_at = (one.asked_at + cold_start_s for one in view.held if not one.spot and not one.ready)
    free_at = (pool.cooling_until_at for pool in view.pools)
    return min([view.now + REVIEW_S, *(at for at in (*ready_at, *free_at) if at > view.now)])


# ---- the explanation


def _text(plan: Plan, wanted: int) -> str:
    spot = sum(count for _, count in plan.spot)
    parts = [f"{spot} spot in {len(plan.spot)} pool{'s' if len(plan.spot) > 1 else ''}"] if spot else []
    if plan.on_demand or not spot:
        parts.append(f"{plan.on_demand} on-demand")
    return (
        f"the plan is {' + '.join(parts)} for {wanted} wanted, at {plan.cost:.0%} of the on-demand cost, "
        f"with too few ready {plan.risk:.2%} of the time"
    )


def _facts(plan: Plan, view: View, learnt: Learnt) -> dict[str, float | int | str]:
    facts: dict[str, float | int | str] = {
        "plan_spot": sum(count for _, count in plan.spot),
        "plan_on_demand": plan.on_demand,
        "extra": max(0, plan.count - view.wanted - view.spare),
        "cost_share": round(plan.cost, 4),
        "unavailability": round(plan.risk, 6),
        "cold_start_s": round(learnt.ready_s or view.cold_start_s, 1),
        "pace_of_losses": round(learnt.pace, 3),
    }
    for site, count in plan.spot:
        facts[f"{site.name}: replicas"] = count
        facts[f"{site.name}: hours to a loss"] = round(1 / site.losses_per_s / 3600, 2)
    return facts


def surplus(held: Sequence[Held], count: int) -> tuple[int, ...]:
    """The replicas beyond `count`: those that are not ready first, among equals the newest."""
    order = sorted(held, key=lambda one: (one.ready, -one.id))
    return tuple(one.id for one in order[: max(0, len(held) - count)])
