"""Whether a replica that dropped a request is still there: the door asks it for a connection, and nothing more.

It knows connections and enters what it finds into the pool's books. It must not know requests.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from skyserve.load_balancer.pool import Pool, Upstream
from skyserve.load_balancer.upstream import UpstreamConnection, connect


class Knocks:
    """Attempts to connect, at most one at a time for each replica."""

    def __init__(
        self, pool: Pool[UpstreamConnection], time: Callable[[], float], timeout_s: Callable[[], float]
    ) -> None:
        self._pool = pool
        self._time = time
        self._timeout_s = timeout_s
        self._under_way: dict[int, asyncio.Task[None]] = {}

    def knock(self, page: Upstream[UpstreamConnection]) -> None:
        """Find out soon, unless it is being found out, or has been found not to be there only just now."""
        if page.replica_id not in self._under_way and page.reachable(self._time()):
            task = asyncio.get_running_loop().create_task(self._knock(page))
            self._under_way[page.replica_id] = task

    def stop(self) -> None:
        """Leave it."""
        for task in self._under_way.values():
            task.cancel()

    async def _knock(self, page: Upstream[UpstreamConnection]) -> None:
        try:
            connection = await connect(self._pool, page, self._timeout_s())
        except (OSError, UnicodeError):
            self._pool.refused(page, self._time())
        else:
            self._pool.connected(page, self._time())
            self._pool.put_idle(page, connection, self._time())
        finally:
            del self._under_way[page.replica_id]
