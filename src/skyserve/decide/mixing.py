"""Spot services: what the placer sees, and its answer as launches and removals.

The placer advises; what may never happen is decided here. Whatever it answers, and even if it breaks: no ready replica
goes while fewer than the wanted number would be left, nothing is launched in a pool that nobody offers, and what is
missing is launched all the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from skyserve.decide import forecast, health, launching, optimize, placers, removal, rollout
from skyserve.decide.draft import Draft
from skyserve.model.decision import Reason, ReasonCode
from skyserve.model.health import Cooldown, CooldownKind
from skyserve.model.offering import CapacityType, Offering
from skyserve.model.placement import Event, EventKind, Held, Mix, PlacementMemory, Pool, View
from skyserve.model.replica import Failure, Replica, ReplicaStatus
from skyserve.model.service import DEFAULT_SPOT_PLACER, ServiceSpec
from skyserve.model.view import MixPart, MixView

MOST_FOLD = 3
"""A mix of more than this many times the wanted replicas is absurd, whatever the risk."""
SHORTEST_WAIT_S = 1.0
"""A placer that nothing happened to is not asked again before."""


@dataclass(frozen=True, slots=True)
class _Market:
    """What can be asked in this step. `spot` are offerings by pool, `on_demand` is what stands in, best first."""

    pools: tuple[Pool, ...]
    spot: Mapping[str, Offering]
    on_demand: tuple[Offering, ...]


def follow(draft: Draft, because: Reason, room: int) -> None:
    """Bring the replicas of the latest version to the placer's mix, with at most `room` more of them than there are."""
    o, spec = draft.o, draft.o.specs[draft.o.latest_version]
    new = [r for r in draft.replicas if r.counts and r.version == o.latest_version]
    market = _market(o.offerings, draft.health, o.now, spec)
    view, base = _view(draft, spec, new, market)
    mix = _mix(draft, view)
    draft.memory = replace(draft.memory, placement=mix.memory)
    if mix.wake_at is not None and mix.wake_at > o.now:
        draft.wake.append(max(mix.wake_at, o.now + SHORTEST_WAIT_S))
    _let_go(draft, new, mix, base)
    _launch(draft, _Wanted(view, mix, base, market, because), room)


def preview(spec: ServiceSpec, offerings: Sequence[Offering], known: Sequence[Cooldown], now: float) -> MixView:
    """What a service would start with now: the placer's first answer, and what it expects in the long run."""
    policy, market = spec.replica_policy, _market(offerings, known, now, spec)
    replicas = max(1, policy.min_replicas)
    base = min(policy.base_ondemand_fallback_replicas, replicas)
    stand_in = market.on_demand[0] if market.on_demand else None
    price = optimize.unit_price(stand_in, spec) if stand_in is not None else None
    view = View(
        now=now,
        wanted=replicas - base,
        spare=policy.num_overprovision,
        availability=policy.availability,
        pools=market.pools,
        on_demand_per_hour=price if policy.falls_back else None,
        held=(),
    )
    mix = placers.PLACERS[policy.placer](view)
    on_demand = base + (mix.on_demand if view.on_demand_per_hour is not None else 0)
    counted = [(market.spot[name], mix.launch.count(name)) for name in dict.fromkeys(mix.launch)]
    if stand_in is not None and on_demand:
        counted.append((stand_in, on_demand))
    shown = MixView(policy.placer, replicas, tuple(_part(*one) for one in counted), mix.text)
    if price is not None:
        shown = replace(shown, on_demand_per_hour=price * replicas)
    if policy.placer != DEFAULT_SPOT_PLACER:
        return shown
    told = forecast.forecast(view)
    return replace(
        shown,
        expected_per_hour=told.cost_per_hour + base * (price or 0.0),
        availability=told.availability,
        confidence=told.confidence,
        assumptions=told.assumptions,
    )


