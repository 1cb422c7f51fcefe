"""A private installation for each end-to-end test: its own home, taken down at the end, with nothing left over."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import TypeVar

import pytest
from tests.replay.replay import differences

ENGINE = Path(__file__).parent / "engine.py"
T = TypeVar("T")

SERVICE = """\
service:
  readiness_probe:
    path: /health
    endpoint_probe_interval_seconds: 1
  replicas: {replicas}
  load_balancer: {{retry: idempotent}}
resources:
  ports: 8080
{envs}
run: |
  exec {python} {engine}
"""


def wait_for(what: Callable[[], T | None], *, seconds: float = 30.0, why: str = "") -> T:
    """The first true answer of `what`."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        answer = what()
        if answer:
            return answer
        time.sleep(0.05)
    raise AssertionError(f"waited {seconds:g}s in vain: {why or what}")


class Sky:
    """The command, as a user of one installation runs it."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.env = {**os.environ, "SKYSERVE_HOME": str(home), "PYTHONWARNINGS": "default"}
        self.decisions: dict[tuple[str, int], tuple[str, str]] = {}

    def start(self, *args: str, **options: object) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "skyserve.cli.main", *args]
        streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen(command, env=self.env, text=True, **{**streams, **options})  # type: ignore[call-overload,no-any-return]

    def __call__(self, *args: str, code: int = 0, timeout: float = 60.0) -> str:
        with self.start(*args) as process:
            try:
                out, err = process.communicate(timeout=timeout)
            except subprocess.TimeoutExpired:
                process.kill()
                out, err = process.communicate()
                raise AssertionError(f"sky {' '.join(args)} took longer than {timeout:g}s\n{out}\n{err}") from None
        assert process.returncode == code, f"sky {' '.join(args)}: exit {process.returncode}\n{out}\n{err}"
        self.err = err
        return out

    def yaml(self, replicas: int = 2, name: str = "service.yaml", extra: str = "", **envs: str) -> Path:
        """A Service YAML for the test engine."""
        lines = "".join(f"  {key}: '{value}'\n" for key, value in envs.items())
        path = self.home.parent / name
        section = f"envs:\n{lines}" if envs else ""
        path.write_text(SERVICE.format(replicas=replicas, envs=section, python=sys.executable, engine=ENGINE) + extra)
        return path

    def up(self, name: str = "chat", replicas: int = 2, **envs: str) -> str:
        """Bring a service up; its endpoint."""
        self("serve", "up", str(self.yaml(replicas, **envs)), "-n", name, "-y")
        return self.endpoint(name)

    def endpoint(self, name: str = "chat") -> str:
        return self("serve", "status", name, "--endpoint").strip()

    def service(self, name: str = "chat") -> dict[str, object]:
        shown = json.loads(self("serve", "status", name, "-o", "json"))
        (service,) = shown["services"]
        return dict(service)

    def replicas(self, name: str = "chat") -> dict[int, dict[str, object]]:
        rows = self.service(name)["replicas"]
        assert isinstance(rows, list)
        return {row["id"]: row for row in rows}

    def ready(self, name: str = "chat") -> dict[int, dict[str, object]]:
        return {id_: row for id_, row in self.replicas(name).items() if row["status"] == "READY"}

    def controller_pid(self) -> int:
        return int(json.loads((self.home / "controller.json").read_text())["pid"])

    def collect_decisions(self) -> None:
        """Read what the decision log has gained; a service that goes down takes its log along."""
        database = self.home / "state.db"
        if not database.exists():
            return
        try:
            with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=5)) as connection:
                rows = connection.execute("select service, seq, observation, plan from decisions").fetchall()
        except sqlite3.Error:
            return
        for service, seq, observation, plan in rows:
            self.decisions[(service, seq)] = (observation, plan)


def processes_of(home: Path) -> dict[int, str]:
    """Every process that belongs to an installation: by its environment, its arguments or its working directory."""
    found = {}
    mark = str(home).encode()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            environ, cmdline = (entry / "environ").read_bytes(), (entry / "cmdline").read_bytes()
            cwd = os.readlink(entry / "cwd").encode()
        except OSError:  # it has ended meanwhile
            continue
        if mark in environ + cmdline or cwd.startswith(mark):
            found[int(entry.name)] = cmdline.replace(b"\0", b" ").decode()[:400]
    return found


def door_processes(home: Path) -> list[int]:
    """The processes of an installation's only door, the first one first: how many there are depends on the machine."""
    doors = {pid: line for pid, line in processes_of(home).items() if "skyserve.load_balancer" in line}
    return sorted(doors, key=lambda pid: "--worker" in doors[pid])


def _watch(sky: Sky, done: threading.Event) -> None:
    while not done.wait(0.1):
        sky.collect_decisions()


@pytest.fixture
def sky() -> Iterator[Sky]:
    """An installation of its own. At the end: everything down, no process left, every decision replays the same."""
    root = Path(tempfile.mkdtemp(prefix="sky-"))
    sky = Sky(root / "home")
    done = threading.Event()
    watcher = threading.Thread(target=_watch, args=(sky, done))
    watcher.start()
    try:
        yield sky
        if (sky.home / "controller.lock").exists():
            sky("serve", "down", "--all", "-y")
            sky("controller", "stop")
            wait_for(lambda: not processes_of(sky.home), seconds=15, why=f"left over: {processes_of(sky.home)}")
    finally:
        done.set()
        watcher.join()
        for pid in processes_of(sky.home):
            os.kill(pid, signal.SIGKILL)
        shutil.rmtree(root, ignore_errors=True)
    assert differences(sky.decisions.values()) == [], "a logged decision does not replay"
