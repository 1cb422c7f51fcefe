"""`decide`: the only entry. Straight through: what became of each replica, how many are wanted, which to launch where,
which to let go, what must be cleaned up, and why nothing more is done."""

from __future__ import annotations

from dataclasses import replace

from skyserve.decide import (
    autoscale,
    backoff,
    capacity,
    health,
    launching,
    lifecycle,
    mixing,
    power,
    progress,
    removal,
    rollout,
    setback,
    starting,
)
from skyserve.decide.draft import Draft
from skyserve.model.decision import Note, Observation, Plan, Reason, ReasonCode
from skyserve.model.evidence import LoadReport, Silent
from skyserve.model.replica import Replica, ReplicaStatus
from skyserve.model.routing import Endpoint
from skyserve.model.service import UpdateMode

NOTHING_EXPECTED_S = 86400.0
"""When a plan asks to be looked at again though nothing is expected to happen: the loop looks more often by itself."""
RECHECK_S = 0.5
"""A service is looked at this often while an instance is expected to disappear, which only a later listing can show."""


def decide(o: Observation) -> Plan:
    """What to do about a service, given what was observed. Pure: the same observation gives the same plan."""
    o = progress.aimed(setback.without_future(o))
    draft = Draft(o, list(o.replicas), o.memory, o.health, o.next_replica_id)
    _advance(draft)
    _learn(draft)
    progress.begin(draft)
    _aim(draft)
    rolled_back = progress.follow(draft)
    removal.on_request(draft)
    removal.on_notice(draft)
    if o.wanted:
        power.follow(draft)
        if not rolled_back:
            _follow_target(draft)
    else:
        removal.take_down(draft)
    removal.clean_up(draft)
    removal.forget_failed(draft)
    _explain_silence(draft)
    return _plan(draft)


def _advance(draft: Draft) -> None:
    """What became of each replica; and those of older versions that may count as the latest."""
    sight, rows = lifecycle.Sight(draft.o), []
    for replica in draft.o.replicas:
        after, changes = lifecycle.advance(replica, sight.of(replica), draft.o.now)
        draft.notes += changes
        if after is None:
            draft.notes.append(Note(replica.id, Reason(ReasonCode.FORGOTTEN, "nothing of it is left")))
            continue
        rows.append(after)
        if replica.offering is not None and after.offering is None:
            facts: dict[str, float | int | str] = {"attempt": replica.attempt}
            refused = Reason(ReasonCode.LAUNCH_REFUSED, f"{replica.offering.pool}: {after.detail}", facts)
            draft.notes.append(Note(replica.id, refused))
    draft.replicas = rows
    if draft.o.wanted:
        relabelled, notes = rollout.relabel(draft.o, rows)
        draft.replicas = list(relabelled)
        draft.notes += notes


def _learn(draft: Draft) -> None:
    o = draft.o
    kept = () if o.memory.rollout.good is None else (o.memory.rollout.good,)
    failures = backoff.remember(o.memory.failures, o.replicas, draft.replicas, o.now, kept)
    starts = starting.learn(o.memory.starts, o.replicas, draft.replicas)
    draft.memory = replace(draft.memory, failures=failures, starts=starts)
    draft.learnt = health.learn(o, o.replicas, draft.replicas)
    draft.health = health.merge(o.health, draft.learnt)


def _aim(draft: Draft) -> None:
    """How many replicas are wanted. Until the latest version is proven, the policy of the one before it says so."""
    o, latest = draft.o, draft.o.latest_version
    governing = progress.carrier(latest, draft.memory)
    aimed = _followed(o, governing)
    draft.floor = draft.target = aimed.count
    if governing != latest and o.wanted:
        policy, old = o.specs[latest].replica_policy, o.specs[governing].replica_policy
        draft.target = progress.count_for(policy, old, aimed.count)
    draft.memory = replace(draft.memory, autoscale=aimed.memory)
    draft.notes += aimed.notes
    draft.waiting += aimed.waiting
    if aimed.wake_at is not None:
        draft.wake.append(aimed.wake_at)


def _followed(o: Observation, governing: int) -> autoscale.Target:
    return autoscale.target(o if governing == o.latest_version else progress.towards(o, governing))


def asks_for_change(o: Observation, load: LoadReport, now: float) -> bool:
    """Whether another load report would change how many replicas are wanted, at `now`, with all else as it was."""
    if not o.wanted:
        return False
    o = progress.aimed(setback.without_future(replace(o, load=load, now=now)))
    followed = _followed(o, progress.carrier(o.latest_version, o.memory))
    return followed.memory.target != o.memory.autoscale.target


