"""The agent of one machine, spoken to over SSH: what `agent.py` understands and tells, in the controller's terms.

Knows the agent's verbs and the shape of what it reports; must not know whose machine it is, nor how it came to be.
"""

from __future__ import annotations

import base64
import contextlib
import gzip
import json
import shlex
import tarfile
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass, field
from typing import BinaryIO, TypeVar

from skyserve.errors import ProviderUnavailable
from skyserve.model.evidence import Instance, InstanceState
from skyserve.providers import agent, boot
from skyserve.providers.base import Exit, LaunchOrder
from skyserve.providers.environment import Site, setup_variables, variables
from skyserve.providers.openssh import Ssh

T = TypeVar("T")

GRACE_S = 10.0
LOG_BYTES = 10 * 1024 * 1024
HALTED = "halted"
"""Phase of an instance that was up when its machine was stopped: `resume` lets it go on."""
ENDED = "ended"
"""Phase of an instance that was ended on request, in the answer to a launch that comes too late."""
_PHASES = {
    "starting": InstanceState.STARTING,
    HALTED: InstanceState.STARTING,
    "setup": InstanceState.SETUP,
    "run": InstanceState.RUNNING,
    "stopping": InstanceState.STOPPING,
    "exited": InstanceState.EXITED,
}
_DELIVERY_TIMEOUT_S = 3600.0


@dataclass(frozen=True, slots=True)
class Hosted:
    """One instance, by its agent's word. `claim` is what its order said of the machine's parts that it holds."""

    token: str
    service: str
    version: int
    replica_id: int
    port: int
    phase: str
    needs_secrets: bool
    setup_started_at: float | None = None
    run_started_at: float | None = None
    exit_code: int | None = None
    failed_phase: str | None = None
    detail: str = ""
    claim: Mapping[str, object] = field(default_factory=dict)

    def instance(
        self, instance_id: str, provider: str, address: str | None, reclaim_at: float | None = None
    ) -> Instance:
        """In the contract's terms; `address` is `host:port`, and told once run has begun."""
        state = _PHASES.get(self.phase, InstanceState.STARTING)
        ended = state is InstanceState.EXITED
        return Instance(
            id=instance_id,
            provider=provider,
            service=self.service,
            token=self.token,
            state=state,
            address=address if self.run_started_at is not None else None,
            setup_started_at=self.setup_started_at,
            exit_code=self.exit_code if ended else None,
            failed_phase=self.failed_phase if ended else None,
            detail=self.detail,
            reclaim_at=reclaim_at,
        )


@dataclass(frozen=True, slots=True)
class State:
    """All that an agent tells: its own version, every instance, and when the machine will be taken back, if ever."""

    agent: str
    instances: tuple[Hosted, ...]
    reclaim_at: float | None = None

    def of(self, token: str) -> Hosted | None:
        """The instance with that token."""
        return next((hosted for hosted in self.instances if hosted.token == token), None)


@dataclass(frozen=True, slots=True)
class Load:
    """Files that go with an order: the working directory, and what is mounted by its target. Paths of this machine."""

    workdir: str | None = None
    mounts: Mapping[str, str] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return self.workdir is not None or bool(self.mounts)


class RemoteAgent:
    """Asks the agent in the directory `root` of a machine. Every method raises as `Ssh.run` does."""

    def __init__(self, ssh: Ssh, root: str = "~/.skyserve") -> None:
        self._ssh = ssh
        self._root = root if root.startswith("~/") else shlex.quote(root)

    async def install(self) -> None:
        """Put this version's agent there, beside or in place of another; what runs there goes on."""
        fresh = f"fresh=$(mktemp -d {self._root}/fresh.XXXXXX)"  # each file is replaced in one go
        command = f"umask 077; mkdir -p {self._root} && {fresh} && tar -xzf - -C $fresh && mv -f $fresh/* {self._root}/"
        command += " && rmdir $fresh"
        await self._ssh.run(command, stdin=boot.bundle())

    async def launch(self, order: agent.Order, load: Load) -> None:
        """Deliver an order. Fine to repeat, whether or not it was carried out before."""
        line = json.dumps(order).encode() + b"\n"

        def feed(pipe: BinaryIO) -> None:
            pipe.write(line)
            if load:
                _pack(load, pipe)

        await self._ssh.run(self._command("launch"), stdin=feed, timeout_s=_DELIVERY_TIMEOUT_S)

    async def resume(self, token: str, secrets: Mapping[str, str]) -> None:
        """Let a halted instance go on."""
        stdin = json.dumps(dict(secrets)).encode()
        await self._ssh.run(self._command("resume", token), stdin=stdin)

    async def watch(self) -> AsyncGenerator[State, None]:
        """What the agent tells, again at every change and every few seconds, for as long as it can be reached."""
        async with contextlib.aclosing(self._ssh.lines(self._command("watch"))) as lines:
            async for line in lines:
                yield _understood(line, _state)

    async def end(self, token: str, *, wait: bool = False) -> None:
        """Stop an instance; without `wait`, return as soon as it is told to."""
        await self._ssh.run(self._command("end", token, *(() if wait else ("--no-wait",))))

    async def logs(self, token: str, *, follow: bool, tail: int | None) -> AsyncGenerator[bytes, None]:
        """What an instance printed; of one that was ended too, until its service is released."""
        options = [*(["--follow"] if follow else []), *(["--tail", str(tail)] if tail is not None else [])]
        async with contextlib.aclosing(self._ssh.stream(self._command("logs", token, *options))) as pieces:
            async for data in pieces:
                yield data

    async def execute(self, token: str, script: str, env: Mapping[str, str]) -> AsyncGenerator[bytes | Exit, None]:
        """Run a script beside an instance: its output, then its Exit. It ends with the iterator."""
        line = json.dumps({"script": script, "env": dict(env)}).encode() + b"\n"
        told = self._ssh.lines(self._command("execute", token), first=line)
        async with contextlib.aclosing(told) as lines:
            async for one in lines:
                yield _understood(one, _piece)

    async def release(self, service: str) -> None:
        """Drop what the instances of a service shared."""
        await self._ssh.run(self._command("release", service))

    async def inventory(self) -> Mapping[str, object]:
        """The machine's hardware, as `agent.inventory` has it."""
        told = (await self._ssh.run(self._command("inventory"))).decode(errors="replace")
        return _understood(told, _mapping)

    def _command(self, *words: str) -> str:
        return f"python3 -I {self._root}/{boot.AGENT} --root {self._root} {shlex.join(words)}"


