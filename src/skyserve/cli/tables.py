"""Views as rows of text: the service table, the replica table, the plan. Pure: lines out, nothing printed."""

from __future__ import annotations

from collections.abc import Sequence

from skyserve.cli import wording
from skyserve.cli.estimate import Cost, Estimate, PlanRow
from skyserve.model.offering import CapacityType
from skyserve.model.view import MixView, ReplicaView, ServiceView
from skyserve.providers import registry

SERVICE_HEADERS = ("NAME", "VERSION", "UPTIME", "STATUS", "REPLICAS", "ENDPOINT")
SERVICE_HEADERS_VERBOSE = (*SERVICE_HEADERS, "AUTOSCALING_POLICY", "LOAD_BALANCING_POLICY", "REQUESTED_RESOURCES")
REPLICA_HEADERS = ("SERVICE_NAME", "ID", "VERSION", "ENDPOINT", "LAUNCHED", "INFRA", "RESOURCES", "STATUS")
_PLAN_HEADERS = ("CLOUD", "INSTANCE", "vCPUs", "Mem(GB)", "ACCELERATORS", "REGION/ZONE", "COST ($)", "CHOSEN")
REPLICA_EXPENDABLE = ("INFRA", "LAUNCHED", "RESOURCES")
"""What a narrow terminal does without, in this order."""
DETAIL_LINES = 10


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
        [_whose(service, status, ids), *(f"  {line}" for line in wording.last_lines(detail, DETAIL_LINES))]
        for (service, status, detail), ids in tellers.items()
    ]


def remark(view: ServiceView) -> str:
    """What a service waits for, in one line; empty when all is as it should be."""
    fine = view.status == "READY" and view.ready >= view.target
    return "" if fine else next(iter(view.note.splitlines()), "")


def rollout_line(view: ServiceView) -> str:
    """How far an update has come, and what its gate has seen; empty when none is under way."""
    rollout = view.rollout
    if rollout is None:
        return ""
    how = rollout.mode
    if rollout.share is not None:
        how += f", step {rollout.step} of {rollout.steps}: up to {rollout.share:.0%} of the requests"
    line = f"version {rollout.version} is {rollout.state} ({how})"
    if rollout.why:
        line += f": {rollout.why}"
    if rollout.answers or rollout.good_answers:
        seen = (
            (rollout.version, rollout.answers, rollout.errors),
            (rollout.good, rollout.good_answers, rollout.good_errors),
        )
        line += "; failed answers: " + ", ".join(f"version {v} {bad} of {n}" for v, n, bad in seen)
    return line


def rollout_lines(view: ServiceView) -> list[str]:
    """The update under way, or why the latest version is not the one that serves."""
    line = rollout_line(view)
    if line:
        return [f"{view.name}: {line}"]
    rejected = next((one for one in view.rejected if one.version == view.latest_version), None)
    if rejected is None:
        return []
    told = [f"  {line}" for line in wording.last_lines(rejected.detail, DETAIL_LINES)]
    return [f"{view.name}: version {rejected.version} was rolled back: {rejected.why}", *told]


def _whose(service: str, status: str, ids: Sequence[int]) -> str:
    return f"Replica{'' if len(ids) == 1 else 's'} {', '.join(map(str, ids))} of '{service}' ({status}):"


def plan_lines(plan: Estimate, num_nodes: int, room: int | None = None) -> list[str]:
    """The framed table of where a replica could run, with the choice marked, and what the choice costs.

    `room` is how many columns the terminal has: where it is short of them, the table's columns move together.
    """
    notes = [_plan_note(row) for row in plan.candidates]
    headers = (*_PLAN_HEADERS, "NOTE") if any(notes) else _PLAN_HEADERS
    rows = [(*_plan_row(row), note)[: len(headers)] for row, note in zip(plan.candidates, notes, strict=True)]
    widths = [max(len(row[i]) for row in [headers, *rows]) for i in range(len(headers))]
    gap = 3 if room is None or 1 + sum(width + 3 for width in widths) <= room else 2
    frame = "-" * (1 + sum(width + gap for width in widths))

    def line(row: Sequence[str]) -> str:
        return " " + "".join(cell.ljust(width + gap) for cell, width in zip(row, widths, strict=True))

    heading = ["== Optimizer ==", *_cost_lines(plan.cost), "", f"Considered resources ({_nodes(num_nodes)}):"]
    table = [frame, line(headers), frame, *(line(row) for row in rows), frame]
    return [*heading, *table, *_further_lines(plan.candidates)]


