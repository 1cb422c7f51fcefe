"""What can be had, where, and at what price."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from skyserve.model.resources import Accelerator


class CapacityType(Enum):
    """How a machine is paid for, and therefore how easily it is taken away."""

    SPOT = "SPOT"
    ON_DEMAND = "ON_DEMAND"
    RESERVED = "RESERVED"


@dataclass(frozen=True, slots=True)
class Location:
    """Where a machine stands. A zone is not known or not meaningful everywhere."""

    cloud: str
    region: str
    zone: str | None = None

    def __str__(self) -> str:
        place = f"{self.cloud}/{self.region}" if self.region else self.cloud
        return f"{place}/{self.zone}" if self.zone else place


@dataclass(frozen=True, slots=True)
class Offering:
    """One instance type in one place under one capacity type: a capacity pool of its own."""

    provider: str
    instance_type: str
    location: Location
    capacity_type: CapacityType
    accelerator: Accelerator | None
    vcpus: float
    memory_gib: float
    price_per_hour: float

    @property
    def shape(self) -> str:
        """The instance type with its accelerators: some clouds attach different ones to the same type."""
        return f"{self.instance_type}+{self.accelerator}" if self.accelerator else self.instance_type

    @property
    def pool(self) -> str:
        """The name under which what is learnt about this pool is remembered."""
        return f"{self.location}/{self.shape}/{self.capacity_type.value}"
