"""All prices in use, over all clouds, indexed by accelerator. Unpacks only what is asked for. Knows no files and no
questions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Protocol

from skyserve.catalog.row import Row
from skyserve.catalog.shelf import Shelf, shelve


class Shelves(Protocol):
    """What a table needs of one cloud; `catalog.archive.Archive` is one."""

    @property
    def accelerators(self) -> tuple[str | None, ...]:
        """What there are shelves for; None for machines without accelerators."""

    def rows_with(self, accelerator: str | None) -> int:
        """How many rows the shelf has; answered without unpacking it."""

    def shelf(self, accelerator: str | None) -> Shelf | None:
        """The rows with that accelerator."""


class Table:
    """Prices of several clouds. `revision` differs when the contents differ."""

    def __init__(self, clouds: Mapping[str, Shelves], revision: str = "") -> None:
        self._clouds = dict(sorted(clouds.items()))
        self.revision = revision

    @classmethod
    def of(cls, rows: Iterable[Row]) -> Table:
        """A table of rows in memory."""
        clouds: dict[str, list[Shelf]] = {}
        for shelf in shelve(rows):
            clouds.setdefault(shelf.cloud, []).append(shelf)
        return cls({cloud: _InMemory(shelves) for cloud, shelves in clouds.items()})

    @property
    def clouds(self) -> tuple[str, ...]:
        """The clouds there are prices of, by name."""
        return tuple(self._clouds)

    def accelerators(self) -> Mapping[str, tuple[str, ...]]:
        """Every accelerator there is a price for, by name, and the clouds that offer it."""
        found: dict[str, list[str]] = {}
        for cloud, shelves in self._clouds.items():
            for name in shelves.accelerators:
                if name is not None:
                    found.setdefault(name, []).append(cloud)
        return {name: tuple(found[name]) for name in sorted(found)}

    def accelerators_of(self, cloud: str) -> tuple[str | None, ...]:
        """What one cloud's rows have; None stands for machines without accelerators."""
        return self._clouds[cloud].accelerators

    def rows_with(self, cloud: str, accelerator: str | None) -> int:
        """How many rows there are; answered without unpacking them."""
        return self._clouds[cloud].rows_with(accelerator)

    def shelf(self, cloud: str, accelerator: str | None) -> Shelf | None:
        """A cloud's rows with that accelerator, or without any, if there are such rows."""
        return self._clouds[cloud].shelf(accelerator)

    def rows(self) -> Iterator[Row]:
        """Everything, in order. Slow: for exports and tests."""
        for cloud, shelves in self._clouds.items():
            for name in shelves.accelerators:
                shelf = self.shelf(cloud, name)
                yield from shelf.rows() if shelf else ()


class _InMemory:
    """Shelves that need no unpacking."""

    def __init__(self, shelves: Sequence[Shelf]) -> None:
        self._shelves = {shelf.accelerator: shelf for shelf in shelves}

    @property
    def accelerators(self) -> tuple[str | None, ...]:
        return tuple(self._shelves)

    def rows_with(self, accelerator: str | None) -> int:
        return len(self._shelves.get(accelerator, ()))

    def shelf(self, accelerator: str | None) -> Shelf | None:
        return self._shelves.get(accelerator)
