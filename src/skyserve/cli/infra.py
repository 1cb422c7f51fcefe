"""`sky infra`: what is known of capacity pools: which are left alone for now, until when and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

import click

from skyserve.cli import wording
from skyserve.cli.lazy import LazyGroup
from skyserve.cli.options import output_option
from skyserve.cli.session import Session, pass_session
from skyserve.errors import UsageError

if TYPE_CHECKING:
    from skyserve.cli.client import HealthView

_HEADERS = ("SCOPE", "STATE", "UNTIL", "STRIKES", "WHY")
_STATES = {
    "CAPACITY": "cooling down",
    "QUOTA": "blocked by a quota",
    "THROTTLED": "cooling down, too many calls",
    "CREDENTIALS": "blocked, credentials rejected",
}
"""What keeps a place from being asked, by the kind of its last refusal."""


class _Infra(LazyGroup):
    commands_at: ClassVar[Mapping[str, str]] = {"health": "skyserve.cli.infra:health"}


@click.group(cls=_Infra, invoke_without_command=True)
@click.pass_context
def infra(ctx: click.Context) -> None:
    """Look at what is known of capacity.

    \b
    Example:
      sky infra health
    """
    if ctx.invoked_subcommand is None:
        ctx.ensure_object(Session).screen.data(ctx.get_help())


@click.command()
@click.option("--forget", metavar="SCOPE", help="Forget this line, or `all`: what it names may be asked again at once.")
@output_option
@pass_session
def health(session: Session, forget: str | None) -> None:
    """Show which capacity pools refused lately.

    And until when they are left alone, and why. A scope is a place, instance types and a capacity type. All services
    share this knowledge.

    \b
    Examples:
      sky infra health
      sky infra health --forget 'aws/us-east-1/us-east-1a p5.48xlarge SPOT'
    """
    client = session.existing_controller()
    known = client.health() if client else ()
    if forget is not None:
        if client is None or forget not in {"all", *(entry.scope for entry in known)}:
            raise _unknown(forget, known)
        count = client.forget_health(None if forget == "all" else forget)
        session.screen.say(f"Forgotten: {wording.count(count, 'line')}. What they named may be asked again at once.")
        known = client.health()
    _show(session, known)


def _show(session: Session, known: Sequence[HealthView]) -> None:
    from skyserve.model.codec import to_json

    if session.as_json:
        session.screen.json({"pools": [to_json(entry) for entry in known]})
    elif not known:
        session.screen.data("Nothing is known.")
    else:
        rows = [_row(entry, session.now()) for entry in known]
        for line in session.screen.table("Capacity pools", _HEADERS, rows):
            session.screen.data(line)


def _row(entry: HealthView, now: float) -> tuple[str, ...]:
    if entry.until_at <= now:
        state = "may be asked" if entry.strikes else "gave what was asked"
        return entry.scope, state, "", str(entry.strikes), entry.why
    until = f"{wording.clock_time(entry.until_at, now)} (in {wording.duration(entry.until_at - now)})"
    return entry.scope, _STATES.get(entry.kind, entry.kind), until, str(entry.strikes), entry.why


def _unknown(scope: str, known: Sequence[HealthView]) -> UsageError:
    near = wording.nearest(scope, [entry.scope for entry in known])
    hint = f"did you mean '{near}'?" if near else "`sky infra health` lists what is known"
    return UsageError(f"nothing is known of '{scope}'", hint=hint)
