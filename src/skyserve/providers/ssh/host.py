"""One machine that is ours to log in to, not to rent: its agent, what that told last, and the note of it on this disk.

The note is there from `set_up` to `take_down`. It keeps the hardware, what was last seen on the host, and what is just
being delivered to it, so that a host that does not answer is known to hold what it held: silence is not absence. Knows
the agent and ssh; must not know how a host is chosen.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import shlex
import uuid
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from skyserve.clock import Clock
from skyserve.errors import CapacityUnavailable, ProviderError, ProviderUnavailable
from skyserve.model.evidence import Instance, InstanceState
from skyserve.providers import agent, boot
from skyserve.providers.machine import Gpu, Machine, Share, canonical_gpu_name
from skyserve.providers.openssh import CommandFailed, Login, Ssh
from skyserve.providers.remote_agent import HALTED, Hosted, Load, RemoteAgent, State
from skyserve.providers.ssh.pools import PoolHost

PROVIDER = "ssh"

_FIRST_WORD_S = 12.0
_SILENT_AFTER_S = 20.0  # four heartbeats of the agent
_SEEN_AFTER_S = 10.0
_RETRY_S, _LONGEST_RETRY_S = 1.0, 15.0
_QUICK_S = 20.0
_FREE_PORT = """
import socket, sys
for port in map(int, sys.argv[1:]):
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError:
            continue
    print(port)
    break
