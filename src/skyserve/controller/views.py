"""Stored state -> what the control API shows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from skyserve.decide.progress import carrier
from skyserve.decide.status import service_status
from skyserve.model.decision import Action, Decision, Launch, Reason, Terminate
from skyserve.model.evidence import LoadReport
from skyserve.model.offering import CapacityType, Offering
from skyserve.model.replica import Replica, ReplicaStatus
from skyserve.model.service import ServiceSpec, UpdateMode
from skyserve.model.view import DecisionView, ProviderView, RejectedView, ReplicaView, RolloutView, ServiceView
from skyserve.spec.describe import choice_text, policy_text
from skyserve.store.base import ServiceState


def service_view(state: ServiceState, *, host: str, now: float, load: LoadReport | None, trouble: str) -> ServiceView:
    """One service with its replicas, as people see it."""
    aim = state.memory.rollout.aim(state.latest_version)
    latest = state.specs[carrier(state.latest_version, state.memory)]
    ready = [r for r in state.replicas if r.status is ReplicaStatus.READY]
    status = service_status(
        state.replicas,
        state.memory,
        wanted=state.wanted,
        latest_version=aim,
        target=state.target,
    )
    in_flight = load.in_flight if load else None
    return ServiceView(
        name=state.name,
        status=status.value,
        versions=tuple(sorted({r.version for r in ready})),
        latest_version=state.latest_version,
        uptime_s=None if state.first_ready_at is None else now - state.first_ready_at,
        ready=len(ready),
        total=sum(r.status is not ReplicaStatus.FAILED for r in state.replicas),
        target=state.target,
        endpoint=f"{'https' if latest.tls else 'http'}://{host}:{state.port}",
        policy=policy_text(latest.replica_policy),
        load_balancing_policy=latest.load_balancing_policy,
        requested_resources=choice_text(latest.resources),
        created_at=state.created_at,
        note=trouble or state.note,
        kind=latest.kind.value,
        replicas=tuple(_replica_view(state, r, in_flight) for r in sorted(state.replicas, key=lambda r: r.id)),
        rollout=_rollout_view(state),
        rejected=tuple(RejectedView(r.version, r.at, r.why, r.detail) for r in state.memory.rollout.rejected),
    )


def _rollout_view(state: ServiceState) -> RolloutView | None:
    """How far the latest version has come; None when nothing is under way."""
    memory, mode = state.memory.rollout, state.update_mode
    good, spec = memory.good, state.specs.get(memory.version)
    if good is None or spec is None or memory.version != state.latest_version or good == memory.version:
        return None
    old, new, steps = memory.gate.old, memory.gate.new, spec.rollout.canary_steps
    going = "starting" if memory.step_at is None else "proving"
    in_step = mode is UpdateMode.CANARY and not memory.proven and memory.step < len(steps)
    return RolloutView(
        version=memory.version,
        good=good,
        mode=mode.value,
        state="stopped" if memory.stopped else "taking over" if memory.proven else going,
        step=memory.step + 1 if in_step else 0,
        steps=len(steps) if in_step else 0,
        share=steps[memory.step] if in_step else None,
        answers=new.answers,
        errors=new.errors,
        good_answers=old.answers,
        good_errors=old.errors,
        why=memory.stopped,
    )


def _replica_view(state: ServiceState, replica: Replica, in_flight: Mapping[int, int] | None) -> ReplicaView:
    offering = replica.offering
    scheme = "https" if state.specs[replica.version].replica_tls else "http"
    return ReplicaView(
        service_name=state.name,
        id=replica.id,
        version=replica.version,
        status=replica.display_status,
        endpoint=f"{scheme}://{replica.endpoint}" if replica.endpoint else None,
        launched_at=replica.created_at,
        infra=str(offering.location) if offering else "-",
        resources=_offering_text(offering) if offering else "-",
        detail=replica.detail,
        ready_since_at=replica.ready_since_at,
        in_flight=None if in_flight is None else in_flight.get(replica.id, 0),
    )


def _offering_text(offering: Offering) -> str:
    accelerator = f", {offering.accelerator}" if offering.accelerator else ""
    spot = ", [Spot]" if offering.capacity_type.value == "SPOT" else ""
    return f"1x[{offering.instance_type}{accelerator}{spot}]"


def provider_views(spec: ServiceSpec, offerings: Sequence[Offering]) -> list[ProviderView]:
    """The plan table: what could be had, the first one chosen. What only stands in for spot is not part of it."""
    shown = [o for o in offerings if not spec.on_spot or o.capacity_type is CapacityType.SPOT]
    return [
        ProviderView(
            provider=o.provider,
            instance_type=o.instance_type,
            infra=str(o.location),
            vcpus=o.vcpus,
            memory_gib=o.memory_gib,
            accelerator=o.accelerator,
            price_per_hour=o.price_per_hour,
            capacity_type=o.capacity_type.value,
            chosen=position == 0,
        )
        for position, o in enumerate(shown)
    ]


def decision_views(decisions: Sequence[Decision], replica_id: int | None) -> Iterator[DecisionView]:
    """The decision log as lines, of one replica or of all."""
    for decision in decisions:
        for view in _lines(decision):
            if replica_id is None or view.replica_id == replica_id:
                yield view


def _lines(decision: Decision) -> Iterator[DecisionView]:
    placed = {r.id: r for r in decision.plan.replicas} | {r.id: r for r in decision.observation.replicas}
    for note in decision.plan.notes:
        verb = "STATUS" if note.replica_id is not None else "SERVICE"
        yield _line(decision, verb, note.replica_id, _subject(placed.get(note.replica_id or 0)), note.because)
    for action in decision.plan.actions:
        yield _action_line(decision, action, placed)


def _action_line(decision: Decision, action: Action, placed: dict[int, Replica]) -> DecisionView:
    if isinstance(action, Launch):
        return _line(decision, "LAUNCH", action.replica.id, _subject(action.replica), action.because)
    if isinstance(action, Terminate):
        subject = _subject(placed.get(action.replica_id or 0)) or action.instance_id
        return _line(decision, "TERMINATE", action.replica_id, subject, action.because)
    return _line(decision, "DRAIN", action.replica_id, _subject(placed.get(action.replica_id)), action.because)


def _line(decision: Decision, verb: str, replica_id: int | None, subject: str, because: Reason) -> DecisionView:
    return DecisionView(
        seq=decision.seq,
        at=decision.at,
        verb=verb,
        replica_id=replica_id,
        subject=subject,
        code=because.code.value,
        text=because.text,
        facts=because.facts,
        rejected=because.rejected,
    )


def _subject(replica: Replica | None) -> str:
    """Where a replica is, and on what."""
    if replica is None or replica.offering is None:
        return ""
    offering = replica.offering
    accelerator = f" {offering.accelerator}" if offering.accelerator else ""
    price = f" ${offering.price_per_hour:.2f}/h" if offering.price_per_hour else ""
    return f"{offering.location} {offering.instance_type}{accelerator}{price}"
