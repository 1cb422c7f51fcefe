"""The real process: its command line, its back entrance, its files, its end."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from skyserve.load_balancer.__main__ import EXIT_PORT_IN_USE
from skyserve.load_balancer.wire import DoorReport, Hello, Stop, decode_report, encode_stop, encode_table
from skyserve.model.routing import Endpoint, RoutingTable
from skyserve.model.service import LoadBalancer

GET = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


def table(number: int, replicas: dict[int, str]) -> bytes:
    """A table for a door of one process: what is tested here is that process. Several are in `test_door_workers.py`."""
    rows = tuple(Endpoint(id_, address) for id_, address in replicas.items())
    return encode_table(RoutingTable(number, settings=LoadBalancer(workers=1), endpoints=rows))


class Controller:
    """One end of the admin socket."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(5.0)
        try:
            self._socket.connect(str(path))
        except OSError:
            self._socket.close()
            raise
        self._file = self._socket.makefile("rb")

    def say(self, line: bytes) -> None:
        self._socket.sendall(line)

    def hear(self) -> Hello | DoorReport:
        return decode_report(self._file.readline(), at=1.0)

    def hear_until(self, condition) -> DoorReport:
        deadline = time.monotonic() + 5.0
        while time.monotonic() < deadline:
            word = self.hear()
            if isinstance(word, DoorReport) and condition(word):
                return word
        raise AssertionError("it was not heard")

    def close(self) -> None:
        self._file.close()
        self._socket.close()


