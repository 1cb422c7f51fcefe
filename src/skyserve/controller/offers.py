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
PATIENCE_S = 1.0
"""How long a look waits for the answers. It goes on with what was known before, and a later look finds them."""


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
        self._want: tuple[object, ...] = ()
        self._known = Offered((), ())
        self._known_at = 0.0
        self._asking: asyncio.Task[Offered] | None = None

    async def of(self, spec: ServiceSpec, health: Sequence[Cooldown]) -> tuple[Offering, ...]:
        """The best that the spec could run on, in order; the providers are asked again when their answer is old.

        A provider that takes its time holds up nothing that is known already.
        """
        now = self._clock.now()
        if (want := demands.of(spec)) != self._want:
            self.close()
            self._want, self._known = want, Offered((), ())
        if self._asking is None and (not self._known.offerings or now - self._known_at > FRESH_S):
            self._asking = asyncio.create_task(self.ask(spec))
            await asyncio.wait({self._asking}, timeout=PATIENCE_S)
        if self._asking is not None and self._asking.done():
            fresh, self._asking, self._known_at = self._asking.result(), None, now
            self._known = fresh if fresh.offerings else self._known
        return shortlisted(rank(self._known.offerings, spec), health, now)

    def close(self) -> None:
        """Wait for no answer any more."""
        if self._asking is not None:
            self._asking.cancel()
            self._asking = None

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
