"""Target and versions -> how many replicas to launch and which to let go, never serving with fewer than before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from skyserve.decide import capacity
from skyserve.model.decision import Note, Observation, Reason, ReasonCode
from skyserve.model.replica import ALIVE, COMING, LEAVING, Replica, ReplicaStatus
from skyserve.model.rollout import Rollout
from skyserve.model.service import ServiceSpec, UpdateMode

NO_LIMIT = 1_000_000


@dataclass(frozen=True, slots=True)
class Stage:
    """What the rollout of the latest version allows now.

    `keeps` is the version that carries the service until the latest one is proven, with `floor` replicas; None when
    that is proven, or nothing was there before it. `most` replicas of the latest version may be there, and get `share`
    of the requests; None: as each replica takes its part.
    """

    keeps: int | None = None
    floor: int = 0
    most: int = NO_LIMIT
    share: float | None = None


@dataclass(frozen=True, slots=True)
class Split:
    """How many replicas of the latest version to launch, and which to let go because of what. `room` is how many could
    be launched."""

    launch: int
    launch_because: Reason
    remove: tuple[tuple[Replica, Reason], ...]
    room: int = NO_LIMIT


def relabel(o: Observation, replicas: Sequence[Replica]) -> tuple[tuple[Replica, ...], tuple[Note, ...]]:
    """Replicas of older versions that differ in nothing they were launched with count as the latest version, once they
    answer its probe: a probe that asks for the wrong thing must not make all of them unready at once. Those of the good
    version that start while none is there to be asked wait for their own readiness first."""
    tried, latest = on_trial(o.specs, replicas, o.latest_version), o.specs[o.latest_version]
    if not _has_passed(o, tried):
        return tuple(replicas), ()
    known = bool(tried) or any(r.status is ReplicaStatus.READY and r.version == o.latest_version for r in replicas)
    after: list[Replica] = []
    notes: list[Note] = []
    for replica in replicas:
        launched = o.specs.get(replica.launched_version)
        old = replica.version != o.latest_version and replica.status in ALIVE
        takes_part = launched is not None and launched.shares_launch_with(latest)
        doubtful = replica.version == o.memory.rollout.good and not known
        if old and takes_part and (not doubtful or o.specs[replica.version].shares_probe_with(latest)):
            text = f"version {o.latest_version} changes nothing that version {replica.version} was launched with"
            notes.append(Note(replica.id, Reason(ReasonCode.RELABELLED, text)))
            replica = replace(replica, version=o.latest_version)
        after.append(replica)
    return tuple(after), tuple(notes)


def on_trial(specs: Mapping[int, ServiceSpec], replicas: Sequence[Replica], version: int) -> list[Replica]:
    """Ready replicas that may count as a version without being launched again, but would be asked something else
    then."""
    spec, found = specs[version], []
    for replica in replicas:
        now, launched = specs.get(replica.version), specs.get(replica.launched_version)
        if replica.version == version or replica.status is not ReplicaStatus.READY or now is None or launched is None:
            continue
        if launched.shares_launch_with(spec) and not now.shares_probe_with(spec):
            found.append(replica)
    return found


def trial_ends_at(o: Observation, tried: Sequence[Replica]) -> float:
    """When a new probe must have been answered, Unix seconds."""
    memory, probe = o.memory.rollout, o.specs[o.latest_version].readiness_probe
    begun_at = memory.since_at if memory.version == o.latest_version else o.now
    heard = all(replica.id in o.trials for replica in tried)
    return begun_at + 1.0 + 2 * probe.endpoint_probe_interval_seconds + (0.0 if heard else probe.timeout_seconds)


def _has_passed(o: Observation, tried: Sequence[Replica]) -> bool:
    answers = [o.trials.get(replica.id) for replica in tried]
    well = [answer for answer in answers if answer is not None and answer.ok]
    return len(well) == len(tried) or (bool(well) and o.now >= trial_ends_at(o, tried))


def split(o: Observation, replicas: Sequence[Replica], target: int, stage: Stage = Stage()) -> Split:
    """Compare what is alive with the target."""
    alive = [r for r in replicas if r.counts]
    new = [r for r in alive if r.version == o.latest_version]
    old = [r for r in alive if r.version != o.latest_version]
    most = min(target, stage.most)
    surplus = removal_order(o, new)[: max(0, len(new) - most)]
    remove = [(r, _above_target(len(new), most)) for r in surplus]
    remove += replaced(o, old, new, target) if stage.keeps is None else not_kept(o, old, stage)
    beside = len(old) if stage.keeps is None else max(len(old), stage.floor)
    limit = _limit(o, max(target, stage.floor)) - beside - len(new) if beside else NO_LIMIT
    launch = min(max(0, most - len(new)), max(0, limit))
    return Split(launch, why_launch(o, replicas, new, old, target), tuple(remove), max(0, limit))


def surge(target: int, rollout: Rollout | None = None) -> int:
    """Replicas that a rolling update may have above the target; without a word of the user's, a quarter."""
    return (rollout or Rollout()).surge(target)


