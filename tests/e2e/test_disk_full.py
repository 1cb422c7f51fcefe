"""A full disk under the state directory: clear errors, nothing half-done, and the service goes on serving."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.e2e

SCENARIO = """
import os, pathlib, signal, sys
sys.path[:0] = [{root!r}]
from tests.e2e.conftest import Sky, processes_of, wait_for
from tests.e2e.test_service_life import get

sky = Sky(pathlib.Path({mount!r}) / "home")
try:
    endpoint = sky.up("chat", 1)
    junk = pathlib.Path({mount!r}) / "junk"
    descriptor = os.open(junk, os.O_CREAT | os.O_WRONLY)
    try:
        while True:
            os.write(descriptor, bytes(1 << 12))
    except OSError:
        os.close(descriptor)
    service = pathlib.Path({elsewhere!r}) / "service.yaml"
    service.write_text((pathlib.Path({mount!r}) / "service.yaml").read_text())
    sky("serve", "up", str(service), "-n", "other", "-y", code=1)
    assert "hint:" in sky.err, sky.err
    assert "Traceback" not in sky.err, sky.err
    print("error was:", sky.err.strip().splitlines()[-2:], flush=True)
    assert get(endpoint + "/x")["replica"] == "1", "the service goes on"
    junk.unlink()
    wait_for(lambda: sky.service("chat")["status"] == "READY")
    assert "other" not in sky("serve", "status")
    sky("serve", "up", str(service), "-n", "other", "-y")
    sky("serve", "down", "--all", "-y")
    sky("controller", "stop")
    wait_for(lambda: not processes_of(sky.home))
finally:
    for pid in processes_of(sky.home):
        os.kill(pid, signal.SIGKILL)
print("done")
"""


def test_a_full_disk(tmp_path: Path) -> None:
    unshare = shutil.which("unshare")
    allowed = unshare and subprocess.run([unshare, "-m", "true"], check=False, capture_output=True).returncode == 0
    if not allowed:
        pytest.skip("needs the right to mount: run as root, or inside 'unshare -rm'")
    mount, elsewhere = tmp_path / "small", tmp_path / "elsewhere"
    mount.mkdir()
    elsewhere.mkdir()
    script = tmp_path / "scenario.py"
    root = str(Path(__file__).parents[2])
    script.write_text(SCENARIO.format(root=root, mount=str(mount), elsewhere=str(elsewhere)))
    command = f"mount -t tmpfs -o size=16m tmpfs {mount} && exec {sys.executable} {script}"
    done = subprocess.run(
        [str(unshare), "-m", "sh", "-c", command], check=False, capture_output=True, text=True, timeout=110
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("done\n")
