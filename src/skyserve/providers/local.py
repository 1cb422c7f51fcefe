"""This machine as a provider: replicas are processes, ended with all their offspring, that share out its CPUs, memory,
GPUs and ports. Knows processes and files under `Config.local_dir`; must not know what a replica is for. What this
machine allows in order to keep replicas apart is known to `isolation`.

    local/lock                                 held while instances are added or removed
          instances/<token>/                   one instance, see `local_instance`
          workspaces/<service>/<workspace>/    lock, done, version, workdir/: what replicas of one version share
          logs/<service>/<replica id>.log      output of instances that are gone; by-instance/<token> points to it

Nothing is remembered outside these files, so a controller that starts again finds everything as it was.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import zlib
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from skyserve.clock import Clock
from skyserve.config import Config
from skyserve.errors import CapacityUnavailable, OrderRejected, ProviderUnavailable
from skyserve.model.evidence import Instance
from skyserve.model.offering import Location, Offering
from skyserve.model.resources import ResourceChoice, Resources
from skyserve.providers import beside, bootstrap, isolation, logfile, machine
from skyserve.providers.base import (
    Candidates,
    Capabilities,
    CheckResult,
    Exit,
    Feature,
    LaunchOrder,
    OrderOf,
    Provider,
)
from skyserve.providers.environment import Site, setup_variables, variables
from skyserve.providers.host_offers import ask_for, ask_of, described, offering
from skyserve.providers.isolation import Isolation, enclosed
from skyserve.providers.local_instance import LOOPBACK, LocalInstance, Meta, write_private
from skyserve.providers.machine import Ask, Machine, Share
from skyserve.spec.listening import PORT_VARIABLE, asks_for_its_port, hard_codes_port

if TYPE_CHECKING:
    from skyserve.providers.enclosure import Plan

TITLE = "Local"
LOCATION = Location("local", "localhost")
REPLICA_PORTS = range(20000, 30000)
"""Ports for replicas that do not get the one they declare: below those that outgoing connections use."""

_START_PATIENCE_S = 5.0
_RETRY_AFTER_S = 2.0  # the port may be that of a replica on its way out
_LOG_BYTES = 10 * 1024 * 1024
_KEPT_LOGS = 50
_GIB = 1024**3
_CANNOT = {
    "spot": "this machine has none: nobody can take it back",
    "stop": "this machine stays on: its instances can only be ended",
    Feature.IMAGE.value: "this machine runs no images: use `docker run` in `run`",
    Feature.CONTAINER_IMAGE.value: "this machine runs no images: use `docker run` in `run`",
    Feature.DISK_TIER.value: "the disk of this machine is what it is",
}
_SAFE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,199}")


def provider(config: Config, clock: Clock) -> Provider:
    """This machine; see `registry`."""
    env = config.inherited_env
    return LocalProvider(config, machine.detect(env), isolation=isolation.detect(env))


class LocalProvider:
    """Replicas as processes of this machine.

    A replica gets `grace_s` seconds between SIGTERM and SIGKILL, its supervisor `stop_patience_s` more. `log_bytes` is
    the size at which a log is rotated, and of what is kept of it.
    """

    name = "local"
    title = TITLE
    capabilities = Capabilities(
        shares_host=True,
        one_host=True,
        delivers=frozenset(feature for feature in Feature if feature.value not in _CANNOT),
        cannot=_CANNOT,
        poll_interval_s=0.25,
        listing_grace_s=2.0,
    )

    def __init__(
        self,
        config: Config,
        machine: Machine,
        *,
        isolation: Isolation = Isolation(),  # noqa: B008 - a frozen value
        grace_s: float = 10.0,
        stop_patience_s: float = 10.0,
        log_bytes: int = _LOG_BYTES,
    ) -> None:
        self._root = config.local_dir
        self._inherited_env = config.inherited_env
        self._machine = machine
        self._isolation = isolation
        self.capabilities = replace(self.capabilities, shares_host=isolation.no_network is not None)
        self._grace_s = grace_s
        self._end_patience_s = grace_s + stop_patience_s
        self._log_bytes = log_bytes

    def listen(self, changed: Callable[[], None], order_of: OrderOf) -> None:
        """Asking costs little here, and is done often: there is never any news."""

    async def check(self) -> CheckResult:
        """Usable wherever there is bash."""
        if shutil.which("bash", path=self._inherited_env.get("PATH", os.defpath)) is None:
            return CheckResult(False, "bash is not on the PATH", "install bash: setup and run are bash scripts")
        networks = "network namespaces" if self._isolation.no_network is None else "no network namespaces"
        return CheckResult(True, f"{self._machine}, {networks}")

    async def offerings(self, want: ResourceChoice) -> Candidates:
        """This machine, once for each alternative that it could satisfy when nothing else ran."""
        offerings: dict[Offering, None] = {}
        refusals: list[tuple[str, str]] = []
        for resources in want.alternatives:
            ask = self._limited(ask_for(resources, self._machine))
            why_not = _foreign(resources) or self._machine.why_never(ask) or self._no_disk(resources.disk_size)
            if why_not:
                refusals.append((described(resources), why_not))
            else:
                offerings[offering(LocalProvider.name, LOCATION, ask, self._machine)] = None
        return Candidates(tuple(offerings), tuple(refusals))

    async def launch(self, order: LaunchOrder) -> Instance:
        """Start a supervisor for the order, and return once it is up."""
        return await asyncio.to_thread(self._launch, order)

    async def instances(self) -> Sequence[Instance]:
        """All instances of this home; also finishes what ended since."""
        return await asyncio.to_thread(self._list)

    async def terminate(self, instance_id: str) -> None:
        """Tell the supervisor to stop. The instance is listed as STOPPING until its last process is gone."""
        if _SAFE_NAME.fullmatch(instance_id):
            await asyncio.to_thread(self._terminate, self._instance(instance_id))

    async def stop(self, instance_id: str) -> None:
        """Raises OrderRejected."""
        raise OrderRejected("this machine stays on: its instances cannot be stopped, only ended")

    async def start(self, instance_id: str) -> None:
        """Raises OrderRejected."""
        raise OrderRejected("this machine stays on: its instances cannot be stopped, nor started again")

    async def execute(self, instance_id: str, script: str, env: Mapping[str, str]) -> AsyncIterator[bytes | Exit]:
        """Run a script with the environment, the working directory and the network of the instance's main process."""
        instance = self._instance(instance_id) if _SAFE_NAME.fullmatch(instance_id) else None
        meta, report = (instance.meta, instance.report) if instance else (None, None)
        group = report.get("group", 0) if report else 0
        if meta is None or group <= 0:
            raise OrderRejected(f"nothing runs in {instance_id} now")
        workdir = self._root / "workspaces" / meta.service / meta.workspace / "workdir"
        own = ["nsenter", f"--net=/proc/{group}/ns/net"] if meta.address != LOOPBACK else []
        told = beside.run(script, {**beside.environment(group), **env}, workdir, prefix=own)
        async with contextlib.aclosing(told) as pieces:
            async for piece in pieces:
                yield piece

    async def logs(self, instance_id: str, *, follow: bool, tail: int | None) -> AsyncIterator[bytes]:
        """Output of setup and run, from the instance itself or from what is kept of it."""
        if not _SAFE_NAME.fullmatch(instance_id):
            return
        instance = self._instance(instance_id)
        path = instance.log if instance.path.exists() else self._kept_log(instance_id)
        if path is not None:
            async for data in logfile.stream(path, tail=tail, follow=follow, ended=lambda: not instance.alive()):
                yield data

    async def release(self, service: str) -> None:
        """Remove the service's workspaces and kept logs."""
        if _SAFE_NAME.fullmatch(service):
            await asyncio.to_thread(self._release, service)

    def _limited(self, ask: Ask) -> Ask:
        """The limits that can be enforced here; the others are only set apart."""
        only_vcpus = ask.only_vcpus and self._isolation.limits("cpu")
        return replace(ask, only_vcpus=only_vcpus, only_memory=ask.only_memory and self._isolation.limits("memory"))

    def _no_disk(self, wanted_gib: int | None) -> str | None:
        """Why there is no room for a disk of this size where replicas live; None when there is."""
        if wanted_gib is None:
            return None
        place = next(path for path in (self._root, *self._root.parents) if path.exists())
        free_gib = shutil.disk_usage(place).free / _GIB
        return None if wanted_gib <= free_gib else f"asks for {wanted_gib} GiB of disk, and {free_gib:.1f} are free"

    async def close(self) -> None:
        """Nothing is held."""

    # -- launch

    def _launch(self, order: LaunchOrder) -> Instance:
        copies = _copies(order)
        _check_names(order)
        with self._exclusive():
            self._tidy()
            instance = self._instance(order.token)
            if seen := instance.observe():
                return seen
            if instance.alive():
                raise ProviderUnavailable(f"replica {order.replica_id} is only just starting", hint="ask again")
            share, place = self._set_apart(order)
            self._drop_workspaces(order.service, before=order.version)
            workspace = self._make_workspace(order)
            instance.create(_meta(order, share, place))
            failure = self._start(instance, place, self._payload(order, share, place.port, workspace, copies))
            seen = instance.observe()
        if seen is None:
            raise ProviderUnavailable(f"the supervisor of replica {order.replica_id} did not start: {failure}")
        return seen

    def _set_apart(self, order: LaunchOrder) -> tuple[Share, _Place]:
        """Its part of the machine and its place, beside what the instances that have not ended hold."""
        if why_not := self._no_disk(order.disk_size):
            raise CapacityUnavailable(f"{order.service_name}/{order.replica_id} {why_not}", hint="free some space")
        holding = [
            meta
            for other in self._instances()
            if (meta := other.meta) and (report := other.report) and report.get("phase") != "exited"
        ]
        shares = [
            Share(f"{meta.service_name}/{meta.replica_id}", meta.vcpus, meta.memory_gib, meta.gpus) for meta in holding
        ]
        ask = ask_of(order.offering)
        share = self._machine.share(f"{order.service_name}/{order.replica_id}", ask, shares)
        place = self._place(order, [meta for meta in holding if meta.address == LOOPBACK])
        limits = {"cpu": ask.vcpus if ask.only_vcpus else None, "memory": ask.memory_gib if ask.only_memory else None}
        amounts = {resource: amount for resource, amount in limits.items() if amount is not None}
        place.enclosure["groups"] = self._isolation.groups(f"{self._root}/{order.token}", amounts)
        return share, place

    def _place(self, order: LaunchOrder, neighbours: Sequence[Meta]) -> _Place:
        """Where it listens: on the declared port if that is free. Otherwise on another port, if `run` asks for its
        port; or else on the same one, in a network namespace of its own."""
        taken = {meta.port: f"{meta.service_name}/{meta.replica_id}" for meta in neighbours}
        declared_is_free = order.port not in taken and _can_bind(order.port)
        if declared_is_free or asks_for_its_port(order.run):
            return _Place(LOOPBACK, _free_port(order.port, order.token, set(taken)))
        if self._isolation.no_network is not None:
            if hard_codes_port(order.run, order.port):
                holder = taken.get(order.port, "another program")
                raise CapacityUnavailable(
                    f"run listens on port {order.port}, and {holder} has it; a network namespace of its own is not to "
                    f"be had: {self._isolation.no_network}",
                    hint=f"let run listen on {PORT_VARIABLE}, or use one replica",
                    retry_after_s=_RETRY_AFTER_S,
                )
            return _Place(LOOPBACK, _free_port(order.port, order.token, set(taken)))
        try:
            directory = str(self._instance(order.token).path)
            network = isolation.plan_network((order.port, *order.ports), self._inherited_env, directory)
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            raise CapacityUnavailable(f"no addresses for a network namespace: {error}") from error
        return _Place(network["inner"], order.port, {"groups": [], "network": network})

    def _make_workspace(self, order: LaunchOrder) -> Path:
        workspace = self._root / "workspaces" / order.service / order.workspace
        _make_private(workspace / "workdir")
        write_private(workspace / "version", str(order.version))
        return workspace

    def _payload(
        self, order: LaunchOrder, share: Share, port: int, workspace: Path, copies: Sequence[tuple[str, str]]
    ) -> bootstrap.Order:
        workdir = workspace / "workdir"
        site = self._site(share, port)
        return {
            "token": order.token,
            "replica_id": order.replica_id,
            "workspace": str(workspace),
            "port": port,
            "setup": order.setup,
            "run": order.run,
            "copies": [[source, str(workdir / destination)] for source, destination in copies],
            "env": self._environment(order, site),
            "setup_env": setup_variables(site),
            "grace_s": self._grace_s,
            "log_bytes": self._log_bytes,
        }

    def _site(self, share: Share, port: int) -> Site:
        env = self._inherited_env
        return Site(
            location=LOCATION,
            port=port,
            num_gpus=len(share.gpus),
            gpus=tuple(share.gpus) if self._machine.gpus else None,
            node_ip=LOOPBACK,
            user=env.get("USER") or env.get("LOGNAME") or str(os.getuid()),
        )

    def _environment(self, order: LaunchOrder, site: Site) -> dict[str, str]:
        """What setup and run see. The user's variables win over all but the marker, by which processes are found."""
        return {**self._inherited_env, **variables(order, site), **order.secrets, bootstrap.MARKER: order.token}

    def _start(self, instance: LocalInstance, place: _Place, payload: bootstrap.Order) -> str:
        """Hand the order to a new supervisor over its stdin; what went wrong, if it did."""
        command = [sys.executable, "-I", "-S", "-X", "utf8", bootstrap.__file__, str(instance.path)]
        process = subprocess.Popen(
            enclosed(place.enclosure, command),
            env=dict(self._inherited_env),
            cwd=self._root,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        with process:
            try:
                _, errors = process.communicate(json.dumps(payload).encode(), timeout=_START_PATIENCE_S)
            except subprocess.TimeoutExpired:
                process.kill()
                return f"no sign of life for {_START_PATIENCE_S:g} s"
        told = errors.decode(errors="replace").strip().splitlines()
        return told[-1] if told else f"exit code {process.returncode}"

    # -- the end

    def _terminate(self, instance: LocalInstance) -> None:
        with self._exclusive():
            if instance.path.exists():
                self._end(instance)

    def _list(self) -> tuple[Instance, ...]:
        with contextlib.suppress(BlockingIOError), self._exclusive(wait=False):
            self._tidy()
        return tuple(seen for instance in self._instances() if (seen := instance.observe()))

    def _tidy(self) -> None:
        """Bring to an end what can be, under the lock: asked terminations, dead supervisors, launches cut short."""
        for instance in self._instances():
            if instance.terminating:
                self._end(instance)
            elif instance.alive():
                continue
            elif (report := instance.report) is None:
                shutil.rmtree(instance.path)
            elif report.get("phase") != "exited":
                instance.bury()

    def _end(self, instance: LocalInstance) -> None:
        instance.ask_to_end(self._end_patience_s)
        if instance.alive() or not instance.end_survivors():
            return
        if meta := instance.meta:
            self._keep_log(instance, meta)
        shutil.rmtree(instance.path)
        self._isolation.sweep()

    def _keep_log(self, instance: LocalInstance, meta: Meta) -> None:
        directory = self._root / "logs" / meta.service
        _make_private(directory / "by-instance")
        kept = directory / f"{meta.replica_id}.log"
        heading = f"[skyserve] replica {meta.replica_id} again, launched as {instance.token}"
        logfile.append_log(instance.log, kept, heading=heading, limit_bytes=self._log_bytes)
        pointer = directory / "by-instance" / instance.token
        pointer.unlink(missing_ok=True)
        pointer.symlink_to(f"../{kept.name}")
        logs = sorted(directory.glob("*.log"), key=lambda log: log.stat().st_mtime)
        for old in logs[:-_KEPT_LOGS]:
            old.unlink()
        for link in (directory / "by-instance").iterdir():
            if not link.exists():
                link.unlink()

    def _kept_log(self, token: str) -> Path | None:
        return next((link.resolve() for link in self._root.glob(f"logs/*/by-instance/{token}") if link.exists()), None)

    def _release(self, service: str) -> None:
        if not self._root.exists():
            return
        with self._exclusive():
            self._tidy()
            self._drop_workspaces(service)
            if not any(meta.service == service for instance in self._instances() if (meta := instance.meta)):
                self._discard(self._root / "logs" / service)
                self._discard(self._root / "workspaces" / service)
        for discarded in _entries(self._root / "trash"):  # never the directory itself: others put things there
            shutil.rmtree(discarded, ignore_errors=True)

    def _drop_workspaces(self, service: str, before: int | None = None) -> None:
        """Put away the service's workspaces that no instance uses: all, or those of versions `before` one."""
        metas = [meta for instance in self._instances() if (meta := instance.meta)]
        used = {meta.workspace for meta in metas if meta.service == service}
        for workspace in _entries(self._root / "workspaces" / service):
            if workspace.name not in used and (before is None or _version(workspace) < before):
                self._discard(workspace)

    def _discard(self, path: Path) -> None:
        """Put something aside in no time; removing a big tree must not keep others waiting for the lock."""
        if path.exists():
            trash = self._root / "trash"
            _make_private(trash)
            path.replace(trash / os.urandom(8).hex())

    # -- files

    def _instance(self, token: str) -> LocalInstance:
        return LocalInstance(self._root / "instances" / token)

    def _instances(self) -> list[LocalInstance]:
        return [LocalInstance(path) for path in _entries(self._root / "instances")]

    @contextlib.contextmanager
    def _exclusive(self, *, wait: bool = True) -> Iterator[None]:
        """Alone among all controllers and threads that use this home. BlockingIOError if not to wait, and not alone."""
        _make_private(self._root / "instances")
        lock = os.open(self._root / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield
        finally:
            os.close(lock)


def _no_enclosure() -> Plan:
    return {"groups": [], "network": None}


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a replica listens, and what encloses it there."""

    address: str
    port: int
    enclosure: Plan = field(default_factory=_no_enclosure)


# -- what this machine can give


def _foreign(resources: Resources) -> str | None:
    """What is asked that has no meaning on this machine."""
    image = resources.image_id
    reasons = (
        (
            resources.cloud not in (None, LOCATION.cloud),
            f"asks for cloud {resources.cloud}, and this is the machine itself",
        ),
        (
            resources.region not in (None, LOCATION.region),
            f"asks for region {resources.region}, and this machine is in {LOCATION.region}",
        ),
        (resources.zone is not None, f"asks for zone {resources.zone}, and this machine is in none"),
        (resources.use_spot, "asks for spot capacity, and this machine has none: nobody can take it back"),
        (
            resources.instance_type not in (None, "host"),
            f"asks for instance type {resources.instance_type}, and this machine is of type host",
        ),
        (
            resources.disk_tier is not None,
            f"asks for disk tier {resources.disk_tier}, and {_CANNOT[Feature.DISK_TIER.value]}",
        ),
        (image is not None, f"asks for image {image}, and this machine runs no images yet"),
        (
            bool(resources.volumes),
            f"asks for volumes ({', '.join(resources.volumes)}), and this machine has none to attach",
        ),
    )
    return next((text for applies, text in reasons if applies), None)


# -- what an order comes to


def _check_names(order: LaunchOrder) -> None:
    """Names become directories; one that could leave its place is not ours."""
    for name in (order.token, order.service, order.workspace):
        if not _SAFE_NAME.fullmatch(name):
            raise OrderRejected(f"{name!r} cannot be the name of a directory")


def _copies(order: LaunchOrder) -> list[tuple[str, str]]:
    """What is copied into the working directory: (source, destination in it). Raises OrderRejected."""
    copies = [] if order.workdir is None else [_copy("workdir", order.workdir, ".")]
    return [*copies, *(_copy("file_mounts", source, target) for target, source in order.file_mounts.items())]


def _copy(field: str, source: str, destination: str) -> tuple[str, str]:
    target = PurePosixPath(destination)
    if target.is_absolute() or destination.startswith("~") or ".." in target.parts:
        raise OrderRejected(
            f"{field}: {destination} lies outside the working directory; the rest of this machine is not its own",
            hint="on this machine use a destination relative to the working directory",
        )
    if not os.path.isabs(source) or not os.path.exists(source):
        raise OrderRejected(f"{field}: {source} is not a file or directory of this machine")
    return f"{source}/." if os.path.isdir(source) else source, str(target)


def _meta(order: LaunchOrder, share: Share, place: _Place) -> Meta:
    return Meta(
        service=order.service,
        service_name=order.service_name,
        replica_id=order.replica_id,
        version=order.version,
        workspace=order.workspace,
        port=place.port,
        vcpus=share.vcpus,
        memory_gib=share.memory_gib,
        gpus=share.gpus,
        address=place.address,
        labels=order.labels,
    )


def _free_port(declared: int, token: str, taken: set[int]) -> int:
    """The declared port, or one of REPLICA_PORTS. Where the search begins differs by token: other homes search too."""
    begin = zlib.crc32(token.encode()) % len(REPLICA_PORTS)
    candidates: tuple[int, ...] = (declared, *REPLICA_PORTS[begin:], *REPLICA_PORTS[:begin])
    for port in candidates:
        if port not in taken and _can_bind(port):
            return port
    raise CapacityUnavailable(f"no port of {REPLICA_PORTS.start}-{REPLICA_PORTS.stop - 1} is free")


def _can_bind(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError as error:
            if error.errno in (errno.EADDRINUSE, errno.EACCES):
                return False
            raise
    return True


# -- directories


def _make_private(path: Path) -> None:
    """A directory that only its owner may enter, like each one made on the way to it."""
    if not path.is_dir():
        _make_private(path.parent)
        path.mkdir(mode=0o700, exist_ok=True)


def _entries(path: Path) -> list[Path]:
    try:
        return sorted(path.iterdir())
    except FileNotFoundError:
        return []


def _version(workspace: Path) -> int:
    try:
        return int((workspace / "version").read_text())
    except (OSError, ValueError):
        return 0