def _follow_target(draft: Draft) -> None:
    o, stage = draft.o, draft.stage
    split = rollout.split(o, draft.replicas, draft.target, stage)
    mixed = o.specs[o.latest_version].on_spot and (stage.keeps is None or o.update_mode is UpdateMode.BLUE_GREEN)
    for replica, because in split.remove:
        if not (mixed and replica.version == o.latest_version):  # else the placer says which
            removal.let_go(draft, replica, because)
    if stage.keeps is not None:
        _keep(draft, stage.keeps)
    if mixed:
        mixing.follow(draft, split.launch_because, split.room)
        return
    launching.add_missing(draft, split.launch)
    launching.place_pending(draft, split.launch_because)


def _keep(draft: Draft, version: int) -> None:
    """Launch what the version that carries the service lacks, as if it were the latest one."""
    latest, target = draft.o, draft.target
    short = rollout.missing(latest, draft.replicas, target, draft.stage)
    draft.o, draft.target = progress.towards(latest, version), draft.stage.floor
    new = [r for r in draft.replicas if r.counts and r.version == version]
    because = rollout.why_launch(draft.o, draft.replicas, new, (), draft.target)
    if draft.o.specs[version].on_spot and latest.update_mode is not UpdateMode.BLUE_GREEN:
        mixing.follow(draft, because, short)
    else:
        launching.add_missing(draft, short)
        launching.place_pending(draft, because)
    draft.o, draft.target = latest, target


def _explain_silence(draft: Draft) -> None:
    for name in removal.concerned(draft):
        answer = draft.o.providers.get(name)
        if isinstance(answer, Silent):
            text = f"{name} does not answer, so nothing is concluded about its replicas: {answer.why}"
            facts: dict[str, float | int | str] = {"silent_s": round(draft.o.now - answer.since_at, 1)}
            draft.waiting.append(Reason(ReasonCode.PROVIDER_SILENT, text, facts))


def _plan(draft: Draft) -> Plan:
    now = draft.o.now
    return Plan(
        replicas=tuple(draft.replicas),
        actions=tuple(draft.actions),
        endpoints=_endpoints(draft),
        memory=draft.memory,
        next_replica_id=draft.next_replica_id,
        wake_at=max(now, min([*_deadlines(draft), *draft.wake], default=now + NOTHING_EXPECTED_S)),
        target=max(draft.target, draft.stage.floor),
        notes=tuple(draft.notes),
        waiting=tuple(draft.waiting),
        learnt=draft.learnt,
        finished=removal.is_finished(draft),
        shares=rollout.shares(draft.o, draft.replicas, draft.target, draft.stage),
        ready_at=starting.ready_at(draft.replicas, draft.memory.starts),
        start_s=starting.usual_s(draft.memory.starts),
    )


def _deadlines(draft: Draft) -> list[float]:
    instants: list[float] = []
    for replica in draft.replicas:
        probe = draft.o.specs[replica.version].readiness_probe
        if replica.status is ReplicaStatus.PROVISIONING:
            instants.append(lifecycle.boot_deadline(replica))
        elif replica.status is ReplicaStatus.STARTING:
            instants.append(lifecycle.initial_deadline(replica, probe))
        elif replica.status is ReplicaStatus.NOT_READY:
            instants.append(lifecycle.probing_deadline(replica, probe))
        elif replica.status is ReplicaStatus.DRAINING and replica.drain_until_at is not None:
            instants.append(replica.drain_until_at)
        elif replica.status in (ReplicaStatus.SHUTTING_DOWN, ReplicaStatus.STOPPED) or _is_uncleaned(replica):
            instants.append(draft.o.now + RECHECK_S)
    return instants


def _is_uncleaned(replica: Replica) -> bool:
    return replica.status is ReplicaStatus.FAILED and not replica.cleaned


def _endpoints(draft: Draft) -> tuple[Endpoint, ...]:
    """The routing table's rows. What is no longer routed to is listed as draining: it keeps the requests it has."""
    routed = rollout.routed_versions(draft.o, draft.replicas, draft.target)
    rows: list[Endpoint] = []
    rates = draft.memory.autoscale.rates
    weights = {version: capacity.weights(draft.o.specs[version], rates) for version in routed}
    for replica in draft.replicas:
        if replica.endpoint is None:
            continue
        spec = draft.o.specs[replica.version]
        if replica.status is ReplicaStatus.READY and replica.version in routed:
            weight = weights[replica.version](replica.offering)
            rows.append(Endpoint(replica.id, replica.endpoint, weight, version=replica.version, tls=spec.replica_tls))
        elif replica.status in (ReplicaStatus.READY, ReplicaStatus.NOT_READY, ReplicaStatus.DRAINING):
            leaves = Endpoint(replica.id, replica.endpoint, draining=True, version=replica.version)
            rows.append(replace(leaves, tls=spec.replica_tls))
    return tuple(rows)
