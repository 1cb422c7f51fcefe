"""`sky serve update`: show what changes, ask, hand over the new version, wait until it has taken over."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Unpack

import click

from skyserve.cli.options import RunFlags, run_options
from skyserve.cli.session import Detached, Session, pass_session
from skyserve.model.service import UpdateMode

if TYPE_CHECKING:
    from skyserve.model.service import ServiceSpec
    from skyserve.model.view import ServiceView


@click.command()
@click.argument("name")
@click.argument("service_yaml", type=click.Path(exists=True, dir_okay=False))
@click.option(
    "--mode",
    type=click.Choice([mode.value for mode in UpdateMode]),
    default=UpdateMode.ROLLING.value,
    show_default=True,
    help="rolling replaces replicas one by one; blue_green switches all traffic at once.",
)
@run_options
@pass_session
def update(session: Session, name: str, service_yaml: str, mode: str, **flags: Unpack[RunFlags]) -> None:
    """Give the service NAME a new version, from SERVICE_YAML.

    Shows what changes, asks, and waits until the new version's replicas are ready and the old ones gone.

    \b
    Examples:
      sky serve update mixtral service.yaml
      sky serve update mixtral service.yaml --mode blue_green --yes
    """
    from skyserve.cli import plan, wait

    loaded = plan.load(session, service_yaml, name, flags)
    client, _ = session.service(name)
    version, old = client.spec(name)
    _show_diff(session, version, old, loaded.spec)
    answer = plan.present(session, client, service_yaml, loaded)
    if flags["dryrun"]:
        plan.end_dry_run(session, answer)
        return
    if not flags["yes"]:
        session.screen.confirm(f"Updating service '{name}'. Proceed?", if_no="Nothing was changed.")
    new_version = client.update(loaded.spec, loaded.secrets, UpdateMode(mode))
    session.screen.say(f"Service '{name}' gets version {new_version} ({mode}).")
    if flags["detach"]:
        view = client.service(name)
    else:
        try:
            judge = wait.version_ready(new_version, loaded.spec.replica_policy.min_replicas)
            view = wait.until(session, name, judge, timeout_s=flags["timeout"])
        except KeyboardInterrupt:
            plan.say_it_goes_on(session, name, "keeps updating")
            raise Detached from None
    _summarise(session, view, new_version)


def _show_diff(session: Session, version: int, old: ServiceSpec, new: ServiceSpec) -> None:
    lines = list(
        difflib.unified_diff(
            old.source.splitlines(),
            new.source.splitlines(),
            f"version {version}",
            f"version {version + 1}",
            lineterm="",
        )
    )
    if lines:
        session.screen.diff(lines)
    elif old == new:
        session.screen.say(f"The new version says the same as version {version}.")
    else:
        session.screen.say(f"The Service YAML is that of version {version}; flags, envs or secrets differ.")


def _summarise(session: Session, view: ServiceView, version: int) -> None:
    from skyserve.model.codec import to_json

    screen = session.screen
    screen.say(
        f"Service '{view.name}' is {view.status} with version {version}: {view.ready} of {view.target} replicas ready."
    )
    if session.as_json:
        screen.json(to_json(view))
    else:
        screen.data(view.endpoint)
