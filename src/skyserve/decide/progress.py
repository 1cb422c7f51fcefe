"""How far the rollout of the latest version has come: begun, proven step by step, good at last, or rolled back.

Until the latest version is proven, the good one before it carries the service with as many replicas as ever. What has
to be remembered for that is in `RolloutMemory`; the version that is rolled back stays the latest one in the store, and
the service aims for the good one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from skyserve.decide import backoff, gate
from skyserve.decide.draft import Draft
from skyserve.decide.rollout import Stage, on_trial, trial_ends_at
from skyserve.model.decision import Memory, Note, Observation, Reason, ReasonCode
from skyserve.model.evidence import LoadReport
from skyserve.model.replica import ALIVE, Replica, ReplicaStatus
from skyserve.model.rollout import VERSIONS_KEPT, Rejected, Rollout, RolloutMemory
from skyserve.model.service import ReplicaPolicy, UpdateMode

ENOUGH = 50
"""Answers of the new version, without a doubt about it, after which it needs no more time to prove itself."""
PATIENCE = 3.0
"""A canary's step ends after so many times its least time, with enough answers or without."""
HISTORY = 200
"""Earlier answers of the old version that a blue_green update compares with, as the two never serve side by side."""
LOOK_S = 1.0
"""How often the answers are looked at while a version proves itself."""

Facts = dict[str, float | int | str]


def aimed(o: Observation) -> Observation:
    """The observation with the version that the service aims for as the latest."""
    aim = o.memory.rollout.aim(o.latest_version)
    return o if aim == o.latest_version else towards(o, aim)


def towards(o: Observation, version: int) -> Observation:
    """The observation as if another version were the latest one, which takes over as replicas become ready."""
    offerings = o.other_offerings.get(version, o.offerings)
    return replace(o, latest_version=version, update_mode=UpdateMode.ROLLING, offerings=offerings)


def carrier(latest: int, memory: Memory) -> int:
    """The version whose policy and settings hold: the good one until the version that is aimed for is proven."""
    rollout = memory.rollout
    aim = rollout.aim(latest)
    if rollout.good is None or (rollout.version == aim and rollout.proven):
        return aim
    return rollout.good


# ---- begun, and over


def begin(draft: Draft) -> None:
    """Notice a new version, and the end of a rollout. What superseded one before it was ready has nothing to do with
    it; one that was proven is as good as any."""
    o, before = draft.o, draft.memory.rollout
    memory = before
    if before.version != o.latest_version:
        good = before.version if before.proven and before.version in o.specs else before.good
        memory = RolloutMemory(o.latest_version, good, o.now, rejected=before.rejected, served=before.served)
    if memory.good is None or memory.good not in o.specs:
        memory = replace(memory, good=_first_good(draft))
    if memory.good is not None and memory.good != memory.version and _is_over(draft, memory):
        memory = replace(memory, good=memory.version, stopped="", gate=replace(memory.gate, seen=()))
    if memory.good is not None and memory.good == memory.version:
        memory = replace(memory, proven=True, step_at=None, served=_served(memory))
    draft.memory = replace(draft.memory, rollout=_with_last_words(memory, draft.replicas))


def _first_good(draft: Draft) -> int | None:
    """The version that there is to go back to when none is remembered: one that was ever ready."""
    ready = {entry.version for entry in draft.memory.failures if entry.ever_ready and entry.version in draft.o.specs}
    older = {version for version in ready if version < draft.o.latest_version}
    return max(older or ready, default=None)


def _is_over(draft: Draft, memory: RolloutMemory) -> bool:
    """Nothing is left of older versions, and the new one has been well for a while; or it is the old one by another
    number."""
    o, good = draft.o, memory.good
    alive = [r for r in draft.replicas if r.counts]
    if good is not None and o.specs[good].shares_launch_with(o.specs[memory.version]):
        one_ready = any(r.status is ReplicaStatus.READY and r.version == memory.version for r in alive)
        answered = one_ready or o.specs[good].shares_probe_with(o.specs[memory.version])
        return answered and not any(r.version == good for r in alive)
    if not memory.proven or any(r.version != memory.version for r in alive):
        return False
    ready = [r for r in alive if r.status is ReplicaStatus.READY]
    stable = [r for r in ready if o.now - (r.ready_since_at or o.now) >= backoff.STABLE_AFTER_S]
    if ready and not stable:
        draft.wake.append(min(r.ready_since_at or o.now for r in ready) + backoff.STABLE_AFTER_S)
    return bool(stable) and len(ready) >= max(1, o.memory.autoscale.target or 0)


def _served(memory: RolloutMemory) -> tuple[int, ...]:
    earlier = tuple(version for version in memory.served if version != memory.version)
    return (*earlier, memory.version)[-VERSIONS_KEPT:]


