"""Which providers there are: this machine, and what installed packages offer under the entry point group
`skyserve.providers`. An entry point names a function `(config, clock) -> Provider`. Knows no provider but the local."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from importlib.metadata import EntryPoint, entry_points

from skyserve.clock import Clock
from skyserve.config import Config
from skyserve.errors import ProviderUnavailable
from skyserve.model.evidence import Instance
from skyserve.model.resources import ResourceChoice
from skyserve.providers.base import Candidates, Capabilities, CheckResult, LaunchOrder, Provider
from skyserve.providers.instrument import Instrumented

ENTRY_POINT_GROUP = "skyserve.providers"


def load_providers(config: Config, clock: Clock, *, plugins: Iterable[EntryPoint] | None = None) -> dict[str, Provider]:
    """Every provider by its name, each with a time limit and counters. `plugins` defaults to those installed.

    A plugin that cannot be loaded stays in the list and says why: what it launched earlier is unknown, not gone.
    """
    found = entry_points(group=ENTRY_POINT_GROUP) if plugins is None else plugins
    providers: dict[str, Provider] = {"local": Instrumented(_local(config), clock)}
    for plugin in sorted(found, key=lambda plugin: plugin.name):
        if plugin.name not in providers:
            providers[plugin.name] = Instrumented(_load(plugin, config, clock), clock)
    return providers


def _local(config: Config) -> Provider:
    from skyserve.providers import local, machine

    return local.LocalProvider(config, machine.detect(config.inherited_env))


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
        self.name = name
        self._why = why

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

    def logs(self, instance_id: str, *, follow: bool, tail: int | None) -> AsyncIterator[bytes]:
        """Raises ProviderUnavailable."""
        raise ProviderUnavailable(self._why)

    async def release(self, service: str) -> None:
        """Raises ProviderUnavailable."""
        raise ProviderUnavailable(self._why)
