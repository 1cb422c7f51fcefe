"""The rows of one cloud with one accelerator, as columns: what a catalog is stored and searched in. Knows how rows
become columns, JSON text and rows again; knows no files and no questions."""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, cast

from skyserve.catalog.row import Row
from skyserve.errors import CatalogError
from skyserve.model.offering import CapacityType, Location, Offering
from skyserve.model.resources import Accelerator


class Shape(NamedTuple):
    """The hardware of an instance type; all of a shelf's shapes have the shelf's accelerator."""

    instance_type: str
    accelerator_count: float
    accelerator_memory_gib: float | None
    vcpus: float
    memory_gib: float
    arch: str


Place = tuple[str, str | None]
"""Region and zone; without a zone, anywhere in the region."""

Origin = tuple[str, str]
"""Date of a price and the id of its source."""


@dataclass(frozen=True, eq=False)
class Shelf:
    """Pool `i` is `shapes[shape_of[i]]` in `places[place_of[i]]` for `prices[i]`; pools are in order of their shapes.

    Columns instead of rows, because a question first rules out shapes, then places, and only then looks at prices.
    """

    cloud: str
    accelerator: str | None
    shapes: tuple[Shape, ...]
    places: tuple[Place, ...]
    origins: tuple[Origin, ...]
    shape_of: Sequence[int]
    place_of: Sequence[int]
    origin_of: Sequence[int]
    prices: Sequence[float | None]
    spot_prices: Sequence[float | None]
    bands: Sequence[int | None]

    def __len__(self) -> int:
        return len(self.shape_of)

    def pools_by_shape(self) -> Iterator[tuple[Shape, range]]:
        """Each shape with the pools that have it."""
        first = 0
        for index, shape in enumerate(self.shapes):
            last = bisect_right(self.shape_of, index, lo=first)
            yield shape, range(first, last)
            first = last

    def offering(self, pool: int, spot: bool) -> Offering:
        """A pool as the rest of the product knows it; the same object every time. It must have such a price."""
        known = self._offerings[spot]
        offering = known.get(pool)
        if offering is None:
            shape = self.shapes[self.shape_of[pool]]
            price = (self.spot_prices if spot else self.prices)[pool]
            offering = known[pool] = Offering(
                self.cloud,
                shape.instance_type,
                self._locations[self.place_of[pool]],
                CapacityType.SPOT if spot else CapacityType.ON_DEMAND,
                self._accelerators[self.shape_of[pool]],
                shape.vcpus,
                shape.memory_gib,
                cast("float", price),
            )
        return offering

    @cached_property
    def _offerings(self) -> tuple[dict[int, Offering], dict[int, Offering]]:
        """On-demand and spot, remembered: a controller asks for the same ones again and again."""
        return {}, {}

    @cached_property
    def _locations(self) -> tuple[Location, ...]:
        return tuple(Location(self.cloud, *place) for place in self.places)

    @cached_property
    def _accelerators(self) -> tuple[Accelerator | None, ...]:
        name = self.accelerator
        return tuple(
            None if name is None else Accelerator(name, whole(shape.accelerator_count)) for shape in self.shapes
        )

    def row(self, pool: int) -> Row:
        """A pool as a row."""
        shape = self.shapes[self.shape_of[pool]]
        region, zone = self.places[self.place_of[pool]]
        return Row(
            self.cloud,
            shape.instance_type,
            region,
            zone,
            self.accelerator,
            *shape[1:],
            self.prices[pool],
            self.spot_prices[pool],
            self.bands[pool],
            *self.origins[self.origin_of[pool]],
        )

    def rows(self) -> Iterator[Row]:
        """All of it as rows, in order."""
        return map(self.row, range(len(self)))


def whole(count: float) -> float:
    """A count as people write it: 8 and not 8.0."""
    return int(count) if float(count).is_integer() else count


