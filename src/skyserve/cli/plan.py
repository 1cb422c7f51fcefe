"""What is shown before anything is made: the spec in words, where it could run and for how much."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from skyserve.cli import daemon, estimate, tables
from skyserve.cli.client import ControlClient, PlanAnswer
from skyserve.cli.environment import assignments
from skyserve.cli.estimate import Estimate
from skyserve.cli.options import OverrideFlags
from skyserve.cli.session import Session
from skyserve.errors import Infeasible, SpecError
from skyserve.model.service import ServiceSpec, Tls
from skyserve.model.source import git_source

if TYPE_CHECKING:
    from skyserve.spec.load import LoadedService
    from skyserve.spec.overrides import Overrides

NO_KEY = bytes(32)
"""For `load` where nothing is kept: no later version's secrets will be compared with these."""


def load(
    session: Session, path: str, name: str | None, flags: OverrideFlags, *, key: bytes | None = None
) -> LoadedService:
    """Read the Service YAML under the flags. `key` stands in for the one that this installation keeps for secrets.

    Raises SpecError, UsageError.
    """
    import secrets

    from skyserve.spec.load import load_service

    loaded = load_service(
        Path(path),
        overrides=overrides(session, name, flags),
        fingerprint_key=key or fingerprint_key(session),
        name_suffix=secrets.token_hex(2),
    )
    return replace(loaded, spec=anchored(loaded.spec, Path.cwd()))


def fingerprint_key(session: Session) -> bytes:
    from skyserve.store.secrets import SecretStore

    daemon.make_home(session.config)
    return SecretStore(session.config.secrets_dir).fingerprint_key()


def anchored(spec: ServiceSpec, here: Path) -> ServiceSpec:
    """The spec with absolute paths: the controller does not work in the user's directory.

    Raises SpecError for a path that is not there.
    """

    def absolute(key: str, path: str) -> str:
        if git_source(path) is not None:
            return path
        found = here / Path(path).expanduser()
        if not found.exists():
            raise SpecError(f"`{key}`: there is no {found}", hint="relative paths begin at the current directory")
        return str(found.resolve())

    tls, trust = spec.tls, spec.replica_tls
    return replace(
        spec,
        workdir=absolute("workdir", spec.workdir) if spec.workdir else None,
        file_mounts={there: absolute("file_mounts", path) for there, path in spec.file_mounts.items()},
        tls=Tls(absolute("tls.keyfile", tls.keyfile), absolute("tls.certfile", tls.certfile)) if tls else None,
        replica_tls=replace(trust, ca_file=absolute("replica_tls.ca_file", trust.ca_file))
        if trust and trust.ca_file
        else trust,
    )


def present(session: Session, client: ControlClient, path: str, loaded: LoadedService) -> Estimate:
    """Show the spec and the controller's plan on stderr; return the plan.

    Raises Infeasible when nothing that is enabled can run it; the error names the cheapest offer of the others.
    """
    describe(session, path, loaded)
    answer = client.plan(loaded.spec)
    feasible = [view for view in answer.candidates if not view.refusal]
    if not feasible:
        raise _infeasible(session, loaded.spec, answer)
    rows = [estimate.of_view(view) for view in feasible]
    warnings = (*loaded.warnings, *answer.warnings)
    plan = estimate.estimate(loaded.spec, rows, refusals=answer.refusals, warnings=warnings)
    plan = replace(plan, mix=answer.mix)
    show(session, loaded.spec, plan)
    return plan


def describe(session: Session, path: str, loaded: LoadedService) -> None:
    """Show the spec on stderr."""
    from skyserve.spec.describe import describe

    session.screen.say(f"Service from YAML spec: {path}")
    session.screen.say("Service spec:", "bold")
    for label, value in describe(loaded.spec):
        session.screen.say(f"{label + ':':<34}{value}")


def show(session: Session, spec: ServiceSpec, plan: Estimate) -> None:
    """Show a plan on stderr."""
    session.screen.say()
    session.screen.say("Each replica will use the following resources (estimated):")
    for line in tables.plan_lines(plan, spec.num_nodes, session.screen.columns):
        session.screen.say(line)
    for line in tables.mix_lines(plan.mix):
        session.screen.say(line)
    for warning in plan.warnings:
        session.screen.warn(warning)


def overrides(session: Session, name: str | None, flags: OverrideFlags) -> Overrides:
    """What the flags say over the Service YAML. Raises UsageError for a variable that is not set."""
    from skyserve.spec.overrides import Overrides

    mine = session.config.inherited_env
    return Overrides(
        name=name,
        envs=assignments(flags["env_file"], flags["env"], mine, flag="--env"),
        secrets=assignments(flags["secret_file"], flags["secret"], mine, flag="--secret"),
        workdir=flags["workdir"],
        git_url=flags["git_url"],
        git_ref=flags["git_ref"],
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


def _infeasible(session: Session, spec: ServiceSpec, answer: PlanAnswer) -> Infeasible:
    from skyserve.cli import offers

    refused = [(view.infra or view.provider, view.refusal) for view in answer.candidates]
    lines = [f"  {what}: {why}" for what, why in (*refused, *answer.refusals)]
    more, hint = offers.elsewhere(session.config.home, spec)
    return Infeasible("\n".join(["nothing here can run this service", *lines, *more]), hint=hint)


def end_dry_run(session: Session, plan: Estimate) -> None:
    """Say that this was all."""
    from skyserve.model.codec import to_json

    session.screen.say("Dry run: nothing was changed.")
    if session.as_json:
        session.screen.json(to_json(plan))


def say_it_goes_on(session: Session, name: str, what: str) -> None:
    """What becomes of a service whose wait was interrupted."""
    session.screen.say(f"\nService '{name}' {what} without this command.")
    session.screen.say(f"To look at it: sky serve status {name}")
    session.screen.say(f"To remove it:  sky serve down {name}")
