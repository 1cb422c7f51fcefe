"""One replica and what was seen of it -> its next status. Knows nothing of other replicas or of targets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from skyserve.model.decision import Note, Observation, Reason, ReasonCode
from skyserve.model.evidence import Instance, InstanceState, Listing, Outcome, OutcomeKind, ProbeResult
from skyserve.model.replica import ALIVE, TRANSITIONS, Failure, Replica, ReplicaStatus
from skyserve.model.service import Kind, ReadinessProbe

LAUNCH_GRACE_S = 60.0
"""How long an accepted launch may be missing from its provider's listing before it counts as lost."""
UNCLEAR_LAUNCH_RETRY_S = 2.0
"""Pause before a launch that got no clear answer is asked for again, with the same token."""
UNCLEAR_LAUNCH_PATIENCE_S = 60.0
"""How long it is asked for again before another offering is tried. Should it turn up after all, it is an orphan."""
BOOT_PATIENCE_S = 1800.0
"""How long a machine may take from its acceptance to the start of setup: bare metal with many GPUs takes a while, but
one that never comes up costs money."""
STILL_STOPPING = "its machine is being stopped"
"""Detail of a stopped replica until its provider says that the machine has come to a halt."""
CLEANUP_PATIENCE_S = 600.0
"""How long an instance may take to disappear once its end was ordered, before people are told."""

_S = ReplicaStatus


@dataclass(frozen=True, slots=True)
class Evidence:
    """What was seen of one replica. `listed_at` is None while its provider is silent; `in_flight` says whether its
    launch is still under way; `drained` that no request is left on it; `probed` that its readiness is asked for: the
    machine of a cluster is ready when it runs; `halted` that its machine is to be stopped; `changing` that something
    was asked of its machine which the listing may not show yet."""

    listed_at: float | None
    instance: Instance | None
    probe: ProbeResult | None
    outcome: Outcome | None
    in_flight: bool
    drained: bool
    readiness: ReadinessProbe
    probed: bool = True
    halted: bool = False
    changing: bool = False


class Sight:
    """An observation, sorted by what concerns which replica: there may be thousands of them."""

    def __init__(self, o: Observation) -> None:
        self._o = o
        self._outcomes = {outcome.key: outcome for outcome in reversed(o.outcomes)}
        self._in_flight = frozenset(o.in_flight)
        self._instances: dict[str, dict[str, list[Instance]]] = {}
        for provider, listing in o.providers.items():
            by_token = self._instances[provider] = {}
            for instance in listing.instances if isinstance(listing, Listing) else ():
                by_token.setdefault(instance.token, []).append(instance)

    def of(self, replica: Replica) -> Evidence:
        """Pick out what concerns one replica."""
        o, spec = self._o, self._o.specs[replica.version]
        listing = o.providers.get(replica.offering.provider) if replica.offering else None
        return Evidence(
            listed_at=listing.at if isinstance(listing, Listing) else None,
            instance=self._own(replica),
            probe=o.probes.get(replica.id),
            outcome=self._outcomes.get(replica.token),
            in_flight=replica.token in self._in_flight,
            drained=self._is_drained(replica),
            readiness=spec.readiness_probe,
            probed=spec.kind is Kind.SERVICE,
            halted=o.halted,
            changing=replica.instance_id in self._in_flight,
        )

    def _own(self, replica: Replica) -> Instance | None:
        """The instance that stands for a replica: the one that it is known by, should its token be there twice."""
        by_token = self._instances.get(replica.offering.provider) if replica.offering else None
        of_token = by_token.get(replica.token) if by_token else None
        if not of_token:
            return None
        return next((i for i in of_token if i.id == replica.instance_id), of_token[0])

    def _is_drained(self, replica: Replica) -> bool:
        load = self._o.load
        if load is None or replica.drain_revision is None:
            return False
        return load.table > replica.drain_revision and not load.in_flight.get(replica.id)


def advance(replica: Replica, seen: Evidence, now: float) -> tuple[Replica | None, tuple[Note, ...]]:
    """The replica as the evidence makes it (None: it is gone), and a note for each status it went through."""
    notes: list[Note] = []
    current = replica
    while True:
        after = _STEPS[current.status](current, seen, now)
        if after is None:
            return None, tuple(notes)
        if seen.instance and after.reclaim_at != seen.instance.reclaim_at and after.status in ALIVE:
            after = replace(after, reclaim_at=seen.instance.reclaim_at)
        if after.status is current.status:
            return after, tuple(notes)
        if after.status not in TRANSITIONS[current.status]:
            raise ValueError(f"replica {replica.id}: {current.status.value} may not become {after.status.value}")
        notes.append(_changed(current, after))
        current = after


def move(replica: Replica, status: ReplicaStatus, now: float, detail: str = "") -> Replica:
    """The replica in another status since now."""
    return replace(replica, status=status, status_since_at=now, detail=detail)


