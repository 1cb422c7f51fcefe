"""A service in words, for people. Pure: takes the model, gives texts, prints nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from skyserve.model.resources import ResourceChoice, Resources
from skyserve.model.service import DEFAULT_SPOT_PLACER, ReadinessProbe, ReplicaPolicy, ServiceSpec, Tls

_PLACER_TEXT = {"risk_aware": "Risk-aware", "dynamic_fallback": "SpotHedge"}


def describe(spec: ServiceSpec) -> list[tuple[str, str]]:
    """What a user wants to read before saying yes, as pairs of label and value."""
    return [
        ("Readiness probe method", probe_text(spec.readiness_probe)),
        ("Readiness initial delay seconds", _plain(spec.readiness_probe.initial_delay_seconds)),
        ("Readiness probe timeout seconds", _plain(spec.readiness_probe.timeout_seconds)),
        ("Replica autoscaling policy", policy_text(spec.replica_policy)),
        ("TLS Certificates", _tls_text(spec.tls)),
        ("Spot Policy", spot_text(spec)),
        ("Load Balancing Policy", spec.load_balancing_policy),
    ]


def probe_text(probe: ReadinessProbe) -> str:
    """`GET /health`, or `POST /path` with its body. Header values may be private and are left out."""
    method = f"GET {probe.path}" if probe.post_data is None else f"POST {probe.path} {probe.post_data}"
    return f"{method} with custom headers" if probe.headers else method


def policy_text(policy: ReplicaPolicy) -> str:
    """`Fixed 2 replicas`, or the bounds and the target of autoscaling."""
    more = ""
    if policy.num_overprovision:
        more = f" with {_counted(policy.num_overprovision, 'overprovisioned replica')}"
    scheduled = _counted(len(policy.schedules), "schedule") if policy.schedules else ""
    if policy.min_replicas == policy.max_replicas:
        fixed = f"Fixed {_counted(policy.min_replicas, 'replica')}{more}"
        return f"{fixed} ({scheduled})" if scheduled else fixed
    bounds = f"from {policy.min_replicas} to {_counted(policy.max_replicas, 'replica')}"
    followed = "; ".join((*_targets(policy), *([scheduled] if scheduled else ())))
    return f"Autoscaling {bounds}{more} ({followed or 'target QPS per replica: -'})"


def _targets(policy: ReplicaPolicy) -> Iterator[str]:
    """What the number of replicas follows, one target at a time."""
    percentile = f"p{policy.target_percentile:g}"
    custom = policy.custom_metric
    named = (
        ("QPS per replica", policy.target_qps_per_replica),
        ("ongoing requests per replica", policy.target_ongoing_requests_per_replica),
        ("queue length per replica", policy.target_queue_length_per_replica),
        (f"{percentile} seconds to first token", policy.target_ttft_s),
        (f"{percentile} seconds of latency", policy.target_latency_s),
        ("tokens per second per replica", policy.target_tokens_per_second_per_replica),
        ("requests waiting in the engine per replica", policy.target_engine_waiting_per_replica),
        ("custom metric per replica", None if custom is None else custom.target_per_replica),
    )
    for name, target in named:
        if target is not None:
            yield f"target {name}: {_target_text(target)}"
    if policy.target_kv_cache_use is not None:
        yield f"target KV cache use: {_plain(round(100 * policy.target_kv_cache_use, 4))} %"


def choice_text(choice: ResourceChoice, num_nodes: int = 1) -> str:
    """All alternatives on one line, parted by `>` where they are tried in order, else by `|`."""
    separator = " > " if choice.ordered else " | "
    return separator.join(resources_text(one, num_nodes) for one in choice.alternatives)


def resources_text(resources: Resources, num_nodes: int = 1) -> str:
    """One alternative, such as `1x[L4:1, vCPUs=8+, mem=32+]`; `-` where anything will do."""
    parts = [
        _place_text(resources),
        resources.instance_type or "",
        str(resources.accelerators or ""),
        f"vCPUs={resources.cpus}" if resources.cpus else "",
        f"mem={resources.memory}" if resources.memory else "",
        f"disk={resources.disk_size}" if resources.disk_size else "",
        "Spot" if resources.use_spot else "",
    ]
    told = ", ".join(part for part in parts if part)
    return f"{num_nodes}x[{told}]" if told else "-"


def _place_text(resources: Resources) -> str:
    place = [resources.cloud, resources.region, resources.zone]
    while place and place[-1] is None:
        place.pop()
    return "/".join(part or "*" for part in place)


def spot_text(spec: ServiceSpec) -> str:
    """How spot replicas are placed, and what stands in for them."""
    policy = spec.replica_policy
    if not spec.resources.alternatives[0].use_spot:
        return "No spot policy"
    parts = [_PLACER_TEXT.get(policy.placer, policy.placer)]
    if policy.placer == DEFAULT_SPOT_PLACER:
        parts.append(f"{_plain(round(100 * policy.availability, 4))} % availability")
    if policy.falls_back:
        parts.append("Dynamic on-demand fallback")
    if policy.base_ondemand_fallback_replicas:
        base = _counted(policy.base_ondemand_fallback_replicas, "base on-demand replica")
        parts.append(f"Static spot mixture with {base}")
    return ", ".join(parts)


def _tls_text(tls: Tls | None) -> str:
    return "No TLS Enabled" if tls is None else f"Keyfile: {tls.keyfile}, Certfile: {tls.certfile}"


def _target_text(target: float | Mapping[str, float]) -> str:
    if isinstance(target, Mapping):
        return ", ".join(f"{name} {_plain(value)}" for name, value in target.items())
    return _plain(target)


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _plain(number: float) -> str:
    return str(int(number)) if float(number).is_integer() else str(number)
