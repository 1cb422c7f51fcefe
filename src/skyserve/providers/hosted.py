"""What an agent's directory holds: instances, what they printed, and how they are brought to an end.

Standard library only, of Python 3.8 or newer: it is sent to machines beside `agent` and `bootstrap`. It knows files and
processes; must not know what asks for them.

    DIR/lock                                 held while instances are added or removed
        instances/TOKEN/                     order.json (without secrets), terminating, and the supervisor's files
        logs/SERVICE/TOKEN/                  output of instances that were ended
"""

from __future__ import annotations

import collections
import contextlib
import fcntl
import json
import os
import re
import select
import shutil
import signal
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING or __package__:
    from skyserve.providers import bootstrap
else:  # alone on a machine
    import bootstrap

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from io import BufferedReader
    from typing import BinaryIO

    Facts = dict[str, object]

_END_PATIENCE_S = 10.0
_KILL_PATIENCE_S = 2.0
_FOLLOW_S = 0.2
_KEPT_LOGS = 50
_DETAIL_LINES, _DETAIL_WIDTH = 5, 200
_SAFE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,199}")


class Failure(Exception):
    """What was asked cannot be done; the text says why."""


class Instance:
    """The directory of one instance."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.token = os.path.basename(path)

    @property
    def order(self) -> Facts:
        """What it was launched with, but for the secrets; empty when there is no such instance."""
        return load(os.path.join(self.path, "order.json"))

    @property
    def status(self) -> Facts:
        """What its supervisor said last."""
        return load(os.path.join(self.path, "status.json"))

    @property
    def terminating(self) -> bool:
        """Whether its end was asked for."""
        return os.path.exists(os.path.join(self.path, "terminating"))

    def alive(self) -> bool:
        """Whether a supervisor holds the lock."""
        try:
            lock = os.open(os.path.join(self.path, "lock"), os.O_RDWR)
        except OSError:
            return False
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(lock)
        return False

    def report(self) -> Facts | None:
        """All that others may know of it; None when it never came up."""
        alive = self.alive()  # before the status: once it is dead, the status is final
        order, status = self.order, self.status
        if not order or not status:
            return None
        facts = {key: order[key] for key in ("token", "service", "replica_id", "version", "port", "claim")}
        facts.update({key: status.get(key) for key in ("setup_started_at", "run_started_at", "exit_code")})
        phase = self._phase(status, alive)
        facts.update(phase=phase, failed_phase=status.get("failed_phase"), needs_secrets=order["needs_secrets"])
        facts["detail"] = self._last_words(status) if phase == "exited" else ""
        return facts

    def _phase(self, status: Facts, alive: bool) -> object:
        phase = status.get("phase")
        if self.terminating:
            return "stopping"
        if alive or phase == "exited":
            return phase
        return "stopping" if status.get("boot") == bootstrap.boot_id() else "halted"

    def _last_words(self, status: Facts) -> str:
        lines = _tail(_parts(self.path), _DETAIL_LINES + 1)
        texts = ["".join(char for char in line.decode("utf-8", "replace") if char.isprintable()) for line in lines]
        if texts and texts[-1].startswith("[skyserve] "):
            texts.pop()  # the supervisor's own word, which exit_code and failed_phase say too
        texts = texts[-_DETAIL_LINES:]
        if status.get("cause"):
            texts.append(str(status["cause"]))
        return "\n".join(text[:_DETAIL_WIDTH] for text in texts)

    def create(self, order: Mapping[str, object]) -> None:
        """Make its directory. A halted instance keeps its output."""
        os.makedirs(self.path, mode=0o700, exist_ok=True)
        kept = {key: value for key, value in order.items() if key != "secrets"}
        kept["needs_secrets"] = bool(order["secrets"]) or kept.get("needs_secrets", False)
        write(os.path.join(self.path, "order.json"), kept)

    def ask_to_end(self) -> None:
        """SIGTERM to a supervisor that lives; SIGKILL when it was told long ago."""
        marker = os.path.join(self.path, "terminating")
        fresh = not os.path.exists(marker)
        if fresh:
            os.close(os.open(marker, os.O_CREAT | os.O_WRONLY, 0o600))
        pid = self.status.get("pid")
        if not self.alive() or not isinstance(pid, int):
            return
        patience_s = number(self.order.get("grace_s")) + _END_PATIENCE_S
        if fresh:
            _kill(pid, signal.SIGTERM)
        elif time.time() - os.stat(marker).st_mtime > patience_s:
            _kill(pid, signal.SIGKILL)

    def end_survivors(self) -> bool:
        """Kill what an ended supervisor left behind; whether nothing is left. May take 2 seconds."""
        status = self.status
        output = str(status.get("output", "")) if status.get("boot") == bootstrap.boot_id() else ""
        deadline = time.monotonic() + _KILL_PATIENCE_S
        while True:
            left = bootstrap.survivors(self.token, output)
            if not left:
                return True
            if time.monotonic() > deadline:
                return False
            for pid in left:
                _kill(pid, signal.SIGKILL)
            time.sleep(0.02)

    def bury(self) -> None:
        """Account for a supervisor that died without a word."""
        status = self.status
        if self.end_survivors():
            status.update(phase="exited", failed_phase="run" if "run_started_at" in status else "setup")
            status["cause"] = "the supervisor is gone without a word: most likely killed for want of memory"
            write(os.path.join(self.path, "status.json"), status)


class Root:
    """All of an agent's directory."""

    def __init__(self, path: str) -> None:
        self.path = path
        os.makedirs(os.path.join(path, "instances"), mode=0o700, exist_ok=True)

    def instance(self, token: str) -> Instance:
        """The instance of that token, there or not."""
        return Instance(os.path.join(self.path, "instances", safe(token)))

    def instances(self) -> list[Instance]:
        """Every instance that there is."""
        folder = os.path.join(self.path, "instances")
        return [Instance(os.path.join(folder, name)) for name in sorted(os.listdir(folder))]

    def reports(self) -> list[Facts]:
        """What others may know of each."""
        reports = (instance.report() for instance in self.instances())
        return [report for report in reports if report is not None]

    def kept_log(self, token: str) -> str | None:
        """Where the output of an instance is that was ended here."""
        logs = os.path.join(self.path, "logs")
        for service in _names(logs):
            path = os.path.join(logs, service, safe(token))
            if os.path.isdir(path):
                return path
        return None

    @contextlib.contextmanager
    def alone(self, *, wait: bool = True) -> Iterator[None]:
        """Alone among all that use this directory. BlockingIOError if not to wait, and not alone."""
        with locked(os.path.join(self.path, "lock"), wait=wait):
            yield

    def tidy(self) -> None:
        """Bring to an end what can be, under the lock: asked ends, dead supervisors, launches cut short."""
        for instance in self.instances():
            if instance.terminating:
                self._end(instance)
            elif instance.alive():
                continue
            elif not instance.order or not instance.status:
                shutil.rmtree(instance.path, ignore_errors=True)
            elif instance.status.get("phase") != "exited" and instance.status.get("boot") == bootstrap.boot_id():
                instance.bury()

    def _end(self, instance: Instance) -> None:
        instance.ask_to_end()
        if instance.alive() or not instance.end_survivors():
            return
        folder = os.path.join(self.path, "logs", safe(str(instance.order.get("service", "unknown"))))
        kept = os.path.join(folder, instance.token)
        os.makedirs(kept, mode=0o700, exist_ok=True)
        for part in _parts(instance.path):
            os.replace(part, os.path.join(kept, os.path.basename(part)))
        shutil.rmtree(instance.path, ignore_errors=True)
        by_age = sorted((os.path.join(folder, name) for name in os.listdir(folder)), key=os.path.getmtime)
        for old in by_age[:-_KEPT_LOGS]:
            shutil.rmtree(old, ignore_errors=True)


