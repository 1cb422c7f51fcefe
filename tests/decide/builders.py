"""Short ways to build model values for tests of `decide`."""

from __future__ import annotations

from dataclasses import replace

from skyserve.model.decision import Observation
from skyserve.model.evidence import Instance, InstanceState, Listing, LoadReport
from skyserve.model.offering import CapacityType, Location, Offering
from skyserve.model.replica import Replica, ReplicaStatus
from skyserve.model.service import ReplicaPolicy, ServiceSpec, UpdateMode

NOW = 1_000_000.0
HERE = Offering("local", "host", Location("local", "localhost"), CapacityType.ON_DEMAND, None, 2, 4, 0.0)
THERE = Offering("fake", "big", Location("fake", "far"), CapacityType.ON_DEMAND, None, 2, 4, 1.0)


def spec(replicas: int = 2, **changes: object) -> ServiceSpec:
    base = ServiceSpec(name="chat", run="serve", replica_policy=ReplicaPolicy(replicas, replicas))
    return replace(base, **changes)  # type: ignore[arg-type]


def observation(**changes: object) -> Observation:
    base = Observation(
        service="chat",
        uid="u1",
        wanted=True,
        purge=False,
        latest_version=1,
        update_mode=UpdateMode.ROLLING,
        revision=10,
        now=NOW,
        specs={1: spec()},
        replicas=(),
        next_replica_id=1,
        providers={"local": Listing(NOW - 0.1, ())},
        offerings=(HERE,),
    )
    return replace(base, **changes)  # type: ignore[arg-type]


def replica(id_: int, status: ReplicaStatus = ReplicaStatus.READY, **changes: object) -> Replica:
    base = Replica(
        id=id_,
        token=f"chat-u1-{id_}-1",
        version=1,
        launched_version=1,
        status=status,
        status_since_at=NOW - 100,
        created_at=NOW - 200,
        offering=HERE,
        accepted_at=NOW - 199,
        instance_id=f"i{id_}",
        endpoint=None if status is ReplicaStatus.PENDING else f"127.0.0.1:{20000 + id_}",
        setup_started_at=NOW - 190,
        ready_since_at=NOW - 100 if status is ReplicaStatus.READY else None,
    )
    return replace(base, **changes)  # type: ignore[arg-type]


def instance(of: Replica, state: InstanceState = InstanceState.RUNNING, **changes: object) -> Instance:
    base = Instance(
        id=of.instance_id or f"i{of.id}",
        provider="local",
        service="chat-u1",
        token=of.token,
        state=state,
        address=of.endpoint or f"127.0.0.1:{20000 + of.id}",
        setup_started_at=of.setup_started_at,
    )
    return replace(base, **changes)  # type: ignore[arg-type]


def listing(*replicas: Replica, at: float = NOW - 0.1) -> dict[str, Listing]:
    return {"local": Listing(at, tuple(instance(r) for r in replicas))}


def load(**changes: object) -> LoadReport:
    base = LoadReport(at=NOW, boot="b", table=11)
    return replace(base, **changes)  # type: ignore[arg-type]
