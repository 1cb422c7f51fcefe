"""`sky controller`: look at the controller of this installation, end it, read its log."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

import click

from skyserve.cli import wording
from skyserve.cli.lazy import LazyGroup
from skyserve.cli.options import output_option
from skyserve.cli.session import Detached, Session, pass_session
from skyserve.errors import ControllerUnavailable

if TYPE_CHECKING:
    from skyserve.model.codec import JsonValue

_STOP_DEADLINE_S = 15.0
_POLL_S = 0.1
_LOG_POLL_S = 0.5


class _Controller(LazyGroup):
    commands_at: ClassVar[Mapping[str, str]] = {
        "status": "skyserve.cli.controller:status",
        "stop": "skyserve.cli.controller:stop",
        "logs": "skyserve.cli.controller:logs",
    }


@click.group(cls=_Controller, invoke_without_command=True)
@click.pass_context
def controller(ctx: click.Context) -> None:
    """Look after the controller, which keeps services going.

    It is started by the first command that needs it and ends by itself when there is nothing left to look after.

    \b
    Example:
      sky controller status
    """
    if ctx.invoked_subcommand is None:
        ctx.ensure_object(Session).screen.data(ctx.get_help())


@click.command()
@output_option
@pass_session
def status(session: Session) -> None:
    """Say whether the controller runs, where, and for how long.

    \b
    Example:
      sky controller status --output json
    """
    from skyserve.cli import daemon

    client = daemon.find(session)
    if client is None:
        _show(session, {"running": False, "home": str(session.config.home)}, "The controller is not running.")
        return
    info = client.controller()
    lines = [
        f"The controller is running: pid {info.pid}, version {info.version}, "
        f"for {wording.duration(session.now() - info.started_at)}.",
        f"Control API: {client.url}",
        f"State:       {info.home}",
        f"Services:    {', '.join(info.services) or '-'}",
    ]
    found: dict[str, JsonValue] = {
        "running": True,
        "url": client.url,
        "pid": info.pid,
        "version": info.version,
        "started_at": info.started_at,
        "home": info.home,
        "services": list(info.services),
    }
    _show(session, found, "\n".join(lines))


@click.command()
@output_option
@pass_session
def stop(session: Session) -> None:
    """End the controller. Replicas and endpoints go on; the next command that needs a controller starts it again.

    \b
    Example:
      sky controller stop
    """
    from skyserve.cli import daemon

    client = daemon.find(session)
    if client is None:
        _show(session, {"stopped": False}, "The controller is not running.")
        return
    services = client.controller().services
    client.stop()
    deadline = session.now() + _STOP_DEADLINE_S
    while daemon.lock_is_held(session.config):
        if session.now() > deadline:
            raise ControllerUnavailable(
                "the controller was asked to stop but is still there", hint="sky controller logs"
            )
        session.sleep(_POLL_S)
    if services:
        session.screen.say(
            "Replicas and endpoints go on, but nothing replaces, scales or updates them until it runs again."
        )
    _show(session, {"stopped": True}, "The controller has stopped.")


@click.command()
@click.option("--follow", "-f", is_flag=True, help="Wait for more, until Ctrl-C.")
@click.option(
    "--tail", type=click.IntRange(min=0), default=100, show_default=True, metavar="N", help="The last N lines."
)
@output_option
@pass_session
def logs(session: Session, follow: bool, tail: int) -> None:
    """Show the controller's log. Works when the controller does not.

    \b
    Example:
      sky controller logs --follow
    """
    path = session.config.controller_log
    if not path.exists():
        session.screen.say("There is no log: no controller was ever started here.")
        return
    try:
        with path.open(encoding="utf-8", errors="replace") as log:
            *lines, unfinished = log.read().split("\n")
            for line in lines[max(0, len(lines) - tail) :]:
                _log_line(session, line)
            while follow:
                session.sleep(_LOG_POLL_S)
                *lines, unfinished = (unfinished + log.read()).split("\n")
                for line in lines:
                    _log_line(session, line)
            if unfinished:
                _log_line(session, unfinished)
    except KeyboardInterrupt:
        session.screen.say("\nNo longer following; the controller goes on.")
        raise Detached from None


def _log_line(session: Session, line: str) -> None:
    if session.as_json:
        session.screen.json({"line": line}, line=True)
    else:
        session.screen.data(line)


def _show(session: Session, document: dict[str, JsonValue], text: str) -> None:
    if session.as_json:
        session.screen.json(document)
    else:
        session.screen.data(text)