def fail(replica: Replica, failure: Failure, now: float, detail: str) -> Replica:
    """The replica as failed; whatever runs of it is cleaned up from here on."""
    return replace(move(replica, _S.FAILED, now, detail), failure=failure, cleaned=replica.offering is None)


def _changed(before: Replica, after: Replica) -> Note:
    text = f"{before.status.value} -> {after.display_status}"
    facts: dict[str, float | int | str] = {"after_s": round(after.status_since_at - before.status_since_at, 3)}
    if after.detail:
        text += f": {after.first_line}"
    return Note(before.id, Reason(ReasonCode.STATUS_CHANGED, text, facts))


def _pending(replica: Replica, seen: Evidence, now: float) -> Replica:
    if seen.instance is not None:
        return replace(
            move(replica, _S.PROVISIONING, now), instance_id=seen.instance.id, accepted_at=now, retry_at=None
        )
    if seen.outcome is None:
        return replica
    outcome = seen.outcome
    if outcome.kind is OutcomeKind.ACCEPTED:
        accepted = move(replica, _S.PROVISIONING, now)
        return replace(accepted, instance_id=outcome.instance_id, accepted_at=outcome.at, retry_at=None)
    if outcome.kind is OutcomeKind.REJECTED:
        return fail(replica, Failure.LAUNCH, now, outcome.detail)
    asked_at = replica.status_since_at if replica.asked_at is None else replica.asked_at
    if outcome.kind is OutcomeKind.UNAVAILABLE and now - asked_at < UNCLEAR_LAUNCH_PATIENCE_S:
        return replace(replica, retry_at=now + UNCLEAR_LAUNCH_RETRY_S, detail=outcome.detail)
    return replace(replica, offering=None, attempt=replica.attempt + 1, retry_at=None, detail=outcome.detail)


def _provisioning(replica: Replica, seen: Evidence, now: float) -> Replica:
    if seen.instance is None:
        accepted_at = replica.accepted_at or replica.status_since_at
        if seen.listed_at is not None and seen.listed_at > accepted_at + LAUNCH_GRACE_S:
            return fail(replica, Failure.LOST, now, "the provider accepted the launch but no longer knows the instance")
        return replica
    ended = _ended(replica, seen.instance, now)
    if ended is not None:
        return ended
    replica = _known_by(replica, seen.instance)
    if seen.instance.state in (InstanceState.SETUP, InstanceState.RUNNING):
        return replace(move(replica, _S.STARTING, now), setup_started_at=seen.instance.setup_started_at)
    if now >= boot_deadline(replica):
        text = f"the machine did not come up within {BOOT_PATIENCE_S:g}s; {seen.instance.detail or 'no more is known'}"
        return fail(replica, Failure.LAUNCH, now, text)
    return replica


def boot_deadline(replica: Replica) -> float:
    """When the machine of a replica that is being provisioned must have begun its setup, Unix seconds."""
    return (replica.accepted_at or replica.status_since_at) + BOOT_PATIENCE_S


def _starting(replica: Replica, seen: Evidence, now: float) -> Replica:
    gone = _gone(replica, seen, now)
    if gone is not None:
        return gone
    address = seen.instance.address if seen.instance else None
    if address and address != replica.endpoint:
        replica = replace(replica, endpoint=address)
    if _has_come_up(replica, seen):
        ready = move(replica, _S.READY, now)
        return replace(ready, first_ready_at=replica.first_ready_at or now, ready_since_at=now)
    if seen.probed and now >= initial_deadline(replica, seen.readiness):
        last = f" (last probe: {seen.probe.detail})" if seen.probe else ""
        waited = f"{seen.readiness.initial_delay_seconds:g}s"
        return fail(replica, Failure.INITIAL_DELAY, now, f"not ready {waited} after the start of setup{last}")
    return replica


def _has_come_up(replica: Replica, seen: Evidence) -> bool:
    if not seen.probed:
        return seen.instance is not None and seen.instance.state is InstanceState.RUNNING
    probe = seen.probe
    return probe is not None and probe.ok and probe.at >= replica.status_since_at and replica.endpoint is not None


def initial_deadline(replica: Replica, probe: ReadinessProbe) -> float:
    """When a starting replica must have been ready, Unix seconds; counted from the start of its setup."""
    return (replica.setup_started_at or replica.status_since_at) + probe.initial_delay_seconds


def _ready(replica: Replica, seen: Evidence, now: float) -> Replica:
    gone = _gone(replica, seen, now)
    if gone is not None:
        return gone
    if seen.probe is not None and not seen.probe.ok and seen.probe.at > replica.status_since_at:
        return replace(move(replica, _S.NOT_READY, now, seen.probe.detail), ready_since_at=None)
    return replica


