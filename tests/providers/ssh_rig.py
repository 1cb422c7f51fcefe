"""Machines that are reached by real SSH: each is this one in namespaces of its own, with its own HOME, /run, /etc/ssh
and sshd on a loopback port. What runs on one dies with it. Also a cloud that rents them out."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from skyserve.clock import SystemClock
from skyserve.config import Config
from skyserve.errors import ProviderError, SkyServeError
from skyserve.model.evidence import Instance, InstanceState
from skyserve.model.offering import CapacityType, Location, Offering
from skyserve.providers.base import Capabilities, CheckResult, LaunchOrder
from skyserve.providers.openssh import Login, Ssh, client_key, sockets_of
from skyserve.providers.vm import VmProvider
from skyserve.providers.vm_cloud import TAG_SERVICE, TAG_TOKEN, Notice, Vm, VmOrder, VmState

TOKEN = f"vm-{uuid.uuid4().hex[:8]}"
"""Processes are told apart by it, so other tests on this machine must have others."""
PATIENCE_S = 30.0
SERVES = "echo listening; exec sleep 1000"
SPOT = Offering("paper", "p1", Location("paper", "here", "here-a"), CapacityType.SPOT, None, 8, 32, 0.1)

_SSHD = shutil.which("sshd", path="/usr/sbin:/usr/local/sbin")
_NAMESPACES = ["unshare", "-m", "-p", "-f", "--kill-child", "--mount-proc", "--propagation", "private"]
_BOOT = """
mount --bind "$0/root" /root && mount --bind "$0/ssh" /etc/ssh && mount -t tmpfs -o mode=755 run /run || exit 1
cd /root
export HOME=/root PATH=/usr/sbin:/usr/bin:/sbin:/bin
mkdir /run/sshd
/usr/sbin/sshd
[ ! -e "$0/boot" ] || bash "$0/boot" &
wait
while read -r _; do :; done
"""
_SSHD_CONFIG = """
ListenAddress 127.0.0.1
Port {port}
PidFile /run/sshd.pid
HostKey /etc/ssh/ssh_host_ed25519_key
UsePAM no
PermitRootLogin {root}
PasswordAuthentication no
KbdInteractiveAuthentication no
LogLevel ERROR
"""


def _why_not() -> str | None:
    if os.getuid() != 0 or _SSHD is None:
        return "machines over SSH need root and OpenSSH's server"
    tried = subprocess.run([*_NAMESPACES, "true"], capture_output=True, timeout=10, check=False)
    return None if tried.returncode == 0 else "machines over SSH need namespaces"


_WHY_NOT = _why_not()
needs_machines = pytest.mark.skipif(_WHY_NOT is not None, reason=_WHY_NOT or "")


class Machine:
    """One machine. `boot_script` runs at its first start, what that left in ~/.skyserve/on_boot at later ones."""

    def __init__(self, directory: Path, boot_script: str = "") -> None:
        root_login = "no" if boot_script else "prohibit-password"  # as some images have it, until the script is through
        self.directory = directory
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        for name in ("root", "ssh"):
            (directory / name).mkdir(mode=0o700, parents=True)
        (directory / "ssh" / "sshd_config").write_text(_SSHD_CONFIG.format(port=self.port, root=root_login))
        self.give_host_key()
        if boot_script:
            (directory / "boot").write_text(boot_script)
        self.start()

    @property
    def root(self) -> Path:
        """Its agent's directory."""
        return self.directory / "root" / ".skyserve"

    @property
    def host_key(self) -> str:
        """Its SSH host key, as known hosts have it."""
        return " ".join((self.directory / "ssh" / "ssh_host_ed25519_key.pub").read_text().split()[:2])

    def give_host_key(self) -> None:
        """A fresh host key, as images make one at their first boot."""
        path = self.directory / "ssh" / "ssh_host_ed25519_key"
        path.unlink(missing_ok=True)
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)]
        subprocess.run(command, check=True, timeout=10)

    def allow(self, public_key: str) -> None:
        """Let a key in."""
        (self.directory / "root" / ".ssh").mkdir(mode=0o700, exist_ok=True)
        _write(self.directory / "root" / ".ssh" / "authorized_keys", f"{public_key}\n")

    def start(self) -> None:
        """Switch it on."""
        command = [*_NAMESPACES, "bash", "-c", _BOOT, str(self.directory)]
        with (self.directory / "console").open("ab") as console:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=console, stderr=console, start_new_session=True
            )

    def stop(self) -> None:
        """Switch it off, without a warning; the disk stays as it is."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.communicate(timeout=10)
            self._process = None
            while self._answers():  # what runs on it dies a moment later
                time.sleep(0.01)
        on_boot = self.root / "on_boot"
        if on_boot.exists():
            (self.directory / "boot").write_text("exec bash /root/.skyserve/on_boot\n")

    def _answers(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0


def free_port() -> int:
    """A port of the loopback interface that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class PaperCloud:
    """A cloud of such machines, or with `hosts` False of machines that boot for ever. Tests change its attributes."""

    name = "paper"
    title = "Paper"

    def __init__(self, directory: Path, *, hosts: bool = True) -> None:
        self.real = hosts
        self.capabilities = Capabilities(spot=True, stops=True)
        self.user_data_limit = 16384
        self.notice: Notice | None = None
        self.orders: list[VmOrder] = []
        self.hosts: dict[str, Machine] = {}
        self.rented: dict[str, Vm] = {}
        self.released: list[str] = []
        self.error: ProviderError | None = None
        self._directory = directory

    async def check(self) -> CheckResult:
        return CheckResult(True, "on paper")

    async def narrow(self, offerings: Sequence[Offering]) -> Sequence[Offering]:
        return offerings

    async def create(self, order: VmOrder) -> Vm:
        if self.error is not None:
            raise self.error
        self.orders.append(order)
        vm_id = f"vm/{order.tags[TAG_TOKEN]}"
        if vm_id not in self.rented and not self.real:
            self.rented[vm_id] = Vm(vm_id, order.tags[TAG_SERVICE], order.tags[TAG_TOKEN], VmState.BOOTING)
        elif vm_id not in self.rented:
            host = Machine(self._directory / order.tags[TAG_TOKEN], order.user_data)
            self.hosts[vm_id] = host
            self.rented[vm_id] = Vm(
                vm_id, order.tags[TAG_SERVICE], order.tags[TAG_TOKEN], VmState.RUNNING, "127.0.0.1", host.port
            )
        return self.rented[vm_id]

    async def machines(self) -> Sequence[Vm]:
        if self.error is not None:
            raise self.error
        return tuple(self.rented.values())

    async def delete(self, vm_id: str) -> None:
        self.rented.pop(vm_id, None)
        if vm_id in self.hosts:
            self.hosts.pop(vm_id).stop()

    async def stop(self, vm_id: str) -> None:
        if self.real:
            self.hosts[vm_id].stop()
        self.set(vm_id, VmState.STOPPED)

    async def start(self, vm_id: str) -> None:
        if self.real:
            self.hosts[vm_id].start()
        self.set(vm_id, VmState.RUNNING)

    async def release(self, service: str) -> None:
        self.released.append(service)

    def set(self, vm_id: str, state: VmState, **rest: object) -> None:
        """Another state by the cloud's word."""
        self.rented[vm_id] = replace(self.rented[vm_id], state=state, **rest)  # type: ignore[arg-type]


