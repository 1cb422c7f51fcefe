"""What is known of capacity pools: which refused lately, why, and until when they are left alone."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from skyserve.model.offering import Offering


class CooldownKind(Enum):
    """Why a place is left alone."""

    CAPACITY = "CAPACITY"
    QUOTA = "QUOTA"
    THROTTLED = "THROTTLED"
    CREDENTIALS = "CREDENTIALS"
    UNAVAILABLE = "UNAVAILABLE"


@dataclass(frozen=True, slots=True)
class Cooldown:
    """A place that is not asked before `until_at`, Unix seconds; `since_at` is when it last refused.

    `location` is `cloud`, `cloud/region` or `cloud/region/zone` and holds for all below it. `instance_types` is an
    exact type or shape (see Offering), a family of types such as `p5*`, or `*`. `capacity_type` is a CapacityType's
    name, or `*`. Every strike doubles the wait; an entry without strikes says that the place gave what was asked.
    """

    location: str
    instance_types: str
    capacity_type: str
    kind: CooldownKind
    since_at: float
    until_at: float
    strikes: int
    why: str

    @property
    def scope(self) -> str:
        """The name of the place, as people read it."""
        return f"{self.location} {self.instance_types} {self.capacity_type}"

    def covers(self, offering: Offering) -> bool:
        """Whether this holds for an offering."""
        place = str(offering.location)
        here = place == self.location or place.startswith(f"{self.location}/")
        if not here or self.capacity_type not in ("*", offering.capacity_type.value):
            return False
        if self.instance_types.endswith("*"):
            return offering.instance_type.startswith(self.instance_types.removesuffix("*"))
        return self.instance_types in (offering.instance_type, offering.shape)
