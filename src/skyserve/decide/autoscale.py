"""Load -> how many replicas a service should have.

The demand of the last minute is followed after the policy's delays. A burst that requests would have to wait for is
followed at once. What goes down goes no lower than the most that was asked for during the downscale delay. All delays
are instants that are remembered, never looks that are counted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from skyserve.decide import capacity, published, signals
from skyserve.decide.signals import Demand, Scene
from skyserve.model.decision import AutoscaleMemory, Note, Observation, Peak, Reason, ReasonCode, ServiceRate
from skyserve.model.service import ReplicaPolicy

TOLERANCE = 0.05
"""Replicas may get this much more than the targets say before there are more of them: a load that lies on the line
shall not make their number go up and down."""
CALM_S = 60.0
"""After a burst nothing is removed for this long, or for the downscale delay where that is shorter; ..."""
SHORTEST_CALM_S = 6.0
"""... but no shorter than this: the span in which a burst is seen."""
PARTS = 30
"""The downscale delay is remembered in so many parts, ..."""
SHORTEST_S, LONGEST_S = 1.0, 5.0
"""... which are neither shorter than the one of these nor longer than the other."""
GAP_S = 30.0
"""When nothing was heard of the load for longer, what was known of it before says nothing about the time between."""


@dataclass(frozen=True, slots=True)
class Target:
    """The number of replicas aimed at (over-provisioned ones included), and when the load may change it again.

    `waiting` says why the number is not what the demand asks for yet.
    """

    count: int
    memory: AutoscaleMemory
    notes: tuple[Note, ...] = ()
    wake_at: float | None = None
    waiting: tuple[Reason, ...] = ()


def target(o: Observation) -> Target:
    """The target for the latest version's policy; zero for a service that was taken down."""
    if not o.wanted:
        return Target(0, o.memory.autoscale)
    policy = within_schedule(o, o.specs[o.latest_version].replica_policy)
    memory = o.memory.autoscale
    least = policy.min_replicas
    before = least if memory.target is None or not policy.follows_load else memory.target
    current = min(max(before, least), policy.max_replicas)
    wake_at = None if o.schedule is None else o.schedule.until_at
    if not policy.follows_load or o.load is None:
        kept = AutoscaleMemory(current, rates=memory.rates)
        notes = _bounds_note(o, memory.target, current)
        return Target(current + policy.num_overprovision, kept, notes, wake_at)
    rates = _learn(o, policy) if _is_due(memory, policy, o.now) else memory.rates
    scene = Scene(o, o.load, policy, capacity.fleet(o, rates), rates, current)
    decided = AUTOSCALERS[policy.autoscaler](scene, replace(memory, target=current, rates=rates))
    notes = decided.notes or _bounds_note(o, memory.target, decided.count)
    wakes = [at for at in (wake_at, decided.wake_at) if at is not None]
    return replace(
        decided, count=decided.count + policy.num_overprovision, notes=notes, wake_at=min(wakes, default=None)
    )


def within_schedule(o: Observation, policy: ReplicaPolicy) -> ReplicaPolicy:
    """The policy with the bounds that a schedule sets now."""
    if o.schedule is None:
        return policy
    least, most = o.schedule.min_replicas, o.schedule.max_replicas
    least = policy.min_replicas if least is None else least
    most = policy.max_replicas if most is None else most
    return replace(policy, min_replicas=least, max_replicas=max(least, most))


def _learn(o: Observation, policy: ReplicaPolicy) -> tuple[ServiceRate, ...]:
    memory = o.memory.autoscale
    since_s = 0.0 if memory.heard_at is None or o.load is None else o.load.at - memory.heard_at
    most = o.specs[o.latest_version].load_balancer.max_concurrency_per_replica
    return capacity.learn(memory.rates, o, since_s, signals.places(policy, most))


def _bounds_note(o: Observation, before: int | None, count: int) -> tuple[Note, ...]:
    if before is None or before == count:
        return ()
    where = f"the schedule {o.schedule.line!r}" if o.schedule is not None else "the policy"
    return (Note(None, Reason(ReasonCode.SCALED, f"{where} wants {count} replicas, there were to be {before}")),)


# ---- our own


def responsive(scene: Scene, memory: AutoscaleMemory) -> Target:
    """The largest of the demands wins: after the upscale delay, or at once for a burst; downwards after its delay."""
    policy, now = scene.policy, scene.o.now
    current = scene.target
    steady = max(signals.steady(scene), key=lambda d: d.units)
    in_burst = memory.burst_until_at is not None and memory.burst_until_at > now
    urgent = max(signals.urgent(scene, in_burst=in_burst), key=lambda d: d.units, default=None)
    if urgent is not None and urgent.units <= steady.units:
        urgent = None
    wanted = _count(scene, steady.units)
    up = _count(scene, steady.units * (1 - TOLERANCE)) > current
    followed = replace(_watch(memory, scene, steady.units), above_since_at=_above_since(memory, up=up, now=now))
    if urgent is not None and _count(scene, urgent.units) > current:
        return _changed(scene, followed, _count(scene, urgent.units), urgent, burst=True)
    since = followed.above_since_at
    if up and (current == 0 or (since is not None and now - since >= policy.upscale_delay_seconds)):
        return _changed(scene, followed, wanted, steady)
    lowest = _lowest(scene, followed, steady.units)
    if lowest < current:
        return _changed(scene, followed, lowest, steady)
    waiting = _waiting(scene, followed, steady, wanted) if up else ()
    return Target(current, followed, (), _wake_at(scene, followed), waiting)


