"""`sky launch`, `status`, `exec`, `logs`, `stop`, `start` and `down`: one machine to work on, from first to last."""

from __future__ import annotations

import codecs
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

import click

from skyserve.cli import wording
from skyserve.cli.options import LaunchFlags, launch_options, output_option
from skyserve.cli.session import Detached, Session, not_found, pass_session
from skyserve.errors import UsageError

if TYPE_CHECKING:
    from skyserve.cli.client import ControlClient
    from skyserve.model.view import ServiceView
    from skyserve.spec.load import LoadedService

_HEADERS = ("NAME", "INFRA", "RESOURCES", "STATUS", "LAUNCHED")
_WORDS = {"READY": "UP", "PENDING": "INIT", "PROVISIONING": "INIT", "STARTING": "INIT"}
_POLL_S = 0.5


@click.command()
@click.argument("task", nargs=-1, metavar="[TASK_YAML|COMMAND]...")
@click.option("--cluster", "-c", metavar="NAME", help="Name of the cluster; without it, one is made up.")
@click.option("--detach-run", "-d", is_flag=True, help="Do not follow the output once the machine is up.")
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@launch_options
@pass_session
def launch(
    session: Session,
    task: tuple[str, ...],
    cluster: str | None,
    detach_run: bool,
    yes: bool,
    **flags: Unpack[LaunchFlags],
) -> None:
    """Launch a machine and run a task on it.

    The task is a YAML or a command. The machine stays up when the task has ended: `sky exec` runs more on it, `sky
    stop` halts it, `sky down` ends it. On a cluster that is up already, the task runs beside what runs there.
    With --dryrun nothing is launched; the plan covers all clouds, also those that cannot be used from here.

    \b
    Examples:
      sky launch -c dev task.yaml
      sky launch -c dev --gpus L4:1 nvidia-smi
      sky launch --gpus A100:8 --use-spot --dryrun
    """
    from skyserve.cli import dryrun
    from skyserve.cli.task import load_task

    name = cluster or f"sky-{secrets.token_hex(2)}"
    loaded = load_task(session, task, name, flags)
    if flags["dryrun"]:
        dryrun.show(session, loaded)
        return
    client = session.controller()
    known = next((view for view in session.everything() if view.name == name), None)
    if known is not None:
        _again(session, known.kind, name, loaded)
        return
    _new(session, client, loaded, yes=yes, detached=detach_run)


@click.command()
@click.argument("names", nargs=-1, metavar="[CLUSTER]...")
@click.option("--ip", is_flag=True, help="Print only the address of the machine, of exactly one cluster.")
@click.option("--show-services/--no-show-services", default=True, help="Show services below the clusters.")
@output_option
@pass_session
def status(session: Session, names: tuple[str, ...], ip: bool, show_services: bool) -> None:
    """Show clusters, and the services below them.

    \b
    Examples:
      sky status
      ssh root@$(sky status dev --ip)
    """
    views = _chosen(session, names)
    if ip:
        _print_address(session, views)
        return
    services = session.services() if show_services and not names else ()
    if session.as_json:
        from skyserve.model.codec import to_json

        session.screen.json({"clusters": [to_json(v) for v in views], "services": [to_json(v) for v in services]})
        return
    rows = [_row(view, session.now()) for view in views]
    lines = session.screen.table("Clusters", _HEADERS, rows) if rows else ["No existing clusters."]
    if services:
        from skyserve.cli import tables

        found = [tables.service_row(view, verbose=False) for view in services]
        lines = [*lines, "", *session.screen.table("Services", tables.SERVICE_HEADERS, found)]
    for line in [*lines, *_troubles(views)]:
        session.screen.data(line)


@click.command("exec", context_settings={"allow_interspersed_args": False})
@output_option
@click.argument("name", metavar="CLUSTER")
@click.argument("task", nargs=-1, required=True, metavar="(TASK_YAML|COMMAND)...", type=click.UNPROCESSED)
@pass_session
def exec_(session: Session, name: str, task: tuple[str, ...]) -> None:
    """Run a task on the machine of a cluster, and follow its output.

    The task is a YAML, of which `run` counts, or a command. It ends with this command; its exit code is passed on.

    \b
    Examples:
      sky exec dev python train.py
      sky exec dev task.yaml
    """
    _execute(session, name, _script(task))


