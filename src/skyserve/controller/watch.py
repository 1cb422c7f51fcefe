"""Beside the loops: what each provider has, asked for again and again, so that one slow cloud stalls nobody."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence

from skyserve.clock import Clock, sleep_unless
from skyserve.errors import ProviderError
from skyserve.model.evidence import Instance, Listing, Silent
from skyserve.providers.base import Provider

SHORTEST_PAUSE_S = 0.2
"""News that come together are answered by one question."""
QUIET_POLL_S = 5.0
"""Seconds between two questions while this installation has no service: only orphans could turn up."""

log = logging.getLogger(__name__)


class Watch:
    """The latest answer of one provider. `on_change` is called with the tags of the services it changed for."""

    def __init__(self, provider: Provider, clock: Clock, on_change: Callable[[set[str]], None]) -> None:
        self._provider = provider
        self._clock = clock
        self._on_change = on_change
        self._latest: Listing | Silent = Silent(clock.now(), "it was not asked yet")
        self._news = asyncio.Event()
        self.busy = True

    @property
    def name(self) -> str:
        """The provider's name."""
        return self._provider.name

    def answer(self, tag: str) -> Listing | Silent:
        """What is known of one service's instances."""
        if isinstance(self._latest, Silent):
            return self._latest
        return Listing(self._latest.at, tuple(i for i in self._latest.instances if i.service == tag))

    def everything(self) -> Listing | Silent:
        """The latest answer whole."""
        return self._latest

    def hurry(self) -> None:
        """Ask again soon: there is news."""
        self._news.set()

    async def run(self) -> None:
        """Ask for ever."""
        while True:
            self._news.clear()
            await self.ask()
            pause_s = self._provider.capabilities.poll_interval_s
            if not self.busy:
                pause_s = max(pause_s, QUIET_POLL_S)
            await self._clock.sleep(min(pause_s, SHORTEST_PAUSE_S))
            await sleep_unless(self._clock, self._news, max(0.0, pause_s - SHORTEST_PAUSE_S))

    async def ask(self) -> None:
        """Ask once and remember the answer; the instant that counts is the one before the question."""
        asked_at = self._clock.now()
        before = self._latest
        (instances,) = await asyncio.gather(self._provider.instances(), return_exceptions=True)
        if isinstance(instances, BaseException):
            since_at = before.since_at if isinstance(before, Silent) else asked_at
            self._latest = Silent(since_at, in_words(self.name, instances))
            if not isinstance(before, Silent):
                self._on_change(set(_by_tag(before.instances)))
            return
        self._latest = Listing(asked_at, tuple(instances))
        seen = _by_tag(before.instances) if isinstance(before, Listing) else {}
        now_seen = _by_tag(instances)
        self._on_change({tag for tag in seen.keys() | now_seen.keys() if seen.get(tag) != now_seen.get(tag)})


def in_words(provider: str, error: BaseException) -> str:
    """Why a provider gave no answer. An error that no adapter should let out is a defect, and logged whole."""
    if isinstance(error, ProviderError):
        return error.message
    log.error("%s: a call broke off", provider, exc_info=error)
    return f"internal error: {type(error).__name__}: {error}"


def _by_tag(instances: Sequence[Instance]) -> Mapping[str, list[Instance]]:
    grouped: dict[str, list[Instance]] = {}
    for instance in sorted(instances, key=lambda i: i.id):
        grouped.setdefault(instance.service, []).append(instance)
    return grouped
