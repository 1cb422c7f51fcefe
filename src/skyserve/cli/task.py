"""What a cluster is to run: a YAML that need not have a `service:`, or a command. Starts nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from skyserve.cli.options import LaunchFlags
    from skyserve.cli.session import Session
    from skyserve.spec.load import LoadedService

_SERVICE = "service:\n  readiness_probe: /\n"
_RUN = "run: 'true'\n"
_PORT = "8080"


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
