"""Autoscalers as others have published them, to be compared with and for those who want just that behaviour.

`request_rate` is that of SkyPilot's serving (0.14): it looks every 20 s, and a demand has to be seen at floor(delay/20)
looks in a row. `concurrency` is that of Knative (1.x): windows of 60 and 6 s, a look every 2 s, panic at twice the
capacity that is ready, downwards by half at most, and half a minute of grace before the last replica goes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

from skyserve.decide import signals
from skyserve.decide.signals import Scene
from skyserve.model.decision import AutoscaleMemory

LOOK_S = 20.0
LOOK_AT_ZERO_S = 5.0
GLANCE_S = 2.0
PANIC_FOLD = 2.0
MOST_DOWN_FOLD = 2.0
GRACE_S = 30.0
_EXACT = 1e-9

Algorithm = Callable[[Scene, AutoscaleMemory], tuple[AutoscaleMemory, str]]
"""The memory after a look, its target included, and what was seen."""


def request_rate(scene: Scene, memory: AutoscaleMemory) -> tuple[AutoscaleMemory, str]:
    """Requests of the last minute over `target_qps_per_replica`; a change has to be wanted at look after look."""
    now, policy, current = scene.o.now, scene.policy, scene.target
    rate = scene.load.arrivals_per_s * min(1.0, scene.load.window_s / signals.WINDOW_S)
    text = f"{rate:.3g} req/s / {signals.qps_per_replica(policy):g} per replica"
    if memory.heard_at is not None and now - memory.heard_at < _pause_s(scene) - _EXACT:
        return memory, text
    wanted = math.ceil(rate / signals.qps_per_replica(policy) - _EXACT)
    if wanted == 0 and scene.busy:
        wanted = 1
    wanted = min(max(wanted, policy.min_replicas), policy.max_replicas)
    looked = replace(memory, target=current, heard_at=now)
    if wanted == current:
        return replace(looked, above_since_at=None, below_since_at=None), text
    up = wanted > current
    since = memory.above_since_at if up else memory.below_since_at
    since = now if since is None else since
    delay = policy.upscale_delay_seconds if up else policy.downscale_delay_seconds
    looks = max(1, math.floor(delay / LOOK_S))
    if current == 0 or now - since >= (looks - 1) * LOOK_S - _EXACT:
        return replace(looked, target=wanted, above_since_at=None, below_since_at=None), text
    if up:
        return replace(looked, above_since_at=since, below_since_at=None), text
    return replace(looked, above_since_at=None, below_since_at=since), text


def _pause_s(scene: Scene) -> float:
    return LOOK_S if scene.target else LOOK_AT_ZERO_S


def concurrency(scene: Scene, memory: AutoscaleMemory) -> tuple[AutoscaleMemory, str]:
    """Requests under way over `target_ongoing_requests_per_replica`: of the last minute, or in panic of the last six
    seconds if that is more."""
    now, policy, current, load = scene.o.now, scene.policy, scene.target, scene.load
    target = policy.target_ongoing_requests_per_replica or 1.0
    text = f"{load.ongoing:.3g} requests under way, {load.burst_ongoing:.3g} of late / {target:g} per replica"
    if memory.heard_at is not None and now - memory.heard_at < GLANCE_S - _EXACT:
        return memory, text
    ready = max(1, round(scene.fleet.ready))
    stable = max(math.ceil(load.ongoing / target - _EXACT), math.floor(ready / MOST_DOWN_FOLD))
    panic = math.ceil(load.burst_ongoing / target - _EXACT)
    until = memory.burst_until_at
    if panic >= PANIC_FOLD * ready:
        until = now + signals.WINDOW_S
    in_panic = until is not None and until > now
    wanted = max(current, panic) if in_panic else stable
    looked = replace(memory, heard_at=now, burst_until_at=until if in_panic else None, below_since_at=None)
    if load.ongoing <= _EXACT and not scene.busy and not in_panic:
        idle_since = memory.below_since_at if memory.below_since_at is not None else now
        looked = replace(looked, below_since_at=idle_since)
        wanted = 0 if now - idle_since >= GRACE_S else max(1, wanted)
    elif scene.busy:
        wanted = max(1, wanted)
    return replace(looked, target=min(max(wanted, policy.min_replicas), policy.max_replicas)), text


def wake_at(scene: Scene, memory: AutoscaleMemory) -> float | None:
    """When it looks again."""
    pause_s = GLANCE_S if scene.policy.autoscaler == "concurrency" else _pause_s(scene)
    at = (memory.heard_at or scene.o.now) + pause_s
    return at if at > scene.o.now else scene.o.now + pause_s
