"""What is shown before anything is made: the spec in words, where it could run and for how much."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from skyserve.cli import daemon, tables
from skyserve.cli.client import ControlClient, PlanAnswer
from skyserve.cli.environment import assignments
from skyserve.cli.options import LaunchFlags
from skyserve.cli.session import Session
from skyserve.errors import Infeasible, SpecError
from skyserve.model.service import ServiceSpec, Tls

if TYPE_CHECKING:
    from skyserve.spec.load import LoadedService
    from skyserve.spec.overrides import Overrides


def load(session: Session, path: str, name: str | None, flags: LaunchFlags) -> LoadedService:
    """Read the Service YAML under the flags. Raises SpecError, UsageError."""
    import secrets

    from skyserve.spec.load import load_service
    from skyserve.store.secrets import SecretStore

    daemon.make_home(session.config)
    key = SecretStore(session.config.secrets_dir).fingerprint_key()
    loaded = load_service(
        Path(path),
        overrides=_overrides(session, name, flags),
        fingerprint_key=key,
        name_suffix=secrets.token_hex(2),
    )
    return replace(loaded, spec=anchored(loaded.spec, Path.cwd()))


def anchored(spec: ServiceSpec, here: Path) -> ServiceSpec:
    """The spec with absolute paths: the controller does not work in the user's directory.

    Raises SpecError for a path that is not there.
    """

    def absolute(key: str, path: str) -> str:
        found = here / Path(path).expanduser()
        if not found.exists():
            raise SpecError(f"`{key}`: there is no {found}", hint="relative paths begin at the current directory")
        return str(found.resolve())

    tls = spec.tls
    return replace(
        spec,
        workdir=absolute("workdir", spec.workdir) if spec.workdir else None,
        file_mounts={there: absolute("file_mounts", path) for there, path in spec.file_mounts.items()},
        tls=Tls(absolute("tls.keyfile", tls.keyfile), absolute("tls.certfile", tls.certfile)) if tls else None,
    )


def present(session: Session, client: ControlClient, path: str, loaded: LoadedService) -> PlanAnswer:
    """Show the spec and the plan on stderr; return the plan. Raises Infeasible when nothing can run it."""
    from skyserve.spec.describe import describe

    screen = session.screen
    screen.say(f"Service from YAML spec: {path}")
    screen.say("Service spec:", "bold")
    for label, value in describe(loaded.spec):
        screen.say(f"{label + ':':<34}{value}")
    answer = client.plan(loaded.spec)
    feasible = [view for view in answer.candidates if not view.refusal]
    if not feasible:
        raise _infeasible(answer)
    screen.say()
    screen.say("Each replica will use the following resources (estimated):")
    for line in tables.plan_lines(feasible, loaded.spec.num_nodes):
        screen.say(line)
    for warning in (*loaded.warnings, *answer.warnings):
        screen.warn(warning)
    return answer


def _overrides(session: Session, name: str | None, flags: LaunchFlags) -> Overrides:
    from skyserve.spec.overrides import Overrides

    mine = session.config.inherited_env
    return Overrides(
        name=name,
        envs=assignments(flags["env_file"], flags["env"], mine, flag="--env"),
        secrets=assignments(flags["secret_file"], flags["secret"], mine, flag="--secret"),
        workdir=flags["workdir"],
        num_nodes=flags["num_nodes"],
        infra=flags["infra"],
        cloud=flags["cloud"],
        region=flags["region"],
        zone=flags["zone"],
        cpus=flags["cpus"],
        memory=flags["memory"],
        gpus=flags["gpus"],
        instance_type=flags["instance_type"],
        ports=flags["ports"],
        disk_size=flags["disk_size"],
        disk_tier=flags["disk_tier"],
        image_id=flags["image_id"],
        use_spot=flags["use_spot"],
        network_tier=flags["network_tier"],
        local_disk=flags["local_disk"],
    )


def _infeasible(answer: PlanAnswer) -> Infeasible:
    refused = [(view.infra or view.provider, view.refusal) for view in answer.candidates]
    lines = [f"  {what}: {why}" for what, why in (*refused, *answer.refusals)]
    hint = "ask for less, or for several alternatives (`accelerators: {L4:1, A10G:1}`); nothing was created"
    return Infeasible("\n".join(["nothing here can run this service", *lines]), hint=hint)


def end_dry_run(session: Session, answer: PlanAnswer) -> None:
    """Say that this was all."""
    from skyserve.model.codec import to_json

    session.screen.say("Dry run: nothing was changed.")
    if session.as_json:
        session.screen.json(to_json(answer))


def say_it_goes_on(session: Session, name: str, what: str) -> None:
    """What becomes of a service whose wait was interrupted."""
    session.screen.say(f"\nService '{name}' {what} without this command.")
    session.screen.say(f"To look at it: sky serve status {name}")
    session.screen.say(f"To remove it:  sky serve down {name}")
