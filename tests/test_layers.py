"""Who may import whom: the contracts of `.importlinter`, purity by an allow list, and what a start may load."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "skyserve"

PURE_IMPORTS = {
    "__future__",
    "abc",
    "bisect",
    "collections",
    "dataclasses",
    "difflib",
    "enum",
    "functools",
    "hashlib",
    "heapq",
    "itertools",
    "json",
    "math",
    "operator",
    "re",
    "statistics",
    "string",
    "types",
    "typing",
}
"""All of the standard library that `model` and `decide` may use: nothing that knows the hour, chance or a file."""

SERVER_CODE = ["skyserve.controller", "skyserve.store", "skyserve.providers", "skyserve.load_balancer"]
HEAVY = ["sqlalchemy", "alembic", "fastapi", "starlette", "uvicorn", "aiohttp", "pydantic"]


def _loaded_by(statement: str) -> list[str]:
    """Names of all modules that a fresh interpreter has loaded after one statement."""
    program = f"import sys, json\n{statement}\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    return [str(name) for name in json.loads(done.stdout)]


def _under(names: list[str], roots: list[str]) -> list[str]:
    return [name for name in names if any(name == root or name.startswith(f"{root}.") for root in roots)]


def test_import_contracts_hold() -> None:
    command = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([command, "--no-cache"], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("room", ["model", "decide"])
def test_pure_rooms_import_only_pure_things(room: str) -> None:
    found = []
    for path in sorted((PACKAGE / room).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or "."] if isinstance(node, ast.ImportFrom) else []
            found += [f"{path.name}: {name}" for name in names if name.split(".")[0] not in PURE_IMPORTS | {"skyserve"}]
    assert not found


@pytest.mark.skipif(find_spec("skyserve.cli.main") is None, reason="the command line is not there yet")
def test_the_command_starts_without_server_code() -> None:
    loaded = _loaded_by("import skyserve.cli.main")
    assert not _under(loaded, SERVER_CODE)
    assert not _under(loaded, HEAVY)
    assert len(_under(loaded, ["skyserve"])) < 40


@pytest.mark.skipif(find_spec("skyserve.load_balancer.server") is None, reason="the door is not there yet")
def test_the_door_starts_with_little() -> None:
    loaded = _loaded_by("import skyserve.load_balancer.server")
    assert not _under(loaded, [*HEAVY, "click", "rich", "ruamel"])
    assert not _under(loaded, ["skyserve.cli", "skyserve.controller", "skyserve.store", "skyserve.providers"])
