"""What the providers could give a spec, remembered for a while: asking on every step would be rude."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from skyserve.clock import Clock
from skyserve.decide.optimize import rank, shortlist
from skyserve.errors import Infeasible, ProviderError
from skyserve.model.health import Cooldown
from skyserve.model.offering import Offering
from skyserve.model.resources import ResourceChoice
from skyserve.model.service import ServiceSpec
from skyserve.providers.base import Provider

FRESH_S = 300.0
"""Age up to which remembered offerings are used, in seconds."""


@dataclass(frozen=True, slots=True)
class Offered:
    """Offerings in no particular order, and why alternatives found nothing: (what, reason)."""

    offerings: tuple[Offering, ...]
    refusals: tuple[tuple[str, str], ...]


class Offers:
    """Offerings of all enabled providers for the resources of one service's latest version."""

    def __init__(self, providers: Mapping[str, Provider], clock: Clock) -> None:
        self._providers = providers
        self._clock = clock
        self._want: ResourceChoice | None = None
        self._known = Offered((), ())
        self._known_at = 0.0

    async def of(self, spec: ServiceSpec, health: Sequence[Cooldown]) -> tuple[Offering, ...]:
        """The best that the spec could run on, in order; the providers are asked again when their answer is old."""
        now = self._clock.now()
        changed = spec.resources != self._want
        if changed or not self._known.offerings or now - self._known_at > FRESH_S:
            fresh = await self.ask(spec.resources)
            if changed or fresh.offerings:
                self._known = fresh
            self._want, self._known_at = spec.resources, now
        return shortlist(rank(self._known.offerings, spec), health, now)

    async def ask(self, want: ResourceChoice) -> Offered:
        """Ask every provider now."""
        offerings: list[Offering] = []
        refusals: list[tuple[str, str]] = []
        for name, provider in self._providers.items():
            try:
                candidates = await provider.offerings(want)
            except ProviderError as error:
                refusals.append((name, error.message))
                continue
            offerings += candidates.offerings
            refusals += candidates.refusals
        return Offered(tuple(offerings), tuple(refusals))


def require(offered: Offered) -> None:
    """Raise Infeasible when nothing at all can run what was asked."""
    if offered.offerings:
        return
    reasons = "; ".join(f"{what}: {why}" for what, why in offered.refusals) or "no provider is enabled"
    hint = "ask for less, or run it where that hardware is; 'sky serve validate' checks the file itself"
    raise Infeasible(f"no enabled infrastructure can run this service: {reasons}", hint=hint)
