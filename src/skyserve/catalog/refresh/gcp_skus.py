"""What Google's billing SKUs mean: the price of one vCPU, one GiB or one GPU of a machine family in some regions. Knows
how SKUs are worded; knows no machine and no network."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType

from skyserve.catalog.refresh.answer import Answer

_HOURS_PER_MONTH = 730


class Part(Enum):
    """What is charged for: a vCPU, a GiB of memory, a GPU alone, a GPU with its share of a machine, a GiB of disk."""

    CORE = "core"
    MEMORY = "memory"
    GPU = "gpu"
    SLICE = "slice"
    LOCAL_DISK = "local_disk"


@dataclass(frozen=True, slots=True)
class GcpPrice:
    """Dollars an hour of one part. `of` is a machine family (`n2`), a GPU (canonical name), or empty for disks."""

    part: Part
    of: str
    spot: bool
    regions: tuple[str, ...]
    price_per_hour: float


@dataclass(frozen=True, slots=True)
class GcpPage:
    """What one page of SKUs tells, and the token of the next page; empty after the last."""

    prices: tuple[GcpPrice, ...]
    next_token: str


_NOT_OURS = re.compile(
    r"Custom|Sole Tenancy|Reserved|Premium|Commitment|suspended|DWS|Extended|Overcommit|Confidential", re.IGNORECASE
)
_PREFIX = re.compile(r"^spot preemptible ", re.IGNORECASE)
_CORE_OR_MEMORY = re.compile(r"^(?P<family>.+?) (?P<part>core|ram)\b", re.IGNORECASE)
_GPU = re.compile(r"^(?:nvidia )?(?:tesla )?(?P<gpu>.+?) gpu\b", re.IGNORECASE)
_SLICE = re.compile(r"^\w+ nvidia (?P<gpu>\w+) \(1 gpu slice\)", re.IGNORECASE)
_SERIES = re.compile(r"^[a-z]\d[a-z]?\b", re.IGNORECASE)

_NAMED_FAMILIES: Mapping[str, str] = MappingProxyType({
    "compute optimized": "c2", "memory-optimized": "m1", "a3plus": "a3-megagpu", "a3ultra": "a3-ultragpu",
})  # fmt: skip
"""Families that SKUs call by another name than machine types do; matched at the beginning."""

_GPUS: Mapping[str, str] = MappingProxyType({
    "a100 80gb": "A100-80GB", "h100 80gb": "H100", "h100 80gb mega": "H100-MEGA", "h100 80gb plus": "H100-MEGA",
    "h200 141gb": "H200", "rtx 6000 96gb": "RTX-PRO-6000", "rtx pro 6000 96gb": "RTX-PRO-6000",
})  # fmt: skip


def read_page(answer: Answer) -> GcpPage:
    """A page of SKUs, without those that no plain machine is made of. Raises CatalogError."""
    prices = [price for sku in answer["skus"].elements() if (price := _read(sku)) is not None]
    return GcpPage(tuple(prices), answer["nextPageToken"].text_or(""))


def _read(sku: Answer) -> GcpPrice | None:
    category = sku["category"]
    usage = category["usageType"].text()
    description = sku["description"].text()
    if usage not in ("OnDemand", "Preemptible") or _NOT_OURS.search(description):
        return None
    meaning = _meaning(category["resourceFamily"].text(), _PREFIX.sub("", description))
    if meaning is None:
        return None
    part, of = meaning
    amount = _amount(sku)
    if amount <= 0:
        return None
    if part is Part.LOCAL_DISK:
        amount /= _HOURS_PER_MONTH
    regions = tuple(region.text() for region in sku["serviceRegions"].elements())
    return GcpPrice(part, of, usage == "Preemptible", regions, amount)


def _meaning(resource_family: str, description: str) -> tuple[Part, str] | None:
    if resource_family == "Storage":
        return (Part.LOCAL_DISK, "") if description.lower().startswith("ssd backed local storage") else None
    if resource_family != "Compute":
        return None
    if found := _SLICE.match(description):
        return Part.SLICE, found["gpu"].upper()
    if found := _CORE_OR_MEMORY.match(description):
        family = _family(found["family"].lower())
        part = Part.CORE if found["part"].lower() == "core" else Part.MEMORY
        return (part, family) if family else None
    if found := _GPU.match(description):
        gpu = found["gpu"].lower()
        return Part.GPU, _GPUS.get(gpu, gpu.upper())
    return None


def _family(worded: str) -> str | None:
    for name, family in _NAMED_FAMILIES.items():
        if worded.startswith(name):
            return family
    found = _SERIES.match(worded)
    return found[0] if found else None


def _amount(sku: Answer) -> float:
    """Dollars a unit, in the last tier: earlier ones are free allowances. Zero where nothing is charged."""
    pricing = sku["pricingInfo"].elements()
    tiers = pricing[-1]["pricingExpression"]["tieredRates"].elements() if pricing else []
    if not tiers:
        return 0.0
    unit = tiers[-1]["unitPrice"]
    units = unit["units"].number() if "units" in unit else 0.0
    nanos = unit["nanos"].number() if "nanos" in unit else 0.0
    return units + nanos / 1e9


class PriceSheet:
    """All parts' prices, to be added up."""

    def __init__(self, prices: Iterable[GcpPrice]) -> None:
        self._prices: dict[tuple[Part, str, bool, str], float] = {}
        for price in prices:
            for region in price.regions:
                self._prices.setdefault((price.part, price.of, price.spot, region), price.price_per_hour)

    def regions(self) -> frozenset[str]:
        """Everywhere that something is sold."""
        return frozenset(region for *_, region in self._prices)

    def price(self, part: Part, of: str, region: str, *, spot: bool) -> float | None:
        """Dollars an hour of one part there, or None when it is not sold."""
        return self._prices.get((part, of, spot, region))
