"""A cluster is one machine to work on: ready when it runs, stopped and started by its user, never replaced."""

from __future__ import annotations

from dataclasses import replace

from tests.decide.builders import NOW, instance, observation, replica, spec

from skyserve.decide.reconcile import decide
from skyserve.model.decision import Halt, Launch, Plan, ReasonCode, Resume
from skyserve.model.evidence import Instance, InstanceState, Listing
from skyserve.model.replica import Failure, Replica, ReplicaStatus
from skyserve.model.service import Kind

S = ReplicaStatus
CLUSTER = spec(1, kind=Kind.CLUSTER)


def planned(*replicas: Replica, machines: tuple[Instance, ...] = (), **changes: object) -> Plan:
    next_id = 1 + max((r.id for r in replicas), default=0)
    listing = {"local": Listing(NOW - 0.1, machines)}
    return decide(
        observation(specs={1: CLUSTER}, replicas=replicas, next_replica_id=next_id, providers=listing, **changes)
    )


def test_it_is_launched_once() -> None:
    assert [type(action) for action in planned().actions] == [Launch]
    lost = planned(replica(1))
    assert lost.replicas[0].failure is Failure.LOST
    assert not lost.actions
    assert [reason.code for reason in lost.waiting] == [ReasonCode.NOT_REPLACED]


def test_it_is_ready_when_its_machine_runs() -> None:
    starting = replica(1, S.STARTING)
    assert planned(starting, machines=(instance(starting),)).replicas[0].status is S.READY
    in_setup = instance(starting, InstanceState.SETUP)
    assert planned(starting, machines=(in_setup,)).replicas[0].status is S.STARTING


def test_setup_may_take_as_long_as_it_likes() -> None:
    long_ago = replace(replica(1, S.STARTING), setup_started_at=NOW - 100_000)
    assert planned(long_ago, machines=(instance(long_ago, InstanceState.SETUP),)).replicas[0].status is S.STARTING


def test_stopping_is_asked_until_it_is_so() -> None:
    up = replica(1)
    plan = planned(up, machines=(instance(up),), halted=True)
    assert plan.replicas[0].status is S.STOPPED
    assert [type(action) for action in plan.actions] == [Halt]
    stopped = plan.replicas[0]
    again = planned(stopped, machines=(instance(stopped),), halted=True)
    assert [type(action) for action in again.actions] == [Halt]
    under_way = planned(stopped, machines=(instance(stopped),), halted=True, in_flight=(stopped.instance_id,))
    assert not under_way.actions
    done = planned(stopped, machines=(instance(stopped, InstanceState.STOPPED),), halted=True)
    assert (done.replicas[0].status, done.replicas[0].detail, done.actions) == (S.STOPPED, "", ())
    assert under_way.replicas[0].detail


def test_it_goes_on_where_it_was_stopped() -> None:
    stopped = replica(1, S.STOPPED)
    plan = planned(stopped, machines=(instance(stopped, InstanceState.STOPPED),))
    assert [type(action) for action in plan.actions] == [Resume]
    booting = planned(stopped, machines=(instance(stopped, InstanceState.STARTING, address=None),))
    assert (booting.replicas[0].status, booting.replicas[0].endpoint) == (S.STARTING, None)


def test_it_does_not_count_as_running_again_while_its_stop_is_still_under_way() -> None:
    stopped = replica(1, S.STOPPED)
    seen_before_it_stopped = (instance(stopped),)
    plan = planned(stopped, machines=seen_before_it_stopped, in_flight=(stopped.instance_id,))
    assert (plan.replicas[0].status, plan.actions) == (S.STOPPED, ())


def test_one_that_vanishes_while_it_is_stopped_is_lost() -> None:
    assert planned(replica(1, S.STOPPED), halted=True).replicas[0].failure is Failure.LOST


def test_going_down_waits_for_nobody() -> None:
    up = replica(1)
    assert planned(up, machines=(instance(up),), wanted=False).replicas[0].status is S.SHUTTING_DOWN


def test_its_failure_stays_to_be_looked_at() -> None:
    old = replace(replica(1, S.FAILED), failure=Failure.APP_EXIT, cleaned=True, status_since_at=NOW - 1e6)
    assert planned(old).replicas == (old,)
