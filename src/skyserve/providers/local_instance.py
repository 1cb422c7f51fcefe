"""One instance of this machine as it lies on disk: what it was launched as, what its supervisor reports, whether that
lives, and how it is brought to an end. Knows files and processes; nothing of orders, capacity or other instances.

    INSTANCE/  meta.json            what was launched, without a single secret
               terminating          there since its end was asked for; its age counts the patience
               lock status.json log setup.sh run.sh     the supervisor's, see `bootstrap`
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TypedDict

from skyserve.model.evidence import Instance, InstanceState
from skyserve.providers import bootstrap, logfile

LOOPBACK = "127.0.0.1"
"""Where replicas listen that share this machine's network."""

_KILL_PATIENCE_S = 2.0
_DETAIL_LINES = 5
_DETAIL_WIDTH = 200
_STATES = {
    "starting": InstanceState.STARTING,
    "setup": InstanceState.SETUP,
    "run": InstanceState.RUNNING,
    "stopping": InstanceState.STOPPING,
    "exited": InstanceState.EXITED,
}


@dataclass(frozen=True, slots=True)
class Meta:
    """What an instance was launched as, and what of the machine is set apart for it.

    `address` is where it listens: another one than LOOPBACK is that of a network namespace of its own.
    """

    service: str
    service_name: str
    replica_id: int
    version: int
    workspace: str
    port: int
    vcpus: float = 0.0
    memory_gib: float = 0.0
    gpus: Mapping[int, float] = field(default_factory=dict)
    address: str = LOOPBACK
    labels: Mapping[str, str] = field(default_factory=dict)


class Report(TypedDict, total=False):
    """status.json, as the supervisor writes it; `cause` is added when it could not tell its end itself."""

    phase: str
    pid: int
    port: int
    boot: str
    output: str
    group: int
    setup_started_at: float
    run_started_at: float
    exit_code: int | None
    failed_phase: str | None
    ended_at: float
    cause: str


class LocalInstance:
    """The directory of one instance; its name is the token. Methods block for milliseconds unless they say more."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def token(self) -> str:
        """The launch token, which is the instance's id too."""
        return self.path.name

    @property
    def log(self) -> Path:
        """The newest part of the output."""
        return self.path / "log"

    @property
    def terminating(self) -> bool:
        """Whether its end was asked for."""
        return (self.path / "terminating").exists()

    @property
    def meta(self) -> Meta | None:
        """What it was launched as; None when the launch got nowhere."""
        try:
            facts = json.loads((self.path / "meta.json").read_text())
            facts["gpus"] = {int(index): part for index, part in facts["gpus"].items()}
            return Meta(**facts)
        except (OSError, ValueError):
            return None

    @property
    def report(self) -> Report | None:
        """What the supervisor said last; None when it never came up."""
        try:
            report: Report = json.loads((self.path / "status.json").read_text())
        except (OSError, ValueError):
            return None
        return report

    def alive(self) -> bool:
        """Whether a supervisor holds the lock."""
        try:
            lock = os.open(self.path / "lock", os.O_RDWR)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(lock)
        return False

    def create(self, meta: Meta) -> None:
        """Make the directory anew."""
        shutil.rmtree(self.path, ignore_errors=True)
        self.path.mkdir(mode=0o700)
        write_private(self.path / "meta.json", json.dumps(asdict(meta)))

    def observe(self) -> Instance | None:
        """The instance as the contract has it; None when it never came up."""
        alive = self.alive()  # before the report: once it is dead, the report is final
        meta, report = self.meta, self.report
        if meta is None or report is None:
            return None
        state = self._state(report, alive=alive)
        ended = state is InstanceState.EXITED
        return Instance(
            id=self.token,
            provider="local",
            service=meta.service,
            token=self.token,
            state=state,
            address=f"{meta.address}:{meta.port}" if "run_started_at" in report else None,
            setup_started_at=report.get("setup_started_at"),
            exit_code=report.get("exit_code") if ended else None,
            failed_phase=report.get("failed_phase") if ended else None,
            detail=self._last_words(report) if ended else "",
        )

    def bury(self) -> None:
        """Account for a supervisor that died without a word: end what it left behind, and say so in its place.

        May block for 2 seconds. Tried again next time if something does not die.
        """
        report = self.report or Report()
        if self.end_survivors():
            report["phase"] = "exited"
            report["failed_phase"] = "run" if "run_started_at" in report else "setup"
            report["ended_at"] = time.time()
            report["cause"] = "the supervisor is gone without a word: killed, or the machine was restarted"
            write_private(self.path / "status.json", json.dumps(report))

    def end_survivors(self) -> bool:
        """Kill what an ended supervisor left behind; whether nothing is left. May block for 2 seconds."""
        report = self.report or Report()
        same_boot = report.get("boot") == bootstrap.boot_id()
        if not Path("/proc/self/environ").exists():
            if same_boot and report.get("group", 0) > 0:
                _kill(-report["group"], signal.SIGKILL)
            return True
        deadline = time.monotonic() + _KILL_PATIENCE_S
        while left := bootstrap.survivors(self.token, report.get("output", "") if same_boot else ""):
            if time.monotonic() > deadline:
                return False
            for pid in left:
                _kill(pid, signal.SIGKILL)
            time.sleep(0.02)
        return True

    def ask_to_end(self, patience_s: float) -> None:
        """SIGTERM to a supervisor that lives; SIGKILL once `patience_s` seconds have passed since the first time."""
        marker = self.path / "terminating"
        if not marker.exists():
            marker.touch(mode=0o600)
        report = self.report
        if report is not None and self.alive():
            overdue = time.time() - marker.stat().st_mtime > patience_s
            _kill(report["pid"], signal.SIGKILL if overdue else signal.SIGTERM)

    def _state(self, report: Report, *, alive: bool) -> InstanceState:
        state = _STATES.get(report.get("phase", ""), InstanceState.STARTING)
        if self.terminating:
            return InstanceState.STOPPING  # listed until it is gone
        if not alive and state is not InstanceState.EXITED:
            return InstanceState.STOPPING  # its processes may still be there, until it is buried
        return state

    def _last_words(self, report: Report) -> str:
        lines = logfile.last_lines(self.log, _DETAIL_LINES + 1)
        if lines and lines[-1].startswith("[skyserve] "):
            lines = lines[:-1]  # the supervisor's own word, which exit_code and failed_phase say too
        lines = lines[-_DETAIL_LINES:]
        cause = report.get("cause")
        return "\n".join(line[:_DETAIL_WIDTH] for line in (*lines, *([cause] if cause else [])))


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner may read; readers see the old or the new text, never half of it."""
    fresh = path.with_name(f"{path.name}.fresh")
    fresh.touch(mode=0o600)
    fresh.write_text(text)
    fresh.replace(path)


def _kill(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except (ProcessLookupError, PermissionError):
        return  # it was quicker
