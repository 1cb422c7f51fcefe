"""What placement policies pay for spot replicas, and how available they are, on recorded capacity.

    python benchmarks/spot/run.py                            the reference table of README.md
    python benchmarks/spot/run.py --traces DIR --only h100   one recording
    python benchmarks/spot/run.py --frontier                 cost against availability, for one target after the other

Every cell is `cost / availability`: the bill as a share of what the wanted replicas cost on demand all the time, and
the share of ticks with enough ready replicas. It is the production loop that runs. Without recordings nothing is
measured, and the end is 0.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from skyserve.errors import SkyServeError
from skyserve.model.resources import ResourceChoice, Resources
from skyserve.model.service import ReplicaPolicy, ServiceSpec
from skyserve.sim.cloud import Setting
from skyserve.sim.compare import contenders
from skyserve.sim.market import Market
from skyserve.sim.result import Run
from skyserve.sim.run import simulate
from skyserve.sim.traces import load_trace

REPOSITORY = Path(__file__).parents[2]
POLICIES = "on-demand,even-spread,round-robin,spothedge,spothedge+1,spothedge+2,ours"
FRONTIER = "spothedge,spothedge+1,spothedge+2,spothedge+3"
TARGETS = (0.95, 0.97, 0.98, 0.99, 0.995, 0.998, 0.999, 0.9999)
TOLD = ("spothedge+1", "ours")
"""Policies of which refused launches are told."""
GPU = ("aws1", "aws2", "aws3", "gcp_h100")
"""Recordings of machines with accelerators, by the beginning of their names: the reference table."""
HALVES = {"whole": (0.0, 1.0), "first": (0.0, 0.5), "second": (0.5, 1.0)}


@dataclass(frozen=True)
class Case:
    """One recording under the options."""

    name: str
    path: Path
    options: argparse.Namespace

    def market(self) -> Market:
        market = load_trace(self.path)
        begin, end = HALVES[self.options.half]
        market = market.part(begin * market.length_s, end * market.length_s)
        return market.times(self.factor(market)).priced(self.options.price)

    def factor(self, market: Market) -> float:
        """Zones of which no more than one machine was asked for stand for as many as are wanted."""
        if self.options.capacity is not None:
            return float(self.options.capacity)
        largest = max(max(pool.capacity.values) for pool in market.spot if pool.capacity is not None)
        return self.options.replicas if largest <= 1 else 1

    def spec(self, policy: str, availability: float) -> ServiceSpec:
        count = self.options.replicas
        wanted = ReplicaPolicy(count, count, availability=availability)
        plain = ServiceSpec("service", "run", replica_policy=wanted, resources=ResourceChoice((Resources(),)))
        return contenders(policy, plain)[policy]

    def setting(self) -> Setting:
        return Setting(tick_s=self.options.tick, cold_start_s=self.options.cold_start, seed=self.options.seed)


def measure(case: Case, policy: str, availability: float) -> Run:
    """One policy on one recording; in a process of its own."""
    return simulate(case.spec(policy, availability), case.market(), case.setting(), policy=policy)


def least(case: Case, availability: float) -> float:
    """The linear program; in a process of its own."""
    import lp  # beside this file; it needs scipy

    options = case.options
    return lp.least_cost(case.market(), options.replicas, options.cold_start, row_s(case.path), availability)


def row_s(path: Path) -> float:
    """How long a row of a recording is, seconds."""
    data = path.read_bytes()
    return float(json.loads(gzip.decompress(data) if path.suffix == ".gz" else data)["gap_seconds"])


def main() -> int:
    """Measure what was asked for."""
    options = _options()
    folder = options.traces or _folder()
    cases = _cases(folder, options)
    if not cases:
        print(f"SKIPPED: there are no recordings at {folder}; name their folder with --traces", flush=True)
        return 0
    began_at = time.monotonic()
    print(f"{options.replicas} replicas, ticks of {options.tick:g}s, cold start {options.cold_start:g}s\n", flush=True)
    with ProcessPoolExecutor(options.jobs) as pool:
        for show in (frontier if options.frontier else table)(pool, cases, options):
            print(show(), flush=True)
    print(f"\ntook {time.monotonic() - began_at:.0f}s")
    return 0


Line = Callable[[], str]


def table(pool: ProcessPoolExecutor, cases: Sequence[Case], options: argparse.Namespace) -> list[Line]:
    """One line a recording, one column a policy."""
    policies = options.policies.split(",")
    with_lp = not options.no_lp and find_spec("scipy") is not None
    heads = ["recording", "bound", *(["linear program"] if with_lp else []), *policies]
    heads += [f"refused/day {policy}" for policy in policies if policy in TOLD]
    lines: list[Line] = [lambda: _row(heads), lambda: _row(["---"] * len(heads))]
    for case in cases:
        runs = {policy: pool.submit(measure, case, policy, options.availability) for policy in policies}
        bound = pool.submit(least, case, 1.0) if with_lp else None
        lines.append(lambda case=case, runs=runs, bound=bound: _measured(case, runs, bound))  # type: ignore[misc]
    return lines


def _measured(case: Case, futures: dict[str, Future[Run]], bound: Future[float] | None) -> str:
    runs = {policy: future.result() for policy, future in futures.items()}
    first = next(iter(runs.values()))
    cells = [case.name, _share(first.bound_cost, first)]
    cells += [f"{bound.result():.3f}"] if bound is not None else []
    cells += [_cell(run) for run in runs.values()]
    return _row([*cells, *(f"{refused_a_day(run):.0f}" for policy, run in runs.items() if policy in TOLD)])


def frontier(pool: ProcessPoolExecutor, cases: Sequence[Case], options: argparse.Namespace) -> list[Line]:
    """One line a target, for the policy that has one; and the fixed points of the other."""
    lines: list[Line] = [
        lambda: _row(["recording", "policy", "target", "cost", "availability", "refused/day"]),
        lambda: _row(["---"] * 6),
    ]
    for case in cases:
        asked = [(policy, 0.995, "") for policy in FRONTIER.split(",")]
        asked += [("ours", target, f"{target:.2%}") for target in TARGETS]
        for policy, target, told in asked:
            run = pool.submit(measure, case, policy, target)
            lines.append(lambda told=told, run=run, case=case: _point(case, told, run.result()))  # type: ignore[misc]
    return lines


def _point(case: Case, target: str, run: Run) -> str:
    cost = run.cost / run.on_demand_cost
    told = [f"{cost:.3f}", f"{run.availability:.4f}", f"{refused_a_day(run):.0f}"]
    return _row([case.name, run.policy, target, *told])


def refused_a_day(run: Run) -> float:
    """Launches that were refused for want of capacity."""
    return len(run.refusals) * 86400 / (run.end_at - run.begin_at)


def _cell(run: Run) -> str:
    return f"{_share(run.cost, run)} / {run.availability:.4f}"


def _share(cost: float | None, run: Run) -> str:
    return "-" if cost is None else f"{cost / run.on_demand_cost:.3f}"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _folder() -> Path:
    shared = os.environ.get("SKYSERVE_TEST_SHARED")
    return (Path(shared) if shared else REPOSITORY.parent / "shared") / "traces" / "spot"


def _cases(folder: Path, options: argparse.Namespace) -> list[Case]:
    chosen = options.only.split(",") if options.only else GPU
    found = sorted(path for path in folder.glob("*.json*") if any(name in path.name for name in chosen))
    return [Case(path.name.partition(".")[0], path, options) for path in found]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--traces", type=Path, help="folder of recordings; see the README for where else it looks")
    parser.add_argument("--only", help="recordings whose names contain one of these, separated by commas")
    parser.add_argument("--policies", default=POLICIES, help=f"default: {POLICIES}")
    parser.add_argument("--replicas", type=int, default=4, help="wanted replicas (default: 4)")
    parser.add_argument("--cold-start", type=float, default=180.0, help="seconds until ready, paid (default: 180)")
    parser.add_argument("--tick", type=float, default=60.0, help="seconds of a tick (default: 60)")
    parser.add_argument(
        "--capacity", type=float, help="multiply capacity (default: by the replicas where it is 0 or 1)"
    )
    parser.add_argument("--price", type=float, default=1.0, help="multiply spot prices (default: 1)")
    parser.add_argument("--half", choices=HALVES, default="whole", help="of each recording (default: whole)")
    parser.add_argument("--availability", type=float, default=0.995, help="target of the policies that have one")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=max(1, (os.cpu_count() or 2) - 1), help="processes at once")
    parser.add_argument("--no-lp", action="store_true", help="without the linear program of lp.py")
    parser.add_argument("--frontier", action="store_true", help="cost against availability")
    return parser.parse_args()


if __name__ == "__main__":
    try:
        sys.exit(main())
    except SkyServeError as error:
        sys.exit(f"{error.message}\nhint: {error.hint}")
