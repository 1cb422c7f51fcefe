"""Updates, each rule on its own: kept, proven, promoted, rolled back, stopped, superseded."""

from __future__ import annotations

from dataclasses import replace
from itertools import groupby

import pytest
from tests.decide.builders import spec
from tests.decide.rollout_world import CRASHES, FAILS_A_FIFTH, NEVER_READY, WRONG_PATH, RolloutWorld

from skyserve.decide.rollout import surge
from skyserve.model.decision import Launch, Plan, ReasonCode
from skyserve.model.evidence import InstanceState
from skyserve.model.replica import ALIVE, ReplicaStatus
from skyserve.model.rollout import Rollout
from skyserve.model.service import ReadinessProbe, ReplicaPolicy, ServiceSpec, UpdateMode

QUICK = ReadinessProbe(initial_delay_seconds=5)
MODES = list(UpdateMode)


def serving(replicas: int = 2, rate: int = 20, mode: UpdateMode = UpdateMode.ROLLING) -> RolloutWorld:
    world = RolloutWorld({1: spec(replicas)}, mode=mode, rate=rate)
    world.settle(10)
    assert world.memory.rollout.good == 1
    return world


def better(replicas: int = 2, **changes: object) -> ServiceSpec:
    return spec(replicas, run="serve better", readiness_probe=QUICK, **changes)


def pushed(world: RolloutWorld, manner: str, new: ServiceSpec | None = None) -> None:
    world.manners[world.latest + 1] = manner
    world.update(new or better())


def notes(world: RolloutWorld, code: ReasonCode) -> list[str]:
    return [n.because.text for _, plan in world.log for n in plan.notes if n.because.code is code]


def run(world: RolloutWorld, steps: int, seconds: float = 1.0) -> list[Plan]:
    plans = [world.step(seconds) for _ in range(steps)]
    return [plan for plan in plans if plan is not None]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("manner", [CRASHES, NEVER_READY])
def test_a_version_that_is_never_ready_is_rolled_back_and_nothing_is_lost(mode: UpdateMode, manner: str) -> None:
    world = serving(mode=mode)
    pushed(world, manner)
    for plan in run(world, 60):
        assert len([e for e in plan.endpoints if not e.draining and e.version == 1]) == 2
    assert world.aim == 1
    assert world.ready_versions == {1}
    (text,) = notes(world, ReasonCode.ROLLED_BACK)[:1]
    assert text.startswith("version 2 is rolled back to version 1: ")
    assert "none was ever ready" in text
    assert not [r for r in world.replicas if r.version == 2 and r.status in ALIVE]
    launched = [t for t in world.launches if t not in ("chat-u1-1-1", "chat-u1-2-1")]
    assert len(launched) <= 4, "no more than the budget, and what ran beside"


@pytest.mark.parametrize("mode", MODES)
def test_a_version_that_fails_a_fifth_is_rolled_back(mode: UpdateMode) -> None:
    world = serving(mode=mode)
    pushed(world, FAILS_A_FIFTH)
    before = world.all_answers
    for plan in run(world, 90):
        assert len([e for e in plan.endpoints if e.version == 1]) >= 2, "the old capacity is there throughout"
    assert world.aim == 1
    assert world.ready_versions == {1}
    assert "of its answers failed" in notes(world, ReasonCode.ROLLED_BACK)[0]
    if mode is UpdateMode.CANARY:
        assert world.all_failed / (world.all_answers - before) < 0.01


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("rate", [0, 20])
def test_a_sound_version_takes_over(mode: UpdateMode, rate: int) -> None:
    world = serving(3, rate, mode)
    pushed(world, "fine", better(3))
    for plan in run(world, 400):
        assert world.serving >= 3
        alive = [r for r in plan.replicas if r.status in ALIVE]
        assert len(alive) <= (6 if mode is UpdateMode.BLUE_GREEN else 3 + surge(3))
    assert world.ready_versions == {2}
    assert world.memory.rollout.good == 2
    assert world.memory.rollout.served == (1, 2)
    assert notes(world, ReasonCode.PROMOTED)
    assert not world.memory.rollout.rejected


