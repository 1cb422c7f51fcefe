"""The system's OpenSSH: commands on another machine over one shared connection, and the keys of both sides.

Knows the command line of `ssh` and `ssh-keygen`, and what they say when something is wrong; must not know what is run
over there. Nothing secret is ever an argument: it goes over stdin.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import re
import shlex
import shutil
import stat
import tempfile
import uuid
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import BinaryIO

from skyserve.errors import CredentialsRejected, ProviderUnavailable

Feed = Callable[[BinaryIO], None]
"""Writes what a command reads, in a thread of its own; may raise BrokenPipeError, or OSError where it cannot read."""

_CONNECT_TIMEOUT_S = 10
_ALIVE_INTERVAL_S, _ALIVE_MISSES = 5, 3
_SESSIONS = 8
"""Commands at once on the shared connection: a server takes 10 sessions on one, unless it is told otherwise."""
_PERSIST_S = 60
_SOCKET_PATH_LIMIT = 100  # sun_path holds 104 bytes on macOS and 108 on Linux
_SOCKET_SUFFIX = 18  # `.` and 16 characters that ssh puts behind the name while it makes the socket
_CONNECTION_FAILED = 255
_END_PATIENCE_S = 2.0
_LOGIN_TIMEOUT_S = 30.0
_CHUNK = 65536
_LINE_LIMIT = 16 * 1024 * 1024
_DENIED = re.compile(r"permission denied \(|too many authentication failures|no such identity|load key .*: ", re.I)
_OTHER_KEY = re.compile(
    r"host key verification failed|remote host identification has changed|no matching host key", re.I
)


class CommandFailed(RuntimeError):
    """A command over there ended with something other than 0: `status`. `message` is its last words.

    What it means only the caller can know.
    """

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.message = message
        self.status = status


@dataclass(frozen=True, slots=True)
class Login:
    """How a machine is reached.

    With `known_hosts` only the machine is trusted whose ed25519 key that file has under the name `alias`, whatever its
    address; without one, the user's own known hosts decide. `config` is the configuration file that ssh reads: None
    for the user's own, `Path("none")` for none at all. What is None is left to it. `options` are further settings as
    (name, value), such as ("ProxyJump", "gateway").
    """

    host: str
    port: int | None = None
    user: str | None = None
    identity: Path | None = None
    known_hosts: Path | None = None
    alias: str | None = None
    config: Path | None = None
    options: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class KeyPair:
    """An ed25519 key pair in OpenSSH's format; `public` is `ssh-ed25519 AAAA...` without a comment."""

    private_file: Path
    public: str

    @property
    def private(self) -> str:
        """The private key, to be handed to nobody but its owner."""
        return self.private_file.read_text()