@click.command()
@click.argument("name", metavar="CLUSTER")
@click.option("--follow/--no-follow", default=True, show_default=True, help="Wait for more, until Ctrl-C.")
@click.option("--tail", type=click.IntRange(min=1), metavar="N", help="Begin with the last N lines.")
@output_option
@pass_session
def logs(session: Session, name: str, follow: bool, tail: int | None) -> None:
    """Show what setup and run of a cluster's task printed.

    \b
    Examples:
      sky logs dev
      sky logs dev --no-follow --tail 100
    """
    from skyserve.cli import log_stream

    client, view = session.cluster(name)
    sources = log_stream.replicas_of(view)
    stream = log_stream.LogStream(session, client, name, tail)
    try:
        if follow:
            stream.follow(sources)
        else:
            stream.read(sources)
    except KeyboardInterrupt:
        session.screen.say(f"\nNo longer following; cluster '{name}' goes on.")
        raise Detached from None


@click.command()
@click.argument("names", nargs=-1, required=True, metavar="CLUSTER...")
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@output_option
@pass_session
def stop(session: Session, names: tuple[str, ...], yes: bool) -> None:
    """Stop the machines of clusters; their disks stay, and cost little.

    \b
    Examples:
      sky stop dev
    """
    _power(session, names, halted=True, yes=yes)


@click.command()
@click.argument("names", nargs=-1, required=True, metavar="CLUSTER...")
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@output_option
@pass_session
def start(session: Session, names: tuple[str, ...], yes: bool) -> None:
    """Let stopped clusters go on where they were.

    \b
    Examples:
      sky start dev
    """
    _power(session, names, halted=False, yes=yes)


@click.command()
@click.argument("names", nargs=-1, metavar="[CLUSTER]...")
@click.option("--all", "-a", "everything", is_flag=True, help="End every cluster.")
@click.option("--purge", "-p", is_flag=True, help="Forget the cluster even if something of it cannot be ended.")
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@output_option
@pass_session
def down(session: Session, names: tuple[str, ...], everything: bool, purge: bool, yes: bool) -> None:
    """End clusters, with all that is on their disks.

    \b
    Examples:
      sky down dev
      sky down --all --yes
    """
    if bool(names) == everything:
        raise UsageError("name the clusters to end, or say --all", hint="sky down NAME")
    views = _chosen(session, names)
    if views and not yes:
        session.screen.confirm(f"Terminating {_title(views)}. Proceed?", if_no="Nothing was terminated.")
    client = session.controller()
    for view in views:
        client.down(view.name, purge=purge)
    ours = {(view.name, view.created_at) for view in views}
    while any((view.name, view.created_at) in ours for view in session.controller().services()):
        session.sleep(_POLL_S)
    session.screen.say(f"Terminated {_title(views)}." if views else "No existing clusters.")
    if session.as_json:
        session.screen.json({"clusters": [view.name for view in views]})


def _new(session: Session, client: ControlClient, loaded: LoadedService, *, yes: bool, detached: bool) -> None:
    from skyserve.cli import plan, wait
    from skyserve.model.codec import to_json

    name = loaded.spec.name
    plan.present(session, client, "the task", loaded)
    if not yes:
        session.screen.confirm(f"Launching a new cluster '{name}'. Proceed?", if_no="Nothing was created.")
    client.create(loaded.spec, loaded.secrets)
    try:
        view = wait.until(session, name, wait.machine_up)
        if session.as_json:
            session.screen.json(to_json(view))
        elif not detached:
            _follow_run(session, client, name)
    except KeyboardInterrupt:
        session.screen.say(f"\nCluster '{name}' goes on. To follow it: sky logs {name}; to end it: sky down {name}")
        raise Detached from None
    session.screen.say(f"Cluster '{name}' is up. More on it: sky exec {name} COMMAND; to end it: sky down {name}")


def _again(session: Session, kind: str, name: str, loaded: LoadedService) -> None:
    """The cluster is there already: its machine runs the task too."""
    from skyserve.errors import ServiceExists

    if kind != "cluster":
        raise ServiceExists(f"'{name}' is a service", hint="name the cluster otherwise: sky launch -c NAME")
    session.screen.say(f"Cluster '{name}' is there already: the task runs on it.")
    parts = [loaded.spec.setup or "", loaded.spec.run]
    _execute(session, name, "\n".join(part for part in parts if part))


