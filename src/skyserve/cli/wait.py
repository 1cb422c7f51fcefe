"""Waiting until a service is as it should be, and showing how it gets there.

The judgements are pure functions of a view; the loop around them polls the control API. Ending the wait, in whatever
way, changes nothing about the service.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum

from skyserve.cli import tables, wording
from skyserve.cli.client import ControlClient
from skyserve.cli.render import ProgressRow
from skyserve.cli.session import Session
from skyserve.errors import ControllerUnavailable, ServiceNotFound, ServiceNotReady
from skyserve.model.replica import COMING, ReplicaStatus
from skyserve.model.service import ServiceStatus
from skyserve.model.view import RejectedView, ReplicaView, ServiceView

_POLL_S = 0.5
_COMING = frozenset(status.value for status in COMING)
_READY = ReplicaStatus.READY.value


class Verdict(Enum):
    """What a look at a service says about the wait for it."""

    WAIT = "WAIT"
    DONE = "DONE"
    SETTLED = "SETTLED"
    """Good enough, if nothing moves for a while."""
    STUCK = "STUCK"
    """Failed, if nothing moves for a while."""
    FAILED = "FAILED"
    GONE_BACK = "GONE_BACK"
    """Failed, and all that there is to be said is said."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """A verdict, and why where it is a bad one."""

    verdict: Verdict
    why: str = ""


Judge = Callable[[ServiceView], Judgement]
_PATIENCE_S = {
    Verdict.DONE: 0.0,
    Verdict.FAILED: 0.0,
    Verdict.SETTLED: 5.0,
    Verdict.STUCK: 30.0,
    Verdict.GONE_BACK: 1.0,
}


def all_ready(at_least: int) -> Judge:
    """A judge for a new service: done when as many replicas are ready as are wanted, and no fewer than `at_least`.

    The lower bound counts because a service that was just created has not decided on a target yet.
    """

    def judge(view: ServiceView) -> Judgement:
        return _ended(view) or _count(view.replicas, max(at_least, view.target))

    return judge


def machine_up(view: ServiceView) -> Judgement:
    """A judge for a cluster: done when its machine runs; it failed when that is gone, as nothing takes its place."""
    if any(replica.status == _READY for replica in view.replicas):
        return Judgement(Verdict.DONE)
    if any(tables.has_failed(replica) for replica in view.replicas):
        return Judgement(Verdict.FAILED, "failed")
    return Judgement(Verdict.WAIT)


def machine_stopped(view: ServiceView) -> Judgement:
    """A judge for a cluster that is to stop: done when its provider says so. One that is gone cannot be stopped."""
    if any(tables.has_failed(replica) for replica in view.replicas):
        return Judgement(Verdict.FAILED, "failed")
    stopped = all(r.status == ReplicaStatus.STOPPED.value and not r.detail for r in view.replicas)
    return Judgement(Verdict.DONE if stopped else Verdict.WAIT)


def version_ready(version: int, at_least: int) -> Judge:
    """A judge for an update: done when the new version has all its replicas and the older ones are gone."""

    def judge(view: ServiceView) -> Judgement:
        rejected = next((one for one in view.rejected if one.version == version), None)
        if rejected is not None:
            return _rolled_back(view, rejected)
        if view.latest_version > version:
            return Judgement(Verdict.FAILED, f"was updated again meanwhile, to version {view.latest_version}")
        if ended := _ended(view):
            return ended
        new = [replica for replica in view.replicas if replica.version == version]
        older = any(replica.version < version and not tables.has_failed(replica) for replica in view.replicas)
        if any(tables.has_failed(replica) for replica in new) and not any(_may_serve(replica) for replica in new):
            return Judgement(Verdict.STUCK, f"does not get version {version} ready; older replicas serve on")
        return Judgement(Verdict.WAIT) if older else _count(new, max(at_least, view.target))

    return judge


def _rolled_back(view: ServiceView, rejected: RejectedView) -> Judgement:
    """A version that the service no longer aims for. What its replicas wrote last may still be on its way."""
    if view.rollout is None and any(r.version == rejected.version and _moves(r) for r in view.replicas):
        return Judgement(Verdict.WAIT)
    lines = "\n".join(f"  {line}" for line in wording.last_lines(rejected.detail, tables.DETAIL_LINES))
    what = f"goes back: version {rejected.version} was rolled back: {rejected.why}"
    return Judgement(Verdict.GONE_BACK, f"{what}\n{lines}" if lines else what)


def _ended(view: ServiceView) -> Judgement | None:
    if view.status == ServiceStatus.FAILED.value:
        return Judgement(Verdict.FAILED, "failed")
    if view.status == ServiceStatus.SHUTTING_DOWN.value:
        return Judgement(Verdict.FAILED, "was taken down meanwhile")
    return None


def _count(replicas: Sequence[ReplicaView], wanted: int) -> Judgement:
    ready = _ready_count(replicas)
    if wanted and ready >= wanted:
        return Judgement(Verdict.DONE)
    quiet = not any(_moves(replica) for replica in replicas)
    return Judgement(Verdict.SETTLED if quiet and (ready or not wanted) else Verdict.WAIT)


def until(session: Session, name: str, judge: Judge, *, timeout_s: float | None = None) -> ServiceView:
    """Poll a service until `judge` is satisfied; the view that satisfied it.

    Raises ServiceNotReady when the service fails, is taken away, or takes longer than `timeout_s`.
    """
    client = session.controller()
    begun_at = same_since = session.now()
    before = Judgement(Verdict.WAIT)
    with session.screen.progress() as progress:
        while True:
            client, view = _look(session, client, name)
            now = session.now()
            progress.show(rows(view, now))
            judgement = judge(view)
            if judgement != before:
                before, same_since = judgement, now
            if now - same_since >= _PATIENCE_S.get(judgement.verdict, math.inf):
                break
            if timeout_s is not None and now - begun_at >= timeout_s:
                raise _late(view, timeout_s)
            session.sleep(_POLL_S)
    if judgement.verdict is Verdict.GONE_BACK:
        raise ServiceNotReady(f"service '{name}' {judgement.why}", hint=_inspect(view, ()))
    if judgement.verdict in (Verdict.FAILED, Verdict.STUCK):
        raise _failed(view, judgement.why)
    return view


def rows(view: ServiceView, now: float, *, name_replicas: bool = False) -> list[ProgressRow]:
    """How far a service is: one line for it and one for each replica; `name_replicas` where several are shown."""
    prefix = f"{view.name} " if name_replicas else ""
    leaving = view.status == ServiceStatus.SHUTTING_DOWN.value
    ready = "" if leaving else f"{_ready_count(view.replicas)} of {view.target} ready"
    told = "  ".join(part for part in (ready, tables.rollout_line(view) or tables.remark(view)) if part)
    lines = [ProgressRow(f"'{view.name}'", view.status, told)]
    for replica in view.replicas:
        why = wording.last_lines(replica.detail, 1) if replica.status == ReplicaStatus.PENDING.value else []
        where = "  ".join(part for part in (replica.infra, replica.resources, *why) if part not in ("", "-"))
        lines.append(
            ProgressRow(f"{prefix}replica {replica.id}", replica.status, where, max(0.0, now - replica.launched_at))
        )
    return lines


def _look(session: Session, client: ControlClient, name: str) -> tuple[ControlClient, ServiceView]:
    try:
        return client, client.service(name)
    except ControllerUnavailable:
        client = session.controller()  # it may have been restarted on another port
        return client, client.service(name)
    except ServiceNotFound as error:
        raise ServiceNotReady(f"service '{name}' was taken down meanwhile", hint="sky serve status") from error


def _ready_count(replicas: Sequence[ReplicaView]) -> int:
    return sum(replica.status == _READY for replica in replicas)


def _may_serve(replica: ReplicaView) -> bool:
    return replica.status == _READY or _moves(replica)


def _moves(replica: ReplicaView) -> bool:
    waits = replica.status == ReplicaStatus.PENDING.value and bool(replica.detail)
    return replica.status in _COMING and not waits


def _failed(view: ServiceView, what: str) -> ServiceNotReady:
    broken = [replica for replica in view.replicas if tables.has_failed(replica)]
    lines = [line for told in tables.troubles(broken[-1:]) for line in told]
    note = f": {remark}" if (remark := tables.remark(view)) else ""
    return ServiceNotReady("\n".join([f"{view.kind} '{view.name}' {what}{note}", *lines]), hint=_inspect(view, broken))


def _late(view: ServiceView, timeout_s: float) -> ServiceNotReady:
    note = f" ({remark})" if (remark := tables.remark(view)) else ""
    message = (
        f"{view.kind} '{view.name}' is {view.status}{note} after {timeout_s:g} s, {view.ready} of {view.target} ready"
    )
    return ServiceNotReady(f"{message}. It goes on without this command.", hint=_inspect(view, view.replicas))


def _inspect(view: ServiceView, replicas: Sequence[ReplicaView]) -> str:
    if view.kind == "cluster":
        return f"`sky logs {view.name}` shows the output, `sky down {view.name}` removes the cluster"
    which = f" {replicas[-1].id}" if replicas else ""
    return (
        f"`sky serve logs {view.name}{which}` shows the output, `sky serve why {view.name}` the decisions, "
        f"`sky serve down {view.name}` removes the service"
    )
