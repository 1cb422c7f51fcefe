"""The provider contract's world of the user's own hosts: a pool of them on the bed, each with nothing but sshd."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

from tests.bed.hosts import Bed, SshHost
from tests.bed.network import CONTROLLER
from tests.bed.private import private_network
from tests.contract.world import Trouble, World, answering

from skyserve.clock import SystemClock
from skyserve.config import Config
from skyserve.model.offering import CapacityType, Location, Offering
from skyserve.providers.base import LaunchOrder, Provider
from skyserve.providers.ssh import SshProvider, pools_file

POOL = "lab"


class SshWorld(World):
    """Two hosts in one pool."""

    offering = Offering("ssh", "host", Location("ssh", POOL), CapacityType.ON_DEMAND, None, 1, 1, 0.0)
    reports = True
    silence_raises = False
    test_host = CONTROLLER
    at_once = 4
    cannot: ClassVar[Mapping[str, str]] = {
        Trouble.QUOTA.value: "nobody limits what may run on one's own hosts but their size",
        Trouble.THROTTLED.value: "hosts may be asked as often as one likes",
        Trouble.CREDENTIALS.value: "a host that lets nobody in counts as silent, and the others go on",
    }

    def __init__(self, home: Path, hosts: Mapping[str, SshHost], key: Path) -> None:
        super().__init__(home)
        self._hosts = hosts
        self._set_up = False
        self._ssh_config = home / "ssh_config"
        known_hosts = home / "known_hosts"
        known_hosts.write_text("".join(f"{host.known_hosts}\n" for host in hosts.values()))
        blocks = "".join(f"Host {name}\n  HostName {host.address}\n  User root\n" for name, host in hosts.items())
        common = f"Host *\n  IdentityFile {key}\n  IdentitiesOnly yes\n  UserKnownHostsFile {known_hosts}\n"
        self._ssh_config.write_text(blocks + common)

    async def open(self) -> None:
        if not self._set_up:
            await asyncio.gather(*(answering(host.address, 22) for host in self._hosts.values()))
            await asyncio.gather(*(self._sky_ssh_up(home) for home in ("home", "stranger")))
            self._set_up = True
        await super().open()

    async def _sky_ssh_up(self, home: str) -> None:
        provider = self._provider(home)
        await asyncio.gather(*(provider.host(spec).set_up() for spec in provider.pools()[POOL]))
        await provider.close()

    def controller(self) -> Provider:
        return self._provider("home")

    def stranger(self) -> Provider:
        return self._provider("stranger")

    def troubled(self, kind: Trouble, order: LaunchOrder) -> LaunchOrder:
        return replace(order, offering=replace(order.offering, instance_type="host-1000cpu", vcpus=1000))

    @contextmanager
    def trouble(self, kind: Trouble) -> Iterator[None]:
        with ExitStack() as healed:
            for host in self._hosts.values() if kind is Trouble.SILENT else ():
                host.host.cut()
                healed.callback(host.host.heal)
            yield

    def _provider(self, home: str) -> SshProvider:
        user = self.home / home
        config = Config(home=user / "state", inherited_env={"HOME": str(user), "USER": "tester"})
        if not pools_file(config).exists():
            pools_file(config).parent.mkdir(parents=True)
            pools_file(config).write_text(f"{POOL}:\n  hosts: [{', '.join(self._hosts)}]\n")
        return SshProvider(config, SystemClock(), ssh_config=self._ssh_config)


@contextmanager
def ssh_world(home: Path) -> Iterator[World]:
    """Hosts that let one key in, and have nothing but an SSH server."""
    key = home / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True, timeout=10)
    with private_network(), Bed([POOL]) as bed:
        public = key.with_suffix(".pub").read_text(encoding="ascii")
        yield SshWorld(home, {name: bed.ssh_host(POOL, public) for name in ("one", "two")}, key)
