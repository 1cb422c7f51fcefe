"""What a cluster's nodes can give: CPUs, memory, accelerators by their labels, spot capacity; and where a pod belongs.

Pure: nodes come as the API lists them. Knows the labels and taints that the known kinds of clusters put on nodes; must
not know how pods are made or watched.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from skyserve.model import accelerators
from skyserve.model.offering import CapacityType, Location, Offering
from skyserve.model.resources import Accelerator, Quantity, Resources
from skyserve.providers.kubernetes.objects import GIB, Object, at, listed, part, quantity, strings, text
from skyserve.providers.machine import canonical_gpu_name

CLOUD = "kubernetes"
GPU = "nvidia.com/gpu"
"""The resource under which NVIDIA's device plugin counts GPUs."""
ZONE_LABEL = "topology.kubernetes.io/zone"
IMAGE_PREFIX = "docker:"

SPOT_LABELS = (
    ("cloud.google.com/gke-spot", "true"),
    ("cloud.google.com/gke-preemptible", "true"),
    ("eks.amazonaws.com/capacityType", "SPOT"),
    ("karpenter.sh/capacity-type", "spot"),
    ("kubernetes.azure.com/scalesetpriority", "spot"),
)
"""Labels by which nodes can be told that may be taken back at any time."""

_AUTOSCALED_LABELS = ("karpenter.sh/nodepool", "karpenter.sh/provisioner-name")
_DEFAULT_CPUS, _CPUS_PER_GPU, _GIB_PER_CPU = 2.0, 4.0, 4.0
_MODEST_SHARE = 0.5
_INSTANCE_TYPE = re.compile(r"(?P<cpus>[\d.]+)CPU--(?P<gib>[\d.]+)GB(?:--(?P<name>[^:]+):(?P<count>\d+))?")
_ANY = (None, "*")


def _lower_case(value: str) -> str:
    return accelerators.canonical(value.removeprefix("nvidia-").removeprefix("tesla-"))


def _node_class(value: str) -> str:
    return accelerators.canonical(re.sub(r"_(NVLINK|PCIE|SXM\d?)", "", value, flags=re.IGNORECASE).replace("_", "-"))


def _product(value: str) -> str:
    return canonical_gpu_name(re.sub(r"-(SHARED|MIG-.*)$", "", value).replace("-", " "))


_ACCELERATOR_LABELS: tuple[tuple[str, Callable[[str], str]], ...] = (
    ("skypilot.co/accelerator", _lower_case),
    ("cloud.google.com/gke-accelerator", _lower_case),
    ("karpenter.k8s.aws/instance-gpu-name", _lower_case),
    ("k8s.amazonaws.com/accelerator", _lower_case),
    ("gpu.nvidia.com/class", _node_class),
    ("nvidia.com/gpu.product", _product),
)
"""Labels that name a node's accelerators, what people wrote before what is detected, and how each spells the names."""


@dataclass(frozen=True, slots=True)
class Node:
    """One node: what pods may use of it altogether, and by which labels pods find it.

    `accelerator_label` and `spot_label` are (key, value). `address` is where its ports are reached from outside.
    """

    name: str
    vcpus: float
    memory_gib: float
    gpus: int
    accelerator: str | None
    accelerator_label: tuple[str, str] | None
    spot_label: tuple[str, str] | None
    zone: str | None
    address: str | None
    open: bool
    autoscaled: bool


@dataclass(frozen=True, slots=True)
class Shape:
    """What a pod asks for."""

    vcpus: float
    memory_gib: float
    accelerator: Accelerator | None

    def __str__(self) -> str:
        size = f"{self.vcpus:g}CPU--{self.memory_gib:g}GB"
        return f"{size}--{self.accelerator}" if self.accelerator else size

    def fits(self, node: Node) -> bool:
        """Whether the node could take such a pod if it were empty."""
        gpus = self.accelerator.count if self.accelerator else 0
        return self.vcpus <= node.vcpus and self.memory_gib <= node.memory_gib and gpus <= node.gpus


