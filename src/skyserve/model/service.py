"""What the user asked for. Field names are the YAML's keys, so one search finds key, field and documentation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from skyserve.model.resources import ResourceChoice
from skyserve.model.rollout import Rollout
from skyserve.model.scaling import CustomMetric, Schedule


class Kind(Enum):
    """What a spec is for: replicas behind an endpoint, or one machine to work on, which nothing replaces."""

    SERVICE = "service"
    CLUSTER = "cluster"


class UpdateMode(Enum):
    """How a new version takes over."""

    ROLLING = "rolling"
    BLUE_GREEN = "blue_green"
    CANARY = "canary"


class ServiceStatus(Enum):
    """The state of a service as a whole; the words are those that users of the field know."""

    CONTROLLER_INIT = "CONTROLLER_INIT"
    REPLICA_INIT = "REPLICA_INIT"
    READY = "READY"
    NO_REPLICA = "NO_REPLICA"
    FAILED = "FAILED"
    SHUTTING_DOWN = "SHUTTING_DOWN"


SPOT_PLACERS = ("risk_aware", "dynamic_fallback", "even_spread", "round_robin", "on_demand")
"""The placement policies of spot replicas; the first is our own."""
DEFAULT_SPOT_PLACER = SPOT_PLACERS[0]

AUTOSCALERS = ("responsive", "request_rate", "concurrency")
"""The policies that follow the load; the first is our own."""


@dataclass(frozen=True, slots=True)
class ReadinessProbe:
    """How to ask a replica whether it can serve: 200 means yes.

    `post_data` is a JSON text and makes the probe a POST. `$NAME` and `${NAME}` in `post_data` and in header values
    stand for envs and secrets and are filled in when the probe is sent, so no secret is ever part of a spec.
    `initial_delay_seconds` counts from the start of setup.
    """

    path: str = "/"
    post_data: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    initial_delay_seconds: float = 1200.0
    timeout_seconds: float = 15.0
    endpoint_probe_interval_seconds: float = 10.0
    consecutive_failure_threshold_timeout: float = 180.0


@dataclass(frozen=True, slots=True)
class ReplicaPolicy:
    """How many replicas, and of which capacity. A fixed number is `min_replicas == max_replicas` without a target.

    `availability` is the share of the time in which all wanted replicas shall be ready; it steers `spot_placer`.

    Each `target_` is a wish of its own, and the one that asks for most replicas is followed: requests a second,
    requests under way and requests that wait at the door, per replica; seconds to the first byte and to the last of
    `target_percentile` of the requests; and of the engine's own metrics, read from `engine_metrics_path`: tokens
    generated a second, requests that wait in it, and the share of its cache that is in use.
    """

    min_replicas: int = 1
    max_replicas: int = 1
    target_qps_per_replica: float | Mapping[str, float] | None = None
    target_ongoing_requests_per_replica: float | None = None
    target_queue_length_per_replica: float | None = None
    target_ttft_s: float | None = None
    target_latency_s: float | None = None
    target_percentile: float = 95.0
    target_tokens_per_second_per_replica: float | None = None
    target_engine_waiting_per_replica: float | None = None
    target_kv_cache_use: float | None = None
    engine_metrics_path: str = "/metrics"
    custom_metric: CustomMetric | None = None
    schedules: tuple[Schedule, ...] = ()
    autoscaler: str = AUTOSCALERS[0]
    num_overprovision: int = 0
    upscale_delay_seconds: float = 300.0
    downscale_delay_seconds: float = 1200.0
    base_ondemand_fallback_replicas: int = 0
    dynamic_ondemand_fallback: bool | None = None
    spot_placer: str | None = None
    availability: float = 0.995

    @property
    def reads_engines(self) -> bool:
        """Whether the engines' metrics pages have to be read."""
        engine = (
            self.target_tokens_per_second_per_replica,
            self.target_engine_waiting_per_replica,
            self.target_kv_cache_use,
        )
        return any(target is not None for target in engine)

    @property
    def follows_load(self) -> bool:
        """Whether the number of replicas follows anything but the bounds."""
        door = (
            self.target_qps_per_replica,
            self.target_ongoing_requests_per_replica,
            self.target_queue_length_per_replica,
            self.target_ttft_s,
            self.target_latency_s,
            self.custom_metric,
        )
        return self.reads_engines or any(target is not None for target in door)

    @property
    def placer(self) -> str:
        """The policy that places spot replicas."""
        return self.spot_placer or DEFAULT_SPOT_PLACER

    @property
    def falls_back(self) -> bool:
        """Whether on-demand replicas may stand in for spot replicas: as the user says, or as our own policy does."""
        if self.dynamic_ondemand_fallback is None:
            return self.placer in (DEFAULT_SPOT_PLACER, "on_demand")
        return self.dynamic_ondemand_fallback

    @property
    def may_use_on_demand(self) -> bool:
        """Whether a spot service may have on-demand replicas at all."""
        return self.falls_back or self.base_ondemand_fallback_replicas > 0