def _not_ready(replica: Replica, seen: Evidence, now: float) -> Replica:
    gone = _gone(replica, seen, now)
    if gone is not None:
        return gone
    if seen.probe is not None and seen.probe.ok and seen.probe.at > replica.status_since_at:
        return replace(move(replica, _S.READY, now), ready_since_at=now)
    if now >= probing_deadline(replica, seen.readiness):
        waited = f"{seen.readiness.consecutive_failure_threshold_timeout:g}s"
        return fail(replica, Failure.PROBING, now, f"readiness probe failed for {waited}: {replica.detail}")
    return replica


def probing_deadline(replica: Replica, probe: ReadinessProbe) -> float:
    """When a replica that is not ready any more must be back, Unix seconds."""
    return replica.status_since_at + probe.consecutive_failure_threshold_timeout


def _stopped(replica: Replica, seen: Evidence, now: float) -> Replica:
    state = seen.instance.state if seen.instance else None
    if seen.changing or state is InstanceState.STOPPING:
        return replica
    if state is InstanceState.STOPPED:
        return replace(replica, detail="")
    gone = _gone(replica, seen, now)
    if gone is not None:
        return gone
    if state is not None and not seen.halted:
        return replace(move(replica, _S.STARTING, now), endpoint=None)
    return replica


def _draining(replica: Replica, seen: Evidence, now: float) -> Replica:
    if _gone(replica, seen, now) is not None:
        return move(replica, _S.SHUTTING_DOWN, now, f"{replica.detail}; it ended while draining")
    if seen.drained:
        return move(replica, _S.SHUTTING_DOWN, now, f"{replica.detail}; no request is left on it")
    if replica.drain_until_at is not None and now >= replica.drain_until_at:
        return move(replica, _S.SHUTTING_DOWN, now, f"{replica.detail}; the drain deadline is reached")
    return replica


def _shutting_down(replica: Replica, seen: Evidence, now: float) -> Replica | None:
    if seen.instance is None:
        return replica if _may_still_exist(replica, seen) else None
    waited_s = now - replica.status_since_at
    if waited_s > CLEANUP_PATIENCE_S:
        text = f"instance {seen.instance.id} is still there {waited_s:.0f}s after its end was ordered"
        return fail(replica, Failure.CLEANUP, now, text)
    return _known_by(replica, seen.instance)


def _known_by(replica: Replica, instance: Instance) -> Replica:
    return replica if replica.instance_id == instance.id else replace(replica, instance_id=instance.id)


def _failed(replica: Replica, seen: Evidence, now: float) -> Replica:
    if seen.instance is not None and not replica.cleaned:
        last_words = _last_words(replica, seen.instance)
        return replica if last_words == replica.detail else replace(replica, detail=last_words)
    if replica.cleaned or _may_still_exist(replica, seen):
        return replica
    return replace(replica, cleaned=True, endpoint=None)


def _may_still_exist(replica: Replica, seen: Evidence) -> bool:
    """Absence counts only in an answer to a question that was asked after we decided to end it."""
    if replica.offering is None:
        return False
    if seen.in_flight or seen.listed_at is None:
        return True
    return seen.listed_at <= replica.status_since_at


def _gone(replica: Replica, seen: Evidence, now: float) -> Replica | None:
    """The replica as failed when its instance ended or vanished; None while it lives or its provider is silent."""
    if seen.instance is not None:
        return _ended(replica, seen.instance, now)
    if seen.listed_at is not None and seen.listed_at > replica.status_since_at:
        return fail(replica, Failure.LOST, now, "the provider no longer knows the instance")
    return None


def _ended(replica: Replica, instance: Instance, now: float) -> Replica | None:
    if instance.state is InstanceState.PREEMPTED:
        return fail(replica, Failure.PREEMPTED, now, instance.detail or "the provider took the machine back")
    if instance.state is InstanceState.STOPPED:
        return fail(replica, Failure.LOST, now, instance.detail or "the machine was stopped, and not by us")
    if instance.state in (InstanceState.EXITED, InstanceState.STOPPING):
        return fail(replica, Failure.APP_EXIT, now, _exit_text(instance))
    return None


def _exit_text(instance: Instance) -> str:
    code = "" if instance.exit_code is None else f" with exit code {instance.exit_code}"
    logs = f"\n{instance.detail}" if instance.detail else ""
    return f"{instance.failed_phase or 'run'} ended{code}{logs}"


def _last_words(replica: Replica, instance: Instance) -> str:
    """Exit code and last log lines of an application may come only after its end, when its children have ended too."""
    told = replica.failure is Failure.APP_EXIT and instance.state is InstanceState.EXITED
    return _exit_text(instance) if told else replica.detail


_STEPS: dict[ReplicaStatus, Callable[[Replica, Evidence, float], Replica | None]] = {
    _S.PENDING: _pending,
    _S.PROVISIONING: _provisioning,
    _S.STARTING: _starting,
    _S.READY: _ready,
    _S.NOT_READY: _not_ready,
    _S.STOPPED: _stopped,
    _S.DRAINING: _draining,
    _S.SHUTTING_DOWN: _shutting_down,
    _S.FAILED: _failed,
}