def node_of(thing: Object) -> Node:
    """A node as the API describes it."""
    labels = strings(thing, "metadata", "labels")
    allocatable = part(thing, "status", "allocatable")
    gpus = int(quantity(allocatable.get(GPU, "0")))
    named = next(((key, labels[key], name) for key, name in _ACCELERATOR_LABELS if labels.get(key)), None)
    return Node(
        name=text(thing, "metadata", "name"),
        vcpus=quantity(allocatable.get("cpu", "0")),
        memory_gib=quantity(allocatable.get("memory", "0")) / GIB,
        gpus=gpus,
        accelerator=named[2](named[1]) if named and gpus else None,
        accelerator_label=(named[0], named[1]) if named and gpus else None,
        spot_label=next((label for label in SPOT_LABELS if labels.get(label[0]) == label[1]), None),
        zone=labels.get(ZONE_LABEL) or labels.get("failure-domain.beta.kubernetes.io/zone"),
        address=_address(thing),
        open=at(thing, "spec", "unschedulable") is not True and not text(thing, "metadata", "deletionTimestamp"),
        autoscaled=any(label in labels for label in _AUTOSCALED_LABELS),
    )


def _address(thing: Object) -> str | None:
    found = {text(one, "type"): text(one, "address") for one in listed(thing, "status", "addresses")}
    return found.get("ExternalIP") or found.get("InternalIP") or found.get("Hostname")


def offering_of(context: str, nodes: Sequence[Node], want: Resources) -> Offering | str:
    """What a context offers for one alternative, or why it never can."""
    if foreign := _foreign(context, want):
        return foreign
    spot = "spot nodes" if want.use_spot else "nodes"
    having = [node for node in nodes if node.open and _in_place(node, want)]
    if not having:
        place = "" if want.zone in _ANY else f" in zone {want.zone}"
        return f"context {context} has no {spot if want.use_spot else 'on-demand nodes'}{place} that take pods"
    accelerator = _asked(want)
    if accelerator:
        having = [node for node in having if _same_accelerator(node, accelerator)]
        if not having:
            return f"no {spot[:-1]} of context {context} has {accelerator}: {_what_gpus(nodes)}"
    roomiest = max(having, key=lambda node: (node.gpus, node.vcpus, node.memory_gib))
    shape = _shape(want, accelerator, roomiest)
    if not any(shape.fits(node) for node in having):
        most = f"{max(n.vcpus for n in having):g} vCPUs, {max(n.memory_gib for n in having):.1f} GiB"
        return f"no {spot[:-1]} of context {context} can hold {shape}: the largest numbers are {most}"
    return Offering(
        provider=CLOUD,
        instance_type=str(shape),
        location=Location(CLOUD, context, None if want.zone in _ANY else want.zone),
        capacity_type=CapacityType.SPOT if want.use_spot else CapacityType.ON_DEMAND,
        accelerator=accelerator,
        vcpus=shape.vcpus,
        memory_gib=shape.memory_gib,
        price_per_hour=0.0,
    )


def _foreign(context: str, want: Resources) -> str | None:
    """What is asked that has no meaning in this context."""
    if want.cloud not in (*_ANY, CLOUD):
        return f"asks for cloud {want.cloud}"
    if want.region not in (*_ANY, context):
        return f"asks for region {want.region}, and this is context {context}"
    if want.instance_type is not None and _INSTANCE_TYPE.fullmatch(want.instance_type) is None:
        return f"asks for instance type {want.instance_type}, which is none of a pod; write one as 4CPU--16GB--L4:1"
    if want.image_id is not None and not want.image_id.startswith(IMAGE_PREFIX):
        return f"asks for image {want.image_id}, and pods run container images: write docker:{want.image_id}"
    if want.volumes:
        return f"asks for volumes ({', '.join(want.volumes)}), which pods are not given yet"
    count = want.accelerators.count if want.accelerators else 1
    if count != int(count):
        return f"asks for {want.accelerators}, and pods get whole accelerators only"
    return None


