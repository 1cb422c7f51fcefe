"""`sky serve update`: show what changes, ask, hand over the new version, wait until it has taken over."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Unpack

import click

from skyserve.cli.options import RunFlags, WaitFlags, mode_option, run_options
from skyserve.cli.session import Detached, Session, pass_session
from skyserve.model.service import UpdateMode

if TYPE_CHECKING:
    from skyserve.model.service import ServiceSpec
    from skyserve.model.view import ServiceView


@click.command()
@click.argument("name")
@click.argument("service_yaml", type=click.Path(exists=True, dir_okay=False))
@mode_option
@run_options
@pass_session
def update(session: Session, name: str, service_yaml: str, mode: str, **flags: Unpack[RunFlags]) -> None:
    """Give the service NAME a new version, from SERVICE_YAML.

    Shows what changes, asks, and waits until the new version's replicas are ready and the old ones gone. When the new
    version is rolled back meanwhile, says why, with the last lines of its log, and exits with 1.

    \b
    Examples:
      sky serve update mixtral service.yaml
      sky serve update mixtral service.yaml --mode blue_green --yes
    """
    from skyserve.cli import plan

    loaded = plan.load(session, service_yaml, name, flags)
    client, _ = session.service(name)
    version, latest, old = client.spec(name)
    _show_diff(session, version, latest, old, loaded.spec)
    answer = plan.present(session, client, service_yaml, loaded)
    if flags["dryrun"]:
        plan.end_dry_run(session, answer)
        return
    if not flags["yes"]:
        session.screen.confirm(f"Updating service '{name}'. Proceed?", if_no="Nothing was changed.")
    new_version = client.update(loaded.spec, loaded.secrets, UpdateMode(mode))
    session.screen.say(f"Service '{name}' gets version {new_version} ({mode}).")
    view = await_version(session, name, new_version, loaded.spec.replica_policy.min_replicas, flags)
    summarise(session, view, new_version)


def await_version(session: Session, name: str, version: int, at_least: int, flags: WaitFlags) -> ServiceView:
    """Wait until a version has taken over, unless the flags say not to. Raises ServiceNotReady, Detached."""
    from skyserve.cli import plan, wait

    if flags["detach"]:
        return session.controller().service(name)
    try:
        return wait.until(session, name, wait.version_ready(version, at_least), timeout_s=flags["timeout"])
    except KeyboardInterrupt:
        plan.say_it_goes_on(session, name, "keeps updating")
        raise Detached from None


def source_diff(old: str, new: str, version: int, new_version: int) -> list[str]:
    """The lines in which the Service YAML of one version differs from that of another."""
    names = (f"version {version}", f"version {new_version}")
    return list(difflib.unified_diff(old.splitlines(), new.splitlines(), *names, lineterm=""))


def _show_diff(session: Session, version: int, latest: int, old: ServiceSpec, new: ServiceSpec) -> None:
    lines = source_diff(old.source, new.source, version, latest + 1)
    if lines:
        session.screen.diff(lines)
    elif old == new:
        session.screen.say(f"The new version says the same as version {version}.")
    else:
        session.screen.say(f"The Service YAML is that of version {version}; flags, envs or secrets differ.")


def summarise(session: Session, view: ServiceView, version: int) -> None:
    """Say what has come of an update; stdout gets the endpoint's URL, or the view."""
    from skyserve.model.codec import to_json

    screen = session.screen
    screen.say(
        f"Service '{view.name}' is {view.status} with version {version}: {view.ready} of {view.target} replicas ready."
    )
    if session.as_json:
        screen.json(to_json(view))
    else:
        screen.data(view.endpoint)
