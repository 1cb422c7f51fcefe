"""Refusals and successes -> how long a place is left alone. Shared by all replicas and services; forgives with time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from skyserve.model.decision import Observation
from skyserve.model.evidence import Outcome, OutcomeKind
from skyserve.model.health import Cooldown, CooldownKind
from skyserve.model.offering import Offering
from skyserve.model.replica import Failure, Replica, ReplicaStatus

FIRST_WAIT_S: Mapping[CooldownKind, float] = {
    CooldownKind.CAPACITY: 60.0,
    CooldownKind.QUOTA: 1800.0,
    CooldownKind.THROTTLED: 5.0,
    CooldownKind.CREDENTIALS: 300.0,
    CooldownKind.UNAVAILABLE: 10.0,
}
"""The first wait after a refusal, where the provider names none. A quota rarely changes within minutes."""
LONGEST_WAIT: Mapping[CooldownKind, float] = {
    CooldownKind.CAPACITY: 32.0,
    CooldownKind.QUOTA: 48.0,
    CooldownKind.THROTTLED: 16.0,
    CooldownKind.CREDENTIALS: 12.0,
    CooldownKind.UNAVAILABLE: 12.0,
}
"""How many first waits the longest one is."""
STRIKE_FADES_S = 600.0
"""A place that was left alone this long beyond its wait loses one strike."""

_TAKEN = frozenset({Failure.PREEMPTED, Failure.LOST})
_KINDS = {
    OutcomeKind.CAPACITY: CooldownKind.CAPACITY,
    OutcomeKind.QUOTA: CooldownKind.QUOTA,
    OutcomeKind.THROTTLED: CooldownKind.THROTTLED,
    OutcomeKind.CREDENTIALS: CooldownKind.CREDENTIALS,
    OutcomeKind.UNAVAILABLE: CooldownKind.UNAVAILABLE,
}


def learn(o: Observation, before: Sequence[Replica], after: Sequence[Replica]) -> tuple[Cooldown, ...]:
    """What this step's outcomes add to the common knowledge: new or changed entries, in a stable order."""
    known = {c.scope: c for c in o.health}
    learnt: dict[str, Cooldown] = {}
    outcomes = {outcome.key: outcome for outcome in reversed(o.outcomes)}
    asked_again = {r.token for r in after if r.status is ReplicaStatus.PENDING and r.offering is not None}
    for replica in before if outcomes else ():
        outcome = outcomes.get(replica.token)
        if replica.offering is None or outcome is None or replica.token in asked_again:
            continue
        if outcome.kind in _KINDS:
            entry = _struck(known, replica.offering, outcome, o.now)
            learnt.setdefault(entry.scope, entry)  # several replicas refused by one place in one step: one strike
        elif outcome.kind is OutcomeKind.ACCEPTED:
            learnt.update({c.scope: replace(c, strikes=0) for c in o.health if _is_exactly(c, replica.offering)})
    for place in _given_back(before, after):
        learnt.update({c.scope: _at_once(c, o.now) for c in o.health if _is_waiting_for(c, place, o.now)})
    return tuple(learnt[scope] for scope in sorted(learnt))


def merge(health: Sequence[Cooldown], learnt: Sequence[Cooldown]) -> tuple[Cooldown, ...]:
    """The common knowledge with what was learnt."""
    merged = {c.scope: c for c in (*health, *learnt)}
    return tuple(merged[scope] for scope in sorted(merged) if merged[scope].strikes)


def in_force(health: Sequence[Cooldown], now: float) -> tuple[Cooldown, ...]:
    """The entries that forbid anything now."""
    return tuple(c for c in health if c.until_at > now and c.strikes)


def blocking(offering: Offering, health: Sequence[Cooldown], now: float) -> Cooldown | None:
    """The entry that forbids an offering the longest now, or None."""
    hits = [c for c in health if c.until_at > now and c.strikes and c.covers(offering)]
    return max(hits, key=lambda c: (c.until_at, c.scope), default=None)


def _struck(known: Mapping[str, Cooldown], offering: Offering, outcome: Outcome, now: float) -> Cooldown:
    entry = _fresh(offering, outcome, now)
    previous = known.get(entry.scope)
    if previous is not None and previous.since_at >= outcome.at:
        return previous
    faded = 0 if previous is None else int(max(0.0, now - previous.until_at) // STRIKE_FADES_S)
    strikes = 1 + (max(0, previous.strikes - faded) if previous else 0)
    first_s = outcome.retry_after_s or FIRST_WAIT_S[entry.kind]
    wait_s = min(first_s * 2.0 ** min(strikes - 1, 30), first_s * LONGEST_WAIT[entry.kind])
    return replace(entry, strikes=strikes, until_at=now + wait_s)


def _fresh(offering: Offering, outcome: Outcome, now: float) -> Cooldown:
    kind = _KINDS[outcome.kind]
    location, types, capacity_type = str(offering.location), offering.shape, offering.capacity_type.value
    if kind in (CooldownKind.THROTTLED, CooldownKind.CREDENTIALS, CooldownKind.UNAVAILABLE):
        location, types, capacity_type = offering.location.cloud, "*", "*"
    elif kind is CooldownKind.QUOTA and outcome.location is None:
        location = f"{offering.location.cloud}/{offering.location.region}"  # quotas are a region's
    if outcome.location is not None:
        location, types = outcome.location, "*"
    types = outcome.instance_types or types
    return Cooldown(location, types, capacity_type, kind, outcome.at, now, 1, outcome.detail)


def _is_exactly(entry: Cooldown, offering: Offering) -> bool:
    return entry.covers(offering) and not entry.instance_types.endswith("*")


def _given_back(before: Sequence[Replica], after: Sequence[Replica]) -> set[str]:
    """Locations in which one of our own replicas has just given its capacity back. What was taken from us is not ours
    to give."""
    left = {r.id for r in after if not r.cleaned}
    gone = (r for r in before if not r.cleaned and r.id not in left and r.failure not in _TAKEN)
    return {str(r.offering.location) for r in gone if r.offering}


def _is_waiting_for(entry: Cooldown, location: str, now: float) -> bool:
    there = location == entry.location or location.startswith(f"{entry.location}/")
    return there and entry.kind is CooldownKind.CAPACITY and entry.until_at > now


def _at_once(entry: Cooldown, now: float) -> Cooldown:
    return replace(entry, until_at=now)
