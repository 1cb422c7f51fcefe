"""What a cloud sells, out of the price catalog in use: its offerings for a request, and why there are no others.

Knows the catalog; must not know any cloud, nor which of these machines this account may have.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from skyserve.catalog import query, snapshot
from skyserve.catalog.table import Table
from skyserve.errors import CatalogError, ProviderUnavailable
from skyserve.model.offering import Offering
from skyserve.model.resources import ResourceChoice
from skyserve.providers.base import Candidates


class PriceList:
    """The prices in use at `home`, read anew when they have changed."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._table: Table | None = None

    async def offerings(self, cloud: str, title: str, want: ResourceChoice) -> Candidates:
        """What `cloud` has for a request, cheapest first. Alternatives that name another cloud are no concern of it.

        Raises ProviderUnavailable when the prices cannot be read.
        """
        return await asyncio.to_thread(self._offerings, cloud, title, want)

    def _offerings(self, cloud: str, title: str, want: ResourceChoice) -> Candidates:
        found = query.feasible(self._prices(), want, clouds={cloud})
        met = {index for index, _ in found.offerings}
        told: dict[int, list[str]] = {}
        for refusal in found.refusals:
            mine = want.alternatives[refusal.alternative].cloud in (None, "*", cloud)
            if mine and refusal.alternative not in met and refusal.obstacle is not query.Obstacle.CLOUD:
                told.setdefault(refusal.alternative, []).append(str(refusal))
        offerings: dict[Offering, None] = dict.fromkeys(offering for _, offering in found.offerings)
        return Candidates(tuple(offerings), tuple((title, "; ".join(reasons)) for reasons in told.values()))

    def _prices(self) -> Table:
        try:
            if self._table is None or snapshot.revision(self._home) != self._table.revision:
                self._table = snapshot.current(self._home)
        except CatalogError as error:
            raise ProviderUnavailable(error.message, hint=error.hint) from error
        return self._table
