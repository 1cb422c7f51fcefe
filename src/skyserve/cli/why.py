"""`sky serve why`: the decision log, told."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from skyserve.cli import wording
from skyserve.cli.options import output_option
from skyserve.cli.session import Detached, Session, pass_session

if TYPE_CHECKING:
    from skyserve.cli.client import ControlClient
    from skyserve.model.view import DecisionView

_POLL_S = 1.0
_PAGE = 500
_INDENT = " " * 9


@click.command()
@click.argument("name")
@click.option("--replica", "replica_id", type=int, metavar="N", help="Only what was decided about this replica.")
@click.option(
    "--tail", type=click.IntRange(min=1), default=20, show_default=True, metavar="N", help="The last N decisions."
)
@click.option("--follow", "-f", is_flag=True, help="Go on with new decisions as they are made, until Ctrl-C.")
@output_option
@pass_session
def why(session: Session, name: str, replica_id: int | None, tail: int, follow: bool) -> None:
    """Tell why the service NAME did what it did.

    Shows each decision with its reason, and what was rejected.

    \b
    Examples:
      sky serve why mixtral
      sky serve why mixtral --replica 7 --tail 100
      sky serve why mixtral --follow --output json
    """
    client, _ = session.either(name)
    decisions = client.decisions(name, limit=tail, replica_id=replica_id)
    if session.as_json and not follow:
        from skyserve.model.codec import to_json

        session.screen.json({"decisions": [to_json(decision) for decision in decisions]})
        return
    for decision in decisions:
        _tell(session, decision)
    if not decisions:
        session.screen.say("Nothing has been decided yet.")
    if follow:
        _follow(session, client, name, replica_id, decisions[-1].seq if decisions else 0)


def decision_lines(decision: DecisionView, now: float) -> list[str]:
    """One decision: what was done, because of what, and what was not done."""
    facts = ", ".join(f"{key}={_fact(value)}" for key, value in decision.facts.items())
    width = max((len(what) for what, _ in decision.rejected), default=0)
    who = "" if decision.replica_id is None else f"replica {decision.replica_id}"
    head = "  ".join(part for part in (f"{decision.verb} {who}".strip(), decision.subject) if part)
    because = f"because {decision.code}  {decision.text}{f'  ({facts})' if facts else ''}"
    return [
        f"{wording.clock_time(decision.at, now)} {head}",
        f"{_INDENT}{because}",
        *(f"{_INDENT}not     {what:<{width}}  {reason}" for what, reason in decision.rejected),
    ]


def _fact(value: float | int | str) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _tell(session: Session, decision: DecisionView) -> None:
    if session.as_json:
        from skyserve.model.codec import to_json

        session.screen.json(to_json(decision), line=True)
        return
    for line in decision_lines(decision, session.now()):
        session.screen.data(line)


def _follow(session: Session, client: ControlClient, name: str, replica_id: int | None, seen: int) -> None:
    try:
        while True:
            session.sleep(_POLL_S)
            for decision in client.decisions(name, limit=_PAGE, after=seen, replica_id=replica_id):
                _tell(session, decision)
                seen = decision.seq
    except KeyboardInterrupt:
        session.screen.say(f"\nNo longer following; service '{name}' goes on.")
        raise Detached from None
