"""Groups whose commands are imported when they are asked for, so that `sky --help` stays quick.

Knows click; knows nothing of what the commands do.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import ClassVar

import click

from skyserve.cli import wording

_HELP_WIDTH = 66  # of the text behind a command, so that it stays on one line


class LazyGroup(click.Group):
    """A group that finds its commands by name in `commands_at`: command name -> `module:attribute`.

    `sections` says under which titles they are listed, where there is more than one title.
    """

    commands_at: ClassVar[Mapping[str, str]] = {}
    sections: ClassVar[Mapping[str, Sequence[str]]] = {}

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The commands in the order in which they were written down, which is the order of a first use."""
        return list(self.commands_at)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the command's module and return the command; None when there is no such command."""
        target = self.commands_at.get(cmd_name)
        if target is None:
            return None
        module, _, attribute = target.partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands under the titles of `sections`."""
        for title, names in (self.sections or {"Commands": tuple(self.commands_at)}).items():
            found = [(name, self.get_command(ctx, name)) for name in names]
            with formatter.section(title):
                formatter.write_dl([(name, one.get_short_help_str(_HELP_WIDTH)) for name, one in found if one])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does it, but an unknown command is answered with the nearest one."""
        if args and args[0] not in self.commands_at and not args[0].startswith("-"):
            near = wording.nearest(args[0], self.commands_at)
            guess = f"; did you mean '{near}'?" if near else ""
            raise click.UsageError(f"no such command '{args[0]}'{guess}", ctx)
        return super().resolve_command(ctx, args)
