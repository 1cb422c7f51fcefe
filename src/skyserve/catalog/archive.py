"""The rows of one cloud as one compact file, opened without unpacking it. Knows the bytes; knows no folders, and not
which file is in use.

A magic line, a header (one line of JSON: what is inside, and how long each part is), then one compressed part per
accelerator, so that a question about one accelerator unpacks little. Last comes a digest of all that, so that a file
that was damaged or cut short anywhere is refused before any of it is used.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import TypedDict, cast

from skyserve.catalog import shelf as shelves
from skyserve.catalog.row import Row, Source
from skyserve.catalog.shelf import Shelf
from skyserve.errors import CatalogError

_MAGIC = b"skyserve catalog 1\n"
_DIGEST = hashlib.sha256
_DIGEST_SIZE = 32


class _Part(TypedDict):
    accelerator: str | None
    rows: int
    size: int


class _Header(TypedDict):
    cloud: str
    regions: list[str]
    first_date: str
    last_date: str
    sources: list[dict[str, str]]
    parts: list[_Part]


@dataclass(frozen=True, slots=True)
class Summary:
    """What the catalog has of one cloud. Dates are those of its oldest and newest price; empty when not known."""

    cloud: str
    rows: int
    accelerators: tuple[str, ...]
    regions: tuple[str, ...]
    first_date: str
    last_date: str
    sources: tuple[Source, ...]


class Archive:
    """One cloud's rows, opened: complete and undamaged. Parts are unpacked when they are asked for, once."""

    def __init__(self, data: bytes, header: _Header, start: int) -> None:
        self._data = data
        self._unpacked: dict[str | None, Shelf] = {}
        self._parts: dict[str | None, tuple[_Part, int]] = {}
        for part in header["parts"]:
            self._parts[part["accelerator"]] = (part, start)
            start += part["size"]
        self.summary = Summary(
            cloud=header["cloud"],
            rows=sum(part["rows"] for part in header["parts"]),
            accelerators=tuple(name for name in self._parts if name is not None),
            regions=tuple(header["regions"]),
            first_date=header["first_date"],
            last_date=header["last_date"],
            sources=tuple(Source(**source) for source in header["sources"]),
        )

    @property
    def accelerators(self) -> tuple[str | None, ...]:
        """What there are shelves for; None for machines without accelerators."""
        return tuple(self._parts)

    def rows_with(self, accelerator: str | None) -> int:
        """How many rows the shelf has."""
        return self._parts[accelerator][0]["rows"] if accelerator in self._parts else 0

    def shelf(self, accelerator: str | None) -> Shelf | None:
        """The rows with that accelerator, if there are any."""
        if accelerator not in self._unpacked and accelerator in self._parts:
            part, start = self._parts[accelerator]
            self._unpacked[accelerator] = shelves.from_json(zlib.decompress(self._data[start : start + part["size"]]))
        return self._unpacked.get(accelerator)


def pack(cloud: str, rows: Iterable[Row], sources: Sequence[Source]) -> bytes:
    """The file for all of a cloud's rows; the same rows in any order give the same bytes.

    Raises CatalogError for a row that says what no catalog may say.
    """
    contents = shelves.shelve(_checked(row, cloud) for row in rows)
    if not contents:
        raise CatalogError(f"there is not one price of {cloud}")
    packed = [zlib.compress(shelves.to_json(shelf).encode(), 9) for shelf in contents]
    dates = sorted(date for shelf in contents for date, _ in shelf.origins if date)
    used = {source for shelf in contents for _, source in shelf.origins}
    header: _Header = {
        "cloud": cloud,
        "regions": sorted({region for shelf in contents for region, _ in shelf.places}),
        "first_date": dates[0] if dates else "",
        "last_date": dates[-1] if dates else "",
        "sources": [asdict(source) for source in sorted(sources, key=lambda s: s.id) if source.id in used],
        "parts": [
            {"accelerator": shelf.accelerator, "rows": len(shelf), "size": len(part)}
            for shelf, part in zip(contents, packed, strict=True)
        ],
    }
    body = b"".join([_MAGIC, json.dumps(header, sort_keys=True).encode(), b"\n", *packed])
    return body + _DIGEST(body).digest()


def unpack(data: bytes, name: str) -> Archive:
    """Open a file's bytes. Raises CatalogError, naming the file by `name`, unless every byte is as it was written."""
    body, digest = data[:-_DIGEST_SIZE], data[-_DIGEST_SIZE:]
    if not data.startswith(_MAGIC):
        raise CatalogError(f"{name} is not a catalog file of this version")
    if _DIGEST(body).digest() != digest:
        raise CatalogError(f"{name} is damaged or was cut short: its checksum does not match")
    end = body.index(b"\n", len(_MAGIC))
    return Archive(data, cast("_Header", json.loads(body[len(_MAGIC) : end])), end + 1)


def is_archive(data: bytes) -> bool:
    """Whether these bytes mean to be such a file, damaged or not."""
    return data.startswith(_MAGIC)


def _checked(row: Row, cloud: str) -> Row:
    problem = _problem(row, cloud)
    if problem:
        place = f"{row.region}/{row.zone}" if row.zone else row.region
        raise CatalogError(f"{row.cloud} {row.instance_type} in {place}: {problem}")
    return row


def _problem(row: Row, cloud: str) -> str | None:
    if row.cloud != cloud:
        return f"is a row of another cloud than {cloud}"
    if not (row.instance_type and row.region and row.arch):
        return "has no instance type, region or architecture"
    if row.price_per_hour is None and row.spot_price_per_hour is None:
        return "has no price"
    if (row.accelerator is None) != (row.accelerator_count == 0):
        return "has an accelerator without a count, or a count without an accelerator"
    amounts = (row.price_per_hour, row.spot_price_per_hour, row.accelerator_memory_gib, row.vcpus, row.memory_gib)
    if not all(amount is None or 0 <= amount < float("inf") for amount in amounts) or row.accelerator_count < 0:
        return "has an amount below zero, or one that is no number"
    return None
