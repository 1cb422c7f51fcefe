"""`sky serve rollback`: show what changes back, ask, hand over, wait until the earlier version has taken over."""

from __future__ import annotations

from typing import TYPE_CHECKING, Unpack

import click

from skyserve.cli.options import WaitFlags, mode_option, wait_options
from skyserve.cli.session import Session, pass_session
from skyserve.errors import UsageError
from skyserve.model.service import UpdateMode

if TYPE_CHECKING:
    from skyserve.model.view import HistoryView


@click.command()
@click.argument("name")
@click.option(
    "--to", type=click.IntRange(min=1), metavar="N", help="Version to go back to; the last that served if not."
)
@mode_option
@wait_options
@pass_session
def rollback(session: Session, name: str, to: int | None, mode: str, **flags: Unpack[WaitFlags]) -> None:
    """Go back to an earlier version of the service NAME.

    The service gets a new version that says what the earlier one said, with the files and secrets of then. Replicas of
    the earlier version that still run serve on.

    \b
    Examples:
      sky serve rollback mixtral
      sky serve rollback mixtral --to 3 --yes
    """
    from skyserve.cli.update import await_version, source_diff, summarise

    client, view = session.service(name)
    answer = client.history(name)
    back = _target(answer, name, to)
    sources = {one.version: one.source for one in answer.versions}
    latest = max(sources)
    if lines := source_diff(sources[latest], sources[back], latest, back):
        session.screen.diff(lines)
    if not flags["yes"]:
        question = f"Going back to version {back} of service '{name}'. Proceed?"
        session.screen.confirm(question, if_no="Nothing was changed.")
    version = client.rollback(name, back, UpdateMode(mode))
    session.screen.say(f"Service '{name}' gets version {version}, which is version {back} over again ({mode}).")
    view = await_version(session, name, version, 0, flags)
    summarise(session, view, version)


def _target(answer: HistoryView, name: str, to: int | None) -> int:
    """The version to go back to. Raises UsageError."""
    back = answer.back_to if to is None else to
    known = [one.version for one in answer.versions]
    if back is None:
        raise UsageError(f"no other version of '{name}' ever served", hint=f"sky serve history {name}")
    if back not in known:
        kept = ", ".join(map(str, known))
        raise UsageError(f"version {back} of '{name}' is not kept", hint=f"these are: {kept}")
    return back
