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


BOUNDS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
"""Upper bounds of the bins in which durations are counted, seconds; one more bin is for all that is longer."""


@dataclass(frozen=True, slots=True)
class VersionAnswers:
    """What became of the requests that went to replicas of one version, since the door's life began.

    `errors` of the `answers` had a status of 500 or more, or broke off; `first_byte` and `whole` are the seconds to
    the head and to the end of the others, counted in the bins of BOUNDS_S.
    """

    version: int
    answers: int = 0
    errors: int = 0
    first_byte: tuple[int, ...] = ()
    whole: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class LoadReport:
    """What the door last told. Counts by replica id; `requests_total` only ever grows while the door lives (`boot`).

    `table` is the number of the routing table the door obeys. `arrivals_per_s` is the mean over `window_s` seconds.
    `burst_arrivals_per_s` is the mean over the last `burst_window_s`.

    `ongoing` is the mean of the requests under way and held over `window_s`, `burst_ongoing` that over
    `burst_window_s`, and `steady_ongoing` the least that there were at any instant of the last second. Open answers in
    which nothing has moved for a long time are `quiet`: they are in `in_flight`, but not in these three.

    `first_byte` and `whole` count the answers of the last `window_s` by their seconds to the head and to the end, in
    the bins of BOUNDS_S. `done_per_s` and `busy` are answers finished a second and mean requests under way over
    `window_s`, by replica id.
    """

    at: float
    boot: str
    table: int
    in_flight: Mapping[int, int] = field(default_factory=dict)
    held: int = 0
    requests_total: int = 0
    arrivals_per_s: float = 0.0
    window_s: float = 60.0
    burst_arrivals_per_s: float = 0.0
    burst_window_s: float = 6.0
    ongoing: float = 0.0
    burst_ongoing: float = 0.0
    steady_ongoing: float = 0.0
    quiet: int = 0
    first_byte: tuple[int, ...] = ()
    whole: tuple[int, ...] = ()
    done_per_s: Mapping[int, float] = field(default_factory=dict)
    busy: Mapping[int, float] = field(default_factory=dict)
    versions: tuple[VersionAnswers, ...] = ()
