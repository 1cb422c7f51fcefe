"""How long starts take, and when the next replica is expected."""

from __future__ import annotations

from dataclasses import replace

from tests.decide.builders import NOW, listing, load, observation, replica, spec

from skyserve.decide import starting
from skyserve.decide.reconcile import asks_for_change, decide
from skyserve.model.decision import AutoscaleMemory, Memory
from skyserve.model.evidence import ProbeResult
from skyserve.model.replica import ReplicaStatus
from skyserve.model.service import ReplicaPolicy

S = ReplicaStatus


def test_a_start_is_learnt_when_it_ends() -> None:
    starts = replica(1, S.STARTING, asked_at=NOW - 42.0)
    o = observation(
        specs={1: spec(1)},
        replicas=(starts,),
        providers=listing(starts),
        probes={1: ProbeResult(1, NOW - 0.1, ok=True)},
    )
    plan = decide(o)
    assert plan.memory.starts == (42.0,)
    assert plan.start_s == 42.0
    assert plan.ready_at is None, "one is ready"
    again = decide(replace(o, replicas=plan.replicas, memory=plan.memory))
    assert again.memory.starts == (42.0,), "it is counted once"


def test_the_usual_start_is_the_middle_of_the_last_nine() -> None:
    assert starting.usual_s(()) is None
    assert starting.usual_s((10.0, 500.0, 20.0)) == 20.0
    many = starting.learn([float(i) for i in range(20)], (), ())
    assert many == tuple(float(i) for i in range(11, 20))


def test_the_first_of_those_that_come_is_expected() -> None:
    coming = [replica(1, S.STARTING, asked_at=NOW - 30.0), replica(2, S.PROVISIONING, asked_at=NOW - 5.0)]
    assert starting.ready_at(coming, (60.0,)) == NOW + 30.0
    assert starting.ready_at(coming, ()) is None
    assert starting.ready_at([*coming, replica(3)], (60.0,)) is None


def test_a_report_that_calls_for_more_is_worth_a_look_at_once() -> None:
    policy = ReplicaPolicy(1, 10, target_ongoing_requests_per_replica=4.0)
    o = observation(
        specs={1: spec(replica_policy=policy)},
        replicas=(replica(1),),
        load=load(),
        memory=Memory(autoscale=AutoscaleMemory(1)),
    )
    calm = load(ongoing=3.0, burst_ongoing=3.0, steady_ongoing=3, in_flight={1: 3})
    assert not asks_for_change(o, calm, NOW + 1)
    burst = load(ongoing=3.0, burst_ongoing=9.0, steady_ongoing=30, in_flight={1: 30})
    assert asks_for_change(o, burst, NOW + 1)
    assert not asks_for_change(replace(o, wanted=False), burst, NOW + 1)