def mix_lines(mix: MixView | None) -> list[str]:
    """What a spot service would start with, what that comes to, and what is promised of it."""
    if mix is None:
        return []
    lines = ["", f"Mix to start with, for {wording.count(mix.replicas, 'replica')} ({mix.policy}):"]
    for part in mix.parts:
        kind = "spot" if part.capacity_type == CapacityType.SPOT.value else "on-demand"
        cloud = registry.title(part.infra.partition("/")[0])
        place = place_text(part.infra, with_zone=True)
        price = wording.dollars(part.price_per_hour)
        lines.append(f"  {part.count} x {kind:<9} {cloud} {part.instance_type} in {place}, ${price} / hour each")
    if mix.why:
        lines.append(f"  because {mix.why}")
    if mix.expected_per_hour is not None and mix.on_demand_per_hour:
        share = mix.expected_per_hour / mix.on_demand_per_hour
        lines.append(
            f"Expected cost in the long run: ${wording.dollars(mix.expected_per_hour)} / hour, {share:.0%} of "
            f"${wording.dollars(mix.on_demand_per_hour)} / hour for all on-demand"
        )
    if mix.availability and mix.confidence:
        promise = f"Enough replicas ready for at least {100 * mix.availability:.4g} % of a week"
        lines.append(f"{promise}, with {mix.confidence:.0%} confidence, as long as")
    elif mix.assumptions:
        lines.append("No availability is promised:")
    lines += [f"  - {assumption}" for assumption in mix.assumptions]
    return lines


def place_text(infra: str, *, with_zone: bool) -> str:
    """The place in `cloud/region/zone`, without the cloud; a zone that does not name its region keeps it in front."""
    region, _, zone = infra.partition("/")[2].partition("/")
    if not zone or not with_zone:
        return region or "-"
    return zone if zone.startswith(region) else f"{region}/{zone}"


def _nodes(num_nodes: int) -> str:
    return wording.count(num_nodes, "node")


def _cost_lines(cost: Cost | None) -> list[str]:
    if cost is None:
        return []
    price = cost.replica_per_hour
    replica = f"Estimated cost: ${wording.number(price) if price >= 1 else wording.dollars(price)} / hour"
    bounds = {cost.min_replicas: cost.min_per_hour, cost.max_replicas: cost.max_per_hour}
    if set(bounds) == {1}:
        return [replica]
    whole = ", ".join(
        f"${wording.dollars(price)} / hour with {wording.count(n, 'replica')}" for n, price in bounds.items()
    )
    return [replica, f"Estimated cost of the service: {whole}"]


def _plan_row(row: PlanRow) -> tuple[str, ...]:
    from skyserve.catalog.query import ZONAL_CLOUDS  # only a plan has to do with prices

    spot = row.capacity_type == CapacityType.SPOT.value
    return (
        registry.title(row.cloud),
        f"{row.instance_type}[Spot]" if spot else row.instance_type,
        wording.number(row.vcpus),
        wording.number(row.memory_gib),
        str(row.accelerator) if row.accelerator else "-",
        place_text(row.infra, with_zone=spot or row.cloud in ZONAL_CLOUDS),
        wording.dollars(row.price_per_hour),
        "   ✔" if row.chosen else "",
    )


def _plan_note(row: PlanRow) -> str:
    further = f"+{wording.count(row.further_pools, 'pool')}" if row.further_pools else ""
    return ", ".join(part for part in (further, "" if row.enabled else "not enabled") if part)


def _further_lines(rows: Sequence[PlanRow]) -> list[str]:
    """What stands behind the rows, in words."""
    if not any(row.further_pools for row in rows):
        return []
    meaning = "+N pools: that many more zones, regions and instance types of the cloud would do, at that price or more."
    example = next((row for row in rows if row.further_pools and row.accelerator), None)
    return [meaning, *([f"To list them: sky show-gpus {example.accelerator} --all"] if example else [])]
