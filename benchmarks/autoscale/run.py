"""What it costs to follow the load, and who waits: ours beside two published policies, on recorded requests.

    python benchmarks/autoscale/run.py                    all recordings: a frontier each, and the comparison
    python benchmarks/autoscale/run.py --only azure       some of them
    python benchmarks/autoscale/run.py --cold-start 180   machines that start more slowly

It is the production loop that runs, on machines and requests that are simulated. Each policy is run with several
headrooms: the load that a replica is meant to get, as a share of what it can do. Without recordings nothing is
measured, and the end is 0.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

from skyserve.model.offering import CapacityType, Location, Offering
from skyserve.model.service import LoadBalancer, ReplicaPolicy, ServiceSpec
from skyserve.sim.arrivals import Requests
from skyserve.sim.cloud import Setting
from skyserve.sim.load import Speed, Traffic, requests_per_replica
from skyserve.sim.market import Market, MarketPool, Steps
from skyserve.sim.request_files import read_requests
from skyserve.sim.result import Served
from skyserve.sim.run import simulate

REPOSITORY = Path(__file__).parents[2]
TRACES = {
    "azure_code": "azure2023_code.csv.gz",
    "azure_conv": "azure2023_conv.csv.gz",
    "mooncake": "mooncake_conversation.jsonl.gz",
    "reason": "servegen_reason_deepseek-r1_clients.csv.gz",
    "language": "servegen_language_m-large_clients.csv.gz",
    "image": "servegen_multimodal_mm-image_clients.csv.gz",
}
"""An hour of code completion, of chat and of long contexts; a day of reasoning, of a language model and of images."""
SHARE = {"language": 0.05}
"""Of the largest recording, this part of the requests."""
HEADROOMS = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
POLICIES = ("ours", "skypilot", "knative")
OURS_DOWN_S = 300.0
"""`downscale_delay_seconds` of ours, in every recording; all else of it is the default. Of the others all is."""
MEAN_REPLICAS = 8.0
"""Replicas are of such a size that the mean of a recording keeps so many of them busy."""
LIMITS_S = (1.0, 2.0, 5.0)
"""How long a request may wait before it begins: the objective whose attainment is told is the second."""
MOST = 100
LONGEST_S = 86400.0
WARM_UP_S = 600.0
QUEUE = LoadBalancer(queue_size=100_000, queue_timeout_seconds=300)
PLACE = Location("cloud", "region", "a")
HOST = Offering("cloud", "gpu", PLACE, CapacityType.ON_DEMAND, None, vcpus=8, memory_gib=32, price_per_hour=1)


@dataclass(frozen=True)
class Job:
    """One policy with one headroom on one recording."""

    trace: str
    path: Path
    policy: str
    headroom: float
    cold_start_s: float


@dataclass(frozen=True)
class Outcome:
    """What a run came to. `hours` are replica-hours, from launch to end."""

    job: Job
    attainment: float
    hours: float
    rejected: int
    wait_p99_s: float
    changes: int
    cpu_s: float


def workload(name: str, path: Path) -> tuple[Requests, Speed, float, float]:
    """The requests as recorded, the replicas they are played to, how many of these requests one of those can do a
    second, and for how long they are played."""
    requests = read_requests(str(path), rate_scale=SHARE.get(name, 1.0))
    one = replace(Speed(), concurrency=1)
    busy = requests.mean_rate / requests_per_replica(requests, one)
    speed = replace(one, concurrency=max(1, round(busy / MEAN_REPLICAS)))
    lasts_s = min(LONGEST_S, getattr(requests, "period_s", LONGEST_S))
    return requests, speed, requests_per_replica(requests, speed), lasts_s


def policy_of(name: str, each: float, places: int, headroom: float) -> ReplicaPolicy:
    """The policy, meant to have a replica do `headroom` of what it can: `each` a second, `places` at once."""
    bounds = ReplicaPolicy(min_replicas=1, max_replicas=MOST)
    if name == "skypilot":
        return replace(bounds, autoscaler="request_rate", target_qps_per_replica=headroom * each)
    if name == "knative":
        return replace(bounds, autoscaler="concurrency", target_ongoing_requests_per_replica=headroom * places)
    return replace(bounds, target_ongoing_requests_per_replica=headroom * places, downscale_delay_seconds=OURS_DOWN_S)


def run(job: Job) -> Outcome:
    """Run it."""
    began = time.process_time()
    requests, speed, each, lasts_s = workload(job.trace, job.path)
    policy = policy_of(job.policy, each, speed.concurrency, job.headroom)
    spec = ServiceSpec(name="svc", run="serve", replica_policy=policy, load_balancer=QUEUE)
    market = Market("on demand", (MarketPool(HOST, None, Steps.of([(0.0, 1.0)])),), lasts_s + WARM_UP_S)
    tick_s = 1.0 if lasts_s < LONGEST_S / 2 else 2.0
    setting = Setting(tick_s=tick_s, cold_start_s=job.cold_start_s, cold_start_spread=0.3, leave_out_s=WARM_UP_S)
    made = simulate(spec, market, setting, traffic=Traffic(requests, speed=speed, door=QUEUE, seed=1))
    served = made.served or Served()
    return Outcome(
        job=job,
        attainment=served.attainment(LIMITS_S[1]),
        hours=made.cost,
        rejected=served.rejected,
        wait_p99_s=served.waited_s.get(99.0, 0.0),
        changes=len(made.wanted) - 1,
        cpu_s=time.process_time() - began,
    )


def told(outcome: Outcome) -> str:
    """One row."""
    job = outcome.job
    return (
        f"{job.trace:10} {job.policy:8} {job.headroom:4.1f} {outcome.attainment:9.4f} {outcome.hours:9.1f}"
        f" {outcome.wait_p99_s:9.1f} {outcome.rejected:9d} {outcome.changes:8d} {outcome.cpu_s:7.1f}"
    )


def at_equal_hours(frontier: Sequence[Outcome], hours: float) -> float | None:
    """The attainment of a policy for so many replica-hours: on the straight line between its two nearest headrooms, or
    of its largest where it never needs as many; None where even its least headroom takes more."""
    rising = sorted(frontier, key=lambda outcome: outcome.hours)
    if hours < rising[0].hours:
        return None
    for below, above in pairwise(rising):
        if below.hours <= hours <= above.hours:
            part = (hours - below.hours) / (above.hours - below.hours or 1.0)
            return below.attainment + part * (above.attainment - below.attainment)
    return rising[-1].attainment


def compare(outcomes: Sequence[Outcome]) -> None:
    """For each run of another policy: ours for as many replica-hours."""
    print("\nours for as many replica-hours as others take: share of requests too late, theirs -> ours")
    for trace in dict.fromkeys(outcome.job.trace for outcome in outcomes):
        ours = [one for one in outcomes if one.job.trace == trace and one.job.policy == "ours"]
        for other in (one for one in outcomes if one.job.trace == trace and one.job.policy != "ours" and ours):
            attainment = at_equal_hours(ours, other.hours)
            mine = "takes more hours at the least" if attainment is None else f"{1 - attainment:8.2%}"
            where = f"{trace:10} {other.job.policy:8} {other.job.headroom:4.1f} {other.hours:9.1f} h"
            print(f"{where}  {1 - other.attainment:8.2%} -> {mine}")


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shared = os.environ.get("SKYSERVE_TEST_SHARED", str(REPOSITORY.parent / "shared"))
    parser.add_argument("--traces", type=Path, default=Path(shared) / "traces" / "requests")
    parser.add_argument("--only", default="", help="recordings whose name holds this")
    parser.add_argument("--policies", default=",".join(POLICIES))
    parser.add_argument("--headrooms", default=",".join(map(str, HEADROOMS)))
    parser.add_argument("--cold-start", type=float, default=60.0, help="median seconds from launch to ready")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    options = parser.parse_args(arguments)
    jobs = [
        Job(name, options.traces / file, policy, float(headroom), options.cold_start)
        for name, file in TRACES.items()
        if options.only in name and (options.traces / file).exists()
        for policy in options.policies.split(",")
        for headroom in options.headrooms.split(",")
    ]
    if not jobs:
        print(f"no recordings in {options.traces}: nothing is measured")
        return 0
    print("recording  policy   room  in time   replica-h  p99 wait  rejected  changes   CPU s")
    outcomes = []
    with ProcessPoolExecutor(options.jobs) as pool:
        for outcome in pool.map(run, jobs):
            outcomes.append(outcome)
            print(told(outcome), flush=True)
    compare(outcomes)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
