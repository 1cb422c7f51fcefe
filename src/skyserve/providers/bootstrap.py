"""Runs one replica on the machine it stands on: setup, then run, under supervision, until the last process is gone.

One file of standard library, run by its path: `python -I -S -X utf8 bootstrap.py INSTANCE_DIR`, with the order as JSON
on stdin. It returns once the supervisor is up and detached. It knows the instance's directory and processes; it must
not import anything of SkyServe (it is sent to other machines as it is), and never writes the order's environment to
disk, for it holds secrets.

In INSTANCE_DIR it keeps
  lock          held (flock) while the supervisor lives: a question that no reused process id can answer wrongly
  status.json   phase starting|setup|run|stopping|exited, and what goes with it
  log, log.1    output of setup and run, newest first, rotated
In the workspace, which the replicas of one version on this machine share:
  lock, done    setup runs once: under the lock, and not again once done is there
  workdir/      the working directory of setup and run

The order: token, replica_id, workspace, port, setup (or null), run, copies ([source, destination] pairs), env,
setup_env (more variables for setup), grace_s, log_bytes.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import select
import signal
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing costs memory that a supervisor per replica need not spend
    from collections.abc import Callable, Iterable, Mapping
    from typing import NoReturn, TypedDict

    class Order(TypedDict):
        """What arrives on stdin."""

        token: str
        replica_id: int
        workspace: str
        port: int
        setup: str | None
        run: str
        copies: list[list[str]]
        env: dict[str, str]
        setup_env: dict[str, str]
        grace_s: float
        log_bytes: int


MARKER = "SKYSERVE_INSTANCE"
"""The environment variable by which every process of an instance can be told."""
OLD_LOGS = 2
"""How many rotated log files are kept beside the current one."""
LOCK_HELD, ORDER_UNREADABLE, NOT_STARTED = 3, 4, 5
"""Exit codes of the start: another supervisor is there; no order came; the supervisor ended before it was up."""

_DIE_WITH_PARENT, _ADOPT_ORPHANS = 1, 36  # prctl options
_LOCK_PATIENCE_S = 2.0
_RESET_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD, signal.SIGPIPE, signal.SIGXFSZ)
_CHUNK = 65536


def process_parents() -> dict[int, int]:
    """The parent of every process, by /proc; empty where there is no such thing."""
    parents: dict[int, int] = {}
    for name in _listdir("/proc"):
        if name.isdigit():
            # The name of the program may hold spaces and brackets, so fields are counted from the last bracket.
            fields = _read(f"/proc/{name}/stat").rpartition(b")")[2].split()
            if len(fields) > 1:
                parents[int(name)] = int(fields[1])
    return parents


def descendants(roots: Iterable[int], parents: Mapping[int, int]) -> set[int]:
    """Children of `roots`, their children, and so on; not the roots themselves."""
    children: dict[int, list[int]] = {}
    for pid, parent in parents.items():
        children.setdefault(parent, []).append(pid)
    found: set[int] = set()
    todo = list(roots)
    while todo:
        fresh = [pid for pid in children.get(todo.pop(), ()) if pid not in found]
        found.update(fresh)
        todo.extend(fresh)
    return found


def survivors(token: str, output: str) -> set[int]:
    """Processes of an instance whose supervisor is gone: those with its marker or its output pipe, and their offspring.

    A program that renames itself may overwrite its environment, so the pipe is looked at too. `output` is what
    `/proc/PID/fd/1` says of it, or empty when not known.
    """
    marker = f"{MARKER}={token}".encode()
    parents = process_parents()
    marked = {pid for pid in parents if _belongs(pid, marker, output)}
    return (marked | descendants(marked, parents)) - {os.getpid()}


def boot_id() -> str:
    """Differs after each start of the machine; empty where unknown. Pipes and process ids mean nothing across it.

    A container's kernel was there before it, so when its first process began counts too.
    """
    kernel = _read("/proc/sys/kernel/random/boot_id").decode().strip()
    first = _read("/proc/1/stat").rpartition(b")")[2].split()
    return f"{kernel}/{first[19].decode()}" if kernel and len(first) > 19 else kernel


def _belongs(pid: int, marker: bytes, output: str) -> bool:
    if marker in _read(f"/proc/{pid}/environ").split(b"\0"):
        return True
    return bool(output) and any(_readlink(f"/proc/{pid}/fd/{fd}") == output for fd in (1, 2))


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:  # processes come and go while they are looked at
        return b""


def _readlink(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""


def _listdir(path: str) -> list[str]:
    try:
        return os.listdir(path)
    except OSError:
        return []


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


class Log:
    """The replica's output. It lives at descriptor 2, so that a crash of the supervisor itself is told there too.

    What can not be written (the disk is full) is dropped: the replica must not stand still for its log.
    """

    def __init__(self, path: str, limit_bytes: int) -> None:
        self._path = path
        self._limit = limit_bytes
        self._size = 0
        self._mid_line = False
        self._open()

    def write(self, data: bytes) -> None:
        """Append output, to a fresh file when the current one is full, be it within what came at once."""
        try:
            for start in range(0, len(data), self._limit):
                piece = data[start : start + self._limit]
                if self._size and self._size + len(piece) > self._limit:
                    self._rotate()
                self._size += os.write(2, piece)
        except OSError:
            return
        self._mid_line = not data.endswith(b"\n")

    def say(self, text: str) -> None:
        """Append a line of the supervisor's own."""
        self.write(f"{chr(10) if self._mid_line else ''}[skyserve] {text}\n".encode())

    def _open(self) -> None:
        fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(fd, 2)
        os.close(fd)
        self._size = os.fstat(2).st_size

    def _rotate(self) -> None:
        for number in range(OLD_LOGS, 0, -1):
            older = f"{self._path}.{number}"
            newer = f"{self._path}.{number - 1}" if number > 1 else self._path
            if os.path.exists(newer):
                os.replace(newer, older)
        self._open()


