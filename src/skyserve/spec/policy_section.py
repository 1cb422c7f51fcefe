"""`service.replica_policy:` to the model. Takes a tree that passed the check; knows how keys depend on each other."""

from __future__ import annotations

import math
from dataclasses import dataclass
from urllib.parse import urlsplit

from skyserve.model.scaling import CustomMetric, Schedule
from skyserve.model.service import ReplicaPolicy
from skyserve.spec import cron, json_path, shorthand
from skyserve.spec.document import YamlList, YamlMap, YamlNode, YamlScalar
from skyserve.spec.policy_fields import TARGETS
from skyserve.spec.problems import Place, Problems, shown

INSTANCE_AWARE = "instance_aware_least_load"
_AT = "service.replica_policy"
_POLICY = ReplicaPolicy()
_SCHEDULE, _METRIC = Schedule(cron=""), CustomMetric(url="", target_per_replica=1)
_NEEDED_BY = {"request_rate": "target_qps_per_replica", "concurrency": "target_ongoing_requests_per_replica"}


@dataclass(frozen=True, slots=True)
class PolicyReader:
    """Reads `replica_policy:` of one file."""

    node: YamlMap
    problems: Problems

    def policy(self, load_balancing_policy: str) -> ReplicaPolicy:
        """How many replicas, of which capacity, and what their number follows."""
        node = self.node
        least = node.integer("min_replicas", _POLICY.min_replicas)
        policy = ReplicaPolicy(
            min_replicas=least,
            max_replicas=node.integer("max_replicas", least),
            target_qps_per_replica=_target(node.node("target_qps_per_replica")),
            target_ongoing_requests_per_replica=self._number("target_ongoing_requests_per_replica"),
            target_queue_length_per_replica=self._number("target_queue_length_per_replica"),
            target_ttft_s=self._number("target_ttft_s"),
            target_latency_s=self._number("target_latency_s"),
            target_percentile=node.number("target_percentile", _POLICY.target_percentile),
            target_tokens_per_second_per_replica=self._number("target_tokens_per_second_per_replica"),
            target_engine_waiting_per_replica=self._number("target_engine_waiting_per_replica"),
            target_kv_cache_use=self._share("target_kv_cache_use", "80%"),
            engine_metrics_path=node.text("engine_metrics_path") or _POLICY.engine_metrics_path,
            custom_metric=self._custom_metric(),
            schedules=self._schedules(),
            autoscaler=_lower(node.text("autoscaler")) or _POLICY.autoscaler,
            num_overprovision=node.integer("num_overprovision", _POLICY.num_overprovision),
            upscale_delay_seconds=node.number("upscale_delay_seconds", _POLICY.upscale_delay_seconds),
            downscale_delay_seconds=node.number("downscale_delay_seconds", _POLICY.downscale_delay_seconds),
            base_ondemand_fallback_replicas=node.integer(
                "base_ondemand_fallback_replicas", _POLICY.base_ondemand_fallback_replicas
            ),
            dynamic_ondemand_fallback=_flag_or_none(node.node("dynamic_ondemand_fallback")),
            spot_placer=_lower(node.text("spot_placer")),
            availability=self._share("availability", "99.9%") or _POLICY.availability,
        )
        self._check_bounds(policy)
        self._check_targets(policy)
        self._check_rates(policy, load_balancing_policy)
        return policy

    def _number(self, key: str) -> float | None:
        return None if self.node.node(key) is None else self.node.number(key, math.nan)

    def _share(self, key: str, example: str) -> float | None:
        """`99.9%` or `0.999` as a share of the whole."""
        text = self.node.text(key)
        if text is None:
            return None
        try:
            share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
        except ValueError:
            share = math.nan
        if 0 < share < 1:
            return share
        message = f"`{_AT}.{key}` must lie between 0 and 100 %, not {shown(text)}"
        self.problems.add(self.node.place_of(key), message, f"write `{example}` or `{float(example[:-1]) / 100:g}`")
        return None

    # ---- the user's metric

    def _custom_metric(self) -> CustomMetric | None:
        node = self.node.map("custom_metric")
        if node is None:
            return None
        headers = node.map("headers")
        metric = CustomMetric(
            url=node.text("url") or "",
            target_per_replica=node.number("target_per_replica", math.nan),
            json_path=node.text("json_path"),
            query=node.text("query"),
            headers={} if headers is None else {one.key: headers.text(one.key) or "" for one in headers.given()},
            interval_seconds=node.number("interval_seconds", _METRIC.interval_seconds),
        )
        self._check_url(node.place_of("url"), metric.url)
        if metric.json_path is not None and metric.query is not None:
            message = f"`{_AT}.custom_metric` has both `json_path` and `query`"
            self.problems.add(node.place_of("json_path"), message, "keep one; `query` is for a Prometheus server")
        elif metric.json_path is not None and json_path.parse(metric.json_path) is None:
            message = f"`{_AT}.custom_metric.json_path` must be {json_path.FORM}, not {shown(metric.json_path)}"
            self.problems.add(node.place_of("json_path"), message)
        return metric

    def _check_url(self, place: Place, url: str) -> None:
        try:
            parts = urlsplit(url)
            usable, private = bool(parts.hostname) and parts.port != 0, shorthand.holds_password(url)
        except ValueError:
            usable = private = False
        if private:
            message = f"`{_AT}.custom_metric.url` holds a name or a password, which would be stored and shown"
            self.problems.add(place, message, "give it under `headers:`, as in `Authorization: Bearer $TOKEN`")
        elif not usable:
            message = f"`{_AT}.custom_metric.url` has no host and port that can be asked: {shown(url)}"
            self.problems.add(place, message, "write such as http://prometheus:9090")

    # ---- schedules

    def _schedules(self) -> tuple[Schedule, ...]:
        node = self.node.node("schedules")
        items = node.items if isinstance(node, YamlList) else ()
        return tuple(self._schedule(item) for item in items if isinstance(item, YamlMap))

    def _schedule(self, node: YamlMap) -> Schedule:
        schedule = Schedule(
            cron=node.text("cron") or "",
            min_replicas=_count_or_none(node, "min_replicas"),
            max_replicas=_count_or_none(node, "max_replicas"),
            timezone=node.text("timezone") or _SCHEDULE.timezone,
        )
        try:
            cron.parse(schedule.cron)
        except cron.CronError as error:
            place = _within(node.node("cron"), node.place_of("cron"), error)
            self.problems.add(place, f"`{_AT}.schedules`: {error}", error.hint)
        try:
            cron.zone(schedule.timezone)
        except cron.CronError as error:
            self.problems.add(node.place_of("timezone"), f"`{_AT}.schedules`: {error}", error.hint)
        self._check_schedule(node, schedule)
        return schedule

    def _check_schedule(self, node: YamlMap, schedule: Schedule) -> None:
        """What a schedule sets, together with what the policy says otherwise, must be bounds."""
        if schedule.min_replicas is None and schedule.max_replicas is None:
            self.problems.add(node.title, "a schedule needs `min_replicas`, `max_replicas` or both")
            return
        own_least = self.node.integer("min_replicas", _POLICY.min_replicas)
        own_most = self.node.integer("max_replicas", own_least)
        least = own_least if schedule.min_replicas is None else schedule.min_replicas
        most = own_most if schedule.max_replicas is None else schedule.max_replicas
        if least <= most:
            return
        if schedule.max_replicas is None:
            message = f"this schedule's `min_replicas` is {least}, more than the policy's `max_replicas` {most}"
            self.problems.add(node.place_of("min_replicas"), message, f"add `max_replicas: {least}` to the schedule")
        elif schedule.min_replicas is None:
            message = f"this schedule's `max_replicas` is {most}, less than the policy's `min_replicas` {least}"
            self.problems.add(node.place_of("max_replicas"), message, f"add `min_replicas: {most}` to the schedule")
        else:
            message = f"this schedule's `max_replicas` is {most}, less than its `min_replicas` {least}"
            self.problems.add(node.place_of("max_replicas"), message)

    # ---- how keys depend on each other

    def _check_bounds(self, policy: ReplicaPolicy) -> None:
        place = self.node.place_of("max_replicas")
        if policy.min_replicas > policy.max_replicas:
            message = f"`max_replicas` is {policy.max_replicas}, less than `min_replicas` {policy.min_replicas}"
            self.problems.add(place, message)
        elif policy.min_replicas != policy.max_replicas and not (policy.follows_load or policy.schedules):
            hint = "add `target_qps_per_replica` or another target, or make `max_replicas` the same as `min_replicas`"
            self.problems.add(place, "nothing says when to have more than `min_replicas` replicas", hint)

    def _check_targets(self, policy: ReplicaPolicy) -> None:
        given = next((key for key in TARGETS if self.node.node(key) is not None), None)
        if given is not None and self.node.node("max_replicas") is None:
            self.problems.add(self.node.place_of(given), f"`{given}` needs `max_replicas`", "add `max_replicas`")
        needed = _NEEDED_BY.get(policy.autoscaler)
        if needed is not None and self.node.node(needed) is None:
            message = f"`autoscaler: {policy.autoscaler}` goes by `{needed}`, which is not given"
            hint = f"add `{needed}`, or leave `autoscaler` out"
            self.problems.add(self.node.place_of("autoscaler"), message, hint)

    def _check_rates(self, policy: ReplicaPolicy, load_balancing_policy: str) -> None:
        target = policy.target_qps_per_replica
        place = self.node.place_of("target_qps_per_replica")
        if target is None or isinstance(target, (int, float)):
            return
        if not target:
            self.problems.add(place, "`target_qps_per_replica` is an empty map", "give a number")
        if load_balancing_policy != INSTANCE_AWARE:
            message = "`target_qps_per_replica` by accelerator needs another load balancing policy"
            self.problems.add(place, message, f"add `load_balancing_policy: {INSTANCE_AWARE}` under `service:`")


