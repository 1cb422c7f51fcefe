"""`sky serve logs`: the output of replicas, of the load balancer or of the controller, here or into files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict, Unpack

import click

from skyserve.cli.options import output_option
from skyserve.cli.session import Detached, Session, pass_session
from skyserve.errors import SkyServeError, UsageError

if TYPE_CHECKING:
    from skyserve.cli.client import ControlClient, LogSource
    from skyserve.model.view import ServiceView


class _Flags(TypedDict):
    follow: bool
    sync_down: bool
    to: str | None
    tail: int | None


@click.command()
@click.argument("name")
@click.argument("replica_ids", nargs=-1, type=int, metavar="[REPLICA_ID]...")
@click.option("--follow/--no-follow", default=True, show_default=True, help="Wait for more, until Ctrl-C.")
@click.option("--controller", "source", flag_value="controller", help="What the controller says of this service.")
@click.option("--load-balancer", "source", flag_value="load_balancer", help="What the load balancer says.")
@click.option("--sync-down", "-s", is_flag=True, help="Write the logs into files and print their names.")
@click.option("--to", type=click.Path(file_okay=False), metavar="DIR", help="Where --sync-down writes; else NAME-logs.")
@click.option(
    "--tail", type=click.IntRange(min=1), metavar="N", help="Begin with the last N lines; else with the first."
)
@output_option
@pass_session
def logs(
    session: Session, name: str, replica_ids: tuple[int, ...], source: str | None, **flags: Unpack[_Flags]
) -> None:
    """Show the output of the service NAME.

    Shows that of every replica, or of those given by id.
    With several replicas every line says whose it is. Ctrl-C ends the command, never the service.

    \b
    Examples:
      sky serve logs mixtral
      sky serve logs mixtral 2 --tail 100
      sky serve logs mixtral --load-balancer --no-follow
      sky serve logs mixtral --sync-down --to ./logs
    """
    if source and replica_ids:
        raise UsageError(f"--{source.replace('_', '-')} goes without replica ids", hint="sky serve logs --help")
    if flags["to"] and not flags["sync_down"]:
        raise UsageError("--to goes with --sync-down", hint="sky serve logs NAME --sync-down --to DIR")
    client, view = session.service(name)
    chosen = _named_sources(view, source, replica_ids)
    if flags["sync_down"]:
        _write_files(session, client, view, chosen or _all_sources(view), Path(flags["to"] or f"{name}-logs"))
        return
    _print(session, client, view, chosen, flags)


def _named_sources(view: ServiceView, kind: str | None, replica_ids: Sequence[int]) -> list[LogSource]:
    from skyserve.cli.client import LogSource

    if kind:
        return [LogSource(kind)]
    there = {replica.id for replica in view.replicas}
    missing = [str(replica_id) for replica_id in replica_ids if replica_id not in there]
    if missing:
        ids = ", ".join(map(str, sorted(there))) or "none"
        raise UsageError(
            f"service '{view.name}' has no replica {', '.join(missing)}; it has: {ids}", hint="sky serve status"
        )
    return [LogSource("replica", replica_id) for replica_id in replica_ids]


def _all_sources(view: ServiceView) -> list[LogSource]:
    from skyserve.cli.client import LogSource

    replicas = [LogSource("replica", replica.id) for replica in view.replicas]
    return [*replicas, LogSource("load_balancer"), LogSource("controller")]


def _print(
    session: Session, client: ControlClient, view: ServiceView, chosen: Sequence[LogSource], flags: _Flags
) -> None:
    from skyserve.cli import log_stream

    stream = log_stream.LogStream(session, client, view.name, flags["tail"])
    try:
        if flags["follow"]:
            stream.follow(chosen)
        else:
            stream.read(chosen or log_stream.replicas_of(view))
    except KeyboardInterrupt:
        session.screen.say(f"\nNo longer following; service '{view.name}' goes on.")
        raise Detached from None


def _write_files(
    session: Session, client: ControlClient, view: ServiceView, sources: Sequence[LogSource], directory: Path
) -> None:
    files = []
    for source in sources:
        path = directory / f"{source.title.replace(' ', '-')}.log"
        try:
            directory.mkdir(parents=True, exist_ok=True)
            with path.open("wb") as file:
                file.writelines(client.logs(view.name, source, follow=False, tail=None))
        except OSError as error:
            raise UsageError(f"{path} cannot be written: {error.strerror or error}", hint="--to DIR") from error
        except SkyServeError as error:
            session.screen.warn(f"{source.title}: {error.message}")
            continue
        files.append(str(path))
    if session.as_json:
        session.screen.json({"files": list(files)})
    else:
        session.screen.data("\n".join(files))