@dataclass
class VmRig:
    """A provider over a paper cloud. `trouble` is what a question for an order raises."""

    cloud: PaperCloud
    config: Config
    providers: list[VmProvider] = field(default_factory=list)
    orders: list[LaunchOrder] = field(default_factory=list)
    trouble: SkyServeError | None = None
    news: asyncio.Event = field(default_factory=asyncio.Event)

    def provider(self, **rest: object) -> VmProvider:
        """A provider on this home, as a controller that starts again makes one."""
        provider = VmProvider(self.cloud, self.config, SystemClock(), **rest)  # type: ignore[arg-type]
        provider.listen(self.news.set, self.order_of)
        self.providers.append(provider)
        return provider

    async def order_of(self, service: str, token: str) -> LaunchOrder | None:
        """An order once more, as the controller has it."""
        if self.trouble is not None:
            raise self.trouble
        return next((order for order in self.orders if (order.service, order.token) == (service, token)), None)

    def order(self, run: str = SERVES, *, token: str = TOKEN, setup: str | None = None, **rest: object) -> LaunchOrder:
        """An order for replica 1 of service chat."""
        order = LaunchOrder("chat-u1", "chat", 1, 1, token, "v1", SPOT, run, setup, free_port())
        self.orders.append(replace(order, **rest))  # type: ignore[arg-type]
        return self.orders[-1]

    async def close(self) -> None:
        """Hang up everywhere and end all machines."""
        for provider in self.providers:
            await provider.close()
        for vm_id in list(self.cloud.hosts):
            await self.cloud.delete(vm_id)

    def leftovers(self) -> list[str]:
        """SSH clients and shared connections of this home that are still there."""
        marks = [os.fsencode(self.config.home), os.fsencode(sockets_of(self.config.home))]
        found = []
        for entry in Path("/proc").iterdir():
            try:
                command = (entry / "cmdline").read_bytes() if entry.name.isdigit() else b""
            except OSError:
                continue
            if any(mark in command for mark in marks):
                found.append(f"{entry.name}: {command!r}")
        return found


