"""Views as rows of text: the service table, the replica table, the plan. Pure: lines out, nothing printed."""

from __future__ import annotations

from collections.abc import Sequence

from skyserve.cli import wording
from skyserve.model.view import ProviderView, ReplicaView, ServiceView

SERVICE_HEADERS = ("NAME", "VERSION", "UPTIME", "STATUS", "REPLICAS", "ENDPOINT")
SERVICE_HEADERS_VERBOSE = (*SERVICE_HEADERS, "AUTOSCALING_POLICY", "LOAD_BALANCING_POLICY", "REQUESTED_RESOURCES")
REPLICA_HEADERS = ("SERVICE_NAME", "ID", "VERSION", "ENDPOINT", "LAUNCHED", "INFRA", "RESOURCES", "STATUS")
_PLAN_HEADERS = ("CLOUD", "INSTANCE", "vCPUs", "Mem(GB)", "ACCELERATORS", "REGION/ZONE", "COST ($)", "CHOSEN")
_CLOUD_NAMES = {
    "aws": "AWS",
    "gcp": "GCP",
    "azure": "Azure",
    "kubernetes": "Kubernetes",
    "lambda": "Lambda",
    "runpod": "RunPod",
    "ssh": "SSH",
    "local": "Local",
}
_DETAIL_LINES = 10


def service_row(view: ServiceView, *, verbose: bool) -> tuple[str, ...]:
    """One service under SERVICE_HEADERS, or under SERVICE_HEADERS_VERBOSE."""
    row = (
        view.name,
        ",".join(str(version) for version in view.versions),
        wording.duration(view.uptime_s),
        view.status,
        f"{view.ready}/{view.total}",
        view.endpoint,
    )
    return (*row, view.policy, view.load_balancing_policy, view.requested_resources) if verbose else row


def replica_row(view: ReplicaView, now: float) -> tuple[str, ...]:
    """One replica under REPLICA_HEADERS."""
    endpoint = view.endpoint or ""
    return (
        view.service_name,
        str(view.id),
        str(view.version),
        endpoint if "://" in endpoint or not endpoint else f"http://{endpoint}",
        wording.ago(now - view.launched_at),
        view.infra,
        view.resources,
        view.status,
    )


def has_failed(view: ReplicaView) -> bool:
    """Whether a replica has come to grief, by itself or by its provider."""
    return view.status.startswith("FAILED") or view.status in ("LOST", "PREEMPTED")


def troubles(replicas: Sequence[ReplicaView]) -> list[list[str]]:
    """What went wrong with replicas, or what they wait for: a paragraph for each, one for all that tell the same."""
    tellers: dict[tuple[str, str, str], list[int]] = {}
    for replica in replicas:
        if replica.detail.strip() and (has_failed(replica) or replica.status in ("PENDING", "NOT_READY")):
            tellers.setdefault((replica.service_name, replica.status, replica.detail), []).append(replica.id)
    return [
        [_whose(service, status, ids), *(f"  {line}" for line in wording.last_lines(detail, _DETAIL_LINES))]
        for (service, status, detail), ids in tellers.items()
    ]


def remark(view: ServiceView) -> str:
    """What a service waits for, in one line; empty when all is as it should be."""
    fine = view.status == "READY" and view.ready >= view.target
    return "" if fine else next(iter(view.note.splitlines()), "")


def _whose(service: str, status: str, ids: Sequence[int]) -> str:
    return f"Replica{'' if len(ids) == 1 else 's'} {', '.join(map(str, ids))} of '{service}' ({status}):"


def plan_lines(candidates: Sequence[ProviderView], num_nodes: int) -> list[str]:
    """The framed table of where a replica could run, with the choice marked."""
    rows = [_plan_row(view) for view in candidates]
    widths = [max(len(row[i]) for row in [_PLAN_HEADERS, *rows]) for i in range(len(_PLAN_HEADERS))]
    frame = "-" * (1 + sum(width + 3 for width in widths))

    def line(row: Sequence[str]) -> str:
        return " " + "".join(cell.ljust(width + 3) for cell, width in zip(row, widths, strict=True))

    chosen = next((view for view in candidates if view.chosen), None)
    cost = [f"Estimated cost: ${wording.number(chosen.price_per_hour * num_nodes)} / hour"] if chosen else []
    nodes = wording.count(num_nodes, "node")
    heading = ["== Optimizer ==", *cost, "", f"Considered resources ({nodes}):"]
    return [*heading, frame, line(_PLAN_HEADERS), frame, *(line(row) for row in rows), frame]


def _plan_row(view: ProviderView) -> tuple[str, ...]:
    cloud, _, place = view.infra.partition("/")
    return (
        _CLOUD_NAMES.get(cloud, cloud or view.provider),
        view.instance_type,
        wording.number(view.vcpus),
        wording.number(view.memory_gib),
        str(view.accelerator) if view.accelerator else "-",
        place.rpartition("/")[2] or "-",
        f"{view.price_per_hour:.2f}",
        "   ✔" if view.chosen else "",
    )