def test_a_canary_gets_its_share_step_by_step_and_never_more_than_it_carries() -> None:
    world = serving(4, 40, UpdateMode.CANARY)
    pushed(world, "fine", better(4, rollout=Rollout(max_surge=2, canary_steps=(0.05, 0.25, 0.9), step_seconds=10)))
    shares = [plan.shares.get(2) for plan in run(world, 80)]
    assert [share for share, _ in groupby(shares)] == [None, 0.05, 0.25, 0.5, None], (
        "two of four replicas carry half at most"
    )
    assert shares.count(0.05) >= 10
    assert world.ready_versions == {2}


def test_a_canary_waits_for_answers_but_not_for_ever() -> None:
    world = serving(2, 1, UpdateMode.CANARY)
    pushed(world, "fine", better(rollout=Rollout(canary_steps=(0.1,), step_seconds=10)))
    shares = [plan.shares.get(2) for plan in run(world, 60)]
    assert 28 <= shares.count(0.1) <= 32, "three times its least time"


def test_without_requests_one_step_of_time_decides() -> None:
    world = serving(2, 0, UpdateMode.CANARY)
    pushed(world, "fine")
    shares = [plan.shares.get(2) for plan in run(world, 60)]
    assert 29 <= shares.count(0.05) <= 32
    assert shares.count(0.25) == 0


def test_a_rolling_update_keeps_old_replicas_until_there_is_proof() -> None:
    world = serving(2, 2)
    pushed(world, "fine", better(rollout=Rollout(step_seconds=1000)))
    plans = run(world, 60)
    assert all(len([e for e in p.endpoints if not e.draining and e.version == 1]) == 2 for p in plans[:40])
    assert ReasonCode.GATE_WAITING in {w.code for w in plans[20].waiting}
    run(world, 120)
    assert world.ready_versions == {2}


def test_an_old_replica_that_dies_meanwhile_is_replaced_by_its_like() -> None:
    world = serving(3, 20, UpdateMode.CANARY)
    pushed(world, "fine", better(3))
    run(world, 6)
    world.machines.pop(next(r.token for r in world.replicas if r.version == 1))
    plans = run(world, 10)
    launched = [a.replica.version for p in plans for a in p.actions if isinstance(a, Launch)]
    assert launched == [1]
    assert len([r for r in world.replicas if r.version == 1 and r.status is ReplicaStatus.READY]) == 3


def test_a_probe_that_asks_for_the_wrong_thing_disturbs_nobody() -> None:
    world = serving(2, 20)
    wrong = ReadinessProbe(path=WRONG_PATH, endpoint_probe_interval_seconds=2)
    world.update(spec(3, readiness_probe=wrong))
    launches = len(world.launches)
    for _ in run(world, 30):
        assert world.serving == 2
    assert world.aim == 1
    assert len(world.launches) == launches
    assert "GET /wrong answered 404" in notes(world, ReasonCode.ROLLED_BACK)[0]
    world.update(spec(3, readiness_probe=replace(wrong, path="/right")))
    for _ in run(world, 20):
        assert world.serving >= 2
    assert world.ready_versions == {3}
    assert world.serving == 3
    assert len(world.launches) == launches + 1, "two were kept"


def test_a_probe_that_is_mended_counts_at_once() -> None:
    world = RolloutWorld({1: spec(2, readiness_probe=ReadinessProbe(path=WRONG_PATH))})
    run(world, 10)
    assert world.serving == 0
    world.update(spec(2))
    run(world, 3)
    assert world.serving == 2
    assert world.ready_versions == {2}


def test_a_wrong_probe_that_comes_while_no_replica_is_ready_is_found_too() -> None:
    world = serving(1, 0)
    for machine in world.machines.values():
        machine.state = InstanceState.EXITED
    pushed(world, NEVER_READY, spec(1, readiness_probe=ReadinessProbe(path=WRONG_PATH, initial_delay_seconds=5)))
    run(world, 120)
    assert world.aim == 1
    assert world.serving == 1


def test_until_it_is_proven_the_old_policy_says_how_many() -> None:
    world = serving(4, 20, UpdateMode.CANARY)
    pushed(world, NEVER_READY, better(1))
    for plan in run(world, 60):
        assert len([e for e in plan.endpoints if not e.draining and e.version == 1]) == 4
    assert world.aim == 1


