"""How a replica fares, by what the cluster says of its Pod, its Service and its Node; and whether it will be taken.

Pure: objects as the API lists them go in, instances come out. Knows the words of kubelets, schedulers and of those who
take nodes down; must not know how the objects are fetched or changed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from skyserve.model.evidence import Instance, InstanceState
from skyserve.providers.kubernetes.manifests import (
    ANNOTATION_ENDED,
    ANNOTATION_PORT,
    LABEL_SERVICE,
    LABEL_TOKEN,
    RAN_LINE,
)
from skyserve.providers.kubernetes.nodes import CLOUD
from skyserve.providers.kubernetes.objects import (
    Object,
    at,
    condition,
    instant,
    listed,
    number,
    strings,
    text,
)

SCALE_UP_PATIENCE_S = 600.0
"""How long a pod may wait for a node that an autoscaler adds, before it is looked for elsewhere."""
_PULL_PATIENCE_S = 300.0
_DETAIL_LINES, _DETAIL_WIDTH = 10, 300

_LEAVING_TAINTS = {
    "ToBeDeletedByClusterAutoscaler": 60.0,
    "aws-node-termination-handler/asg-lifecycle-termination": 120.0,
    "aws-node-termination-handler/rebalance-recommendation": 120.0,
    "aws-node-termination-handler/scheduled-maintenance": 120.0,
    "aws-node-termination-handler/spot-itn": 120.0,
    "cloud.google.com/impending-node-termination": 25.0,
    "karpenter.sh/disrupted": 120.0,
    "karpenter.sh/disruption": 120.0,
    "node.cloudprovider.kubernetes.io/shutdown": 30.0,
}
"""Taints that say that a node is going, and how many seconds it has left when they come."""
_LEAVING_CONDITIONS = {"VMEventScheduled": 30.0}
_HOPELESS_IMAGE = ("InvalidImageName", "ErrImageNeverPull")
_BAD_IMAGE = ("ErrImagePull", "ImagePullBackOff", *_HOPELESS_IMAGE)
_BAD_CONTAINER = ("CreateContainerConfigError", "CreateContainerError", "RunContainerError")


@dataclass(frozen=True, slots=True)
class Notice:
    """A pod will be taken away. `at` is when, where that is told; otherwise `warning_s` after the notice, which `key`
    tells from others."""

    key: str
    at: float | None
    warning_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Scene:
    """What else is known when a pod is judged: its node (None: there is no such node any more) and Service, whether the
    nodes could be listed at all, whether we ordered its end, whether the pod network can be reached, and the time."""

    node: Object | None
    service: Object | None
    nodes_known: bool
    ending: bool
    inside: bool
    now: float


def instance_id(context: str, pod: Object) -> str:
    """The id of a pod's instance: no pod's name has a slash."""
    return f"{context}/{text(pod, 'metadata', 'name')}"


def instance_of(context: str, pod: Object, scene: Scene) -> Instance:
    """The instance that a pod is. Its `reclaim_at` is left to whoever remembers when notices came."""
    exact = strings(pod, "metadata", "annotations")
    state, detail = _state(pod, scene)
    running = _running_since(pod)
    ended = _terminated(pod) if state is InstanceState.EXITED else {}
    phase, code, said = _end(ended) if ended else (None, None, detail)
    if state is InstanceState.EXITED and not ended:
        phase = "setup"
    return Instance(
        id=instance_id(context, pod),
        provider=CLOUD,
        service=exact.get(LABEL_SERVICE, ""),
        token=exact.get(LABEL_TOKEN, ""),
        state=state,
        address=_address(pod, scene) if state is InstanceState.RUNNING else None,
        setup_started_at=running,
        exit_code=code,
        failed_phase=phase,
        detail=said,
    )


def is_marked_ended(pod: Object) -> bool:
    """Whether we ordered its end, in this process or an earlier one."""
    return ANNOTATION_ENDED in strings(pod, "metadata", "annotations")


def notice_of(pod: Object, node: Object | None) -> Notice | None:
    """The most urgent notice that a pod, or the node it is on, was given."""
    uid = text(pod, "metadata", "uid")
    found = []
    if deleted_at := instant(text(pod, "metadata", "deletionTimestamp")):
        found.append(Notice(f"{uid} deleted", deleted_at))
    if text(condition(pod, "DisruptionTarget"), "status") == "True":
        found.append(Notice(f"{uid} disruption", None, 30.0))
    if node is not None:
        found += _node_notices(node, pod)
    return min(found, key=lambda notice: (notice.at is None, notice.at or notice.warning_s), default=None)


def why_unschedulable(pod: Object) -> str | None:
    """The scheduler's own word on why it found no node; None when it did, or has not tried yet."""
    scheduled = condition(pod, "PodScheduled")
    if text(scheduled, "status") == "False" and text(scheduled, "reason") == "Unschedulable":
        return text(scheduled, "message") or "no node takes it"
    return None


