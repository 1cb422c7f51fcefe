"""The provider contract: methods that never block for long, and the values they exchange.

`launch` and `terminate` return on acceptance; `instances` is the truth. Every error is one of `skyserve.errors`'
ProviderError family, named after what the controller does about it. An adapter holds only what is peculiar to its
infrastructure; timeouts, metrics and rate limits are added by `instrument`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol

from skyserve.model.evidence import Instance
from skyserve.model.offering import Offering
from skyserve.model.resources import ResourceChoice


class Feature(Enum):
    """What a Service YAML may ask for that not every infrastructure can deliver. The values are the YAML's keys."""

    WORKDIR = "workdir"
    FILE_MOUNTS = "file_mounts"
    SECRETS = "secrets"
    IMAGE = "image_id"
    CONTAINER_IMAGE = "image_id: docker:..."
    DISK_SIZE = "disk_size"
    DISK_TIER = "disk_tier"
    LABELS = "labels"
    PORTS = "ports"


EVERYTHING_BUT_CONTAINERS = frozenset(Feature) - {Feature.CONTAINER_IMAGE}


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What an infrastructure can do, and how often it may be asked.

    `delivers`: what of a Service YAML it honours; what is missing is refused before anything is launched.
    `cannot`: why a feature, or one of `spot`, `stop` and `logs`, is not to be had, in a few words each.
    `stops`: instances can be stopped, and started again with their disk as it was.
    `poll_interval_s`: seconds between two questions for `instances` while something is expected to change.
    `listing_grace_s`: how long an accepted launch may be missing from the listing before it counts as lost.
    `shares_host`: replicas share hosts and their ports, so each must listen on the port it is given.
    `one_host`: there is one host, and every replica is on it.
    """

    spot: bool = False
    logs: bool = True
    stops: bool = False
    shares_host: bool = False
    one_host: bool = False
    delivers: frozenset[Feature] = frozenset(Feature)
    cannot: Mapping[str, str] = field(default_factory=dict)
    poll_interval_s: float = 10.0
    listing_grace_s: float = 60.0


class NotConfigured(Exception):
    """Raised by a provider's factory when nothing here points to an account: SDK or credentials are missing.

    Found out without asking any network. `title` is the provider's name as people write it, `reason` says what is
    missing, `hint` the command that helps.
    """

    def __init__(self, title: str, reason: str, hint: str) -> None:
        super().__init__(reason)
        self.title = title
        self.reason = reason
        self.hint = hint


@dataclass(frozen=True, slots=True)
class CheckResult:
    """Whether the provider is usable here. `account` names who would be charged; it is never a secret."""

    usable: bool
    reason: str
    hint: str = ""
    account: str = ""


@dataclass(frozen=True, slots=True)
class Candidates:
    """What a provider could give for some resources, and why it can not give the rest (alternative, reason)."""

    offerings: tuple[Offering, ...] = ()
    refusals: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class LaunchOrder:
    """All that a machine needs to become a replica. `secrets` holds values: it is never shown, logged or stored.

    `service` is the tag `name-uid`. `workspace` names what replicas of one launched version share on a host (setup's
    result). `token` makes the launch idempotent. `port` is the port the application should listen on, `ports` what
    else must be reachable. `workdir` and the values of `file_mounts` are paths on the controller's machine, snapshots
    that stay as they are for as long as the version is in use. `disk_size` is in GiB.
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
    ports: tuple[int, ...] = ()
    image_id: str | None = None
    disk_size: int | None = None
    disk_tier: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Exit:
    """How a script that was run beside a replica ended."""

    code: int


OrderOf = Callable[[str, str], Awaitable[LaunchOrder | None]]
"""(service tag, token) -> the order of an accepted launch once more, secrets included, or None when no replica stands
for it any more. So a machine that has come up can be told what to run, also by a controller that started since."""


class Provider(Protocol):
    """One infrastructure. `title` is its name as people write it."""

    name: str
    title: str
    capabilities: Capabilities

    def listen(self, changed: Callable[[], None], order_of: OrderOf) -> None:
        """Called once, before anything else, by the controller (and by nobody who only looks).

        Call `changed` (from the event loop) when the next listing is known to differ from the last one, where machines
        report by themselves; others are asked now and then. `order_of` is for those that deliver files and secrets
        after the machine has come up.
        """
        ...

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

    async def stop(self, instance_id: str) -> None:
        """Halt an instance and keep its disk; it is listed as STOPPED then. OrderRejected where `stops` is False."""
        ...

    async def start(self, instance_id: str) -> None:
        """Let a stopped instance go on: setup is not repeated, run is. OrderRejected where `stops` is False."""
        ...

    def execute(self, instance_id: str, script: str, env: Mapping[str, str]) -> AsyncIterator[bytes | Exit]:
        """Run a bash script in an instance's working directory, beside what runs there: its output, then its Exit.

        `env` may hold secrets: it is never part of a command line. The script ends with the iterator. Raises
        OrderRejected where this cannot be done, and for an instance that is not there.
        """
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

    async def close(self) -> None:
        """Let go of connections and tasks, as the controller leaves; what runs goes on."""
        ...
