"""The reference page has the tables that the table of fields makes, and examples that load."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from skyserve.spec.fields import SECTIONS
from skyserve.spec.kinds import Field, Refused, Section, words
from skyserve.spec.load import load_service

PAGE = (Path(__file__).parents[2] / "docs" / "reference" / "service-yaml.md").read_text(encoding="utf-8")
EXAMPLES = [text for text in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL) if "service:" in text]


def row(field: Field) -> str:
    default = "required" if field.required else "-" if field.default is None else f"`{default_text(field)}`"
    meaning = f"{field.doc} *Stored, not acted on yet.*" if field.stored_only else field.doc
    return f"| `{field.name}` | {words(field.kind)} | {default} | {meaning} |"


def default_text(field: Field) -> str:
    if isinstance(field.default, bool):
        return str(field.default).lower()
    return f"{field.default:g}" if isinstance(field.default, float) else str(field.default)


def table(section: Section) -> str:
    """The rows of one section as they stand in the page."""
    fields = [field for field in section.fields if not isinstance(field.kind, Refused)]
    return "\n".join(["| Key | Value | Default | Meaning |", "|---|---|---|---|", *map(row, fields)])


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.name or "file")
def test_every_table_is_in_the_page(section: Section) -> None:
    assert table(section) in PAGE


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.name or "file")
def test_every_key_is_in_the_page(section: Section) -> None:
    missing = [field.name for field in section.fields if f"`{field.name}`" not in PAGE]
    assert missing == []


@pytest.mark.parametrize("text", EXAMPLES)
def test_every_example_loads(text: str) -> None:
    assert load_service(text, fingerprint_key=b"key", name_suffix="0a1b").spec.run


def test_there_are_examples() -> None:
    assert len(EXAMPLES) >= 3
