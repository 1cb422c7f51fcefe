"""Which spot pools Google itself expects to have nothing to give, where the account may ask for its capacity advice.

A hint and no more: it is asked in the background, a few pools at a time; who wants to know gets what is known.
Accounts without access, and calls that fail, leave all as it would be without it. Must not know what is launched.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from skyserve.clock import Clock
from skyserve.errors import ProviderError
from skyserve.model.offering import CapacityType, Offering
from skyserve.providers.footprint import Lately
from skyserve.providers.gcp.api import Compute, Json, Refusal, at, entries
from skyserve.providers.gcp.words import attached_kind

VERSION = "2026-11-01"
"""The API's methods of this kind have versions of their own."""

HOPELESS = 0.1
"""An obtainability below this is a clear no; the score goes from 0 to 1."""

_HOLDS_S = 600.0
_WITHOUT_ACCESS_S = 3600.0
_POOLS_A_ROUND = 8


class Advisor:
    """What is known of spot pools. One round of questions at a time; `round` is the last one."""

    def __init__(self, api: Compute, clock: Clock) -> None:
        self._api = api
        self._clock = clock
        self._scores: Lately[float | None] = Lately(clock, _HOLDS_S)
        self._asked: Lately[bool] = Lately(clock, _HOLDS_S)
        self._not_before_at = 0.0
        self.round: asyncio.Task[None] | None = None

    def hopeless(self, offering: Offering) -> bool:
        """Whether the advice of the last minutes was clearly against it. False for all that is not spot."""
        score = self._scores.get(offering.pool)
        return score is not None and score < HOPELESS

    def wonder(self, offerings: Sequence[Offering]) -> None:
        """Begin to ask about the cheapest spot pools of which nothing is known now; returns at once."""
        busy = self.round is not None and not self.round.done()
        if busy or self._clock.now() < self._not_before_at:
            return
        spot = [one for one in offerings if one.capacity_type is CapacityType.SPOT and not self._asked.get(one.pool)]
        cheapest = sorted(spot, key=lambda one: (one.price_per_hour, one.pool))[:_POOLS_A_ROUND]
        if cheapest:
            self.round = asyncio.create_task(self._ask_all(cheapest))

    async def _ask_all(self, offerings: Sequence[Offering]) -> None:
        for offering in offerings:
            try:
                self._scores.put(await self._ask(offering), offering.pool)
            except (Refusal, ProviderError):  # no access, or not now: either way there is no hurry
                self._not_before_at = self._clock.now() + _WITHOUT_ACCESS_S
                return
            self._asked.put(True, offering.pool)

    async def _ask(self, offering: Offering) -> float | None:
        region = offering.location.region
        answer = await self._api.call("POST", f"regions/{region}/advice/capacity", question(offering), version=VERSION)
        score = at(next(iter(entries(answer, "recommendations")), None), "scores", "obtainability")
        return float(score) if isinstance(score, int | float) else None


def question(offering: Offering) -> Json:
    """One spot machine of an offering, in the API's words."""
    selection: dict[str, object] = {"machineTypes": [offering.instance_type]}
    kind = attached_kind(offering)
    if kind is not None and offering.accelerator is not None:
        selection["guestAccelerators"] = [
            {"acceleratorType": kind, "acceleratorCount": int(offering.accelerator.count)}
        ]
    where: dict[str, object] = {"targetShape": "ANY"}
    if offering.location.zone is not None:
        where["zones"] = [{"zone": f"zones/{offering.location.zone}"}]
    return {
        "size": 1,
        "instanceProperties": {"scheduling": {"provisioningModel": "SPOT"}},
        "instanceFlexibilityPolicy": {"instanceSelections": {"machine": selection}},
        "distributionPolicy": where,
    }