def test_an_update_that_is_not_rolled_back_by_itself_stops() -> None:
    world = serving(2, 20)
    pushed(world, CRASHES, better(rollout=Rollout(auto_rollback=False)))
    plan = run(world, 120)[-1]
    assert ReasonCode.ROLLOUT_STOPPED in {w.code for w in plan.waiting}
    assert world.aim == 2
    assert world.ready_versions == {1}
    assert len(world.launches) <= 6
    world.machines.pop(next(iter(world.machines)))
    run(world, 10)
    assert world.serving == 2, "the old version still heals"
    world.update(better(rollout=Rollout(), envs={"MENDED": "yes"}))
    run(world, 100)
    assert world.ready_versions == {3}


def test_a_version_after_a_rolled_back_one_is_tried_afresh() -> None:
    world = serving(2, 20)
    pushed(world, CRASHES)
    run(world, 40)
    assert [one.version for one in world.memory.rollout.rejected] == [2]
    pushed(world, "fine", better(envs={"MENDED": "yes"}))
    run(world, 100)
    assert world.ready_versions == {3}
    assert world.memory.rollout.good == 3


def test_an_update_on_top_of_an_unproven_one_has_the_good_one_to_go_back_to() -> None:
    world = serving(2, 20, UpdateMode.CANARY)
    pushed(world, "fine")
    run(world, 8)
    pushed(world, CRASHES, better(envs={"ANOTHER": "one"}))
    for _ in run(world, 60):
        assert world.serving >= 2
    assert world.aim == 1
    assert world.ready_versions == {1}


def test_the_old_spec_as_a_new_version_takes_the_old_replicas_over() -> None:
    world = serving(2, 20, UpdateMode.CANARY)
    pushed(world, "fine")
    run(world, 8)
    before = len(world.launches)
    world.update(world.specs[1])
    run(world, 40)
    assert world.ready_versions == {3}
    assert world.memory.rollout.good == 3
    assert len(world.launches) == before


def test_a_version_that_breaks_soon_after_it_took_over_is_rolled_back() -> None:
    world = serving(1, 0)
    pushed(world, "fine", better(1))
    while world.ready_versions != {2}:
        run(world, 1)
    world.manners[2] = CRASHES
    for machine in list(world.machines):
        world.machines.pop(machine)
        world.replicas = tuple(replace(r, version=2) for r in world.replicas)
    run(world, 60)
    assert world.aim == 1
    assert world.ready_versions == {1}


def test_one_may_be_missing_where_that_is_allowed_and_no_more() -> None:
    world = serving(3, 0)
    pushed(world, "fine", better(3, rollout=Rollout(max_surge=0, max_unavailable=1)))
    for plan in run(world, 100):
        assert world.serving >= 2
        assert len([r for r in plan.replicas if r.status in ALIVE]) <= 3
    assert world.ready_versions == {2}


def test_a_good_version_is_never_given_up() -> None:
    world = serving(1, 0)
    pushed(world, CRASHES, better(1))
    run(world, 40)
    assert world.aim == 1
    world.machines.clear()
    world.exits_at_once = True
    run(world, 100, 60.0)
    world.exits_at_once = False
    for machine in list(world.machines):
        world.machines.pop(machine)
    run(world, 20, 60.0)
    assert world.ready_versions == {1}


def test_a_first_version_has_nothing_to_go_back_to() -> None:
    world = RolloutWorld({1: spec(1)}, manners={1: CRASHES})
    run(world, 60, 60.0)
    assert world.memory.rollout.good is None
    assert ReasonCode.GAVE_UP in {w.code for w in run(world, 1)[-1].waiting}
    world.update(better(1))
    run(world, 30)
    assert world.ready_versions == {2}
    assert world.memory.rollout.good == 2


def test_a_policy_change_keeps_what_the_autoscaler_knows() -> None:
    policy = ReplicaPolicy(1, 6, target_qps_per_replica=5.0, upscale_delay_seconds=3, downscale_delay_seconds=600)
    world = RolloutWorld({1: spec(replica_policy=policy)}, rate=20)
    world.arrivals_per_s = 20.0
    world.settle(10)
    assert world.memory.autoscale.target == 4
    world.update(replace(world.specs[1], replica_policy=replace(policy, max_replicas=5)))
    assert world.step() is not None
    assert world.memory.autoscale.target == 4
