"""The reference page names every command and every option, and none that does not exist."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest

from skyserve.cli.main import sky as root

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "cli.md"


def _commands(command: click.Command, path: str = "sky") -> dict[str, click.Command]:
    if not isinstance(command, click.Group):
        return {path: command}
    context = click.Context(command)
    found: dict[str, click.Command] = {}
    for name in command.list_commands(context):
        found |= _commands(command.get_command(context, name), f"{path} {name}")
    return found


COMMANDS = _commands(root)


def _sections() -> dict[str, str]:
    parts = re.split(r"^## (.*)$", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


@pytest.mark.parametrize("path", COMMANDS)
def test_every_option_is_in_its_section(path):
    section = _sections()[path]
    documented = set(re.findall(r"`(--?[a-z][a-z-]*)", section))
    options = [one for one in COMMANDS[path].params if isinstance(one, click.Option) and not one.hidden]
    names = {name for one in options for name in (*one.opts, *one.secondary_opts)}
    hidden = {name for one in COMMANDS[path].params for name in one.opts if getattr(one, "hidden", False)}
    assert names - documented == set()
    # A section may mention `--output json` and flags of other commands in its prose; its table may not.
    table = {
        name for line in section.splitlines() if line.startswith("|") for name in re.findall(r"`(--?[a-z-]+)", line)
    }
    assert table - names - hidden == set()


def test_every_section_is_a_command():
    assert {title for title in _sections() if title.startswith("sky ")} == set(COMMANDS)
