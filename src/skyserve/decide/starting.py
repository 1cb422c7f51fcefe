"""How long replicas take to start, and when the next one is expected: what clients that cannot be served are told."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from skyserve.model.replica import COMING, Replica, ReplicaStatus

REMEMBERED = 9
"""Starts of which the middle one is taken for the usual."""


def learn(starts: Sequence[float], before: Sequence[Replica], after: Sequence[Replica]) -> tuple[float, ...]:
    """The latest starts, with those that this step saw the end of."""
    were = {r.id for r in before if r.first_ready_at is not None}
    new = [
        r.first_ready_at - (r.created_at if r.asked_at is None else r.asked_at)
        for r in after
        if r.first_ready_at is not None and r.id not in were
    ]
    return tuple([*starts, *(round(max(0.0, seconds), 1) for seconds in new)][-REMEMBERED:])


def usual_s(starts: Sequence[float]) -> float | None:
    """How long a start takes as a rule, seconds; None until one has been seen."""
    return median(starts) if starts else None


def ready_at(replicas: Sequence[Replica], starts: Sequence[float]) -> float | None:
    """When the first replica is expected, Unix seconds; None when one is ready, none comes, or nothing is known."""
    start_s = usual_s(starts)
    coming = [r.asked_at for r in replicas if r.status in COMING and r.asked_at is not None]
    if start_s is None or not coming or any(r.status is ReplicaStatus.READY for r in replicas):
        return None
    return min(coming) + start_s
