"""Missing replicas -> rows and launches, held back while a version keeps failing, placed where capacity is."""

from __future__ import annotations

from dataclasses import replace

from skyserve.decide import backoff, optimize
from skyserve.decide.draft import Draft
from skyserve.model.decision import Launch, Observation, Reason, ReasonCode
from skyserve.model.offering import Offering
from skyserve.model.replica import Replica, ReplicaStatus
from skyserve.model.service import Kind


def add_missing(draft: Draft, count: int) -> None:
    """Rows for `count` more replicas of the latest version, unless its failures forbid it now."""
    if count <= 0:
        return
    held_back = _not_replaced(draft) or _held_back(draft)
    if held_back is not None:
        draft.waiting.append(held_back)
        return
    for _ in range(count):
        draft.replicas.append(_new_replica(draft))


def _not_replaced(draft: Draft) -> Reason | None:
    """A cluster is one machine with what was done on it: another one would not be the same."""
    o = draft.o
    if o.specs[o.latest_version].kind is Kind.SERVICE or o.next_replica_id == 1:
        return None
    return Reason(ReasonCode.NOT_REPLACED, "a cluster whose machine is gone is not launched again by itself")


def _held_back(draft: Draft) -> Reason | None:
    """Why nothing is launched although something is missing; None when nothing forbids it."""
    now, version = draft.o.now, draft.o.latest_version
    rollout = draft.memory.rollout
    if rollout.stopped and rollout.version == version:
        return Reason(ReasonCode.ROLLOUT_STOPPED, f"version {version} goes no further: {rollout.stopped}")
    verdict = backoff.judge(draft.memory.failures, version, draft.target)
    entry = next((m for m in draft.memory.failures if m.version == version), None)
    if entry is None:
        return None
    last = f": {entry.detail}" if entry.detail else ""
    facts: dict[str, float | int | str] = {"version": version, "failures": entry.consecutive}
    if verdict.gave_up:
        text = f"version {version} failed {entry.consecutive} times and was never ready{last}"
        return Reason(ReasonCode.GAVE_UP, text, facts)
    if verdict.launch_at > now:
        draft.wake.append(verdict.launch_at)
        facts["next_launch_at"] = verdict.launch_at
        text = f"version {version} failed {entry.consecutive} times in a row; the next try waits{last}"
        return Reason(ReasonCode.CRASH_LOOP_BACKOFF, text, facts)
    return None


def _new_replica(draft: Draft) -> Replica:
    o = draft.o
    replica_id = draft.next_replica_id
    draft.next_replica_id += 1
    return Replica(
        id=replica_id,
        token=_token(o, replica_id, 1),
        version=o.latest_version,
        launched_version=o.latest_version,
        status=ReplicaStatus.PENDING,
        status_since_at=o.now,
        created_at=o.now,
    )


def _token(o: Observation, replica_id: int, attempt: int) -> str:
    return f"{o.tag}-{replica_id}-{attempt}"


def place_pending(draft: Draft, because: Reason) -> None:
    """Give each pending replica of the latest version the best offering and ask for it; ask again where an answer never
    came."""
    o = draft.o
    pending = [r for r in draft.replicas if r.status is ReplicaStatus.PENDING and r.offering is None]
    unplaced = [r for r in pending if r.version == o.latest_version]
    if unplaced:  # one choice serves them all: nothing it rests on changes within a step
        choice = optimize.choose(optimize.rank(o.offerings, o.specs[o.latest_version]), draft.health, o.now)
    for replica in unplaced:
        if choice.offering is None:
            wait_for_place(draft, replica, choice)
        else:
            ask(draft, replica, choice.offering, replace(because, rejected=choice.rejected))
    ask_again(draft)


def ask(draft: Draft, replica: Replica, offering: Offering, because: Reason) -> None:
    """Give a pending replica a place, and ask for it."""
    o = draft.o
    token = _token(o, replica.id, replica.attempt)
    placed = replace(replica, offering=offering, token=token, asked_at=o.now, detail="", retry_at=None)
    draft.put(placed)
    draft.asked_now.add(replica.id)
    if offering.provider not in draft.memory.asked:
        draft.memory = replace(draft.memory, asked=tuple(sorted({*draft.memory.asked, offering.provider})))
    facts = {**because.facts, "price_per_hour": offering.price_per_hour, "attempt": replica.attempt}
    draft.actions.append(Launch(placed, replace(because, facts=facts)))


def wait_for_place(draft: Draft, replica: Replica, choice: optimize.Choice) -> None:
    """Say on the row, and to whoever asks, why there is no place for a pending replica now."""
    code, why = ReasonCode.NO_OFFERING, "no enabled infrastructure offers what the service asks for"
    if choice.rejected:
        code, why = ReasonCode.NO_CAPACITY, f"no capacity: {choice.why}"
    draft.put(replace(replica, detail=why, retry_at=choice.retry_at))
    draft.waiting.append(Reason(code, why, {"replica": replica.id}, choice.rejected))
    if choice.retry_at is not None:
        draft.wake.append(choice.retry_at)


def ask_again(draft: Draft) -> None:
    """Ask once more where a launch was decided in an earlier step and its answer never came."""
    for replica in draft.replicas:
        pending = replica.status is ReplicaStatus.PENDING and replica.offering is not None
        if pending and replica.id not in draft.asked_now and replica.token not in draft.o.in_flight:
            _ask_again(draft, replica)


def _ask_again(draft: Draft, replica: Replica) -> None:
    if replica.retry_at is not None and replica.retry_at > draft.o.now:
        draft.wake.append(replica.retry_at)
        return
    again = replace(replica, retry_at=None)
    draft.put(again)
    draft.asked_now.add(replica.id)
    because = Reason(ReasonCode.RETRY_LAUNCH, "the launch was decided, but its answer never came: asked again")
    draft.actions.append(Launch(again, because))
