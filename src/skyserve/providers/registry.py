"""Which providers there are: those that installed packages, this one among them, offer under the entry point group
`skyserve.providers`. An entry point names a function `(config, clock) -> Provider`; it raises NotConfigured where
nothing points to an account. Its module says in TITLE how people write the provider's name. Knows no provider."""

from __future__ import annotations

import functools
import importlib
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from importlib.metadata import EntryPoint, entry_points

from skyserve.clock import Clock
from skyserve.config import Config
from skyserve.errors import ProviderUnavailable
from skyserve.model.evidence import Instance
from skyserve.model.resources import ResourceChoice
from skyserve.providers.base import (
    Candidates,
    Capabilities,
    CheckResult,
    Exit,
    LaunchOrder,
    NotConfigured,
    OrderOf,
    Provider,
)
from skyserve.providers.instrument import Instrumented

ENTRY_POINT_GROUP = "skyserve.providers"
_OURS = "skyserve"


class Roster:
    """Every provider that is configured here, by its name, each with a time limit and counters; and why others are not.

    `plugins` defaults to those installed. One that cannot be loaded stays among the providers and says why: what it
    launched earlier is unknown, not gone.
    """

    def __init__(self, config: Config, clock: Clock, *, plugins: Iterable[EntryPoint] | None = None) -> None:
        self._config = config
        self._clock = clock
        self._plugins = _by_name(entry_points(group=ENTRY_POINT_GROUP) if plugins is None else plugins)
        self._providers: dict[str, Provider] = {}
        self._absent: dict[str, NotConfigured] = {}
        self.look_again()

    @property
    def providers(self) -> Mapping[str, Provider]:
        """Those that are configured. The same mapping for ever; `look_again` adds to it."""
        return self._providers

    @property
    def absent(self) -> Mapping[str, NotConfigured]:
        """Those that are not, and what they lack."""
        return self._absent

    @property
    def names(self) -> tuple[str, ...]:
        """All of them: this machine first, then by name."""
        return tuple(sorted(self._plugins, key=lambda name: (name != "local", name)))

    def look_again(self) -> tuple[str, ...]:
        """Try those that were not configured before; the names of those that are now."""
        fresh = []
        for name in self.names:
            if name in self._providers:
                continue
            try:
                provider = _load(self._plugins[name], self._config, self._clock)
            except NotConfigured as missing:
                self._absent[name] = missing
                continue
            self._absent.pop(name, None)
            self._providers[name] = Instrumented(provider, self._clock)
            fresh.append(name)
        return tuple(fresh)


@functools.cache
def title(name: str) -> str:
    """How people write a provider's name; an unknown one as it is."""
    plugin = _by_name(entry_points(group=ENTRY_POINT_GROUP)).get(name)
    if plugin is None:
        return name
    try:
        return str(getattr(importlib.import_module(plugin.module), "TITLE", name))
    except ImportError:
        return name


def _by_name(found: Iterable[EntryPoint]) -> dict[str, EntryPoint]:
    """One for each name: what this package brings is not replaced by another one's."""
    return {
        plugin.name: plugin for plugin in sorted(found, key=lambda one: one.dist is not None and one.dist.name == _OURS)
    }


def _load(plugin: EntryPoint, config: Config, clock: Clock) -> Provider:
    try:
        provider: Provider = plugin.load()(config, clock)
    except (ImportError, AttributeError, TypeError, ValueError, OSError, RuntimeError) as error:
        return Unloadable(plugin.name, f"{plugin.value} cannot be loaded: {type(error).__name__}: {error}")
    return provider


class Unloadable:
    """Stands in for a plugin that cannot be loaded: not usable, and silent about what it may have launched."""

    capabilities = Capabilities(logs=False)

    def __init__(self, name: str, why: str) -> None:
        self.name = self.title = name
        self._why = why

    def listen(self, changed: Callable[[], None], order_of: OrderOf) -> None:
        """Never has any news."""

    async def check(self) -> CheckResult:
        """Not usable, and why."""
        return CheckResult(False, self._why, "repair or uninstall the package that provides it")

    async def offerings(self, want: ResourceChoice) -> Candidates:
        """Nothing, and why."""
        return Candidates(refusals=tuple((str(index + 1), self._why) for index in range(len(want.alternatives))))

    async def launch(self, order: LaunchOrder) -> Instance:
        """Raises ProviderUnavailable."""
        raise ProviderUnavailable(self._why)

    async def instances(self) -> Sequence[Instance]:
        """Raises ProviderUnavailable."""
        raise ProviderUnavailable(self._why)

    async def terminate(self, instance_id: str) -> None:
        """Raises ProviderUnavailable."""
        raise ProviderUnavailable(self._why)

    async def stop(self, instance_id: str) -> None:
        """Raises ProviderUnavailable."""
        raise ProviderUnavailable(self._why)

    async def start(self, instance_id: str) -> None:
        """Raises ProviderUnavailable."""
        raise ProviderUnavailable(self._why)

    def execute(self, instance_id: str, script: str, env: Mapping[str, str]) -> AsyncIterator[bytes | Exit]:
        """Raises ProviderUnavailable."""
        raise ProviderUnavailable(self._why)

    def logs(self, instance_id: str, *, follow: bool, tail: int | None) -> AsyncIterator[bytes]:
        """Raises ProviderUnavailable."""
        raise ProviderUnavailable(self._why)

    async def release(self, service: str) -> None:
        """Raises ProviderUnavailable."""
        raise ProviderUnavailable(self._why)

    async def close(self) -> None:
        """Nothing is held."""