class Process:
    """A door and those who talk to it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.admin = directory / "run" / "door.sock"
        self._processes: list[subprocess.Popen[bytes]] = []
        self._controllers: list[Controller] = []
        self.port = 0

    def start(self, port: int = 0, *more: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "skyserve.load_balancer", "--service", "s", "--dir", str(self.directory)]
        command += ["--port", str(port), "--socket", str(self.admin), *more]
        process = subprocess.Popen(command, stderr=subprocess.PIPE)
        self._processes.append(process)
        return process

    def controller(self) -> tuple[Controller, Hello]:
        deadline = time.monotonic() + 10.0
        while True:
            try:
                controller = Controller(self.admin)
                break
            except OSError:
                assert time.monotonic() < deadline
                time.sleep(0.01)
        self._controllers.append(controller)
        hello = controller.hear()
        assert isinstance(hello, Hello)
        self.port = hello.port
        return controller, hello

    def ask(self, request: bytes = GET) -> bytes:
        with socket.create_connection(("127.0.0.1", self.port), timeout=5.0) as client:
            client.sendall(request)
            answer = b""
            while data := client.recv(65536):
                answer += data
        return answer

    def clean_up(self) -> None:
        for controller in self._controllers:
            controller.close()
        for process in self._processes:
            process.kill()
            process.wait()
            process.stderr.close()


@pytest.fixture
def door(tmp_path: Path) -> Iterator[Process]:
    process = Process(tmp_path)
    yield process
    process.clean_up()


@pytest.fixture
def replica() -> Iterator[str]:
    """The address of a replica in a process of its own; it answers `ok`."""
    code = (
        "import http.server as h, sys\n"
        "class H(h.BaseHTTPRequestHandler):\n"
        "    def do_GET(self):\n"
        "        self.send_response(200); self.send_header('Content-Length', '2'); self.end_headers()\n"
        "        self.wfile.write(b'ok')\n"
        "    def log_message(self, *a): pass\n"
        "s = h.ThreadingHTTPServer(('127.0.0.1', 0), H)\n"
        "print(s.server_port, flush=True)\n"
        "s.serve_forever()\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    yield f"127.0.0.1:{int(process.stdout.readline())}"
    process.kill()
    process.wait()
    process.stdout.close()


def test_from_the_first_word_to_the_last(door: Process, replica: str) -> None:
    process = door.start()
    controller, hello = door.controller()
    assert (hello.pid, hello.table) == (process.pid, 0)
    first = controller.hear()
    assert (first.load.boot, first.load.held) == (hello.boot, 0)
    assert stat.S_IMODE(door.admin.stat().st_mode) == 0o600
    assert stat.S_IMODE(door.admin.parent.stat().st_mode) == 0o700

    with socket.create_connection(("127.0.0.1", door.port), timeout=5.0) as waiting:
        waiting.sendall(GET)
        controller.hear_until(lambda report: report.load.held == 1)
        controller.say(table(5, {3: replica}))
        assert waiting.recv(65536).startswith(b"HTTP/1.1 200")
    report = controller.hear_until(lambda report: report.responses.get(200) == 1)
    assert (report.load.table, report.load.in_flight, report.load.requests_total) == (5, {3: 0}, 1)

    assert stat.S_IMODE((door.directory / "table.json").stat().st_mode) == 0o600
    controller.say(table(5, {}))  # not newer: not obeyed
    assert door.ask().endswith(b"ok")
    second, hello = door.controller()
    assert hello.table == 5

    second.say(encode_stop(Stop(5.0)))
    assert process.wait(5.0) == 0
    assert sorted(path.name for path in door.directory.iterdir()) == ["run", "table.json"]
    assert list(door.admin.parent.iterdir()) == []
    log = process.stderr.read()
    assert b"Traceback" not in log
    assert len(log.splitlines()) == 2


def test_a_door_without_a_controller_serves_on_from_its_last_table(door: Process, replica: str) -> None:
    process = door.start()
    controller, _ = door.controller()
    controller.say(table(7, {1: replica}))
    controller.hear_until(lambda report: report.load.table == 7)
    process.kill()
    process.wait()
    assert door.admin.exists()  # left behind, and replaced
    process = door.start()
    _, hello = door.controller()
    assert hello.table == 7
    assert door.ask().endswith(b"ok")
    process.send_signal(signal.SIGTERM)
    assert process.wait(5.0) == 0


def test_a_table_file_that_is_broken_does_not_matter(door: Process) -> None:
    (door.directory / "table.json").write_bytes(b'{"type":"table","numb')
    door.start()
    assert door.controller()[1].table == 0


def test_a_port_in_use_has_its_own_exit_code(door: Process) -> None:
    door.start()
    door.controller()
    second = door.start(door.port)
    assert second.wait(10.0) == EXIT_PORT_IN_USE == 98
    assert b"Address already in use" in second.stderr.read()
    door.controller()  # the first one's socket is still there


def test_a_suspect_is_told_at_once(door: Process) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, but nobody listens
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        door.start()
        controller, _ = door.controller()
        controller.say(table(1, {4: address}))
        controller.hear_until(lambda report: report.load.table == 1)
        with socket.create_connection(("127.0.0.1", door.port)) as client:
            client.sendall(GET)
            asked_at = time.monotonic()
            controller.hear_until(lambda report: report.suspects == (4,))
            assert time.monotonic() - asked_at < 0.9


def test_metrics_are_there_for_who_asks_in_http(door: Process, replica: str) -> None:
    door.start()
    controller, _ = door.controller()
    controller.say(table(5, {3: replica}))
    controller.hear_until(lambda report: report.load.table == 5)
    for _ in range(3):
        assert door.ask().endswith(b"ok")
    door.ask(b"nonsense\n\n")
    page = scrape(door.admin, "/metrics")
    assert page.startswith("HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\n")
    found = numbers(page.partition("\r\n\r\n")[2])
    assert found["skyserve_door_requests_total"] == 3
    assert found['skyserve_door_responses_total{code="200"}'] == 3
    assert found['skyserve_door_responses_total{code="400"}'] == 1
    assert found['skyserve_door_in_flight{replica="3"}'] == 0
    assert found["skyserve_door_response_body_bytes_total"] == 6
    assert found['skyserve_door_first_byte_seconds_bucket{le="+Inf"}'] == 3
    assert found["skyserve_door_request_seconds_count"] == 3
    assert found["skyserve_door_request_seconds_sum"] >= found["skyserve_door_first_byte_seconds_sum"]
    deadline = time.monotonic() + 10.0
    while not numbers(scrape(door.admin, "/metrics").partition("\r\n\r\n")[2])["skyserve_door_loop_lag_seconds_count"]:
        assert time.monotonic() < deadline
    assert found["skyserve_door_table_number"] == 5
    assert scrape(door.admin, "/other").startswith("HTTP/1.1 404")
    assert isinstance(controller.hear(), DoorReport), "the controller is not disturbed"


def scrape(path: Path, target: str) -> str:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(5.0)
        client.connect(str(path))
        client.sendall(f"GET {target} HTTP/1.1\r\nHost: door\r\n\r\n".encode())
        answer = b""
        while data := client.recv(65536):
            answer += data
    return answer.decode()


def numbers(text: str) -> dict[str, float]:
    """The samples of a page; each family says first what it is."""
    found: dict[str, float] = {}
    known: set[str] = set()
    for line in text.splitlines():
        if line.startswith("# TYPE "):
            known.add(line.split(" ")[2])
        elif not line.startswith("#"):
            name, _, value = line.rpartition(" ")
            family = name.partition("{")[0]
            assert family in known or family.rpartition("_")[0] in known
            assert name not in found
            found[name] = float(value)
    return found


def test_reports_to_one_controller_after_another_count_each_request_once(door: Process, replica: str) -> None:
    door.start()
    first, _ = door.controller()
    first.say(table(1, {3: replica}))
    for asked in range(1, 4):
        assert door.ask().endswith(b"ok")
        first.hear_until(lambda report, asked=asked: report.load.requests_total == asked)
    first.close()
    assert door.ask().endswith(b"ok")  # while nobody listens
    second, hello = door.controller()
    report = second.hear_until(lambda report: True)
    assert (report.load.boot, report.load.requests_total, report.responses) == (hello.boot, 4, {200: 4})


def test_nonsense_ends_only_its_own_admin_connection(door: Process) -> None:
    door.start()
    first, _ = door.controller()
    second, _ = door.controller()
    first.say(b'{"type":"dance"}\n')
    with pytest.raises((ValueError, ConnectionError)):
        first.hear_until(lambda report: False)
    assert isinstance(second.hear(), DoorReport)


def test_it_imports_little() -> None:
    code = (
        "import sys; before = set(sys.modules)\n"
        "import skyserve.load_balancer.__main__\n"
        "print('\\n'.join(set(sys.modules) - before))"
    )
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True).stdout.split()
    ours = {name for name in modules if name.startswith("skyserve.") and "load_balancer" not in name}
    assert ours <= {
        f"skyserve.{name}"
        for name in [
            "model",
            "model.evidence",
            "model.routing",
            "model.service",
            "model.resources",
            "model.rollout",
            "model.scaling",
            "clock",
            "trust",
        ]
    }
    outside = {name.partition(".")[0] for name in modules} - set(sys.stdlib_module_names) - {"skyserve"}
    assert {name for name in outside if not name.startswith("_")} == set()


def test_reports_come_every_second_and_carry_plain_json(door: Process) -> None:
    door.start()
    controller, _ = door.controller()
    started_at = time.monotonic()
    words = [json.loads(controller._file.readline()) for _ in range(2)]
    assert time.monotonic() - started_at < 1.9
    assert set(words[1]) == set(
        [
            "type",
            "boot",
            "table",
            "in_flight",
            "held",
            "requests_total",
            "arrivals_per_s",
            "window_s",
            "burst_arrivals_per_s",
            "burst_window_s",
            "ongoing",
            "burst_ongoing",
            "steady_ongoing",
            "quiet",
            "first_byte",
            "whole",
            "done_per_s",
            "busy",
            "versions",
            "suspects",
            "responses",
            "retries",
        ]
    )


def test_the_standard_loop_will_do(tmp_path: Path) -> None:
    """Without uvloop the same door runs on asyncio's own loop."""
    (tmp_path / "uvloop.py").write_text("raise ImportError('not here')\n")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    code = "from skyserve.load_balancer.__main__ import _loop_factory as f; print(f().__module__)"
    found = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, check=True, text=True, env=environment
    )
    assert found.stdout.startswith("asyncio.")