def shelve(rows: Iterable[Row]) -> list[Shelf]:
    """Put rows on shelves. Neither the order of the rows nor repetition makes a difference.

    Of several prices for the same machine in the same place the lowest stays.
    """
    groups: dict[tuple[str, str | None], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.cloud, row.accelerator), []).append(row)
    ordered = sorted(groups.items(), key=lambda item: (item[0][0], item[0][1] or ""))
    return [_shelf(cloud, accelerator, group) for (cloud, accelerator), group in ordered]


def _shelf(cloud: str, accelerator: str | None, rows: list[Row]) -> Shelf:
    lowest: dict[tuple[str, float, str, str | None], Row] = {}
    for row in sorted(rows, key=_preference):
        lowest.setdefault((row.instance_type, row.accelerator_count, row.region, row.zone), row)
    kept = sorted(lowest.values(), key=lambda row: (*_shape_order(row), row.region, row.zone or ""))
    shapes = {shape: index for index, shape in enumerate(dict.fromkeys(map(_shape, kept)))}
    places = {place: index for index, place in enumerate(sorted({(r.region, r.zone) for r in kept}, key=_named))}
    origins = {origin: index for index, origin in enumerate(sorted({(r.price_date, r.source) for r in kept}))}
    return Shelf(
        cloud,
        accelerator,
        tuple(shapes),
        tuple(places),
        tuple(origins),
        [shapes[_shape(row)] for row in kept],
        [places[row.region, row.zone] for row in kept],
        [origins[row.price_date, row.source] for row in kept],
        [row.price_per_hour for row in kept],
        [row.spot_price_per_hour for row in kept],
        [row.interruption_band for row in kept],
    )


def _shape(row: Row) -> Shape:
    return Shape(
        row.instance_type, row.accelerator_count, row.accelerator_memory_gib, row.vcpus, row.memory_gib, row.arch
    )


def _shape_order(row: Row) -> tuple[str, float, float, float, float, str]:
    memory_gib = row.accelerator_memory_gib or 0.0
    return row.instance_type, row.accelerator_count, memory_gib, row.vcpus, row.memory_gib, row.arch


def _preference(row: Row) -> tuple[object, ...]:
    prices = (_dear_if_unknown(row.price_per_hour), _dear_if_unknown(row.spot_price_per_hour))
    band = -1 if row.interruption_band is None else row.interruption_band
    return *prices, *_shape_order(row), band, row.price_date, row.source


def _dear_if_unknown(price: float | None) -> float:
    return float("inf") if price is None else price


def _named(place: Place) -> tuple[str, str]:
    return place[0], place[1] or ""


def to_json(shelf: Shelf) -> str:
    """A shelf as text; `from_json` is its opposite."""
    columns = [shelf.shape_of, shelf.place_of, shelf.origin_of, shelf.prices, shelf.spot_prices, shelf.bands]
    whole = [shelf.cloud, shelf.accelerator, shelf.shapes, shelf.places, shelf.origins, *columns]
    return json.dumps(whole, separators=(",", ":"), allow_nan=False)


def from_json(text: str | bytes) -> Shelf:
    """Read `to_json`'s text. Raises CatalogError when it is none."""
    try:
        cloud, accelerator, shapes, places, origins, *columns = cast("list[list[object]]", json.loads(text))
        shape_of, place_of, origin_of, prices, spot_prices, bands = columns
        shelf = Shelf(
            cast("str", cloud),
            cast("str | None", accelerator),
            tuple(Shape(*cast("list[str]", shape)) for shape in shapes),  # type: ignore[arg-type]
            cast("tuple[Place, ...]", tuple(map(tuple, cast("list[list[str]]", places)))),
            cast("tuple[Origin, ...]", tuple(map(tuple, cast("list[list[str]]", origins)))),
            cast("list[int]", shape_of),
            cast("list[int]", place_of),
            cast("list[int]", origin_of),
            cast("list[float | None]", prices),
            cast("list[float | None]", spot_prices),
            cast("list[int | None]", bands),
        )
    except (ValueError, TypeError) as error:
        raise CatalogError(f"a part of the catalog cannot be read: {error}") from error
    if len({len(column) for column in columns}) != 1:
        raise CatalogError("a part of the catalog has columns of different lengths")
    return shelf