def _with_last_words(memory: RolloutMemory, replicas: Sequence[Replica]) -> RolloutMemory:
    """The last log lines of a failed replica come after its end, and are worth keeping longer than its row."""
    told = tuple(_last_words(one, replicas) for one in memory.rejected)
    return memory if told == memory.rejected else replace(memory, rejected=told)


def _last_words(rejected: Rejected, replicas: Sequence[Replica]) -> Rejected:
    failed = [r for r in replicas if r.version == rejected.version and r.status is ReplicaStatus.FAILED]
    detail = max(failed, key=lambda r: (r.status_since_at, r.id)).detail if failed else ""
    return replace(rejected, detail=detail) if detail else rejected


# ---- on its way


def count_for(policy: ReplicaPolicy, old: ReplicaPolicy, target: int) -> int:
    """What a target under the old version's policy is under the new one's bounds."""
    wanted = max(0, target - old.num_overprovision)
    return min(max(wanted, policy.min_replicas), policy.max_replicas) + policy.num_overprovision


def follow(draft: Draft) -> bool:
    """Count, judge, and go a step further. True when the version was rolled back just now."""
    memory = draft.memory.rollout
    good = memory.good
    if good is None or good == memory.version or not draft.o.wanted:
        return False
    seen_at_once = memory.gate.boot == (draft.o.load.boot if draft.o.load else "")
    history = HISTORY if draft.o.update_mode is UpdateMode.BLUE_GREEN else 0
    counted = gate.count(memory.gate, draft.o.load, good, memory.version, history=history)
    memory = replace(memory, gate=replace(counted, pending=_pending(draft, memory.version)))
    rollout = draft.o.specs[memory.version].rollout
    tried = on_trial(draft.o.specs, draft.replicas, memory.version)
    why = memory.stopped or _refused(draft, tried) or _fault(draft, memory, rollout)
    if why and rollout.auto_rollback and not memory.stopped:
        _roll_back(draft, memory, good, why)
        return True
    if why:
        memory = replace(memory, stopped=why, proven=False)
        text = f"the rollout of version {memory.version} is stopped: {why}"
        draft.waiting.append(Reason(ReasonCode.ROLLOUT_STOPPED, text, _facts(memory)))
    elif not memory.proven and not tried:
        memory = _proved(draft, memory, rollout, seen_at_once=seen_at_once)
    draft.memory = replace(draft.memory, rollout=memory)
    draft.stage = _on_trial(draft, memory) if tried and not why else _stage(draft, memory, rollout)
    return False


def _pending(draft: Draft, version: int) -> int:
    """Requests under way on replicas of a version."""
    in_flight = draft.o.load.in_flight if draft.o.load else {}
    return sum(in_flight.get(r.id, 0) for r in draft.replicas if r.version == version)


def _refused(draft: Draft, tried: Sequence[Replica]) -> str:
    """Why replicas that are well may not count as the latest version: they do not answer its probe."""
    if not tried:
        return ""
    ends_at = trial_ends_at(replace(draft.o, memory=draft.memory), tried)
    draft.wake.append(ends_at)
    if draft.o.now < ends_at:
        return ""
    answers = [answer.detail for r in tried if (answer := draft.o.trials.get(r.id)) is not None]
    return f"its readiness probe fails on replicas that are ready: {answers[0] if answers else 'no answer'}"


def _on_trial(draft: Draft, memory: RolloutMemory) -> Stage:
    """While old replicas are asked the new version's probe, nothing is launched and nothing goes."""
    alive = [r for r in draft.replicas if r.counts]
    new = sum(r.version == memory.version for r in alive)
    return Stage(memory.good, len(alive) - new, new)


def _fault(draft: Draft, memory: RolloutMemory, rollout: Rollout) -> str:
    """What is wrong with the version; empty while nothing is known to be."""
    entry = next((one for one in draft.memory.failures if one.version == memory.version), None)
    if entry is not None:
        gave_up = backoff.judge(draft.memory.failures, memory.version, draft.target).gave_up
        if gave_up or entry.consecutive >= rollout.failure_budget:
            never = "" if entry.ever_ready else ", and none was ever ready"
            what = "replica failed" if entry.consecutive == 1 else "replicas failed in a row"
            return f"{entry.consecutive} {what}{never}: {entry.detail}"
    return gate.complaint(memory.gate, rollout)


def _roll_back(draft: Draft, memory: RolloutMemory, good: int, why: str) -> None:
    """Aim for the good version again. Offerings for it come with the next look, which is at once."""
    o = draft.o
    rejected = (
        *(one for one in memory.rejected if one.version != memory.version),
        Rejected(memory.version, o.now, why),
    )
    back = RolloutMemory(good, good, o.now, proven=True, rejected=rejected[-VERSIONS_KEPT:], served=memory.served)
    draft.memory = replace(draft.memory, rollout=_with_last_words(back, draft.replicas))
    text = f"version {memory.version} is rolled back to version {good}: {why}"
    draft.notes.append(Note(None, Reason(ReasonCode.ROLLED_BACK, text, _facts(memory))))
    draft.o = towards(replace(o, memory=draft.memory), good)
    draft.target = draft.floor
    draft.stage = Stage()
    draft.wake.append(o.now)


