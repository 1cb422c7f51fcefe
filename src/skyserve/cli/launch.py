"""`sky launch`: a machine of one's own for a task, or with --dryrun only where it could run and for how much."""

from __future__ import annotations

import secrets
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

import click

from skyserve.cli.options import LaunchFlags, launch_options
from skyserve.cli.session import Detached, Session, pass_session

if TYPE_CHECKING:
    from skyserve.cli.client import ControlClient
    from skyserve.spec.load import LoadedService

_SERVICE = "service:\n  readiness_probe: /\n"
_RUN = "run: 'true'\n"
_PORT = "8080"


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


def load_task(session: Session, task: tuple[str, ...], name: str | None, flags: LaunchFlags) -> LoadedService:
    """What a YAML, a command, or the options alone ask for, as the spec of a cluster. Raises SpecError, UsageError."""
    from skyserve.cli import plan
    from skyserve.model.service import Kind
    from skyserve.spec.load import load_service

    path = task_file(task)
    source, label = _as_service(path) if path else (_SERVICE + _RUN, "the options")
    if path:
        session.screen.say(f"Task from YAML spec: {path}")
    overrides = plan.overrides(session, name, flags)
    if isinstance(source, str):
        overrides = replace(overrides, ports=overrides.ports or (_PORT,))
    key = plan.NO_KEY if flags["dryrun"] else plan.fingerprint_key(session)
    loaded = load_service(source, overrides=overrides, fingerprint_key=key, label=label)
    run = loaded.spec.run if path else " ".join(task)
    return replace(loaded, spec=replace(plan.anchored(loaded.spec, Path.cwd()), kind=Kind.CLUSTER, run=run))


def task_file(task: tuple[str, ...]) -> Path | None:
    """The YAML, when that is what the words name."""
    if len(task) == 1 and task[0].endswith((".yaml", ".yml")):
        return Path(task[0])
    return None


def _as_service(path: Path) -> tuple[Path | str, str]:
    """The file, or its text with what a service has and a task may lack: it makes no difference to where it can run."""
    from skyserve.spec.document import read_document
    from skyserve.spec.problems import Problems

    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return path, str(path)  # whoever reads it next says what is wrong with it
    written = read_document(text, Problems(text, str(path)))
    keys = {entry.key for entry in written.entries} if written else {"service"}
    if "service" in keys:
        return path, str(path)
    return f"{text.rstrip()}\n{_SERVICE}{'' if 'run' in keys else _RUN}", str(path)


def _new(session: Session, client: ControlClient, loaded: LoadedService, *, yes: bool, detached: bool) -> None:
    from skyserve.cli import cluster, plan, wait
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
            cluster.follow_run(session, client, name)
    except KeyboardInterrupt:
        session.screen.say(f"\nCluster '{name}' goes on. To follow it: sky logs {name}; to end it: sky down {name}")
        raise Detached from None
    session.screen.say(f"Cluster '{name}' is up. More on it: sky exec {name} COMMAND; to end it: sky down {name}")


def _again(session: Session, kind: str, name: str, loaded: LoadedService) -> None:
    """The cluster is there already: its machine runs the task too."""
    from skyserve.cli import cluster
    from skyserve.errors import ServiceExists

    if kind != "cluster":
        raise ServiceExists(f"'{name}' is a service", hint="name the cluster otherwise: sky launch -c NAME")
    session.screen.say(f"Cluster '{name}' is there already: the task runs on it.")
    parts = [loaded.spec.setup or "", loaded.spec.run]
    cluster.execute(session, name, "\n".join(part for part in parts if part))
