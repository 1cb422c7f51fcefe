"""What holds of updates whatever happens: a machine that pushes versions, good and bad, into a world full of faults."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule
from tests.decide.builders import spec
from tests.decide.rollout_world import CRASHES, FAILS_A_FIFTH, FINE, NEVER_READY, WRONG_PATH, RolloutWorld

from skyserve.decide.rollout import surge
from skyserve.model.decision import Launch, Plan, ReasonCode
from skyserve.model.evidence import InstanceState
from skyserve.model.replica import ALIVE, ReplicaStatus
from skyserve.model.rollout import Rollout
from skyserve.model.service import ReadinessProbe, UpdateMode

QUICK = ReadinessProbe(initial_delay_seconds=6, endpoint_probe_interval_seconds=1)
NEVER_SERVES = (CRASHES, NEVER_READY)


class Updates(RuleBasedStateMachine):
    """`disturbed`: something else than an update has happened since the latest began; `level` is what served then."""

    def __init__(self) -> None:
        super().__init__()
        self.world = RolloutWorld({1: spec(2)})
        self.disturbed = False
        self.level = 0
        self.pushed = 0

    @initialize(replicas=st.integers(1, 4), rate=st.sampled_from((0, 5, 25)), mode=st.sampled_from(list(UpdateMode)))
    def begin(self, replicas: int, rate: int, mode: UpdateMode) -> None:
        self.world = RolloutWorld({1: spec(replicas, readiness_probe=QUICK)}, mode=mode, rate=rate)
        self.world.settle(10)

    def push(self, **changes: Any) -> None:
        world = self.world
        target = world.plan.target if world.plan else 0
        self.level = min(world.serving, target, world.specs[world.aim].replica_policy.min_replicas)
        self.disturbed = world.silent or world.refusing or not world.healthy or self.level < target
        self.disturbed |= any(machine.state is not InstanceState.RUNNING for machine in world.machines.values())
        self.pushed += 1
        count = changes.pop("replicas", world.specs[world.latest].replica_policy.min_replicas)
        probe = replace(QUICK, path=changes.pop("path", "/"))
        world.update(spec(count, readiness_probe=probe, rollout=Rollout(step_seconds=4), **changes))

    @property
    def never_serves(self) -> bool:
        """Whether the latest version never has a ready replica."""
        spec = self.world.specs[self.world.latest]
        return self.world.manner(self.world.latest) in NEVER_SERVES or spec.readiness_probe.path == WRONG_PATH

    @rule(manner=st.sampled_from((FINE, CRASHES, NEVER_READY, FAILS_A_FIFTH)), replicas=st.integers(1, 4))
    def update(self, manner: str, replicas: int) -> None:
        self.world.manners[self.world.latest + 1] = manner
        self.push(run=f"serve {self.pushed}", replicas=replicas)

    @rule(replicas=st.integers(1, 4))
    def resize(self, replicas: int) -> None:
        self.world.manners[self.world.latest + 1] = self.world.manner(self.world.latest)
        self.push(run=self.world.specs[self.world.latest].run, replicas=replicas)

    @rule(path=st.sampled_from(("/", "/health", WRONG_PATH)))
    def ask_otherwise(self, path: str) -> None:
        latest = self.world.latest
        self.world.manners[latest + 1] = self.world.manner(latest)
        self.push(run=self.world.specs[latest].run, path=path)

    @rule(back=st.integers(1, 3))
    def user_rollback(self, back: int) -> None:
        earlier = max(1, self.world.latest - back)
        self.world.manners[self.world.latest + 1] = self.world.manner(earlier)
        old = self.world.specs[earlier]
        self.push(run=old.run, replicas=old.replica_policy.min_replicas)

    @rule(mode=st.sampled_from(list(UpdateMode)))
    def choose_mode(self, mode: UpdateMode) -> None:
        if self.world.memory.rollout.good == self.world.latest:
            self.world.mode = mode

    @rule(seconds=st.integers(1, 12))
    def wait(self, seconds: int) -> None:
        for _ in range(seconds):
            self.look(self.world.step())

    @rule(which=st.integers(0, 7), how=st.sampled_from(list(InstanceState)[-2:]))
    def kill(self, which: int, how: InstanceState) -> None:
        machines = list(self.world.machines.values())
        if machines:
            machines[which % len(machines)].state = how
            self.disturbed = True

    @rule(what=st.sampled_from(("silent", "refusing", "healthy")), value=st.booleans())
    def weather(self, what: str, value: bool) -> None:
        setattr(self.world, what, value)
        self.disturbed = True

    @rule(point=st.sampled_from(("before_commit", "after_commit", "in_act")))
    def crash_of_the_controller(self, point: str) -> None:
        self.world.crash_at = point
        self.look(self.world.step())

    @rule()
    def door_begins_anew(self) -> None:
        self.world.reboot_door()

    def look(self, plan: Plan | None) -> None:
        if plan is None:
            return
        world, memory = self.world, self.world.memory.rollout
        alive = [r for r in plan.replicas if r.status in ALIVE]
        launched = [a for a in plan.actions if isinstance(a, Launch) and a.replica.created_at == world.now]
        mode = world.mode if world.aim == world.latest else UpdateMode.ROLLING
        if launched and mode is not UpdateMode.BLUE_GREEN:
            assert len(alive) <= plan.target + surge(plan.target), "never more than the target and the surge"
        if self.never_serves and not self.disturbed:
            assert world.serving >= self.level, "an update that fails takes nothing away"
        gave_up = [w.facts.get("version") for w in plan.waiting if w.code is ReasonCode.GAVE_UP]
        assert memory.good not in gave_up, "a good version is never given up because a new one fails"
        assert world.aim == world.latest or memory.rejection(world.aim) is None
        fine = world.manner(world.latest) == FINE and not self.never_serves
        if fine and not self.disturbed:
            assert memory.rejection(world.latest) is None, "nothing is rolled back without a fault"

    def teardown(self) -> None:
        world = self.world
        world.settle(1)
        self.disturbed = True
        for _ in range(40):
            self.look(world.step(10.0))
        wanted = world.specs[world.aim].replica_policy.min_replicas
        ready = world.with_status(ReplicaStatus.READY)
        assert {r.version for r in ready} == {world.aim}
        assert len(ready) == wanted
        assert world.memory.rollout.good == world.aim
        if self.never_serves and world.aim == world.latest:
            raise AssertionError("a version that never serves was taken for good")
        assert {m.token for m in world.machines.values()} == {r.token for r in ready}


Updates.TestCase.settings = settings(max_examples=50, stateful_step_count=12, deadline=None)
test_updates = Updates.TestCase