def _is_due(memory: AutoscaleMemory, policy: ReplicaPolicy, now: float) -> bool:
    """Whether what is seen now is worth remembering beside what was last. Not every look shall be: what is remembered
    is written down, and there may be many looks a second."""
    part_s = policy.downscale_delay_seconds / PARTS
    return memory.heard_at is None or now - memory.heard_at >= min(max(part_s, SHORTEST_S), LONGEST_S)


def _count(scene: Scene, units: float) -> int:
    policy = scene.policy
    return min(max(scene.fleet.cover(units), policy.min_replicas), policy.max_replicas)


def _above_since(memory: AutoscaleMemory, *, up: bool, now: float) -> float | None:
    """Since when more is asked for. A moment at which it is not sets the clock back by twice its length, and not to
    the beginning: one jitter shall not cost the whole delay."""
    since = memory.above_since_at
    if up:
        return now if since is None else since
    if since is None or memory.heard_at is None:
        return None
    since += 2 * max(0.0, now - memory.heard_at)
    return since if since < now else None


def _watch(memory: AutoscaleMemory, scene: Scene, units: float) -> AutoscaleMemory:
    """Remember what is asked for now, and forget what is older than the downscale delay."""
    now, heard = scene.o.now, memory.heard_at
    if memory.above_since_at is None and not _is_due(memory, scene.policy, now):
        return memory
    unbroken = heard is not None and now - heard <= GAP_S and memory.watched_since_at is not None
    burst = memory.burst_until_at
    return replace(
        memory,
        peaks=(*(peak for peak in _peaks(scene, memory) if peak.units > units), Peak(now, units)),
        heard_at=now,
        watched_since_at=memory.watched_since_at if unbroken else now,
        burst_until_at=burst if burst is not None and burst > now else None,
        below_since_at=None,
    )


def _peaks(scene: Scene, memory: AutoscaleMemory) -> list[Peak]:
    """What was asked for during the downscale delay."""
    return [peak for peak in memory.peaks if peak.at > scene.o.now - scene.policy.downscale_delay_seconds]


def _lowest(scene: Scene, memory: AutoscaleMemory, units: float) -> int:
    """How few replicas what was asked for during the downscale delay allows; as many as there are until all of that
    time was seen."""
    if scene.o.now < _free_at(scene, memory):
        return scene.target
    highest = max([units, *(peak.units for peak in _peaks(scene, memory))])
    return min(scene.target, _count(scene, highest))


def _free_at(scene: Scene, memory: AutoscaleMemory) -> float:
    """When replicas may be removed at the earliest."""
    since = scene.o.now if memory.watched_since_at is None else memory.watched_since_at
    return max(since + scene.policy.downscale_delay_seconds, memory.burst_until_at or 0.0)


def _changed(scene: Scene, memory: AutoscaleMemory, count: int, demand: Demand, *, burst: bool = False) -> Target:
    now = scene.o.now
    calm_s = min(CALM_S, max(SHORTEST_CALM_S, scene.policy.downscale_delay_seconds))
    until = now + calm_s if burst else memory.burst_until_at
    after = replace(memory, target=count, above_since_at=None, burst_until_at=until)
    text = f"{demand.text} = {count} wanted, was {scene.target}"
    if count < scene.target and scene.policy.downscale_delay_seconds:
        text = f"at most {count} wanted in the last {scene.policy.downscale_delay_seconds:g} s, was {scene.target}"
        text += f"; now {demand.text}"
    facts = {
        **demand.facts,
        "signal": demand.signal,
        "min": scene.policy.min_replicas,
        "max": scene.policy.max_replicas,
    }
    if burst:
        facts["burst"] = 1
    scaled = Note(None, Reason(ReasonCode.SCALED, text, facts))
    return Target(count, after, (scaled,), _wake_at(replace(scene, target=count), after))


def _wake_at(scene: Scene, memory: AutoscaleMemory) -> float | None:
    """When the load as it is may change the target."""
    policy, now = scene.policy, scene.o.now
    instants = []
    if memory.above_since_at is not None:
        instants.append(memory.above_since_at + policy.upscale_delay_seconds)
    if memory.peaks:
        falls = (p.at + policy.downscale_delay_seconds for p in memory.peaks if _count(scene, p.units) >= scene.target)
        instants.append(max(_free_at(scene, memory), max(falls, default=0.0)))
    ahead = [at for at in instants if at > now]
    return min(ahead, default=None)


def _waiting(scene: Scene, memory: AutoscaleMemory, steady: Demand, wanted: int) -> tuple[Reason, ...]:
    """That the delay is waited for. The text is the same at each look, as it is stored; the numbers are facts."""
    if memory.above_since_at is None:
        return ()
    facts = {**steady.facts, "signal": steady.signal, "wanted": wanted, "since_at": memory.above_since_at}
    text = (
        f"the {steady.signal} calls for more than {scene.target} replicas; there will be more once it has done so for"
    )
    text += f" {scene.policy.upscale_delay_seconds:g} s"
    return (Reason(ReasonCode.UPSCALE_DELAY, text, facts),)


# ---- as others have published


def as_published(algorithm: published.Algorithm) -> Callable[[Scene, AutoscaleMemory], Target]:
    """An algorithm of others, told in our words."""

    def follow(scene: Scene, memory: AutoscaleMemory) -> Target:
        after, text = algorithm(scene, memory)
        count = scene.target if after.target is None else after.target
        notes: tuple[Note, ...] = ()
        if count != scene.target:
            notes = (Note(None, Reason(ReasonCode.SCALED, f"{text} = {count} wanted, was {scene.target}")),)
        return Target(count, after, notes, published.wake_at(scene, after))

    return follow


AUTOSCALERS: dict[str, Callable[[Scene, AutoscaleMemory], Target]] = {
    "responsive": responsive,
    "request_rate": as_published(published.request_rate),
    "concurrency": as_published(published.concurrency),
}
