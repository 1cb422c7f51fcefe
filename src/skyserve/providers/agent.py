"""Stands on a machine for the controller: takes orders, tells what became of them, ends them.

No progress depends on it: each instance has a supervisor of its own (`bootstrap`), and this runs only while somebody
asks. Standard library only, of Python 3.8 or newer: it is sent to machines beside `hosted` and `bootstrap`. It knows
directories and processes; nothing of clouds, prices or SSH. Of an order's secrets nothing is ever written.

    agent.py [--root DIR] launch          order as one line of JSON on stdin, then a tar stream (gzip) if `files` is set
    agent.py [--root DIR] resume TOKEN    start a halted instance again; its secrets as JSON on stdin
    agent.py [--root DIR] adopt           the same for all that need no secrets: what a machine does when it starts
    agent.py [--root DIR] watch           a line of JSON whenever something changes, and every 5 s, until stdin ends
    agent.py [--root DIR] end TOKEN       end an instance; with --no-wait return as soon as it is told to
    agent.py [--root DIR] logs TOKEN      its output; --tail N, --follow (until it or stdin ends)
    agent.py [--root DIR] execute TOKEN   a script beside it, as a line of JSON on stdin; its output, its exit code
    agent.py [--root DIR] release SERVICE drop what the instances of a service shared
    agent.py [--root DIR] inventory       the hardware, as JSON

    DIR/notice.json, reclaim.json            how to learn that the machine will be taken back; that it will be, and when
        workspaces/SERVICE/WORKSPACE/        lock, done, workdir/, and files.lock, files (what was sent is in place)
        instances/, logs/                    see `hosted`
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import json
import os
import pwd
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import threading
import time

TYPE_CHECKING = False
if TYPE_CHECKING or __package__:
    from skyserve.providers import bootstrap
    from skyserve.providers.hosted import (
        Failure,
        Instance,
        Root,
        emit,
        hung_up,
        load,
        locked,
        logs,
        number,
        safe,
        write,
    )
else:  # alone on a machine, where Python may have been told not to look beside the script
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
    import bootstrap
    from hosted import Failure, Instance, Root, emit, hung_up, load, locked, logs, number, safe, write

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from io import BufferedReader
    from typing import BinaryIO, TypedDict

    from skyserve.providers.hosted import Facts

    class Order(TypedDict):
        """What `launch` reads. `mounts` are the targets of `mounts/0`, `mounts/1` and so on in the stream; `claim` is
        the sender's own and told back; `own_machine` says that nobody else's replicas are here."""

        token: str
        service: str
        replica_id: int
        version: int
        workspace: str
        port: int
        setup: str | None
        run: str
        env: dict[str, str]
        setup_env: dict[str, str]
        secrets: dict[str, str]
        files: bool
        mounts: list[str]
        own_machine: bool
        claim: dict[str, object]
        grace_s: float
        log_bytes: int


WORKDIR, MOUNTS, LAST = "workdir", "mounts", "end-of-files"
"""Names in the stream of files. Only a stream that ends with LAST is whole."""
FAILED = 1
"""Exit code of a verb that failed; its last line on stderr says why."""

_LOOK_S = 0.25
_HEARTBEAT_S = 5.0
_NOTICE_S = 2.0
_NOTICE_TIMEOUT_S = 1.5
_START_PATIENCE_S = 20.0
_LOGIN_PATIENCE_S = 10.0
_UMASK = 0o022
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


# -- launch


def launch(root: Root, stream: BufferedReader) -> Facts:
    """Start an instance, unless it was started before; its report either way."""
    try:
        order: Order = json.loads(stream.readline())
        token, workspace = order["token"], _workspace(root, order["service"], order["workspace"])
    except (ValueError, KeyError, TypeError) as error:
        raise Failure("no order came: " + type(error).__name__) from None  # the text could hold secrets
    with root.alone():
        root.tidy()
        known = _known(root, token)
    if known is not None:
        return known
    os.makedirs(os.path.join(workspace, "workdir"), mode=0o700, exist_ok=True)
    if order["files"]:
        _receive(workspace, order["mounts"], stream)
    if order["own_machine"]:
        _link_workdir(workspace)
    login = login_environment()
    with root.alone():
        known = _known(root, token)
        if known is not None:
            return known
        instance = root.instance(token)
        instance.create(order)
        return _start(instance, order, workspace, login)


def resume(root: Root, token: str, secrets: dict[str, str]) -> Facts:
    """Start an instance again that a stop of the machine has halted. Setup is not repeated where it was done."""
    login = login_environment()
    with root.alone():
        instance = root.instance(token)
        known = _known(root, token)
        if known is not None:
            return known
        order: Order = instance.order  # type: ignore[assignment]
        if not order:
            raise Failure("there is no instance " + token)
        if instance.order["needs_secrets"] and not secrets:
            raise Failure("instance " + token + " needs its secrets to start again")
        order["secrets"] = secrets
        return _start(instance, order, _workspace(root, order["service"], order["workspace"]), login)


def adopt(root: Root) -> None:
    """Start every halted instance again that needs nothing for it."""
    for report in root.reports():
        if report["phase"] == "halted" and not report["needs_secrets"]:
            resume(root, str(report["token"]), {})


def _known(root: Root, token: str) -> Facts | None:
    """What to answer when nothing is to be started: it is there, or it was ended."""
    report = root.instance(token).report()
    if report is not None:
        return None if report["phase"] == "halted" else report
    return {"token": token, "phase": "ended"} if root.kept_log(token) else None


def _start(instance: Instance, order: Order, workspace: str, login: Mapping[str, str]) -> Facts:
    address = own_address()
    env = {**login, "SKYPILOT_NODE_IPS": address, **order["env"], **order["secrets"], bootstrap.MARKER: order["token"]}
    payload: bootstrap.Order = {
        "token": order["token"],
        "replica_id": order["replica_id"],
        "workspace": workspace,
        "port": order["port"],
        "setup": order["setup"],
        "run": order["run"],
        "copies": [],
        "env": env,
        "setup_env": {"SKYPILOT_SETUP_NODE_IPS": address, **order["setup_env"]},
        "grace_s": order["grace_s"],
        "log_bytes": order["log_bytes"],
    }
    command = [sys.executable, "-I", "-S", "-X", "utf8", bootstrap.__file__, instance.path]
    pipe = subprocess.PIPE
    with _users_umask():
        process = subprocess.Popen(command, cwd="/", stdin=pipe, stdout=subprocess.DEVNULL, stderr=pipe)
    with process:
        try:
            _, told = process.communicate(json.dumps(payload).encode(), timeout=_START_PATIENCE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            raise Failure("the supervisor gives no sign of life") from None
    report = instance.report()
    if process.returncode != 0 or report is None:
        lines = told.decode("utf-8", "replace").strip().splitlines()
        raise Failure("the supervisor did not start: " + (lines[-1] if lines else f"exit code {process.returncode}"))
    return report


def login_environment() -> dict[str, str]:
    """What a login shell of this user would see; the same whether SSH or the machine's first boot runs this."""
    user = pwd.getpwuid(os.getuid())
    home = os.environ.get("HOME") or user.pw_dir
    plain = {"HOME": home, "USER": user.pw_name, "LOGNAME": user.pw_name, "SHELL": "/bin/bash", "PATH": _PATH}
    plain["LANG"] = os.environ.get("LANG", "C.UTF-8")
    script = "printf '\\0\\0'; env -0"  # after whatever the profile prints
    try:
        done = subprocess.run(
            ["bash", "-lc", script],
            env=plain,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=_LOGIN_PATIENCE_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return plain
    told = done.stdout.rpartition(b"\0\0")[2].decode("utf-8", "surrogateescape").split("\0")
    seen = dict(line.split("=", 1) for line in told if "=" in line)
    return {**plain, **{key: value for key, value in seen.items() if key not in ("_", "SHLVL", "PWD", "OLDPWD")}}


def own_address() -> str:
    """This machine's address towards the outside; nothing is sent to find it out."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
            return str(probe.getsockname()[0])
        except OSError:
            return "127.0.0.1"


def _receive(workspace: str, mounts: list[str], stream: BinaryIO) -> None:
    """Put the files that were sent where they belong, once per workspace; whole or not at all."""
    done = os.path.join(workspace, "files")
    with locked(os.path.join(workspace, "files.lock")):
        if os.path.exists(done):
            return
        incoming = os.path.join(workspace, "incoming")
        shutil.rmtree(incoming, ignore_errors=True)
        os.makedirs(incoming, mode=0o700)
        _unpack(incoming, stream)
        workdir = os.path.join(workspace, "workdir")
        _place(os.path.join(incoming, WORKDIR), workdir)
        for index, target in enumerate(mounts):
            _place(os.path.join(incoming, MOUNTS, str(index)), os.path.join(workdir, os.path.expanduser(target)))
        shutil.rmtree(incoming)
        os.close(os.open(done, os.O_CREAT | os.O_WRONLY, 0o600))


def _unpack(folder: str, stream: BinaryIO) -> None:
    whole = False
    try:
        with tarfile.open(fileobj=stream, mode="r|gz") as tar:
            tar.extraction_filter = lambda member, _: member  # our own controller packed it
            for member in tar:
                if member.name.split("/")[0] not in (WORKDIR, MOUNTS, LAST) or ".." in member.name.split("/"):
                    raise Failure("there is no place for " + member.name)
                whole = member.name == LAST
                tar.extract(member, folder)
    except (tarfile.TarError, EOFError, OSError) as error:
        raise Failure(f"the files did not arrive: {error}") from error
    if not whole:
        raise Failure("the files did not arrive: they are cut short")


def _place(source: str, target: str) -> None:
    if not os.path.lexists(source):
        return
    folder = os.path.isdir(source) and not os.path.islink(source)
    with _users_umask():
        os.makedirs(target if folder else os.path.dirname(target), exist_ok=True)
    source = os.path.join(source, ".") if folder else source
    try:
        subprocess.run(["cp", "-a", source, target], check=True, stdin=subprocess.DEVNULL)
    except subprocess.CalledProcessError as error:
        raise Failure(f"{target} cannot be written: cp ended with exit code {error.returncode}") from error


def _link_workdir(workspace: str) -> None:
    """Let the working directory be reached as ~/sky_workdir, unless something else is called so."""
    link = os.path.expanduser("~/sky_workdir")
    with contextlib.suppress(OSError):
        if os.path.islink(link):
            os.unlink(link)
        os.symlink(os.path.join(workspace, "workdir"), link)


# -- watch


def watch(root: Root) -> None:
    """Tell the whole state, again whenever it changes and now and then, until stdin ends."""
    notice = Forewarning(root.path)
    notice.begin()
    agent = load(os.path.join(os.path.dirname(os.path.abspath(__file__)), "agent.json")).get("digest", "")
    told, told_at = None, 0.0
    while True:
        with contextlib.suppress(BlockingIOError), root.alone(wait=False):
            root.tidy()
        state = {"agent": agent, "instances": root.reports(), "reclaim_at": notice.reclaim_at}
        if state != told or time.monotonic() - told_at >= _HEARTBEAT_S:
            told, told_at = state, time.monotonic()
            _say(state)
        if hung_up(_LOOK_S):
            return


class Forewarning:
    """Asks every two seconds whether the machine will be taken back, and remembers when."""

    def __init__(self, root: str) -> None:
        self._setting = load(os.path.join(root, "notice.json"))
        self._kept = os.path.join(root, "reclaim.json")
        self.reclaim_at: float | None = None
        known = load(self._kept)
        if known.get("boot") == bootstrap.boot_id():
            self.reclaim_at = number(known.get("reclaim_at"))

    def begin(self) -> None:
        """Ask from now on, in the background."""
        if self._setting and self.reclaim_at is None:
            threading.Thread(target=self._ask_on, daemon=True).start()

    def _ask_on(self) -> None:
        while self.reclaim_at is None:
            body = self._ask()
            match = None if body is None else re.search(str(self._setting["pattern"]), body)
            if match:
                stated = match.groupdict().get("at")
                at = None if stated is None else instant(stated)
                self.reclaim_at = time.time() + number(self._setting["warning_s"]) if at is None else at
                write(self._kept, {"boot": bootstrap.boot_id(), "reclaim_at": self.reclaim_at})
            time.sleep(_NOTICE_S)

    def _ask(self) -> str | None:
        headers: dict[str, str] = dict(self._setting["headers"])  # type: ignore[call-overload]
        token_url = self._setting.get("token_url")
        if token_url:
            token = _http("PUT", str(token_url), self._setting["token_headers"])  # type: ignore[arg-type]
            if token is None:
                return None
            headers[str(self._setting["token_header"])] = token
        return _http("GET", str(self._setting["url"]), headers)


def instant(text: str) -> float | None:
    """Unix seconds of an ISO 8601 or RFC 1123 instant; without a time zone it is UTC."""
    from datetime import datetime, timezone
    from email.utils import parsedate_to_datetime

    plain = re.sub(r"\.\d+", "", text.strip())
    for read in (datetime.fromisoformat, parsedate_to_datetime):
        with contextlib.suppress(ValueError, TypeError, IndexError):
            found = read(plain[:-1] + "+00:00" if plain.endswith("Z") else plain)
            return (found if found.tzinfo else found.replace(tzinfo=timezone.utc)).timestamp()  # noqa: UP017
    return None


def _http(method: str, url: str, headers: Mapping[str, str]) -> str | None:
    """The body of a 200; None for all else."""
    from http.client import HTTPConnection, HTTPException
    from urllib.parse import urlsplit

    parts = urlsplit(url)
    connection = HTTPConnection(parts.hostname or "", parts.port or 80, timeout=_NOTICE_TIMEOUT_S)
    try:
        path = (parts.path or "/") + ("?" + parts.query if parts.query else "")
        connection.request(method, path, headers=dict(headers))
        answer = connection.getresponse()
        body = answer.read(65536).decode("utf-8", "replace")
        return body if answer.status == 200 else None
    except (OSError, HTTPException, ValueError):
        return None
    finally:
        connection.close()


# -- the end


def end(root: Root, token: str, *, wait: bool) -> None:
    """Stop an instance and all its offspring; what it printed is kept. Fine when there is none."""
    instance = root.instance(token)
    while True:
        with root.alone():
            if os.path.exists(instance.path):
                instance.ask_to_end()
                root.tidy()
        if not wait or not os.path.exists(instance.path):
            return
        time.sleep(0.05)


def release(root: Root, service: str) -> None:
    """Drop kept output and workspaces of a service, unless an instance of it is still there."""
    with root.alone():
        root.tidy()
        if any(instance.order.get("service") == service for instance in root.instances()):
            return
        for folder in ("logs", "workspaces"):
            shutil.rmtree(os.path.join(root.path, folder, safe(service)), ignore_errors=True)


# -- beside an instance


def execute(root: Root, token: str, stream: BufferedReader) -> None:
    """Run a script with an instance's variables and directory, until it, stdin or the instance ends."""
    try:
        asked = json.loads(stream.readline())
        script, env = str(asked["script"]), dict(asked["env"])
    except (ValueError, KeyError, TypeError) as error:
        raise Failure("no script came: " + type(error).__name__) from None  # the text could hold secrets
    instance = root.instance(token)
    order, group = instance.order, instance.status.get("group")
    if not order or not isinstance(group, int) or group <= 0:
        raise Failure("nothing runs in " + token + " now")
    workdir = os.path.join(_workspace(root, str(order["service"]), str(order["workspace"])), "workdir")
    child = subprocess.Popen(
        ["bash", "-c", script],
        cwd=workdir,
        env={**_environment_of(group), **env},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        _relay(child.stdout.fileno())  # type: ignore[union-attr]
        _say({"exit": child.wait()})
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def _relay(output: int) -> None:
    """Tell what comes, until it ends. Raises BrokenPipeError as soon as nobody listens."""
    while True:
        readable, _, _ = select.select([0, output], [], [])
        if 0 in readable and not os.read(0, 1):
            raise BrokenPipeError
        if output in readable:
            data = os.read(output, 65536)
            if not data:
                return
            _say({"data": base64.b64encode(data).decode()})


def _environment_of(pid: int) -> dict[str, str]:
    with open(f"/proc/{pid}/environ", "rb") as file:
        entries = file.read().decode("utf-8", "surrogateescape").split("\0")
    return dict(entry.split("=", 1) for entry in entries if "=" in entry)


# -- hardware


def inventory(root: Root) -> Facts:
    """What this machine has. GPU names are the driver's, memory is in GiB."""
    gib = 1024.0**3
    nowhere = subprocess.DEVNULL
    command = ["nvidia-smi", "--query-gpu=index,name,memory.total", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=nowhere, stdin=nowhere, timeout=20, check=False)
        rows = done.stdout.decode("utf-8", "replace").splitlines() if done.returncode == 0 else []
    except (OSError, subprocess.TimeoutExpired):
        rows = []
    gpus = []
    for fields in ([part.strip() for part in row.split(",")] for row in rows):
        if len(fields) == 3 and fields[0].isdigit():
            memory_gib = round(float(fields[2]) / 1024, 1) if fields[2].replace(".", "").isdigit() else 0.0
            gpus.append({"index": int(fields[0]), "name": fields[1], "memory_gib": memory_gib})
    return {
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / gib, 1),
        "gpus": gpus,
        "python": ".".join(str(part) for part in sys.version_info[:3]),
        "free_disk_gib": round(shutil.disk_usage(root.path).free / gib, 1),
        "address": own_address(),
        "boot": bootstrap.boot_id(),
    }


def _workspace(root: Root, service: str, workspace: str) -> str:
    return os.path.join(root.path, "workspaces", safe(service), safe(workspace))


@contextlib.contextmanager
def _users_umask() -> Iterator[None]:
    """What is the user's own is made as the user would make it."""
    os.umask(_UMASK)
    try:
        yield
    finally:
        os.umask(0o077)


def _say(facts: Mapping[str, object]) -> None:
    emit(json.dumps(facts).encode() + b"\n")


def _secrets(stream: BinaryIO) -> dict[str, str]:
    try:
        found: dict[str, str] = json.loads(stream.read() or b"{}")
    except ValueError:
        raise Failure("the secrets cannot be read") from None  # the text would hold them
    return found


def _arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="agent.py")
    parser.add_argument("--root", default="~/.skyserve")
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb in ("launch", "adopt", "watch", "inventory"):
        verbs.add_parser(verb)
    verbs.add_parser("resume").add_argument("token")
    verbs.add_parser("execute").add_argument("token")
    verbs.add_parser("release").add_argument("service")
    ending = verbs.add_parser("end")
    ending.add_argument("token")
    ending.add_argument("--no-wait", action="store_true")
    reading = verbs.add_parser("logs")
    reading.add_argument("token")
    reading.add_argument("--tail", type=int)
    reading.add_argument("--follow", action="store_true")
    return parser.parse_args(argv)


def main(argv: list[str]) -> int:
    """Carry out a verb."""
    global _UMASK
    _UMASK = os.umask(0o077)
    asked = _arguments(argv)
    stdin = sys.stdin.buffer
    verbs: dict[str, Callable[[Root], object]] = {
        "launch": lambda root: _say(launch(root, stdin)),  # type: ignore[arg-type]
        "resume": lambda root: _say(resume(root, asked.token, _secrets(stdin))),
        "adopt": adopt,
        "watch": watch,
        "end": lambda root: end(root, asked.token, wait=not asked.no_wait),
        "logs": lambda root: logs(root, asked.token, tail=asked.tail, follow=asked.follow),
        "execute": lambda root: execute(root, asked.token, stdin),  # type: ignore[arg-type]
        "release": lambda root: release(root, asked.service),
        "inventory": lambda root: _say(inventory(root)),
    }
    try:
        verbs[asked.verb](Root(os.path.abspath(os.path.expanduser(asked.root))))
    except BrokenPipeError:  # nobody listens any more
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    except (Failure, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return FAILED
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
