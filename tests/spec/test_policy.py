"""`service.replica_policy`: what the number of replicas may follow; refusals name their place and a way out."""

from __future__ import annotations

import pytest

from skyserve.errors import SpecError
from skyserve.model.scaling import CustomMetric, Schedule
from skyserve.model.service import ReplicaPolicy
from skyserve.spec.load import load_service


def text_of(body: str, first: str = "min_replicas: 1") -> str:
    """A Service YAML with these lines under `replica_policy:`, the first of them in line 6."""
    lines = "".join(f"    {line}\n" for line in body.splitlines())
    return f"run: serve\nresources: {{ports: 8080}}\nservice:\n  replica_policy:\n    {first}\n{lines}"


def policy(body: str) -> ReplicaPolicy:
    return load_service(text_of(body), fingerprint_key=b"key", name_suffix="0a1b").spec.replica_policy


def refusal(body: str) -> SpecError:
    with pytest.raises(SpecError) as caught:
        load_service(text_of(body), fingerprint_key=b"key", name_suffix="0a1b", label="s.yaml")
    return caught.value


def test_every_target() -> None:
    found = policy(
        "max_replicas: 9\n"
        "target_qps_per_replica: 2\n"
        "target_ongoing_requests_per_replica: 16\n"
        "target_queue_length_per_replica: 0.5\n"
        "target_ttft_s: 1.5\n"
        "target_latency_s: 30\n"
        "target_percentile: 99\n"
        "target_tokens_per_second_per_replica: 900\n"
        "target_engine_waiting_per_replica: 4\n"
        "target_kv_cache_use: 80%\n"
        "engine_metrics_path: /v1/metrics\n"
        "autoscaler: Concurrency\n"
        "custom_metric:\n"
        "  url: https://queue.example:8443/depth\n"
        "  target_per_replica: 50\n"
        '  json_path: $.queues[0]["depth"]\n'
        "  headers: {Authorization: Bearer $TOKEN}\n"
        "  interval_seconds: 5\n"
        "schedules:\n"
        "- {cron: 0 8 * * MON-FRI, min_replicas: 4, max_replicas: 12, timezone: Europe/Berlin}\n"
        '- cron: "@daily"\n'
        "  min_replicas: 2\n"
    )
    assert found == ReplicaPolicy(
        min_replicas=1,
        max_replicas=9,
        target_qps_per_replica=2,
        target_ongoing_requests_per_replica=16,
        target_queue_length_per_replica=0.5,
        target_ttft_s=1.5,
        target_latency_s=30,
        target_percentile=99,
        target_tokens_per_second_per_replica=900,
        target_engine_waiting_per_replica=4,
        target_kv_cache_use=0.8,
        engine_metrics_path="/v1/metrics",
        custom_metric=CustomMetric(
            "https://queue.example:8443/depth",
            50,
            json_path='$.queues[0]["depth"]',
            headers={"Authorization": "Bearer $TOKEN"},
            interval_seconds=5,
        ),
        schedules=(Schedule("0 8 * * MON-FRI", 4, 12, "Europe/Berlin"), Schedule("@daily", 2)),
        autoscaler="concurrency",
    )


def test_what_is_not_said_is_as_before() -> None:
    assert policy("max_replicas: 3\ntarget_qps_per_replica: 2.5") == ReplicaPolicy(1, 3, 2.5)
    assert policy("max_replicas: 1") == ReplicaPolicy()


@pytest.mark.parametrize("target", ["0.8", "80%", "80.0%"])
def test_a_share_may_be_a_percentage(target: str) -> None:
    assert policy(f"max_replicas: 2\ntarget_kv_cache_use: {target}").target_kv_cache_use == 0.8


@pytest.mark.parametrize(
    "target",
    [
        "target_ongoing_requests_per_replica: 1",
        "target_queue_length_per_replica: 1",
        "target_ttft_s: 1",
        "target_latency_s: 1",
        "target_tokens_per_second_per_replica: 1",
        "target_engine_waiting_per_replica: 1",
        "target_kv_cache_use: 50%",
        "custom_metric: {url: 'http://queue', target_per_replica: 1}",
    ],
)
def test_any_target_may_move_the_number_and_needs_to_know_how_far(target: str) -> None:
    assert policy(f"max_replicas: 3\n{target}").follows_load
    error = refusal(target)
    assert error.where.startswith("s.yaml:6:")
    assert error.message == f"`{target.split(':')[0]}` needs `max_replicas`"
    assert error.hint == "add `max_replicas`"


def test_schedules_alone_may_move_the_number() -> None:
    found = policy("max_replicas: 3\nschedules: [{cron: 0 8 * * *, min_replicas: 3}]")
    assert not found.follows_load
    assert found.schedules == (Schedule("0 8 * * *", 3),)


