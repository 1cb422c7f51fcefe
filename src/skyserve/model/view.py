"""What the control API shows of a service: the shapes of its answers, shared by the controller and the command line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from skyserve.model.resources import Accelerator

RUN_ENDED = "[skyserve] run ended with exit code"
"""What the log of a cluster says when the script of its task has ended; the exit code follows."""


@dataclass(frozen=True, slots=True)
class ReplicaView:
    """One row of the replica table. `launched_at` is Unix seconds, `infra` and `resources` are ready to print."""

    service_name: str
    id: int
    version: int
    status: str
    endpoint: str | None
    launched_at: float
    infra: str
    resources: str
    detail: str = ""
    ready_since_at: float | None = None
    in_flight: int | None = None


@dataclass(frozen=True, slots=True)
class RolloutView:
    """How far version `version` has come in taking over from version `good`.

    `state` is `starting`, `proving`, `taking over` or `stopped`; `share` is the part of the requests that a canary gets
    at most, in step `step` of `steps`. Of the `answers` of each version since it began, `errors` failed.
    """

    version: int
    good: int
    mode: str
    state: str
    step: int = 0
    steps: int = 0
    share: float | None = None
    answers: int = 0
    errors: int = 0
    good_answers: int = 0
    good_errors: int = 0
    why: str = ""


@dataclass(frozen=True, slots=True)
class RejectedView:
    """A version that was rolled back; `detail` are the last log lines of its replicas."""

    version: int
    at: float
    why: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class VersionView:
    """One row of `sky serve history`. `changes` are the keys in which it differs from the version before it."""

    version: int
    created_at: float
    mode: str
    status: str
    why: str = ""
    changes: tuple[str, ...] = ()
    source: str = ""


@dataclass(frozen=True, slots=True)
class HistoryView:
    """The versions of a service; `current` carries it, `back_to` is the one that a rollback goes back to."""

    versions: tuple[VersionView, ...]
    current: int
    back_to: int | None = None


@dataclass(frozen=True, slots=True)
class ServiceView:
    """One row of the service table, with its replicas.

    `versions` are the versions that have a ready replica; `ready` of `total` replicas that have not failed;
    `uptime_s` counts from the first readiness, None before it; `note` says in a sentence what the service waits for.
    `kind` is `service` or `cluster`. `rollout` is that of the latest version while it goes on, `rejected` are versions
    that were rolled back.
    """

    name: str
    status: str
    versions: tuple[int, ...]
    latest_version: int
    uptime_s: float | None
    ready: int
    total: int
    target: int
    endpoint: str
    policy: str
    load_balancing_policy: str
    requested_resources: str
    created_at: float
    note: str = ""
    replicas: tuple[ReplicaView, ...] = ()
    kind: str = "service"
    rollout: RolloutView | None = None
    rejected: tuple[RejectedView, ...] = ()


@dataclass(frozen=True, slots=True)
class DecisionView:
    """One line of `sky serve why`: what was done to which replica, and because of what."""

    seq: int
    at: float
    verb: str
    replica_id: int | None
    subject: str
    code: str
    text: str
    facts: Mapping[str, float | int | str] = field(default_factory=dict)
    rejected: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class ProviderView:
    """What one enabled provider could give this service: `refusal` is empty when it can run it."""

    provider: str
    instance_type: str
    infra: str
    vcpus: float
    memory_gib: float
    accelerator: Accelerator | None
    price_per_hour: float
    refusal: str = ""
    chosen: bool = False
    capacity_type: str = "ON_DEMAND"


@dataclass(frozen=True, slots=True)
class MixPart:
    """Some replicas of one kind: so many of one instance type in one place, spot or on-demand."""

    count: int
    infra: str
    instance_type: str
    capacity_type: str
    price_per_hour: float


@dataclass(frozen=True, slots=True)
class MixView:
    """What a spot service would start with, and what is expected of it.

    `replicas` are wanted; all of them on-demand would cost `on_demand_per_hour`, None where nothing may stand in.
    `expected_per_hour` is the mean bill once spot replicas are ready. With probability `confidence`, all wanted
    replicas are ready for at least `availability` of a week, under the `assumptions`; None where the policy states no
    bound.
    """

    policy: str
    replicas: int
    parts: tuple[MixPart, ...]
    why: str
    expected_per_hour: float | None = None
    on_demand_per_hour: float | None = None
    availability: float | None = None
    confidence: float | None = None
    assumptions: tuple[str, ...] = ()