"""


@dataclass(frozen=True, slots=True)
class Note:
    """What is remembered of a host that was set up. `intents` maps a token that is being delivered to its service."""

    address: str
    inventory: Mapping[str, object]
    hosted: tuple[Hosted, ...] = ()
    intents: Mapping[str, str] = field(default_factory=dict)

    @property
    def machine(self) -> Machine:
        """The hardware that may be shared out."""
        found = self.inventory
        gpus = found.get("gpus")
        return Machine(
            vcpus=_number(found.get("cpus")),
            memory_gib=_number(found.get("memory_gib")),
            gpus=tuple(_gpu(facts) for facts in (gpus if isinstance(gpus, list) else ())),
        )

    @property
    def free_disk_gib(self) -> float:
        """Room where replicas live, when the host was last asked."""
        return _number(self.inventory.get("free_disk_gib"))


class SshHost:
    """A host of a pool. Its methods raise as `Ssh.run` does.

    `root` is the agent's directory there, `ssh_config` what ssh reads in place of the user's own configuration.
    `changed` is called whenever what the host tells has changed.
    """

    def __init__(
        self,
        spec: PoolHost,
        home: Path,
        root: str,
        clock: Clock,
        *,
        ssh_config: Path | None,
        changed: Callable[[], None],
    ) -> None:
        self.spec = spec
        login = Login(host=spec.name, user=spec.user, identity=spec.identity_file, config=ssh_config)
        self._ssh = Ssh(login, home)
        self.agent = RemoteAgent(self._ssh, root)
        self._root = root
        self._clock = clock
        self._changed = changed
        self._path = note_path(home, spec)
        self._note = read_note(self._path)
        self._state: State | None = None
        self._heard_at = 0.0
        self._why = "it was not asked yet"
        self._watching: asyncio.Task[None] | None = None
        self._news = asyncio.Event()
        self._deliveries: dict[str, asyncio.Task[None]] = {}

    def __str__(self) -> str:
        return f"{self.spec.pool}/{self.spec.name}"

    @property
    def note(self) -> Note | None:
        """What is remembered; None when the host is not set up."""
        return self._note

    @property
    def silent(self) -> str | None:
        """Why nothing is known of the host now; None when it answers."""
        if self._state is None:
            return self._why
        quiet_s = self._clock.now() - self._heard_at
        return f"nothing was heard of it for {quiet_s:.0f} s" if quiet_s > _SILENT_AFTER_S else None

    # -- being ours

    async def set_up(self) -> Note:
        """Put the agent there, look at the hardware, and take note of both."""
        await self._install()
        inventory = await self.agent.inventory()
        note = replace(self._note or Note("", {}), address=await self._address(inventory), inventory=inventory)
        self._write(note)
        return note

    async def take_down(self) -> int:
        """End what runs there, remove the agent's files and forget the host; how many instances were ended.

        It is forgotten first, so that a controller stops looking after it; and not at all if the rest fails.
        """
        note = self._note
        self._path.unlink(missing_ok=True)
        try:
            count = await self._clear()
        except ProviderError:
            if note is not None:
                self._write(note)
            raise
        await self.close()
        self._note = None
        return count

    async def _clear(self) -> int:
        tokens: set[str] = set()
        with contextlib.suppress(CommandFailed):  # there is no agent: then there is nothing of ours
            async with contextlib.aclosing(self.agent.watch()) as states:
                async for state in states:
                    tokens = {hosted.token for hosted in state.instances}
                    break
        await asyncio.gather(*(self.agent.end(token, wait=True) for token in tokens))
        await self._ssh.run(f"rm -rf {_unquoted_home(self._root)}")
        return len(tokens)

    async def close(self) -> None:
        """Hang up. What runs there goes on."""
        for task in (self._watching, *self._deliveries.values()):
            if task is not None and not task.done():
                task.cancel()
                await asyncio.wait({task})
        self._watching, self._state = None, None
        await self._ssh.close()

    # -- what is there

    async def heard(self) -> None:
        """Return once the host has told its state, or is known to be silent."""
        if self._watching is None or self._watching.done():
            self._state, self._why = None, ""
            self._watching = asyncio.ensure_future(self._watch())
        await self._until(lambda: self._state is not None or self._why != "", _FIRST_WORD_S)
        self._why = self._why or f"no answer within {_FIRST_WORD_S:g} s"

    def hosted(self) -> tuple[Hosted, ...]:
        """What is on it; of a silent host, what was when it was last heard of."""
        if self._state is not None and self.silent is None:
            return self._state.instances
        return self._note.hosted if self._note else ()

    def instances(self) -> list[Instance]:
        """The same in the contract's terms, and what is being delivered."""
        found = [self._instance(hosted) for hosted in self.hosted()]
        tokens = {instance.token for instance in found}
        expected = self._note.intents if self._note else {}
        return [*found, *(self._expected(token, expected[token]) for token in expected if token not in tokens)]

    def instance(self, token: str) -> Instance | None:
        """One of them."""
        return next((instance for instance in self.instances() if instance.token == token), None)

    def shares(self) -> list[Share]:
        """What is set apart on it for instances that have not ended."""
        return [share_of(hosted) for hosted in self.hosted() if hosted.phase != "exited"]

    async def free_port(self, candidates: Sequence[int]) -> int | None:
        """The first of these ports that nobody listens on there."""
        command = ["python3", "-I", "-c", _FREE_PORT, *map(str, candidates)]
        with self._only_silence():
            told = await self._ssh.run(command, timeout_s=_QUICK_S)
        return int(told) if told.strip() else None

    # -- deliveries

    def deliver(self, order: agent.Order, load: Load) -> asyncio.Task[None]:
        """Take note of an order, and send it in the background. The task raises what went wrong."""
        token = order["token"]
        self._remember(replace(self._known(), intents={**self._known().intents, token: order["service"]}))
        task = asyncio.ensure_future(self._deliver(order, load))
        task.add_done_callback(lambda _: self._deliveries.pop(token, None))
        self._deliveries[token] = task
        return task

    async def end(self, token: str) -> None:
        """Tell an instance to end, or give up its delivery."""
        task = self._deliveries.get(token)
        if task is not None:
            task.cancel()
            await asyncio.wait({task})
        with self._only_silence():
            await self.agent.end(token)

    async def logs(self, token: str, *, follow: bool, tail: int | None) -> AsyncGenerator[bytes, None]:
        """What an instance printed."""
        with self._only_silence():
            async with contextlib.aclosing(self.agent.logs(token, follow=follow, tail=tail)) as pieces:
                async for data in pieces:
                    yield data

    async def release(self, service: str) -> None:
        """Drop what the instances of a service shared."""
        with self._only_silence():
            await self.agent.release(service)

    async def _deliver(self, order: agent.Order, load: Load) -> None:
        token = order["token"]
        try:
            await self.agent.launch(order, load)
        except CommandFailed as error:
            self._forget(token)
            raise CapacityUnavailable(
                f"{self} cannot take {order['service']}/{order['replica_id']}: {error.message}"
            ) from error
        await self._until(lambda: self._state is not None and self._state.of(token) is not None, _SEEN_AFTER_S)

    @contextlib.contextmanager
    def _only_silence(self) -> Iterator[None]:
        """A command that fails over there says as little about our instances as no answer at all."""
        try:
            yield
        except CommandFailed as error:
            raise ProviderUnavailable(
                f"{self}: {error.message}", hint=f"sky ssh up --infra {self.spec.pool}"
            ) from error

    # -- the wire

    async def _watch(self) -> None:
        pause_s = _RETRY_S
        while self._path.exists():  # until it is taken down, by whatever process
            try:
                inventory = await self.agent.inventory()
                self._remember(replace(self._known(), inventory=inventory))
                await self._listen()
                why = "the connection ended"
                pause_s = _RETRY_S
            except CommandFailed as error:
                why = f"its agent does not answer: {error.message}"
                if self._path.exists():  # otherwise it was taken down just now: then it shall stay as it is
                    with contextlib.suppress(ProviderError):
                        await self._install()
            except ProviderError as error:
                why = error.message
            self._state, self._why = None, why
            self._tell()
            await self._clock.sleep(pause_s)
            pause_s = min(_LONGEST_RETRY_S, pause_s * 2)
        self._note, self._state, self._why = None, None, "it is not set up"
        self._tell()

    async def _listen(self) -> None:
        async with contextlib.aclosing(self.agent.watch()) as states:
            async for state in states:
                if not self._path.exists():
                    return
                if state.agent != boot.digest():
                    await self._install()
                    return
                self._take(state)

    def _take(self, state: State) -> None:
        before = self._state
        self._state, self._heard_at = state, self._clock.now()
        known = self._known()
        # What is not being delivered any more either arrived, and is in the state, or never will.
        intents = {token: service for token, service in known.intents.items() if token in self._deliveries}
        if (known.hosted, known.intents) != (state.instances, intents):
            self._remember(replace(known, hosted=state.instances, intents=intents))
        if before is None or before.instances != state.instances:
            self._tell()

    def _tell(self) -> None:
        news, self._news = self._news, asyncio.Event()
        news.set()  # all who wait hear of it, whoever began later
        self._changed()

    async def _until(self, true: Callable[[], bool], patience_s: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience_s):
                while not true():
                    await self._news.wait()

    async def _install(self) -> None:
        try:
            await self.agent.install()
            await self._ssh.run(["python3", "-c", "import sys; sys.exit(sys.version_info < (3, 8))"])
        except CommandFailed as error:
            raise ProviderUnavailable(
                f"{self.spec.name} needs Python 3.8 or newer, tar and a home directory: {error.message}",
                hint="install python3 there",
            ) from error

    async def _address(self, inventory: Mapping[str, object]) -> str:
        """Where the door finds it: where ssh connects to, or behind a jump host the address that the host names."""
        login = self._ssh.login
        flags = [] if login.config is None else ["-F", str(login.config)]
        process = await asyncio.create_subprocess_exec(
            "ssh", "-G", *flags, "--", login.host, stdin=DEVNULL, stdout=PIPE, stderr=DEVNULL
        )
        out, _ = await process.communicate()
        settings = dict(line.split(" ", 1) for line in out.decode(errors="replace").splitlines() if " " in line)
        detour = any(settings.get(name, "none") != "none" for name in ("proxyjump", "proxycommand"))
        return str(inventory.get("address", "")) if detour else settings.get("hostname", login.host)

    # -- memory

    def _known(self) -> Note:
        if self._note is None:
            raise ProviderUnavailable(f"{self} is not set up", hint=f"sky ssh up --infra {self.spec.pool}")
        return self._note

    def _remember(self, note: Note) -> None:
        """Raises ProviderUnavailable when the host was taken down."""
        if not self._path.exists():
            self._note = None
        self._known()
        self._write(note)

    def _write(self, note: Note) -> None:
        self._note = note
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        draft = self._path.with_name(f"{self._path.name}.{uuid.uuid4().hex[:8]}")
        draft.write_text(json.dumps(asdict(note)))
        draft.replace(self._path)

    def _forget(self, token: str) -> None:
        known = self._known()
        self._remember(replace(known, intents={t: service for t, service in known.intents.items() if t != token}))

    def _instance(self, hosted: Hosted) -> Instance:
        address = f"{self._known().address}:{hosted.port}"
        found = hosted.instance(self.instance_id(hosted.token), PROVIDER, address)
        if hosted.phase == HALTED:
            return replace(found, state=InstanceState.PREEMPTED, address=None, detail=f"{self} was restarted")
        return found

    def _expected(self, token: str, service: str) -> Instance:
        return Instance(self.instance_id(token), PROVIDER, service, token, InstanceState.STARTING)

    def instance_id(self, token: str) -> str:
        """Says where it is, so that it is found again without asking every host."""
        return f"{token}@{self.spec.pool}@{self.spec.name}"


