"""Private networks: namespaces that belong to this process, and whether they are to be had here at all.

A namespace is a file descriptor held by this process: closing it removes the namespace with all its links, and so does
the end of this process, however it ends. Being in a namespace is a matter of threads: each has what the thread that
started it had then, and so has each child process. Must not know what is built in a namespace.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

T = TypeVar("T")

PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

TOOLS: Final = {
    "ip": "iproute2",
    "bridge": "iproute2",
    "nft": "nftables",
    "sshd": "openssh-server",
    "ssh": "openssh-client",
    "ssh-keygen": "openssh-client",
    "unshare": "util-linux",
    "nsenter": "util-linux",
    "mount": "mount",
}
"""The commands that a bed runs, and the packages of Debian that have them."""

_CLONE_NEWNS: Final = 0x00020000
_CLONE_NEWNET: Final = 0x40000000
_ours: Final[set[str]] = set()
_libc = ctypes.CDLL(None, use_errno=True)


class CommandFailed(Exception):
    """A command of the bed's failed; the message has its output."""


def command(argv: Sequence[str], text: str = "") -> str:
    """Run a tool with `text` as its input and return what it printed. Raises CommandFailed."""
    done = subprocess.run(argv, input=text, capture_output=True, text=True, timeout=30, env={"PATH": PATH}, check=False)
    if done.returncode != 0:
        raise CommandFailed(f"{' '.join(argv)} exited with {done.returncode}: {done.stderr.strip()}\n{text}")
    return done.stdout


class Namespace:
    """A network namespace, alive until `close` or until this process ends."""

    def __init__(self) -> None:
        self._fd = _in_thread(_new_namespace)

    @property
    def path(self) -> str:
        """A name of it that other processes can open while we hold it."""
        return f"/proc/{os.getpid()}/fd/{self._fd}"

    def run(self, work: Callable[[], T]) -> T:
        """Call `work` inside: its sockets and child processes belong to this namespace, for good."""

        def inside() -> T:
            _check(_libc.setns(self._fd, _CLONE_NEWNET))
            return work()

        return _in_thread(inside)

    def close(self) -> None:
        """Let go of it. Sockets and processes inside keep it alive until they end."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


@contextlib.contextmanager
def private_network() -> Iterator[None]:
    """Let the calling thread, and all that it starts meanwhile, have a network with nothing but loopback.

    Nothing in there reaches the world. It also gets a mount namespace of its own, in which it stays.
    """
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        if _identity("mnt") not in _ours:
            _check(_libc.unshare(_CLONE_NEWNS))
            command(["mount", "--make-rprivate", "/"])
            _ours.add(_identity("mnt"))
        _check(_libc.unshare(_CLONE_NEWNET))
        network = _identity("net")
        _ours.add(network)
        try:
            command(["ip", "link", "set", "lo", "up"])
            yield
        finally:
            _check(_libc.setns(before, _CLONE_NEWNET))
            _ours.discard(network)
    finally:
        os.close(before)


def is_private() -> bool:
    """Whether the calling thread is inside `private_network`."""
    return {_identity("net"), _identity("mnt")} <= _ours


@functools.cache
def obstacle() -> str | None:
    """Why there can be no private network with hosts here, with the way out in the same line; None if there can."""
    lacking = sorted({package for tool, package in TOOLS.items() if shutil.which(tool, path=PATH) is None})
    if lacking:
        return f"the bed needs: apt-get install {' '.join(lacking)}"
    if os.geteuid() != 0:
        return "the bed needs root: sudo .venv/bin/python -m pytest -m bed"
    try:
        _in_thread(lambda: _check(_libc.unshare(_CLONE_NEWNET | _CLONE_NEWNS)))
    except OSError as error:
        return f"the bed needs namespaces of its own ({error.strerror}): in a container, start that with --privileged"
    return None


def _identity(kind: str) -> str:
    """Which namespace of this kind the calling thread is in."""
    return os.readlink(f"/proc/thread-self/ns/{kind}")


def _new_namespace() -> int:
    _check(_libc.unshare(_CLONE_NEWNET))
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


def _check(result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _in_thread(work: Callable[[], T]) -> T:
    """Call `work` in a thread of its own, because a thread that has changed its namespace is good for nothing else."""
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="bed-namespace") as threads:
        return threads.submit(work).result()
