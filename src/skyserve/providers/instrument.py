"""A provider that watches another one: each call gets a time limit and is counted, and whatever is not an answer in the
contract's terms becomes silence. Knows the contract; must not know any infrastructure."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from skyserve.clock import Clock
from skyserve.errors import ProviderError, ProviderUnavailable
from skyserve.model.evidence import Instance
from skyserve.model.resources import ResourceChoice
from skyserve.providers.base import Candidates, CheckResult, Exit, LaunchOrder, OrderOf, Provider

T = TypeVar("T")

NO_ANSWER = (OSError, EOFError, ValueError, LookupError, RuntimeError)
"""What adapters let out when an infrastructure does not answer, or not in a way that they understand."""


@dataclass(slots=True)
class CallStats:
    """One method's calls so far. `errors` counts by error code; times are seconds of the clock."""

    calls: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    total_s: float = 0.0
    slowest_s: float = 0.0


class Instrumented:
    """The same provider, with a time limit of `timeout_s` per call, and `stats` by method.

    A call that takes too long raises ProviderUnavailable; what it began goes on, and is seen in the next listing.
    """

    def __init__(self, provider: Provider, clock: Clock, timeout_s: float = 30.0) -> None:
        self.name = provider.name
        self.title = provider.title
        self.capabilities = provider.capabilities
        self.stats: dict[str, CallStats] = {}
        self._provider = provider
        self._clock = clock
        self._timeout_s = timeout_s

    def listen(self, changed: Callable[[], None], order_of: OrderOf) -> None:
        """See `Provider.listen`."""
        self._provider.listen(changed, order_of)

    async def check(self) -> CheckResult:
        """See `Provider.check`."""
        return await self._call("check", self._provider.check())

    async def offerings(self, want: ResourceChoice) -> Candidates:
        """See `Provider.offerings`."""
        return await self._call("offerings", self._provider.offerings(want))

    async def launch(self, order: LaunchOrder) -> Instance:
        """See `Provider.launch`."""
        return await self._call("launch", self._provider.launch(order))

    async def instances(self) -> Sequence[Instance]:
        """See `Provider.instances`."""
        return await self._call("instances", self._provider.instances())

    async def terminate(self, instance_id: str) -> None:
        """See `Provider.terminate`."""
        await self._call("terminate", self._provider.terminate(instance_id))

    async def stop(self, instance_id: str) -> None:
        """See `Provider.stop`."""
        await self._call("stop", self._provider.stop(instance_id))

    async def start(self, instance_id: str) -> None:
        """See `Provider.start`."""
        await self._call("start", self._provider.start(instance_id))

    async def execute(self, instance_id: str, script: str, env: Mapping[str, str]) -> AsyncIterator[bytes | Exit]:
        """See `Provider.execute`. Without a time limit, like `logs`."""
        stats = self._begin("execute")
        try:
            async for data in self._provider.execute(instance_id, script, env):
                yield data
        except (ProviderError, *NO_ANSWER) as error:
            raise self._told(stats, "execute", error) from error

    async def logs(self, instance_id: str, *, follow: bool, tail: int | None) -> AsyncIterator[bytes]:
        """See `Provider.logs`. Without a time limit: a log may well be quiet."""
        stats = self._begin("logs")
        try:
            async for data in self._provider.logs(instance_id, follow=follow, tail=tail):
                yield data
        except (ProviderError, *NO_ANSWER) as error:
            raise self._told(stats, "logs", error) from error

    async def release(self, service: str) -> None:
        """See `Provider.release`."""
        await self._call("release", self._provider.release(service))

    async def close(self) -> None:
        """See `Provider.close`."""
        await self._provider.close()

    async def _call(self, method: str, call: Coroutine[object, object, T]) -> T:
        stats, began_at = self._begin(method), self._clock.now()
        try:
            return await self._in_time(method, call)
        except (ProviderError, *NO_ANSWER) as error:
            answer = self._told(stats, method, error)
            if answer is error:
                raise
            raise answer from error
        finally:
            took_s = self._clock.now() - began_at
            stats.total_s += took_s
            stats.slowest_s = max(stats.slowest_s, took_s)

    async def _in_time(self, method: str, call: Coroutine[object, object, T]) -> T:
        """The call's result, unless the clock's limit comes first."""
        work = asyncio.ensure_future(call)
        limit = asyncio.ensure_future(self._clock.sleep(self._timeout_s))
        try:
            await asyncio.wait({work, limit}, return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                return work.result()
        finally:
            work.cancel()
            limit.cancel()
        raise ProviderUnavailable(f"{self.name} did not answer `{method}` within {self._timeout_s:g} s")

    def _begin(self, method: str) -> CallStats:
        stats = self.stats.setdefault(method, CallStats())
        stats.calls += 1
        return stats

    def _told(self, stats: CallStats, method: str, error: Exception) -> ProviderError:
        """The error in the contract's terms, counted."""
        if isinstance(error, ProviderError):
            answer = error
        else:
            answer = ProviderUnavailable(f"{self.name} could not answer `{method}`: {type(error).__name__}: {error}")
        stats.errors[answer.code] += 1
        return answer
