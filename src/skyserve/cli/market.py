"""The market that a service is simulated on: recorded in files, or made up from the price lists. Asks no cloud."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from skyserve.catalog import query, snapshot
from skyserve.cli import offers
from skyserve.decide.optimize import rank
from skyserve.errors import Infeasible
from skyserve.model.offering import CapacityType
from skyserve.sim import synthetic, traces
from skyserve.sim.market import Market

if TYPE_CHECKING:
    from skyserve.model.offering import Offering
    from skyserve.model.resources import Resources
    from skyserve.model.service import ServiceSpec

DAYS_MADE_UP = 7.0
"""How long a made-up market lasts when nothing else is asked."""

_SPOT, _ON_DEMAND = 40, 8
"""The best pools of each kind that a made-up market has. On-demand capacity is endless, so few of these matter; all of
them together are as many as a decision looks at."""

MarketOf = Callable[[int], Market]
"""A seed -> a market. A recorded one is the same for every seed."""


def recorded(paths: Sequence[Path], spec: ServiceSpec, length_s: float | None) -> MarketOf:
    """The places of these files in which the service may run. Raises UsageError, Infeasible."""
    whole = traces.load_traces(paths, lambda offering: _described(offering, spec))
    market = whole.only(lambda offering: _may_run_in(offering, spec)).part(0.0, length_s or math.inf)
    if not market.pools:
        raise Infeasible(f"none of the places of {whole.name} is one in which the service may run")
    return lambda seed: market


def made_up(home: Path, spec: ServiceSpec, length_s: float | None) -> MarketOf:
    """A market for each seed, over the pools that the price lists offer the service, spot and on demand.

    Raises Infeasible, CatalogError.
    """
    stand_ins = tuple(replace(one, use_spot=False) for one in spec.resources.alternatives)
    want = replace(spec.resources, alternatives=(*spec.resources.alternatives, *stand_ins))
    table = snapshot.current(home)
    found = query.feasible(table, want)
    ranked = rank([offering for _, offering in found.offerings], spec)
    spot = [one for one in ranked if one.capacity_type is CapacityType.SPOT]
    others = [one for one in ranked if one.capacity_type is not CapacityType.SPOT]
    pools = (*spot[:_SPOT], *others[:_ON_DEMAND])
    if not pools:
        lines = [f"  {what}: {why}" for what, why in offers.unmet(want, found)]
        message = "\n".join(["no cloud offers what this service asks for", *lines])
        raise Infeasible(message, hint=offers.advice(query.relax(table, want)))
    return lambda seed: synthetic.market(pools, length_s or DAYS_MADE_UP * 86400, seed)


def for_spec(market: Market, spec: ServiceSpec) -> Market:
    """What of a market a service looks at: one that is not on spot looks at no spot."""
    return market if spec.on_spot else market.only(lambda one: one.capacity_type is not CapacityType.SPOT)


def _described(offering: Offering, spec: ServiceSpec) -> Offering:
    """A trace that does not name its accelerators stands for what the service asks for."""
    wanted = spec.resources.alternatives[0].accelerators
    return offering if offering.accelerator or wanted is None else replace(offering, accelerator=wanted)


def _may_run_in(offering: Offering, spec: ServiceSpec) -> bool:
    return any(_inside(offering, resources) for resources in spec.resources.alternatives)


def _inside(offering: Offering, resources: Resources) -> bool:
    place, spot = offering.location, offering.capacity_type is CapacityType.SPOT
    return (
        resources.cloud in (None, place.cloud)
        and resources.region in (None, place.region)
        and (not spot or resources.zone in (None, place.zone))
    )
