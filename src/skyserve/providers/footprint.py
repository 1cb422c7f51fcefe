"""What a cloud's adapter keeps in mind: where there may be things of ours, for good; and what it was told, for a while.

A cloud of many regions cannot be asked everywhere all the time, and still its listing has to be whole. So a region is
written down before anything is made there, and those written down are asked. Must not know any cloud.
"""

from __future__ import annotations

import asyncio
import json
import os
import threading
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Generic, TypeVar

from skyserve.clock import Clock
from skyserve.errors import ProviderUnavailable

T = TypeVar("T")


class Footprint:
    """Where there may be things of ours, in a file that is written before they are made.

    `complete` says that all other regions were looked through once since the file began. `debts` are services of which
    something could not be deleted yet. A file that is damaged counts as none.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._writing = threading.Lock()
        self.complete, self.regions, self.debts = self._read()

    async def enter(self, *regions: str, complete: bool = False) -> None:
        """From now on there may be something in these regions. Raises ProviderUnavailable when that cannot be kept."""
        await asyncio.to_thread(self._change, complete=complete, regions=regions)

    async def owe(self, service: str) -> None:
        """Something of this service is to be deleted. Raises as `enter`."""
        await asyncio.to_thread(self._change, owed=[service])

    async def settle(self, service: str) -> None:
        """Nothing of this service is left. Raises as `enter`."""
        await asyncio.to_thread(self._change, settled=[service])

    def _change(
        self,
        *,
        complete: bool = False,
        regions: Iterable[str] = (),
        owed: Iterable[str] = (),
        settled: Iterable[str] = (),
    ) -> None:
        with self._writing:
            before = (self.complete, self.regions, self.debts)
            debts = self.debts.union(owed).difference(settled)
            after = (self.complete or complete, self.regions.union(regions), debts)
            if after != before:
                self._write(*after)
                self.complete, self.regions, self.debts = after

    def _read(self) -> tuple[bool, frozenset[str], frozenset[str]]:
        try:
            found = json.loads(self.path.read_text("utf-8"))
            return bool(found["complete"]), frozenset(found["regions"]), frozenset(found["debts"])
        except (OSError, ValueError, TypeError, LookupError):
            return False, frozenset(), frozenset()

    def _write(self, complete: bool, regions: Collection[str], debts: Collection[str]) -> None:
        draft = self.path.with_name(f"{self.path.name}.{os.getpid()}")
        told = {"complete": complete, "regions": sorted(regions), "debts": sorted(debts)}
        try:
            with draft.open("w", encoding="utf-8") as file:
                json.dump(told, file, indent=1)
                file.flush()
                os.fsync(file.fileno())
            draft.replace(self.path)
        except OSError as error:
            raise ProviderUnavailable(f"{self.path} cannot be written: {error.strerror or error}") from error


class Lately(Generic[T]):
    """Answers that hold for `for_s` seconds of the clock, by what was asked."""

    def __init__(self, clock: Clock, for_s: float) -> None:
        self._clock = clock
        self._for_s = for_s
        self._kept: dict[tuple[str, ...], tuple[float, T]] = {}

    def get(self, *key: str, stale: bool = False) -> T | None:
        """The answer, None when there is none; with `stale` also one that no longer holds."""
        until_at, value = self._kept.get(key, (0.0, None))
        return value if stale or self._clock.now() < until_at else None

    def put(self, value: T, *key: str) -> T:
        """Keep it; it is given back."""
        self._kept[key] = (self._clock.now() + self._for_s, value)
        return value

    def clear(self) -> None:
        """Forget everything."""
        self._kept.clear()
