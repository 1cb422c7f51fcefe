"""A service in words."""

from __future__ import annotations

import pytest

from skyserve.model.resources import Accelerator, Quantity, ResourceChoice, Resources
from skyserve.model.scaling import CustomMetric, Schedule
from skyserve.model.service import ReadinessProbe, ReplicaPolicy, ServiceSpec, Tls
from skyserve.spec.describe import choice_text, describe, policy_text, probe_text, resources_text


def test_a_plain_service() -> None:
    spec = ServiceSpec(name="s", run="x", readiness_probe=ReadinessProbe("/health"), replica_policy=ReplicaPolicy(2, 2))
    assert describe(spec) == [
        ("Readiness probe method", "GET /health"),
        ("Readiness initial delay seconds", "1200"),
        ("Readiness probe timeout seconds", "15"),
        ("Replica autoscaling policy", "Fixed 2 replicas"),
        ("TLS Certificates", "No TLS Enabled"),
        ("Spot Policy", "No spot policy"),
        ("Load Balancing Policy", "least_load"),
    ]


def test_a_service_with_everything() -> None:
    policy = ReplicaPolicy(
        1,
        3,
        2.5,
        num_overprovision=2,
        base_ondemand_fallback_replicas=1,
        dynamic_ondemand_fallback=True,
        spot_placer="dynamic_fallback",
    )
    spot = ResourceChoice((Resources(use_spot=True),))
    spec = ServiceSpec(name="s", run="x", replica_policy=policy, tls=Tls("k.pem", "c.pem"), resources=spot)
    told = dict(describe(spec))
    assert told["TLS Certificates"] == "Keyfile: k.pem, Certfile: c.pem"
    assert told["Spot Policy"] == (
        "SpotHedge, Dynamic on-demand fallback, Static spot mixture with 1 base on-demand replica"
    )


def test_a_spot_service_that_says_no_more_is_placed_by_our_own_policy() -> None:
    spot = ServiceSpec(name="s", run="x", resources=ResourceChoice((Resources(use_spot=True),)))
    assert dict(describe(spot))["Spot Policy"] == "Risk-aware, 99.5 % availability, Dynamic on-demand fallback"


@pytest.mark.parametrize(
    ("policy", "text"),
    [
        (ReplicaPolicy(1, 1), "Fixed 1 replica"),
        (ReplicaPolicy(0, 0), "Fixed 0 replicas"),
        (ReplicaPolicy(2, 2, num_overprovision=1), "Fixed 2 replicas with 1 overprovisioned replica"),
        (ReplicaPolicy(1, 3, 2.5), "Autoscaling from 1 to 3 replicas (target QPS per replica: 2.5)"),
        (
            ReplicaPolicy(0, 4, {"L4": 2.0, "A100": 7.5}, num_overprovision=2),
            "Autoscaling from 0 to 4 replicas with 2 overprovisioned replicas (target QPS per replica: L4 2, A100 7.5)",
        ),
        (
            ReplicaPolicy(1, 3, 2.5, 8.0, 2.0, 0.5, 30.0, 99.0),
            "Autoscaling from 1 to 3 replicas (target QPS per replica: 2.5; target ongoing requests per replica: 8; "
            "target queue length per replica: 2; target p99 seconds to first token: 0.5; "
            "target p99 seconds of latency: 30)",
        ),
        (
            ReplicaPolicy(
                1,
                3,
                target_tokens_per_second_per_replica=900.0,
                target_engine_waiting_per_replica=4.0,
                target_kv_cache_use=0.8,
                custom_metric=CustomMetric("http://q", 30.0),
                schedules=(Schedule("@daily", 2),),
            ),
            "Autoscaling from 1 to 3 replicas (target tokens per second per replica: 900; "
            "target requests waiting in the engine per replica: 4; target custom metric per replica: 30; "
            "target KV cache use: 80 %; 1 schedule)",
        ),
        (
            ReplicaPolicy(2, 2, schedules=(Schedule("@daily", 1), Schedule("@hourly", 2))),
            "Fixed 2 replicas (2 schedules)",
        ),
        (ReplicaPolicy(1, 3, schedules=(Schedule("@daily", 2),)), "Autoscaling from 1 to 3 replicas (1 schedule)"),
    ],
)
def test_policies(policy: ReplicaPolicy, text: str) -> None:
    assert policy_text(policy) == text


def test_probes_do_not_show_header_values() -> None:
    probe = ReadinessProbe("/v1", post_data='{"a": 1}', headers={"Authorization": "Bearer x"})
    assert probe_text(probe) == 'POST /v1 {"a": 1} with custom headers'


def test_resources() -> None:
    some = Resources(
        accelerators=Accelerator("L4"), cpus=Quantity(8, at_least=True), memory=Quantity(32, at_least=True)
    )
    assert resources_text(some) == "1x[L4:1, vCPUs=8+, mem=32+]"
    assert resources_text(Resources()) == "-"
    place = Resources(cloud="aws", zone="us-east-1a", instance_type="g6.xlarge", use_spot=True, disk_size=100)
    assert resources_text(place, 2) == "2x[aws/*/us-east-1a, g6.xlarge, disk=100, Spot]"


def test_choices() -> None:
    two = (Resources(accelerators=Accelerator("L4")), Resources(accelerators=Accelerator("T4", 2)))
    assert choice_text(ResourceChoice(two)) == "1x[L4:1] | 1x[T4:2]"
    assert choice_text(ResourceChoice(two, ordered=True)) == "1x[L4:1] > 1x[T4:2]"
