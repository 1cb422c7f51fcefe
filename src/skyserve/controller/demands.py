"""What a spec asks for beyond a machine's size, and which infrastructures can deliver it. Knows features by their
names; must not know any infrastructure."""

from __future__ import annotations

from dataclasses import replace

from skyserve.model.resources import ResourceChoice, Resources
from skyserve.model.service import ServiceSpec
from skyserve.providers.base import Capabilities, Feature, Provider

_CONTAINER = "docker:"


def features(spec: ServiceSpec, resources: Resources) -> frozenset[Feature]:
    """What of a spec not every infrastructure can deliver, for one alternative of its resources."""
    image = resources.image_id or ""
    asked = {
        Feature.WORKDIR: bool(spec.workdir),
        Feature.FILE_MOUNTS: bool(spec.file_mounts),
        Feature.SECRETS: bool(spec.secrets),
        Feature.IMAGE: bool(image) and not image.startswith(_CONTAINER),
        Feature.CONTAINER_IMAGE: image.startswith(_CONTAINER),
        Feature.DISK_SIZE: resources.disk_size is not None,
        Feature.DISK_TIER: resources.disk_tier is not None,
        Feature.LABELS: bool(resources.labels),
        Feature.PORTS: bool(set(resources.ports) - {spec.port}),
    }
    return frozenset(feature for feature, wanted in asked.items() if wanted)


def of(spec: ServiceSpec) -> tuple[object, ...]:
    """All that the providers' answers depend on: two specs with the same demands get the same offerings."""
    asked = (features(spec, resources) for resources in spec.resources.alternatives)
    return (spec.resources, spec.replica_policy.may_use_on_demand, *asked)


def deliverable(spec: ServiceSpec, provider: Provider) -> tuple[ResourceChoice | None, tuple[tuple[str, str], ...]]:
    """The alternatives that an infrastructure can honour whole (None when none), and why not the others."""
    can = provider.capabilities
    fitting: list[Resources] = []
    refusals: list[tuple[str, str]] = []
    for resources in spec.resources.alternatives:
        lacking = sorted(feature.value for feature in features(spec, resources) - can.delivers)
        if resources.use_spot and not can.spot:
            lacking.append("use_spot")
        if resources.cloud not in (None, provider.name) or not lacking:
            fitting.append(resources)  # of another cloud's the provider itself says that it is not asked for
        else:
            refusals.append((provider.title, "; ".join(_why(name, can) for name in lacking)))
    if spec.on_spot and spec.replica_policy.may_use_on_demand and can.spot:
        fitting += [replace(resources, use_spot=False) for resources in fitting]  # what stands in when spot is missing
    choice = replace(spec.resources, alternatives=tuple(fitting)) if fitting else None
    return choice, tuple(dict.fromkeys(refusals))


def _why(name: str, can: Capabilities) -> str:
    reason = can.cannot.get(name.removeprefix("use_"))
    return f"cannot honour {name}: {reason}" if reason else f"cannot honour {name}"