def _limit(o: Observation, target: int) -> int:
    """How many replicas of all versions may be there during an update."""
    return NO_LIMIT if o.update_mode is UpdateMode.BLUE_GREEN else target + surge(target, _rollout(o))


def _rollout(o: Observation) -> Rollout:
    return o.specs[o.latest_version].rollout


def replaced(
    o: Observation, old: Sequence[Replica], new: Sequence[Replica], target: int
) -> list[tuple[Replica, Reason]]:
    """Replicas of older versions that can go now, and why: the latest version is proven."""
    ready_new = sum(r.status is ReplicaStatus.READY for r in new)
    never_ready = [r for r in old if r.status in COMING]
    proven = [r for r in removal_order(o, old) if r.status not in COMING]
    if o.update_mode is UpdateMode.BLUE_GREEN:
        victims = list(old) if ready_new >= target else never_ready
    else:
        floor = target - _rollout(o).unavailable(target)
        spare = ready_new + sum(r.status is ReplicaStatus.READY for r in old) - floor
        victims = never_ready + _expendable(proven, spare, proved=ready_new > 0 or not target)
    facts: dict[str, float | int | str] = {"ready_new": ready_new, "target": target, "version": o.latest_version}
    text = f"version {o.latest_version} replaces it: {ready_new} of {target} new replicas are ready"
    because = Reason(ReasonCode.OLD_VERSION, text, facts)
    return [(r, _rolled_back(o, r, facts) or because) for r in victims]


def _rolled_back(o: Observation, replica: Replica, facts: Mapping[str, float | int | str]) -> Reason | None:
    rejected = o.memory.rollout.rejection(replica.version)
    if rejected is None:
        return None
    return Reason(ReasonCode.ROLLED_BACK, f"version {replica.version} was rolled back: {rejected.why}", facts)


def not_kept(o: Observation, old: Sequence[Replica], stage: Stage) -> list[tuple[Replica, Reason]]:
    """Replicas of older versions that are not needed to carry the service while the latest one is unproven: those of
    versions that were given up before they were ready, and what is more than the floor."""
    given_up = [r for r in old if r.version != stage.keeps and r.status in COMING]
    rest = [r for r in old if r not in given_up]
    order = sorted(rest, key=lambda r: (capacity.REMOVAL_ORDER.index(r.status), r.version == stage.keeps, -r.id))
    surplus = order[: max(0, len(rest) - stage.floor)]
    text = f"version {o.latest_version} took the place of version {{}} before that was proven"
    because = [(r, Reason(ReasonCode.OLD_VERSION, text.format(r.version))) for r in given_up]
    return because + [(r, _above_target(len(rest), stage.floor)) for r in surplus]


def missing(o: Observation, replicas: Sequence[Replica], target: int, stage: Stage) -> int:
    """How many replicas of the version that carries the service have to be launched to keep the floor."""
    alive = [r for r in replicas if r.counts]
    short = stage.floor - sum(r.version != o.latest_version for r in alive)
    return max(0, min(short, _limit(o, max(target, stage.floor)) - len(alive)))


