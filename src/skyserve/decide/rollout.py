"""Target and versions -> how many replicas to launch and which to let go, never serving with fewer than before."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from skyserve.model.decision import Note, Observation, Reason, ReasonCode
from skyserve.model.replica import ALIVE, COMING, LEAVING, Replica, ReplicaStatus
from skyserve.model.service import UpdateMode

_NO_LIMIT = 1_000_000
_REMOVAL_ORDER = (
    ReplicaStatus.PENDING,
    ReplicaStatus.PROVISIONING,
    ReplicaStatus.STARTING,
    ReplicaStatus.STOPPED,
    ReplicaStatus.NOT_READY,
    ReplicaStatus.READY,
)


@dataclass(frozen=True, slots=True)
class Split:
    """How many replicas of the latest version to launch, and which to let go because of what."""

    launch: int
    launch_because: Reason
    remove: tuple[tuple[Replica, Reason], ...]


def relabel(o: Observation, replicas: Sequence[Replica]) -> tuple[tuple[Replica, ...], tuple[Note, ...]]:
    """Replicas of older versions that differ in nothing they were launched with count as the latest version."""
    latest = o.specs[o.latest_version]
    after: list[Replica] = []
    notes: list[Note] = []
    for replica in replicas:
        launched = o.specs.get(replica.launched_version)
        old = replica.version != o.latest_version and replica.status in ALIVE
        if old and launched is not None and launched.shares_launch_with(latest):
            text = f"version {o.latest_version} changes nothing that version {replica.version} was launched with"
            notes.append(Note(replica.id, Reason(ReasonCode.RELABELLED, text)))
            replica = replace(replica, version=o.latest_version)
        after.append(replica)
    return tuple(after), tuple(notes)


def split(o: Observation, replicas: Sequence[Replica], target: int) -> Split:
    """Compare what is alive with the target."""
    alive = [r for r in replicas if r.counts]
    new = [r for r in alive if r.version == o.latest_version]
    old = [r for r in alive if r.version != o.latest_version]
    surplus = removal_order(new)[: max(0, len(new) - target)]
    remove = [(r, _above_target(len(new), target)) for r in surplus]
    remove += replaced(o, old, new, target)
    launch = min(max(0, target - len(new)), room(o, len(new), len(old), target))
    return Split(launch, why_launch(o, replicas, new, old, target), tuple(remove))


def surge(target: int) -> int:
    """Replicas that a rolling update may have above the target."""
    return max(1, math.ceil(target / 4))


def room(o: Observation, new: int, old: int, target: int) -> int:
    """How many replicas may be added beside those of older versions: as many as one likes where there are none."""
    if o.update_mode is UpdateMode.BLUE_GREEN or not old:
        return _NO_LIMIT
    return max(0, target + surge(target) - new - old)


def replaced(
    o: Observation, old: Sequence[Replica], new: Sequence[Replica], target: int
) -> list[tuple[Replica, Reason]]:
    """Replicas of older versions that can go now, and why."""
    ready_new = sum(r.status is ReplicaStatus.READY for r in new)
    never_ready = [r for r in old if r.status in COMING]
    proven = [r for r in removal_order(old) if r.status not in COMING]
    if o.update_mode is UpdateMode.BLUE_GREEN:
        victims = list(old) if ready_new >= target else never_ready
    else:
        spare = ready_new + sum(r.status is ReplicaStatus.READY for r in old) - target
        victims = never_ready + _expendable(proven, spare, proved=ready_new > 0 or not target)
    facts: dict[str, float | int | str] = {"ready_new": ready_new, "target": target, "version": o.latest_version}
    text = f"version {o.latest_version} replaces it: {ready_new} of {target} new replicas are ready"
    return [(r, Reason(ReasonCode.OLD_VERSION, text, facts)) for r in victims]


def _expendable(proven: Sequence[Replica], spare: int, *, proved: bool) -> list[Replica]:
    """Old replicas that can go with the ready ones still at the target. One that is not ready carries nothing now, so
    it makes room as soon as the new version has proved that it can serve."""
    victims: list[Replica] = []
    for replica in proven:
        if replica.status is ReplicaStatus.NOT_READY:
            if proved or spare > 0:
                victims.append(replica)
        elif spare > 0:
            victims.append(replica)
            spare -= 1
    return victims


def removal_order(replicas: Sequence[Replica]) -> list[Replica]:
    """Those that serve least first; among equals the newest first."""
    return sorted(replicas, key=lambda r: (_REMOVAL_ORDER.index(r.status), -r.id))


def _above_target(alive: int, target: int) -> Reason:
    text = f"{alive} alive, {target} wanted"
    return Reason(ReasonCode.ABOVE_TARGET, text, {"alive": alive, "target": target})


def why_launch(
    o: Observation, replicas: Sequence[Replica], new: Sequence[Replica], old: Sequence[Replica], target: int
) -> Reason:
    """Why more replicas of the latest version are launched, if they are."""
    alive = sum(r.offering is not None for r in new)
    facts: dict[str, float | int | str] = {"target": target, "alive": alive, "version": o.latest_version}
    text = f"{target} wanted, {alive} alive"
    going = ALIVE | LEAVING
    taken = [r for r in replicas if r.reclaim_at and r.status in going and r.version == o.latest_version]
    if taken:
        last = max(taken, key=lambda r: r.id)
        facts["replaces"] = last.id
        text += f"; the machine of replica {last.id} is being taken back"
        return Reason(ReasonCode.REPLACE_INTERRUPTED, text, facts)
    if old:
        facts["old"] = len(old)
        return Reason(ReasonCode.NEW_VERSION, f"{text} of version {o.latest_version}, {len(old)} of older ones", facts)
    failed = [r for r in replicas if r.status is ReplicaStatus.FAILED and r.version == o.latest_version]
    if failed:
        last = max(failed, key=lambda r: r.status_since_at)
        facts["replaces"] = last.id
        text += f"; replica {last.id} {last.display_status}: {last.first_line}"
        return Reason(ReasonCode.REPLACE_FAILED, text, facts)
    return Reason(ReasonCode.BELOW_TARGET, text, facts)


def routed_versions(o: Observation, replicas: Sequence[Replica], target: int) -> frozenset[int]:
    """Versions that get traffic: all of them, or in blue_green the newest that can carry the target.

    While none can, it is the older one that can carry most.
    """
    ready = [r.version for r in replicas if r.status is ReplicaStatus.READY]
    if o.update_mode is UpdateMode.ROLLING or not ready:
        return frozenset(r.version for r in replicas)
    able = [version for version in ready if ready.count(version) >= max(1, target)]
    if able:
        return frozenset({max(able)})
    older = [version for version in ready if version != o.latest_version]
    return frozenset({max(older, key=lambda v: (ready.count(v), v), default=o.latest_version)})
