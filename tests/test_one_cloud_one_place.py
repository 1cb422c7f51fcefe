"""Adding a provider touches one place and one entry point: nobody else knows a cloud by its name."""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "skyserve"
PROVIDERS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["skyserve.providers"]
OWN_HARDWARE = {"local", "ssh"}
"""This machine and hosts of one's own: words that every program needs."""
CLOUDS = sorted(set(PROVIDERS) - OWN_HARDWARE)
SDKS = {"boto3", "botocore", "googleapiclient", "google.auth", "azure", "kubernetes", "kubernetes_asyncio"}
DATA = ("catalog/", "spec/shorthand.py")
"""Prices are facts about clouds, with a feed for each; and the words that a YAML may use are those of its readers."""


def home_of(cloud: str) -> str:
    """The name of the one file or folder that a provider has."""
    return PROVIDERS[cloud].partition(":")[0].rpartition(".")[2].removesuffix("_cloud")


def is_own(path: Path, cloud: str) -> bool:
    first = path.relative_to(SOURCE / "providers").parts[0] if path.is_relative_to(SOURCE / "providers") else ""
    return first.removesuffix(".py").removesuffix("_cloud") == home_of(cloud)


def named(tree: ast.AST) -> Iterator[str]:
    """Every word by which code could tell one cloud from another: texts that are one word, names, imports."""
    for node in ast.walk(tree):
        match node:
            case ast.Constant(value=str(text)):
                yield text.lower()
            case ast.Name(id=name) | ast.Attribute(attr=name) | ast.arg(arg=name):
                yield from name.lower().strip("_").split("_")
            case ast.Import(names=names):
                yield from (alias.name for alias in names)
            case ast.ImportFrom(module=str(module)):
                yield module


@pytest.mark.parametrize("cloud", CLOUDS)
def test_only_its_own_place_names_a_cloud(cloud: str) -> None:
    strangers = []
    for path in sorted(SOURCE.rglob("*.py")):
        relative = path.relative_to(SOURCE).as_posix()
        if is_own(path, cloud) or relative.startswith(DATA):
            continue
        if cloud in set(named(ast.parse(path.read_text(encoding="utf-8")))):
            strangers.append(relative)
    assert strangers == []


def test_no_sdk_of_a_cloud_is_imported_outside_its_place() -> None:
    strangers = []
    for path in sorted(SOURCE.rglob("*.py")):
        if path.relative_to(SOURCE).as_posix().startswith(DATA) or any(is_own(path, cloud) for cloud in CLOUDS):
            continue
        imported = {
            name
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, (ast.Import, ast.ImportFrom))
            for name in ([node.module or ""] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names])
        }
        strangers += [path.name for name in imported if any(name == sdk or name.startswith(f"{sdk}.") for sdk in SDKS)]
    assert strangers == []


def test_there_are_clouds_to_look_for() -> None:
    assert len(CLOUDS) >= 6
