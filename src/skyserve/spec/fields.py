"""The one table of Service YAML keys: kind, default and meaning. Checks, JSON Schema and reference page follow it."""

from __future__ import annotations

from skyserve.model.resources import Resources
from skyserve.model.rollout import Rollout
from skyserve.model.service import LoadBalancer, ReadinessProbe, ReplicaPolicy, ReplicaTls, ServiceSpec
from skyserve.spec.kinds import Anything, Boolean, Field, Integer, ListOf, MapOf, Number, OneOf, Refused, Section, Text
from skyserve.spec.policy_fields import ACCELERATOR, CUSTOM_METRIC, HEADERS, REPLICA_POLICY, SCHEDULE

SERVICE_NAME = r"[A-Za-z]([-A-Za-z0-9]{0,61}[A-Za-z0-9])?"
SERVICE_NAME_FORM = (
    "a name of at most 63 letters, digits and hyphens that starts with a letter and does not end with a hyphen"
)
_ENV_NAME = Text("a name of letters, digits and underscores", r"[A-Za-z_][A-Za-z0-9_]*")
_VALUE = Text("a single value", as_written=True)
_NOT_EMPTY = Text("a text that is not empty", r"[\s\S]*\S[\s\S]*")
_PATH = Text("a path that is not empty and holds no line break", r"[^\r\n]*[^\s][^\r\n]*")
_PROBE_PATH = Text("a path that starts with / and holds no spaces", r"/[!-~]*")
_AMOUNT = Text("an amount such as 8 or 8+", r"[0-9]+(\.[0-9]+)?\+?", as_written=True)
_MEMORY = Text("an amount such as 32, 32+, 64GB or 4x", r"[0-9]+(\.[0-9]+)?([A-Za-z]{0,3}\+?)", as_written=True)
_SIZE = Text("a size such as 256 or 1TB", r"[0-9]+(\.[0-9]+)?[A-Za-z]{0,3}", as_written=True)
_PORT = Integer(1, 65535)
_PORT_TEXT = Text("a port such as 8080 or 8080-8082", r"[0-9]{1,5}(-[0-9]{1,5})?")
_INFRA = Text("a place such as aws/us-east-1, k8s/my-context or *", r"[^\s/]+(/[^\s/]+)*")
_SECONDS_ABOVE_0 = Number(above=0)
_SECONDS = Number(minimum=0)
_COUNT = Integer(0)
_HOST_NAME = Text("a host name", r"[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?")
_SESSION_KEY = Text("header:NAME or cookie:NAME", r"(header|cookie):[!#$%&'*+.^_`|~0-9A-Za-z-]+")

_PROBE, _POLICY, _DOOR, _REPLICA_TLS = ReadinessProbe(), ReplicaPolicy(), LoadBalancer(), ReplicaTls()
_ROLLOUT = Rollout()
_REPLICA, _SERVICE = Resources(), ServiceSpec(name="", run="")

READINESS_PROBE = Section(
    "readiness_probe",
    (
        Field("path", _PROBE_PATH, "Path that is asked; an answer of 200 means ready.", _PROBE.path),
        Field(
            "post_data",
            OneOf((MapOf(Anything(), nullable=True), Text("a JSON text"))),
            "JSON body; makes the probe a POST. `$NAME` stands for an env or a secret, filled in when probing.",
        ),
        Field(
            "headers",
            HEADERS,
            "Headers sent with the probe. `$NAME` in a value stands for an env or a secret.",
        ),
        Field(
            "initial_delay_seconds",
            _SECONDS,
            "How long a replica may take from the start of setup to its first 200.",
            _PROBE.initial_delay_seconds,
        ),
        Field("timeout_seconds", _SECONDS_ABOVE_0, "How long one probe may take.", _PROBE.timeout_seconds),
        Field(
            "endpoint_probe_interval_seconds",
            _SECONDS_ABOVE_0,
            "Pause between two probes of a replica.",
            _PROBE.endpoint_probe_interval_seconds,
        ),
        Field(
            "consecutive_failure_threshold_timeout",
            _SECONDS,
            "How many seconds probes of a once ready replica may fail before it is replaced.",
            _PROBE.consecutive_failure_threshold_timeout,
        ),
    ),
    "How to ask a replica whether it can serve.",
)

