"""`sky check`: which clouds can be used from here, and what the others lack. Asks no controller."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from skyserve.cli import wording
from skyserve.cli.options import output_option
from skyserve.cli.session import Session, pass_session
from skyserve.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from skyserve.providers.base import Provider
    from skyserve.providers.clouds import CloudCheck


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
    found = examine(session, providers_here(session), clouds)
    if session.as_json:
        from skyserve.model.codec import to_json

        session.screen.json({"clouds": [to_json(one) for one in found]})
    else:
        for line in _lines(found, verbose=verbose):
            session.screen.data(line)
    if not any(one.enabled for one in found):
        raise click.exceptions.Exit(1)


def providers_here(session: Session) -> Mapping[str, Provider]:
    """What can launch replicas when it is usable: this machine, and what installed packages bring."""
    from skyserve.clock import SystemClock
    from skyserve.providers.registry import load_providers

    return load_providers(session.config, SystemClock())


def examine(session: Session, providers: Mapping[str, Provider], names: Sequence[str] = ()) -> list[CloudCheck]:
    """Check the clouds with these names, all of them if none is named. Raises UsageError for a name that is unknown."""
    import asyncio

    from skyserve.providers import clouds

    known = clouds.names(providers)
    wanted = [_known(name, known) for name in names] or list(known)
    env = session.config.inherited_env
    home = Path(env["HOME"]) if env.get("HOME") else Path.home()
    around = clouds.Surroundings(env, home, clouds.installed)

    async def each() -> list[CloudCheck]:
        return list(await asyncio.gather(*(clouds.check(name, providers, around) for name in dict.fromkeys(wanted))))

    return asyncio.run(each())


def _known(name: str, known: Sequence[str]) -> str:
    wanted = {"k8s": "kubernetes"}.get(name.lower(), name.lower())
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
    if without := [one.title for one in found if not one.adapter]:
        lines.append(f"This version cannot launch replicas yet on: {', '.join(without)}")
    enabled = [f"  {one.title}" for one in found if one.enabled]
    return [*lines, "", *(["Enabled infra", *enabled] if enabled else ["No infra to check/enabled."])]
