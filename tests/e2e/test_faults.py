"""What users and machines do wrong: a clear error, a truthful status, nothing left over."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import time
import urllib.request
from pathlib import Path

import pytest
from tests.e2e.conftest import Sky, door_processes, processes_of, wait_for

pytestmark = pytest.mark.e2e


def engines(sky: Sky) -> list[str]:
    return [line for line in processes_of(sky.home).values() if "engine.py" in line or "sleep 1000" in line]


def test_bad_files_create_nothing(sky: Sky) -> None:
    bad = sky.home.parent / "bad.yaml"
    for text in ("service:\n  replica: 2\nrun: x\n", "a: [", "", "- 1\n"):
        bad.write_text(text)
        sky("serve", "up", str(bad), "-n", "chat", "-y", code=2)
        assert "bad.yaml" in sky.err
    sky("serve", "up", str(sky.home.parent / "missing.yaml"), "-y", code=2)
    sky("serve", "up", str(sky.home.parent), "-y", code=2)
    for name in ("a/b", "a;b", "../x", "a b"):
        sky("serve", "up", str(sky.yaml(1)), "-n", name, "-y", code=2)
    assert "No existing services" in sky("serve", "status")


def test_a_taken_name_is_refused_and_the_service_goes_on(sky: Sky) -> None:
    sky.up("chat", 1)
    sky("serve", "up", str(sky.yaml(1)), "-n", "chat", "-y", code=1)
    assert "sky serve update" in sky.err
    assert set(sky.ready()) == {1}


def test_two_ups_at_the_same_moment(sky: Sky) -> None:
    path = str(sky.yaml(1))
    both = [sky.start("serve", "up", path, "-n", "chat", "-y") for _ in range(2)]
    outcomes = []
    for process in both:
        with process:
            _, err = process.communicate(timeout=60)
            outcomes.append((process.returncode, err))
    assert sorted(code for code, _ in outcomes) == [0, 1], outcomes
    assert set(sky.ready()) == {1}
    assert len(engines(sky)) == 1


def test_ctrl_c_during_up_goes_on_in_the_background(sky: Sky) -> None:
    gate = sky.home.parent / "gate"
    process = sky.start("serve", "up", str(sky.yaml(1, GATE=str(gate))), "-n", "chat", "-y")
    with process:
        wait_for(lambda: engines(sky), why="the engine is launched")
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "sky serve down chat" in err
    gate.touch()
    wait_for(lambda: sky.ready(), why="the service starts all the same")


def test_down_during_launch(sky: Sky) -> None:
    sky("serve", "up", str(sky.yaml(2, START_S="30")), "-n", "chat", "-y", "--async")
    wait_for(lambda: len(engines(sky)) == 2, why="both engines are launched")
    sky("serve", "down", "chat", "-y")
    assert engines(sky) == []


def test_an_engine_that_never_listens_fails_after_the_initial_delay(sky: Sky) -> None:
    path = sky.yaml(1, NEVER="1")
    path.write_text(path.read_text().replace("path: /health", "path: /health\n    initial_delay_seconds: 2"))
    sky("serve", "up", str(path), "-n", "chat", "-y", code=1)
    service = sky.service()
    assert service["status"] == "FAILED"
    assert "FAILED_INITIAL_DELAY" in sky("serve", "status", "chat")


def test_an_engine_that_exits_at_once_shows_its_last_words(sky: Sky) -> None:
    sky("serve", "up", str(sky.yaml(1, EXIT="7")), "-n", "chat", "-y", code=1)
    assert "no such model: gpt-none" in sky.err
    shown = sky("serve", "status", "chat")
    assert "FAILED" in shown
    service = sky.service()
    assert service["status"] == "FAILED"
    assert "exit code 7" in json.dumps(service)
    sky("serve", "down", "chat", "-y")
    assert engines(sky) == []


def test_a_failing_setup_shows_its_last_words(sky: Sky) -> None:
    path = sky.yaml(1, extra="setup: |\n  echo cannot install; exit 3\n")
    sky("serve", "up", str(path), "-n", "chat", "-y", code=1)
    assert "cannot install" in sky.err
    assert "setup" in sky.err


def test_a_crash_loop_is_mended_by_an_update(sky: Sky) -> None:
    sky("serve", "up", str(sky.yaml(1, EXIT="7")), "-n", "chat", "-y", code=1)
    sky("serve", "update", "chat", str(sky.yaml(1)), "-y")
    assert sky.service()["status"] == "READY"


def test_an_engine_that_ignores_sigterm_is_gone_after_down_with_its_grandchildren(sky: Sky) -> None:
    sky.up("chat", 1, STUBBORN="1")
    assert len(engines(sky)) == 2
    sky("serve", "down", "chat", "-y")
    assert engines(sky) == []


def test_an_endpoint_port_in_use_is_passed_over(sky: Sky) -> None:
    with contextlib.ExitStack() as listeners:
        taken = set()
        for port in range(30001, 30006):
            listener = listeners.enter_context(socket.socket())
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):  # another program's, and just as good
                listener.bind(("127.0.0.1", port))
                listener.listen()
                taken.add(port)
        assert taken
        assert int(sky.up("chat", 1).rpartition(":")[2]) not in taken


def test_a_machine_too_small_is_refused_with_the_reason(sky: Sky) -> None:
    path = sky.yaml(1)
    path.write_text(path.read_text().replace("  ports: 8080", "  ports: 8080\n  accelerators: L4:8"))
    sky("serve", "up", str(path), "-n", "chat", "-y", code=1)
    assert "L4:8" in sky.err
    assert "No existing services" in sky("serve", "status")


def test_a_full_machine_keeps_replicas_pending_and_says_why(sky: Sky) -> None:
    cpus = os.cpu_count() or 1
    path = sky.yaml(2)
    path.write_text(path.read_text().replace("  ports: 8080", f"  ports: 8080\n  cpus: {cpus}"))
    sky("serve", "up", str(path), "-n", "chat", "-y", "--async")
    wait_for(lambda: len(sky.ready()) == 1, why="the first replica fits")
    pending = wait_for(lambda: [r for r in sky.replicas().values() if r["status"] == "PENDING"])
    assert "vCPU" in str(pending[0]["detail"])


def test_kill_9_at_any_moment_of_a_start_launches_nothing_twice(sky: Sky) -> None:
    sky("serve", "up", str(sky.yaml(2, START_S="1")), "-n", "chat", "-y", "--async")
    for pause_s in (0.0, 0.1, 0.2, 0.4, 0.8):
        sky("serve", "status")
        time.sleep(pause_s)
        os.kill(sky.controller_pid(), signal.SIGKILL)
    wait_for(lambda: set(sky.ready()) == {1, 2}, why="both become ready")
    assert len(engines(sky)) == 2


def test_secrets_are_nowhere_in_clear_but_in_the_secret_store(sky: Sky) -> None:
    path = sky.yaml(1, extra="secrets:\n  API_KEY: null\n")
    sky("serve", "up", str(path), "-n", "chat", "-y", "--secret", "API_KEY=hunter2hunter2")
    found = [p for p in sky.home.rglob("*") if p.is_file() and b"hunter2hunter2" in p.read_bytes()]
    assert all(p.is_relative_to(sky.home / "secrets") and p.stat().st_mode & 0o077 == 0 for p in found)
    everything = "".join(Path(f"/proc/{pid}/cmdline").read_text() for pid in processes_of(sky.home))
    assert "hunter2hunter2" not in everything
    assert "hunter2hunter2" not in sky("serve", "why", "chat", "-o", "json")


def test_kill_9_of_a_supervisor_brings_another_replica_and_leaves_no_engine(sky: Sky) -> None:
    sky.up("chat", 1)
    (supervisor,) = [pid for pid, line in processes_of(sky.home).items() if "bootstrap.py" in line]
    os.kill(supervisor, signal.SIGKILL)
    wait_for(lambda: set(sky.ready()) == {2}, why="the replacement is ready")
    assert len(engines(sky)) == 1


def test_kill_9_of_the_controller_while_a_service_goes_down(sky: Sky) -> None:
    sky.up("chat", 2)
    sky("serve", "down", "chat", "-y", "--async")
    os.kill(sky.controller_pid(), signal.SIGKILL)
    wait_for(lambda: "No existing services" in sky("serve", "status"), why="the successor finishes the job")
    assert engines(sky) == []


def test_kill_9_of_the_controller_in_the_middle_of_an_update(sky: Sky) -> None:
    sky.up("chat", 2, ENGINE_VERSION="1")
    sky("serve", "update", "chat", str(sky.yaml(2, ENGINE_VERSION="2")), "-y", "--async")
    for _ in range(3):
        time.sleep(0.4)
        os.kill(sky.controller_pid(), signal.SIGKILL)
        sky("serve", "status")
    wait_for(lambda: [r["version"] for r in sky.ready().values()] == [2, 2], why="version 2 has taken over")
    wait_for(lambda: len(engines(sky)) == 2, why="nothing of version 1 is left")


def test_a_door_that_hangs_is_replaced(sky: Sky) -> None:
    endpoint = sky.up("chat", 1)
    for pid in door_processes(sky.home):
        os.kill(pid, signal.SIGSTOP)

    def answers() -> bool:
        try:
            with urllib.request.urlopen(f"{endpoint}/x", timeout=1) as response:
                return bool(response.status == 200)
        except OSError:
            return False

    wait_for(answers, seconds=40, why="another door answers")


def test_garbage_on_the_doors_admin_socket_harms_nobody(sky: Sky) -> None:
    endpoint = sky.up("chat", 1)
    (path,) = [*sky.home.rglob("door.sock"), *Path("/tmp").glob(f"skyserve-{os.getuid()}/*.sock")][:1]
    for garbage in (b"\0" * 5000, b"{}\n", b'{"type":"table","number":1e99}\n', b"[" * 100_000 + b"\n"):
        with socket.socket(socket.AF_UNIX) as peer:
            peer.connect(str(path))
            peer.settimeout(5)
            with contextlib.suppress(BrokenPipeError):
                peer.sendall(garbage)
    with urllib.request.urlopen(f"{endpoint}/x", timeout=5) as response:
        assert response.status == 200
