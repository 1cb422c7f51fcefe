"""The user's wish that a machine be stopped, or go on -> what to ask of its provider. Clusters only: what serves is
taken away by scaling, not by stopping."""

from __future__ import annotations

from skyserve.decide import lifecycle
from skyserve.decide.draft import Draft
from skyserve.model.decision import Halt, Reason, ReasonCode, Resume
from skyserve.model.evidence import Instance, InstanceState, Listing
from skyserve.model.replica import SERVING, Replica, ReplicaStatus

_STOPPABLE = SERVING | {ReplicaStatus.STARTING}


def follow(draft: Draft) -> None:
    """Stop what is to be stopped, and start what is not. Asked for again as long as the listing says otherwise."""
    for replica in list(draft.replicas):
        if draft.o.halted and replica.status in _STOPPABLE:
            stopped = lifecycle.move(replica, ReplicaStatus.STOPPED, draft.o.now, lifecycle.STILL_STOPPING)
            draft.put(stopped)
            _halt(draft, stopped)
        elif replica.status is ReplicaStatus.STOPPED:
            if draft.o.halted:
                _halt(draft, replica)
            else:
                _resume(draft, replica)


def _halt(draft: Draft, replica: Replica) -> None:
    instance = _instance(draft, replica)
    if instance is not None and instance.state not in (InstanceState.STOPPED, InstanceState.STOPPING):
        because = Reason(ReasonCode.USER_STOP, "the user asked to stop it")
        draft.actions.append(Halt(instance.provider, instance.id, replica.id, because))


def _resume(draft: Draft, replica: Replica) -> None:
    instance = _instance(draft, replica)
    if instance is not None and instance.state is InstanceState.STOPPED:
        because = Reason(ReasonCode.USER_START, "the user asked to start it again")
        draft.actions.append(Resume(instance.provider, instance.id, replica.id, because))


def _instance(draft: Draft, replica: Replica) -> Instance | None:
    """The replica's instance, unless something is just being asked of it."""
    listing = draft.o.providers.get(replica.offering.provider) if replica.offering else None
    if not isinstance(listing, Listing) or replica.instance_id in draft.o.in_flight:
        return None
    return next((i for i in listing.instances if i.id == replica.instance_id), None)
