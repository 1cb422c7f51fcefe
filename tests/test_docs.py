"""What the product can say and be told is in the documentation, its links lead somewhere, its examples are valid."""

from __future__ import annotations

import re
import runpy
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import click
import pytest

from skyserve.errors import ProviderError, SkyServeError, StoreError
from skyserve.model.decision import ReasonCode
from skyserve.model.replica import Failure, ReplicaStatus
from skyserve.model.service import ServiceStatus

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
REFERENCE = DOCS / "reference"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md"), *(ROOT / "examples").rglob("*.md")])
LINK = re.compile(r"(?<!!)\[[^\]]+\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#{1,6} (.+)$", re.MULTILINE)
CODE_BLOCK = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


def _named(page: Path) -> set[str]:
    """Everything that a page sets in code type."""
    return set(re.findall(r"`([^`\n]+)`", page.read_text("utf-8")))


def _errors(root: type[SkyServeError] = SkyServeError) -> Iterator[type[SkyServeError]]:
    yield root
    for child in root.__subclasses__():
        yield from _errors(child)


def test_every_error_code_is_explained() -> None:
    codes = {error.code for error in _errors() if error.__module__ == "skyserve.errors"}
    assert not codes - _named(REFERENCE / "errors.md")


def test_error_codes_differ() -> None:
    codes = [error.code for error in _errors()]
    assert len(codes) == len(set(codes))
    assert all(error.exit_code in (1, 2, 4) for error in _errors())
    assert {StoreError.code, ProviderError.code} <= set(codes)


def test_every_reason_code_is_explained() -> None:
    page = REFERENCE / "reasons.md"
    codes = {code.value for code in ReasonCode}
    assert not codes - _named(page)
    explained = {name for name in re.findall(r"^\| `([A-Z_]+)` \|", page.read_text("utf-8"), re.MULTILINE)}
    assert explained == codes, "the page explains reasons that do not exist"


def test_every_status_is_explained() -> None:
    page = _named(DOCS / "explanation" / "replica-life.md")
    words = [*(s.value for s in ReplicaStatus), *(f.value for f in Failure), *(s.value for s in ServiceStatus)]
    assert not set(words) - page


def test_the_diagram_is_that_of_the_code() -> None:
    script = runpy.run_path(str(ROOT / "scripts" / "diagram.py"))
    page = (DOCS / "explanation" / "replica-life.md").read_text("utf-8")
    assert script["fenced"]() in page, "run: python scripts/diagram.py --write"


@pytest.mark.skipif(not (REFERENCE / "service-yaml.md").exists(), reason="the page is not there yet")
def test_every_service_yaml_field_is_explained() -> None:
    from skyserve.spec.fields import SECTIONS

    named = _named(REFERENCE / "service-yaml.md")
    fields = {field.name for section in SECTIONS for field in section.fields}
    assert not {name for name in fields if name not in named and not any(n.endswith(f".{name}") for n in named)}


@pytest.mark.skipif(find_spec("skyserve.cli.main") is None, reason="the command line is not there yet")
@pytest.mark.skipif(not (REFERENCE / "cli.md").exists(), reason="the page is not there yet")
def test_every_option_is_explained() -> None:
    from skyserve.cli.main import sky

    text = (REFERENCE / "cli.md").read_text("utf-8")
    wanted = [(path, word) for path, command in _commands(sky, "sky") for word in (path, *_options(command))]
    assert not [(path, word) for path, word in wanted if not re.search(rf"{re.escape(word)}(?![\w-])", text)]


def _options(command: click.Command) -> list[str]:
    options = [p for p in command.params if isinstance(p, click.Option) and not p.hidden]
    return [spelling for option in options for spelling in (*option.opts, *option.secondary_opts)]


def _commands(command: click.Command, path: str) -> Iterator[tuple[str, click.Command]]:
    yield path, command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            child = command.get_command(context, name)
            if child is not None and not child.hidden:
                yield from _commands(child, f"{path} {name}")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    broken = []
    for target in LINK.findall(CODE_BLOCK.sub("", page.read_text("utf-8"))):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        aim = (page.parent / path).resolve() if path else page
        if not aim.exists() or (anchor and anchor not in _anchors(aim)):
            broken.append(target)
    assert not broken


def _anchors(page: Path) -> set[str]:
    headings = HEADING.findall(page.read_text("utf-8"))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", sorted(DOCS.rglob("*.md")), ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_page_can_be_found_from_the_index(page: Path) -> None:
    index = DOCS / "index.md"
    listed = {(DOCS / target.partition("#")[0]).resolve() for target in LINK.findall(index.read_text("utf-8"))}
    assert page == index or page.resolve() in listed


@pytest.mark.skipif(find_spec("skyserve.spec.load") is None, reason="the reader is not there yet")
@pytest.mark.parametrize("path", sorted((ROOT / "examples").rglob("*.yaml")), ids=lambda path: path.parent.name)
def test_examples_are_valid(path: Path) -> None:
    from skyserve.spec.load import load_service

    loaded = load_service(path, fingerprint_key=b"k" * 32)
    assert loaded.spec.run
    assert all("not acted on yet" in told for told in loaded.warnings)
