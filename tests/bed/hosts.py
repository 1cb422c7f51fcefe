"""Hosts that are as real as they can be without a hypervisor, and the bed in which they stand.

A host has its own network, processes, users' home, disk and name. It is booted by `boot.sh`, sees the test machine's
programs read-only under its own copy-on-write disk, and has nothing running but what its user data starts. Killing it
ends every process on it at once, as a preemption does. A `Bed` is all hosts of one test; it is the `Hosts` of any
number of `CloudCore`s.

    with private_network(), Bed() as bed:
        core = CloudCore(bed)
        machine = core.create(zone="us-east-1a", user_data="#!/bin/bash\\n...", ...)
        host = bed.host(machine.id)

Must not know any cloud. Everything happens in private namespaces of this process (see `private.py`).
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import shlex
import shutil
import signal
import subprocess
import tempfile
import threading
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tests.bed.core import Answer, Machine
from tests.bed.metadata import MetadataServer
from tests.bed.network import METADATA, Port, Region, firewall
from tests.bed.private import PATH, Namespace, command, is_private

SSH_CONFIG: Final = """\
Port 22
HostKey /etc/ssh/ssh_host_ed25519_key
PermitRootLogin prohibit-password
KbdInteractiveAuthentication no
UsePAM no
PrintMotd no
MaxStartups 100:30:200
AcceptEnv LANG LC_*
Subsystem sftp internal-sftp
"""
"""A cloud image's, without what would look at the world outside."""

_BOOT: Final = Path(__file__).with_name("boot.sh")
_END_S: Final = 10.0
_CLOUD_INIT: Final = ("upper/var/lib/cloud/instance", "upper/var/lib/cloud/scripts/per-boot")
_ZONE: Final = re.compile(r"|-?[a-z]|-\d")
_NEW_ZONE: Final = re.compile(r"((?<=\d)|-)[a-z]$")
"""What follows a region's name in a zone's: the zone of a known region, and of one that is not known yet."""

_ENVIRONMENT: Final = {"PATH": PATH, "HOME": "/root", "USER": "root", "LOGNAME": "root", "SHELL": "/bin/bash"}


class BedBroken(Exception):
    """The bed itself did not do what it should; no fault of what is tested."""


@dataclass
class Host:
    """One host. `address` is where it is reached, also when it is dead: then connections are refused."""

    name: str
    region: Region
    address: str
    directory: Path
    _port: Port = field(repr=False)
    container: bool = False
    _process: subprocess.Popen[bytes] | None = field(default=None, repr=False)
    _metadata: MetadataServer | None = field(default=None, repr=False)

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self._process is not None and self._process.poll() is None

    @property
    def output(self) -> str:
        """What its user data and boot scripts have printed so far."""
        log = self.path("/var/log/cloud-init-output.log")
        return log.read_text(errors="replace") if log.exists() else ""

    def path(self, inside: str) -> Path:
        """Where a file that was written on the host is found from here, dead or alive."""
        below = inside.lstrip("/")
        own = below == "root" or below.startswith(("root/", "tmp/", "etc/ssh/"))
        return self.directory / ("own" if own else "upper") / below

    def processes(self) -> list[int]:
        """The ids, as seen from here, of everything that runs on it."""
        first = self._first()
        return [] if first is None else _in_same(first)

    def run(self, *argv: str, text: str = "") -> str:
        """Run a command on the host as its root and return what it printed. Raises CommandFailed."""
        first = self._first()
        if first is None:
            raise BedBroken(f"{self.name} does not run")
        clean = ["env", "-i", *(f"{name}={value}" for name, value in _ENVIRONMENT.items())]
        return command(["nsenter", f"--target={first}", "--all", "--root", "--wd", *clean, *argv], text)

    def kill(self) -> None:
        """End everything that runs on it, at once. Its disk stays, and its address refuses connections."""
        if self._process is None:
            return
        # The host's first process is the one to kill: `unshare` waits for it, and it is gone only after all others.
        first = self._first()
        os.kill(self._process.pid if first is None else first, signal.SIGKILL)
        try:
            self._process.wait(_END_S)
        except subprocess.TimeoutExpired as error:
            raise BedBroken(f"{self.name} still has processes {_END_S:.0f} s after it was killed") from error
        finally:
            if self._process.stdin is not None:
                self._process.stdin.close()
            self._process = None
            if self._metadata is not None:
                self._metadata.close()
                self._metadata = None

    def cut(self) -> None:
        """Lose every packet from and to it. It runs on and does not notice."""
        self.region.cut_host(self._port)

    def heal(self) -> None:
        """Undo `cut`."""
        self.region.heal_host(self._port)

    def allow(self, allowed: frozenset[tuple[int, str]] | None) -> None:
        """Let only these (TCP port, CIDR) be called from outside; None: all."""
        self._port.namespace.run(lambda: firewall(allowed))

    def boot(self, answer: Answer | None) -> None:
        """Start it; what its metadata address says is up to `answer`."""
        if answer is not None:
            self._metadata = MetadataServer(self._port.namespace, self.address, answer)
        argv = ["unshare", "--mount", "--pid", "--uts", "--ipc", "--fork", "--kill-child", "--"]
        argv += ["bash", str(_BOOT), str(self.directory), _hostname(self.name), "always" if self.container else "once"]
        with open(self.directory / "boot.log", "ab") as log:
            self._process = self._port.namespace.run(
                lambda: subprocess.Popen(
                    argv,
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=log,
                    env=_ENVIRONMENT,
                    start_new_session=True,
                )
            )

    def move(self, port: Port) -> None:
        """Take another place in the network, while it does not run."""
        self.region.leave(self._port)
        self._port = port
        self.address = port.address

    def close(self) -> None:
        """Kill it and let go of its network."""
        self.kill()
        self._port.namespace.close()

    def _first(self) -> int | None:
        """Its first process, as seen from here."""
        if self._process is None:
            return None
        pid = self._process.pid
        with contextlib.suppress(OSError):
            children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()
            return int(children[0]) if children else None
        return None


