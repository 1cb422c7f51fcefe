"""The provider contract: seven methods that never block for long, and the values they exchange.

`launch` and `terminate` return on acceptance; `instances` is the truth. Every error is one of `skyserve.errors`'
ProviderError family, named after what the controller does about it. An adapter holds only what is peculiar to its
infrastructure; timeouts, metrics and rate limits are added by `instrument`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from skyserve.model.evidence import Instance
from skyserve.model.offering import Offering
from skyserve.model.resources import ResourceChoice


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What an infrastructure can do, and how often it may be asked.

    `poll_interval_s`: seconds between two questions for `instances` while something is expected to change.
    `listing_grace_s`: how long an accepted launch may be missing from the listing before it counts as lost.
    `shares_host`: replicas share one host, so each must listen on the port it is given.
    """

    spot: bool = False
    logs: bool = True
    shares_host: bool = False
    poll_interval_s: float = 10.0
    listing_grace_s: float = 60.0


@dataclass(frozen=True, slots=True)
class CheckResult:
    """Whether the provider is usable here; not being configured is a result, not an error."""

    usable: bool
    reason: str
    hint: str = ""


@dataclass(frozen=True, slots=True)
class Candidates:
    """What a provider could give for some resources, and why it can not give the rest (alternative, reason)."""

    offerings: tuple[Offering, ...] = ()
    refusals: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class LaunchOrder:
    """All that a machine needs to become a replica. `secrets` holds values: it is never shown, logged or stored.

    `service` is the tag `name-uid`. `workspace` names what replicas of one launched version share on a host (setup's
    result). `token` makes the launch idempotent. `port` is the port the application should listen on.
    """

    service: str
    service_name: str
    replica_id: int
    version: int
    token: str
    workspace: str
    offering: Offering
    run: str
    setup: str | None
    port: int
    envs: Mapping[str, str] = field(default_factory=dict)
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)
    workdir: str | None = None
    file_mounts: Mapping[str, str] = field(default_factory=dict)
    num_nodes: int = 1


class Provider(Protocol):
    """One infrastructure."""

    name: str
    capabilities: Capabilities

    async def check(self) -> CheckResult:
        """Is it usable here: credentials, reach, tools."""
        ...

    async def offerings(self, want: ResourceChoice) -> Candidates:
        """Everything that could ever satisfy one of the alternatives, whether or not it is free now."""
        ...

    async def launch(self, order: LaunchOrder) -> Instance:
        """Start a machine and return on acceptance. The same token again returns the same instance."""
        ...

    async def instances(self) -> Sequence[Instance]:
        """Everything that carries our tag, of all services, in one call."""
        ...

    async def terminate(self, instance_id: str) -> None:
        """End an instance; return on acceptance. Fine to call again, or for one that is already gone."""
        ...

    def logs(self, instance_id: str, *, follow: bool, tail: int | None) -> AsyncIterator[bytes]:
        """The replica's output, setup and run; of an instance that is gone as long as its output is kept.

        `tail` limits to the last lines; with `follow` the iterator goes on until the instance ends.
        """
        ...

    async def release(self, service: str) -> None:
        """Drop what the instances of a service (its tag) shared: setup results, kept logs, firewall rules.

        Called when its last instance is gone. Fine to call again.
        """
        ...