class Ssh:
    """One machine over SSH. Commands share one connection, which is made when it is needed and closes itself a minute
    after the last command, or with `close`; what streams for long has a connection of its own. It is shared with nobody
    else, so that nobody else can close it, be it another process of the same home.

    Raises ProviderUnavailable when the machine cannot be reached, and CredentialsRejected when one side does not trust
    the other's key. `home` is where sockets are kept.
    """

    def __init__(self, login: Login, home: Path) -> None:
        self.login = login
        self._socket = Path(f"{sockets_of(home)}{uuid.uuid4().hex[:8]}")
        self._connecting = asyncio.Lock()
        self._sessions = asyncio.Semaphore(_SESSIONS)

    async def run(self, command: str | Sequence[str], *, stdin: bytes | Feed = b"", timeout_s: float = 60.0) -> bytes:
        """Run a command of the machine's shell (or exactly these arguments); what it wrote to stdout.

        Raises CommandFailed when it ends with an error, ProviderUnavailable when it takes longer than `timeout_s`.
        """
        async with self._sessions:
            await self._connect()
            return await self._run(_shell(command), stdin if callable(stdin) else _given(stdin), timeout_s)

    async def stream(self, command: str | Sequence[str]) -> AsyncGenerator[bytes, None]:
        """Run a command and yield what it writes, piece by piece, until it ends. Raises as `run` does.

        Its stdin stays open for as long as somebody listens.
        """
        async with contextlib.aclosing(self._stream(command, lines=False)) as pieces:
            async for data in pieces:
                yield data

    async def lines(self, command: str | Sequence[str], *, first: bytes = b"") -> AsyncGenerator[str, None]:
        """The same line by line, without the line ends; `first` is written to its stdin at the beginning."""
        async with contextlib.aclosing(self._stream(command, lines=True, first=first)) as pieces:
            async for data in pieces:
                yield data.decode(errors="replace").rstrip("\r\n")

    async def close(self) -> None:
        """Close the shared connection. Fine when there is none, and at any time: the next command makes another."""
        if self._socket.exists():
            client = await _Client.start(["ssh", "-O", "exit", *self._options(), "--", self.login.host])
            try:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(client.finish(), _END_PATIENCE_S)
            finally:
                await client.end()

    async def _run(self, command: str, feed: Feed, timeout_s: float, *, again: bool = True) -> bytes:
        """Run a command on the shared connection; once more when that was closed below it without a word, as it is when
        its minute is over or the machine goes. Commands are safe to repeat."""
        client = await self._spawn(command)
        feeding = asyncio.ensure_future(asyncio.to_thread(client.feed, feed))
        try:
            async with asyncio.timeout(timeout_s):
                out, told = await client.finish()
        except TimeoutError as error:
            raise ProviderUnavailable(f"{self.login.host} did not finish within {timeout_s:g} s") from error
        finally:
            await client.end()  # which breaks the pipe, so that the feeding ends too
            await asyncio.wait({feeding})
        if (broken := feeding.exception()) is not None:
            raise ProviderUnavailable(f"what {self.login.host} should get could not be read: {broken}") from broken
        if again and client.code == _CONNECTION_FAILED and not told.strip():
            return await self._run(command, feed, timeout_s, again=False)
        self._judge(client.code, told)
        return out

    async def _stream(
        self, command: str | Sequence[str], *, lines: bool, first: bytes = b""
    ) -> AsyncGenerator[bytes, None]:
        client = await self._spawn(_shell(command), shared=False)
        try:
            if first:
                await asyncio.to_thread(client.begin, first)
            while data := await (client.out.readline() if lines else client.out.read(_CHUNK)):
                yield data
            _, told = await client.finish()
        finally:
            await client.end()
        self._judge(client.code, told)

    async def _connect(self) -> None:
        """Make the shared connection, so that many commands at once do not each make their own."""
        async with self._connecting:
            if not self._socket.exists():
                await self._run("true", _given(b""), _LOGIN_TIMEOUT_S)

    async def _spawn(self, command: str, *, shared: bool = True) -> _Client:
        _private(self._socket.parent)
        return await _Client.start(["ssh", "-T", *self._options(shared=shared), "--", self.login.host, command])

    def _options(self, *, shared: bool = True) -> list[str]:
        login = self.login
        flags = [] if login.config is None else ["-F", str(login.config)]
        flags += [] if login.port is None else ["-p", str(login.port)]
        flags += [] if login.user is None else ["-l", login.user]
        settings = [
            *login.options,
            ("ControlMaster", "auto" if shared else "no"),
            ("ControlPath", str(self._socket).replace("%", "%%") if shared else "none"),
            ("ControlPersist", str(_PERSIST_S) if shared else "no"),
            ("BatchMode", "yes"),
            ("ConnectTimeout", str(_CONNECT_TIMEOUT_S)),
            ("ServerAliveInterval", str(_ALIVE_INTERVAL_S)),
            ("ServerAliveCountMax", str(_ALIVE_MISSES)),
            ("LogLevel", "ERROR"),
        ]
        if login.identity is not None:
            settings += [("IdentityFile", _quoted(login.identity)), ("IdentitiesOnly", "yes")]
        if login.known_hosts is not None:
            settings += _trust(login.known_hosts, login.alias or login.host)
        return [*flags, *(part for name, value in settings for part in ("-o", f"{name}={value}"))]

    def _judge(self, code: int | None, told: bytes) -> None:
        """Nothing when all went well, otherwise the error that it is."""
        if code == 0:
            return
        text = told.decode(errors="replace").strip()
        last = text.splitlines()[-1] if text else f"exit code {code}"
        if code != _CONNECTION_FAILED:
            raise CommandFailed(last, -1 if code is None else code)
        host = self.login.host
        if _OTHER_KEY.search(text):
            raise CredentialsRejected(
                f"{host} does not have the host key that is known of it",
                hint="another machine may have its address, or somebody is in between",
            )
        if _DENIED.search(text):
            raise CredentialsRejected(f"{host} does not let us in: {last}", hint="check the user and the key")
        raise ProviderUnavailable(f"{host} cannot be reached: {last}")


