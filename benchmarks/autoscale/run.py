"""What following the load costs and how long requests wait, on recorded requests: ours beside two published policies.

    python benchmarks/autoscale/run.py                    the table of README.md
    python benchmarks/autoscale/run.py --only azure_conv  one recording
    python benchmarks/autoscale/run.py --cold-start 180   slower machines

Every cell is `attainment / replica-hours`: the share of requests that began within the limit, and what was paid for,
from launch to end. Each policy is run for several headrooms (the load that a replica is meant to get, as a share of
what it can do); it is the production loop that runs. Without recordings nothing is measured, and the end is 0.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
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
MEAN_REPLICAS = 8.0
"""Recordings are scaled in rate until their mean keeps so many replicas busy all the time."""
LIMIT_S = 2.0
MOST = 100
LONGEST_S = 86400.0
WARM_UP_S = 600.0
HOST = Offering(
    "cloud",
    "gpu",
    Location("cloud", "region", "a"),
    CapacityType.ON_DEMAND,
    None,
    vcpus=8,
    memory_gib=32,
    price_per_hour=1,
)


@dataclass(frozen=True)
class Job:
    """One run."""

    trace: str
    path: Path
    policy: str
    headroom: float
    cold_start_s: float
    tick_s: float


@dataclass(frozen=True)
class Outcome:
    """What a run came to."""

    job: Job
    attainment: float
    hours: float
    rejected: int
    wait_p99_s: float
    changes: int
    cpu_s: float


def workload(name: str, path: Path) -> tuple[Requests, Speed, float, float]:
    """The requests as recorded; replicas of such a size that the mean keeps MEAN_REPLICAS of them busy; how many
    requests one of those can do a second; and for how long they are played."""
    requests = read_requests(str(path), rate_scale=SHARE.get(name, 1.0))
    one = replace(Speed(), concurrency=1)
    busy = requests.mean_rate / requests_per_replica(requests, one)
    speed = replace(one, concurrency=max(1, round(busy / MEAN_REPLICAS)))
    return (
        requests,
        speed,
        requests_per_replica(requests, speed),
        min(LONGEST_S, getattr(requests, "period_s", LONGEST_S)),
    )


def policy_of(name: str, each: float, places: int, headroom: float) -> ReplicaPolicy:
    """The policy, meant to have a replica do `headroom` of what it can."""
    bounds = ReplicaPolicy(min_replicas=1, max_replicas=MOST)
    if name == "skypilot":
        return replace(bounds, autoscaler="request_rate", target_qps_per_replica=headroom * each)
    ongoing = headroom * places
    if name == "knative":
        return replace(bounds, autoscaler="concurrency", target_ongoing_requests_per_replica=ongoing)
    return replace(bounds, target_ongoing_requests_per_replica=ongoing, **json.loads(os.environ.get("OURS", "{}")))


def run(job: Job) -> Outcome:
    """One policy on one recording."""
    began = time.process_time()
    requests, speed, each, lasts_s = workload(job.trace, job.path)
    spec = ServiceSpec(
        name="svc",
        run="serve",
        replica_policy=policy_of(job.policy, each, speed.concurrency, job.headroom),
        load_balancer=LoadBalancer(queue_size=100_000, queue_timeout_seconds=300),
    )
    pool = MarketPool(HOST, None, Steps.of([(0.0, 1.0)]))
    market = Market("on demand", (pool,), lasts_s + WARM_UP_S)
    setting = Setting(tick_s=job.tick_s, cold_start_s=job.cold_start_s, cold_start_spread=0.3, leave_out_s=WARM_UP_S)
    traffic = Traffic(requests, speed=speed, door=spec.load_balancer, seed=1)
    made = simulate(spec, market, setting, traffic=traffic)
    served = made.served or Served()
    return Outcome(
        job,
        served.attainment(LIMIT_S),
        made.cost,
        served.rejected,
        served.waited_s.get(99.0, 0.0),
        len(made.wanted),
        time.process_time() - began,
    )


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--traces", type=Path, default=REPOSITORY.parent / "shared" / "traces" / "requests")
    parser.add_argument("--only", default="")
    parser.add_argument("--policies", default=",".join(POLICIES))
    parser.add_argument("--headrooms", default=",".join(map(str, HEADROOMS)))
    parser.add_argument("--cold-start", type=float, default=60.0)
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    options = parser.parse_args(arguments)
    jobs = [
        Job(
            name,
            options.traces / file,
            policy,
            float(headroom),
            options.cold_start,
            1.0 if "servegen" not in file else 2.0,
        )
        for name, file in TRACES.items()
        if options.only in name
        for policy in options.policies.split(",")
        for headroom in options.headrooms.split(",")
        if (options.traces / file).exists()
    ]
    if not jobs:
        print(f"no recordings at {options.traces}: nothing is measured")
        return 0
    with ProcessPoolExecutor(options.jobs) as pool:
        for outcome in pool.map(run, jobs):
            job = outcome.job
            print(
                f"{job.trace:10} {job.policy:8} {job.headroom:4.2f}  {outcome.attainment:7.4f} {outcome.hours:8.2f} h"
                f"  rejected {outcome.rejected:5d}  p99 wait {outcome.wait_p99_s:7.1f}  changes {outcome.changes:4d}"
                f"  {outcome.cpu_s:5.1f} s CPU",
                flush=True,
            )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
