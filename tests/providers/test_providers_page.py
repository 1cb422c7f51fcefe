"""The page on what providers can and cannot do says what their code says."""

from __future__ import annotations

import importlib
import re
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from skyserve.providers.base import Capabilities, Feature
from skyserve.providers.registry import ENTRY_POINT_GROUP, title

PAGE = (Path(__file__).parents[2] / "docs" / "reference" / "providers.md").read_text("utf-8")
ABILITIES = {"use_spot": "spot", "sky stop, sky start": "stop", "logs": "logs"}
OURS = sorted(
    entry.name
    for entry in entry_points(group=ENTRY_POINT_GROUP)
    if entry.dist is not None and entry.dist.name == "skyserve"
)


def adapter(name: str) -> type:
    """The class in a provider's module that goes by its name: a Provider, or the VmCloud that is made into one."""
    (entry,) = (entry for entry in entry_points(group=ENTRY_POINT_GROUP) if entry.name == name)
    module = importlib.import_module(entry.module)
    (found,) = (
        each
        for each in vars(module).values()
        if isinstance(each, type) and each.__module__ == module.__name__ and getattr(each, "name", None) == name
    )
    return found


def can(capabilities: Capabilities) -> dict[str, bool]:
    abilities = {"spot": capabilities.spot, "stop": capabilities.stops, "logs": capabilities.logs}
    known = {word: abilities[ability] for word, ability in ABILITIES.items()}
    return {**known, **{feature.value: feature in capabilities.delivers for feature in Feature}}


def rows(heading: str) -> list[list[str]]:
    """The table below a heading, without its line of dashes; code type is taken off."""
    section = PAGE.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| ")]
    return [[cell.strip().replace("`", "") for cell in line.strip("|").split("|")] for line in lines]


def test_every_provider_has_a_column() -> None:
    (_, *titles), *_ = rows("What each can do")
    assert sorted(titles) == sorted(title(name) for name in OURS)


@pytest.mark.parametrize("name", OURS)
def test_the_table_says_what_the_code_says(name: str) -> None:
    heads, *lines = rows("What each can do")
    column = heads.index(title(name))
    told = {line[0]: line[column] for line in lines}
    capabilities: Capabilities = adapter(name).capabilities
    assert told == {word: "yes" if able else "no" for word, able in can(capabilities).items()}


@pytest.mark.parametrize("name", OURS)
def test_every_no_comes_with_its_reason(name: str) -> None:
    capabilities: Capabilities = adapter(name).capabilities
    refused = {ABILITIES.get(word, word) for word, able in can(capabilities).items() if not able}
    assert refused == set(capabilities.cannot)
    plain = {key: re.sub("`", "", reason) for key, reason in capabilities.cannot.items()}
    told = {(line[0], line[2]): line[1] for line in rows("Why not")[1:]}
    assert {reason: set(words.split(", ")) for (who, reason), words in told.items() if who == title(name)} == {
        reason: {key for key, other in plain.items() if other == reason} for reason in plain.values()
    }