# ---- proven, step by step


def _proved(draft: Draft, memory: RolloutMemory, rollout: Rollout, *, seen_at_once: bool) -> RolloutMemory:
    """The memory one step further, where the version has earned it."""
    o, now = draft.o, draft.o.now
    ready = sum(r.counts and r.status is ReplicaStatus.READY and r.version == memory.version for r in draft.replicas)
    needed = max(1, draft.target) if o.update_mode is UpdateMode.BLUE_GREEN else 1
    if ready < needed:
        return memory
    if memory.step_at is None:
        memory = replace(memory, step_at=now, step_answers=memory.gate.new.answers)
    canary = o.update_mode is UpdateMode.CANARY and memory.step < len(rollout.canary_steps)
    calm = seen_at_once and _is_quiet(o.load)
    if not _has_passed(memory, rollout, now, canary=canary, calm=calm):
        draft.wake.append(min(now + LOOK_S, _step_end(memory, rollout, now)))
        text = f"version {memory.version} has to prove itself before it takes over from version {memory.good}"
        draft.waiting.append(Reason(ReasonCode.GATE_WAITING, text, _facts(memory)))
        return memory
    if canary:  # without requests there is nothing to learn from further steps
        step = len(rollout.canary_steps) if calm else memory.step + 1
        memory = replace(memory, step=step, step_at=now, step_answers=memory.gate.new.answers)
    if memory.step >= len(rollout.canary_steps) or not canary:
        memory = replace(memory, proven=True)
    draft.notes.append(Note(None, Reason(ReasonCode.PROMOTED, _promoted_text(memory, rollout), _facts(memory))))
    return memory


def _promoted_text(memory: RolloutMemory, rollout: Rollout) -> str:
    if not memory.proven:
        return f"version {memory.version} gets up to {rollout.canary_steps[memory.step]:.0%} of the requests"
    return f"version {memory.version} has proved itself, and takes over from version {memory.good}"


def _has_passed(memory: RolloutMemory, rollout: Rollout, now: float, *, canary: bool, calm: bool) -> bool:
    """Whether the version has been at it for long enough. `calm`: there are no requests to prove itself by."""
    waited_s = now - (memory.step_at or now)
    if canary and waited_s < rollout.step_seconds:
        return False
    if calm:
        return True
    sound = gate.strongest(memory.gate, rollout) < gate.DOUBT
    if sound and memory.gate.new.answers - memory.step_answers >= ENOUGH:
        return True
    return waited_s >= rollout.step_seconds * (PATIENCE if canary or not sound else 1.0)


def _step_end(memory: RolloutMemory, rollout: Rollout, now: float) -> float:
    begun_at = now if memory.step_at is None else memory.step_at
    return next((at for n in (1.0, PATIENCE) if (at := begun_at + n * rollout.step_seconds) > now), now + LOOK_S)


def _is_quiet(load: LoadReport | None) -> bool:
    """Whether the door says that there are no requests, or says nothing of versions."""
    if load is None:
        return False
    return not load.versions or not (load.arrivals_per_s or load.held or any(load.in_flight.values()))


def _stage(draft: Draft, memory: RolloutMemory, rollout: Rollout) -> Stage:
    if memory.proven or memory.good is None:
        return Stage()
    mode, floor = draft.o.update_mode, draft.floor
    if mode is UpdateMode.ROLLING:
        floor -= rollout.unavailable(floor)
    if memory.stopped:
        alive = sum(r.status in ALIVE and r.version == memory.version for r in draft.replicas)
        most = min(alive, rollout.surge(draft.target)) if mode is not UpdateMode.BLUE_GREEN else alive
        return Stage(memory.good, draft.floor, most, _share(memory, rollout, mode))
    if mode is not UpdateMode.CANARY:
        return Stage(memory.good, floor)
    share = _share(memory, rollout, mode)
    most = min(rollout.surge(draft.target), max(1, math.ceil((share or 1.0) * draft.target - 1e-9)))
    return Stage(memory.good, floor, most, share)


def _share(memory: RolloutMemory, rollout: Rollout, mode: UpdateMode) -> float | None:
    if mode is not UpdateMode.CANARY or memory.step >= len(rollout.canary_steps):
        return None
    return rollout.canary_steps[memory.step]


def _facts(memory: RolloutMemory) -> Facts:
    old, new = memory.gate.old, memory.gate.new
    return {
        "version": memory.version,
        "good": memory.good or 0,
        "answers": new.answers,
        "errors": new.errors,
        "good_answers": old.answers,
        "good_errors": old.errors,
    }