LOAD_BALANCER = Section(
    "load_balancer",
    (
        Field(
            "mode",
            Text(choices=("proxy", "redirect")),
            "`proxy` relays requests, `redirect` answers 307 with the address of a replica.",
            _DOOR.mode,
        ),
        Field(
            "stream_timeout_seconds",
            _SECONDS_ABOVE_0,
            "The longest silence of a replica, before an answer or in the middle of it. Not given: no limit.",
        ),
        Field(
            "connect_timeout_seconds",
            _SECONDS_ABOVE_0,
            "How long a replica may take to accept a connection; then another one is asked.",
            _DOOR.connect_timeout_seconds,
        ),
        Field(
            "first_byte_timeout_seconds",
            _SECONDS_ABOVE_0,
            "How long a replica may take to begin an answer; then the client gets 504. Not given: no limit.",
        ),
        Field(
            "request_timeout_seconds",
            _SECONDS_ABOVE_0,
            "How long a request may take as a whole, waiting included. Not given: no limit.",
        ),
        Field("queue_size", _COUNT, "How many requests wait while no replica can take them.", _DOOR.queue_size),
        Field(
            "queue_timeout_seconds",
            _SECONDS,
            "How long a request waits for a replica that can take it.",
            _DOOR.queue_timeout_seconds,
        ),
        Field(
            "max_concurrency_per_replica",
            Integer(1),
            "Requests that a replica has at once; more of them wait in the queue. Not given: no limit.",
        ),
        Field(
            "max_body_mib",
            Number(above=0),
            "The largest request body, in MiB; a larger one gets 413. Not given: no limit.",
        ),
        Field(
            "retry",
            Text(choices=("idempotent", "safe")),
            "What is sent to another replica when one fails: `idempotent` requests that got no answer, "
            "or only what is `safe` because no replica began with it.",
            _DOOR.retry,
        ),
        Field(
            "slow_start_seconds",
            _SECONDS,
            "How long it takes a new replica to get its full share of the load.",
            _DOOR.slow_start_seconds,
        ),
        Field(
            "session_key",
            _SESSION_KEY,
            "Which header or cookie names the session that `session_affinity` keeps on one replica.",
            _DOOR.session_key,
        ),
        Field(
            "workers",
            Integer(1, 64),
            "How many processes take requests at the endpoint. Not given: one for each CPU they may use, 4 at most.",
        ),
    ),
    "How requests are treated on their way to the replicas.",
)

_PERCENTAGE = Text("a percentage such as 25%", r"\d+(\.\d*)?%")
_COUNT_OR_PART = OneOf((_COUNT, _PERCENTAGE))
_PART = OneOf((Number(minimum=0), _PERCENTAGE))

ROLLOUT = Section(
    "rollout",
    (
        Field(
            "max_surge",
            _COUNT_OR_PART,
            "Replicas that an update may have above the target: a number, or a part of the target, rounded up. "
            "`blue_green` has as many as it needs.",
            _ROLLOUT.max_surge,
        ),
        Field(
            "max_unavailable",
            _COUNT_OR_PART,
            "Replicas that a `rolling` update may have below the target, in the same words, rounded down.",
            _ROLLOUT.max_unavailable,
        ),
        Field(
            "canary_steps",
            ListOf(OneOf((Number(above=0), _PERCENTAGE))),
            "Percentages of the requests that a `canary` gets, one after the other, before it takes over. "
            "Not given: 5, 25, 50.",
        ),
        Field(
            "step_seconds",
            _SECONDS,
            "Least time of a step of a `canary`. In the other modes it is the longest time that old replicas wait for "
            "the new version to answer enough requests.",
            _ROLLOUT.step_seconds,
        ),
        Field(
            "max_error_rate_increase",
            _PART,
            "By how much the part of failed answers (a status of 500 or more, or broken off) may be greater than that "
            "of the old version: 0.01 lets it go from 1 % to 2 %.",
            _ROLLOUT.max_error_rate_increase,
        ),
        Field(
            "max_slow_rate_increase",
            _PART,
            "The same of slow answers: those whose first byte takes longer than that of 95 % of the old version's.",
            _ROLLOUT.max_slow_rate_increase,
        ),
        Field(
            "false_rollback_rate",
            OneOf((Number(above=0), _PERCENTAGE)),
            "The probability with which an update is rolled back for answers that are no worse than is tolerated.",
            _ROLLOUT.false_rollback_rate,
        ),
        Field(
            "auto_rollback",
            Boolean(),
            "Whether the service goes back to the old version by itself when the new one fails. If not, the update "
            "stops where it is.",
            _ROLLOUT.auto_rollback,
        ),
        Field(
            "failure_budget",
            Integer(1),
            "How many replicas of a new version may fail in a row before it is given up.",
            _ROLLOUT.failure_budget,
        ),
    ),
    "How an update takes over, and what ends it.",
)

