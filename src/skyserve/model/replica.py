"""One replica: what was intended and what became of it.

The table TRANSITIONS is the only place that says what may follow what.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from skyserve.model.offering import Offering


class ReplicaStatus(Enum):
    """Where a replica stands in its life."""

    PENDING = "PENDING"
    PROVISIONING = "PROVISIONING"
    STARTING = "STARTING"
    READY = "READY"
    NOT_READY = "NOT_READY"
    STOPPED = "STOPPED"
    DRAINING = "DRAINING"
    SHUTTING_DOWN = "SHUTTING_DOWN"
    FAILED = "FAILED"


class Failure(Enum):
    """Why a replica failed."""

    LAUNCH = "LAUNCH"
    INITIAL_DELAY = "INITIAL_DELAY"
    PROBING = "PROBING"
    APP_EXIT = "APP_EXIT"
    PREEMPTED = "PREEMPTED"
    LOST = "LOST"
    CLEANUP = "CLEANUP"


_S = ReplicaStatus
TRANSITIONS: dict[ReplicaStatus, frozenset[ReplicaStatus]] = {
    _S.PENDING: frozenset({_S.PROVISIONING, _S.SHUTTING_DOWN, _S.FAILED}),
    _S.PROVISIONING: frozenset({_S.STARTING, _S.SHUTTING_DOWN, _S.FAILED}),
    _S.STARTING: frozenset({_S.READY, _S.STOPPED, _S.SHUTTING_DOWN, _S.FAILED}),
    _S.READY: frozenset({_S.NOT_READY, _S.STOPPED, _S.DRAINING, _S.SHUTTING_DOWN, _S.FAILED}),
    _S.NOT_READY: frozenset({_S.READY, _S.STOPPED, _S.DRAINING, _S.SHUTTING_DOWN, _S.FAILED}),
    _S.STOPPED: frozenset({_S.STARTING, _S.SHUTTING_DOWN, _S.FAILED}),
    _S.DRAINING: frozenset({_S.SHUTTING_DOWN, _S.FAILED}),
    _S.SHUTTING_DOWN: frozenset({_S.FAILED}),
    _S.FAILED: frozenset(),
}

SERVING = frozenset({_S.READY, _S.NOT_READY})
"""Statuses of a replica that has been ready and may be again."""
COMING = frozenset({_S.PENDING, _S.PROVISIONING, _S.STARTING})
"""Statuses of a replica that has not been ready yet."""
ALIVE = SERVING | COMING | {_S.STOPPED}
"""Statuses that count towards the target."""
LEAVING = frozenset({_S.DRAINING, _S.SHUTTING_DOWN})
"""Statuses of a replica that is being removed on purpose."""


@dataclass(frozen=True, slots=True)
class Replica:
    """One replica. Instants are Unix seconds.

    `version` is the version it counts as; `launched_version` the one whose launch part it was started with.
    `token` makes its launch idempotent; `attempt` is part of it and grows when another offering is tried.
    `asked_at` is when its present offering was first asked for.
    `instance_id` is known once the provider has shown it; `endpoint` is `host:port`, without a scheme.
    `drain_revision` is the revision that was observed when draining was decided: a door that obeys a later table sends
    it no more requests. `retry_at` is when a launch that got no clear answer is asked for again.
    `removal` is the code of the reason for which it is being removed.
    `reclaim_at` is when its provider will take the machine back, once that was announced: it serves on as long as
    nobody else can, but counts no more.
    `detail` is a short human text: the last log lines of a failure, or what a pending replica waits for.
    `cleaned` says that a failed replica's machine is known to be gone.
    """

    id: int
    token: str
    version: int
    launched_version: int
    status: ReplicaStatus
    status_since_at: float
    created_at: float
    attempt: int = 1
    offering: Offering | None = None
    asked_at: float | None = None
    accepted_at: float | None = None
    instance_id: str | None = None
    endpoint: str | None = None
    setup_started_at: float | None = None
    first_ready_at: float | None = None
    ready_since_at: float | None = None
    drain_until_at: float | None = None
    drain_revision: int | None = None
    retry_at: float | None = None
    removal: str | None = None
    reclaim_at: float | None = None
    failure: Failure | None = None
    detail: str = ""
    cleaned: bool = False

    @property
    def counts(self) -> bool:
        """Whether it counts towards the target: alive, and not about to be taken back."""
        return self.status in ALIVE and self.reclaim_at is None

    @property
    def first_line(self) -> str:
        """The detail without the log lines that may follow it."""
        return self.detail.partition("\n")[0]

    @property
    def display_status(self) -> str:
        """The status in the words that users of the field know: `READY`, `FAILED_PROBING`, `PREEMPTED`, ..."""
        if self.status is not ReplicaStatus.FAILED or self.failure is None:
            return self.status.value
        return DISPLAY_FAILURE[self.failure]


DISPLAY_FAILURE = {
    Failure.LAUNCH: "FAILED_PROVISION",
    Failure.INITIAL_DELAY: "FAILED_INITIAL_DELAY",
    Failure.PROBING: "FAILED_PROBING",
    Failure.APP_EXIT: "FAILED",
    Failure.PREEMPTED: "PREEMPTED",
    Failure.LOST: "LOST",
    Failure.CLEANUP: "FAILED_CLEANUP",
}
