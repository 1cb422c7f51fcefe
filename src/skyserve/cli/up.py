"""`sky serve up`: plan, ask, create, wait until the replicas are ready."""

from __future__ import annotations

from typing import TYPE_CHECKING, Unpack

import click

from skyserve.cli.options import RunFlags, run_options
from skyserve.cli.session import Detached, Session, pass_session

if TYPE_CHECKING:
    from skyserve.cli.client import ControlClient
    from skyserve.model.service import ReadinessProbe
    from skyserve.model.view import ServiceView
    from skyserve.spec.load import LoadedService


@click.command()
@click.argument("service_yaml", type=click.Path(exists=True, dir_okay=False))
@click.option("--service-name", "-n", metavar="NAME", help="Name of the service; without it, one is made up.")
@run_options
@pass_session
def up(session: Session, service_yaml: str, service_name: str | None, **flags: Unpack[RunFlags]) -> None:
    """Bring up the service that SERVICE_YAML describes.

    Shows the plan, asks, and waits until the replicas are ready. Stdout gets the endpoint's URL.
    A dry run shows what all clouds would take for it, also those that cannot be used from here.

    \b
    Examples:
      sky serve up service.yaml -n mixtral
      sky serve up service.yaml --gpus L4:1 --env MODEL=tiny --yes
      sky serve up service.yaml --dryrun
      URL=$(sky serve up service.yaml --yes)
    """
    from skyserve.cli import plan, wait

    if flags["dryrun"]:
        _dry_run(session, service_yaml, service_name, flags)
        return
    loaded = plan.load(session, service_yaml, service_name, flags)
    client = session.controller()
    _refuse_taken_name(client, loaded.spec.name)
    plan.present(session, client, service_yaml, loaded)
    name = loaded.spec.name
    if not flags["yes"]:
        question = f"Launching a new service '{name}'. Proceed?"
        session.screen.confirm(question, if_no="Nothing was created.")
    view = _create(session, client, loaded)
    if not flags["detach"]:
        try:
            judge = wait.all_ready(loaded.spec.replica_policy.min_replicas)
            view = wait.until(session, name, judge, timeout_s=flags["timeout"])
        except KeyboardInterrupt:
            plan.say_it_goes_on(session, name, "keeps starting")
            raise Detached from None
    _summarise(session, view, loaded.spec.readiness_probe)


def _dry_run(session: Session, service_yaml: str, service_name: str | None, flags: RunFlags) -> None:
    from skyserve.cli import dryrun, plan

    loaded = plan.load(session, service_yaml, service_name, flags, key=plan.NO_KEY)
    plan.describe(session, service_yaml, loaded)
    dryrun.show(session, loaded)


def _refuse_taken_name(client: ControlClient, name: str) -> None:
    from skyserve.errors import ServiceExists

    if name in client.controller().services:
        hint = f"`sky serve update {name} SERVICE_YAML` changes it; `-n NAME` names another one"
        raise ServiceExists(f"a service called '{name}' exists already", hint=hint)


def _create(session: Session, client: ControlClient, loaded: LoadedService) -> ServiceView:
    view = client.create(loaded.spec, loaded.secrets)
    session.screen.say(f"Service '{view.name}' was created; its endpoint is {view.endpoint}")
    return view


def _summarise(session: Session, view: ServiceView, probe: ReadinessProbe) -> None:
    from skyserve.cli import tables
    from skyserve.model.codec import to_json

    screen, name = session.screen, view.name
    remark = tables.remark(view)
    ready = f"{view.ready} of {view.target} replicas ready{'; ' if remark else ''}{remark}"
    screen.say()
    screen.say(f"Service name: {name}  ({view.status}, {ready})")
    screen.say(f"Endpoint URL: {view.endpoint}")
    screen.say("Useful commands:", "bold")
    # A probe that is a POST cannot be typed in so few words.
    try_it = [] if probe.post_data else [("try it", f"curl {view.endpoint.rstrip('/')}{probe.path}")]
    for what, command in (
        ("status", f"sky serve status {name}"),
        ("logs", f"sky serve logs {name}"),
        ("why", f"sky serve why {name}"),
        ("down", f"sky serve down {name}"),
        *try_it,
    ):
        screen.say(f"  {what:<8}{command}")
    if session.as_json:
        screen.json(to_json(view))
    else:
        screen.data(view.endpoint)