def control_dir(home: Path) -> Path:
    """Where the sockets of shared connections are: a folder that is never removed, as ssh needs it until it has made
    its own. All homes with a long path share a short one.
    """
    path = home / "ssh" / "c"
    if len(os.fsencode(path)) + 1 + 16 + _SOCKET_SUFFIX <= _SOCKET_PATH_LIMIT:
        return path
    return Path(tempfile.gettempdir()) / f"skyserve-{os.getuid()}"


def sockets_of(home: Path) -> str:
    """How the path of every socket of a home begins; eight characters follow."""
    return f"{control_dir(home)}/{hashlib.sha256(os.fsencode(home)).hexdigest()[:8]}"


async def client_key(home: Path) -> KeyPair:
    """This installation's own key, made when it is first asked for."""
    return await key_pair(home / "ssh" / "id_ed25519")


async def key_pair(private_file: Path) -> KeyPair:
    """The key pair in that file and its `.pub`, made when there is none. Raises ProviderUnavailable."""
    public_file = private_file.with_name(f"{private_file.name}.pub")
    if not await asyncio.to_thread(private_file.exists):
        await _make_key(private_file)
    if not await asyncio.to_thread(public_file.exists):
        _write(public_file, await _keygen("-y", "-f", str(private_file)))
    return KeyPair(private_file, " ".join(public_file.read_text().split()[:2]))


def usable() -> str | None:
    """Why OpenSSH cannot be used here; None when it can."""
    missing = [tool for tool in ("ssh", "ssh-keygen") if shutil.which(tool) is None]
    return f"{' and '.join(missing)} not on the PATH" if missing else None


async def _make_key(private_file: Path) -> None:
    _private(private_file.parent)
    draft = private_file.with_name(f".{private_file.name}.{uuid.uuid4().hex[:8]}")
    await _keygen("-q", "-t", "ed25519", "-N", "", "-C", "skyserve", "-f", str(draft))
    with contextlib.suppress(FileExistsError):  # another process was first: its key counts
        os.link(draft, private_file)
    draft.unlink()
    draft.with_name(f"{draft.name}.pub").unlink()


async def _keygen(*arguments: str) -> bytes:
    try:
        process = await asyncio.create_subprocess_exec(
            "ssh-keygen", *arguments, stdin=DEVNULL, stdout=PIPE, stderr=PIPE
        )
    except OSError as error:
        raise _not_there("ssh-keygen", error) from error
    out, told = await process.communicate()
    if process.returncode != 0:
        raise ProviderUnavailable(f"ssh-keygen failed: {told.decode(errors='replace').strip()}")
    return out


def _write(path: Path, content: bytes) -> None:
    draft = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}")
    draft.write_bytes(content)
    draft.replace(path)


def _trust(known_hosts: Path, alias: str) -> list[tuple[str, str]]:
    return [
        ("StrictHostKeyChecking", "yes"),
        ("UserKnownHostsFile", _quoted(known_hosts)),
        ("GlobalKnownHostsFile", os.devnull),
        ("HostKeyAlias", alias),
        ("HostKeyAlgorithms", "ssh-ed25519"),
        ("CheckHostIP", "no"),
        ("UpdateHostKeys", "no"),
    ]


