"""Clusters: one machine to work on, kept up whatever its script does. Knows what differs from a service, only that."""

from __future__ import annotations

import asyncio
import shlex
from collections.abc import Callable

from skyserve.model.evidence import LoadReport
from skyserve.model.routing import RoutingTable
from skyserve.model.view import RUN_ENDED


def keep_up(run: str) -> str:
    """A script that does `run`, says how it ended, and then holds the machine for whoever works on it."""
    told = f'echo "{RUN_ENDED} $?"' if run else "true"
    return f"bash -c {shlex.quote(run or 'true')}\n{told}\nexec tail -f /dev/null"


class NoDoor:
    """Stands where a service has its door: nobody calls a cluster."""

    load: LoadReport | None = None
    trouble = ""

    def __init__(self) -> None:
        self.crosses: Callable[[LoadReport], bool] = bool
        self._stopped = asyncio.Event()

    def publish(self, table: RoutingTable) -> None:
        """There is nobody to tell."""

    async def run(self) -> None:
        """Until `stop`."""
        await self._stopped.wait()

    async def stop(self) -> None:
        """End `run`."""
        self._stopped.set()
