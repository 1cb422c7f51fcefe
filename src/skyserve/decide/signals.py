"""What is seen of a service's load -> how much capacity each of the policy's targets calls for, in words and numbers.

A demand is in units (see `capacity`). Each is worked out alone; which one is followed, and how soon, is not decided
here. The steady demands rest on the last minute, the urgent ones on the last seconds.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from skyserve.decide.capacity import ENOUGH, Fleet
from skyserve.model.decision import Observation, ServiceRate
from skyserve.model.evidence import BOUNDS_S, LoadReport
from skyserve.model.scaling import CustomMetric
from skyserve.model.service import ReplicaPolicy

WINDOW_S = 60.0
"""Requests a second are a mean over this time, as users of `target_qps_per_replica` know it."""
URGENT_FOLD = 1.5
"""Requests under way are an emergency from this many times what the wanted replicas shall have."""
IN_BURST_FOLD = 1.1
"""The same while a burst lasts."""
URGENT_RATE_FOLD = 2.0
"""Requests a second are one from this many times; they come in clusters by chance, so they must also be more than
chance makes of the most that the wanted replicas shall get."""
CHANCE = 4.0
"""So many standard deviations of a Poisson count."""
CLEAR_S = 60.0
"""In this time a backlog shall be worked off."""
FEW_ANSWERS = 20
"""With fewer answers a percentile says nothing."""
GREATEST_FOLD = 2.0
"""A latency that misses its target by more than this asks for no more than this many times the replicas: twice as slow
does not mean that twice as many would be enough, so one looks again."""
EASY = 0.5
"""Below this part of a target, one replica fewer may do."""
STALE_S = 60.0
"""How long the user's metric holds without a new reading, or three times as long as it is read if that is more."""