def _asked(want: Resources) -> Accelerator | None:
    match = _INSTANCE_TYPE.fullmatch(want.instance_type or "")
    if match and match["name"]:
        return Accelerator(accelerators.canonical(match["name"]), int(match["count"]))
    return want.accelerators


def _in_place(node: Node, want: Resources) -> bool:
    return bool(node.spot_label) == want.use_spot and (want.zone in _ANY or want.zone == node.zone)


def _same_accelerator(node: Node, want: Accelerator) -> bool:
    return (node.accelerator or "").lower() == want.name.lower() and node.gpus >= want.count


def _what_gpus(nodes: Iterable[Node]) -> str:
    having = [node for node in nodes if node.gpus]
    named = sorted({f"{node.accelerator}:{node.gpus}" for node in having if node.accelerator})
    if nameless := [node.name for node in having if not node.accelerator]:
        named.append(f"GPUs of unknown kind on {nameless[0]} (kubectl label node {nameless[0]} {_OWN_LABEL}=l4)")
    return f"there are {', '.join(named)}" if named else "there are no GPUs"


_OWN_LABEL = _ACCELERATOR_LABELS[0][0]


def _shape(want: Resources, accelerator: Accelerator | None, roomiest: Node) -> Shape:
    """What to ask for. What nobody asked is modest, so that it does not shut a pod out of small nodes."""
    if match := _INSTANCE_TYPE.fullmatch(want.instance_type or ""):
        return Shape(float(match["cpus"]), float(match["gib"]), accelerator)
    usual = _CPUS_PER_GPU * accelerator.count if accelerator else _DEFAULT_CPUS
    vcpus = want.cpus.amount if want.cpus else min(usual, _modest(roomiest.vcpus))
    if want.memory is None:
        return Shape(vcpus, min(vcpus * _GIB_PER_CPU, _modest(roomiest.memory_gib)), accelerator)
    return Shape(vcpus, _memory(want.memory, vcpus), accelerator)


def _memory(asked: Quantity, vcpus: float) -> float:
    return asked.amount * vcpus if asked.per_vcpu else asked.amount


def _modest(most: float) -> float:
    return max(0.1, math.floor(most * _MODEST_SHARE * 10) / 10)


def selector_terms(nodes: Sequence[Node], offering: Offering) -> list[dict[str, object]]:
    """Node selector terms, any of which a node must meet, that keep a pod where its offering says.

    Empty when no node is left that does.
    """
    spot = offering.capacity_type is CapacityType.SPOT
    want = Resources(zone=offering.location.zone, use_spot=spot)
    fitting = [node for node in nodes if node.open and _in_place(node, want)]
    if offering.accelerator:
        fitting = [node for node in fitting if _same_accelerator(node, offering.accelerator)]
    sorts: dict[tuple[str | None, str | None], set[str]] = {}
    for node in fitting:
        key, value = node.accelerator_label if offering.accelerator and node.accelerator_label else (None, "")
        sorts.setdefault((key, node.spot_label[0] if node.spot_label else None), set()).add(value)
    return [
        {"matchExpressions": _expressions(accelerator_key, sorted(values), spot_key, offering.location.zone)}
        for (accelerator_key, spot_key), values in sorted(sorts.items(), key=str)
    ]


def _expressions(
    accelerator_key: str | None, values: list[str], spot_key: str | None, zone: str | None
) -> list[dict[str, object]]:
    found: list[dict[str, object]] = []
    if accelerator_key:
        found.append({"key": accelerator_key, "operator": "In", "values": values})
    if spot_key:
        found.append({"key": spot_key, "operator": "In", "values": [dict(SPOT_LABELS)[spot_key]]})
    else:
        found += [{"key": key, "operator": "NotIn", "values": [value]} for key, value in SPOT_LABELS]
    if zone:
        found.append({"key": ZONE_LABEL, "operator": "In", "values": [zone]})
    return found


def tolerations() -> list[dict[str, object]]:
    """Taints that clusters put on GPU and spot nodes to keep other pods away."""
    keys = (GPU, *(key for key, _ in SPOT_LABELS))
    return [{"key": key, "operator": "Exists", "effect": "NoSchedule"} for key in keys]
