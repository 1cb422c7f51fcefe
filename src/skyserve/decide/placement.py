"""Pending replicas -> offerings. Remembers which capacity pools refused lately, and explains what it did not take."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from skyserve.model.decision import Cooldown, Observation
from skyserve.model.evidence import Outcome, OutcomeKind
from skyserve.model.offering import Offering
from skyserve.model.replica import Replica

FIRST_COOLDOWN_S = 2.0
LONGEST_COOLDOWN_S = 60.0
STRIKES_FADE_S = 600.0
"""A pool that has not refused for this long starts again with the shortest cooldown."""

_REFUSALS = frozenset({OutcomeKind.CAPACITY, OutcomeKind.QUOTA, OutcomeKind.THROTTLED, OutcomeKind.CREDENTIALS})


@dataclass(frozen=True, slots=True)
class Choice:
    """The offering to take, or None and when to ask again; `rejected` are the others, each with the reason;
    `why` is the latest refusal when there is nothing to take."""

    offering: Offering | None
    rejected: tuple[tuple[str, str], ...]
    why: str = ""
    retry_at: float | None = None


def remember(o: Observation, before: Sequence[Replica], after: Sequence[Replica]) -> tuple[Cooldown, ...]:
    """Cooldowns after this step's refusals. Capacity that one of our own replicas gave back is asked for at once."""
    cooldowns = {c.pool: c for c in o.memory.cooldowns if o.now < c.until_at + STRIKES_FADE_S}
    for replica in before:
        outcome = next((x for x in o.outcomes if x.key == replica.token), None)
        if replica.offering is None or outcome is None:
            continue
        if outcome.kind in _REFUSALS:
            pool = replica.offering.pool
            cooldowns[pool] = _struck(cooldowns.get(pool), pool, outcome, o.now)
        elif outcome.kind is OutcomeKind.ACCEPTED:
            cooldowns.pop(replica.offering.pool, None)
    for provider in _freed(before, after):
        for cooldown in [c for c in cooldowns.values() if c.pool.startswith(f"{provider}/")]:
            cooldowns[cooldown.pool] = replace(cooldown, until_at=min(cooldown.until_at, o.now))
    return tuple(cooldowns[pool] for pool in sorted(cooldowns))


def _struck(previous: Cooldown | None, pool: str, outcome: Outcome, now: float) -> Cooldown:
    if previous is not None and previous.until_at > now:
        return previous  # several replicas were refused by the same pool in one step: one strike
    strikes = previous.strikes + 1 if previous else 1
    wait_s = max(outcome.retry_after_s, min(LONGEST_COOLDOWN_S, FIRST_COOLDOWN_S * 2 ** min(strikes - 1, 30)))
    return Cooldown(pool, now + wait_s, strikes, outcome.detail)


def _freed(before: Sequence[Replica], after: Sequence[Replica]) -> Iterable[str]:
    left = {r.id for r in after if not r.cleaned}
    return {r.offering.location.cloud for r in before if r.offering and not r.cleaned and r.id not in left}


def choose(offerings: Sequence[Offering], cooldowns: Sequence[Cooldown], now: float) -> Choice:
    """The first offering whose pool is not cooling; offerings come in order of preference."""
    cooling = {c.pool: c for c in cooldowns if c.until_at > now}
    rejected: list[tuple[str, str]] = []
    chosen: Offering | None = None
    for offering in offerings:
        cooldown = cooling.get(offering.pool)
        if cooldown is not None:
            rejected.append((offering.pool, f"cooling for {cooldown.until_at - now:.1f}s: {cooldown.why}"))
        elif chosen is None:
            chosen = offering
        else:
            rejected.append((offering.pool, f"dearer: ${offering.price_per_hour:.2f}/h"))
    if chosen is not None:
        return Choice(chosen, tuple(rejected))
    first = min((cooling[o.pool] for o in offerings), key=lambda c: c.until_at, default=None)
    return Choice(None, tuple(rejected), first.why if first else "", first.until_at if first else None)