@dataclass(frozen=True, slots=True)
class Demand:
    """`units` of capacity that `signal` calls for; `text` is the reckoning, `facts` its numbers."""

    signal: str
    units: float
    text: str
    facts: Mapping[str, float | int | str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Scene:
    """What signals look at: the load, the policy, the replicas in units, the rates learnt, and the present target."""

    o: Observation
    load: LoadReport
    policy: ReplicaPolicy
    fleet: Fleet
    rates: Sequence[ServiceRate]
    target: int

    @property
    def present(self) -> float:
        """Units that are wanted already."""
        return self.fleet.units(self.target)

    @property
    def busy(self) -> float:
        """Requests under way and held, without open answers in which nothing moves any more."""
        return max(0.0, self.load.held + sum(self.load.in_flight.values()) - self.load.quiet)

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do, and in the last seconds there was not. How long ago there was is for the
        downscale delay to weigh."""
        return not (self.busy or self.load.burst_ongoing or self.load.burst_arrivals_per_s)


def steady(scene: Scene) -> Iterator[Demand]:
    """What the last minute calls for."""
    policy = scene.policy
    if scene.busy:
        yield Demand("ongoing", 1e-3, f"{scene.busy:g} requests are under way")
    if policy.target_qps_per_replica is not None:
        yield _request_rate(scene, scene.load.arrivals_per_s * min(1.0, scene.load.window_s / WINDOW_S))
    if policy.target_ongoing_requests_per_replica is not None:
        ongoing = 0.0 if scene.idle else scene.load.ongoing
        yield _ongoing(scene, ongoing, policy.target_ongoing_requests_per_replica, "over a minute")
    if policy.target_queue_length_per_replica is not None:
        yield _queue(scene, policy.target_queue_length_per_replica)
    if policy.target_ttft_s is not None:
        yield from _latency(scene, "first byte", scene.load.first_byte, policy.target_ttft_s)
    if policy.target_latency_s is not None:
        yield from _latency(scene, "whole answer", scene.load.whole, policy.target_latency_s)
    yield from _engines(scene)
    if policy.custom_metric is not None:
        yield _metric(scene, policy.custom_metric)


def urgent(scene: Scene, *, in_burst: bool) -> Iterator[Demand]:
    """What the last seconds call for, where requests would have to wait otherwise. `in_burst`: one was seen a moment
    ago, and may not have been seen whole: the means of six seconds come after it."""
    policy, load = scene.policy, scene.load
    now = max(load.steady_ongoing, min(load.burst_ongoing, scene.busy))
    target = policy.target_ongoing_requests_per_replica
    fold = IN_BURST_FOLD if in_burst else URGENT_FOLD
    if target is not None and now > fold * target * max(scene.present, 1e-3):
        yield _ongoing(scene, now, target, "in the last seconds")
    most = scene.o.specs[scene.o.latest_version].load_balancer.max_concurrency_per_replica
    if most is not None and load.held and now > most * scene.present:
        yield _ongoing(scene, now, float(most), "of which each replica takes no more")
    if policy.target_qps_per_replica is not None:
        yield from _burst(scene)


def qps_per_replica(policy: ReplicaPolicy) -> float:
    """Requests a second one replica shall get; of a map by accelerator the largest value."""
    value = policy.target_qps_per_replica
    if value is None:
        raise ValueError("the policy has no target_qps_per_replica")
    return float(value) if isinstance(value, (int, float)) else max(value.values())


def places(policy: ReplicaPolicy, most: int | None) -> float:
    """Requests that one replica is taken to work on at once, as far as the user has said."""
    target = policy.target_ongoing_requests_per_replica
    return min(float("inf") if target is None else target, float("inf") if most is None else float(most))


def percentile(counts: Sequence[int], percent: float) -> float | None:
    """Seconds that so many per cent did not exceed, by the upper bounds of the bins with a straight line within each;
    None when there are too few."""
    total = sum(counts)
    if total < FEW_ANSWERS:
        return None
    left, lower = percent / 100 * total, 0.0
    for bound, count in zip((*BOUNDS_S, BOUNDS_S[-1]), counts, strict=False):
        if count and left <= count:
            return lower + (bound - lower) * left / count
        left, lower = left - count, bound
    return BOUNDS_S[-1]


def _request_rate(scene: Scene, rate: float) -> Demand:
    per_replica = qps_per_replica(scene.policy)
    load = scene.load
    text = f"{rate:.3g} req/s / {per_replica:g} per replica"
    facts: dict[str, float | int | str] = {
        "qps": round(rate, 3),
        "window_s": load.window_s,
        "target_qps_per_replica": per_replica,
        "held": load.held,
        "in_flight": sum(load.in_flight.values()),
    }
    return Demand("request rate", rate / per_replica, text, facts)


def _burst(scene: Scene) -> Iterator[Demand]:
    load, per_replica = scene.load, qps_per_replica(scene.policy)
    rate, seconds = load.burst_arrivals_per_s, load.burst_window_s
    most = per_replica * scene.present * seconds
    if rate * seconds > max(URGENT_RATE_FOLD * most, most + CHANCE * math.sqrt(most)) and load.in_flight:
        text = f"{rate:.3g} req/s in the last {seconds:g} s / {per_replica:g} per replica"
        facts: dict[str, float | int | str] = {"burst_qps": round(rate, 3), "target_qps_per_replica": per_replica}
        yield Demand("request rate", rate / per_replica, text, facts)


def _ongoing(scene: Scene, ongoing: float, target: float, when: str) -> Demand:
    """Requests under way ask for replicas one to one only while none of them waits. Once a backlog is there, how many
    come and how many a replica finishes tell how many are needed, or a queue would be taken for traffic."""
    load = scene.load
    text = f"{ongoing:.3g} requests under way {when} / {target:g} per replica"
    facts: dict[str, float | int | str] = {
        "ongoing": round(ongoing, 2),
        "held": load.held,
        "target_ongoing_requests_per_replica": target,
    }
    plain = Demand("requests under way", ongoing / target, text, facts)
    each = _finishes_per_s(scene.rates, target)
    backlog = ongoing - target * scene.fleet.ready
    if each is None or backlog <= 0:
        return plain
    comes = max(load.arrivals_per_s, load.burst_arrivals_per_s)
    needed = (comes + backlog / CLEAR_S) / each
    if needed >= plain.units:
        return plain
    text = f"{comes:.3g} req/s and a backlog of {backlog:.0f} / {each:.3g} req/s that a replica finishes"
    return Demand("requests under way", needed, text, {**facts, "backlog": round(backlog), "finishes_per_s": each})


def _finishes_per_s(rates: Sequence[ServiceRate], places: float) -> float | None:
    """Requests a second that a replica finishes with all its places taken; None until enough have been."""
    done, taken_s = sum(r.done for r in rates), sum(r.taken_s for r in rates)
    return places * done / taken_s if done >= ENOUGH and taken_s > 0 else None


def _queue(scene: Scene, target: float) -> Demand:
    """Those that wait at the door need replicas beside those that are busy; when none waits, what is busy is enough."""
    load = scene.load
    facts: dict[str, float | int | str] = {"held": load.held, "target_queue_length_per_replica": target}
    if load.held:
        text = f"{load.held} requests wait at the door, {target:g} per replica may"
        return Demand("queue", max(scene.fleet.ready, 0.0) + load.held / target, text, facts)
    most = scene.o.specs[scene.o.latest_version].load_balancer.max_concurrency_per_replica
    if most is not None:
        ongoing = 0.0 if scene.idle else load.ongoing
        text = f"{ongoing:.3g} requests under way, of which a replica takes {most}"
        return Demand("queue", ongoing / most, text, facts)
    return Demand("queue", _one_fewer(scene) if not scene.busy else scene.present, "none waits at the door", facts)


def _latency(scene: Scene, what: str, counts: Sequence[int], target_s: float) -> Iterator[Demand]:
    """Too slow asks for more, much faster than asked for allows one fewer. While replicas are on their way nothing is
    concluded: what they change is not seen yet."""
    percent = scene.policy.target_percentile
    measured = percentile(counts, percent)
    if measured is None:
        yield Demand(what, scene.present if scene.busy else 0.0, f"too few answers to tell their p{percent:g}")
        return
    facts: dict[str, float | int | str] = {"percentile": percent, "seconds": round(measured, 4), "target_s": target_s}
    text = f"{what} p{percent:g} {measured:.3g} s, {target_s:g} s wanted"
    if measured > target_s and not scene.fleet.coming:
        units = max(scene.fleet.ready, 1.0) * min(GREATEST_FOLD, measured / target_s)
        yield Demand(what, units, text, facts)
    elif measured < EASY * target_s:
        yield Demand(what, _one_fewer(scene), text, facts)
    else:
        yield Demand(what, scene.present, text, facts)


def _one_fewer(scene: Scene) -> float:
    return scene.fleet.units(max(0, scene.target - 1))


def _engines(scene: Scene) -> Iterator[Demand]:
    """What engines tell of themselves. Those that do not answer are taken to be like those that do."""
    policy, samples, ready = scene.policy, list(scene.o.engines.values()), scene.fleet.ready
    tokens = [s.tokens_per_s for s in samples if s.tokens_per_s is not None]
    waiting = [s.waiting for s in samples if s.waiting is not None]
    cache = [s.kv_cache_use for s in samples if s.kv_cache_use is not None]
    if policy.target_tokens_per_second_per_replica is not None:
        each = policy.target_tokens_per_second_per_replica
        written = ready * _mean(tokens)
        text = f"{written:.3g} tokens/s / {each:g} per replica"
        facts: dict[str, float | int | str] = {"tokens_per_s": round(written, 1), "target": each}
        yield Demand("tokens", written / each, text, facts) if tokens and ready else _hold(scene, "tokens")
    if policy.target_engine_waiting_per_replica is not None:
        yield _engine_waiting(scene, waiting, policy.target_engine_waiting_per_replica)
    if policy.target_kv_cache_use is not None:
        use, wanted = _mean(cache), policy.target_kv_cache_use
        text = f"{use:.0%} of the cache in use on {len(cache)} replicas, {wanted:.0%} wanted"
        facts = {"kv_cache_use": round(use, 4), "target_kv_cache_use": wanted}
        yield Demand("cache", ready * use / wanted, text, facts) if cache and ready else _hold(scene, "cache")


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def _engine_waiting(scene: Scene, waiting: Sequence[float], target: float) -> Demand:
    ready = scene.fleet.ready
    if not waiting or not ready:
        return _hold(scene, "engine queue")
    each = _mean(waiting)
    facts: dict[str, float | int | str] = {"waiting": round(each, 2), "target_engine_waiting_per_replica": target}
    text = f"{each:.3g} requests wait in each engine, {target:g} may"
    if each > target and not scene.fleet.coming:
        return Demand("engine queue", ready * min(GREATEST_FOLD, each / target), text, facts)
    if each <= EASY * target and scene.busy < ready:
        return Demand("engine queue", _one_fewer(scene), text, facts)
    return Demand("engine queue", scene.present, text, facts)


def _metric(scene: Scene, metric: CustomMetric) -> Demand:
    reading, target = scene.o.metric, metric.target_per_replica
    holds_s = max(STALE_S, 3 * metric.interval_seconds)
    if reading is None or reading.value is None or scene.o.now - reading.at > holds_s:
        return _hold(scene, "custom metric")
    text = f"custom metric {reading.value:g} / {target:g} per replica"
    return Demand("custom metric", max(0.0, reading.value) / target, text, {"metric": reading.value, "target": target})


def _hold(scene: Scene, signal: str) -> Demand:
    """Silence is not zero: what cannot be read changes nothing."""
    units = scene.present if scene.busy or scene.policy.min_replicas else 0.0
    return Demand(signal, units, f"the {signal} is not known now")
