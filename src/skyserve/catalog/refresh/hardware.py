"""What a machine is made of, for price APIs that tell only names and prices: taken from the last good rows of the same
cloud, so that one instance type keeps one accelerator name over all refreshes. Knows no network."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from skyserve.catalog.row import X86_64, Row


@dataclass(frozen=True, slots=True)
class Hardware:
    """A machine's parts. Memory of one accelerator in GiB; None where it is not known."""

    vcpus: float
    memory_gib: float
    accelerator: str | None = None
    accelerator_count: float = 0
    accelerator_memory_gib: float | None = None
    arch: str = X86_64

    def row(self, cloud: str, instance_type: str, place: Place, price: Price) -> Row:
        """The catalog's line for this machine there, at that price."""
        return Row(
            cloud=cloud,
            instance_type=instance_type,
            region=place.region,
            zone=place.zone,
            accelerator=self.accelerator,
            accelerator_count=self.accelerator_count,
            accelerator_memory_gib=self.accelerator_memory_gib,
            vcpus=self.vcpus,
            memory_gib=self.memory_gib,
            arch=self.arch,
            price_per_hour=price.on_demand,
            spot_price_per_hour=price.spot,
            interruption_band=price.interruption_band,
            price_date=price.date,
            source=price.source,
        )


@dataclass(frozen=True, slots=True)
class Place:
    """A region, or one zone of it."""

    region: str
    zone: str | None = None


@dataclass(frozen=True, slots=True)
class Price:
    """US dollars an hour; None where it is not offered or not known. `date` is ISO 8601, `source` a Source.id."""

    date: str
    source: str
    on_demand: float | None
    spot: float | None = None
    interruption_band: int | None = None


def of_row(row: Row) -> Hardware:
    """The machine of a catalog line."""
    return Hardware(
        vcpus=row.vcpus,
        memory_gib=row.memory_gib,
        accelerator=row.accelerator,
        accelerator_count=row.accelerator_count,
        accelerator_memory_gib=row.accelerator_memory_gib,
        arch=row.arch,
    )


def by_instance_type(rows: Iterable[Row]) -> dict[str, Hardware]:
    """The machines of catalog lines; where lines disagree, the first one counts."""
    found: dict[str, Hardware] = {}
    for row in rows:
        if row.instance_type not in found:
            found[row.instance_type] = of_row(row)
    return found
