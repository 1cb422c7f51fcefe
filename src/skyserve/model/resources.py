"""What a replica needs: one or several alternatives, each a set of constraints. Field names are the YAML's keys."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Quantity:
    """An amount that is exact (`8`), a minimum (`8+`), or a multiple of the vCPUs (`4x`, memory only)."""

    amount: float
    at_least: bool = False
    per_vcpu: bool = False

    def __str__(self) -> str:
        return f"{self.amount:g}{'+' if self.at_least else ''}{'x' if self.per_vcpu else ''}"


@dataclass(frozen=True, slots=True)
class Accelerator:
    """An accelerator type by its canonical name, and how many of it one replica gets."""

    name: str
    count: float = 1

    def __str__(self) -> str:
        return f"{self.name}:{self.count:g}"


@dataclass(frozen=True, slots=True)
class Resources:
    """One alternative of `resources:`. `None` means: anything will do. Sizes are GiB, money is US dollars an hour."""

    cloud: str | None = None
    region: str | None = None
    zone: str | None = None
    accelerators: Accelerator | None = None
    accelerator_args: Mapping[str, str] = field(default_factory=dict)
    cpus: Quantity | None = None
    memory: Quantity | None = None
    instance_type: str | None = None
    use_spot: bool = False
    disk_size: int | None = None
    disk_tier: str | None = None
    local_disk: str | None = None
    ephemeral_storage: str | None = None
    network_tier: str | None = None
    ports: tuple[int, ...] = ()
    image_id: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    max_hourly_cost: float | None = None
    priority: str | None = None
    volumes: tuple[str, ...] = ()
    autostop: str | None = None


@dataclass(frozen=True, slots=True)
class ResourceChoice:
    """The alternatives of a service. `ordered` means the first that can be had, otherwise the cheapest of all."""

    alternatives: tuple[Resources, ...] = (Resources(),)
    ordered: bool = False
