"""The contract of a cloud that rents out virtual machines: what is peculiar to each, and nothing that all share.

`vm.VmProvider` makes a Provider of any VmCloud: it writes the user data, reaches the machine over SSH, delivers files
and secrets, and turns machines and what their agents report into instances. A VmCloud calls one cloud's API and
translates its errors into `skyserve.errors`; it must not know what runs on the machines.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol

from skyserve.model.offering import Offering
from skyserve.providers.base import Capabilities, CheckResult, LaunchOrder

TAG_INSTALLATION = "skyserve-installation"
TAG_SERVICE = "skyserve-service"
TAG_TOKEN = "skyserve-token"
"""What every machine of ours carries. Only machines with this installation's tag are ever listed or touched."""


class VmState(Enum):
    """Where a machine stands, by its cloud's word. One that is gone for good is not listed at all."""

    BOOTING = "BOOTING"
    RUNNING = "RUNNING"
    STOPPING = "STOPPING"
    STOPPED = "STOPPED"
    PREEMPTED = "PREEMPTED"


@dataclass(frozen=True, slots=True)
class Vm:
    """One machine of ours.

    `id` is all that `delete` needs (with the region or zone where the API wants it) and never changes. `host` is the
    address by which the controller and the door reach it, None until there is one. `ssh_port` is where its SSH answers;
    `port_of` maps a port on the machine to the one by which it is reached, where they differ. PREEMPTED machines stay
    listed until they are deleted. `detail` is the cloud's own word on why it ended. `reclaim_at` is the Unix second at
    which the cloud will take it back, where the API itself tells.
    """

    id: str
    service: str
    token: str
    state: VmState
    host: str | None = None
    ssh_port: int = 22
    port_of: Mapping[int, int] = field(default_factory=dict)
    detail: str = ""
    reclaim_at: float | None = None


@dataclass(frozen=True, slots=True)
class VmOrder:
    """What to rent. `order` says where and what size, and what disk, image and labels the user asked for.

    `name` is a DNS label of at most 63 lower-case characters, unique to the token. `tags` are ours (TAG_*); the user's
    labels are in `order.labels`. `user_data` is a bash script that the machine runs as root at its first boot, without
    a single secret of the user's. `ports` are the TCP ports that must be reachable, SSH's 22 among them, from the
    addresses `allow_from` (CIDR) and from nowhere else.
    """

    order: LaunchOrder
    name: str
    tags: Mapping[str, str]
    user_data: str
    ports: tuple[int, ...]
    allow_from: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Notice:
    """How a machine learns that it will be taken back: its agent asks `url` every two seconds.

    A 200 whose body matches `pattern` is a notice. The pattern's group `at`, where it has one, is the instant (ISO 8601
    or RFC 1123); otherwise the machine goes `warning_s` seconds later. `token_url` is PUT before with `token_headers`,
    and its answer is sent in the header `token_header`.
    """

    url: str
    pattern: str
    headers: Mapping[str, str] = field(default_factory=dict)
    warning_s: float = 30.0
    token_url: str | None = None
    token_headers: Mapping[str, str] = field(default_factory=dict)
    token_header: str = ""


class VmCloud(Protocol):
    """One cloud's API. Every method raises errors of the ProviderError family and nothing else on purpose.

    `user_data_limit` is in bytes. `login` is the account whose SSH key the user data installs: root nearly everywhere.
    `notice` is None where machines are never taken back, or the API itself tells.
    """

    name: str
    title: str
    capabilities: Capabilities
    user_data_limit: int
    notice: Notice | None

    async def check(self) -> CheckResult:
        """Do the credentials work; who would be charged."""
        ...

    async def narrow(self, offerings: Sequence[Offering]) -> Sequence[Offering]:
        """Of the catalog's offerings of this cloud those that can be launched by this account, by what is known."""
        ...

    async def create(self, order: VmOrder) -> Vm:
        """Rent a machine and return on acceptance. The same token again returns the same machine."""
        ...

    async def machines(self) -> Sequence[Vm]:
        """Every machine with this installation's tag, in all regions and of all services.

        Raises when any region did not answer: a part of the truth would read as absence.
        """
        ...

    async def delete(self, vm_id: str) -> None:
        """End a machine and its disk; return on acceptance. Fine to call again, or for one that is gone."""
        ...

    async def stop(self, vm_id: str) -> None:
        """Halt a machine and keep its disk. Called only where `capabilities.stops`."""
        ...

    async def start(self, vm_id: str) -> None:
        """Let a stopped machine go on. Called only where `capabilities.stops`."""
        ...

    async def release(self, service: str) -> None:
        """Drop what the service's machines shared, such as firewall rules; nothing is left of it afterwards."""
        ...