class Status:
    """status.json: what others may know. Readers see the old or the new file, never half of one."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._facts: dict[str, object] = {}

    def update(self, **facts: object) -> None:
        """Change some facts. A full disk leaves the old ones: the lock still tells whether the supervisor lives."""
        self._facts.update(facts)
        fresh = f"{self._path}.new"
        try:
            with open(fresh, "w", encoding="utf-8") as file:
                json.dump(self._facts, file)
            os.replace(fresh, self._path)
        except OSError:
            return


class Supervisor:
    """Parent of all that runs for one instance. One thread, one command at a time, asleep until something happens."""

    def __init__(self, directory: str, order: Order, umask: int) -> None:
        self._directory = directory
        self._order = order
        self._umask = umask
        self._stop_asked = False
        self._child = 0
        self._code: int | None = None
        self._wake, wake = os.pipe()
        self._output, self._output_in = os.pipe()
        for fd in (self._wake, wake, self._output):
            os.set_blocking(fd, False)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGTERM, self._ask_to_stop)
        signal.signal(signal.SIGINT, self._ask_to_stop)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        _prctl(_ADOPT_ORPHANS, 1)
        self._log = Log(os.path.join(directory, "log"), order["log_bytes"])
        self._status = Status(os.path.join(directory, "status.json"))
        output = f"pipe:[{os.fstat(self._output).st_ino}]"
        self._status.update(
            phase="starting", pid=os.getpid(), port=order["port"], boot=boot_id(), output=output, group=0
        )

    def run(self) -> None:
        """Setup and run, then the account of how it ended."""
        self._status.update(phase="setup", setup_started_at=time.time())
        phase, code = "setup", self._setup()
        if code == 0 and not self._stop_asked:
            phase = "run"
            run = self._bash("run", self._order["run"])
            code = self._command(run, self._order["env"], phase="run", run_started_at=time.time())
        asked = self._stop_asked
        self._log.say("stopped" if asked else f"{phase} ended with exit code {code}")
        self._status.update(
            phase="exited", exit_code=code, failed_phase=None if asked else phase, ended_at=time.time(), group=0
        )

    def _setup(self) -> int | None:
        """0 when the workspace is ready, made by this replica or another."""
        if not self._order["setup"] and not self._order["copies"]:
            return 0
        workspace = self._order["workspace"]
        lock = os.open(os.path.join(workspace, "lock"), os.O_RDWR | os.O_CREAT, 0o600)
        try:
            self._lock_workspace(lock)
            done = os.path.join(workspace, "done")
            if self._stop_asked:
                return None
            if os.path.exists(done):
                self._log.say(f"setup already done by replica {_read(done).decode()}")
                return 0
            os.pwrite(lock, f"{self._order['replica_id']:<20}".encode(), 0)
            code = self._set_up_workspace()
            if code == 0:
                with open(f"{done}.new", "w", encoding="utf-8") as file:
                    file.write(str(self._order["replica_id"]))
                os.replace(f"{done}.new", done)
            return code
        finally:
            os.close(lock)

    def _lock_workspace(self, lock: int) -> None:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._log.say(f"waiting for setup by replica {os.pread(lock, 20, 0).decode().strip() or 'unknown'}")
            # The lock belongs to the open file, so a child can wait for it here while this process stays awake.
            self._start(lambda: fcntl.flock(lock, fcntl.LOCK_EX))
            self._await_child()
            self._end_everything()

    def _set_up_workspace(self) -> int | None:
        env = {**self._order["env"], **self._order["setup_env"]}
        for source, destination in self._order["copies"]:
            os.makedirs(os.path.dirname(destination), exist_ok=True)
            code = self._command(["cp", "-a", source, destination], env)
            if code != 0 or self._stop_asked:
                return code
        return self._command(self._bash("setup", self._order["setup"]), env) if self._order["setup"] else 0

    def _bash(self, name: str, script: str | None) -> list[str]:
        path = os.path.join(self._directory, f"{name}.sh")
        with open(path, "w", encoding="utf-8", errors="surrogateescape") as file:
            file.write(f"{script}\n")
        return ["bash", path]

    def _command(self, argv: list[str], env: dict[str, str], **facts: object) -> int | None:
        """Run a command to its end, or until a stop is asked, and end all that it left behind; its exit code.

        `facts` are for the status once it runs: whoever reads them finds its process there too.
        """

        def become() -> NoReturn:
            os.setsid()
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.umask(self._umask)
            os.chdir(os.path.join(self._order["workspace"], "workdir"))
            os.execvpe(argv[0], argv, env)

        self._start(become)
        self._status.update(group=self._child, **facts)
        self._await_child()
        self._end_everything()
        return self._code

    def _start(self, become: Callable[[], object]) -> None:
        """Fork a child that does `become` with the log as its output, and that does not outlive this process."""
        parent = os.getpid()
        # A signal that comes before the child has dropped this process's handlers waits until it has.
        signal.pthread_sigmask(signal.SIG_BLOCK, _RESET_SIGNALS)
        child = os.fork()
        if child:
            self._child, self._code = child, None
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _RESET_SIGNALS)
            return
        code = 127
        try:
            signal.set_wakeup_fd(-1)
            for number in _RESET_SIGNALS:
                signal.signal(number, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _RESET_SIGNALS)
            _prctl(_DIE_WITH_PARENT, signal.SIGKILL)
            if os.getppid() == parent:
                os.dup2(self._output_in, 1)
                os.dup2(self._output_in, 2)
                become()
                code = 0
        except (OSError, ValueError) as error:
            os.write(2, f"[skyserve] cannot start: {error}\n".encode())
        finally:
            os._exit(code)

    def _await_child(self) -> None:
        while self._code is None and not self._stop_asked:
            self._turn(None)

    def _end_everything(self) -> None:
        """SIGTERM to every process, SIGKILL after the grace, until none is left and all output is read."""
        deadline = time.monotonic() + self._order["grace_s"]
        if not self._alone():
            self._status.update(phase="stopping")
            self._signal_all(signal.SIGTERM)
        while not self._alone() and time.monotonic() < deadline:
            self._turn(max(0.0, deadline - time.monotonic()))
        pause_s = 0.05
        while not self._alone():
            self._signal_all(signal.SIGKILL)
            self._turn(pause_s)
            pause_s = min(1.0, pause_s * 2)
        while self._relay_output():
            pass

    def _signal_all(self, number: signal.Signals) -> None:
        """Once to each process, and to those that were born meanwhile."""
        if sys.platform != "linux":
            _kill(-self._child, number)
            return
        told: set[int] = set()
        while fresh := descendants([os.getpid()], process_parents()) - told:
            for pid in fresh:
                _kill(pid, number)
            told |= fresh

    def _alone(self) -> bool:
        """Whether no process is left. Orphans are adopted on Linux, so without a child there is no descendant."""
        childless = self._reap()
        if sys.platform != "linux":
            return childless and not _kill(-self._child, 0)
        return childless

    def _turn(self, timeout_s: float | None) -> None:
        """Sleep until a signal, output or the timeout; take note of it."""
        readable, _, _ = select.select([self._wake, self._output], [], [], timeout_s)
        if self._output in readable:
            self._relay_output()
        if self._wake in readable:
            os.read(self._wake, _CHUNK)
            self._reap()

    def _relay_output(self) -> bool:
        try:
            data = os.read(self._output, _CHUNK)
        except BlockingIOError:
            return False
        self._log.write(data)
        return bool(data)

    def _reap(self) -> bool:
        """Collect ended children and adopted orphans; whether none is left."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return True
            if pid == 0:
                return False
            if pid == self._child:
                # Not `os.waitstatus_to_exitcode`: machines may have Python 3.8.
                self._code = 128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)

    def _ask_to_stop(self, *_: object) -> None:
        self._stop_asked = True


