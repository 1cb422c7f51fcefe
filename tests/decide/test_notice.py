"""A machine that will be taken back: its replica is replaced first, and serves for as long as nobody else can."""

from __future__ import annotations

from dataclasses import replace

from tests.decide.builders import NOW, instance, load, observation, replica, spec

from skyserve.decide.lifecycle import BOOT_PATIENCE_S
from skyserve.decide.reconcile import decide
from skyserve.decide.removal import LAST_DRAIN_S
from skyserve.model.decision import Drain, Launch, Plan, ReasonCode
from skyserve.model.evidence import Instance, InstanceState, Listing
from skyserve.model.replica import Failure, Replica, ReplicaStatus

S = ReplicaStatus


def noticed(*replicas: Replica, reclaim_at: float | None, wanted: int = 1, now: float = NOW) -> Plan:
    """The plan when the first replica's machine has notice (None: no more), and all machines run."""
    first, *others = replicas
    machines: list[Instance] = [instance(first, reclaim_at=reclaim_at), *(instance(r) for r in others)]
    return decide(
        observation(
            now=now,
            specs={1: spec(wanted)},
            replicas=replicas,
            next_replica_id=9,
            providers={"local": Listing(now - 0.1, tuple(machines))},
            load=load(in_flight={first.id: 1}),
        )
    )


def row(plan: Plan, id_: int) -> Replica:
    return next(r for r in plan.replicas if r.id == id_)


def test_a_replacement_is_launched_at_once_and_says_why() -> None:
    plan = noticed(replica(1), reclaim_at=NOW + 120)
    [launch] = [action for action in plan.actions if isinstance(action, Launch)]
    assert launch.because.code is ReasonCode.REPLACE_INTERRUPTED
    assert launch.because.facts["replaces"] == 1


def test_the_only_ready_replica_serves_on_until_the_last_moment() -> None:
    plan = noticed(replica(1), reclaim_at=NOW + 120)
    assert row(plan, 1).status is S.READY
    assert [(e.replica_id, e.draining) for e in plan.endpoints if e.replica_id == 1] == [(1, False)]
    assert plan.wake_at <= NOW + 120 - LAST_DRAIN_S
    assert ReasonCode.INTERRUPTION_NOTICE in [reason.code for reason in plan.waiting]
    late = noticed(replica(1), reclaim_at=NOW + LAST_DRAIN_S - 1)
    assert row(late, 1).status is S.DRAINING


def test_with_another_one_ready_it_is_drained_at_once_up_to_the_end() -> None:
    plan = noticed(replica(1), replica(2), reclaim_at=NOW + 120, wanted=2)
    [drain] = [action for action in plan.actions if isinstance(action, Drain)]
    assert (drain.replica_id, drain.until) == (1, NOW + 120)
    assert drain.because.code is ReasonCode.INTERRUPTION_NOTICE
    assert sum(isinstance(action, Launch) for action in plan.actions) == 1


def test_a_replica_that_is_not_ready_yet_is_let_go() -> None:
    starting = replica(1, S.STARTING)
    assert row(noticed(starting, reclaim_at=NOW + 120), 1).status is S.SHUTTING_DOWN


def test_a_notice_that_is_withdrawn_is_forgotten() -> None:
    plan = noticed(replace(replica(1), reclaim_at=NOW + 60), reclaim_at=None)
    assert row(plan, 1).counts
    assert not plan.actions


def test_the_replacement_takes_over_and_no_third_one_is_launched() -> None:
    old, new = replace(replica(1), reclaim_at=NOW + 60), replica(2)
    plan = noticed(old, new, reclaim_at=NOW + 60)
    assert row(plan, 1).status is S.DRAINING
    assert row(plan, 2).status is S.READY
    assert not any(isinstance(action, Launch) for action in plan.actions)


def test_a_machine_that_never_comes_up_is_given_up() -> None:
    slow = replica(1, S.PROVISIONING, accepted_at=NOW - BOOT_PATIENCE_S, setup_started_at=None)
    booting = instance(slow, InstanceState.STARTING, address=None)
    plan = decide(
        observation(
            specs={1: spec(1)}, next_replica_id=9, replicas=(slow,), providers={"local": Listing(NOW - 0.1, (booting,))}
        )
    )
    assert row(plan, 1).failure is Failure.LAUNCH


def test_a_machine_that_somebody_else_stopped_is_lost() -> None:
    ready = replica(1)
    stopped = Listing(NOW - 0.1, (instance(ready, InstanceState.STOPPED),))
    plan = decide(observation(specs={1: spec(1)}, next_replica_id=9, replicas=(ready,), providers={"local": stopped}))
    assert row(plan, 1).failure is Failure.LOST