def _within(node: YamlNode | None, place: Place, error: cron.CronError) -> Place:
    """The part of a value that an error is about, where the value stands in one piece."""
    margin = (place.end - place.start - len(node.text)) // 2 if isinstance(node, YamlScalar) else -1
    if margin not in (0, 1):
        return place
    begin = margin + error.start
    return Place(place.line, place.column + begin, place.start + begin, place.start + margin + error.end)


def _target(node: YamlNode | None) -> float | dict[str, float] | None:
    if isinstance(node, YamlScalar):
        return float(node.value) if isinstance(node.value, (int, float)) else None
    if not isinstance(node, YamlMap):
        return None
    return {_accelerator_key(entry.key): node.number(entry.key, math.nan) for entry in node.given()}


def _accelerator_key(text: str) -> str:
    """The canonical spelling of `a100` or `a100:8`; the count stays away where it was not written."""
    name, colon, count = text.partition(":")
    return shorthand.canonical_accelerator(name) + colon + count


def _flag_or_none(node: YamlNode | None) -> bool | None:
    return node.value if isinstance(node, YamlScalar) and isinstance(node.value, bool) else None


def _count_or_none(node: YamlMap, key: str) -> int | None:
    return None if node.node(key) is None else node.integer(key, 0)


def _lower(text: str | None) -> str | None:
    return None if text is None else text.lower()
