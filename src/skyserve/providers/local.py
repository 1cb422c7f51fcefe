"""This machine as a provider: replicas are processes, ended with all their offspring, that share out its CPUs, memory,
GPUs and ports. Knows processes and files under `Config.local_dir`; must not know what a replica is for.

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
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path, PurePosixPath

from skyserve.config import Config
from skyserve.errors import CapacityUnavailable, OrderRejected, ProviderUnavailable
from skyserve.model.evidence import Instance
from skyserve.model.offering import CapacityType, Location, Offering
from skyserve.model.resources import ResourceChoice, Resources
from skyserve.providers import bootstrap, logfile
from skyserve.providers.base import Candidates, Capabilities, CheckResult, LaunchOrder
from skyserve.providers.local_instance import LocalInstance, Meta, write_private
from skyserve.providers.machine import Ask, Machine, Share

LOCATION = Location("local", "localhost")
REPLICA_PORTS = range(20000, 30000)
"""Ports for replicas that do not get the one they declare: below those that outgoing connections use."""

_START_PATIENCE_S = 5.0
_LOG_BYTES = 10 * 1024 * 1024
_KEPT_LOGS = 50
_SAFE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,199}")
_INSTANCE_TYPE = re.compile(r"host(?:-([\d.]+)cpu)?(?:-([\d.]+)gib)?")


class LocalProvider:
    """Replicas as processes of this machine.

    A replica gets `grace_s` seconds between SIGTERM and SIGKILL, its supervisor `stop_patience_s` more. `log_bytes` is
    the size at which a log is rotated, and of what is kept of it.
    """

    name = "local"
    capabilities = Capabilities(shares_host=True, poll_interval_s=0.25, listing_grace_s=2.0)

    def __init__(
        self,
        config: Config,
        machine: Machine,
        *,
        grace_s: float = 10.0,
        stop_patience_s: float = 10.0,
        log_bytes: int = _LOG_BYTES,
    ) -> None:
        self._root = config.local_dir
        self._inherited_env = config.inherited_env
        self._machine = machine
        self._grace_s = grace_s
        self._end_patience_s = grace_s + stop_patience_s
        self._log_bytes = log_bytes

    async def check(self) -> CheckResult:
        """Usable wherever there is bash."""
        if shutil.which("bash", path=self._inherited_env.get("PATH", os.defpath)) is None:
            return CheckResult(False, "bash is not on the PATH", "install bash: setup and run are bash scripts")
        return CheckResult(True, str(self._machine))

    async def offerings(self, want: ResourceChoice) -> Candidates:
        """This machine, once for each alternative that it could satisfy when nothing else ran."""
        offerings: dict[Offering, None] = {}
        refusals: list[tuple[str, str]] = []
        for resources in want.alternatives:
            ask = _ask(resources, self._machine)
            why_not = _foreign(resources) or self._machine.why_never(ask)
            if why_not:
                refusals.append((_describe(resources), why_not))
            else:
                offerings[_offering(ask, self._machine)] = None
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
            share, port = self._set_apart(order)
            self._drop_workspaces(order.service, before=order.version)
            workspace = self._make_workspace(order)
            instance.create(_meta(order, share, port))
            failure = self._start(instance, self._payload(order, share, port, workspace, copies))
            seen = instance.observe()
        if seen is None:
            raise ProviderUnavailable(f"the supervisor of replica {order.replica_id} did not start: {failure}")
        return seen

    def _set_apart(self, order: LaunchOrder) -> tuple[Share, int]:
        """Its part of the machine and its port, beside what the instances that have not ended hold."""
        holding = [
            meta
            for other in self._instances()
            if (meta := other.meta) and (report := other.report) and report.get("phase") != "exited"
        ]
        shares = [
            Share(f"{meta.service_name}/{meta.replica_id}", meta.vcpus, meta.memory_gib, meta.gpus) for meta in holding
        ]
        share = self._machine.share(f"{order.service_name}/{order.replica_id}", _ask_of(order.offering), shares)
        return share, _free_port(order.port, order.token, {meta.port for meta in holding})

    def _make_workspace(self, order: LaunchOrder) -> Path:
        workspace = self._root / "workspaces" / order.service / order.workspace
        _make_private(workspace / "workdir")
        write_private(workspace / "version", str(order.version))
        return workspace

    def _payload(
        self, order: LaunchOrder, share: Share, port: int, workspace: Path, copies: Sequence[tuple[str, str]]
    ) -> bootstrap.Order:
        workdir = workspace / "workdir"
        gpus = str(len(share.gpus))
        setup_env = {
            "SKYPILOT_SETUP_NODE_IPS": "127.0.0.1",
            "SKYPILOT_SETUP_NODE_RANK": "0",
            "SKYPILOT_SETUP_NUM_GPUS_PER_NODE": gpus,
        }
        return {
            "token": order.token,
            "replica_id": order.replica_id,
            "workspace": str(workspace),
            "port": port,
            "setup": order.setup,
            "run": order.run,
            "copies": [[source, str(workdir / destination)] for source, destination in copies],
            "env": self._environment(order, share, port),
            "setup_env": setup_env,
            "grace_s": self._grace_s,
            "log_bytes": self._log_bytes,
        }

    def _environment(self, order: LaunchOrder, share: Share, port: int) -> dict[str, str]:
        """What setup and run see. The user's variables win over all but the marker, by which processes are found."""
        env = dict(self._inherited_env)
        replica_id = str(order.replica_id)
        user = env.get("USER") or env.get("LOGNAME") or str(os.getuid())
        cluster = {"cluster_name": f"{order.service_name}-{replica_id}", "cloud": LOCATION.cloud}
        env |= {
            "SKYPILOT_SERVE_REPLICA_ID": replica_id,
            "SKYPILOT_TASK_ID": order.token,
            "SKYPILOT_CLUSTER_INFO": json.dumps({**cluster, "region": LOCATION.region, "zone": LOCATION.zone}),
            "SKYPILOT_USER": user,
            "SKYPILOT_NODE_IPS": "127.0.0.1",
            "SKYPILOT_NUM_NODES": "1",
            "SKYPILOT_NODE_RANK": "0",
            "SKYPILOT_NUM_GPUS_PER_NODE": str(len(share.gpus)),
            "PORT": str(port),
            "SKYSERVE_REPLICA_PORT": str(port),
            "SKYSERVE_REPLICA_ID": replica_id,
            "SKYSERVE_SERVICE": order.service_name,
            "SKYSERVE_VERSION": str(order.version),
        }
        if self._machine.gpus:
            env["CUDA_VISIBLE_DEVICES"] = ",".join(str(index) for index in share.gpus)
        return {**env, **order.envs, **order.secrets, bootstrap.MARKER: order.token}

    def _start(self, instance: LocalInstance, payload: bootstrap.Order) -> str:
        """Hand the order to a new supervisor over its stdin; what went wrong, if it did."""
        command = [sys.executable, "-I", "-S", "-X", "utf8", bootstrap.__file__, str(instance.path)]
        process = subprocess.Popen(
            command,
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
        shutil.rmtree(self._root / "trash", ignore_errors=True)

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


# -- what this machine can give


def _ask(resources: Resources, machine: Machine) -> Ask:
    """Exact sizes are minima here: replicas share one machine, whose shape nobody chooses."""
    vcpus = resources.cpus.amount if resources.cpus else None
    memory = resources.memory
    if memory is None:
        return Ask(vcpus, None, resources.accelerators)
    memory_gib = memory.amount * (vcpus or machine.vcpus) if memory.per_vcpu else memory.amount
    return Ask(vcpus, memory_gib, resources.accelerators)


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
        (image is not None, f"asks for image {image}, and this machine runs no images yet"),
        (
            bool(resources.volumes),
            f"asks for volumes ({', '.join(resources.volumes)}), and this machine has none to attach",
        ),
    )
    return next((text for applies, text in reasons if applies), None)


