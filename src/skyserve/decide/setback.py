"""A clock that was set back -> an observation that remembers nothing from the future.

What was written before the clock was set back would otherwise hold for as long as it was set back: every delay would
seem to have hours to go, and every answer to be older than the question.
"""

from __future__ import annotations

from dataclasses import replace

from skyserve.decide import autoscale
from skyserve.model.decision import AutoscaleMemory, Memory, Observation
from skyserve.model.placement import PlacementMemory
from skyserve.model.replica import Replica
from skyserve.model.rollout import RolloutMemory


def without_future(o: Observation) -> Observation:
    """The observation as if all that was remembered had happened by now at the latest."""
    return replace(
        o,
        replicas=tuple(_brought_back(replica, o.now) for replica in o.replicas),
        health=tuple(entry for entry in o.health if entry.since_at <= o.now),
        memory=_memory(o.memory, o.now),
    )


def _brought_back(replica: Replica, now: float) -> Replica:
    """The row with all its instants earlier by as much as the newest, its status's, lies ahead."""
    ahead_s = replica.status_since_at - now
    if ahead_s <= 0:
        return replica

    def earlier(at: float | None) -> float | None:
        return None if at is None else at - ahead_s

    return replace(
        replica,
        status_since_at=now,
        asked_at=earlier(replica.asked_at),
        accepted_at=earlier(replica.accepted_at),
        setup_started_at=earlier(replica.setup_started_at),
        ready_since_at=earlier(replica.ready_since_at),
        drain_until_at=earlier(replica.drain_until_at),
        retry_at=earlier(replica.retry_at),
    )


def _memory(memory: Memory, now: float) -> Memory:
    return replace(
        memory,
        failures=tuple(replace(entry, last_at=min(entry.last_at, now)) for entry in memory.failures),
        autoscale=_autoscale(memory.autoscale, now),
        placement=PlacementMemory() if (memory.placement.at or 0.0) > now else memory.placement,
        rollout=_rollout(memory.rollout, now),
    )


def _rollout(memory: RolloutMemory, now: float) -> RolloutMemory:
    rejected = tuple(replace(one, at=min(one.at, now)) for one in memory.rejected)
    return replace(memory, since_at=min(memory.since_at, now), step_at=_past(memory.step_at, now), rejected=rejected)


def _autoscale(memory: AutoscaleMemory, now: float) -> AutoscaleMemory:
    return replace(
        memory,
        above_since_at=_past(memory.above_since_at, now),
        below_since_at=_past(memory.below_since_at, now),
        heard_at=_past(memory.heard_at, now),
        watched_since_at=_past(memory.watched_since_at, now),
        peaks=tuple(replace(peak, at=min(peak.at, now)) for peak in memory.peaks),
        burst_until_at=None if memory.burst_until_at is None else min(memory.burst_until_at, now + autoscale.CALM_S),
    )


def _past(at: float | None, now: float) -> float | None:
    return None if at is None else min(at, now)