def _shell(command: str | Sequence[str]) -> str:
    return command if isinstance(command, str) else shlex.join(command)


def _quoted(path: Path) -> str:
    """A path as a value of ssh's settings, which know quotes and percent signs."""
    return '"' + str(path).replace("%", "%%") + '"'


def _private(path: Path) -> None:
    """A directory of ours that nobody else may enter. Raises ProviderUnavailable when it is somebody else's."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    facts = path.lstat()
    if not stat.S_ISDIR(facts.st_mode) or facts.st_uid != os.getuid() or facts.st_mode & 0o022:
        raise ProviderUnavailable(f"{path} is not a directory of ours alone", hint=f"remove {path}")


def _given(data: bytes) -> Feed:
    def feed(pipe: BinaryIO) -> None:
        pipe.write(data)

    return feed


class _Client:
    """One run of `ssh`. Its pipes are our own, as whoever has the shared connection keeps their other ends open."""

    def __init__(self, process: Process, stdin: int) -> None:
        self.out = asyncio.StreamReader(_LINE_LIMIT)
        self._told = asyncio.StreamReader(_LINE_LIMIT)
        self._process = process
        self._stdin: int | None = stdin
        self._pipes: list[asyncio.ReadTransport] = []

    @classmethod
    async def start(cls, argv: Sequence[str]) -> _Client:
        """Raises ProviderUnavailable when there is no OpenSSH. Nothing is left of one that is given up meanwhile."""
        (stdin, stdin_in), (out_fd, out_in), (told_fd, told_in) = os.pipe(), os.pipe(), os.pipe()
        async with contextlib.AsyncExitStack() as undo:
            out, told = (undo.enter_context(os.fdopen(fd, "rb", buffering=0)) for fd in (out_fd, told_fd))
            stdin_end = undo.enter_context(contextlib.ExitStack())
            stdin_end.callback(os.close, stdin_in)
            try:
                process = await asyncio.create_subprocess_exec(*argv, stdin=stdin, stdout=out_in, stderr=told_in)
            except OSError as error:
                raise _not_there(argv[0], error) from error
            finally:
                for fd in (stdin, out_in, told_in):
                    os.close(fd)
            stdin_end.pop_all()
            client = cls(process, stdin_in)
            undo.push_async_callback(client.end)
            await client._listen(out, client.out)
            await client._listen(told, client._told)
            undo.pop_all()
        return client

    @property
    def code(self) -> int | None:
        """Its exit code, once it has ended."""
        return self._process.returncode

    def begin(self, data: bytes) -> None:
        """Write the first of its stdin, and keep that open. Blocks while it does not read."""
        with contextlib.suppress(BrokenPipeError):
            while data and self._stdin is not None:
                data = data[os.write(self._stdin, data) :]

    def feed(self, feed: Feed) -> None:
        """Let `feed` write its stdin, then close that. Blocks."""
        stdin, self._stdin = self._stdin, None
        if stdin is not None:
            with contextlib.suppress(BrokenPipeError), os.fdopen(stdin, "wb") as pipe:
                feed(pipe)

    async def finish(self) -> tuple[bytes, bytes]:
        """Wait for its end; the rest of what it wrote to stdout and stderr."""
        out, told = await asyncio.gather(self.out.read(), self._told.read())
        await self._process.wait()
        return out, told

    async def end(self) -> None:
        """Leave nothing of it behind."""
        if self._stdin is not None:
            os.close(self._stdin)
            self._stdin = None
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
        for pipe in self._pipes:
            pipe.close()
        await self._process.wait()

    async def _listen(self, pipe: FileIO, reader: asyncio.StreamReader) -> None:
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), pipe
        )
        self._pipes.append(transport)


def _not_there(tool: str, error: OSError) -> ProviderUnavailable:
    return ProviderUnavailable(f"{tool} cannot be run: {error.strerror}", hint="install OpenSSH's client")