@contextmanager
def vm_rig(directory: Path, *, hosts: bool = True) -> Iterator[VmRig]:
    """A rig in a directory; in the end no process is left."""
    config = Config(home=directory / "home", public_addresses=("192.0.2.7/32",), inherited_env={"USER": "tester"})
    rig = VmRig(PaperCloud(directory / "machines", hosts=hosts), config)
    try:
        yield rig
    finally:
        for host in rig.cloud.hosts.values():
            host.stop()
    deadline = time.monotonic() + PATIENCE_S
    while rig.leftovers() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert rig.leftovers() == []


async def until(provider: VmProvider, true_of: Callable[[Sequence[Instance]], bool]) -> Sequence[Instance]:
    """Poll the listing until this holds."""
    deadline = time.monotonic() + PATIENCE_S
    while not true_of(listed := await provider.instances()):
        assert time.monotonic() < deadline, f"still {listed}"
        await asyncio.sleep(0.1)
    return listed


def only(state: InstanceState) -> Callable[[Sequence[Instance]], bool]:
    """Whether exactly one instance is listed, in this state."""
    return lambda listed: [instance.state for instance in listed] == [state]


async def ssh_to(machine: Machine, home: Path, host_key: str = "", **rest: object) -> Ssh:
    """A connection to a machine that lets this installation in, whose key is known, or taken for another one."""
    key = await client_key(home)
    machine.allow(key.public)
    known_hosts = home / "known_hosts"
    _write(known_hosts, f"machine {host_key or machine.host_key}\n")
    login = Login(
        host="127.0.0.1",
        port=machine.port,
        user="root",
        identity=key.private_file,
        known_hosts=known_hosts,
        alias="machine",
        config=Path("none"),
    )
    ssh = Ssh(replace(login, **rest), home)  # type: ignore[arg-type]
    await answering(machine)
    return ssh


def _write(path: Path, text: str) -> None:
    """Write what somebody may be reading, who must not see the half of it."""
    draft = path.with_name(f"{path.name}.new")
    draft.write_text(text)
    draft.replace(path)


async def answering(machine: Machine) -> None:
    """Wait until sshd listens."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", machine.port)
        except OSError:
            assert time.monotonic() < deadline, (machine.directory / "console").read_text()
            await asyncio.sleep(0.05)
            continue
        writer.close()
        await writer.wait_closed()
        return