def _expendable(proven: Sequence[Replica], spare: int, *, proved: bool) -> list[Replica]:
    """Old replicas that can go with the ready ones still at the target. One that is not ready carries nothing now, so
    it makes room as soon as the new version has proved that it can serve."""
    victims: list[Replica] = []
    for replica in proven:
        if replica.status is ReplicaStatus.NOT_READY:
            if proved or spare > 0:
                victims.append(replica)
        elif spare > 0:
            victims.append(replica)
            spare -= 1
    return victims


def removal_order(o: Observation, replicas: Sequence[Replica]) -> list[Replica]:
    """Those that serve least first; among equals the one whose throughput is dearest, then the newest."""
    return capacity.removal_order(replicas, o.specs[o.latest_version], o.memory.autoscale.rates)


def _above_target(alive: int, target: int) -> Reason:
    text = f"{alive} alive, {target} wanted"
    return Reason(ReasonCode.ABOVE_TARGET, text, {"alive": alive, "target": target})


def why_launch(
    o: Observation, replicas: Sequence[Replica], new: Sequence[Replica], old: Sequence[Replica], target: int
) -> Reason:
    """Why more replicas of the latest version are launched, if they are."""
    alive = sum(r.offering is not None for r in new)
    facts: dict[str, float | int | str] = {"target": target, "alive": alive, "version": o.latest_version}
    text = f"{target} wanted, {alive} alive"
    going = ALIVE | LEAVING
    taken = [r for r in replicas if r.reclaim_at and r.status in going and r.version == o.latest_version]
    if taken:
        last = max(taken, key=lambda r: r.id)
        facts["replaces"] = last.id
        text += f"; the machine of replica {last.id} is being taken back"
        return Reason(ReasonCode.REPLACE_INTERRUPTED, text, facts)
    if old:
        facts["old"] = len(old)
        return Reason(ReasonCode.NEW_VERSION, f"{text} of version {o.latest_version}, {len(old)} of older ones", facts)
    failed = [r for r in replicas if r.status is ReplicaStatus.FAILED and r.version == o.latest_version]
    if failed:
        last = max(failed, key=lambda r: r.status_since_at)
        facts["replaces"] = last.id
        text += f"; replica {last.id} {last.display_status}: {last.first_line}"
        return Reason(ReasonCode.REPLACE_FAILED, text, facts)
    return Reason(ReasonCode.BELOW_TARGET, text, facts)


def routed_versions(o: Observation, replicas: Sequence[Replica], target: int) -> frozenset[int]:
    """Versions that get traffic: all of them, or in blue_green the newest that can carry the target.

    While none can, it is the older one that can carry most. One that was rolled back gets none once the others can
    carry the target.
    """
    ready = [r.version for r in replicas if r.status is ReplicaStatus.READY]
    if o.update_mode is not UpdateMode.BLUE_GREEN or not ready:
        every = frozenset(r.version for r in replicas)
        sound = frozenset(version for version in every if o.memory.rollout.rejection(version) is None)
        carry = sum(version in sound for version in ready)
        return sound if carry >= max(1, target) else every
    able = [version for version in ready if ready.count(version) >= max(1, target)]
    if able:
        return frozenset({max(able)})
    older = [version for version in ready if version != o.latest_version]
    return frozenset({max(older, key=lambda v: (ready.count(v), v), default=o.latest_version)})


def shares(o: Observation, replicas: Sequence[Replica], target: int, stage: Stage) -> dict[int, float]:
    """The parts of the requests that versions get, where that is not left to the number of their replicas.

    A canary never gets more than its replicas are of the target, so that none of them carries more than an old one
    would.
    """
    ready = [r.version for r in replicas if r.status is ReplicaStatus.READY]
    new, old = ready.count(o.latest_version), [version for version in ready if version != o.latest_version]
    if stage.share is None or not new or not old:
        return {}
    share = round(min(stage.share, new / max(1, target, stage.floor)), 4)
    rest = {version: round((1.0 - share) * old.count(version) / len(old), 4) for version in sorted(set(old))}
    return {o.latest_version: share, **rest}