# -- logs


def logs(root: Root, token: str, *, tail: int | None, follow: bool) -> None:
    """Write the output of an instance to stdout; with `follow` until it or stdin ends."""
    instance = root.instance(token)
    folder = instance.path if os.path.isdir(instance.path) else root.kept_log(token)
    if folder is None:
        return
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(open(path, "rb")) for path in _parts(folder)]
        for data in _last_lines(files, tail) if tail is not None else _whole(files):
            emit(data)
        current = files[-1] if files else None
        while follow and folder == instance.path:
            over = not instance.alive()  # asked first, so that the last words are not missed
            if current is None or _renewed(current, folder):
                emit(b"" if current is None else current.read())
                fresh = _parts(folder)
                current = stack.enter_context(open(fresh[-1], "rb")) if fresh else current
            emit(b"" if current is None else current.read())
            if over or hung_up(_FOLLOW_S):
                return


def _whole(files: list[BufferedReader]) -> Iterator[bytes]:
    for file in files:
        yield from iter(lambda file=file: file.read(65536), b"")  # type: ignore[misc]


def _last_lines(files: Iterable[BinaryIO], count: int) -> Iterable[bytes]:
    lines: collections.deque[bytes] = collections.deque(maxlen=count)
    for file in files:
        lines.extend(file)
    return lines


def _tail(paths: list[str], count: int) -> list[bytes]:
    with contextlib.ExitStack() as stack:
        return list(_last_lines([stack.enter_context(open(path, "rb")) for path in paths[-1:]], count))


def _renewed(current: BinaryIO, folder: str) -> bool:
    try:
        now = os.stat(os.path.join(folder, "log"))
    except OSError:
        return False
    then = os.fstat(current.fileno())
    return (now.st_dev, now.st_ino) != (then.st_dev, then.st_ino)


def _parts(folder: str) -> list[str]:
    """The files of a log, oldest first."""
    numbered = [f"log.{number}" for number in range(bootstrap.OLD_LOGS, 0, -1)]
    paths = [os.path.join(folder, name) for name in [*numbered, "log"]]
    return [path for path in paths if os.path.exists(path)]


# -- files


def hung_up(patience_s: float) -> bool:
    """Wait; True as soon as whoever is at the other end of stdin is gone."""
    readable, _, _ = select.select([0], [], [], patience_s)
    return bool(readable) and not os.read(0, 1)


def safe(name: str) -> str:
    """Names become directories; one that could leave its place is nobody's."""
    if not _SAFE_NAME.fullmatch(name):
        raise Failure(f"{name!r} cannot be the name of a directory")
    return name


def _names(folder: str) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []


def load(path: str) -> Facts:
    try:
        with open(path, encoding="utf-8") as file:
            found: Facts = json.load(file)
    except (OSError, ValueError):
        return {}
    return found


def write(path: str, facts: Mapping[str, object]) -> None:
    """Readers see the old or the new file, never half of one; and nobody else reads it."""
    fresh = path + ".fresh"
    with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
        json.dump(facts, file)
    os.replace(fresh, path)


@contextlib.contextmanager
def locked(path: str, *, wait: bool = True) -> Iterator[None]:
    lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(lock)


def _kill(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):  # it was quicker
        os.kill(pid, number)


def number(value: object) -> float:
    return float(value) if isinstance(value, (int, float)) else 0.0


def emit(data: bytes) -> None:
    """Write to stdout at once."""
    if data:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
