"""Amazon's price file of one region, read as it streams by: hundreds of megabytes, of which a thousandth is ours.
Knows the file's columns; knows no network and no other region."""

from __future__ import annotations

import csv
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from skyserve.catalog.refresh.answer import CHANGED
from skyserve.catalog.refresh.web import BrokenOffError
from skyserve.catalog.row import ARM64, X86_64
from skyserve.errors import CatalogError

_WANTED: Mapping[str, tuple[str, ...]] = MappingProxyType({
    "TermType": ("OnDemand",),
    "Tenancy": ("Shared",),
    "Operating System": ("Linux",),
    "CapacityStatus": ("Used",),
    "Pre Installed S/W": ("NA", ""),
    "Unit": ("Hrs",),
    "Currency": ("USD",),
    "MarketOption": ("OnDemand", ""),
    "operation": ("RunInstances",),
})  # fmt: skip

_READ = ("Instance Type", "Region Code", "PricePerUnit", "vCPU", "Memory", "GPU", "Physical Processor")

_TELLTALES = tuple(f'"{values[0]}"'.encode() for values in _WANTED.values() if len(values) == 1)
"""Looking for bytes is many times cheaper than taking a line apart, and nearly every line lacks one of these."""

_LONGEST_PREAMBLE = 20


@dataclass(frozen=True, slots=True)
class AwsOffer:
    """An instance type at its on-demand price; `gpus` is 0 without any and may be a fraction."""

    instance_type: str
    price_per_hour: float
    vcpus: float
    memory_gib: float
    gpus: float
    arch: str


@dataclass(frozen=True, slots=True)
class AwsRegion:
    """What one region's price file offers."""

    offers: tuple[AwsOffer, ...]


async def read_price_file(chunks: AsyncIterator[bytes], region: str) -> AwsRegion:
    """The region's offers. Raises BrokenOffError for a file that ends in mid-line, CatalogError for another file."""
    table = _Table(region)
    rest = b""
    async for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            table.take(line)
    table.end(rest)
    return AwsRegion(table.offers())


class _Table:
    """The lines so far: a preamble, the column names, then prices."""

    def __init__(self, region: str) -> None:
        self._region = region
        self._columns: dict[str, int] = {}
        self._width = 0
        self._preamble = 0
        self._found: dict[str, AwsOffer] = {}

    def take(self, line: bytes) -> None:
        """One whole line."""
        if not self._columns:
            self._look_for_columns(line)
        elif all(telltale in line for telltale in _TELLTALES):
            self._consider(_fields(line))

    def end(self, rest: bytes) -> None:
        """What came after the last line break."""
        if not self._columns or (rest.strip() and len(_fields(rest)) != self._width):
            raise BrokenOffError
        self.take(rest)

    def offers(self) -> tuple[AwsOffer, ...]:
        """Everything found, by instance type."""
        if not self._found:
            raise CatalogError(f"aws: the price file of {self._region} offers no Linux machine", hint=CHANGED)
        return tuple(self._found[name] for name in sorted(self._found))

    def _look_for_columns(self, line: bytes) -> None:
        names = _fields(line)
        if names[:1] == ["SKU"]:
            self._columns = {name: index for index, name in enumerate(names)}
            self._width = len(names)
            missing = [name for name in (*_READ, *_WANTED) if name not in self._columns]
            if missing:
                text = f"aws: the price file of {self._region} lacks the columns {', '.join(missing)}"
                raise CatalogError(text, hint=CHANGED)
        self._preamble += 1
        if self._preamble > _LONGEST_PREAMBLE:
            raise CatalogError(f"aws: the price file of {self._region} has no column names", hint=CHANGED)

    def _consider(self, fields: Sequence[str]) -> None:
        if len(fields) != self._width or not self._is_wanted(fields):
            return
        read = {name: fields[self._columns[name]] for name in _READ}
        offer = self._offer(read)
        if offer is not None and read["Region Code"] == self._region:  # files also list the region's local zones
            self._found.setdefault(offer.instance_type, offer)

    def _is_wanted(self, fields: Sequence[str]) -> bool:
        return all(fields[self._columns[name]] in values for name, values in _WANTED.items())

    def _offer(self, read: Mapping[str, str]) -> AwsOffer | None:
        try:
            price = float(read["PricePerUnit"])
            vcpus = float(read["vCPU"])
            memory_gib = float(read["Memory"].removesuffix(" GiB").replace(",", ""))
            gpus = float(read["GPU"]) if read["GPU"] not in ("", "NA") else 0.0
        except ValueError as error:
            text = f"aws: the price file of {self._region} is odd at {read['Instance Type']}: {error}"
            raise CatalogError(text, hint=CHANGED) from error
        arch = ARM64 if "Graviton" in read["Physical Processor"] else X86_64
        if price <= 0:
            return None  # a reservation's share, not a price
        return AwsOffer(read["Instance Type"], price, vcpus, memory_gib, gpus, arch)


def _fields(line: bytes) -> list[str]:
    return next(csv.reader([line.decode("utf-8", "replace").strip("\r\ufeff")]), [])