def _part(offering: Offering, count: int) -> MixPart:
    place, kind = str(offering.location), offering.capacity_type.value
    return MixPart(count, place, offering.instance_type, kind, offering.price_per_hour)


# ---- what the placer sees


def _market(offerings: Sequence[Offering], known: Sequence[Cooldown], now: float, spec: ServiceSpec) -> _Market:
    published = spec.replica_policy.placer in placers.AS_PUBLISHED
    in_force = health.in_force(known, now)
    pools: list[Pool] = []
    spot: dict[str, Offering] = {}
    on_demand: list[Offering] = []
    for offering in offerings:
        if offering.capacity_type is not CapacityType.SPOT:
            on_demand.append(offering)
            continue
        block = health.blocking(offering, in_force, now) if in_force else None
        if block is not None and block.kind is not CooldownKind.CAPACITY:
            continue
        cooling_until_at = block.until_at if block is not None and not published else 0.0
        place = offering.location
        price = optimize.unit_price(offering, spec)
        spot[offering.pool] = offering
        pools.append(Pool(offering.pool, str(place), f"{place.cloud}/{place.region}", price, cooling_until_at))
    pools.sort(key=lambda pool: (pool.price_per_hour, pool.name))
    return _Market(tuple(pools), spot, tuple(on_demand))


def _view(draft: Draft, spec: ServiceSpec, new: Sequence[Replica], market: _Market) -> tuple[View, int]:
    """What the placer is asked, and how many on-demand replicas the policy wants beside whatever it answers."""
    o, policy = draft.o, spec.replica_policy
    target = draft.target - policy.num_overprovision
    base = min(policy.base_ondemand_fallback_replicas, target)
    prices = {pool.name: pool.price_per_hour for pool in market.pools}
    held = [_held(r, r.offering, spec, prices) for r in new if r.offering is not None]
    steady = {one.id for one in _oldest([one for one in held if not one.spot], base)}
    stands_in = policy.falls_back and bool(market.on_demand)
    view = View(
        now=o.now,
        wanted=target - base,
        spare=policy.num_overprovision,
        availability=policy.availability,
        pools=market.pools,
        on_demand_per_hour=optimize.unit_price(market.on_demand[0], spec) if stands_in else None,
        held=tuple(one for one in held if one.id not in steady),
        events=tuple(_events(draft)),
        memory=draft.memory.placement,
    )
    return view, base


def _held(replica: Replica, offering: Offering, spec: ServiceSpec, prices: Mapping[str, float]) -> Held:
    return Held(
        id=replica.id,
        pool=offering.pool,
        location=str(offering.location),
        spot=offering.capacity_type is CapacityType.SPOT,
        ready=replica.status is ReplicaStatus.READY,
        asked_at=replica.created_at if replica.asked_at is None else replica.asked_at,
        price_per_hour=prices.get(offering.pool) or optimize.unit_price(offering, spec),
    )


def _oldest(held: Iterable[Held], count: int) -> list[Held]:
    return sorted(held, key=lambda one: (not one.ready, one.id))[:count]


def _events(draft: Draft) -> Iterable[Event]:
    """What this step showed of spot replicas, in the order of their ids."""
    before = {r.id: r for r in draft.o.replicas}
    refused = {x.key for x in draft.o.outcomes if x.kind.value == CooldownKind.CAPACITY.value}
    for replica in draft.replicas:
        was = before.get(replica.id)
        if was is None or was.offering is None or was.offering.capacity_type is not CapacityType.SPOT:
            continue
        kind = _kind(was, replica, refused)
        if kind is not None:
            asked_at = was.created_at if was.asked_at is None else was.asked_at
            place = str(was.offering.location)
            yield Event(kind, was.offering.pool, place, draft.o.now, max(0.0, draft.o.now - asked_at))


