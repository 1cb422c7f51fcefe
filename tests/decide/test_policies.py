"""Placement, back-off, rollout and the service's status, each on its own."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.decide.builders import NOW, instance, listing, observation, replica, spec

from skyserve.decide import backoff, rollout
from skyserve.decide.reconcile import decide
from skyserve.decide.status import service_status
from skyserve.model.decision import (
    AutoscaleMemory,
    Drain,
    FailureMemory,
    Launch,
    Memory,
    Observation,
    ReasonCode,
    Terminate,
)
from skyserve.model.evidence import Listing, Silent
from skyserve.model.replica import Failure, ReplicaStatus
from skyserve.model.service import ReplicaPolicy, UpdateMode

S = ReplicaStatus


@pytest.mark.parametrize(("failures", "wait_s"), [(1, 0), (2, 0), (3, 2), (4, 2), (5, 4), (7, 8), (60, 300)])
def test_waits_double_with_every_round_of_two_replicas(failures: int, wait_s: float) -> None:
    memory = (FailureMemory(1, failures, NOW, ever_ready=True),)
    verdict = backoff.judge(memory, 1, target=2)
    assert verdict.launch_at == (NOW + wait_s if wait_s else 0)
    assert not verdict.gave_up


def test_only_a_version_that_was_never_ready_is_given_up() -> None:
    assert backoff.judge((FailureMemory(1, 8, NOW),), 1, target=1).gave_up
    assert not backoff.judge((FailureMemory(1, 8, NOW, ever_ready=True),), 1, target=1).gave_up


def test_a_neighbour_that_was_ready_before_does_not_excuse_a_crash_loop() -> None:
    memory = (FailureMemory(1, 5, NOW - 40, ever_ready=True),)
    old = replica(1, ready_since_at=NOW - 1000)
    young = replica(2, ready_since_at=NOW - 31)
    assert backoff.remember(memory, (), (old,), NOW)[0].consecutive == 5
    assert backoff.remember(memory, (), (old, young), NOW)[0].consecutive == 0


def test_preemption_is_not_the_versions_fault() -> None:
    lost = replica(1, S.FAILED, failure=Failure.PREEMPTED)
    assert backoff.remember((), (replica(1),), (lost,), NOW)[0].consecutive == 0


def rolled(*replicas: object, target: int = 2, mode: UpdateMode = UpdateMode.ROLLING) -> rollout.Split:
    specs = {1: spec(target), 2: spec(target, run="other")}
    o: Observation = observation(specs=specs, latest_version=2, update_mode=mode, replicas=replicas)
    return rollout.split(o, o.replicas, target)


def test_rolling_starts_one_more_and_keeps_the_old() -> None:
    split = rolled(replica(1), replica(2))
    assert (split.launch, split.remove) == (1, ())
    assert split.launch_because.code is ReasonCode.NEW_VERSION


def test_rolling_lets_one_old_go_for_each_new_that_is_ready() -> None:
    split = rolled(replica(1), replica(2), replica(3, version=2))
    assert [(r.id, why.code) for r, why in split.remove] == [(2, ReasonCode.OLD_VERSION)]


def test_rolling_drops_old_replicas_that_never_served() -> None:
    split = rolled(replica(1), replica(2, S.STARTING))
    assert [r.id for r, _ in split.remove] == [2]


def test_blue_green_starts_all_and_switches_at_once() -> None:
    both = (replica(1), replica(2))
    assert rolled(*both, mode=UpdateMode.BLUE_GREEN).launch == 2
    one_new = (*both, replica(3, version=2))
    assert not rolled(*one_new, mode=UpdateMode.BLUE_GREEN).remove
    all_new = (*one_new, replica(4, version=2))
    assert [r.id for r, _ in rolled(*all_new, mode=UpdateMode.BLUE_GREEN).remove] == [1, 2]


def test_blue_green_drops_what_never_served_and_launches_no_old_version() -> None:
    pending = replica(2, S.PENDING, offering=None, endpoint=None)
    rows = (replica(1), pending, replica(3, S.STARTING))
    assert [r.id for r, _ in rolled(*rows, mode=UpdateMode.BLUE_GREEN).remove] == [2, 3]


def test_blue_green_upon_blue_green_keeps_routing_to_those_that_can_carry_it() -> None:
    rows = (replica(1), replica(2), replica(3, version=2))
    o = observation(replicas=rows, specs={n: spec(2, run=f"v{n}") for n in (1, 2, 3)}, latest_version=3)
    o = replace(o, update_mode=UpdateMode.BLUE_GREEN)
    assert rollout.routed_versions(o, rows, 2) == {1}
    assert rollout.routed_versions(o, rows[1:], 2) == {2}, "equally few: the newer one"
    assert rollout.routed_versions(o, (*rows, replica(4, version=2)), 2) == {2}


def test_an_update_of_a_service_scaled_to_zero_lets_each_old_replica_go_once() -> None:
    policy = ReplicaPolicy(0, 2, target_qps_per_replica=1.0)
    rows = (replica(1), replica(2, S.NOT_READY), replica(3, S.STARTING))
    specs = {1: spec(replica_policy=policy), 2: spec(replica_policy=policy, run="better")}
    memory = Memory(autoscale=AutoscaleMemory(0))
    o = observation(replicas=rows, specs=specs, latest_version=2, providers=listing(*rows), memory=memory)
    drained = [a.replica_id for a in decide(o).actions if isinstance(a, Drain)]
    assert sorted(drained) == [1, 2]


def test_a_second_machine_under_one_token_is_ended() -> None:
    row = replica(1)
    twice = (instance(row, id="other"), instance(row))
    o = observation(specs={1: spec(1)}, replicas=(row,), providers={"local": Listing(NOW - 0.1, twice)})
    plan = decide(o)
    assert [(type(a), a.instance_id) for a in plan.actions if not isinstance(a, Launch | Drain)] == [
        (Terminate, "other")
    ]
    assert plan.replicas == (row,)


def test_scaling_down_takes_those_that_serve_least_and_the_newest() -> None:
    alive = (replica(1), replica(2), replica(3, S.STARTING), replica(4, S.NOT_READY), replica(5))
    split = rollout.split(observation(replicas=alive), alive, 2)
    assert [r.id for r, _ in split.remove] == [3, 4, 5]


def test_scaled_down_ready_replicas_drain_and_others_end() -> None:
    alive = (replica(1), replica(2), replica(3, S.STARTING))
    o = observation(replicas=alive, specs={1: spec(1)}, providers=listing(*alive))
    plan = decide(o)
    assert [a.replica_id for a in plan.actions if isinstance(a, Drain)] == [2]
    assert [a.replica_id for a in plan.actions if isinstance(a, Terminate)] == [3]
    assert [(e.replica_id, e.draining) for e in plan.endpoints] == [(1, False), (2, True)]


def test_a_dead_replica_is_replaced_in_the_same_step() -> None:
    alive = (replica(1), replica(2))
    seen = {"local": Listing(NOW, (instance(alive[0]),))}
    plan = decide(observation(replicas=alive, providers=seen, next_replica_id=3))
    (launch,) = [a for a in plan.actions if isinstance(a, Launch)]
    assert launch.replica.id == 3
    assert launch.because.code is ReasonCode.REPLACE_FAILED
    assert launch.because.facts["replaces"] == 2
    assert [e.replica_id for e in plan.endpoints] == [1]


def test_a_crash_loop_waits_and_says_so() -> None:
    memory = Memory(failures=(FailureMemory(1, 5, NOW - 1, detail="run ended with exit code 1"),))
    plan = decide(observation(memory=memory))
    assert not plan.actions
    assert plan.waiting[0].code is ReasonCode.CRASH_LOOP_BACKOFF
    assert plan.wake_at == NOW - 1 + 4


def test_nothing_offered_leaves_pending_replicas_with_the_reason() -> None:
    plan = decide(observation(offerings=()))
    assert [r.status for r in plan.replicas] == [S.PENDING, S.PENDING]
    assert {w.code for w in plan.waiting} == {ReasonCode.NO_OFFERING}


def test_a_purge_does_not_wait_for_the_silent() -> None:
    silent = {"local": Silent(NOW - 60, "timeout")}
    assert not decide(observation(wanted=False, replicas=(replica(1),), providers=silent)).finished
    assert decide(observation(wanted=False, purge=True, replicas=(replica(1),), providers=silent)).finished


def test_going_down_shortens_a_drain_that_had_begun() -> None:
    draining = replica(1, S.DRAINING, drain_until_at=NOW + 120, drain_revision=1)
    plan = decide(observation(wanted=False, replicas=(draining,), providers=listing(draining)))
    assert plan.replicas[0].drain_until_at == NOW + 30


def test_failed_rows_are_kept_for_people_but_not_for_ever() -> None:
    rows = tuple(
        replica(i, S.FAILED, failure=Failure.APP_EXIT, cleaned=True, status_since_at=NOW - 10 * i) for i in range(1, 7)
    )
    kept = [r.id for r in decide(observation(replicas=rows, next_replica_id=7)).replicas if r.status is S.FAILED]
    assert kept == [1, 2, 3]
    old = (replace(rows[0], status_since_at=NOW - 3600),)
    assert not [r for r in decide(observation(replicas=old, next_replica_id=7)).replicas if r.status is S.FAILED]


@pytest.mark.parametrize(
    ("replicas", "failures", "expected"),
    [
        ((S.READY, S.FAILED), 9, "READY"),
        ((S.STARTING,), 0, "REPLICA_INIT"),
        ((S.STARTING,), 6, "FAILED"),
        ((), 6, "FAILED"),
        ((S.NOT_READY,), 0, "REPLICA_INIT"),
    ],
)
def test_the_service_status_is_truthful(replicas: tuple[S, ...], failures: int, expected: str) -> None:
    rows = [replica(i, status) for i, status in enumerate(replicas, 1)]
    memory = Memory(failures=(FailureMemory(1, failures, NOW),), autoscale=AutoscaleMemory(2))
    assert service_status(rows, memory, wanted=True, latest_version=1, target=2).value == expected
    assert service_status(rows, memory, wanted=False, latest_version=1, target=2).value == "SHUTTING_DOWN"


def test_a_service_scaled_to_zero_has_no_replica() -> None:
    memory = Memory(autoscale=AutoscaleMemory(0))
    assert service_status((), memory, wanted=True, latest_version=1, target=0).value == "NO_REPLICA"


def test_before_the_first_decision_a_service_is_being_initialised() -> None:
    assert service_status((), Memory(), wanted=True, latest_version=1, target=0).value == "CONTROLLER_INIT"