@pytest.mark.parametrize(
    ("body", "where", "message", "hint"),
    [
        ("target_ttft_s: 0", "6:20", "must be a number above 0, not 0", ""),
        ("target_percentile: 40", "6:24", "must be a number from 50 to 99.9, not 40", ""),
        ("target_percentile: 100", "6:24", "must be a number from 50 to 99.9, not 100", ""),
        ("target_kv_cache_use: 80", "6:26", "must lie between 0 and 100 %, not '80'", "write `80%` or `0.8`"),
        ("target_kv_cache_use: 0%", "6:26", "must lie between 0 and 100 %", "write `80%`"),
        ("engine_metrics_path: metrics", "6:26", "must be a path that starts with /", ""),
        ("autoscaler: responsiv", "6:17", "must be one of responsive", "did you mean responsive?"),
        ("autoscaler: request_rate", "6:17", "goes by `target_qps_per_replica`", "add `target_qps_per_replica`"),
        ("autoscaler: concurrency", "6:17", "goes by `target_ongoing", "or leave `autoscaler` out"),
        ("custom_metric: {target_per_replica: 1}", "6:5", "`service.replica_policy.custom_metric.url` is missing", ""),
        ("custom_metric: {url: 'http://a'}", "6:5", "target_per_replica` is missing", ""),
        ("custom_metric: {url: 'ftp://a', target_per_replica: 1}", "6:26", "a URL that starts with http://", ""),
        ("custom_metric: {url: 'http://:80', target_per_replica: 1}", "6:26", "no host and port", "http://prometheus"),
        ("custom_metric: {url: 'http://a:99999', target_per_replica: 1}", "6:26", "no host and port", ""),
        ("custom_metric: {url: 'http://u:pw@a', target_per_replica: 1}", "6:26", "would be stored", "under `headers:`"),
        ("custom_metric: {url: 'http://a', target_per_replica: 1, interval_seconds: 0.1}", "6:79", "of 1 or more", ""),
        (
            "custom_metric: {url: 'http://a', target_per_replica: 1, json_path: $.a, query: b}",
            "6:72",
            "both",
            "keep one",
        ),
        ("custom_metric: {url: 'http://a', target_per_replica: 1, json_path: '$.a[*]'}", "6:72", "such as $.queue", ""),
        ("custom_metric: {url: 'http://a', target_per_replica: 1, querry: x}", "6:61", "unknown", "`query`?"),
        ("schedules: {cron: 0 8 * * *}", "6:16", "must be a list, not a map", ""),
        ("schedules: [{min_replicas: 1}]", "6:17", "`service.replica_policy.schedules[0].cron` is missing", ""),
        ("schedules: [{cron: 0 8 * * *}]", "6:17", "needs `min_replicas`, `max_replicas` or both", ""),
        ("schedules: [{cron: 0 8 * *, max_replicas: 1}]", "6:24", "has 5 fields, not 4", "day of the week: 0 8"),
        ("schedules: [{cron: 0 24 * * *, max_replicas: 1}]", "6:26", "the hour must be from 0 to 23, not '24'", ""),
        ("schedules: [{cron: '0 8 * * MOM', max_replicas: 1}]", "6:33", "or a name such as SUN", "did you mean MON?"),
        ("schedules: [{cron: 0 8 30 2 *, max_replicas: 1}]", "6:28", "no such day ever comes", ""),
        ("schedules: [{cron: '@dayly', max_replicas: 1}]", "6:25", "no name of a cron line", "did you mean @daily?"),
        (
            "schedules: [{cron: 0 8 * * *, max_replicas: 1, timezone: Europe/Berln}]",
            "6:62",
            "no time zone",
            "Europe/Berlin?",
        ),
        (
            "schedules: [{cron: 0 8 * * *, min_replicas: 3}]",
            "6:49",
            "more than the policy's `max_replicas` 1",
            "add `max_r",
        ),
        (
            "schedules: [{cron: 0 8 * * *, max_replicas: 0}]",
            "6:49",
            "less than the policy's `min_replicas` 1",
            "add `min_r",
        ),
        (
            "schedules: [{cron: 0 8 * * *, min_replicas: 3, max_replicas: 2}]",
            "6:66",
            "less than its `min_replicas` 3",
            "",
        ),
    ],
)
def test_refusals_name_the_place_and_a_way_out(body: str, where: str, message: str, hint: str) -> None:
    error = refusal(body if "custom" not in body else f"{body}\nmax_replicas: 1")
    assert message in error.message
    assert error.where == f"s.yaml:{where}"
    assert hint in (error.hint or "")


def test_a_cron_line_that_yaml_takes_for_an_alias_is_told_as_such() -> None:
    error = refusal("schedules:\n- cron: */5 * * * *\n  max_replicas: 1")
    assert "not valid YAML" in error.message
    assert error.hint == "put quotes around a text that begins with `*`, such as a cron line"


def test_a_password_in_a_url_is_not_quoted_in_the_message() -> None:
    error = refusal("max_replicas: 2\ncustom_metric: {url: 'http://u:hunter2@a', target_per_replica: 1}")
    assert "hunter2" not in error.message
