"""What is observed and what is planned: the two values between which `decide` is a pure function."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from skyserve.model.evidence import Listing, LoadReport, Outcome, ProbeResult, Silent
from skyserve.model.health import Cooldown
from skyserve.model.offering import Offering
from skyserve.model.placement import PlacementMemory
from skyserve.model.replica import Replica
from skyserve.model.rollout import RolloutMemory
from skyserve.model.routing import Endpoint
from skyserve.model.scaling import Bounds, EngineSample, MetricReading
from skyserve.model.service import ServiceSpec, UpdateMode


class ReasonCode(Enum):
    """Every reason the product can give. Each is explained in docs/reference/reasons.md."""

    BELOW_TARGET = "BELOW_TARGET"
    NEW_VERSION = "NEW_VERSION"
    REPLACE_FAILED = "REPLACE_FAILED"
    REPLACE_INTERRUPTED = "REPLACE_INTERRUPTED"
    ABOVE_TARGET = "ABOVE_TARGET"
    OLD_VERSION = "OLD_VERSION"
    SERVICE_DOWN = "SERVICE_DOWN"
    USER_REQUEST = "USER_REQUEST"
    USER_STOP = "USER_STOP"
    USER_START = "USER_START"
    NOT_REPLACED = "NOT_REPLACED"
    INTERRUPTION_NOTICE = "INTERRUPTION_NOTICE"
    FAILED_CLEANUP = "FAILED_CLEANUP"
    ORPHAN = "ORPHAN"
    LAUNCH_REFUSED = "LAUNCH_REFUSED"
    RETRY_LAUNCH = "RETRY_LAUNCH"
    STATUS_CHANGED = "STATUS_CHANGED"
    RELABELLED = "RELABELLED"
    PROMOTED = "PROMOTED"
    ROLLED_BACK = "ROLLED_BACK"
    GATE_WAITING = "GATE_WAITING"
    ROLLOUT_STOPPED = "ROLLOUT_STOPPED"
    CRASH_LOOP_BACKOFF = "CRASH_LOOP_BACKOFF"
    GAVE_UP = "GAVE_UP"
    NO_CAPACITY = "NO_CAPACITY"
    NO_OFFERING = "NO_OFFERING"
    PROVIDER_SILENT = "PROVIDER_SILENT"
    SCALED = "SCALED"
    UPSCALE_DELAY = "UPSCALE_DELAY"
    SPOT_COVER = "SPOT_COVER"
    ON_DEMAND_FALLBACK = "ON_DEMAND_FALLBACK"
    BACK_TO_SPOT = "BACK_TO_SPOT"
    NOT_IN_MIX = "NOT_IN_MIX"
    PLACEMENT_FAULT = "PLACEMENT_FAULT"
    FORGOTTEN = "FORGOTTEN"


@dataclass(frozen=True, slots=True)
class Reason:
    """Why: a code from a closed set, a sentence, the numbers that led here, and what was rejected and why."""

    code: ReasonCode
    text: str
    facts: Mapping[str, float | int | str] = field(default_factory=dict)
    rejected: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Launch:
    """Ask `replica.offering`'s provider for a machine; idempotent by `replica.token`."""

    replica: Replica
    because: Reason


@dataclass(frozen=True, slots=True)
class Drain:
    """Send no new request to a replica; it may finish what it has until `until`, Unix seconds."""

    replica_id: int
    until: float
    because: Reason


@dataclass(frozen=True, slots=True)
class Terminate:
    """End an instance; `replica_id` is None for an orphan."""

    provider: str
    instance_id: str
    replica_id: int | None
    because: Reason


@dataclass(frozen=True, slots=True)
class Halt:
    """Stop an instance and keep its disk."""

    provider: str
    instance_id: str
    replica_id: int
    because: Reason


@dataclass(frozen=True, slots=True)
class Resume:
    """Start a stopped instance again."""

    provider: str
    instance_id: str
    replica_id: int
    because: Reason


Action = Launch | Drain | Terminate | Halt | Resume


@dataclass(frozen=True, slots=True)
class Note:
    """Something that was decided without an action: a status that changed, or why nothing more was done."""

    replica_id: int | None
    because: Reason


@dataclass(frozen=True, slots=True)
class FailureMemory:
    """Failures of one version since it last proved itself."""

    version: int
    consecutive: int
    last_at: float
    ever_ready: bool = False
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Peak:
    """The most that was asked for until a later peak: `units` of capacity, at `at`."""

    at: float
    units: float


@dataclass(frozen=True, slots=True)
class ServiceRate:
    """How fast one kind of machine was seen to work: requests finished, and the seconds its places were taken, both
    fading with time. Their quotient is the requests a second that one taken place finishes."""

    accelerator: str
    done: float
    taken_s: float


