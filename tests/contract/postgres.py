"""A PostgreSQL of one's own for a test session: on loopback, without durability, gone at the end."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

NOBODY = 65534


def missing() -> str:
    """Why there can be none here; empty when there can."""
    if find_spec("psycopg") is None:
        return "to test on PostgreSQL: pip install 'psycopg[binary]'"
    if _programs() is None:
        return "to test on PostgreSQL: apt-get install postgresql, or set SKYSERVE_TEST_POSTGRES_URL"
    return ""


def _programs() -> Path | None:
    found = shutil.which("initdb")
    if found:
        return Path(found).resolve().parent
    return next((path.parent for path in sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), reverse=True)), None)


@contextmanager
def cluster() -> Iterator[str]:
    """The URL of a running cluster's database."""
    programs = _programs()
    if programs is None:
        raise RuntimeError(missing())
    with tempfile.TemporaryDirectory(prefix="sky-pg-") as root:
        as_nobody = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"] if os.getuid() == 0 else []
        if as_nobody:
            os.chown(root, NOBODY, NOBODY)
        data, port = f"{root}/data", _free_port()
        _run([*as_nobody, str(programs / "initdb"), "-D", data, "-A", "trust", "-U", "postgres", "--no-sync"])
        control = [*as_nobody, str(programs / "pg_ctl"), "-D", data, "-w", "-l", f"{root}/log"]
        fast = "-c fsync=off -c synchronous_commit=off -c full_page_writes=off"
        _run([*control, "-o", f"-k {root} -p {port} -c listen_addresses=127.0.0.1 {fast}", "start"])
        try:
            yield f"postgresql://postgres@127.0.0.1:{port}/postgres"
        finally:
            _run([*control, "-m", "immediate", "stop"])


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _run(command: list[str]) -> None:
    subprocess.run(command, check=True, cwd="/", stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, timeout=60)