TLS = Section(
    "tls",
    (
        Field("keyfile", _PATH, "Path of the private key, PEM.", required=True),
        Field("certfile", _PATH, "Path of the certificate chain, PEM.", required=True),
    ),
    "What the endpoint proves itself with; its clients then say `https://`.",
)

REPLICA_TLS = Section(
    "replica_tls",
    (
        Field(
            "verify",
            Boolean(),
            "Whether a replica has to prove who it is. `false` encrypts, and believes whoever answers.",
            _REPLICA_TLS.verify,
        ),
        Field(
            "ca_file",
            _PATH,
            "Path of the certificates, PEM, that those of replicas rest on: an authority's, or the replicas' own. "
            "Not given: those that the controller's machine trusts.",
        ),
        Field(
            "server_name",
            _HOST_NAME,
            "The name that replicas' certificates bear. Not given: the address of each replica.",
        ),
    ),
    "How replicas are spoken to that speak TLS on their port.",
)

_NO_POOLS = Refused("belongs to pools of workers, and a service has replicas", "use `replicas` or `replica_policy`")

SERVICE = Section(
    "service",
    (
        Field(
            "readiness_probe",
            OneOf((_PROBE_PATH, READINESS_PROBE)),
            "A path to GET, or a map with the keys below.",
            _PROBE.path,
        ),
        Field("replicas", _COUNT, "A fixed number of replicas; excludes `replica_policy`.", _POLICY.min_replicas),
        Field("replica_policy", REPLICA_POLICY, "A number of replicas that follows the load; see below."),
        Field("ports", OneOf((_PORT, _PORT_TEXT)), "The port that serves, where `resources.ports` opens several."),
        Field(
            "load_balancing_policy",
            Text(
                choices=("round_robin", "least_load", "instance_aware_least_load", "power_of_two", "session_affinity")
            ),
            "How a replica is picked for a request.",
            _SERVICE.load_balancing_policy,
        ),
        Field("load_balancer", LOAD_BALANCER, "How requests are relayed; see below."),
        Field("rollout", ROLLOUT, "How an update takes over, and what ends it; see below."),
        Field("tls", TLS, "Key and certificate of the endpoint, which then is `https://`."),
        Field("replica_tls", REPLICA_TLS, "Given: replicas speak TLS on their port; see below."),
        Field("pool", _NO_POOLS),
        Field("workers", _NO_POOLS),
    ),
    "The service as its clients see it.",
)

_CONSTRAINTS = (
    Field(
        "infra",
        _INFRA,
        "Where: `cloud`, `cloud/region`, `cloud/region/zone` or `k8s/context`; `*` stands for any.",
    ),
    Field("cloud", Text("a cloud", r"[^\s/]+"), "The cloud; excludes `infra`."),
    Field("region", Text("a region", r"\S+"), "The region; excludes `infra`."),
    Field("zone", Text("a zone", r"[^\s/]+"), "The zone; excludes `infra`."),
    Field(
        "accelerators",
        OneOf((ACCELERATOR, MapOf(Number(above=0), ACCELERATOR, nullable=True), ListOf(ACCELERATOR))),
        "`L4:1`; a map is a set of alternatives, of which the cheapest is taken; a list is tried in its order. "
        "Case does not matter.",
    ),
    Field(
        "accelerator_args", MapOf(_VALUE), "Settings of the accelerator, such as `runtime_version`.", stored_only=True
    ),
    Field("cpus", _AMOUNT, "Virtual CPUs: `8` is exact, `8+` is at least 8."),
    Field("memory", _MEMORY, "Memory in GiB: `32`, `32+`, `64GB`, or `4x` the vCPUs."),
    Field("instance_type", Text("an instance type", r"\S+"), "The exact instance type."),
    Field("use_spot", Boolean(), "Whether replicas run on spot capacity.", _REPLICA.use_spot),
    Field(
        "ports",
        OneOf((_PORT, _PORT_TEXT, ListOf(OneOf((_PORT, _PORT_TEXT))))),
        "The port that replicas listen on. Several, or a range such as `8080-8082`, need `service.ports`.",
    ),
    Field("disk_size", _SIZE, "Size of the system disk in GiB, or with a unit: `1TB`."),
    Field(
        "disk_tier",
        Text(choices=("low", "medium", "high", "ultra", "best")),
        "Speed of the system disk.",
    ),
    Field("local_disk", _VALUE, "Disks of the instance itself, such as `nvme:300+`.", stored_only=True),
    Field("ephemeral_storage", _VALUE, "Ephemeral storage of a pod, such as `100GB`.", stored_only=True),
    Field("network_tier", Text(choices=("standard", "best")), "Speed of the network.", stored_only=True),
    Field(
        "image_id",
        OneOf((Text("an image", r"\S+"), Refused("by region is not supported yet", "give one image for all regions"))),
        "Machine image, or `docker:IMAGE`. `$NAME` stands for an env.",
    ),
    Field("labels", MapOf(_VALUE), "Labels put on the machines."),
    Field("max_hourly_cost", Number(above=0), "Most dollars an hour that one replica may cost."),
    Field("priority", _VALUE, "Scheduling priority of the pod.", stored_only=True),
    Field("priority_class", _VALUE, "Another name of `priority`.", stored_only=True),
    Field(
        "volumes",
        ListOf(OneOf((Text("a volume"), MapOf(Anything())))),
        "Volumes attached to the machine: `NAME:/PATH`, or maps.",
        stored_only=True,
    ),
    Field("autostop", OneOf((_VALUE, MapOf(Anything()))), "Idle stop of the machine.", stored_only=True),
    Field(
        "job_recovery",
        Refused("is for jobs: a service always replaces the replicas that it loses", "remove `job_recovery`"),
    ),
)

