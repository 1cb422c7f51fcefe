"""The production loop on recorded markets gives the figures of an independent replay of the same traces.

Ticks of 60 s, a cold start of 180 s, one attempt per missing replica and tick, the first hour left out. The reference
replay knows nothing of this code; agreement means within .01 of cost and .002 of availability.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from skyserve.model.resources import ResourceChoice, Resources
from skyserve.model.service import ReplicaPolicy, ServiceSpec
from skyserve.sim.cloud import Setting
from skyserve.sim.market import Market
from skyserve.sim.run import simulate
from skyserve.sim.traces import load_trace

REPOSITORY = Path(__file__).parents[2]
REPLAY = Setting(tick_s=60.0, cold_start_s=180.0)
CASES = [
    ("aws1", "round_robin", 0, 0.280, 0.8758),
    ("aws1", "dynamic_fallback", 1, 0.519, 0.9927),
    ("aws2", "dynamic_fallback", 1, 0.556, 0.9846),
    ("aws3", "on_demand", 0, 1.000, 1.0000),
    ("aws3", "round_robin", 0, 0.296, 0.9566),
    ("aws3", "dynamic_fallback", 0, 0.328, 0.9881),
    ("aws3", "dynamic_fallback", 1, 0.403, 0.9948),
    ("h100", "on_demand", 0, 1.000, 1.0000),
    ("h100", "even_spread", 0, 0.319, 0.0676),
    ("h100", "round_robin", 0, 0.549, 0.9950),
    ("h100", "dynamic_fallback", 0, 0.359, 0.9943),
    ("h100", "dynamic_fallback", 1, 0.421, 0.9989),
    ("h100", "dynamic_fallback", 2, 0.483, 0.9997),
]


@pytest.fixture(scope="module")
def markets() -> dict[str, Market]:
    shared = os.environ.get("SKYSERVE_TEST_SHARED")
    folder = (Path(shared) if shared else REPOSITORY.parent / "shared") / "traces" / "spot"
    if not folder.is_dir():
        pytest.skip(f"NOT COMPARED: there are no traces at {folder}; set SKYSERVE_TEST_SHARED to their parent")
    return {
        "aws1": load_trace(folder / "aws1_v100_4node_3z.json.gz"),
        "aws2": load_trace(folder / "aws2_v100_16node_3z.json.gz"),
        "aws3": load_trace(folder / "aws3_v100_1node_9z_first_half.json.gz").times(4),
        "h100": load_trace(folder / "gcp_h100_16node_13z_first_half.json.gz"),
    }


def service(replicas: int, placer: str, extra: int = 0) -> ServiceSpec:
    fallback = True if placer == "dynamic_fallback" else None
    policy = ReplicaPolicy(
        replicas, replicas, num_overprovision=extra, spot_placer=placer, dynamic_ondemand_fallback=fallback
    )
    spot = ResourceChoice((Resources(use_spot=True),))
    return ServiceSpec(name="chat", run="serve", replica_policy=policy, resources=spot)


@pytest.mark.parametrize(("trace", "placer", "extra", "cost", "availability"), CASES)
def test_agrees_with_the_reference(
    trace: str, placer: str, extra: int, cost: float, availability: float, markets: dict[str, Market]
) -> None:
    run = simulate(service(4, placer, extra), markets[trace], REPLAY)
    assert run.cost / run.on_demand_cost == pytest.approx(cost, abs=0.01)
    assert run.availability == pytest.approx(availability, abs=0.002)