def _kind(was: Replica, now: Replica, refused: set[str]) -> EventKind | None:
    if was.offering is not now.offering and now.offering is None:
        return EventKind.REFUSED if was.token in refused else None
    if was.reclaim_at is None and now.reclaim_at is not None:
        return EventKind.LOST
    if was.failure is None and now.failure is Failure.PREEMPTED:
        return EventKind.LOST if was.reclaim_at is None else None  # else it was told when the notice came
    return EventKind.READY if was.first_ready_at is None and now.first_ready_at is not None else None


# ---- what the placer answers


def _mix(draft: Draft, view: View) -> Mix:
    """The placer's answer, or a plain one in its place when it breaks or answers nonsense."""
    if view.wanted + view.spare <= 0:
        return Mix(let_go=tuple(one.id for one in view.spot), memory=view.memory)
    name = draft.o.specs[draft.o.latest_version].replica_policy.placer
    try:
        mix = placers.PLACERS[name](view)
        wrong = _nonsense(view, mix)
    except Exception as error:  # noqa: BLE001 - a policy's defect must not take a service down
        wrong = f"{type(error).__name__}: {error}"
    if not wrong:
        room = max(0, _most(view) - len(view.spot))
        on_demand = mix.on_demand if view.on_demand_per_hour is not None else 0
        return replace(mix, launch=mix.launch[:room], on_demand=on_demand)
    text = f"the placement policy {name} failed, and a plain one stands in: {wrong}"
    draft.waiting.append(Reason(ReasonCode.PLACEMENT_FAULT, text))
    return _plain(view)


def _most(view: View) -> int:
    return MOST_FOLD * (view.wanted + view.spare) + MOST_FOLD


def _nonsense(view: View, mix: Mix) -> str:
    """What is absurd about a mix; empty when nothing is."""
    if type(mix.memory) is not PlacementMemory:
        return f"a memory that is a {type(mix.memory).__name__}"
    if not isinstance(mix.on_demand, int) or not 0 <= mix.on_demand <= _most(view):
        return f"{mix.on_demand} on-demand replicas for {view.wanted}"
    if len(mix.launch) > _most(view):
        return f"{len(mix.launch)} launches for {view.wanted}"
    known = {pool.name for pool in view.pools}
    unknown = [name for name in mix.launch if name not in known]
    return f"a launch in {unknown[0]}, which nobody offers" if unknown else ""


def _plain(view: View) -> Mix:
    """Keep what there is, and launch what is missing: on-demand where that may be, else in the cheapest free pool."""
    missing = max(0, view.wanted - len(view.held))
    on_demand = len(view.held) - len(view.spot)
    if view.on_demand_per_hour is not None:
        return Mix(on_demand=on_demand + missing, memory=view.memory)
    free = [pool.name for pool in view.pools if pool.cooling_until_at <= view.now]
    return Mix(tuple(free[:1] * missing), on_demand, (), view.memory)


def _let_go(draft: Draft, new: Sequence[Replica], mix: Mix, base: int) -> None:
    """Remove what the mix no longer has, as long as enough ready replicas are left."""
    wanted = draft.target - draft.o.specs[draft.o.latest_version].replica_policy.num_overprovision
    ready = sum(r.status is ReplicaStatus.READY for r in new)
    on_demand = [r for r in new if _stands_in(r)]
    surplus = rollout.removal_order(draft.o, on_demand)[: max(0, len(on_demand) - base - mix.on_demand)]
    named = [r for r in new if r.id in mix.let_go and r not in on_demand]
    back = Reason(ReasonCode.BACK_TO_SPOT, f"no longer needed to stand in for spot: {mix.text}", mix.facts)
    gone = Reason(ReasonCode.NOT_IN_MIX, f"the placement no longer wants it: {mix.text}", mix.facts)
    for replica, because in [
        *((r, back) for r in surplus),
        *((r, gone) for r in rollout.removal_order(draft.o, named)),
    ]:
        if replica.status is ReplicaStatus.READY:
            if ready <= wanted:
                continue
            ready -= 1
        removal.let_go(draft, replica, because)