@dataclass(frozen=True, slots=True)
class AutoscaleMemory:
    """What the autoscaler remembers, as instants and never as counts of looks.

    `above_since_at`, `below_since_at`: since when the demand asks for more, or fewer. `heard_at`: the last load report.
    `watched_since_at`: since when the load is known without a gap. `peaks`: the most that was asked for in each part of
    the downscale delay, the highest first. `burst_until_at`: a burst was seen, and nothing is removed before.
    """

    target: int | None = None
    above_since_at: float | None = None
    below_since_at: float | None = None
    heard_at: float | None = None
    watched_since_at: float | None = None
    peaks: tuple[Peak, ...] = ()
    burst_until_at: float | None = None
    rates: tuple[ServiceRate, ...] = ()


@dataclass(frozen=True, slots=True)
class Memory:
    """What policies remember from step to step; persisted with every commit.

    `asked` are the providers that were ever asked for a machine: only there something of the service can be left.
    `starts` are how many seconds the latest replicas took from their launch to their first readiness.
    """

    failures: tuple[FailureMemory, ...] = ()
    autoscale: AutoscaleMemory = AutoscaleMemory()
    asked: tuple[str, ...] = ()
    placement: PlacementMemory = PlacementMemory()
    rollout: RolloutMemory = RolloutMemory()
    starts: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Observation:
    """Everything a decision may rest on.

    `uid` tells apart services that had the same name one after the other. `wanted` is False once the user took the
    service down; `purge` means without waiting for anybody. `in_flight` holds the keys of actions that are under way,
    or too recent for the listings to show them (launch tokens, instance ids). `evict` holds replicas that the user
    asked to remove; `halted` is True while the user wants its machine stopped. `health` is what all services together
    know of capacity pools. `revision` is the stored state this was read from. `offerings` are those for the version
    that the service aims for, `other_offerings` those for another version that may be launched. `trials` are the
    answers of ready replicas to the probe of the version that they would count as. `engines` are the
    replicas' own metrics and `metric` is the user's, as last read; `schedule` are the bounds that the policy's
    schedules set now.
    """

    service: str
    uid: str
    wanted: bool
    purge: bool
    latest_version: int
    update_mode: UpdateMode
    revision: int
    now: float
    specs: Mapping[int, ServiceSpec]
    replicas: tuple[Replica, ...]
    next_replica_id: int
    providers: Mapping[str, Listing | Silent] = field(default_factory=dict)
    probes: Mapping[int, ProbeResult] = field(default_factory=dict)
    trials: Mapping[int, ProbeResult] = field(default_factory=dict)
    outcomes: tuple[Outcome, ...] = ()
    in_flight: tuple[str, ...] = ()
    load: LoadReport | None = None
    offerings: tuple[Offering, ...] = ()
    other_offerings: Mapping[int, tuple[Offering, ...]] = field(default_factory=dict)
    evict: tuple[int, ...] = ()
    halted: bool = False
    health: tuple[Cooldown, ...] = ()
    memory: Memory = Memory()
    created_at: float = 0.0
    engines: Mapping[int, EngineSample] = field(default_factory=dict)
    metric: MetricReading | None = None
    schedule: Bounds | None = None

    @property
    def tag(self) -> str:
        """What every instance of this service is tagged with."""
        return f"{self.service}-{self.uid}"


@dataclass(frozen=True, slots=True)
class Plan:
    """What shall be: the new rows, the actions that lead there, the routing table, and when to look again.

    `notes` are events worth remembering; `waiting` says why nothing more is done now, for as long as it stays so.
    `learnt` is what this step adds to the common knowledge of capacity pools; an entry without strikes clears one.
    `finished` is set when a service that was taken down has nothing left anywhere. `shares`, `ready_at` and `start_s`
    are those of the routing table.
    """

    replicas: tuple[Replica, ...]
    actions: tuple[Action, ...]
    endpoints: tuple[Endpoint, ...]
    memory: Memory
    next_replica_id: int
    wake_at: float
    target: int = 0
    notes: tuple[Note, ...] = ()
    waiting: tuple[Reason, ...] = ()
    learnt: tuple[Cooldown, ...] = ()
    finished: bool = False
    shares: Mapping[int, float] = field(default_factory=dict)
    ready_at: float | None = None
    start_s: float | None = None


@dataclass(frozen=True, slots=True)
class Decision:
    """One entry of the decision log: replaying `observation` through the same policies must give `plan` again."""

    seq: int
    at: float
    observation: Observation
    plan: Plan
    policy: str = "skyserve/1"
