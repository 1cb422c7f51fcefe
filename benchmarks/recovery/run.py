"""How long users notice that something died: `python benchmarks/recovery/run.py [--rounds N]`.

Serves a small engine with two replicas on this machine, keeps asking through the endpoint, and kills -9 one part after
the other: a replica's engine, the door, the controller. Prints, as medians over the rounds: requests that failed, and
the seconds until things were whole again. The engine's own start time, measured in the same run from launch to
readiness, is the reference that a replacement cannot beat.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

ENGINE = """\
import http.server, os, time
time.sleep(float(os.environ["START_S"]))
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        self.send_response(200); self.send_header("Content-Length", "2"); self.end_headers(); self.wfile.write(b"ok")
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"])); time.sleep(0.2); self.do_GET()
    def log_message(self, *args): pass
http.server.ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler).serve_forever()
"""

SERVICE = """\
service:
  readiness_probe: /health
  replicas: 2
  load_balancer: {retry: idempotent}
resources:
  ports: 8080
envs:
  START_S: "{start_s}"
run: exec {python} {engine}
"""


class Load:
    """Clients that keep asking; what failed is counted, refusals while nothing listens apart."""

    def __init__(self, port: int, clients: int = 4) -> None:
        self._port = port
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask) for _ in range(clients)]
        self.answered = 0
        self.failed = 0

    def _ask(self) -> None:
        while not self._stop.is_set():
            connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=30)
            try:
                connection.request("POST", "/work", b"{}")
                ok = connection.getresponse().status == 200
            except (OSError, http.client.HTTPException):
                ok = False
                time.sleep(0.005)
            finally:
                connection.close()
            self.answered += ok
            self.failed += not ok

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


class Installation:
    """A private SkyServe with one service."""

    def __init__(self, root: Path, start_s: float) -> None:
        self.root = root
        self.env = {**os.environ, "SKYSERVE_HOME": str(root / "home")}
        (root / "engine.py").write_text(ENGINE)
        text = SERVICE.format(start_s=start_s, python=sys.executable, engine=root / "engine.py")
        (root / "service.yaml").write_text(text)

    def sky(self, *args: str) -> str:
        command = [sys.executable, "-m", "skyserve.cli.main", *args]
        return subprocess.run(command, env=self.env, check=True, capture_output=True, text=True).stdout

    def replicas(self) -> list[dict[str, object]]:
        shown = json.loads(self.sky("serve", "status", "bench", "-o", "json"))
        return list(shown["services"][0]["replicas"])

    def ready(self) -> set[object]:
        return {row["id"] for row in self.replicas() if row["status"] == "READY"}

    def pids(self, word: str) -> list[int]:
        found = []
        for entry in Path("/proc").iterdir():
            try:
                line = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if entry.name.isdigit() and word.encode() in line and str(self.root).encode() in line:
                found.append(int(entry.name))
        return sorted(found)

    def decisions(self) -> list[dict[str, object]]:
        return list(json.loads(self.sky("serve", "why", "bench", "-o", "json"))["decisions"])


def until(what: Callable[[], object], seconds: float = 60.0) -> float:
    """Seconds until `what` is true."""
    began_at = time.monotonic()
    while not what():
        if time.monotonic() - began_at > seconds:
            raise SystemExit(f"still not true after {seconds:g}s")
        time.sleep(0.02)
    return time.monotonic() - began_at


def start_times(decisions: list[dict[str, object]]) -> dict[object, float]:
    """Seconds from launch to readiness, by replica, as the decision log tells them."""
    launched = {d["replica_id"]: float(str(d["at"])) for d in decisions if d["verb"] == "LAUNCH"}
    ready = {d["replica_id"]: float(str(d["at"])) for d in decisions if "-> READY" in str(d["text"])}
    return {id_: ready[id_] - at for id_, at in launched.items() if id_ in ready}


def answers(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def kill_replica(here: Installation, port: int) -> tuple[int, float]:
    before = here.ready()
    with Load(port) as load:
        time.sleep(1)
        killed_at = time.time()
        os.kill(here.pids("engine.py")[0], signal.SIGKILL)
        until(lambda: len(here.ready() - before) == 1)
        time.sleep(0.5)
    ready_at = max(float(str(d["at"])) for d in here.decisions() if "-> READY" in str(d["text"]))
    return load.failed, ready_at - killed_at


def kill_door(here: Installation, port: int) -> tuple[int, float]:
    for door in here.pids("skyserve.load_balancer"):
        os.kill(door, signal.SIGKILL)
    return 0, until(lambda: answers(port))


def kill_controller(here: Installation, port: int) -> tuple[int, float]:
    before = here.ready()
    pid = int(json.loads((here.root / "home/controller.json").read_text())["pid"])
    with Load(port) as load:
        os.kill(pid, signal.SIGKILL)
        time.sleep(1)
        took_s = until(lambda: here.ready() == before)
    return load.failed, took_s


def main() -> None:
    """Run the rounds and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--start-s", type=float, default=1.0, help="how long the engine takes to listen")
    options = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="sky-bench-"))
    here = Installation(root, options.start_s)
    try:
        here.sky("serve", "up", str(root / "service.yaml"), "-n", "bench", "-y")
        port = int(here.sky("serve", "status", "bench", "--endpoint").strip().rpartition(":")[2])
        results: dict[str, list[tuple[int, float]]] = {"replica": [], "door": [], "controller": []}
        for _ in range(options.rounds):
            results["replica"].append(kill_replica(here, port))
            results["door"].append(kill_door(here, port))
            results["controller"].append(kill_controller(here, port))
            time.sleep(31)  # readiness this long proves the version, and the next failure is a first one again
        reference = statistics.median(start_times(here.decisions()).values())
        report(results, reference)
    finally:
        subprocess.run(
            [sys.executable, "-m", "skyserve.cli.main", "serve", "down", "-a", "-y"], env=here.env, check=False
        )
        here.sky("controller", "stop")
        shutil.rmtree(root, ignore_errors=True)


def report(results: dict[str, list[tuple[int, float]]], reference: float) -> None:
    """The table, on stdout."""
    print(f"launch to readiness of the engine in this run: median {reference:.2f} s\n")
    print(f"{'killed -9':<12} {'failed requests':>16} {'whole again after, s':>22} {'beyond engine start, s':>24}")
    for what, rounds in results.items():
        failed = sum(count for count, _ in rounds)
        took_s = statistics.median(seconds for _, seconds in rounds)
        beyond = f"{took_s - reference:.2f}" if what == "replica" else "-"
        shown = "not asked" if what == "door" else str(failed)
        print(f"{what:<12} {shown:>16} {took_s:>22.2f} {beyond:>24}")


if __name__ == "__main__":
    main()
