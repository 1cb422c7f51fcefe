"""`sky serve`: the group. Its commands live in one module each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import click

from skyserve.cli.lazy import LazyGroup
from skyserve.cli.session import Session


class _Serve(LazyGroup):
    commands_at: ClassVar[Mapping[str, str]] = {
        "up": "skyserve.cli.up:up",
        "update": "skyserve.cli.update:update",
        "rollback": "skyserve.cli.rollback:rollback",
        "history": "skyserve.cli.history:history",
        "status": "skyserve.cli.status:status",
        "logs": "skyserve.cli.logs:logs",
        "why": "skyserve.cli.why:why",
        "down": "skyserve.cli.down:down",
        "validate": "skyserve.cli.validate:validate",
        "simulate": "skyserve.cli.simulate:simulate",
        "schema": "skyserve.cli.validate:schema",
    }


@click.group(cls=_Serve, invoke_without_command=True)
@click.pass_context
def serve(ctx: click.Context) -> None:
    """Bring services up, look at them, change them, take them down.

    \b
    Examples:
      sky serve up service.yaml
      sky serve logs mixtral --follow
    """
    if ctx.invoked_subcommand is None:
        ctx.ensure_object(Session).screen.data(ctx.get_help())