def is_scheduled(pod: Object) -> bool:
    """Whether it has a node."""
    return bool(text(pod, "spec", "nodeName"))


def has_begun(pod: Object) -> bool:
    """Whether its container runs or has run, so that there are logs."""
    return bool(_status(pod) and (at(_status(pod), "state", "running") is not None or _terminated(pod)))


def is_over(pod: Object) -> bool:
    """Whether nothing of it will run any more."""
    return text(pod, "status", "phase") in ("Succeeded", "Failed")


# -- states


def _state(pod: Object, scene: Scene) -> tuple[InstanceState, str]:
    if scene.ending:
        return InstanceState.STOPPING, ""
    if taken := _taken(pod, scene):
        return InstanceState.PREEMPTED, taken
    if _terminated(pod):
        return InstanceState.EXITED, ""
    if _running_since(pod) is not None:
        started = at(_status(pod), "started") is True
        return (InstanceState.RUNNING if started else InstanceState.SETUP), ""
    return _waiting(pod, scene.now)


def _taken(pod: Object, scene: Scene) -> str:
    """Why it was taken from us; empty when it was not."""
    node_name, reason = text(pod, "spec", "nodeName"), text(pod, "status", "reason")
    message = text(pod, "status", "message")
    if node_name and scene.nodes_known and scene.node is None:
        return f"node {node_name} is gone"
    if text(pod, "status", "phase") == "Failed":
        disruption = condition(pod, "DisruptionTarget")
        if text(disruption, "status") == "True":
            return f"{text(disruption, 'reason')}: {text(disruption, 'message')}"
        if reason:  # Evicted, Preempting, NodeShutdown, OutOfcpu...: a pod that fails by itself has none
            return f"{reason}: {message}" if message else reason
        if not _terminated(pod):
            return message or "the pod failed before its container ran"
    if reason == "NodeLost":
        return f"NodeLost: {message}"
    if text(pod, "metadata", "deletionTimestamp") and _terminated(pod):
        return "the pod was deleted, and not by us"
    waits_since_at = instant(text(condition(pod, "PodScheduled"), "lastTransitionTime"))
    why = why_unschedulable(pod)
    if why and waits_since_at is not None and scene.now - waits_since_at > SCALE_UP_PATIENCE_S:
        return f"no node after {SCALE_UP_PATIENCE_S:g} s: {why}"
    return ""


def _waiting(pod: Object, now: float) -> tuple[InstanceState, str]:
    """A pod whose container does not run yet: why, and whether it ever will."""
    if why := why_unschedulable(pod):
        return InstanceState.STARTING, f"waits for a node: {why}"
    waiting = at(_status(pod), "state", "waiting")
    reason, message = text(waiting, "reason"), text(waiting, "message")
    detail = f"{reason}: {message}" if message else reason
    if reason in (*_BAD_IMAGE, *_BAD_CONTAINER):
        since_at = instant(text(condition(pod, "PodScheduled"), "lastTransitionTime"))
        if reason in _HOPELESS_IMAGE or (since_at is not None and now - since_at > _PULL_PATIENCE_S):
            return InstanceState.EXITED, detail
    return InstanceState.STARTING, detail