def _kill(pid: int, number: int) -> bool:
    """Signal a process, or the group `-pid`; whether it was there."""
    try:
        os.kill(pid, number)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def _take_lock(directory: str) -> int | None:
    """The descriptor of the instance's lock, or None when another supervisor holds it."""
    lock = os.open(os.path.join(directory, "lock"), os.O_RDWR | os.O_CREAT, 0o600)
    deadline = time.monotonic() + _LOCK_PATIENCE_S
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return lock
        except BlockingIOError:  # perhaps somebody who only looks whether it is held, for an instant
            if time.monotonic() > deadline:
                return None
            time.sleep(0.02)


def main(directory: str) -> int:
    """Start a detached supervisor for the order on stdin; return 0 when it is up."""
    umask = os.umask(0o077)
    lock = _take_lock(directory)
    if lock is None:
        return LOCK_HELD
    try:
        order: Order = json.loads(sys.stdin.buffer.read())
    except ValueError:
        return ORDER_UNREADABLE
    up, tell_up = os.pipe()
    if os.fork():
        os.close(tell_up)
        return 0 if os.read(up, 1) else NOT_STARTED
    os.close(up)
    os.setsid()
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    os.chdir("/")
    supervisor = Supervisor(directory, order, umask)
    os.write(tell_up, b"1")
    os.close(tell_up)
    supervisor.run()
    return 0  # the end of this process, and nothing earlier, lets go of the lock


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
