"""The file that is sent to machines: it stands alone, starts detached, and finds the processes of an instance."""

from __future__ import annotations

import ast
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

from tests.providers.local_rig import wait_until

from skyserve.providers import bootstrap


def start(directory: Path, stdin: str, script: Path = Path(bootstrap.__file__)) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-I", "-S", str(script), str(directory)]
    return subprocess.run(command, input=stdin.encode(), env={}, capture_output=True, timeout=20, check=False)


def order(workspace: Path, run: str) -> str:
    (workspace / "workdir").mkdir(parents=True)
    facts = {"token": "t1", "replica_id": 1, "workspace": str(workspace), "port": 8080, "setup": None, "copies": []}
    tuning = {"setup_env": {}, "grace_s": 1.0, "log_bytes": 1000}
    return json.dumps({**facts, **tuning, "run": run, "env": {"PATH": os.environ["PATH"]}})


def status(directory: Path) -> dict[str, object]:
    facts: dict[str, object] = json.loads((directory / "status.json").read_text())
    return facts


def test_imports_nothing_but_the_standard_library() -> None:
    imported: set[str] = set()
    for node in ast.walk(ast.parse(Path(bootstrap.__file__).read_text())):
        if isinstance(node, ast.Import):
            imported.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            imported.add(node.module or "")
    assert {name.partition(".")[0] for name in imported} <= sys.stdlib_module_names


def test_a_copy_of_the_file_alone_runs_an_instance(tmp_path: Path) -> None:
    copy = Path(shutil.copy(bootstrap.__file__, tmp_path / "replica.py"))
    instance = tmp_path / "instance"
    instance.mkdir()
    result = start(instance, order(tmp_path / "workspace", "pwd; exit 6"), copy)
    assert (result.returncode, result.stdout, result.stderr) == (0, b"", b"")
    wait_until(lambda: status(instance)["phase"] == "exited")
    assert (status(instance)["exit_code"], status(instance)["failed_phase"]) == (6, "run")
    log = (instance / "log").read_text()
    assert log == f"{tmp_path}/workspace/workdir\n[skyserve] run ended with exit code 6\n"


def test_no_order_is_no_instance(tmp_path: Path) -> None:
    assert start(tmp_path, "").returncode == bootstrap.ORDER_UNREADABLE
    assert start(tmp_path, '{"half').returncode == bootstrap.ORDER_UNREADABLE
    assert not (tmp_path / "status.json").exists()


def test_there_is_one_supervisor_at_most(tmp_path: Path) -> None:
    with (tmp_path / "lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert start(tmp_path, order(tmp_path / "workspace", "true")).returncode == bootstrap.LOCK_HELD


def test_a_supervisor_that_ends_before_it_is_up_is_told(tmp_path: Path) -> None:
    result = start(tmp_path, "{}")
    assert result.returncode == bootstrap.NOT_STARTED
    assert b"KeyError" in result.stderr


def test_descendants_are_children_and_theirs() -> None:
    parents = {10: 1, 11: 10, 12: 11, 13: 12, 20: 1, 21: 20}
    assert bootstrap.descendants([10], parents) == {11, 12, 13}
    assert bootstrap.descendants([12, 20], parents) == {13, 21}
    assert bootstrap.descendants([99], parents) == set()


def test_survivors_are_known_by_marker_by_output_and_by_descent() -> None:
    output, output_in = os.pipe()
    env = {"PATH": os.environ["PATH"], bootstrap.MARKER: "survivor-test"}
    marked = subprocess.Popen(["sleep", "1000"], env=env)
    forgetful = subprocess.Popen(["env", "-i", "sleep", "1000"], stdout=output_in)
    parent = subprocess.Popen(["bash", "-c", "env -i sleep 1000 & wait"], env=env, start_new_session=True)
    try:
        wait_until(lambda: len(bootstrap.descendants([parent.pid], bootstrap.process_parents())) == 1)
        found = bootstrap.survivors("survivor-test", f"pipe:[{os.fstat(output).st_ino}]")
        child = bootstrap.descendants([parent.pid], bootstrap.process_parents())
        assert found == {marked.pid, forgetful.pid, parent.pid, *child}
        assert bootstrap.survivors("survivor-tes", "") == set()
    finally:
        os.killpg(parent.pid, signal.SIGKILL)
        for process in (marked, forgetful, parent):
            process.kill()
            process.wait()
        os.close(output)
        os.close(output_in)