def _status(pod: Object) -> Object:
    statuses = listed(pod, "status", "containerStatuses")
    return statuses[0] if statuses else {}


def _terminated(pod: Object) -> Object:
    found = at(_status(pod), "state", "terminated")
    return found if isinstance(found, Mapping) else {}


def _running_since(pod: Object) -> float | None:
    """When setup began: setup and run are one container."""
    status = _status(pod)
    return instant(text(status, "state", "running", "startedAt") or text(status, "state", "terminated", "startedAt"))


def _end(terminated: Object) -> tuple[str, int | None, str]:
    """Which phase ended, with what exit code, and the last lines of its output."""
    lines = text(terminated, "message").splitlines()
    phase = "run"
    if lines and (ran := RAN_LINE.match(lines[-1])):
        phase, lines = ran["phase"], lines[:-1]
    reason = text(terminated, "reason")
    if reason not in ("Error", "Completed", ""):
        lines.append(reason)  # OOMKilled, ContainerCannotRun, DeadlineExceeded
    clean = ("".join(char for char in line if char.isprintable())[:_DETAIL_WIDTH] for line in lines[-_DETAIL_LINES:])
    return phase, number(terminated, "exitCode"), "\n".join(clean)


def _address(pod: Object, scene: Scene) -> str | None:
    """Where the application is reached: at the pod itself from inside the cluster, otherwise at a port of its node."""
    port = strings(pod, "metadata", "annotations").get(ANNOTATION_PORT, "")
    if scene.inside:
        host = text(pod, "status", "podIP")
        return _joined(host, port) if host else None
    ports = listed(scene.service, "spec", "ports")
    node_port = next((number(one, "nodePort") for one in ports if str(number(one, "port")) == port), None)
    from_node = {text(one, "type"): text(one, "address") for one in listed(scene.node, "status", "addresses")}
    host = from_node.get("ExternalIP") or from_node.get("InternalIP") or text(pod, "status", "hostIP")
    return _joined(host, str(node_port)) if host and node_port else None


def _joined(host: str, port: str) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


# -- notices


def _node_notices(node: Object, pod: Object) -> list[Notice]:
    uid = text(node, "metadata", "uid")
    found = []
    for taint in listed(node, "spec", "taints"):
        key = text(taint, "key")
        if key in _LEAVING_TAINTS:
            found.append(Notice(f"{uid} {key}", None, _LEAVING_TAINTS[key]))
        elif text(taint, "effect") == "NoExecute":
            found += _eviction(f"{uid} {key}", taint, pod)
    for kind, warning_s in _LEAVING_CONDITIONS.items():
        if text(condition(node, kind), "status") == "True":
            found.append(Notice(f"{uid} {kind}", None, warning_s))
    if text(node, "metadata", "deletionTimestamp"):
        found.append(Notice(f"{uid} deleted", None, 60.0))
    return found


def _eviction(key: str, taint: Object, pod: Object) -> list[Notice]:
    """When a taint will drive the pod out, if it does: a node that is silent has one."""
    since_at = instant(text(taint, "timeAdded"))
    bearable_s: list[float] = []
    for toleration in listed(pod, "spec", "tolerations"):
        if text(toleration, "key") in ("", text(taint, "key")) and text(toleration, "effect") in ("", "NoExecute"):
            seconds = number(toleration, "tolerationSeconds")
            if seconds is None:
                return []
            bearable_s.append(float(seconds))
    left_s = max(bearable_s, default=0.0)
    return [Notice(key, None if since_at is None else since_at + left_s, left_s)]
