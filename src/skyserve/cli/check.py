"""`sky check`: which clouds can be used from here, and what the others lack. Asks no controller."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from skyserve.cli import wording
from skyserve.cli.options import output_option
from skyserve.cli.session import Session, pass_session
from skyserve.errors import ProviderError, UsageError

if TYPE_CHECKING:
    from skyserve.providers.registry import Roster


@dataclass(frozen=True, slots=True)
class CloudCheck:
    """Whether a cloud can be used here. When not, `reason` says why and `hint` what to do. `account` names who would be
    charged, as far as that is known; it is never a secret."""

    name: str
    title: str
    enabled: bool
    reason: str = ""
    hint: str = ""
    account: str = ""


@click.command()
@click.argument("clouds", nargs=-1, metavar="[CLOUD]...")
@click.option("--verbose", "-v", is_flag=True, help="Show the accounts too.")
@output_option
@pass_session
def check(session: Session, clouds: tuple[str, ...], verbose: bool) -> None:
    """Say which clouds can be used.

    And what to do about the others. All known clouds, or those with the given names. Exit code 1 when none of them is
    enabled.

    \b
    Examples:
      sky check
      sky check aws gcp -v
    """
    found = examine(roster_here(session), clouds)
    if session.as_json:
        from skyserve.model.codec import to_json

        session.screen.json({"clouds": [to_json(one) for one in found]})
    else:
        for line in _lines(found, verbose=verbose):
            session.screen.data(line)
    if not any(one.enabled for one in found):
        raise click.exceptions.Exit(1)


def roster_here(session: Session) -> Roster:
    """What can launch replicas when it is usable: this machine, and what installed packages bring."""
    from skyserve.clock import SystemClock
    from skyserve.providers.registry import Roster

    return Roster(session.config, SystemClock())


def examine(roster: Roster, names: Sequence[str] = ()) -> list[CloudCheck]:
    """Check the clouds with these names, all of them if none is named. Raises UsageError for a name that is unknown."""
    import asyncio

    wanted = [_known(name, roster.names) for name in names] or list(roster.names)

    async def each() -> list[CloudCheck]:
        return list(await asyncio.gather(*(_ask(roster, name) for name in dict.fromkeys(wanted))))

    return asyncio.run(each())


async def _ask(roster: Roster, name: str) -> CloudCheck:
    missing = roster.absent.get(name)
    if missing is not None:
        return CloudCheck(name, missing.title, False, missing.reason, missing.hint)
    provider = roster.providers[name]
    try:
        result = await provider.check()
    except ProviderError as error:
        return CloudCheck(name, provider.title, False, error.message, error.hint or "run `sky check` again")
    return CloudCheck(name, provider.title, result.usable, result.reason, result.hint, result.account)


def _known(name: str, known: Sequence[str]) -> str:
    from skyserve.spec import shorthand

    wanted = shorthand.cloud(name)
    if wanted in known:
        return wanted
    near = wording.nearest(wanted, known)
    hint = f"did you mean '{near}'?" if near else f"known: {', '.join(known)}"
    raise UsageError(f"no cloud is called '{name}'", hint=hint)


def _lines(found: Sequence[CloudCheck], *, verbose: bool) -> list[str]:
    lines = ["Checking credentials to enable infra for SkyServe."]
    for one in found:
        lines.append(f"  {one.title}: {'enabled' if one.enabled else 'disabled'}")
        details = [("Activated account", one.account if verbose else "")]
        if one.enabled:
            details.append(("Details", one.reason if verbose else ""))
        else:
            details += [("Reason", one.reason), ("Hint", one.hint)]
        lines += [f"    {label}: {text}" for label, text in details if text]
    if not all(one.enabled for one in found):
        lines += ["", "To enable a cloud, follow the hints above and rerun: sky check"]
    enabled = [f"  {one.title}" for one in found if one.enabled]
    return [*lines, "", *(["Enabled infra", *enabled] if enabled else ["No infra to check/enabled."])]
