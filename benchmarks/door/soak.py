"""Hours of a door's life in minutes: `python benchmarks/door/soak.py [--minutes 30] [--workers 1]`.

Short requests, streams, uploads, downloads and clients that leave in the middle, all at once, while replicas join,
drain and end. Prints a line a minute. Fails when an answer was bad, when requests are counted in flight after the last
one, or when memory grew by more than a fifth from the first third of the time to the last.
"""

from __future__ import annotations

import argparse
import json
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from peers import HERE, Target, free_port, started, wait_for

from skyserve.load_balancer import wire
from skyserve.model.routing import Endpoint, RoutingTable
from skyserve.model.service import LoadBalancer

KINDS = (("post", 16, 0), ("stream", 64, 20), ("upload", 1, 0), ("download", 1, 0))
PASS_S = 5
REPLICA_LIFE_S = 8.0
MOST_GROWTH = 1.2


class Controller:
    """Pushes tables to the door and hears its reports."""

    def __init__(self, path: Path, workers: int) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        deadline = time.monotonic() + 10.0
        while self._socket.connect_ex(str(path)):  # it comes a moment after the port
            if time.monotonic() > deadline:
                raise TimeoutError(f"nobody listens at {path}")
            time.sleep(0.02)
        self._settings = LoadBalancer(workers=workers)
        self._number = 0
        self.report: wire.DoorReport | None = None
        threading.Thread(target=self._listen, daemon=True).start()

    def publish(self, serving: dict[int, int], draining: dict[int, int]) -> None:
        """A table of replicas, by id and port."""
        self._number += 1
        rows = [Endpoint(id_, f"127.0.0.1:{port}") for id_, port in serving.items()]
        rows += [Endpoint(id_, f"127.0.0.1:{port}", draining=True) for id_, port in draining.items()]
        table = RoutingTable(self._number, settings=self._settings, endpoints=tuple(rows))
        self._socket.sendall(wire.encode_table(table))

    def drained(self, replica_id: int) -> bool:
        """Whether the door obeys the last table and has nothing on a replica any more."""
        load = self.report.load if self.report else None
        return load is not None and load.table >= self._number and not load.in_flight.get(replica_id)

    def _listen(self) -> None:
        for line in self._socket.makefile("rb"):
            word = wire.decode_report(line, at=0.0)
            if isinstance(word, wire.DoorReport):
                self.report = word


def main() -> int:
    """Run; 1 when something was wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    end = time.monotonic() + options.minutes * 60
    with tempfile.TemporaryDirectory() as folder:
        home, port = Path(folder), free_port()
        command = [sys.executable, "-m", "skyserve.load_balancer", "--service", "soak", "--dir", str(home)]
        with started([*command, "--port", str(port), "--socket", str(home / "admin.sock")]) as process:
            wait_for(port)
            controller = Controller(home / "admin.sock", options.workers)
            found: list[dict[str, float]] = []
            loads = [threading.Thread(target=drive, args=(port, *kind, end, found)) for kind in KINDS]
            loads.append(threading.Thread(target=leave, args=(port, end)))
            for load in loads:
                load.start()
            memory = rotate(controller, Target("door", port, process.pid), end)
            for load in loads:
                load.join()
            return judge(controller, found, memory)


def drive(port: int, kind: str, count: int, rate: int, end: float, found: list[dict[str, float]]) -> None:
    """One kind of load, pass after pass."""
    command = [sys.executable, str(HERE / "load.py"), str(port), kind, str(count), str(PASS_S), str(rate)]
    while time.monotonic() < end:
        run = subprocess.run(command, capture_output=True, text=True, check=False)
        found.append(json.loads(run.stdout) if run.returncode == 0 else {"done": 0, "bad": 1})


def leave(port: int, end: float) -> None:
    """Clients that go away at any moment."""
    rng = random.Random(1)
    while time.monotonic() < end:
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.sendall(b"GET /1000/20 HTTP/1.1\r\nHost: x\r\n\r\n")
            time.sleep(rng.random() * 0.2)


def rotate(controller: Controller, door: Target, end: float) -> list[int]:
    """Replicas join, drain and end; the door's memory, now and then."""
    lives: dict[int, tuple[subprocess.Popen[str], int]] = {}
    memory: list[int] = []
    next_id, told_at = 1, time.monotonic()
    while time.monotonic() < end:
        while len(lives) < 3:
            command = [sys.executable, str(HERE / "origin.py"), "1"]
            process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
            lives[next_id] = (process, int(process.stdout.readline()))
            next_id += 1
        ports = {id_: port for id_, (_, port) in lives.items()}
        controller.publish(ports, {})
        time.sleep(REPLICA_LIFE_S)
        oldest = min(ports)
        controller.publish({id_: port for id_, port in ports.items() if id_ != oldest}, {oldest: ports[oldest]})
        while not controller.drained(oldest):
            time.sleep(0.05)
        process, _ = lives.pop(oldest)
        process.kill()
        process.communicate()
        memory.append(door.rss_kib())
        if time.monotonic() - told_at >= 60:
            told_at = time.monotonic()
            load = controller.report.load
            print(
                f"{load.requests_total} requests, {next_id - 1} replicas so far, {memory[-1] / 1024:.0f} MiB",
                flush=True,
            )
    controller.publish({id_: port for id_, (_, port) in lives.items()}, {})
    time.sleep(PASS_S * 3)  # for those who are still at it
    for process, _ in lives.values():
        process.kill()
        process.communicate()
    return memory


def judge(controller: Controller, found: list[dict[str, float]], memory: list[int]) -> int:
    """Say what was found; 1 when it is not good."""
    time.sleep(2.0)
    load, third = controller.report.load, max(1, len(memory) // 3)
    growth = statistics.median(memory[-third:]) / statistics.median(memory[:third])
    bad, left = sum(int(one["bad"]) for one in found), sum(load.in_flight.values()) + load.held
    print(f"{load.requests_total} requests, {bad} bad, {left} left in flight, memory x {growth:.2f}")
    return int(bool(bad) or bool(left) or growth > MOST_GROWTH)


if __name__ == "__main__":
    sys.exit(main())
