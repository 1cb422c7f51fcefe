"""One line of the catalog: an instance type in one place, its hardware and what it costs. The schema that every cloud,
snapshot, refresh and import shares. Knows no files and no questions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

X86_64 = "x86_64"
ARM64 = "arm64"


class Row(NamedTuple):
    """An instance type in a zone (or, with `zone` None, anywhere in a region), with its accelerators.

    A tuple and not a dataclass, as a catalog makes hundreds of thousands of them. Prices are US dollars an hour for
    the whole machine with its accelerators, Linux, list price; None means not offered or not known, and at least one
    of the two is known. `accelerator` is a canonical name (`model/accelerators.py`), `accelerator_count` is 0 without
    one and may be a fraction, `accelerator_memory_gib` is that of one accelerator. `interruption_band` is how many of
    a hundred spot machines are taken back in a month: 0 below 5, 1 below 10, 2 below 15, 3 below 20, 4 more.
    `price_date` is ISO 8601, shortened to the month or year where the day is not known. `source` is a `Source.id`.
    """

    cloud: str
    instance_type: str
    region: str
    zone: str | None
    accelerator: str | None
    accelerator_count: float
    accelerator_memory_gib: float | None
    vcpus: float
    memory_gib: float
    arch: str
    price_per_hour: float | None
    spot_price_per_hour: float | None
    interruption_band: int | None
    price_date: str
    source: str


@dataclass(frozen=True, slots=True)
class Source:
    """Where prices come from. `id` is short and stays; `note` says what to beware of."""

    id: str
    title: str
    url: str = ""
    note: str = ""
