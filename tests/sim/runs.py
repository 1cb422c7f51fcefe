"""Runs that nobody simulated, for tests of what is told of runs."""

from __future__ import annotations

from collections.abc import Iterable

from skyserve.model.offering import CapacityType, Location
from skyserve.sim.result import Machine, Run, Served

BEGIN = 1_700_000_000.0
HOUR = 3600.0


def machine(
    replica_id: int = 1,
    since_h: float = 0.0,
    until_h: float = 24.0,
    *,
    zone: str = "us-east-1a",
    spot: bool = True,
    preempted: bool = False,
    cost: float | None = None,
) -> Machine:
    """A machine that is ready half an hour after its launch and costs a dollar an hour, on demand three."""
    lived_h = until_h - since_h
    return Machine(
        replica_id=replica_id,
        location=Location("aws", zone[:-1], zone),
        instance_type="p3.2xlarge",
        capacity_type=CapacityType.SPOT if spot else CapacityType.ON_DEMAND,
        launched_at=BEGIN + since_h * HOUR,
        ready_at=BEGIN + (since_h + 0.5) * HOUR if lived_h > 0.5 else None,
        ended_at=BEGIN + until_h * HOUR,
        preempted=preempted,
        cost=lived_h * (1.0 if spot else 3.0) if cost is None else cost,
    )


def run(policy: str = "ours", machines: Iterable[Machine] = (), **changes: object) -> Run:
    """A day on which two replicas were wanted; what is not given follows from the machines."""
    all_of_them = tuple(machines) or (machine(),)
    changed: dict[float, int] = {}
    for one in all_of_them:
        if one.ready_at is not None:
            changed[one.ready_at] = changed.get(one.ready_at, 0) + 1
            changed[one.ended_at] = changed.get(one.ended_at, 0) - 1
    ready, level = [(BEGIN, 0)], 0
    for at in sorted(changed):
        level += changed[at]
        ready.append((at, level))
    values: dict[str, object] = {
        "policy": policy,
        "begin_at": BEGIN,
        "end_at": BEGIN + 24 * HOUR,
        "wanted": ((BEGIN, 2),),
        "ready": tuple(ready),
        "machines": all_of_them,
        "refusals": (),
        "cost": sum(one.cost for one in all_of_them),
        "on_demand_cost": 144.0,
        "bound_cost": 48.0,
        "availability": 0.9,
    }
    return Run(**{**values, **changes})


def served(p99: float = 12.0, **changes: object) -> Served:
    """A thousand requests, ten of them rejected."""
    latency = {50.0: 2.0, 90.0: 5.0, 95.0: 7.0, 99.0: p99}
    values: dict[str, object] = {
        "requests": 1000,
        "completed": 985,
        "rejected": 10,
        "retried": 5,
        "latency_s": latency,
        "waited_s": {50.0: 0.0, 90.0: 0.0, 95.0: 0.5, 99.0: 1.5},
    }
    return Served(**{**values, **changes})
