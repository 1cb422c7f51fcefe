"""Runs a script beside a process of this machine. Knows processes; must not know whose they are."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import tempfile
from asyncio.subprocess import DEVNULL, PIPE, STDOUT
from collections.abc import AsyncGenerator, Mapping, Sequence
from pathlib import Path

from skyserve.errors import OrderRejected
from skyserve.providers.base import Exit

_CHUNK = 65536


def environment(pid: int) -> dict[str, str]:
    """The environment that a process of ours was started with. Raises OrderRejected when it is gone."""
    try:
        told = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError as error:
        raise OrderRejected(f"the environment of process {pid} cannot be read: {error.strerror}") from error
    entries = told.decode("utf-8", "surrogateescape").split("\0")
    return dict(entry.split("=", 1) for entry in entries if "=" in entry)


async def run(
    script: str, env: Mapping[str, str], workdir: Path, *, prefix: Sequence[str] = ()
) -> AsyncGenerator[bytes | Exit, None]:
    """The output of a bash script as it comes, then its exit. It ends with the iterator, its offspring included.

    The script is not part of a command line either: bash reads it from a file without a name. `prefix` is a command
    that starts others.
    """
    with tempfile.TemporaryFile() as file:
        file.write(script.encode("utf-8", "surrogateescape") + b"\n")
        file.seek(0)
        number = file.fileno()
        process = await asyncio.create_subprocess_exec(
            *prefix,
            "bash",
            f"/dev/fd/{number}",
            cwd=workdir,
            env=dict(env),
            stdin=DEVNULL,
            stdout=PIPE,
            stderr=STDOUT,
            pass_fds=(number,),
            start_new_session=True,
        )
    try:
        while process.stdout and (data := await process.stdout.read(_CHUNK)):
            yield data
        code = await process.wait()
        yield Exit(code if code >= 0 else 128 - code)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
