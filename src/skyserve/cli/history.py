"""`sky serve history`: the versions of a service, and what became of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from skyserve.cli.options import output_option
from skyserve.cli.session import Session, pass_session

if TYPE_CHECKING:
    from skyserve.model.view import VersionView

_HEADERS = ("VERSION", "CREATED", "MODE", "STATUS", "CHANGES")
_MOST_CHANGES = 4


@click.command()
@click.argument("name")
@output_option
@pass_session
def history(session: Session, name: str) -> None:
    """Show the versions of the service NAME, the newest last.

    Tells what each version changed, and what became of it: current, rolling out, replaced by a later one, rolled back
    and why, stopped, or superseded before it had proved itself.

    \b
    Examples:
      sky serve history mixtral
      sky serve history mixtral --output json
    """
    client, _ = session.service(name)
    answer = client.history(name)
    if session.as_json:
        from skyserve.model.codec import to_json

        session.screen.json(to_json(answer))
        return
    rows = [_row(version, session.now()) for version in answer.versions]
    for line in session.screen.table(f"Versions of '{name}'", _HEADERS, rows, expendable=("MODE", "CREATED")):
        session.screen.data(line)
    if answer.back_to is not None:
        session.screen.say(f"To go back to version {answer.back_to}: sky serve rollback {name}")


def _row(version: VersionView, now: float) -> tuple[str, ...]:
    from skyserve.cli import wording

    more = len(version.changes) - _MOST_CHANGES
    changes = [*version.changes[:_MOST_CHANGES], *([f"{more} more"] if more > 0 else [])]
    status = f"{version.status}: {version.why}" if version.why else version.status
    created = wording.clock_time(version.created_at, now)
    return (str(version.version), created, version.mode, status, ", ".join(changes) or "-")
