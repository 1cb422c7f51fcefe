"""The plan of a dry run: over all clouds, whether they can be used from here or not.

Asks the catalog and the providers of this machine; no controller, no credentials, no network.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from skyserve.catalog import query, snapshot
from skyserve.catalog.table import Table
from skyserve.cli import check, estimate, offers, plan
from skyserve.cli.estimate import Estimate
from skyserve.decide import mixing
from skyserve.decide.optimize import rank, shortlisted
from skyserve.errors import Infeasible, ProviderError
from skyserve.model.offering import Offering
from skyserve.providers import registry

if TYPE_CHECKING:
    from skyserve.cli.session import Session
    from skyserve.model.resources import ResourceChoice
    from skyserve.model.service import ServiceSpec
    from skyserve.model.view import MixView
    from skyserve.providers.base import Provider
    from skyserve.spec.load import LoadedService

_Refusals = list[tuple[str, str]]


def show(session: Session, loaded: LoadedService) -> None:
    """Show where a service could run at what price. Raises Infeasible, CatalogError."""
    roster = check.roster_here(session)
    providers = roster.providers
    table = snapshot.current(session.config.home)
    want = loaded.spec.resources
    beside = {name: provider for name, provider in providers.items() if name not in table.clouds}
    here, refusals = asyncio.run(_offered(beside, want))
    found = query.feasible(table, want)
    refusals += offers.unmet(want, found)
    best, further = offers.first_of_each([*here, *(offering for _, offering in found.offerings)], loaded.spec)
    if not best:
        raise _infeasible(table, want, refusals)
    enabled = frozenset(one.name for one in check.examine(roster) if one.enabled)
    result = replace(_table(loaded, best, further, enabled), refusals=tuple(refusals), mix=_mix(loaded.spec, table))
    plan.show(session, loaded.spec, result)
    plan.end_dry_run(session, result)


def _mix(spec: ServiceSpec, table: Table) -> MixView | None:
    """What a spot service would start with if every cloud were enabled, by the price lists alone."""
    if not spec.on_spot:
        return None
    stand_ins = tuple(replace(one, use_spot=False) for one in spec.resources.alternatives)
    want = replace(spec.resources, alternatives=(*spec.resources.alternatives, *stand_ins))
    found = [offering for _, offering in query.feasible(table, want).offerings]
    return mixing.preview(spec, shortlisted(rank(found, spec), (), 0.0), (), 0.0)


async def _offered(providers: Mapping[str, Provider], want: ResourceChoice) -> tuple[list[Offering], _Refusals]:
    offerings: list[Offering] = []
    refusals: _Refusals = []
    for name, provider in providers.items():
        try:
            candidates = await provider.offerings(want)
        except ProviderError as error:
            refusals.append((name, error.message))
            continue
        offerings += candidates.offerings
        refusals += candidates.refusals
    return offerings, refusals


def _table(
    loaded: LoadedService, best: Sequence[Offering], further: Mapping[str, int], enabled: frozenset[str]
) -> Estimate:
    rows = [
        replace(
            estimate.of_offering(offering),
            further_pools=further.get(offering.pool, 0),
            enabled=offering.provider in enabled,
            chosen=offering is best[0],
        )
        for offering in best
    ]
    warnings = list(loaded.warnings)
    if not rows[0].enabled:
        title = registry.title(rows[0].provider)
        warnings.append(f"{title} cannot be used from here: `sky check {rows[0].provider}` says why")
    return estimate.estimate(loaded.spec, rows, warnings=warnings)


def _infeasible(table: Table, want: ResourceChoice, refusals: _Refusals) -> Infeasible:
    lines = [f"  {what}: {why}" for what, why in refusals]
    message = "\n".join(["neither this machine nor any cloud offers what this service asks for", *lines])
    return Infeasible(message, hint=offers.advice(query.relax(table, want)))
