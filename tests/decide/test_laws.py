"""The four laws, and the promises to the user's purse, under arbitrary faults."""

from __future__ import annotations

import json

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.decide.builders import spec
from tests.decide.market import Machine, World

from skyserve.decide.reconcile import decide
from skyserve.decide.rollout import surge
from skyserve.model.codec import from_json, to_json
from skyserve.model.decision import Launch, Observation, Plan
from skyserve.model.evidence import InstanceState
from skyserve.model.replica import ALIVE, ReplicaStatus
from skyserve.model.service import ReplicaPolicy, UpdateMode

EVENTS = (
    "nothing",
    "kill",
    "lose",
    "preempt",
    "silence",
    "speak",
    "refuse",
    "allow",
    "sicken",
    "heal",
    "crash_before_commit",
    "crash_after_commit",
    "crash_in_act",
    "stranger",
    "update",
    "resize",
    "wait",
)


def happen(world: World, event: str) -> None:
    machines = list(world.machines.values())
    if event == "kill" and machines:
        machines[0].state = InstanceState.EXITED
    elif event == "lose" and machines:
        world.machines.pop(machines[-1].token)
    elif event == "preempt" and machines:
        machines[0].state = InstanceState.PREEMPTED
    elif event == "stranger":
        world.machines[f"chat-u1-stranger-{world.now}"] = Machine(f"chat-u1-stranger-{world.now}")
    elif event == "update":
        world.update(spec(2, run=f"serve {world.latest}"))
    elif event == "resize":
        world.update(spec(1 + world.latest % 3, run=world.specs[world.latest].run))
    elif event == "wait":
        world.now += 400
    elif event.startswith("crash_"):
        world.crash_at = event.removeprefix("crash_")
    else:
        _weather(world, event)


def _weather(world: World, event: str) -> None:
    world.silent = {"silence": True, "speak": False}.get(event, world.silent)
    world.refusing = {"refuse": True, "allow": False}.get(event, world.refusing)
    world.healthy = {"sicken": False, "heal": True}.get(event, world.healthy)


histories = st.lists(st.sampled_from(EVENTS), max_size=40)
modes = st.sampled_from(list(UpdateMode))


def live(world: World, events: list[str]) -> None:
    for event in events:
        happen(world, event)
        plan = world.step()
        if plan is not None:
            _check_step(world, plan)


def _check_step(world: World, plan: Plan) -> None:
    alive = [r for r in plan.replicas if r.status in ALIVE]
    latest = [r for r in alive if r.version == world.latest]
    assert len(latest) <= plan.target, "never more of the latest version than the target"
    asked = [a for a in plan.actions if isinstance(a, Launch) and a.replica.created_at == world.now]
    if world.mode is UpdateMode.ROLLING and asked and len(alive) > len(latest):
        assert len(alive) <= plan.target + surge(plan.target), "a rolling update surges by a quarter"
    assert set(world.launches) <= world.committed_tokens, "law 1: intent is written before acting"
    ids = [r.id for r in plan.replicas]
    assert len(set(ids)) == len(ids)
    assert all(r.id < world.next_replica_id for r in plan.replicas), "ids come from the store and only grow"


@settings(max_examples=150, deadline=None)
@given(histories, modes)
def test_laws_hold_through_any_history_and_everything_heals(events: list[str], mode: UpdateMode) -> None:
    world = World({1: spec(2)}, mode=mode)
    live(world, events)
    world.settle(100)
    wanted = world.specs[world.latest].replica_policy.min_replicas
    ready = world.with_status(ReplicaStatus.READY)
    assert len(ready) == wanted
    assert {r.version for r in ready} == {world.latest}
    assert {m.token for m in world.machines.values()} == {r.token for r in ready}, "law 3: nothing unowned is left"


@settings(max_examples=150, deadline=None)
@given(histories)
def test_law_2_silence_is_not_absence(events: list[str]) -> None:
    world = World({1: spec(2)})
    live(world, events)
    world.settle(20)
    world.silent = True
    before = world.replicas
    for _ in range(5):
        plan = world.step()
        assert plan is not None
        assert [(r.id, r.status) for r in plan.replicas] == [(r.id, r.status) for r in before]
        assert not [a for a in plan.actions if isinstance(a, Launch)]


@settings(max_examples=60, deadline=None)
@given(histories, modes)
def test_law_4_same_observation_same_plan_also_through_json(events: list[str], mode: UpdateMode) -> None:
    world = World({1: spec(2)}, mode=mode)
    live(world, events)
    for observation, plan in world.log:
        assert decide(observation) == plan
        stored = json.loads(json.dumps(to_json(observation)))
        replayed = decide(from_json(Observation, stored))
        assert replayed == plan
        assert from_json(Plan, json.loads(json.dumps(to_json(plan)))) == plan


@settings(max_examples=100, deadline=None)
@given(histories)
def test_a_service_that_is_taken_down_leaves_nothing(events: list[str]) -> None:
    world = World({1: spec(3)})
    live(world, events)
    world.wanted = False
    world.settle(60)
    assert world.finished
    assert not world.machines
    assert not world.replicas


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 5), modes)
def test_an_update_never_serves_with_fewer(target: int, mode: UpdateMode) -> None:
    world = World({1: spec(target)}, mode=mode)
    world.settle(20)
    world.update(spec(target, run="serve better"))
    for _ in range(80):
        plan = world.step()
        assert plan is not None
        routed = [e for e in plan.endpoints if not e.draining]
        assert len(routed) >= target
        alive = [r for r in plan.replicas if r.status in ALIVE]
        limit = 2 * target if mode is UpdateMode.BLUE_GREEN else target + surge(target)
        assert len(alive) <= limit
    assert {r.version for r in world.replicas} == {2}


def test_a_broken_update_leaves_the_old_version_serving() -> None:
    world = World({1: spec(2)})
    world.settle(20)
    world.update(spec(2, run="broken"))
    world.exits_at_once = True
    for _ in range(400):
        plan = world.step()
        assert plan is not None
        assert len([e for e in plan.endpoints if not e.draining]) == 2
    assert len(world.launches) <= 2 + 16, "a version that never was ready is given up"


def test_an_update_that_changes_nothing_that_was_launched_relabels() -> None:
    world = World({1: spec(2)})
    world.settle(20)
    before = {r.token for r in world.replicas}
    world.update(spec(3))
    world.settle(20)
    assert before <= {r.token for r in world.replicas}
    assert {r.version for r in world.replicas} == {2}
    assert len(world.with_status(ReplicaStatus.READY)) == 3


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0, 100), min_size=1, max_size=40))
def test_the_autoscaler_stays_within_the_users_bounds(loads: list[float]) -> None:
    policy = ReplicaPolicy(1, 4, target_qps_per_replica=5.0, upscale_delay_seconds=3, downscale_delay_seconds=6)
    world = World({1: spec(replica_policy=policy)})
    for rate in loads:
        world.arrivals_per_s = rate
        plan = world.step(2.0)
        assert plan is not None
        assert 1 <= plan.target <= 4
        assert len([r for r in plan.replicas if r.status in ALIVE]) <= 4