def _describe(resources: Resources) -> str:
    parts = (
        resources.cloud,
        resources.region,
        resources.zone,
        resources.instance_type,
        resources.accelerators,
        f"cpus={resources.cpus}" if resources.cpus else None,
        f"memory={resources.memory}" if resources.memory else None,
        "spot" if resources.use_spot else None,
    )
    return " ".join(str(part) for part in parts if part) or "any resources"


def _offering(ask: Ask, machine: Machine) -> Offering:
    """The instance type says what is set apart (`host-2cpu-4gib`), as the sizes of a bare `host` are the machine's."""
    cpu = "" if ask.vcpus is None else f"-{ask.vcpus:g}cpu"
    gib = "" if ask.memory_gib is None else f"-{ask.memory_gib:g}gib"
    return Offering(
        provider=LocalProvider.name,
        instance_type=f"host{cpu}{gib}",
        location=LOCATION,
        capacity_type=CapacityType.ON_DEMAND,
        accelerator=ask.accelerator,
        vcpus=machine.vcpus if ask.vcpus is None else ask.vcpus,
        memory_gib=machine.memory_gib if ask.memory_gib is None else ask.memory_gib,
        price_per_hour=0.0,
    )


def _ask_of(offering: Offering) -> Ask:
    """The inverse of `_offering`."""
    match = _INSTANCE_TYPE.fullmatch(offering.instance_type)
    if match is None:
        raise OrderRejected(f"this machine has no instance type {offering.instance_type}")
    cpu, gib = match.groups()
    return Ask(float(cpu) if cpu else None, float(gib) if gib else None, offering.accelerator)


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


def _meta(order: LaunchOrder, share: Share, port: int) -> Meta:
    return Meta(
        service=order.service,
        service_name=order.service_name,
        replica_id=order.replica_id,
        version=order.version,
        workspace=order.workspace,
        port=port,
        vcpus=share.vcpus,
        memory_gib=share.memory_gib,
        gpus=share.gpus,
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
