"""Ten thousand streams that say nothing, in one process of the door: each is there, costs little, and is let go."""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.load_balancer.test_door_process import Process, door, table

from skyserve.load_balancer.__main__ import OTHER_FILES, _raise_file_limit

__all__ = ["door"]

STREAMS = 10_000
MOST_KIB = 20
"""Memory that a silent stream may take."""

HERE = Path(__file__).parent

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks at memory in /proc")


@contextmanager
def end(*args: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, str(HERE / "streams.py"), *args]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def say(process: subprocess.Popen[str]) -> None:
    process.stdin.write("\n")
    process.stdin.flush()


def rss_kib(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:"))


def descriptors() -> int:
    """How many a door may have here. It raises its own limit as far as it may; so does whoever asks."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _raise_file_limit()
    resource.setrlimit(resource.RLIMIT_NOFILE, (before[0], resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    return most


def test_ten_thousand_silent_streams(door: Process) -> None:
    count = min(STREAMS, (descriptors() - OTHER_FILES) // 2)
    process = door.start()
    controller, _ = door.controller()
    with end("replica") as replica:
        controller.say(table(1, {1: f"127.0.0.1:{int(replica.stdout.readline())}"}))
        controller.hear_until(lambda report: report.load.table == 1)
        before = rss_kib(process.pid)
        with end("clients", str(door.port), str(count)) as clients:
            assert int(clients.stdout.readline()) == count, "every stream has begun"
            controller.hear_until(lambda report: report.load.in_flight == {1: count})
            each = (rss_kib(process.pid) - before) / count
            assert each <= MOST_KIB
            say(replica)
            heard, deadline = 0, time.monotonic() + 20.0
            while heard < count:
                assert time.monotonic() < deadline, f"{heard} of {count} streams have heard the event"
                say(clients)
                heard = int(clients.stdout.readline())
        controller.hear_until(lambda report: report.load.in_flight == {1: 0})
        for _ in range(3):
            report = controller.hear_until(lambda report: True)
            assert (report.load.in_flight, report.load.held, report.responses) == ({1: 0}, 0, {200: count})
    if count < STREAMS:
        pytest.skip(f"held {count} streams, {each:.1f} KiB each: a process may have {descriptors()} descriptors here")


def test_the_limit_of_descriptors_is_raised_as_far_as_may_be() -> None:
    """In a process of its own: what is lowered for good cannot be raised by everybody."""
    code = (
        "import resource as r\n"
        "from skyserve.load_balancer.__main__ import _raise_file_limit as up\n"
        "hard = r.getrlimit(r.RLIMIT_NOFILE)[1]\n"
        "r.setrlimit(r.RLIMIT_NOFILE, (256, hard))\n"
        "print(up(), hard, *r.getrlimit(r.RLIMIT_NOFILE))"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    most, hard, soft, now = map(int, said.split())
    assert most == soft == now >= hard
