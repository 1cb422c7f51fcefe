"""How often the availability that `sky serve up` states for a spot service is missed.

    python benchmarks/spot/bound.py [--markets 200] [--traces DIR] [--jobs 2]

Every market is one case: halves of recorded ones (where there are any), and made-up ones of a week, each with a number
of replicas, a cold start and a target drawn by its seed. The bound is stated before the first step, with nothing known
of the market; the run is the production loop with `risk_aware`. Prints how many cases fell below it.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

from skyserve.decide.mixing import preview
from skyserve.model.offering import CapacityType, Location, Offering
from skyserve.model.resources import Accelerator, ResourceChoice, Resources
from skyserve.model.service import ReplicaPolicy, ServiceSpec
from skyserve.sim import synthetic
from skyserve.sim.cloud import Setting
from skyserve.sim.market import Market
from skyserve.sim.run import simulate
from skyserve.sim.traces import load_trace

SHARED = Path(os.environ.get("SKYSERVE_TEST_SHARED") or Path(__file__).parents[3] / "shared")
WEEK_S = 7 * 86400.0
REGIONS = ("us-east-1", "us-west-2", "eu-west-1", "ap-south-1")
TARGETS = (0.99, 0.995, 0.995, 0.999)


@dataclass(frozen=True)
class Case:
    """One market and what runs on it. The bound rests on a cold start of 180 s, so that is what a case has."""

    name: str
    replicas: int
    target: float
    trace: Path | None = None
    half: int = 0
    seed: int = 0

    def market(self) -> Market:
        if self.trace is None:
            return made_up(self.seed)
        market = load_trace(self.trace)
        most = max(max(pool.capacity.values) for pool in market.spot if pool.capacity)
        market = market.times(self.replicas) if most <= 1 else market
        middle = market.length_s / 2
        return market.part(0, middle) if self.half == 0 else market.part(middle, market.length_s)


def made_up(seed: int) -> Market:
    """One to four regions of one to three zones, at a price of .1 to .55 of on-demand."""
    random = Random(f"bound/{seed}")
    gpu = Accelerator("V100", 1)
    pools = [Offering("aws", "gpu", Location("aws", REGIONS[0]), CapacityType.ON_DEMAND, gpu, 8, 61, 3.0)]
    for region in REGIONS[: random.randint(1, 4)]:
        price = round(3.0 * random.uniform(0.1, 0.55), 3)
        for zone in "abc"[: random.randint(1, 3)]:
            place = Location("aws", region, region + zone)
            pools.append(Offering("aws", "gpu", place, CapacityType.SPOT, gpu, 8, 61, price))
    return synthetic.market(pools, WEEK_S, seed)


def measured(case: Case) -> tuple[Case, float, float, float]:
    """The case, the stated availability, the measured one, and the cost as a share of on-demand."""
    market = case.market()
    policy = ReplicaPolicy(case.replicas, case.replicas, availability=case.target)
    spec = ServiceSpec("bound", "run", replica_policy=policy, resources=ResourceChoice((Resources(use_spot=True),)))
    offerings = tuple(pool.offering for pool in market.pools)
    stated = preview(spec, offerings, (), market.begin_at).availability or 0.0
    run = simulate(spec, market, Setting(tick_s=60.0, cold_start_s=180.0, seed=case.seed))
    return case, stated, run.availability, run.cost / run.on_demand_cost


def cases(markets: int, traces: Path) -> Iterator[Case]:
    for trace in sorted(traces.glob("*.json*")) if traces.is_dir() else ():
        for half in (0, 1):
            for replicas in (1, 2, 4, 8):
                yield Case(f"{trace.name.partition('.')[0]}/{half + 1}", replicas, 0.995, trace=trace, half=half)
    for seed in range(markets):
        random = Random(f"service/{seed}")
        yield Case(f"made-up {seed}", random.choice((1, 2, 3, 4, 8)), random.choice(TARGETS), seed=seed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--markets", type=int, default=200, help="how many made-up markets")
    parser.add_argument("--traces", type=Path, default=SHARED / "traces" / "spot", help="recorded markets")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    options = parser.parse_args()
    if not options.traces.is_dir():
        print(f"SKIPPED: there are no recordings at {options.traces}; made-up markets only")
    missed: dict[str, int] = {}
    counted: dict[str, int] = {}
    with multiprocessing.Pool(options.jobs) as pool:
        for case, stated, found, cost in pool.imap(measured, cases(options.markets, options.traces)):
            kind = "made-up" if case.trace is None else "recorded halves"
            counted[kind] = counted.get(kind, 0) + 1
            if sum(counted.values()) % 100 == 0:
                print(f"  {sum(counted.values())} cases, {sum(missed.values())} missed", flush=True)
            if found < stated:
                missed[kind] = missed.get(kind, 0) + 1
                print(
                    f"  {case.name}, {case.replicas} replicas: {found:.4f} < {stated:.4f}, at {cost:.2f} of on-demand"
                )
    for kind, count in counted.items():
        share = missed.get(kind, 0) / count
        print(f"{kind}: missed in {missed.get(kind, 0)} of {count} cases ({share:.1%}); stated: at most 5 %")


if __name__ == "__main__":
    main()
