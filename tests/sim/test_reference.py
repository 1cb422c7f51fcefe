"""Agreement with figures of another replay of the same recordings, which has nothing in common with this one.

Its steps last a minute, a cold start three, and the first hour is left out; four replicas are wanted.
"""

from __future__ import annotations

import pytest
from tests.sim.worlds import a_spec, recordings

from skyserve.sim.cloud import Setting
from skyserve.sim.result import Run
from skyserve.sim.run import simulate
from skyserve.sim.traces import load_trace

REFERENCE = Setting(tick_s=60.0, cold_start_s=180.0)
AWS1, AWS2, H100 = "aws1_v100_4node_3z", "aws2_v100_16node_3z", "gcp_h100_16node_13z_first_half"
AWS3 = "aws3_v100_1node_9z_first_half"
FOLD = {AWS3: 4.0}
"""Recordings of one machine a zone, taken for so many."""


def share(run: Run, dollars: float | None) -> float:
    assert dollars is not None
    return dollars / run.on_demand_cost


@pytest.mark.parametrize(
    ("recording", "placer", "extra", "bound", "cost", "availability"),
    [
        (AWS1, "on_demand", 0, 0.368, 1.000, 1.0),
        (AWS1, "round_robin", 0, 0.368, 0.280, 0.8758),
        (AWS1, "dynamic_fallback", 1, 0.368, 0.519, 0.9927),
        (AWS2, "on_demand", 0, 0.406, 1.000, 1.0),
        (AWS2, "dynamic_fallback", 1, 0.406, 0.556, 0.9846),
        (AWS3, "round_robin", 0, 0.311, 0.296, 0.9566),
        (AWS3, "dynamic_fallback", 0, 0.311, 0.328, 0.9881),
        (AWS3, "dynamic_fallback", 1, 0.311, 0.403, 0.9948),
        (H100, "round_robin", 0, 0.180, 0.549, 0.9950),
        (H100, "dynamic_fallback", 0, 0.180, 0.359, 0.9943),
        (H100, "dynamic_fallback", 1, 0.180, 0.421, 0.9989),
        (H100, "dynamic_fallback", 2, 0.180, 0.483, 0.9997),
    ],
)
def test_a_replay_of_the_same_agrees(
    recording: str, placer: str, extra: int, bound: float, cost: float, availability: float
) -> None:
    fallback = {"dynamic_ondemand_fallback": True} if placer == "dynamic_fallback" else {}
    spec = a_spec(4, placer, num_overprovision=extra, **fallback)
    market = load_trace(recordings() / f"{recording}.json.gz").times(FOLD.get(recording, 1.0))
    run = simulate(spec, market, REFERENCE)
    assert share(run, run.cost) == pytest.approx(cost, abs=0.01)
    assert run.availability == pytest.approx(availability, abs=0.002)
    assert share(run, run.bound_cost) == pytest.approx(bound, abs=0.001)