def order_for(order: LaunchOrder, site: Site, claim: Mapping[str, object], *, own_machine: bool) -> agent.Order:
    """What the agent is told of a launch; the files are sent behind it, and `site` says what it was given there."""
    return {
        "token": order.token,
        "service": order.service,
        "replica_id": order.replica_id,
        "version": order.version,
        "workspace": order.workspace,
        "port": site.port,
        "setup": order.setup,
        "run": order.run,
        "env": variables(order, site),
        "setup_env": setup_variables(site),
        "secrets": dict(order.secrets),
        "files": bool(load_of(order)),
        "mounts": list(order.file_mounts),
        "own_machine": own_machine,
        "claim": dict(claim),
        "grace_s": GRACE_S,
        "log_bytes": LOG_BYTES,
    }


def load_of(order: LaunchOrder) -> Load:
    """The files that go with an order."""
    return Load(order.workdir, dict(order.file_mounts))


def _pack(load: Load, pipe: BinaryIO) -> None:
    packed = gzip.GzipFile(fileobj=pipe, mode="wb", compresslevel=1)  # the line is faster than a thorough packer
    with packed, tarfile.open(fileobj=packed, mode="w|") as tar:
        if load.workdir is not None:
            tar.add(load.workdir, agent.WORKDIR, filter=_nobodys)
        for index, source in enumerate(load.mounts.values()):
            tar.add(source, f"{agent.MOUNTS}/{index}", filter=_nobodys)
        tar.addfile(tarfile.TarInfo(agent.LAST))


def _nobodys(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    """Who owns a file here means nothing there; sockets and devices are not files."""
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    return member if member.isfile() or member.isdir() or member.issym() or member.islnk() else None


def _state(told: Mapping[str, object]) -> State:
    instances = told["instances"]
    if not isinstance(instances, list):
        raise TypeError("instances")
    return State(
        agent=str(told["agent"]),
        instances=tuple(_hosted(_mapping(facts)) for facts in instances),
        reclaim_at=_number(told["reclaim_at"]),
    )


def _hosted(facts: Mapping[str, object]) -> Hosted:
    code = _number(facts["exit_code"])
    failed_phase = facts["failed_phase"]
    return Hosted(
        token=str(facts["token"]),
        service=str(facts["service"]),
        version=int(str(facts["version"])),
        replica_id=int(str(facts["replica_id"])),
        port=int(str(facts["port"])),
        phase=str(facts["phase"]),
        needs_secrets=bool(facts["needs_secrets"]),
        setup_started_at=_number(facts["setup_started_at"]),
        run_started_at=_number(facts["run_started_at"]),
        exit_code=None if code is None else int(code),
        failed_phase=failed_phase if isinstance(failed_phase, str) else None,
        detail=str(facts["detail"]),
        claim=_mapping(facts["claim"]),
    )


def _mapping(facts: object) -> Mapping[str, object]:
    if not isinstance(facts, dict):
        raise TypeError("not an object")
    return facts


def _piece(told: Mapping[str, object]) -> bytes | Exit:
    if "data" in told:
        return base64.b64decode(str(told["data"]))
    return Exit(int(str(told["exit"])))


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, (int, float)) else None


def _understood(line: str, read: Callable[[Mapping[str, object]], T]) -> T:
    try:
        return read(_mapping(json.loads(line)))
    except (ValueError, KeyError, TypeError) as error:
        raise ProviderUnavailable(f"the agent answers what nobody understands: {line[:80]!r}") from error
