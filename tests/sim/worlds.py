"""Short ways to a small simulated world, for tests."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from skyserve.model.evidence import LoadReport
from skyserve.model.offering import CapacityType, Location, Offering
from skyserve.model.resources import ResourceChoice, Resources
from skyserve.model.service import ReplicaPolicy, ServiceSpec
from skyserve.sim.cloud import Setting
from skyserve.sim.market import Market, MarketPool, Steps
from skyserve.sim.result import Served

MINUTE, HOUR, DAY = 60.0, 3600.0, 86400.0
REPOSITORY = Path(__file__).parents[2]
PLAIN = Setting(tick_s=60.0, cold_start_s=180.0, leave_out_s=0.0)


def spot_pool(zone: str, capacity: Mapping[float, float], price: float = 1.0) -> MarketPool:
    """A pool of a zone such as `us-east-1a`; capacity by the second from which on it holds."""
    offering = Offering("aws", "g5", Location("aws", zone[:-1], zone), CapacityType.SPOT, None, 8, 32, price)
    return MarketPool(offering, Steps.of(sorted(capacity.items())), Steps((0.0,), (price,)))


def on_demand_pool(region: str = "us-east-1", price: float = 3.0) -> MarketPool:
    offering = Offering("aws", "g5", Location("aws", region), CapacityType.ON_DEMAND, None, 8, 32, price)
    return MarketPool(offering, None, Steps((0.0,), (price,)))


def a_market(*pools: MarketPool, hours: float = 4.0) -> Market:
    return Market("small", pools or (on_demand_pool(),), hours * HOUR)


def a_spec(replicas: int = 2, placer: str = "dynamic_fallback", **policy: object) -> ServiceSpec:
    """A service on spot with so many replicas."""
    wanted = replace(ReplicaPolicy(replicas, replicas, spot_placer=placer), **policy)  # type: ignore[arg-type]
    return ServiceSpec("chat", "serve", replica_policy=wanted, resources=ResourceChoice((Resources(use_spot=True),)))


class Quiet:
    """Traffic without requests, which remembers what it was told; `busy` says how many each replica works on."""

    def __init__(self, arrivals_per_s: float = 0.0) -> None:
        self.arrivals_per_s = arrivals_per_s
        self.busy: dict[int, int] = {}
        self.told: list[tuple[float, float, tuple[int, ...], tuple[int, ...]]] = []
        self.counted_from: list[float] = []
        self.ready: tuple[tuple[int, float], ...] = ()

    def advance(
        self, from_at: float, to_at: float, ready: Sequence[tuple[int, float]], leaving: Collection[int] = ()
    ) -> LoadReport:
        self.ready = tuple(ready)
        self.told.append((from_at, to_at, tuple(id_ for id_, _ in ready), tuple(leaving)))
        return LoadReport(to_at, "quiet", 0, dict(self.busy), arrivals_per_s=self.arrivals_per_s)

    def count_from_here(self) -> None:
        self.counted_from.append(self.told[-1][1] if self.told else 0.0)

    def served(self) -> Served:
        return Served(requests=len(self.told))


def recordings() -> Path:
    """Where recorded markets lie: beside the checkout, or where SKYSERVE_TEST_SHARED says. Skips where they do not."""
    shared = os.environ.get("SKYSERVE_TEST_SHARED")
    folder = (Path(shared) if shared else REPOSITORY.parent / "shared") / "traces" / "spot"
    if not folder.is_dir():
        pytest.skip(f"NOT COMPARED: there are no recordings at {folder}; set SKYSERVE_TEST_SHARED to traces' parent")
    return folder
