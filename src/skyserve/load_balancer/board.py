"""What the workers of one door know of each other, in memory that all of them see: requests in flight, ejections.

Each worker writes its own column of counts and reads all, so there is nothing to lock. Of ejections there is one cell
for each replica, written whole by whoever found something out last. It knows numbers only.
"""

from __future__ import annotations

import mmap
import os
import sys
import tempfile

MOST_WORKERS = 64
ROWS = 4096
"""Replicas are told apart by their id modulo this: ids only grow, and no service has so many at once."""

_CELL, _VERDICT = 4, 8
_COUNTS = ROWS * MOST_WORKERS * _CELL
_VERDICTS = ROWS * _VERDICT
_SIZE = _COUNTS + _VERDICTS + MOST_WORKERS * _CELL
_SPAN_BITS = 22


def verdict(until_s: float, span_s: float, *, refuses: bool) -> int:
    """What is said of a replica that is left out until an instant of the common clock, and was for so long; 0 is: well.
    It fits into 64 bits, for 34 years of uptime."""
    return round(until_s * 1000) << (_SPAN_BITS + 1) | round(span_s * 1000) << 1 | refuses


def read_verdict(said: int) -> tuple[float, float, bool]:
    """The arguments of `verdict`."""
    return (said >> (_SPAN_BITS + 1)) / 1000, (said >> 1 & (1 << _SPAN_BITS) - 1) / 1000, bool(said & 1)


class Board:
    """The memory behind descriptor `file`, seen by the worker of this `column`. `columns` of them are in use."""

    def __init__(self, file: int, column: int) -> None:
        self.file = file
        self.columns = MOST_WORKERS
        self.column = column
        self._map = mmap.mmap(file, _SIZE)
        whole = memoryview(self._map)
        self._cells = whole[:_COUNTS].cast("I")
        self._verdicts = whole[_COUNTS : _COUNTS + _VERDICTS].cast("Q")
        self._news = whole[_COUNTS + _VERDICTS :].cast("I")

    def write(self, replica_id: int, count: int) -> None:
        """This worker has `count` requests on a replica."""
        self._cells[replica_id % ROWS * MOST_WORKERS + self.column] = count

    def total(self, replica_id: int) -> int:
        """All workers' requests on a replica."""
        start = replica_id % ROWS * MOST_WORKERS
        return sum(self._cells[start : start + self.columns])

    def tell(self, replica_id: int, said: int) -> None:
        """Say to all what was found out about a replica, see `verdict`."""
        self._verdicts[replica_id % ROWS] = said
        self._news[self.column] = (self._news[self.column] + 1) & 0xFFFFFFFF

    def told(self, replica_id: int) -> int:
        """What was said last about a replica."""
        return self._verdicts[replica_id % ROWS]

    def news(self) -> bytes:
        """Another value than before when anybody has said something."""
        return bytes(self._news[: self.columns])

    def clear(self, column: int) -> None:
        """The worker of this column is gone, and its requests with it."""
        for start in range(0, ROWS * MOST_WORKERS, MOST_WORKERS):
            self._cells[start + column] = 0


def new_board() -> Board:
    """Fresh memory, for a door's first process. Its workers inherit the descriptor."""
    if sys.platform == "linux":
        file = os.memfd_create("skyserve-door")
    else:
        with tempfile.TemporaryFile() as nameless:
            file = os.dup(nameless.fileno())
    os.ftruncate(file, _SIZE)
    return Board(file, 0)
