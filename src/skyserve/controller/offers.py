"""What the providers could give a spec, remembered for a while: asking on every step would be rude."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass

from skyserve.clock import Clock
from skyserve.controller import demands
from skyserve.controller.watch import in_words
from skyserve.decide.optimize import rank, shortlisted
from skyserve.errors import Infeasible
from skyserve.model.health import Cooldown
from skyserve.model.offering import Offering
from skyserve.model.service import ServiceSpec
from skyserve.providers.base import Candidates, Provider

FRESH_S = 300.0
"""Age up to which remembered offerings are used without asking again, in seconds."""
REMEMBERED = 2
"""Versions with demands of their own whose offerings are remembered: the one to come, and the one to go back to."""
PATIENCE_S = 1.0
"""How long a look waits for the answers. It goes on with what was known before, and a later look finds them."""


@dataclass(frozen=True, slots=True)
class Offered:
    """Offerings in no particular order, and why alternatives found nothing: (what, reason)."""

    offerings: tuple[Offering, ...]
    refusals: tuple[tuple[str, str], ...]


@dataclass(slots=True)
class _Known:
    """What is known for one set of demands, since when, and the question under way."""

    want: tuple[object, ...]
    offered: Offered = Offered((), ())
    at: float = 0.0
    asking: asyncio.Task[Offered] | None = None

    def close(self) -> None:
        if self.asking is not None:
            self.asking.cancel()
            self.asking = None


class Offers:
    """Offerings of all enabled providers for the resources of one service's versions, of which few are in use."""

    def __init__(self, providers: Mapping[str, Provider], clock: Clock) -> None:
        self._providers = providers
        self._clock = clock
        self._known: list[_Known] = []

    async def of(self, spec: ServiceSpec, health: Sequence[Cooldown]) -> tuple[Offering, ...]:
        """The best that the spec could run on, in order; the providers are asked again when their answer is old.

        A provider that takes its time holds up nothing that is known already.
        """
        now = self._clock.now()
        known = self._of_demands(demands.of(spec))
        if known.asking is None and (not known.offered.offerings or now - known.at > FRESH_S):
            known.asking = asyncio.create_task(self.ask(spec))
            await asyncio.wait({known.asking}, timeout=PATIENCE_S)
        if known.asking is not None and known.asking.done():
            fresh, known.asking, known.at = known.asking.result(), None, now
            known.offered = fresh if fresh.offerings else known.offered
        return shortlisted(rank(known.offered.offerings, spec), health, now)

    def _of_demands(self, want: tuple[object, ...]) -> _Known:
        """What is known for these demands, which then are those used last; the one unused for longest makes room."""
        known = next((known for known in self._known if known.want == want), None) or _Known(want)
        self._known = [known, *(other for other in self._known if other is not known)]
        for forgotten in self._known[REMEMBERED:]:
            forgotten.close()
        del self._known[REMEMBERED:]
        return known

    def close(self) -> None:
        """Wait for no answer any more."""
        for known in self._known:
            known.close()

    async def ask(self, spec: ServiceSpec) -> Offered:
        """Ask every provider now, all at once, for what it can deliver whole."""
        offerings: list[Offering] = []
        refusals: list[tuple[str, str]] = []
        calls: dict[str, Coroutine[None, None, Candidates]] = {}
        for name, provider in self._providers.items():
            want, lacking = demands.deliverable(spec, provider)
            refusals += lacking
            if want is not None:
                calls[name] = provider.offerings(want)
        answers = await asyncio.gather(*calls.values(), return_exceptions=True)
        for name, answer in zip(calls, answers, strict=True):
            if isinstance(answer, BaseException):
                refusals.append((name, in_words(name, answer)))
                continue
            offerings += answer.offerings
            refusals += answer.refusals
        return Offered(tuple(offerings), tuple(refusals))


def require(offered: Offered) -> None:
    """Raise Infeasible when nothing at all can run what was asked."""
    if offered.offerings:
        return
    reasons = "; ".join(dict.fromkeys(why for _, why in offered.refusals)) or "no provider is enabled"
    hint = "ask for less, or run it where that hardware is; 'sky serve validate' checks the file itself"
    raise Infeasible(f"no enabled infrastructure can run this service: {reasons}", hint=hint)
