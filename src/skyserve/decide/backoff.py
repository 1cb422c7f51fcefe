"""Failures of a version -> when its next replica may be launched, and whether to go on trying at all.

A first failure of each replica is answered at once. From the second round on, waits double. A version that has never
been ready is given up after a number of rounds, because machines cost money; one that has served is never given up.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from skyserve.model.decision import FailureMemory
from skyserve.model.replica import Failure, Replica, ReplicaStatus

FIRST_WAIT_S = 2.0
LONGEST_WAIT_S = 300.0
STABLE_AFTER_S = 30.0
"""A replica that became ready after the last failure and stayed so this long proves its version: its failures are
forgotten. One that was ready before proves nothing, or a neighbour's crash loop would never be slowed."""
FAILED_AFTER_ROUNDS = 3
"""Rounds of failure without a ready replica after which a service is called FAILED."""
GIVE_UP_AFTER_ROUNDS = 8

_OF_THE_VERSION = frozenset({Failure.APP_EXIT, Failure.INITIAL_DELAY, Failure.PROBING, Failure.LAUNCH})


@dataclass(frozen=True, slots=True)
class Verdict:
    """`launch_at`: launches wait until then, Unix seconds (0: no wait). `gave_up`: none will come."""

    launch_at: float
    gave_up: bool
    failed: bool


def remember(
    memory: Sequence[FailureMemory],
    before: Sequence[Replica],
    after: Sequence[Replica],
    now: float,
    kept: Collection[int] = (),
) -> tuple[FailureMemory, ...]:
    """The failure memory after this step's changes; versions without replicas or failures are dropped, but for those
    that are `kept`: one that has served is never given up, whatever becomes of its replicas."""
    by_version = {entry.version: entry for entry in memory}
    was_failed = {r.id for r in before if r.status is ReplicaStatus.FAILED}
    for replica in after:
        entry = by_version.get(replica.version) or FailureMemory(replica.version, 0, now)
        if replica.status is ReplicaStatus.READY:
            if not entry.ever_ready:
                entry = replace(entry, ever_ready=True)
            since = replica.ready_since_at
            failed = entry.consecutive > 0 or entry.detail
            if failed and since is not None and since >= entry.last_at and now - since >= STABLE_AFTER_S:
                entry = replace(entry, consecutive=0, detail="")
        elif _newly_failed(replica, was_failed):
            entry = replace(entry, consecutive=entry.consecutive + 1, last_at=now, detail=replica.first_line)
        by_version[replica.version] = entry
    return tuple(
        by_version[version]
        for version in sorted(by_version)
        if version in kept or _worth_keeping(by_version[version], after)
    )


def _newly_failed(replica: Replica, was_failed: set[int]) -> bool:
    return (
        replica.status is ReplicaStatus.FAILED and replica.id not in was_failed and replica.failure in _OF_THE_VERSION
    )


def _worth_keeping(entry: FailureMemory, replicas: Sequence[Replica]) -> bool:
    return entry.consecutive > 0 or any(r.version == entry.version for r in replicas)


def judge(memory: Sequence[FailureMemory], version: int, target: int) -> Verdict:
    """What the failures of a version mean for its next launch, given how many replicas fail side by side."""
    entry = next((m for m in memory if m.version == version), None)
    if entry is None or entry.consecutive == 0:
        return Verdict(0.0, gave_up=False, failed=False)
    side_by_side = max(1, target)
    finished_rounds = (entry.consecutive - 1) // side_by_side
    wait_s = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2 ** min(finished_rounds - 1, 30)) if finished_rounds else 0.0
    rounds = entry.consecutive // side_by_side
    return Verdict(
        launch_at=entry.last_at + wait_s if wait_s else 0.0,
        gave_up=not entry.ever_ready and rounds >= GIVE_UP_AFTER_ROUNDS,
        failed=rounds >= FAILED_AFTER_ROUNDS,
    )
