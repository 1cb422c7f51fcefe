"""`sky launch --dryrun`: where a task could run and for how much. There are no clusters here, only services."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

import click

from skyserve.cli.options import LaunchFlags, launch_options
from skyserve.cli.session import Session, pass_session
from skyserve.errors import UsageError

if TYPE_CHECKING:
    from skyserve.spec.load import LoadedService

_SERVICE = "service:\n  readiness_probe: /\n"
_RUN = "run: 'true'\n"
_PORT = "8080"


@click.command()
@click.argument("task_yaml", required=False, type=click.Path(exists=True, dir_okay=False))
@launch_options
@pass_session
def launch(session: Session, task_yaml: str | None, **flags: Unpack[LaunchFlags]) -> None:
    """Show where a task could run, with --dryrun.

    The task in TASK_YAML, or without a file what the options ask for. `sky serve up` runs services; clusters are not
    supported.

    \b
    Examples:
      sky launch task.yaml --dryrun
      sky launch --gpus A100:8 --use-spot --dryrun
    """
    from skyserve.cli import dryrun

    if not flags["dryrun"]:
        raise UsageError(
            "launch of clusters is not supported: `sky launch` only shows plans",
            hint="add --dryrun, or run a service: sky serve up SERVICE_YAML",
        )
    if task_yaml:
        session.screen.say(f"Task from YAML spec: {task_yaml}")
    dryrun.show(session, _load(session, task_yaml, flags))


def _load(session: Session, path: str | None, flags: LaunchFlags) -> LoadedService:
    from skyserve.cli import plan
    from skyserve.spec.load import load_service

    source, label = _as_service(Path(path)) if path else (_SERVICE + _RUN, "the options")
    overrides = plan.overrides(session, None, flags)
    if isinstance(source, str):
        overrides = replace(overrides, ports=overrides.ports or (_PORT,))
    loaded = load_service(source, overrides=overrides, fingerprint_key=plan.NO_KEY, label=label)
    return replace(loaded, spec=plan.anchored(loaded.spec, Path.cwd()))


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