@dataclass(frozen=True, slots=True)
class LoadBalancer:
    """How the door treats requests. Durations are seconds.

    `mode`: `proxy` relays, `redirect` answers 307 with a replica's own address.
    `connect_timeout_seconds`: a replica that accepts no connection in this time counts as unreachable.
    `first_byte_timeout_seconds`: the longest wait for an answer to begin; None means no limit.
    `stream_timeout_seconds`: the longest silence of a replica before or in an answer; None means no limit.
    `request_timeout_seconds`: the longest that a request may take as a whole; None means no limit.
    `queue_size`, `queue_timeout_seconds`: how many requests are held while no replica can take them, and for how long.
    `max_concurrency_per_replica`: requests that a replica has at once, beyond which they are held; None means no limit.
    `max_body_mib`: the largest request body, MiB; None means no limit.
    `retry`: `idempotent` repeats an unanswered request on another replica, `safe` only one that no replica began.
    `slow_start_seconds`: how long it takes a new replica to get its full share.
    `workers`: processes that serve the endpoint's port; None leaves it to the door and its machine.
    `session_key`: what `session_affinity` goes by, `header:NAME` or `cookie:NAME`.
    """

    mode: str = "proxy"
    stream_timeout_seconds: float | None = None
    queue_size: int = 1000
    queue_timeout_seconds: float = 300.0
    retry: str = "safe"
    connect_timeout_seconds: float = 3.0
    first_byte_timeout_seconds: float | None = None
    request_timeout_seconds: float | None = None
    max_concurrency_per_replica: int | None = None
    max_body_mib: float | None = None
    slow_start_seconds: float = 0.0
    session_key: str = "header:X-Session-ID"
    workers: int | None = None


@dataclass(frozen=True, slots=True)
class Tls:
    """Paths of a key and a certificate for the endpoint."""

    keyfile: str
    certfile: str


@dataclass(frozen=True, slots=True)
class ReplicaTls:
    """Replicas speak TLS on their port. `verify`: their certificates must rest on those in `ca_file` (None: on those
    that this machine trusts) and name `server_name` (None: the replica's address)."""

    verify: bool = True
    ca_file: str | None = None
    server_name: str | None = None


@dataclass(frozen=True, slots=True)
class ServiceSpec:
    """One version of a service, whole. Secrets are named with a fingerprint; their values live in the secret store."""

    name: str
    run: str
    setup: str | None = None
    readiness_probe: ReadinessProbe = ReadinessProbe()
    replica_policy: ReplicaPolicy = ReplicaPolicy()
    load_balancing_policy: str = "least_load"
    load_balancer: LoadBalancer = LoadBalancer()
    rollout: Rollout = Rollout()
    tls: Tls | None = None
    port: int = 8080
    resources: ResourceChoice = ResourceChoice()
    envs: Mapping[str, str] = field(default_factory=dict)
    secrets: Mapping[str, str] = field(default_factory=dict)
    workdir: str | None = None
    file_mounts: Mapping[str, str] = field(default_factory=dict)
    num_nodes: int = 1
    source: str = ""
    kind: Kind = Kind.SERVICE
    replica_tls: ReplicaTls | None = None

    @property
    def on_spot(self) -> bool:
        """Whether this is a service whose replicas run on spot capacity, so that a placer chooses their places."""
        return self.kind is Kind.SERVICE and self.resources.alternatives[0].use_spot

    def shares_launch_with(self, other: ServiceSpec) -> bool:
        """Whether a replica launched for one of the two may serve for the other without being launched again.

        Files that are copied onto machines may have changed under the same name, so with them the answer is no.
        """
        if self.workdir or other.workdir or self.file_mounts or other.file_mounts:
            return False
        return self._launch_part == other._launch_part

    def shares_probe_with(self, other: ServiceSpec) -> bool:
        """Whether a replica is asked the same, in the same way, under both."""
        return (self.readiness_probe, self.replica_tls) == (other.readiness_probe, other.replica_tls)

    @property
    def _launch_part(self) -> tuple[object, ...]:
        secrets, envs = dict(self.secrets), dict(self.envs)
        return (self.run, self.setup, self.port, self.resources, envs, secrets, self.num_nodes)