def _hostname(name: str) -> str:
    """What a host with this name calls itself."""
    return re.sub(r"[^A-Za-z0-9-]", "-", name)[:63]


def _in_same(first: int) -> list[int]:
    """All processes that share a process's pid namespace."""
    found = []
    with contextlib.suppress(OSError):
        namespace = os.stat(f"/proc/{first}/ns/pid").st_ino
        for entry in os.listdir("/proc"):
            with contextlib.suppress(OSError):
                if entry.isdigit() and os.stat(f"/proc/{entry}/ns/pid").st_ino == namespace:
                    found.append(int(entry))
    return found


@dataclass(frozen=True)
class SshHost:
    """A host with nothing but an SSH server, and what a client needs: `known_hosts` is a line for that file."""

    host: Host
    address: str
    user: str
    known_hosts: str


class Bed:
    """Regions and hosts of one test, on a disk in memory. Thread-safe. `close` leaves nothing behind.

    Regions appear when they are first asked for; a zone belongs to the region whose name it begins with, or to a new
    one named after it without its last letter (us-east-1a: us-east-1; us-central1-b: us-central1). `metadata_names` are
    names by which hosts know the metadata address.
    """

    def __init__(self, regions: Iterable[str] = (), *, metadata_names: Iterable[str] = ()) -> None:
        if not is_private():
            raise BedBroken("a bed is made inside `with private_network():`, never in the machine's own network")
        self._lock = threading.RLock()
        self._closed = False
        self._metadata_names = tuple(metadata_names)
        self._regions: dict[str, Region] = {}
        self._hosts: dict[str, Host] = {}
        self._reserved: dict[str, Region] = {}
        self._dead: list[Host] = []
        self._ids = itertools.count(1)
        self._directory = Path(tempfile.mkdtemp(prefix="bed-"))
        command(["mount", "-t", "tmpfs", "-o", "mode=755", "bed", str(self._directory)])
        try:
            for name in regions:
                self.region(name)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Bed:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def hosts(self) -> dict[str, Host]:
        """The hosts that are there, by machine id or name."""
        with self._lock:
            return dict(self._hosts)

    def region(self, zone: str, *, delay_s: float = 0.0) -> Region:
        """The region of a zone, or of that name. `delay_s`, one way to any other place, counts for a new one."""
        with self._lock:
            if self._closed:
                raise BedBroken("this bed is closed")
            for name, region in self._regions.items():
                if zone.startswith(name) and _ZONE.fullmatch(zone, len(name)):
                    return region
            name = _NEW_ZONE.sub("", zone)
            self._regions[name] = Region(name, delay_s)
            return self._regions[name]

    def host(self, machine_id: str) -> Host:
        """The host of a machine. KeyError when it is gone, or has not been booted yet."""
        with self._lock:
            return self._hosts[machine_id]

    def launch(self, name: str, zone: str, user_data: str, answer: Answer | None = None) -> Host:
        """A host that runs this user data, without a cloud."""
        with self._lock:
            host = self._make(name, self.address(zone), user_data)
            host.boot(answer)
            return host

    def ssh_host(self, zone: str, user_key: str, *, user_data: str = "") -> SshHost:
        """A host as its owner hands it over: an SSH server that lets in root with this public key (its text).

        `user_data` is a piece of bash that runs before. Its SSH server answers within a second: retry till then.
        """
        name = f"host-{next(self._ids)}"
        allow = f"mkdir -m 700 ~/.ssh\necho {shlex.quote(user_key.strip())} >~/.ssh/authorized_keys"
        host = self.launch(name, zone, f"#!/bin/bash\n{user_data}\n{allow}\n/usr/sbin/sshd\n")
        public = host.path("/etc/ssh/ssh_host_ed25519_key.pub").read_text(encoding="ascii")
        return SshHost(host, host.address, "root", f"{host.address} {' '.join(public.split()[:2])}")

    def close(self) -> None:
        """End every host and remove every network and file. Fine to call again."""
        with self._lock, contextlib.ExitStack() as stack:
            if self._closed:
                return
            self._closed = True
            stack.callback(os.rmdir, self._directory)
            stack.callback(command, ["umount", "--lazy", str(self._directory)])
            for region in self._regions.values():
                stack.callback(region.close)
            for host in [*self._hosts.values(), *self._dead]:
                stack.callback(host.close)
            self._regions, self._hosts, self._dead = {}, {}, []

    # What a CloudCore calls (core.Hosts).

    def address(self, zone: str) -> str:
        """A fresh address in this zone."""
        with self._lock:
            region = self.region(zone)
            address = region.address()
            self._reserved[address] = region
            return address

    def boot(self, machine: Machine, address: str, answer: Answer) -> None:
        """Start the machine's host; it has a new disk unless it was halted before."""
        with self._lock:
            host = self._hosts.get(machine.id)
            if host is None:
                host = self._make(machine.id, address, machine.user_data)
                host.container = machine.container
            elif address != host.address:
                host.move(self._reserved.pop(address).join(Namespace(), address))
            host.allow(machine.allowed)
            host.boot(answer)

    def allow(self, machine: Machine) -> None:
        """Enforce the machine's firewall from now on."""
        with self._lock:
            if machine.id in self._hosts:
                self._hosts[machine.id].allow(machine.allowed)

    def halt(self, machine_id: str) -> None:
        """Kill a host and keep its disk."""
        with self._lock:
            if machine_id in self._hosts:
                self._hosts[machine_id].kill()

    def destroy(self, machine_id: str) -> None:
        """Kill a host and drop its disk. Its address refuses connections as long as the bed lasts."""
        with self._lock:
            host = self._hosts.pop(machine_id, None)
            if host is not None:
                self._dead.append(host)
                host.kill()
                shutil.rmtree(host.directory)

    def _make(self, name: str, address: str, user_data: str) -> Host:
        """A host that is not booted yet."""
        region = self._reserved.pop(address)
        directory = self._directory / f"{next(self._ids)}"
        host = Host(name, region, address, directory, region.join(Namespace(), address))
        self._hosts[name] = host
        self._format(host, user_data)
        return host

    def _format(self, host: Host, user_data: str) -> None:
        """Write what a fresh disk has of its own."""
        for name in ("root", "work", "upper/etc", "upper/var/log", *_CLOUD_INIT, "own/etc/ssh"):
            (host.directory / name).mkdir(parents=True)
        (host.directory / "own/root").mkdir(mode=0o700)
        (host.directory / "own/tmp").mkdir()
        (host.directory / "own/tmp").chmod(0o1777)
        names = "".join(f"{METADATA} {name}\n" for name in self._metadata_names)
        hostname = _hostname(host.name)
        host.path("/etc/hostname").write_text(f"{hostname}\n", encoding="ascii")
        host.path("/etc/hosts").write_text(f"127.0.0.1 localhost {hostname}\n{names}", encoding="ascii")
        host.path("/etc/resolv.conf").write_text("", encoding="ascii")
        host.path("/etc/ssh/sshd_config").write_text(SSH_CONFIG, encoding="ascii")
        key = host.path("/etc/ssh/ssh_host_ed25519_key")
        command(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", hostname, "-f", str(key)])
        script = host.path("/var/lib/cloud/instance/user-data.txt")
        script.write_text(user_data or "#!/bin/sh\n", encoding="utf-8")
        script.chmod(0o700)
