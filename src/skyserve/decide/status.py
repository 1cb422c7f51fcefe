"""Replicas -> the state of the service as a whole. Never better than the truth."""

from __future__ import annotations

from collections.abc import Sequence

from skyserve.decide import backoff
from skyserve.model.decision import Memory
from skyserve.model.replica import ALIVE, Replica, ReplicaStatus
from skyserve.model.service import ServiceStatus


def service_status(
    replicas: Sequence[Replica], memory: Memory, *, wanted: bool, latest_version: int, target: int
) -> ServiceStatus:
    """CONTROLLER_INIT before the first decision, READY with one ready replica, FAILED when none is and the latest
    version keeps failing."""
    if not wanted:
        return ServiceStatus.SHUTTING_DOWN
    if memory.autoscale.target is None:
        return ServiceStatus.CONTROLLER_INIT
    if any(r.status is ReplicaStatus.READY for r in replicas):
        return ServiceStatus.READY
    if backoff.judge(memory.failures, latest_version, target).failed:
        return ServiceStatus.FAILED
    if target == 0 and not any(r.status in ALIVE for r in replicas):
        return ServiceStatus.NO_REPLICA
    return ServiceStatus.REPLICA_INIT