def _execute(session: Session, name: str, script: str) -> None:
    """Run a script on a cluster's machine; leave with its exit code when that is not 0."""
    client, _ = session.cluster(name)
    code, kept = 0, list[str]()
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    for told in client.execute(name, script):
        if isinstance(told, int):
            code = told
        else:
            text = decoder.decode(told)
            if session.as_json:
                kept.append(text)
            else:
                session.screen.raw(text)
    if session.as_json:
        session.screen.json({"exit_code": code, "output": "".join(kept)})
    if code:
        raise click.exceptions.Exit(code)


def _follow_run(session: Session, client: ControlClient, name: str) -> None:
    """Print the output of a cluster's task until that has ended; leave with exit code 1 when it failed."""
    from skyserve.cli import log_stream
    from skyserve.model.view import RUN_ENDED

    (source,) = log_stream.replicas_of(client.service(name))
    for line in log_stream.lines_of(client.logs(name, source, follow=True, tail=None)):
        if line.startswith(RUN_ENDED):
            code = line.removeprefix(RUN_ENDED).strip()
            session.screen.say(f"The task has ended with exit code {code}.")
            if code != "0":
                raise click.exceptions.Exit(1)
            return
        session.screen.data(line)


def _script(task: Sequence[str]) -> str:
    from skyserve.cli.task import task_file
    from skyserve.spec.document import read_document
    from skyserve.spec.problems import Problems

    path = task_file(tuple(task))
    if path is None:
        return " ".join(task)
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read: {error}") from error
    written = read_document(text, Problems(text, str(path)))
    run = written.text("run") if written else None
    if not run:
        raise UsageError(f"{path} has no `run`", hint="give a command instead: sky exec CLUSTER COMMAND")
    return run


def _power(session: Session, names: Sequence[str], *, halted: bool, yes: bool) -> None:
    from skyserve.cli import wait

    views = _chosen(session, names)
    if not yes:
        doing = "Stopping" if halted else "Starting"
        session.screen.confirm(f"{doing} {_title(views)}. Proceed?", if_no="Nothing was changed.")
    client = session.controller()
    for view in views:
        client.halt(view.name, halted=halted)
    judge = wait.machine_stopped if halted else wait.machine_up
    try:
        for view in views:
            wait.until(session, view.name, judge)
    except KeyboardInterrupt:
        session.screen.say("\nIt goes on without this command. To look at it: sky status")
        raise Detached from None
    session.screen.say(f"{'Stopped' if halted else 'Started'} {_title(views)}.")
    if session.as_json:
        session.screen.json({"clusters": [view.name for view in views]})


def _chosen(session: Session, names: Sequence[str]) -> list[ServiceView]:
    views = session.clusters()
    by_name = {view.name: view for view in views}
    for name in names:
        if name not in by_name:
            raise not_found(name, by_name, "cluster")
    return [view for view in views if not names or view.name in names]


def _title(views: Sequence[ServiceView]) -> str:
    return f"cluster{'' if len(views) == 1 else 's'} {wording.quoted(view.name for view in views)}"


def _row(view: ServiceView, now: float) -> tuple[str, ...]:
    machine = view.replicas[-1] if view.replicas else None
    if machine is None:
        return (view.name, "-", view.requested_resources, "INIT", wording.ago(now - view.created_at))
    state = _WORDS.get(machine.status, machine.status)
    return (view.name, machine.infra, machine.resources, state, wording.ago(now - machine.launched_at))


def _troubles(views: Sequence[ServiceView]) -> list[str]:
    from skyserve.cli import tables

    blocks = tables.troubles([replica for view in views for replica in view.replicas])
    return [line for block in blocks for line in ("", *block)]


def _print_address(session: Session, views: Sequence[ServiceView]) -> None:
    if len(views) != 1:
        raise UsageError("--ip wants exactly one cluster", hint="sky status NAME --ip")
    endpoints = [replica.endpoint for replica in views[0].replicas if replica.endpoint]
    address = endpoints[-1].rpartition("//")[2].rpartition(":")[0] if endpoints else None
    if session.as_json:
        session.screen.json({"name": views[0].name, "ip": address})
    else:
        session.screen.data(address or "-")
