"""Where a service could run and what that would cost, as rows of the plan table. Pure: values in, values out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from skyserve.model.offering import CapacityType, Offering
from skyserve.model.resources import Accelerator
from skyserve.model.service import ServiceSpec
from skyserve.model.view import MixView, ProviderView


@dataclass(frozen=True, slots=True)
class PlanRow:
    """One way to run a replica, and the first capacity pool of all that are alike: same cloud, same accelerators, same
    capacity type. `further_pools` are the others. `enabled` says whether machines can be launched there from here."""

    provider: str
    instance_type: str
    infra: str
    vcpus: float
    memory_gib: float
    accelerator: Accelerator | None
    price_per_hour: float
    capacity_type: str = CapacityType.ON_DEMAND.value
    further_pools: int = 0
    enabled: bool = True
    chosen: bool = False

    @property
    def cloud(self) -> str:
        """The cloud, as it is called in `infra`."""
        return self.infra.partition("/")[0] or self.provider

    @property
    def group(self) -> tuple[str, str, str]:
        """What rows that are alike have in common."""
        return self.cloud, str(self.accelerator or ""), self.capacity_type


@dataclass(frozen=True, slots=True)
class Cost:
    """What the service costs an hour, US dollars: a replica with all its nodes, and as many replicas as it has at least
    and at most (those for good measure included)."""

    replica_per_hour: float
    min_replicas: int
    min_per_hour: float
    max_replicas: int
    max_per_hour: float


@dataclass(frozen=True, slots=True)
class Estimate:
    """The plan table's rows in order, with at most one chosen, and the cost of that one. `mix` is what a spot service
    would start with, and what is expected of it."""

    candidates: tuple[PlanRow, ...]
    cost: Cost | None = None
    refusals: tuple[tuple[str, str], ...] = ()
    warnings: tuple[str, ...] = ()
    mix: MixView | None = None


def of_offering(offering: Offering) -> PlanRow:
    """A row of its own for one offering."""
    return PlanRow(
        provider=offering.provider,
        instance_type=offering.instance_type,
        infra=str(offering.location),
        vcpus=offering.vcpus,
        memory_gib=offering.memory_gib,
        accelerator=offering.accelerator,
        price_per_hour=offering.price_per_hour,
        capacity_type=offering.capacity_type.value,
    )


def of_view(view: ProviderView) -> PlanRow:
    """A row of its own for one candidate of the controller."""
    return PlanRow(
        provider=view.provider,
        instance_type=view.instance_type,
        infra=view.infra,
        vcpus=view.vcpus,
        memory_gib=view.memory_gib,
        accelerator=view.accelerator,
        price_per_hour=view.price_per_hour,
        capacity_type=view.capacity_type,
        chosen=view.chosen,
    )


def grouped(rows: Iterable[PlanRow]) -> tuple[PlanRow, ...]:
    """The first row of every group, which now stands for the others too. Rows come in order of preference."""
    first: dict[tuple[str, str, str], PlanRow] = {}
    further: dict[tuple[str, str, str], int] = {}
    for row in rows:
        kept = first.setdefault(row.group, row)
        if kept is not row:
            further[row.group] = further.get(row.group, 0) + 1
    return tuple(replace(row, further_pools=row.further_pools + further.get(row.group, 0)) for row in first.values())


def estimate(
    spec: ServiceSpec,
    rows: Sequence[PlanRow],
    *,
    refusals: Sequence[tuple[str, str]] = (),
    warnings: Sequence[str] = (),
) -> Estimate:
    """The table for rows in order of preference. An ordered list stays in its order, anything else goes by cost."""
    shown = grouped(rows)
    if not spec.resources.ordered:
        shown = tuple(sorted(shown, key=lambda row: row.price_per_hour))
    chosen = next((row for row in shown if row.chosen), None)
    return Estimate(shown, cost(spec, chosen) if chosen else None, tuple(refusals), tuple(warnings))


def cost(spec: ServiceSpec, row: PlanRow) -> Cost:
    """What the service costs when all its replicas run there."""
    policy = spec.replica_policy
    replica_per_hour = row.price_per_hour * spec.num_nodes
    fewest, most = (count + policy.num_overprovision for count in (policy.min_replicas, policy.max_replicas))
    return Cost(replica_per_hour, fewest, fewest * replica_per_hour, most, most * replica_per_hour)
