"""Our own placement policy on whole markets: against SpotHedge in the same run, and where SpotHedge gets stuck."""

from __future__ import annotations

from functools import cache

import pytest
from tests.sim.worlds import HOUR, MINUTE, PLAIN, a_market, a_spec, on_demand_pool, recordings, spot_pool

from skyserve.model.offering import CapacityType
from skyserve.model.service import ServiceSpec
from skyserve.sim.cloud import Setting
from skyserve.sim.market import Market
from skyserve.sim.result import Run
from skyserve.sim.run import simulate
from skyserve.sim.traces import load_trace

REPLAY = Setting(tick_s=60.0, cold_start_s=180.0)
RECORDINGS = {
    "aws1": ("aws1_v100_4node_3z", 1.0),
    "aws2": ("aws2_v100_16node_3z", 1.0),
    "aws3": ("aws3_v100_1node_9z_first_half", 4.0),
    "h100": ("gcp_h100_16node_13z_first_half", 1.0),
}
MOST_REFUSED_A_DAY = {"aws1": 200, "aws2": 200, "aws3": 100, "h100": 100}


def hedged(extra: int) -> ServiceSpec:
    return a_spec(4, "dynamic_fallback", num_overprovision=extra, dynamic_ondemand_fallback=True)


@cache
def both(name: str) -> tuple[Run, Run]:
    """Ours, and SpotHedge with one extra replica."""
    recording, fold = RECORDINGS[name]
    market = load_trace(recordings() / f"{recording}.json.gz").times(fold)
    return simulate(a_spec(4, "risk_aware"), market, REPLAY), simulate(hedged(1), market, REPLAY)


def refused_a_day(run: Run) -> float:
    return len(run.refusals) / ((run.end_at - run.begin_at) / 86400)


@pytest.mark.parametrize("name", RECORDINGS)
def test_cheaper_than_spothedge_at_no_lower_availability(name: str) -> None:
    ours, theirs = both(name)
    assert ours.cost < theirs.cost
    assert ours.availability >= theirs.availability
    assert refused_a_day(ours) < MOST_REFUSED_A_DAY[name]


def test_by_five_per_cent_on_three_recordings_of_four() -> None:
    saved = [1 - ours.cost / theirs.cost for ours, theirs in map(both, RECORDINGS)]
    assert sum(share >= 0.05 for share in saved) >= 3


@pytest.mark.parametrize("extra", [0, 2])
def test_nowhere_dominated_by_spothedge_with_more_or_fewer_extras(extra: int) -> None:
    recording, fold = RECORDINGS["h100"]
    market = load_trace(recordings() / f"{recording}.json.gz").times(fold)
    ours, theirs = both("h100")[0], simulate(hedged(extra), market, REPLAY)
    assert ours.cost < theirs.cost or ours.availability > theirs.availability


# ---- where whoever asks the unused zone first asks for ever


def stand_ins(run: Run) -> list[tuple[float, float]]:
    """From when until when there were on-demand machines, seconds since the beginning."""
    lasting = (one for one in run.machines if one.capacity_type is not CapacityType.SPOT)
    return [(one.launched_at - run.begin_at, one.ended_at - run.begin_at) for one in lasting]


STUCK: dict[str, Market] = {
    "two zones, one dead": a_market(
        spot_pool("us-east-1a", {0: 16}), spot_pool("us-west-2a", {0: 0}), on_demand_pool(), hours=6
    ),
    "two zones, the cheaper one dead": a_market(
        spot_pool("us-east-1a", {0: 0}, price=0.9), spot_pool("us-west-2a", {0: 16}), on_demand_pool(), hours=6
    ),
    "three zones, two dead": a_market(
        *(spot_pool(zone, {0: 0}, price=0.9) for zone in ("us-east-1a", "us-east-1b")),
        spot_pool("us-west-2a", {0: 16}),
        on_demand_pool(),
        hours=6,
    ),
    "the cheapest merely full": a_market(
        spot_pool("us-east-1a", {0: 1}, price=0.9), spot_pool("us-west-2a", {0: 16}), on_demand_pool(), hours=6
    ),
    "one zone": a_market(spot_pool("us-east-1a", {0: 16}), on_demand_pool(), hours=6),
}


@pytest.mark.parametrize("name", STUCK)
@pytest.mark.parametrize("replicas", [1, 2, 4])
def test_the_healthy_zone_is_used_within_minutes_and_on_demand_goes(name: str, replicas: int) -> None:
    run = simulate(a_spec(replicas, "risk_aware"), STUCK[name], PLAIN)
    healthy = [one for one in run.machines if one.capacity_type is CapacityType.SPOT and one.ready_at is not None]
    first = min(one.ready_at or 0.0 for one in healthy) - run.begin_at
    assert first <= 15 * MINUTE
    assert max(end for _, end in stand_ins(run)) <= 45 * MINUTE
    assert run.ready[-1][1] >= replicas


def test_spothedge_does_get_stuck_there() -> None:
    run = simulate(hedged(0), STUCK["two zones, one dead"], PLAIN)
    assert max(end for _, end in stand_ins(run)) >= 5 * HOUR


def test_a_zone_that_comes_back_is_used_again() -> None:
    market = a_market(spot_pool("us-east-1a", {0: 0, 3 * HOUR: 16}), on_demand_pool(), hours=8)
    run = simulate(a_spec(2, "risk_aware"), market, PLAIN)
    spot = [one for one in run.machines if one.capacity_type is CapacityType.SPOT]
    assert min(one.launched_at for one in spot) - run.begin_at <= 4 * HOUR
    assert max(end for _, end in stand_ins(run)) <= 7 * HOUR


def test_with_no_spot_at_all_everything_is_on_demand() -> None:
    market = a_market(spot_pool("us-east-1a", {0: 0}), on_demand_pool(), hours=6)
    run = simulate(a_spec(3, "risk_aware"), market, PLAIN)
    assert run.ready[-1][1] == 3
    assert run.cost == pytest.approx(run.on_demand_cost, rel=0.01)


def test_it_moves_away_from_a_zone_that_has_become_dear_make_before_break() -> None:
    dear = spot_pool("us-east-1a", {0: 16}, price=1.0)
    rising = type(dear)(dear.offering, dear.capacity, type(dear.price)((0.0, 3 * HOUR), (1.0, 2.6)))
    market = a_market(rising, spot_pool("us-west-2a", {0: 16}, price=1.2), on_demand_pool(), hours=8)
    run = simulate(a_spec(2, "risk_aware"), market, PLAIN)
    lasting = [one for one in run.machines if one.ended_at == run.end_at]
    assert {one.location.region for one in lasting} == {"us-west-2"}
    short = [(at, ready) for at, ready in run.ready if at > run.begin_at + HOUR and ready < 2]
    assert not short, "at no time were fewer ready than wanted"


def test_small_changes_of_price_move_nothing() -> None:
    one = spot_pool("us-east-1a", {0: 16}, price=1.0)
    other = spot_pool("us-west-2a", {0: 16}, price=1.02)
    wave = tuple(1.0 + 0.04 * (hour % 2) for hour in range(24))
    waving = type(one)(one.offering, one.capacity, type(one.price)(tuple(hour * HOUR for hour in range(24)), wave))
    run = simulate(a_spec(4, "risk_aware"), a_market(waving, other, on_demand_pool(), hours=24), PLAIN)
    late = [m for m in run.machines if m.launched_at > run.begin_at + 2 * HOUR]
    assert not late
