"""A clock that was set back by hours must not stop anything for hours."""

from __future__ import annotations

import pytest
from tests.decide.builders import HERE, NOW, listing, observation, replica, spec

from skyserve.decide.reconcile import decide
from skyserve.model.decision import AutoscaleMemory, FailureMemory, Launch, Memory, Observation, Plan
from skyserve.model.evidence import ProbeResult
from skyserve.model.health import Cooldown, CooldownKind
from skyserve.model.replica import Replica, ReplicaStatus
from skyserve.model.service import ReplicaPolicy

S = ReplicaStatus
AHEAD = NOW + 7200


def seen(row: Replica, **changes: object) -> Observation:
    return observation(specs={1: spec(1)}, replicas=(row,), next_replica_id=2, providers=listing(row), **changes)


def only(plan: Plan) -> Replica:
    (row,) = plan.replicas
    return row


@pytest.mark.parametrize("status", [S.STARTING, S.NOT_READY])
def test_a_good_probe_still_makes_ready(status: S) -> None:
    row = replica(1, status, status_since_at=AHEAD, setup_started_at=AHEAD - 5, ready_since_at=None)
    probed = {1: ProbeResult(1, NOW + 1, ok=True)}
    # The first look brings the row back; the first probe after it counts.
    back = only(decide(seen(row)))
    assert (back.status_since_at, back.setup_started_at) == (NOW, NOW - 5)
    later = decide(seen(back, now=NOW + 1, probes=probed))
    assert only(later).status is S.READY


def test_a_drain_ends_when_it_would_have() -> None:
    row = replica(1, S.DRAINING, status_since_at=AHEAD, drain_until_at=AHEAD + 120)
    assert decide(seen(row)).replicas[0].drain_until_at == NOW + 120


def test_a_vanished_machine_is_still_missed() -> None:
    row = replica(1, S.READY, status_since_at=AHEAD, ready_since_at=AHEAD)
    back = only(decide(seen(row)))
    gone = observation(
        specs={1: spec(1)}, replicas=(back,), next_replica_id=2, now=NOW + 2, providers=listing(at=NOW + 1)
    )
    assert decide(gone).replicas[0].display_status == "LOST"


def test_neither_back_off_nor_cooldowns_last_for_hours() -> None:
    failures = (FailureMemory(1, 3, last_at=AHEAD),)
    cooling = Cooldown(str(HERE.location), HERE.instance_type, "*", CooldownKind.CAPACITY, AHEAD, AHEAD + 60, 1, "full")
    o = observation(specs={1: spec(1)}, memory=Memory(failures), health=(cooling,))
    plan = decide(o)
    assert plan.memory.failures[0].last_at == NOW
    again = observation(specs={1: spec(1)}, memory=plan.memory, health=(cooling,), now=NOW + 20)
    assert [type(action) for action in decide(again).actions] == [Launch]


def test_scaling_waits_its_delay_and_not_longer() -> None:
    policy = ReplicaPolicy(1, 4, target_qps_per_replica=1.0)
    memory = Memory(autoscale=AutoscaleMemory(1, above_since_at=AHEAD, below_since_at=AHEAD))
    o = observation(specs={1: spec(replica_policy=policy)}, memory=memory)
    assert decide(o).memory.autoscale == AutoscaleMemory(1)