def note_path(home: Path, spec: PoolHost) -> Path:
    """Where a host's note is."""
    return home / "ssh" / "hosts" / f"{spec.pool}@{spec.name}.json"


def read_note(path: Path) -> Note | None:
    """What is remembered of a host; None when it is not set up. Raises ProviderUnavailable for what cannot be read."""
    try:
        facts = json.loads(path.read_text())
        hosted = tuple(Hosted(**one) for one in facts.pop("hosted"))
        return Note(hosted=hosted, **facts)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ProviderUnavailable(
            f"{path} cannot be understood: {error}", hint=f"remove {path}, then run `sky ssh up`"
        ) from error


def claim_of(share: Share) -> dict[str, object]:
    """A share as the agent keeps it for us; `share_of` is the inverse."""
    return {
        "holder": share.holder,
        "vcpus": share.vcpus,
        "memory_gib": share.memory_gib,
        "gpus": {str(index): part for index, part in share.gpus.items()},
    }


def share_of(hosted: Hosted) -> Share:
    """What of its host is set apart for an instance."""
    claim = hosted.claim
    gpus = claim.get("gpus")
    parts = gpus if isinstance(gpus, dict) else {}
    return Share(
        holder=str(claim.get("holder", hosted.token)),
        vcpus=_number(claim.get("vcpus")),
        memory_gib=_number(claim.get("memory_gib")),
        gpus={int(index): _number(part) for index, part in parts.items()},
    )


def _gpu(facts: object) -> Gpu:
    found = facts if isinstance(facts, dict) else {}
    name = canonical_gpu_name(str(found.get("name", "unknown")))
    return Gpu(int(_number(found.get("index"))), name, _number(found.get("memory_gib")))


def _number(value: object) -> float:
    return float(value) if isinstance(value, (int, float)) else 0.0


def _unquoted_home(root: str) -> str:
    return f"~/{shlex.quote(root[2:])}" if root.startswith("~/") else shlex.quote(root)
