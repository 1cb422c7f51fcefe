"""How many workers a door has when nobody says: as many as there are CPUs for them, within reason.

It knows where Linux tells what a process may use, and nothing of workers themselves.
"""

from __future__ import annotations

import math
import os
from pathlib import Path

MOST = 4
"""Enough for what the replicas of most services say: more workers cost memory, and share the load less evenly."""

ROOT = Path("/")


def usual_workers(root: Path = ROOT) -> int:
    """One worker for each CPU that may be used, and no more than `MOST`."""
    return max(1, min(MOST, usable_cpus(root)))


def usable_cpus(root: Path = ROOT) -> int:
    """CPUs that this process may run on: those it is bound to, and of their time what its control groups allow."""
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min([bound, *(math.ceil(share) for share in _shares(root))])


def _shares(root: Path) -> list[float]:
    """CPUs' worth of time that each of the control groups around this process allows, of the second version of them."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    mine = next((line[len("0::/") :] for line in lines if line.startswith("0::/")), None)
    if mine is None:
        return []
    top = root / "sys/fs/cgroup"
    group = top / mine
    return [share for one in (group, *group.parents) if one.is_relative_to(top) and (share := _share(one))]


def _share(group: Path) -> float | None:
    try:
        quota, period = (group / "cpu.max").read_text().split()
        return int(quota) / int(period)
    except (OSError, ValueError):  # no such file, or the word that says: as much as there is
        return None
