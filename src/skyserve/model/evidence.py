"""What was seen: the only input from the world that decisions may rest on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum


class InstanceState(Enum):
    """The life of a machine (or local process group) as its provider tells it."""

    STARTING = "STARTING"
    SETUP = "SETUP"
    RUNNING = "RUNNING"
    STOPPING = "STOPPING"
    STOPPED = "STOPPED"
    EXITED = "EXITED"
    PREEMPTED = "PREEMPTED"


@dataclass(frozen=True, slots=True)
class Instance:
    """One thing that carries our tag. `address` is `host:port` of the application, known at RUNNING at the latest.

    `service` is the tag `name-uid` of the service it was launched for. `exit_code` and `detail` (the last log lines)
    belong to EXITED. `failed_phase` is `setup` or `run`. `reclaim_at` is set once the provider has announced that it
    will take the machine back, and says when.
    """

    id: str
    provider: str
    service: str
    token: str
    state: InstanceState
    address: str | None = None
    setup_started_at: float | None = None
    exit_code: int | None = None
    failed_phase: str | None = None
    detail: str = ""
    reclaim_at: float | None = None


@dataclass(frozen=True, slots=True)
class Listing:
    """A provider's answer: every instance of this service at `at`, the instant *before* the question was asked."""

    at: float
    instances: tuple[Instance, ...]


@dataclass(frozen=True, slots=True)
class Silent:
    """A provider that did not answer. Silence is not absence: it changes nothing."""

    since_at: float
    why: str


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """The latest readiness probe of one replica's current endpoint."""

    replica_id: int
    at: float
    ok: bool
    detail: str = ""


class OutcomeKind(Enum):
    """What became of an action; each names the reaction."""

    ACCEPTED = "ACCEPTED"
    CAPACITY = "CAPACITY"
    QUOTA = "QUOTA"
    THROTTLED = "THROTTLED"
    UNAVAILABLE = "UNAVAILABLE"
    CREDENTIALS = "CREDENTIALS"
    REJECTED = "REJECTED"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one action: `key` is the launch token, or the instance id of a termination.

    A refusal holds for the pool that was asked, unless `location` and `instance_types` say how far it reaches.
    """

    key: str
    kind: OutcomeKind
    at: float
    instance_id: str | None = None
    detail: str = ""
    retry_after_s: float = 0.0
    location: str | None = None
    instance_types: str | None = None


@dataclass(frozen=True, slots=True)
class LoadReport:
    """What the door last told. Counts by replica id; `requests_total` only ever grows while the door lives (`boot`).

    `table` is the number of the routing table the door obeys. `arrivals_per_s` is the mean over `window_s` seconds.
    """

    at: float
    boot: str
    table: int
    in_flight: Mapping[int, int] = field(default_factory=dict)
    held: int = 0
    requests_total: int = 0
    arrivals_per_s: float = 0.0
    window_s: float = 60.0