# ---- launches


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What is to be launched, and what is said about it."""

    view: View
    mix: Mix
    base: int
    market: _Market
    because: Reason


def _launch(draft: Draft, wanted: _Wanted, room: int) -> None:
    """Fill rows that have no place yet, then new ones; those for which there is no place now wait for one."""
    asked, waiting_for = _offerings(draft, wanted)
    rows = _open_rows(draft, wanted, len(asked), room)
    rejected = _rejected(draft, wanted) if asked else ()
    for row, (offering, because) in zip(rows, asked, strict=False):
        launching.ask(draft, row, offering, replace(because, rejected=rejected))
    for row in rows[len(asked) :]:
        launching.wait_for_place(draft, row, waiting_for)
    launching.ask_again(draft)


def _open_rows(draft: Draft, wanted: _Wanted, launches: int, room: int) -> list[Replica]:
    """Rows without a place: one for each launch, and one for each replica that cannot be had now."""
    missing = wanted.view.wanted + wanted.base - sum(r.offering is not None for r in _latest(draft))
    needed = max(launches, missing)
    launching.add_missing(draft, min(room, needed - len(_unplaced(draft))))
    unplaced = _unplaced(draft)
    for row in unplaced[max(0, needed) :]:
        draft.drop(row)
    return unplaced[: max(0, needed)]


def _latest(draft: Draft) -> list[Replica]:
    return [r for r in draft.replicas if r.counts and r.version == draft.o.latest_version]


def _unplaced(draft: Draft) -> list[Replica]:
    return [r for r in _latest(draft) if r.offering is None]


def _offerings(draft: Draft, wanted: _Wanted) -> tuple[list[tuple[Offering, Reason]], optimize.Choice]:
    """Where to launch, in order, each with the reason; and the choice that those who find no place wait for."""
    view, mix, because = wanted.view, wanted.mix, wanted.because
    asked: list[tuple[Offering, Reason]] = []
    short = view.wanted - len(view.held)
    facts = {**because.facts, **mix.facts}
    told = replace(because, text=f"{because.text}; {mix.text}" if mix.text else because.text, facts=facts)
    cover = Reason(ReasonCode.SPOT_COVER, mix.text or "more than wanted, as some may be lost", facts)
    for place, pool in enumerate(mix.launch):
        asked.append((wanted.market.spot[pool], told if place < short else cover))
    missing = wanted.base + mix.on_demand - sum(_stands_in(r) for r in _latest(draft))
    if missing <= 0 and len(mix.launch) >= short:
        return asked, optimize.Choice(None, ())
    choice = optimize.choose(wanted.market.on_demand, draft.health, draft.o.now)
    stand_in = Reason(ReasonCode.ON_DEMAND_FALLBACK, f"on demand, as spot does not carry all: {mix.text}", facts)
    if missing > 0 and choice.offering is not None:
        asked += [(choice.offering, stand_in)] * missing
    if choice.offering is not None:
        choice = optimize.choose(tuple(wanted.market.spot.values()), draft.health, draft.o.now)
    return asked, replace(choice, offering=None)


def _stands_in(replica: Replica) -> bool:
    return replica.offering is not None and replica.offering.capacity_type is not CapacityType.SPOT


def _rejected(draft: Draft, wanted: _Wanted) -> tuple[tuple[str, str], ...]:
    """The pools that were not chosen, and why."""
    chosen, found = set(wanted.mix.launch), []
    for pool in wanted.view.pools:
        if pool.name in chosen:
            continue
        offering = wanted.market.spot[pool.name]
        block = health.blocking(offering, draft.health, draft.o.now)
        why = f"dearer or riskier: ${offering.price_per_hour:.2f}/h"
        found.append((pool.name, why if block is None else optimize.cooling_text(block)))
    return optimize.told(found)
