"""Pools of machines that are reached by real SSH, and an SSH provider over them in a home of its own."""

from __future__ import annotations

import asyncio
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from tests.providers.ssh_rig import PATIENCE_S, Machine, VmRig, answering, free_port

from skyserve.clock import SystemClock
from skyserve.config import Config
from skyserve.model.evidence import Instance, InstanceState
from skyserve.model.offering import CapacityType, Location, Offering
from skyserve.model.resources import ResourceChoice, Resources
from skyserve.providers.base import LaunchOrder
from skyserve.providers.openssh import sockets_of
from skyserve.providers.ssh import SshProvider, pools_file

SERVES = "echo listening; exec sleep 1000"
HOST = Offering("ssh", "host", Location("ssh", "lab"), CapacityType.ON_DEMAND, None, 1, 1, 0.0)


class PoolRig:
    """Machines by their names in ssh's configuration. Pool `lab` has all of them unless a test says otherwise."""

    def __init__(self, directory: Path, *names: str) -> None:
        user = directory / "user"
        (user / ".sky").mkdir(parents=True)
        self.config = Config(home=directory / "home", inherited_env={"HOME": str(user), "USER": "tester"})
        self.key = user / "key"
        self.ssh_config = user / "ssh_config"
        self.known_hosts = user / "known_hosts"
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.key)]
        subprocess.run(command, check=True, timeout=10)
        self.machines = {name: Machine(directory / name) for name in names}
        for machine in self.machines.values():
            _let_in(machine, self.key.with_suffix(".pub").read_text().strip())
        self.write_ssh_config()
        self.write_pools({"lab": names})
        self.providers: list[SshProvider] = []

    def write_ssh_config(self) -> None:
        """What the user's ~/.ssh/config would say: addresses, ports, keys; and the hosts' keys are known."""
        blocks, known = [], []
        for name, machine in self.machines.items():
            blocks.append(f"Host {name}\n  HostName 127.0.0.1\n  Port {machine.port}\n  User root\n")
            known.append(f"[127.0.0.1]:{machine.port} {machine.host_key}\n")
        common = f"Host *\n  IdentityFile {self.key}\n  IdentitiesOnly yes\n  UserKnownHostsFile {self.known_hosts}\n"
        self.ssh_config.write_text("".join([*blocks, common, "  GlobalKnownHostsFile /dev/null\n"]))
        self.known_hosts.write_text("".join(known))

    def write_pools(self, pools: dict[str, Sequence[str]]) -> None:
        """The pools file."""
        text = "".join(f"{pool}:\n  hosts: [{', '.join(names)}]\n" for pool, names in pools.items())
        pools_file(self.config).write_text(text)

    def provider(self) -> SshProvider:
        """A provider on this home, as a controller that starts again makes one."""
        self.providers.append(SshProvider(self.config, SystemClock(), ssh_config=self.ssh_config))
        return self.providers[-1]

    async def up(self) -> SshProvider:
        """A provider whose hosts are all set up."""
        provider = self.provider()
        await asyncio.gather(*(answering(machine) for machine in self.machines.values()))
        for hosts in provider.pools().values():
            await asyncio.gather(*(provider.host(spec).set_up() for spec in hosts))
        return provider

    def order(self, run: str = SERVES, *, replica_id: int = 1, setup: str | None = None, **rest: object) -> LaunchOrder:
        """An order; its token is `t` and the replica's number unless given."""
        order = LaunchOrder("chat-u1", "chat", replica_id, 1, f"t{replica_id}", "v1", HOST, run, setup, free_port())
        return replace(order, **rest)  # type: ignore[arg-type]

    async def close(self) -> None:
        """Hang up everywhere."""
        for provider in self.providers:
            await provider.close()

    def run(self, scenario: Callable[[SshProvider], object]) -> None:
        """Run a test's coroutine with a provider whose hosts are set up, and hang up at the end."""

        async def whole() -> None:
            try:
                await scenario(await self.up())  # type: ignore[misc]
            finally:
                await self.close()

        asyncio.run(whole())


@contextmanager
def pool_rig(directory: Path, *names: str) -> Iterator[PoolRig]:
    """A rig; in the end the machines are off and no ssh client is left."""
    rig = PoolRig(directory, *names)
    try:
        yield rig
    finally:
        for machine in rig.machines.values():
            machine.stop()
    leftovers = VmRig(cloud=None, config=rig.config).leftovers  # type: ignore[arg-type]
    deadline = time.monotonic() + PATIENCE_S
    while leftovers() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert leftovers() == [], sockets_of(rig.config.home)


async def offering_for(provider: SshProvider, resources: Resources) -> Offering:
    """The one place that the provider offers."""
    [offering] = (await provider.offerings(ResourceChoice((resources,)))).offerings
    return offering


async def until(provider: SshProvider, true_of: Callable[[Sequence[Instance]], bool]) -> Sequence[Instance]:
    """Poll the listing until this holds."""
    deadline = time.monotonic() + PATIENCE_S
    while not true_of(listed := await provider.instances()):
        assert time.monotonic() < deadline, f"still {listed}"
        await asyncio.sleep(0.05)
    return listed


def all_in(state: InstanceState, *, count: int = 1) -> Callable[[Sequence[Instance]], bool]:
    """Whether exactly so many instances are listed, all in this state."""
    return lambda listed: len(listed) == count and all(instance.state is state for instance in listed)


def _let_in(machine: Machine, public_key: str) -> None:
    config = machine.directory / "ssh" / "sshd_config"
    config.write_text(config.read_text().replace("PermitRootLogin no", "PermitRootLogin yes"))
    machine.allow(public_key)
    machine.stop()
    machine.start()
