"""Letting go: drain what serves, end what does not, sweep what nobody owns, forget what was kept to be looked at."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import replace

from skyserve.decide import lifecycle
from skyserve.decide.draft import Draft
from skyserve.model.decision import Drain, Note, Reason, ReasonCode, Terminate
from skyserve.model.evidence import Instance, InstanceState, Listing
from skyserve.model.replica import ALIVE, SERVING, Replica, ReplicaStatus
from skyserve.model.service import Kind

DRAIN_S = 120.0
"""How long a replica that is replaced or no longer needed may finish what it has."""
DOWN_DRAIN_S = 30.0
"""The same when the whole service goes down."""
LAST_DRAIN_S = 20.0
"""How long before its machine is taken back the only ready replica stops to get new requests."""
KEEP_FAILED = 3
"""How many failed replicas keep their rows, for people to look at."""
KEEP_FAILED_S = 3600.0
"""How long they keep them."""


def let_go(draft: Draft, replica: Replica, because: Reason, *, grace_s: float = DRAIN_S) -> None:
    """Serving replicas drain first; others have nothing to finish. One that was never asked for is simply dropped."""
    o = draft.o
    if replica.offering is None:
        draft.drop(replica)
        draft.notes.append(Note(replica.id, because))
        return
    removed = replace(replica, removal=because.code.value)
    if replica.status in SERVING and grace_s > 0:
        until = o.now + grace_s
        draining = lifecycle.move(removed, ReplicaStatus.DRAINING, o.now, because.text)
        draft.put(replace(draining, drain_until_at=until, drain_revision=o.revision))
        draft.actions.append(Drain(replica.id, until, because))
    else:
        draft.put(lifecycle.move(removed, ReplicaStatus.SHUTTING_DOWN, o.now, because.text))
        draft.notes.append(Note(replica.id, because))


def on_notice(draft: Draft) -> None:
    """Empty the machines that their providers are about to take back, before they are gone.

    One that still serves goes on until another replica is ready, or until the last moment: an answer from it is worth
    more than a place in the queue.
    """
    ready = [r for r in draft.replicas if r.status is ReplicaStatus.READY and r.counts]
    for replica in [r for r in draft.replicas if r.status in ALIVE and r.reclaim_at is not None]:
        reclaim_at = replica.reclaim_at or 0.0
        left_s = max(0.0, reclaim_at - draft.o.now)
        code, facts = ReasonCode.INTERRUPTION_NOTICE, {"reclaim_at": reclaim_at}
        if replica.status is ReplicaStatus.READY and not ready and left_s > LAST_DRAIN_S:
            draft.wake.append(reclaim_at - LAST_DRAIN_S)
            text = f"replica {replica.id} serves on until its machine is taken back, as no other is ready"
            draft.waiting.append(Reason(code, text, facts))
        else:
            because = Reason(code, f"its machine will be taken back in {left_s:.0f}s", facts)
            let_go(draft, replica, because, grace_s=left_s)


def on_request(draft: Draft) -> None:
    """Remove the replicas that the user named."""
    because = Reason(ReasonCode.USER_REQUEST, "the user asked for its removal")
    for replica in [r for r in draft.replicas if r.id in draft.o.evict]:
        if replica.status in ALIVE:
            let_go(draft, replica, because)
        elif replica.status is ReplicaStatus.FAILED and replica.cleaned:
            draft.drop(replica)


def take_down(draft: Draft) -> None:
    """Remove everything of a service that the user took down."""
    because = Reason(ReasonCode.SERVICE_DOWN, "the user took the service down")
    serves = draft.o.specs[draft.o.latest_version].kind is Kind.SERVICE
    grace_s = 0.0 if draft.o.purge or not serves else DOWN_DRAIN_S
    for replica in draft.replicas:
        if replica.status in ALIVE:
            let_go(draft, replica, because, grace_s=grace_s)
        elif replica.status is ReplicaStatus.DRAINING and replica.drain_until_at is not None:
            draft.put(replace(replica, drain_until_at=min(replica.drain_until_at, draft.o.now + grace_s)))
        elif replica.status is ReplicaStatus.FAILED and replica.cleaned:
            draft.drop(replica)


def clean_up(draft: Draft) -> None:
    """End every listed instance that no living row stands for: those being removed, failed ones, and orphans."""
    owners = {r.token: r for r in draft.replicas}
    for listing in draft.o.providers.values():
        instances = listing.instances if isinstance(listing, Listing) else ()
        listed = {instance.id for instance in instances}
        for instance in instances:
            owner = owners.get(instance.token)
            because = _why_terminate(owner, instance, listed)
            under_way = instance.id in draft.o.in_flight or instance.state is InstanceState.STOPPING
            if because is not None and not under_way:
                replica_id = owner.id if owner else None
                draft.actions.append(Terminate(instance.provider, instance.id, replica_id, because))


def _why_terminate(owner: Replica | None, instance: Instance, listed: Set[str]) -> Reason | None:
    if owner is None:
        return Reason(ReasonCode.ORPHAN, f"instance {instance.id} carries our tag, but no replica stands for it")
    if owner.status is ReplicaStatus.FAILED:
        if owner.cleaned:
            return Reason(ReasonCode.ORPHAN, f"instance {instance.id} of failed replica {owner.id} came back")
        return Reason(ReasonCode.FAILED_CLEANUP, f"{owner.display_status}: {owner.first_line}")
    if owner.status is ReplicaStatus.SHUTTING_DOWN:
        code = ReasonCode(owner.removal) if owner.removal else ReasonCode.ABOVE_TARGET
        return Reason(code, owner.detail or "no longer needed")
    if owner.instance_id != instance.id and owner.instance_id in listed:
        return Reason(ReasonCode.ORPHAN, f"replica {owner.id} has {owner.instance_id}: {instance.id} is a second one")
    return None


def forget_failed(draft: Draft) -> None:
    """Failed rows stay for people to look at, but neither many nor long."""
    if draft.o.specs[draft.o.latest_version].kind is Kind.CLUSTER:
        return
    failed = [r for r in draft.replicas if r.status is ReplicaStatus.FAILED and r.cleaned]
    newest_first = sorted(failed, key=lambda r: (-r.status_since_at, -r.id))
    for position, replica in enumerate(newest_first):
        if position >= KEEP_FAILED or draft.o.now - replica.status_since_at >= KEEP_FAILED_S:
            draft.drop(replica)


def is_finished(draft: Draft) -> bool:
    """A service that was taken down is finished when nothing of it is left, by the word of all who were ever asked for
    a machine; a purge does not wait for the silent."""
    o = draft.o
    if o.wanted:
        return False
    if any(x.instances for x in o.providers.values() if isinstance(x, Listing)):
        return False
    silent = any(not isinstance(o.providers.get(name), Listing) for name in concerned(draft))
    return o.purge if silent else not draft.replicas


def concerned(draft: Draft) -> list[str]:
    """The providers that something of this service may be left with, by name."""
    holding = {r.offering.provider for r in (*draft.o.replicas, *draft.replicas) if r.offering is not None}
    return sorted(holding.union(draft.memory.asked))
