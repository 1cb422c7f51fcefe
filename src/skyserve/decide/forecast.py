"""What a spot service is told before it starts: what `risk_aware` will cost in the long run, and for what share of the
time all replicas will be ready at least. Knows the policy and published statistics; nothing was seen of the pools."""

from __future__ import annotations

from skyserve.decide import placement
from skyserve.decide.hazard import Learnt
from skyserve.model.placement import Forecast, PoolRecord, View

CONFIDENCE = 0.95
SHORTFALL = 2.75
"""In no more than one week of twenty is the unavailability more than so many times what is allowed. Found on recordings
and made-up markets; `benchmarks/spot/bound.py` tests it."""
CALM_S = 21600.0
"""How long a pool in use has been calm, most of the time."""
EMPTY = 0.33
"""Share of the time in which a whole region has no spot capacity, in the worst of the published recordings (Mao et al.,
SkyServe, EuroSys 2025)."""


def forecast(view: View) -> Forecast:
    """What to expect of a service that has not begun."""
    wanted = view.wanted + view.spare
    if not view.pools or not wanted:
        return Forecast(wanted * (view.on_demand_per_hour or 0.0), 1.0, CONFIDENCE, ())
    calm = Learnt({pool.name: PoolRecord(pool.name, view.now - CALM_S) for pool in view.pools}, 0.0, 0.0, 0.0)
    plan = placement.best_plan(placement.sites_of(view, calm), view, wanted, view.cold_start_s)
    regions = len({pool.region for pool in view.pools})
    empty = EMPTY**regions if view.on_demand_per_hour is not None else 0.0
    share = plan.cost * (1 - empty) + empty
    outage_s = view.cold_start_s + placement.REACTION_S
    short = SHORTFALL * (1 - view.availability) * outage_s / placement.VALUE_OUTAGE_S
    return Forecast(
        cost_per_hour=share * wanted * placement.unit_per_hour(view),
        availability=max(0.0, 1 - short) if view.on_demand_per_hour is not None else 0.0,
        confidence=CONFIDENCE,
        assumptions=_assumptions(view, regions, outage_s),
    )


def _assumptions(view: View, regions: int, outage_s: float) -> tuple[str, ...]:
    where = f"{len(view.pools)} pool{'s' * (len(view.pools) > 1)} in {regions} region{'s' * (regions > 1)}"
    if view.on_demand_per_hour is None:
        return (f"nothing stands in for spot, and there may be none ({where}), so nothing is promised",)
    return (
        "on-demand machines can always be had",
        f"a replica is ready {outage_s:.0f}s after another one was lost, be it spot or on-demand",
        f"spot capacity ({where}) comes and goes as in published recordings",
        "the number of wanted replicas stays as it is; the first hour is not counted",
    )
