"""Load -> how many replicas a service should have.

Delays are instants that are remembered, never ticks that are counted.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from skyserve.model.decision import AutoscaleMemory, Note, Observation, Reason, ReasonCode
from skyserve.model.service import ReplicaPolicy


@dataclass(frozen=True, slots=True)
class Target:
    """The number of replicas aimed at (over-provisioned ones included), and when the load may change it again."""

    count: int
    memory: AutoscaleMemory
    notes: tuple[Note, ...] = ()
    wake_at: float | None = None


def target(o: Observation) -> Target:
    """The target for the latest version's policy; zero for a service that was taken down."""
    if not o.wanted:
        return Target(0, o.memory.autoscale)
    policy = o.specs[o.latest_version].replica_policy
    before = o.memory.autoscale.target
    current = min(max(policy.min_replicas if before is None else before, policy.min_replicas), policy.max_replicas)
    remembered = replace(o.memory.autoscale, target=current)
    if policy.target_qps_per_replica is None or o.load is None:
        return Target(current + policy.num_overprovision, replace(remembered, above_since_at=None, below_since_at=None))
    demand, facts = _demand(o, policy)
    decided = _with_delay(remembered, demand, policy, o.now)
    notes = _explain(current, decided, demand, facts)
    return Target((decided.target or 0) + policy.num_overprovision, decided, notes, _wake_at(decided, policy))


def _demand(o: Observation, policy: ReplicaPolicy) -> tuple[int, dict[str, float | int | str]]:
    """Replicas that the present load calls for, within the bounds, and the numbers behind it."""
    load = o.load
    if load is None:
        return policy.min_replicas, {}
    per_replica = qps_per_replica(policy)
    busy = load.held + sum(load.in_flight.values())
    wanted = math.ceil(load.arrivals_per_s / per_replica - 1e-9)
    if busy and wanted == 0:
        wanted = 1
    facts: dict[str, float | int | str] = {
        "qps": round(load.arrivals_per_s, 3),
        "window_s": load.window_s,
        "target_qps_per_replica": per_replica,
        "held": load.held,
        "in_flight": busy - load.held,
        "min": policy.min_replicas,
        "max": policy.max_replicas,
    }
    return min(max(wanted, policy.min_replicas), policy.max_replicas), facts


def qps_per_replica(policy: ReplicaPolicy) -> float:
    """Requests a second one replica shall get; of a map by accelerator the largest value."""
    value = policy.target_qps_per_replica
    if value is None:
        raise ValueError("the policy has no target_qps_per_replica")
    return float(value) if isinstance(value, (int, float)) else max(value.values())


def _with_delay(memory: AutoscaleMemory, demand: int, policy: ReplicaPolicy, now: float) -> AutoscaleMemory:
    current = memory.target or 0
    if demand == current:
        return replace(memory, above_since_at=None, below_since_at=None)
    if demand > current:
        since = now if memory.above_since_at is None else memory.above_since_at
        if current == 0 or now - since >= policy.upscale_delay_seconds:
            return AutoscaleMemory(demand)
        return AutoscaleMemory(current, above_since_at=since)
    since = now if memory.below_since_at is None else memory.below_since_at
    if now - since >= policy.downscale_delay_seconds:
        return AutoscaleMemory(demand)
    return AutoscaleMemory(current, below_since_at=since)


def _explain(
    before: int, decided: AutoscaleMemory, demand: int, facts: dict[str, float | int | str]
) -> tuple[Note, ...]:
    if decided.target == before:
        return ()
    text = f"{facts['qps']:g} req/s / {facts['target_qps_per_replica']:g} per replica = {demand} wanted, was {before}"
    return (Note(None, Reason(ReasonCode.SCALED, text, facts)),)


def _wake_at(memory: AutoscaleMemory, policy: ReplicaPolicy) -> float | None:
    if memory.above_since_at is not None:
        return memory.above_since_at + policy.upscale_delay_seconds
    if memory.below_since_at is not None:
        return memory.below_since_at + policy.downscale_delay_seconds
    return None
