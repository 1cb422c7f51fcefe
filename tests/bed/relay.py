"""A slow link between two namespaces: a process that reads packets at one end and writes them at the other, later.

This kernel's own delay (netem) is not to be had everywhere, so packets go through two TUN devices and a queue. Run as a
program with two file descriptors and the delay: it needs no privilege and only the standard library.
"""

from __future__ import annotations

import contextlib
import fcntl
import heapq
import os
import select
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Final

_TUNSETIFF: Final = 0x400454CA
_IFF_TUN, _IFF_NO_PI = 0x0001, 0x1000
_LARGEST = 65_535
_LONGEST_QUEUE = 20_000


class Relay:
    """A device `name` in the calling thread's namespace and a device `wan` in another one, `delay_s` apart."""

    def __init__(self, name: str, elsewhere: Callable[[Callable[[], int]], int], delay_s: float) -> None:
        here = _tun(name)
        try:
            there = elsewhere(lambda: _tun("wan"))
        except BaseException:
            os.close(here)
            raise
        argv = [sys.executable, "-I", __file__, str(here), str(there), str(delay_s)]
        self._process = subprocess.Popen(argv, stdin=subprocess.PIPE, pass_fds=(here, there))
        os.close(here)
        os.close(there)

    def close(self) -> None:
        """Remove both devices."""
        self._process.kill()
        self._process.wait()
        if self._process.stdin is not None:
            self._process.stdin.close()


def _tun(name: str) -> int:
    """Make a TUN device in the calling thread's namespace; it lives as long as the descriptor."""
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TUN | _IFF_NO_PI))
    except OSError:
        os.close(fd)
        raise
    return fd


def pump(ends: Sequence[int], lifeline: int, delay_s: float) -> None:
    """Carry packets both ways until the lifeline ends."""
    queue: list[tuple[float, int, int, bytes]] = []
    number = 0
    while True:
        wait_s = max(0.0, queue[0][0] - time.monotonic()) if queue else None
        readable, _, _ = select.select([*ends, lifeline], [], [], wait_s)
        if lifeline in readable:
            return
        for end in readable:
            other = ends[1] if end == ends[0] else ends[0]
            with contextlib.suppress(BlockingIOError):
                while len(queue) < _LONGEST_QUEUE:
                    packet = os.read(end, _LARGEST)
                    number += 1
                    heapq.heappush(queue, (time.monotonic() + delay_s, number, other, packet))
        now = time.monotonic()
        while queue and queue[0][0] <= now:
            _, _, end, packet = heapq.heappop(queue)
            with contextlib.suppress(OSError):  # the device is down: the packet is lost
                os.write(end, packet)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    pump((int(sys.argv[1]), int(sys.argv[2])), sys.stdin.fileno(), float(sys.argv[3]))
