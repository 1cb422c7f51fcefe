"""The agent's verbs, as real processes on this machine."""

from __future__ import annotations

import ast
import gzip
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from tests.providers.local_rig import wait_until

from skyserve.providers import agent, bootstrap, hosted

T1, T2 = (f"agent-{number}-{uuid.uuid4().hex[:8]}" for number in (1, 2))
"""Processes are told apart by them, so other tests on this machine must have others."""
SERVES = "echo listening; exec sleep 1000"
Facts = Mapping[str, object]


class AgentRig:
    """An agent's directory, and its verbs as commands."""

    def __init__(self, directory: Path) -> None:
        self.root = directory / "root"
        self.home = directory / "home"
        self.home.mkdir()
        self.env = {"PATH": os.environ["PATH"], "HOME": str(self.home)}

    def run(self, *words: str, stdin: bytes = b"") -> str:
        done = subprocess.run(
            self.alone(*words), input=stdin, env=self.env, capture_output=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout.decode()

    def fails(self, *words: str, stdin: bytes = b"") -> str:
        done = subprocess.run(
            self.alone(*words), input=stdin, env=self.env, capture_output=True, timeout=60, check=False
        )
        assert done.returncode == agent.FAILED
        return done.stderr.decode().strip()

    def launch(self, sent: bytes = b"", **rest: object) -> Facts:
        told: Facts = json.loads(self.run("launch", stdin=json.dumps(order(**rest)).encode() + b"\n" + sent))
        return told

    def watch(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(self.alone("watch"), env=self.env, stdout=subprocess.PIPE, stdin=subprocess.PIPE)

    def states(self) -> list[Facts]:
        """What a watcher is told first."""
        with self.watch() as watcher:
            assert watcher.stdout is not None
            told: dict[str, list[Facts]] = json.loads(watcher.stdout.readline())
            watcher.terminate()
        return told["instances"]

    def until(self, phase: str, token: str = T1) -> Facts:
        """Wait until an instance is in that phase; its report."""
        instance = hosted.Root(str(self.root)).instance(token)
        wait_until(lambda: (instance.report() or {}).get("phase") == phase)
        report = instance.report()
        assert report is not None
        assert report["phase"] == phase
        return report

    def halt(self, token: str = T1) -> None:
        """What a stop of the machine does: everything is gone, and the next start is another one."""
        instance = hosted.Root(str(self.root)).instance(token)
        for pid in bootstrap.survivors(token, "") | {int(str(instance.status["pid"]))}:
            os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not instance.alive())
        hosted.write(f"{instance.path}/status.json", {**instance.status, "boot": "an earlier one"})

    def leftovers(self) -> list[str]:
        mark = os.fsencode(self.root)
        found = []
        for pid in bootstrap.process_parents():
            try:
                facts = Path(f"/proc/{pid}/cmdline").read_bytes() + os.fsencode(os.readlink(f"/proc/{pid}/cwd"))
            except OSError:
                continue
            if mark in facts:
                found.append(f"{pid}: {facts!r}")
        return found

    def alone(self, *words: str) -> list[str]:
        """As on a machine: the three files, and nothing of the package."""
        folder = self.root.parent / "bin"
        if not folder.exists():
            folder.mkdir()
            for module in (agent, hosted, bootstrap):
                source = Path(module.__file__)
                (folder / source.name).write_bytes(source.read_bytes())
        return [sys.executable, "-I", str(folder / "agent.py"), "--root", str(self.root), *words]


def order(**rest: object) -> dict[str, object]:
    facts: dict[str, object] = {
        "token": T1,
        "service": "chat-u1",
        "replica_id": 1,
        "version": 1,
        "workspace": "v1",
        "port": 8080,
        "setup": None,
        "run": SERVES,
        "env": {},
        "setup_env": {},
        "secrets": {},
        "files": False,
        "mounts": [],
        "own_machine": False,
        "claim": {},
        "grace_s": 1.0,
        "log_bytes": 1000,
    }
    return {**facts, **rest}


def packed(files: Mapping[str, bytes], *, whole: bool = True) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        for name, content in {**files, **({agent.LAST: b""} if whole else {})}.items():
            facts = tarfile.TarInfo(name)
            facts.size = len(content)
            tar.addfile(facts, io.BytesIO(content))
    return out.getvalue()


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[AgentRig]:
    rig = AgentRig(tmp_path)
    yield rig
    for instance in hosted.Root(str(rig.root)).instances():
        rig.run("end", instance.token)
    wait_until(lambda: not rig.leftovers())
    assert rig.leftovers() == []


@pytest.mark.parametrize("module", [agent, hosted, bootstrap])
def test_what_is_sent_needs_nothing_but_an_old_python(module: object) -> None:
    source = Path(str(getattr(module, "__file__", ""))).read_text()
    imported: set[str] = set()
    for node in ast.walk(ast.parse(source, feature_version=(3, 8))):
        if isinstance(node, ast.Import):
            imported.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            imported.add(node.module or "")
    neighbours = {"skyserve", "bootstrap", "hosted"}  # by one name or the other
    assert {name.partition(".")[0] for name in imported} - neighbours <= sys.stdlib_module_names


def test_an_order_becomes_an_instance(rig: AgentRig) -> None:
    told = rig.launch(
        setup="echo set up", env={"GREETING": "hello"}, run="echo $GREETING; exec sleep 1000", claim={"n": 1}
    )
    assert (told["token"], told["service"], told["port"], told["claim"]) == (T1, "chat-u1", 8080, {"n": 1})
    report = rig.until("run")
    assert report["setup_started_at"] is not None
    wait_until(lambda: "hello" in rig.run("logs", T1))
    assert rig.run("logs", T1) == "set up\nhello\n"


def test_the_same_token_again_starts_nothing(rig: AgentRig) -> None:
    rig.launch()
    before = rig.until("run")
    assert rig.launch() == before
    assert len(rig.states()) == 1


def test_a_launch_without_an_order_says_so_and_shows_nothing_of_it(rig: AgentRig) -> None:
    assert rig.fails("launch", stdin=b'{"secrets": {"KEY": "hush"}, half') == "no order came: JSONDecodeError"
    assert rig.fails("launch", stdin=b"{}") == "no order came: KeyError"
    assert "cannot be the name" in rig.fails("launch", stdin=json.dumps(order(token="../t")).encode())


def test_secrets_reach_the_replica_and_no_file(rig: AgentRig) -> None:
    rig.launch(secrets={"KEY": "hush-hush"}, run="echo ${#KEY}; exec sleep 1000", setup="test $KEY")
    assert rig.until("run")["needs_secrets"] is True
    wait_until(lambda: rig.run("logs", T1) == "9\n")
    texts = [path.read_bytes() for path in rig.root.rglob("*") if path.is_file()]
    assert texts
    assert not any(b"hush-hush" in text for text in texts)


def test_files_are_put_where_they_belong(rig: AgentRig, tmp_path: Path) -> None:
    files = {"workdir/app/main.py": b"main", "mounts/0": b"zero", "mounts/1/deep/file": b"one", "mounts/2": b"two"}
    mounts = ["config.json", f"{tmp_path}/data", "~/.token"]
    run = "cat app/main.py config.json ../workdir/app/main.py; exec sleep 1000"
    rig.launch(packed(files), files=True, mounts=mounts, run=run)
    rig.until("run")
    wait_until(lambda: rig.run("logs", T1) == "mainzeromain")
    assert (tmp_path / "data" / "deep" / "file").read_text() == "one"
    assert (rig.home / ".token").read_text() == "two"
    assert not list(rig.root.rglob("incoming"))
    rig.launch(token=T2, files=True, mounts=mounts)  # the same version again brings none, and needs none
    rig.until("run", T2)


@pytest.mark.parametrize(
    ("files", "why"),
    [
        (packed({"workdir/a": b"a"}, whole=False), "cut short"),
        (packed({"workdir/a": os.urandom(100_000)})[:-50_000], "did not arrive"),
        (packed({"elsewhere/a": b"a"}), "no place for elsewhere/a"),
        (packed({"workdir/../../a": b"a"}), "no place for"),
        (gzip.compress(b"noise"), "did not arrive"),
        (b"", "did not arrive"),
    ],
)
def test_files_that_do_not_arrive_whole_start_nothing(rig: AgentRig, files: bytes, why: str) -> None:
    stdin = json.dumps(order(files=True)).encode() + b"\n" + files
    assert why in rig.fails("launch", stdin=stdin)
    assert rig.states() == []
    rig.launch(packed({"workdir/a": b"a"}), files=True, run="cat a; exec sleep 1000")
    wait_until(lambda: rig.run("logs", T1) == "a")


def test_setup_runs_once_for_all_replicas_of_a_version(rig: AgentRig) -> None:
    rig.launch(setup="echo once >>made", run="cat made; exec sleep 1000")
    rig.until("run")
    rig.launch(token=T2, replica_id=2, setup="echo once >>made", run="cat made; exec sleep 1000")
    rig.until("run", T2)
    wait_until(lambda: "once" in rig.run("logs", T2))
    assert rig.run("logs", T2) == "[skyserve] setup already done by replica 1\nonce\n"


def test_the_working_directory_has_a_well_known_name_on_a_machine_of_its_own(rig: AgentRig) -> None:
    rig.launch(own_machine=True, run="touch here; exec sleep 1000")
    rig.until("run")
    wait_until((rig.home / "sky_workdir" / "here").exists)
    assert (rig.home / "sky_workdir" / "here").exists()


def test_a_watcher_is_told_of_every_change(rig: AgentRig, tmp_path: Path) -> None:
    with rig.watch() as watcher:
        assert watcher.stdout is not None
        assert json.loads(watcher.stdout.readline())["instances"] == []
        rig.launch(run=f"while [ ! -e {tmp_path}/go ]; do sleep 0.05; done; echo so it ends; exit 7")
        phases = []
        while "run" not in phases:
            phases += [told["phase"] for told in json.loads(watcher.stdout.readline())["instances"]]
        (tmp_path / "go").touch()
        while "exited" not in phases:
            [last] = json.loads(watcher.stdout.readline())["instances"]
            phases.append(last["phase"])
        watcher.terminate()
    assert (last["exit_code"], last["failed_phase"], last["detail"]) == (7, "run", "so it ends")


def test_a_watcher_that_nobody_hears_ends(rig: AgentRig) -> None:
    watcher = rig.watch()
    assert watcher.stdout is not None
    watcher.stdout.readline()
    watcher.stdout.close()
    rig.launch()
    assert watcher.wait(timeout=20) == 0
    assert watcher.stdin is not None
    watcher.stdin.close()


def test_a_watcher_whose_caller_is_gone_ends(rig: AgentRig) -> None:
    with rig.watch() as watcher:
        assert watcher.stdout is not None
        assert watcher.stdin is not None
        watcher.stdout.readline()
        watcher.stdin.close()
        assert watcher.wait(timeout=20) == 0


def test_the_death_of_a_supervisor_is_told(rig: AgentRig) -> None:
    rig.launch(run="echo last words; sleep 1000 & wait")
    rig.until("run")
    wait_until(lambda: "last words" in rig.run("logs", T1))
    instance = hosted.Root(str(rig.root)).instance(T1)
    os.kill(int(str(instance.status["pid"])), signal.SIGKILL)
    wait_until(lambda: bool(rig.states()) and rig.states()[0]["phase"] == "exited")
    [report] = rig.states()
    assert report["phase"] == "exited"
    assert report["failed_phase"] == "run"
    assert "gone without a word" in str(report["detail"])
    assert not bootstrap.survivors(T1, "")


def test_an_end_leaves_only_the_log(rig: AgentRig) -> None:
    rig.launch(run="echo bye; sleep 1000 & sleep 1000")
    rig.until("run")
    wait_until(lambda: "bye" in rig.run("logs", T1))
    rig.run("end", T1)
    rig.run("end", T1)
    assert rig.states() == []
    said = rig.run("logs", T1, "--tail", "5").splitlines()
    assert (said[0], said[-1]) == ("bye", "[skyserve] stopped")  # bash may have a word on its own end between them
    assert rig.launch() == {"token": T1, "phase": "ended"}  # too late
    rig.run("release", "chat-u1")
    assert rig.run("logs", T1) == ""
    assert not list(rig.root.glob("workspaces/*"))


def test_an_end_need_not_be_waited_for(rig: AgentRig) -> None:
    rig.launch(run="trap '' TERM; echo stubborn; while :; do sleep 0.1; done")
    wait_until(lambda: "stubborn" in rig.run("logs", T1))
    rig.run("end", T1, "--no-wait")
    assert rig.states()[0]["phase"] == "stopping"
    wait_until(lambda: rig.states() == [])
    assert rig.states() == []


def test_what_is_in_use_is_not_released(rig: AgentRig) -> None:
    rig.launch(setup="true")
    rig.until("run")
    rig.run("release", "chat-u1")
    assert list(rig.root.glob("workspaces/chat-u1/v1"))


def test_a_halted_instance_goes_on_without_setup(rig: AgentRig) -> None:
    rig.launch(setup="echo once >>made", run="cat made; exec sleep 1000", env={"A": "a"})
    rig.until("run")
    rig.halt()
    assert rig.states()[0]["phase"] == "halted"
    rig.run("adopt")
    rig.until("run")
    wait_until(lambda: rig.run("logs", T1).count("once") == 2)
    assert rig.run("logs", T1).endswith("[skyserve] setup already done by replica 1\nonce\n")


def test_a_halted_instance_that_needs_secrets_waits_for_them(rig: AgentRig) -> None:
    rig.launch(secrets={"KEY": "hush"}, run="echo ${#KEY}; exec sleep 1000")
    rig.until("run")
    rig.halt()
    rig.run("adopt")
    assert rig.states()[0]["phase"] == "halted"
    assert "needs its secrets" in rig.fails("resume", T1)
    rig.run("resume", T1, stdin=b'{"KEY": "hush!"}')
    rig.until("run")
    wait_until(lambda: "5" in rig.run("logs", T1))
    rig.halt()
    rig.launch(secrets={"KEY": "hush"})  # the whole order again does as well
    rig.until("run")


def test_nothing_unknown_is_resumed(rig: AgentRig) -> None:
    assert rig.fails("resume", "nobody") == "there is no instance nobody"


def test_logs_go_on_through_rotation_until_the_end(rig: AgentRig) -> None:
    run = "for i in $(seq 200); do echo line $i; [ $((i % 20)) != 0 ] || sleep 0.05; done"
    rig.launch(run=run, log_bytes=1500)
    with subprocess.Popen(rig.alone("logs", T1, "--follow"), env=rig.env, stdin=-1, stdout=-1) as reader:
        assert reader.stdout is not None
        seen = reader.stdout.read().decode()
    assert seen.endswith("line 200\n[skyserve] run ended with exit code 0\n")
    assert rig.run("logs", T1, "--tail", "2") == "line 200\n[skyserve] run ended with exit code 0\n"
    assert rig.run("logs", "nobody") == ""


def test_the_hardware_is_told(rig: AgentRig) -> None:
    nvidia = rig.root.parent / "tools" / "nvidia-smi"
    nvidia.parent.mkdir()
    nvidia.write_text("#!/bin/sh\necho '0, NVIDIA L4, 23034'\necho '1, NVIDIA GB10, [N/A]'\necho noise\n")
    nvidia.chmod(0o755)
    rig.env["PATH"] = f"{nvidia.parent}:{rig.env['PATH']}"
    told = json.loads(rig.run("inventory"))
    assert told["cpus"] >= 1
    assert told["memory_gib"] > 0
    assert told["free_disk_gib"] > 0
    assert told["gpus"] == [
        {"index": 0, "name": "NVIDIA L4", "memory_gib": 22.5},
        {"index": 1, "name": "NVIDIA GB10", "memory_gib": 0.0},
    ]


class Metadata(ThreadingHTTPServer):
    """A metadata service with a token, which says `notice` once there is one."""

    def __init__(self) -> None:
        self.notice: str | None = None
        self.asked = 0
        super().__init__(("127.0.0.1", 0), _MetadataAnswer)


class _MetadataAnswer(BaseHTTPRequestHandler):
    server: Metadata

    def do_PUT(self) -> None:
        self._say(200 if self.headers["Lifetime"] == "60" else 400, "a-token")

    def do_GET(self) -> None:
        self.server.asked += 1
        allowed = self.headers["Token"] == "a-token" and self.headers["Metadata"] == "yes"
        self._say(403 if not allowed else 404 if self.server.notice is None else 200, self.server.notice or "none")

    def _say(self, status: int, body: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture
def metadata() -> Iterator[Metadata]:
    server = Metadata()
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def reclaimed(rig: AgentRig, metadata: Metadata, notice: str, **rest: object) -> float:
    """When the machine goes, as a watcher is told after the metadata service has said `notice`."""
    url = f"http://127.0.0.1:{metadata.server_address[1]}"
    setting = {"url": f"{url}/action", "pattern": "terminate", "headers": {"Metadata": "yes"}, "warning_s": 30.0}
    token = {"token_url": f"{url}/token", "token_headers": {"Lifetime": "60"}, "token_header": "Token"}
    rig.root.mkdir(exist_ok=True)
    hosted.write(str(rig.root / "notice.json"), {**setting, **token, **rest})
    with rig.watch() as watcher:
        assert watcher.stdout is not None
        assert json.loads(watcher.stdout.readline())["reclaim_at"] is None
        wait_until(lambda: metadata.asked > 0)
        metadata.notice = notice
        while (told := json.loads(watcher.stdout.readline())["reclaim_at"]) is None:
            continue
        watcher.terminate()
    with rig.watch() as watcher:  # it is remembered
        assert watcher.stdout is not None
        assert json.loads(watcher.stdout.readline())["reclaim_at"] == told
        watcher.terminate()
    return float(told)


def test_a_notice_with_an_instant_is_told(rig: AgentRig, metadata: Metadata) -> None:
    notice = '{"action": "terminate", "time": "2030-01-01T00:00:00Z"}'
    assert reclaimed(rig, metadata, notice, pattern='terminate.*"time": "(?P<at>[^"]+)"') == 1893456000


def test_a_notice_without_an_instant_counts_from_now(rig: AgentRig, metadata: Metadata) -> None:
    before = time.time()
    assert before + 30 <= reclaimed(rig, metadata, "terminate") <= time.time() + 30


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2030-01-01T00:00:00Z", 1893456000.0),
        ("2030-01-01T00:00:00.1234567Z", 1893456000.0),
        ("2030-01-01T01:00:00+01:00", 1893456000.0),
        ("2030-01-01T00:00:00", 1893456000.0),
        ("Tue, 01 Jan 2030 00:00:00 GMT", 1893456000.0),
        ("soon", None),
    ],
)
def test_instants_are_read(text: str, expected: float | None) -> None:
    assert agent.instant(text) == expected


def test_the_environment_is_a_login_shells(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / ".profile").write_text("echo some noise\nexport FROM_PROFILE='two\nlines'\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("STRAY", "not from the login")
    found = agent.login_environment()
    assert found["FROM_PROFILE"] == "two\nlines"
    assert found["HOME"] == str(tmp_path)
    assert not found.keys() & {"STRAY", "PWD", "SHLVL", "_"}
