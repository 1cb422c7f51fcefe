"""A real engine on this machine, driven by its load: steps of it, and to zero and back, again and again.

    python benchmarks/autoscale/live.py                 fifty cycles; a quarter of an hour
    python benchmarks/autoscale/live.py --cycles 3

Each cycle: the service is at zero; the first request comes, is held and answered; a step to forty at once follows; then
there is silence until nothing runs any more. Told are how long the first request took beside the engine's own start,
how long the decision after the step took, and how many requests failed. The engine and its model are those of
examples/quickstart, with answers of a few tokens.
"""

from __future__ import annotations

import argparse
import json
import os
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

EXAMPLE = Path(__file__).parents[2] / "examples" / "quickstart" / "service.yaml"
POLICY = """\
  replica_policy:
    min_replicas: 0
    max_replicas: 2
    target_ongoing_requests_per_replica: 8
    downscale_delay_seconds: 1
"""
ASKED = {"model": "smollm2-135m", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2, "temperature": 0}
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@dataclass
class Tally:
    """What was seen. Durations are seconds."""

    first_s: list[float] = field(default_factory=list)
    start_s: list[float] = field(default_factory=list)
    decided_s: list[float] = field(default_factory=list)
    requests: int = 0
    failed: list[str] = field(default_factory=list)


class Service:
    """The service under an installation of its own."""

    def __init__(self, home: Path) -> None:
        self._env = {**os.environ, "SKYSERVE_HOME": str(home)}
        self._database = home / "state.db"
        self._file = home.parent / "service.yaml"
        lines = EXAMPLE.read_text().splitlines(keepends=True)
        self._file.write_text("".join(POLICY if line.startswith("  replicas:") else line for line in lines))
        self.endpoint = ""

    def sky(self, *words: str) -> str:
        command = [sys.executable, "-m", "skyserve.cli.main", *words]
        done = subprocess.run(command, env=self._env, capture_output=True, text=True, timeout=900)
        if done.returncode:
            raise SystemExit(f"sky {' '.join(words)} failed:\n{done.stderr}")
        return done.stdout

    def up(self) -> None:
        self.sky("serve", "up", str(self._file), "-n", "live", "-y")
        self.endpoint = self.sky("serve", "status", "live", "--endpoint").strip()

    def rows(self, query: str, *values: object) -> list[tuple[str, ...]]:
        with closing(sqlite3.connect(f"file:{self._database}?mode=ro", uri=True, timeout=10)) as connection:
            return connection.execute(query, values).fetchall()

    def replicas(self) -> list[dict[str, object]]:
        (service,) = json.loads(self.sky("serve", "status", "live", "-o", "json"))["services"]
        return [one for one in service["replicas"] if "FAILED" not in one["status"]]

    def wanted_since(self, count: int, since_at: float) -> float | None:
        """When so many replicas were first wanted after an instant, Unix seconds."""
        found = self.rows("select observation, plan from decisions order by seq desc limit 60")
        instants = [json.loads(seen)["now"] for seen, plan in found if json.loads(plan)["target"] >= count]
        return min((at for at in instants if at >= since_at), default=None)

    def last_start_s(self) -> float:
        """How long the last replica took from its launch to its readiness."""
        ((plan,),) = self.rows("select plan from decisions order by seq desc limit 1")
        return float(json.loads(plan)["memory"]["starts"][-1])

    def ask(self, tally: Tally) -> float:
        """One request; how long it took."""
        begun = time.monotonic()
        tally.requests += 1
        request = urllib.request.Request(
            f"{self.endpoint}/v1/chat/completions", json.dumps(ASKED).encode(), {"Content-Type": "application/json"}
        )
        try:
            with DIRECT.open(request, timeout=120) as answer:
                answer.read()
        except (urllib.error.URLError, OSError) as error:
            tally.failed.append(str(error))
        return time.monotonic() - begun


def until(what: Callable[[], object], seconds: float, why: str) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        if time.monotonic() > deadline:
            raise SystemExit(f"waited {seconds:g}s in vain: {why}")
        time.sleep(0.5)


def cycle(service: Service, tally: Tally) -> None:
    """From zero, and back to it."""
    began_at = time.time()
    tally.first_s.append(service.ask(tally))
    tally.start_s.append(service.last_start_s())
    with ThreadPoolExecutor(40) as pool:
        stepped_at = time.time()
        asked = [pool.submit(service.ask, tally) for _ in range(40)]
        until(lambda: service.wanted_since(2, began_at) is not None, 30, "two replicas are wanted")
        for one in asked:
            one.result()
    decided_at = service.wanted_since(2, began_at)
    if decided_at is not None:
        tally.decided_s.append(decided_at - stepped_at)
    until(lambda: not service.replicas(), 120, "nothing runs any more")


def told(name: str, values: Sequence[float]) -> str:
    return f"{name}: median {statistics.median(values):.2f} s, most {max(values):.2f} s"


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cycles", type=int, default=50)
    options = parser.parse_args(arguments)
    tally = Tally()
    with tempfile.TemporaryDirectory(prefix="sky-") as root:
        service = Service(Path(root) / "home")
        try:
            service.up()
            until(lambda: not service.replicas(), 120, "the service goes to zero")
            for number in range(1, options.cycles + 1):
                cycle(service, tally)
                print(
                    f"cycle {number}: first request {tally.first_s[-1]:.2f} s, {len(tally.failed)} failed", flush=True
                )
        finally:
            service.sky("serve", "down", "--all", "-y")
            service.sky("controller", "stop")
    print(told("first request after zero", tally.first_s))
    print(told("the replica's own start", tally.start_s))
    print(told("decision after the step", tally.decided_s))
    print(f"{tally.requests} requests, {len(tally.failed)} failed {tally.failed[:3]}")
    return 1 if tally.failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
