"""What every worker of one door has in flight, in memory that all of them see.

Each worker writes its own column and reads all, so there is nothing to lock. It knows numbers only.
"""

from __future__ import annotations

import mmap
import os
import sys
import tempfile

MOST_WORKERS = 64
ROWS = 4096
"""Replicas are told apart by their id modulo this: ids only grow, and no service has so many at once."""

_CELL = 4


class Board:
    """The memory behind descriptor `file`, seen by the worker of this `column`. `columns` of them are in use."""

    def __init__(self, file: int, column: int) -> None:
        self.file = file
        self.columns = MOST_WORKERS
        self.column = column
        self._map = mmap.mmap(file, ROWS * MOST_WORKERS * _CELL)
        self._cells = memoryview(self._map).cast("I")

    def write(self, replica_id: int, count: int) -> None:
        """This worker has `count` requests on a replica."""
        self._cells[replica_id % ROWS * MOST_WORKERS + self.column] = count

    def total(self, replica_id: int) -> int:
        """All workers' requests on a replica."""
        start = replica_id % ROWS * MOST_WORKERS
        return sum(self._cells[start : start + self.columns])

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
    os.ftruncate(file, ROWS * MOST_WORKERS * _CELL)
    return Board(file, 0)