ALTERNATIVE = Section("alternative", _CONSTRAINTS, "One of several sets of constraints.")

RESOURCES = Section(
    "resources",
    (
        *_CONSTRAINTS,
        Field(
            "any_of",
            ListOf(ALTERNATIVE),
            "Alternatives, of which the cheapest is taken. Each has the keys above and goes over them.",
        ),
        Field("ordered", ListOf(ALTERNATIVE), "As `any_of`, tried in the order of the list."),
    ),
    "What one replica needs.",
)

_ASIDE = MapOf(Anything(), nullable=True)
_STORAGE = Refused("holds a storage object, which is not supported yet", "give a path")

WORKDIR_GIT = Section(
    "workdir",
    (
        Field("url", _NOT_EMPTY, "URL of the repository, as `git clone` takes it.", required=True),
        Field("ref", _NOT_EMPTY, "Branch, tag or commit; the repository's default branch if not given."),
    ),
    "A git repository in place of a local directory; it is fetched once for each version of the service.",
)

SERVICE_YAML = Section(
    "",
    (
        Field(
            "name",
            Text(SERVICE_NAME_FORM, SERVICE_NAME),
            "Name of the service. `-n` goes over it; not given: `sky-service-` and four hex digits.",
        ),
        Field("service", SERVICE, "The service as its clients see it; see below.", required=True),
        Field("resources", RESOURCES, "What one replica needs; see below."),
        Field("setup", Text("a shell script"), "Shell script that prepares a replica, run once before `run`."),
        Field("run", _NOT_EMPTY, "Shell script that serves. It must stay in the foreground.", required=True),
        Field(
            "envs",
            MapOf(_VALUE, _ENV_NAME, nullable=True),
            "Environment of `setup` and `run`. A name without a value must be given one with `--env`.",
        ),
        Field(
            "secrets",
            MapOf(_VALUE, _ENV_NAME, nullable=True, private=True),
            "As `envs`, for values that are kept out of the stored service and of all that is shown. "
            "A name without a value must be given one with `--secret`.",
        ),
        Field(
            "workdir",
            OneOf((_PATH, WORKDIR_GIT)),
            "Local directory that `setup` and `run` start in, or a git repository. `$NAME` stands for an env.",
        ),
        Field(
            "file_mounts",
            MapOf(OneOf((_PATH, _STORAGE)), _PATH),
            "Map from a path on the replica to a local file or directory, or to the URL of a git repository "
            "(`https://host/repo.git#branch`). `$NAME` stands for an env.",
        ),
        Field("num_nodes", Integer(1), "Machines that make up one replica.", _SERVICE.num_nodes),
        Field(
            "volumes",
            MapOf(OneOf((_PATH, _STORAGE)), _PATH),
            "Map from a path on the replica to the name of a volume.",
            stored_only=True,
        ),
        Field("config", _ASIDE, "Accepted with a warning, not used."),
        Field("experimental", _ASIDE, "Accepted with a warning, not used."),
        Field("pool", _NO_POOLS),
    ),
    "The whole file.",
)

SECTIONS = (
    SERVICE_YAML, WORKDIR_GIT, SERVICE, READINESS_PROBE, REPLICA_POLICY, CUSTOM_METRIC, SCHEDULE, LOAD_BALANCER,
    ROLLOUT, TLS, REPLICA_TLS, RESOURCES,
)  # fmt: skip
"""Every section, in the order of the reference page."""
