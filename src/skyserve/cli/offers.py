"""What the catalog offers a service, in words: the best machines, or what is in the way of one. Asks the catalog and
nothing else."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from skyserve.catalog import query, snapshot
from skyserve.catalog.query import Constraint, Feasible, Relaxation
from skyserve.cli import tables, wording
from skyserve.decide.optimize import rank
from skyserve.errors import CatalogError
from skyserve.model.offering import Offering
from skyserve.providers import registry
from skyserve.spec.describe import resources_text

if TYPE_CHECKING:
    from pathlib import Path

    from skyserve.model.resources import ResourceChoice, Resources
    from skyserve.model.service import ServiceSpec

_WITH = {
    Constraint.CLOUD: "on any cloud",
    Constraint.REGION: "in any region",
    Constraint.ZONE: "in any zone",
    Constraint.USE_SPOT: "with `use_spot: false`",
}
"""What it takes to do without a constraint, where that is not simply to leave out its key."""


def elsewhere(home: Path, spec: ServiceSpec) -> tuple[list[str], str]:
    """What to add when nothing that is enabled can run a service: the cheapest offer of the clouds that are not, or
    what is wrong with the request; and a hint."""
    nothing = "nothing was created"
    try:
        table = snapshot.current(home)
    except CatalogError as error:
        return [], f"the price lists cannot be read either: {error.message}; {nothing}"
    found = query.feasible(table, spec.resources)
    best, _ = first_of_each([offering for _, offering in found.offerings], spec)
    if not best:
        lines = [f"  {what}: {why}" for what, why in unmet(spec.resources, found)]
        return lines, advice(query.relax(table, spec.resources)) + f"; {nothing}"
    cloud = best[0].location.cloud
    hint = f"`sky check {cloud}` says what keeps it from being used, `sky serve up YAML --dryrun` shows all; {nothing}"
    return [f"the cheapest offer elsewhere: {_text(best[0])}"], hint


def first_of_each(offerings: Iterable[Offering], spec: ServiceSpec) -> tuple[tuple[Offering, ...], Mapping[str, int]]:
    """The first offering of every group, best first, and how many more there are of its group, by its pool.

    Only these are compared with each other: tens of thousands of machines may do.
    """
    first: dict[tuple[object, ...], Offering] = {}
    further: dict[str, int] = {}
    for offering in offerings:
        kept = first.setdefault((offering.location.cloud, offering.accelerator, offering.capacity_type), offering)
        if kept is not offering:
            further[kept.pool] = further.get(kept.pool, 0) + 1
    return rank(tuple(first.values()), spec), further


def unmet(want: ResourceChoice, found: Feasible) -> list[tuple[str, str]]:
    """Alternatives for which the catalog has nothing, each with all that was in the way."""
    met = {index for index, _ in found.offerings}
    told: dict[int, list[str]] = {}
    for refusal in found.refusals:
        if refusal.alternative not in met:
            told.setdefault(refusal.alternative, []).append(str(refusal))
    return [(_asked(want.alternatives[index]), ", ".join(reasons)) for index, reasons in told.items()]


def _asked(resources: Resources) -> str:
    text = resources_text(resources)
    return "clouds" if text == "-" else f"clouds, {text}"


def advice(relaxation: Relaxation | None) -> str:
    """What to change about a request that nothing satisfies."""
    if relaxation is None:
        return "ask for less, or for several alternatives (`accelerators: {L4:1, A10G:1}`)"
    constraint, offering = relaxation.constraint, relaxation.offering
    how = _WITH.get(constraint, f"without `{constraint.value}`")
    if constraint is Constraint.ACCELERATOR_COUNT:
        how = f"with `accelerators: {offering.accelerator}`"
    elif constraint is Constraint.MAX_HOURLY_COST:
        how = f"with `max_hourly_cost: {math.ceil(100 * offering.price_per_hour) / 100:.2f}`"  # rounded, it may not do
    return f"{how} it could run on {_text(offering)}"


def _text(offering: Offering) -> str:
    accelerator = f" ({offering.accelerator})" if offering.accelerator else ""
    spot = "[Spot]" if offering.capacity_type.value == "SPOT" else ""
    place = tables.place_text(str(offering.location), with_zone=bool(spot))
    title = registry.title(offering.location.cloud)
    price = wording.dollars(offering.price_per_hour)
    return f"{title} {offering.instance_type}{spot}{accelerator} in {place}, ${price} / hour"
