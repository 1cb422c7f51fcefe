"""Files of recorded spot capacity -> a market. Knows their format and nothing of what is done with it.

A file is a JSON object, gzipped or not: `zones`, `gap_seconds`, `capacity` ({zone: one number a row}), `spot_price`
({zone: a number, or one a row}), `on_demand_price`, `instance`; where given also `name`, `start` (ISO 8601), `cloud`,
`accelerators` ("V100:1"). Row k holds from k to k + 1 times the gap.
"""

from __future__ import annotations

import gzip
import json
import math
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import reduce
from pathlib import Path
from typing import TypeGuard

from skyserve.catalog.zones import place_of
from skyserve.errors import UsageError
from skyserve.model.accelerators import canonical
from skyserve.model.offering import CapacityType, Location, Offering
from skyserve.model.resources import Accelerator
from skyserve.sim.market import BEGIN_AT, Market, MarketPool, Steps

Describe = Callable[[Offering], Offering]
"""What is known elsewhere of a machine of that type: its accelerator, vCPUs and memory."""

_HINT = "a trace has zones, gap_seconds, capacity, spot_price and on_demand_price: see the page about the simulator"


def load_traces(paths: Sequence[Path], describe: Describe = lambda offering: offering) -> Market:
    """The market of several files, begun at the same time, for as long as all of them last.

    Raises UsageError for a file that is not there, not a trace, or inconsistent.
    """
    if not paths:
        raise UsageError("no trace file is named", hint=_HINT)
    return reduce(Market.joined, [load_trace(path, describe) for path in paths])


def load_trace(path: Path, describe: Describe = lambda offering: offering) -> Market:
    """The market of one file. Raises UsageError."""
    return _Trace(str(path), _read(path)).market(path.name.partition(".")[0], describe)


def _read(path: Path) -> Mapping[str, object]:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror or error}", hint=_HINT) from error
    try:
        content = json.loads((gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data).decode())
    except (ValueError, OSError, EOFError, zlib.error, RecursionError) as error:
        raise UsageError(f"{path}: is not JSON, gzipped or not: {error}", hint=_HINT) from error
    if not isinstance(content, dict):
        raise UsageError(f"{path}: is not a JSON object", hint=_HINT)
    return content


class _Trace:
    """One file's content; every look at it that finds something else than it should raises UsageError."""

    def __init__(self, label: str, content: Mapping[str, object]) -> None:
        self._label = label
        self._content = content

    def market(self, name: str, describe: Describe) -> Market:
        gap_s = self._number("gap_seconds", above=0.0)
        zones = self._zones()
        capacity = {zone: self._rows("capacity", zone) for zone in zones}
        rows = len(capacity[zones[0]])
        on_demand = self._number("on_demand_price", above=0.0)
        pools: list[MarketPool] = []
        for zone in zones:
            if len(capacity[zone]) != rows:
                raise self._wrong(f"`capacity` has {len(capacity[zone])} rows for {zone}, {rows} for {zones[0]}")
            price = self._price(zone, rows, gap_s)
            offering = describe(self._offering(self._location(zone), CapacityType.SPOT, price.values[0]))
            pools.append(MarketPool(offering, Steps.rows(capacity[zone], gap_s), price))
        for region in dict.fromkeys((pool.offering.location.cloud, pool.offering.location.region) for pool in pools):
            offering = describe(self._offering(Location(*region), CapacityType.ON_DEMAND, on_demand))
            pools.append(MarketPool(offering, None, Steps((0.0,), (on_demand,))))
        told = self._content.get("name")
        return Market(told if isinstance(told, str) else name, tuple(pools), rows * gap_s, self._begin_at())

    def _wrong(self, what: str) -> UsageError:
        return UsageError(f"{self._label}: {what}", hint=_HINT)

    def _number(self, key: str, *, above: float) -> float:
        value = self._content.get(key)
        if not _is_number(value) or value <= above:
            raise self._wrong(f"`{key}` must be a number above {above:g}, not {_shown(value)}")
        return value

    def _zones(self) -> list[str]:
        zones = self._content.get("zones")
        if not isinstance(zones, list) or not zones or not all(isinstance(zone, str) for zone in zones):
            raise self._wrong("`zones` must be a list of names")
        if len(set(zones)) < len(zones):
            raise self._wrong("`zones` names a zone twice")
        return zones

    def _of_zone(self, key: str, zone: str) -> object:
        by_zone = self._content.get(key)
        if not isinstance(by_zone, dict):
            raise self._wrong(f"`{key}` must have an entry for each zone")
        if zone not in by_zone:
            raise self._wrong(f"`{key}` has no entry for {zone}")
        return by_zone[zone]

    def _rows(self, key: str, zone: str) -> list[float]:
        rows = self._of_zone(key, zone)
        if not isinstance(rows, list) or not rows:
            raise self._wrong(f"`{key}` of {zone} must be a list with a number for each row")
        for number, value in enumerate(rows):
            if not _is_number(value) or value < 0:
                raise self._wrong(f"`{key}` of {zone}, row {number}: {_shown(value)} is not a number of 0 or more")
        return rows

    def _price(self, zone: str, rows: int, gap_s: float) -> Steps:
        given = self._of_zone("spot_price", zone)
        prices = self._rows("spot_price", zone) if isinstance(given, list) else [given]
        if len(prices) not in (1, rows):
            raise self._wrong(f"`spot_price` of {zone} has {len(prices)} rows, its capacity {rows}")
        for value in prices:
            if not _is_number(value) or value <= 0:
                raise self._wrong(f"`spot_price` of {zone}: {_shown(value)} is not a number above 0")
        return Steps.rows([value for value in prices if _is_number(value)], gap_s)

    def _location(self, zone: str) -> Location:
        """`cloud/region/zone`, or the zone alone where its form tells the cloud and the region."""
        parts = zone.split("/")
        if len(parts) == 3 and all(parts):
            return Location(*parts)
        told = self._content.get("cloud")
        cloud = told if isinstance(told, str) and told else None
        place = place_of(zone, cloud)
        if place is not None:
            return Location(*place, zone)
        if cloud is not None:
            return Location(cloud, zone.rpartition("-")[0] or zone, zone)
        hint = "write it as cloud/region/zone, or add `cloud` to the file"
        raise UsageError(f"{self._label}: the cloud of zone {zone!r:.60} cannot be told from its name", hint=hint)

    def _offering(self, location: Location, capacity_type: CapacityType, price: float) -> Offering:
        instance = self._content.get("instance")
        words = instance.split() if isinstance(instance, str) else []
        instance_type = words[0] if words else "machine"
        return Offering(location.cloud, instance_type, location, capacity_type, self._accelerator(), 0.0, 0.0, price)

    def _accelerator(self) -> Accelerator | None:
        told = self._content.get("accelerators")
        if told is None:
            return None
        name, _, count = told.partition(":") if isinstance(told, str) else ("", "", "")
        if not name or not re.fullmatch(r"\d+(\.\d+)?", count or "1"):
            raise self._wrong(f"`accelerators` must be written as in V100:1, not {_shown(told)}")
        return Accelerator(canonical(name), float(count or 1))

    def _begin_at(self) -> float:
        """When it was recorded; for a date that cannot be read, a fixed one: only differences count."""
        start = self._content.get("start")
        try:
            began = datetime.fromisoformat(start if isinstance(start, str) else "")
        except ValueError:
            return BEGIN_AT
        return (began if began.tzinfo else began.replace(tzinfo=UTC)).timestamp()


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _shown(value: object) -> str:
    return f"{value!r:.40}"
