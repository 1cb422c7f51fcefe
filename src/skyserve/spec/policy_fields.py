"""The part of the table of keys that says how many replicas there are, and what their number follows."""

from __future__ import annotations

from skyserve.model.scaling import CustomMetric, Schedule
from skyserve.model.service import AUTOSCALERS, DEFAULT_SPOT_PLACER, SPOT_PLACERS, ReplicaPolicy
from skyserve.spec import json_path
from skyserve.spec.kinds import Boolean, Field, Integer, ListOf, MapOf, Number, OneOf, Section, Text

ACCELERATOR = Text("an accelerator such as L4 or A100:8", r"[A-Za-z0-9][A-Za-z0-9 ._-]*(:[0-9]+(\.[0-9]+)?)?")
HEADERS = MapOf(
    Text("a text without line breaks and control characters", r"[^\x00-\x08\x0a-\x1f\x7f]*", as_written=True),
    Text("a header name", r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"),
)
_SECONDS = Number(minimum=0)
_TARGET = Number(above=0)
_COUNT = Integer(0)
_NOT_EMPTY = Text("a text that is not empty", r"[\s\S]*\S[\s\S]*")
_PATH = Text("a path that starts with / and holds no spaces", r"/[!-~]*")
_URL = Text("a URL that starts with http:// or https://", r"https?://[!-~]+")

_POLICY, _SCHEDULE, _METRIC = ReplicaPolicy(), Schedule(cron=""), CustomMetric(url="", target_per_replica=1)

CUSTOM_METRIC = Section(
    "custom_metric",
    (
        Field("url", _URL, "Where the number is read with a GET; of a Prometheus server with `query`.", required=True),
        Field("target_per_replica", _TARGET, "How much of the number one replica shall have.", required=True),
        Field(
            "json_path",
            Text(json_path.FORM, r"\$[\s\S]*"),
            "Where the number stands in a JSON answer, such as `$.queues[0].length`. "
            "Without it and without `query` the answer is the number alone.",
        ),
        Field("query", _NOT_EMPTY, "What the Prometheus server at `url` is asked; must come to one number."),
        Field(
            "headers",
            HEADERS,
            "Headers sent with the question. `$NAME` in a value stands for an env or a secret.",
        ),
        Field(
            "interval_seconds", Number(minimum=1), "Pause between two readings of the number.", _METRIC.interval_seconds
        ),
    ),
    "A number of your own that the replicas share.",
)

SCHEDULE = Section(
    "schedules",
    (
        Field(
            "cron",
            _NOT_EMPTY,
            "When these bounds begin to hold, until those of another line do: five fields, or `@hourly`, `@daily`, "
            "`@weekly`, `@monthly`, `@yearly`.",
            required=True,
        ),
        Field("min_replicas", _COUNT, "Takes the place of `replica_policy.min_replicas`."),
        Field("max_replicas", _COUNT, "Takes the place of `replica_policy.max_replicas`."),
        Field("timezone", _NOT_EMPTY, "Where the clock hangs that `cron` goes by.", _SCHEDULE.timezone),
    ),
    "Bounds that hold from certain times on.",
)

_FOLLOWED = (
    Field(
        "target_qps_per_replica",
        OneOf((_TARGET, MapOf(_TARGET, ACCELERATOR))),
        "Requests a second one replica shall get; the number of replicas follows the load. "
        "A map from accelerator to number needs `load_balancing_policy: instance_aware_least_load`.",
    ),
    Field(
        "target_ongoing_requests_per_replica",
        _TARGET,
        "Requests that one replica shall have at once, those that wait for a replica among them.",
    ),
    Field(
        "target_queue_length_per_replica",
        _TARGET,
        "Requests that may wait at the load balancer for each replica.",
    ),
    Field(
        "target_ttft_s",
        _TARGET,
        "Seconds within which `target_percentile` of the answers shall begin (time to first token).",
    ),
    Field("target_latency_s", _TARGET, "Seconds within which `target_percentile` of the answers shall be complete."),
    Field(
        "target_percentile",
        Number(minimum=50, maximum=99.9),
        "Percentage of the answers that `target_ttft_s` and `target_latency_s` are for.",
        _POLICY.target_percentile,
    ),
    Field(
        "target_tokens_per_second_per_replica",
        _TARGET,
        "Tokens a second that one replica shall generate, by its engine's own metrics.",
    ),
    Field(
        "target_engine_waiting_per_replica",
        _TARGET,
        "Requests that may wait inside of each replica, by its engine's own metrics.",
    ),
    Field(
        "target_kv_cache_use",
        OneOf((_TARGET, Text("a percentage such as 80%", r"\d+(\.\d*)?%"))),
        "Share of its KV cache that a replica shall use, by its engine's own metrics: `0.8` or `80%`.",
    ),
    Field(
        "engine_metrics_path",
        _PATH,
        "Where replicas show their engine's own metrics, in the text form of Prometheus.",
        _POLICY.engine_metrics_path,
    ),
    Field("custom_metric", CUSTOM_METRIC, "A number of your own that the number of replicas follows; see below."),
    Field("schedules", ListOf(SCHEDULE), "Bounds that hold from certain times on; see below."),
    Field(
        "autoscaler",
        Text(choices=AUTOSCALERS),
        "The policy that follows the load: `responsive` goes by every target that is given, `request_rate` by "
        "`target_qps_per_replica`, `concurrency` by `target_ongoing_requests_per_replica`.",
        _POLICY.autoscaler,
    ),
)

_SETTINGS = ("target_percentile", "engine_metrics_path", "schedules", "autoscaler")
TARGETS = tuple(field.name for field in _FOLLOWED if field.name not in _SETTINGS)
"""The keys that name something which the number of replicas follows."""

REPLICA_POLICY = Section(
    "replica_policy",
    (
        Field("min_replicas", _COUNT, "Least number of replicas; 0 lets an idle service stop them all.", required=True),
        Field("max_replicas", _COUNT, "Most replicas. Not given: the same as `min_replicas`."),
        *_FOLLOWED,
        Field("num_overprovision", _COUNT, "Replicas on top of what the load asks for.", _POLICY.num_overprovision),
        Field(
            "upscale_delay_seconds",
            _SECONDS,
            "How long the load must ask for more replicas before there are more.",
            _POLICY.upscale_delay_seconds,
        ),
        Field(
            "downscale_delay_seconds",
            _SECONDS,
            "How long the load must ask for fewer replicas before there are fewer.",
            _POLICY.downscale_delay_seconds,
        ),
        Field(
            "base_ondemand_fallback_replicas",
            _COUNT,
            "How many of the replicas are always on-demand; needs `use_spot: true`.",
            _POLICY.base_ondemand_fallback_replicas,
        ),
        Field(
            "dynamic_ondemand_fallback",
            Boolean(),
            "Whether on-demand replicas stand in for spot replicas that are missing; needs `use_spot: true`. "
            "Not given: as the `spot_placer` sees fit, which `risk_aware` does and the others do not.",
        ),
        Field(
            "spot_placer",
            Text(choices=SPOT_PLACERS),
            "The policy that chooses places for spot replicas; needs `use_spot: true`.",
            DEFAULT_SPOT_PLACER,
        ),
        Field(
            "availability",
            OneOf((Number(above=0), Text("a percentage such as 99.9%", r"\d+(\.\d*)?%"))),
            "Share of the time in which all wanted replicas shall be ready; `risk_aware` has as many replicas, and as "
            "many of them on-demand, as that takes. Needs `use_spot: true`.",
            _POLICY.availability,
        ),
    ),
    "How many replicas, following the load.",
)
