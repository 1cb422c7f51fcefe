"""Options that several commands share, and their types. Declares; does nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypedDict, TypeVar

import click

from skyserve.cli.session import Session

F = TypeVar("F", bound=Callable[..., object])


class OverrideFlags(TypedDict):
    """What may be set over the Service YAML; None and empty mean: as the YAML says."""

    workdir: str | None
    git_url: str | None
    git_ref: str | None
    infra: str | None
    cloud: str | None
    region: str | None
    zone: str | None
    num_nodes: int | None
    cpus: str | None
    memory: str | None
    disk_size: int | None
    disk_tier: str | None
    network_tier: str | None
    use_spot: bool | None
    image_id: str | None
    env_file: str | None
    env: tuple[str, ...]
    secret_file: str | None
    secret: tuple[str, ...]
    local_disk: str | None
    gpus: str | None
    instance_type: str | None
    ports: tuple[str, ...]


class LaunchFlags(OverrideFlags):
    """The flags over the YAML; `dryrun` stops after the plan."""

    dryrun: bool


class WaitFlags(TypedDict):
    """How a command itself goes on: whether it asks, and how long it waits."""

    detach: bool
    yes: bool
    timeout: float | None


class RunFlags(LaunchFlags, WaitFlags):
    """The launch flags, and how the command itself goes on."""


_FILE = click.Path(exists=True, dir_okay=False)

_OVERRIDE_OPTIONS = (
    click.option("--workdir", metavar="DIR", help="Directory that is copied to every replica."),
    click.option("--git-url", metavar="URL", help="Git repository to take in place of a workdir."),
    click.option("--git-ref", metavar="REF", help="Branch, tag or commit of --git-url."),
    click.option("--infra", metavar="CLOUD[/REGION[/ZONE]]", help="Where replicas may run; `*` stands for any."),
    click.option("--cloud", hidden=True, help="Cloud to use; --infra says it better."),
    click.option("--region", hidden=True, help="Region to use; --infra says it better."),
    click.option("--zone", hidden=True, help="Zone to use; --infra says it better."),
    click.option("--num-nodes", type=click.IntRange(min=1), metavar="N", help="Machines for each replica."),
    click.option("--cpus", metavar="N[+]", help="vCPUs for each replica; `4+` means at least 4."),
    click.option("--memory", metavar="GB[+]", help="Memory for each replica; `32+` means at least 32 GB."),
    click.option("--disk-size", type=click.IntRange(min=1), metavar="GB", help="Size of the system disk."),
    click.option("--disk-tier", metavar="TIER", help="Speed of the system disk: low, medium, high, ultra or best."),
    click.option("--network-tier", metavar="TIER", help="Speed of the network: standard or best."),
    click.option("--use-spot/--no-use-spot", default=None, help="Use spot instances, or do not."),
    click.option("--image-id", metavar="IMAGE", help="Machine image, or `docker:IMAGE`."),
    click.option("--env-file", type=_FILE, metavar="FILE", help="File of KEY=VALUE lines for the replicas."),
    click.option(
        "--env", multiple=True, metavar="KEY[=VALUE]", help="Variable for the replicas; KEY alone takes yours."
    ),
    click.option(
        "--secret-file", type=_FILE, metavar="FILE", help="As --env-file; values are never shown or stored in the spec."
    ),
    click.option(
        "--secret",
        multiple=True,
        metavar="KEY[=VALUE]",
        help="As --env; the value is never shown or stored in the spec.",
    ),
    click.option("--local-disk", metavar="SPEC", help="Local disk for each replica, such as `nvme:300+`."),
    click.option("--gpus", metavar="NAME[:COUNT]", help="Accelerators for each replica, such as `L4:1`."),
    click.option("--instance-type", "-t", metavar="TYPE", help="Instance type for each replica."),
    click.option("--ports", multiple=True, metavar="PORT", help="Port on which each replica listens."),
)

_LAUNCH_OPTIONS = (
    *_OVERRIDE_OPTIONS,
    click.option("--dryrun", is_flag=True, help="Show the plan and stop."),
)

_WAIT_OPTIONS = (
    click.option("--async/--no-async", "detach", default=False, help="Do not wait until the replicas are ready."),
    click.option("--yes", "-y", is_flag=True, help="Do not ask."),
    click.option("--timeout", type=click.FloatRange(min=0), metavar="SECONDS", help="Wait no longer than this."),
)


def _set_output(ctx: click.Context, param: click.Parameter, value: str) -> None:
    ctx.ensure_object(Session).as_json = value == "json"


output_option = click.option(
    "--output",
    "-o",
    type=click.Choice(["text", "json"]),
    default="text",
    expose_value=False,
    callback=_set_output,
    help="text for people, json for programs. Data goes to stdout, the rest to stderr.",
)


def override_options(command: F) -> F:
    """Add what may be set over a YAML; the command receives it as `**flags`, an OverrideFlags."""
    for option in reversed((*_OVERRIDE_OPTIONS, output_option)):
        command = option(command)
    return command


def launch_options(command: F) -> F:
    """Add that, and a dry run; the command receives it as `**flags`, a LaunchFlags."""
    for option in reversed((*_LAUNCH_OPTIONS, output_option)):
        command = option(command)
    return command


def wait_options(command: F) -> F:
    """Add what a command needs that changes something and waits for it; it receives it as `**flags`, a WaitFlags."""
    for option in reversed((*_WAIT_OPTIONS, output_option)):
        command = option(command)
    return command


def run_options(command: F) -> F:
    """Add everything that `up` and `update` share; the command receives it as `**flags`, a RunFlags."""
    for option in reversed((*_LAUNCH_OPTIONS, *_WAIT_OPTIONS, output_option)):
        command = option(command)
    return command


def mode_option(command: F) -> F:
    """Add how a version takes over; the command receives it as `mode`, a value of UpdateMode."""
    from skyserve.model.service import UpdateMode  # what other commands have no use for

    return click.option(
        "--mode",
        type=click.Choice([mode.value for mode in UpdateMode]),
        default=UpdateMode.ROLLING.value,
        show_default=True,
        help="rolling replaces replicas one by one, blue_green switches all requests at once, canary in steps.",
    )(command)
