"""How long a plan takes: the seven alternatives of the announcement's example over the prices that ship, and over a
made-up catalog of a million rows.

    python benchmarks/plan/run.py [--rows 1000000] [--runs 30]

Prints the first plan of a process (prices are read and unpacked), then the median and the 95th percentile of the
following ones, and the memory of the process. Ends with 1 when a median is above its limit.
"""

from __future__ import annotations

import argparse
import itertools
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from skyserve.catalog import query, snapshot
from skyserve.catalog.row import X86_64, Row, Source
from skyserve.model.accelerators import NAMES
from skyserve.model.resources import Accelerator, ResourceChoice, Resources

ASKED = (("L4", 8), ("A10G", 8), ("A100", 4), ("A100", 8), ("A100-80GB", 2), ("A100-80GB", 4), ("A100-80GB", 8))
WANTED = ResourceChoice(tuple(Resources(accelerators=Accelerator(name, count)) for name, count in ASKED))
LIMITS_MS = {"built-in": 20.0, "made-up": 200.0}
CLOUDS = 10
COUNTS = (1, 2, 4, 8)
SHAPES = 2
"""Instance types with the same accelerators."""


def main() -> int:
    """Measure both, each in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows of the made-up catalog")
    parser.add_argument("--runs", type=int, default=30, help="plans that are timed")
    parser.add_argument("--only", nargs=2, metavar=("NAME", "HOME"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        return measure(options.only[0], Path(options.only[1]), options.runs)
    with tempfile.TemporaryDirectory() as folder:
        made_up = Path(folder) / "made-up"
        make_up(made_up, options.rows)
        homes = {"built-in": Path(folder) / "empty", "made-up": made_up}
        runs = ["--runs", str(options.runs)]
        commands = [[sys.executable, __file__, *runs, "--only", name, str(home)] for name, home in homes.items()]
        return max(subprocess.run(command, check=False).returncode for command in commands)


def measure(name: str, home: Path, runs: int) -> int:
    """Time plans over the catalog of `home` and print what was found."""
    started_at = time.perf_counter()
    table = snapshot.current(home)
    found = query.feasible(table, WANTED)
    first_ms = (time.perf_counter() - started_at) * 1000
    times_ms = []
    for _ in range(runs):
        started_at = time.perf_counter()
        found = query.feasible(table, WANTED)
        groups = query.cheapest_per_group(found.offerings)
        times_ms.append((time.perf_counter() - started_at) * 1000)
    median, late = statistics.median(times_ms), statistics.quantiles(times_ms, n=20)[-1]
    rows = sum(table.rows_with(cloud, one) for cloud in table.clouds for one in table.accelerators_of(cloud))
    print(f"{name}: {rows:,} rows, {len(found.offerings):,} offerings, {len(groups)} lines of the plan")
    print(f"  first plan, with reading   {first_ms:7.1f} ms")
    print(f"  plan, p50 (limit {LIMITS_MS[name]:g} ms)  {median:7.1f} ms")
    print(f"  plan, p95                  {late:7.1f} ms")
    print(f"  memory (RSS, peak)         {peak_mib():7.1f} MiB", flush=True)
    return int(median > LIMITS_MS[name])


def peak_mib() -> float:
    """Most memory that this process had at any time. What `getrusage` says on Linux can be the parent's."""
    status = Path("/proc/self/status")
    if status.exists():
        return int(status.read_text().partition("VmHWM:")[2].split()[0]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2


def make_up(home: Path, rows: int) -> None:
    """A catalog of about so many rows, spread evenly over clouds, accelerators, counts, shapes and places."""
    places = max(1, round(rows / (CLOUDS * len(NAMES) * len(COUNTS) * SHAPES)))
    packed = {}
    for number in range(CLOUDS):
        cloud = f"cloud{number}"
        packed[cloud] = snapshot.pack(cloud, rows_of(cloud, places), [Source("made-up", "made up")])
    snapshot.write_folder(home / "catalog" / "chosen", packed)


def rows_of(cloud: str, places: int) -> Iterator[Row]:
    """Every accelerator in every count, shape and place, at prices that differ."""
    for name, count, shape, place in itertools.product(NAMES, COUNTS, range(SHAPES), range(places)):
        price = count * (1 + len(name) * 0.3 + (place * 37 + shape * 11 + len(cloud)) % 101 / 100)
        region, zone = f"region-{place // 3}", f"region-{place // 3}-{'abc'[place % 3]}"
        kind = f"{name.lower()}-{count}-{'sl'[shape]}"
        cpus = 8.0 * count * (shape + 1)
        hardware = (float(count), 24.0, cpus, cpus * 4, X86_64)
        spot = round(price * 0.4, 4)
        yield Row(cloud, kind, region, zone, name, *hardware, round(price, 4), spot, 1, "2026-01-01", "made-up")


if __name__ == "__main__":
    sys.exit(main())
