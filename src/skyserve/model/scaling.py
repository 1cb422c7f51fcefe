"""What the number of replicas follows beside the requests at the door: what the user names, and what was read of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Schedule:
    """Bounds on the number of replicas from each instant that `cron` names until another line's comes.

    `cron` has five fields, read in `timezone`. A bound that is None is the policy's own.
    """

    cron: str
    min_replicas: int | None = None
    max_replicas: int | None = None
    timezone: str = "UTC"


@dataclass(frozen=True, slots=True)
class CustomMetric:
    """A number of the user's, read from `url`; the replicas share it, `target_per_replica` each.

    `json_path` picks it out of a JSON answer; with `query` the URL is a Prometheus server's, which is asked that.
    `$NAME` in header values stands for envs and secrets.
    """

    url: str
    target_per_replica: float
    json_path: str | None = None
    query: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    interval_seconds: float = 10.0


@dataclass(frozen=True, slots=True)
class EngineSample:
    """What the metrics page of one replica said at `at`, Unix seconds; None for what it does not tell.

    `waiting`, `running`: requests in the engine's queue, and in its batch. `kv_cache_use`: 0 to 1. `tokens_per_s`:
    tokens generated a second since the page was read before.
    """

    at: float
    waiting: float | None = None
    running: float | None = None
    kv_cache_use: float | None = None
    tokens_per_s: float | None = None


@dataclass(frozen=True, slots=True)
class MetricReading:
    """The user's metric as last read; `value` is None while that fails, and `detail` says why."""

    at: float
    value: float | None
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Bounds:
    """The bounds that a schedule sets now. `line` is the cron line in force, until `until_at`, when another one's turn
    comes."""

    line: str
    min_replicas: int | None
    max_replicas: int | None
    until_at: float | None = None
