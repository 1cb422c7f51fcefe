"""`sky ssh`: makes the hosts of `~/.sky/ssh_node_pools.yaml` ready for replicas, shows them, and gives them back."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import click

from skyserve.cli import wording
from skyserve.cli.lazy import LazyGroup
from skyserve.cli.options import output_option
from skyserve.cli.session import Session, pass_session
from skyserve.errors import CredentialsRejected, ProviderError, UsageError

if TYPE_CHECKING:
    from skyserve.model.codec import JsonValue
    from skyserve.providers.ssh import SshProvider
    from skyserve.providers.ssh.host import SshHost

_HEADERS = ("POOL", "HOST", "STATE", "CPUS", "MEMORY", "GPUS", "REPLICAS", "WHY")
_EXPENDABLE = ("WHY", "MEMORY", "CPUS")
_READY, _NOT_SET_UP, _FAILED, _SILENT, _REMOVED = "ready", "not set up", "failed", "silent", "removed"


class _Ssh(LazyGroup):
    commands_at: ClassVar[Mapping[str, str]] = {
        "up": "skyserve.cli.ssh:up",
        "status": "skyserve.cli.ssh:status",
        "down": "skyserve.cli.ssh:down",
    }


@dataclass(frozen=True, slots=True)
class _Row:
    """One host, and what became of it. What is not known of it is None."""

    pool: str
    host: str
    state: str
    why: str = ""
    cpus: float | None = None
    memory_gib: float | None = None
    gpus: str = ""
    replicas: int | None = None

    def cells(self) -> tuple[str, ...]:
        memory = "" if self.memory_gib is None else f"{self.memory_gib:g} GiB"
        cpus = "" if self.cpus is None else f"{self.cpus:g}"
        replicas = "" if self.replicas is None else str(self.replicas)
        return self.pool, self.host, self.state, cpus, memory, self.gpus, replicas, self.why

    def json(self) -> JsonValue:
        return {
            "pool": self.pool,
            "host": self.host,
            "state": self.state,
            "why": self.why,
            "cpus": self.cpus,
            "memory_gib": self.memory_gib,
            "gpus": self.gpus,
            "replicas": self.replicas,
        }


infra_option = click.option("--infra", metavar="POOL", help="Only the hosts of this pool.")


@click.group(cls=_Ssh, invoke_without_command=True)
@click.pass_context
def ssh(ctx: click.Context) -> None:
    """Use machines of your own, which you reach over SSH.

    \b
    Examples:
      sky ssh up
      sky ssh status
    """
    if ctx.invoked_subcommand is None:
        ctx.ensure_object(Session).screen.data(ctx.get_help())


@click.command()
@infra_option
@output_option
@pass_session
def up(session: Session, infra: str | None) -> None:
    """Make the hosts of ~/.sky/ssh_node_pools.yaml ready for replicas.

    Puts a small agent into the home directory of each, and looks at its hardware. Fine to repeat. `ssh HOST` has to
    work without a password, and the host's key has to be known.

    \b
    my-pool:
      hosts:
        - gpu-1
        - ip: 10.0.0.2
          user: ubuntu
          identity_file: ~/.ssh/id_ed25519

    \b
    Examples:
      sky ssh up
      sky ssh up --infra my-pool
    """
    _finish(session, _with_hosts(session, infra, _set_up))


@click.command()
@infra_option
@output_option
@pass_session
def status(session: Session, infra: str | None) -> None:
    """Show the hosts: whether they answer, what they have, how many replicas are on them.

    \b
    Example:
      sky ssh status
    """
    _finish(session, _with_hosts(session, infra, _look_at))


@click.command()
@infra_option
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@output_option
@pass_session
def down(session: Session, infra: str | None, yes: bool) -> None:
    """Give the hosts back: end the replicas there, and remove what `sky ssh up` put there.

    Only what this installation started is ended. Services replace such replicas, elsewhere.

    \b
    Example:
      sky ssh down --infra my-pool
    """
    rows = [row for row in _with_hosts(session, infra, _look_at) if row.state != _NOT_SET_UP]
    busy = sum(row.replicas or 0 for row in rows)
    if busy and not yes:
        what = f"{wording.count(busy, 'replica')} on {wording.count(len(rows), 'host')}"
        session.screen.confirm(f"Terminating {what}. Proceed?", if_no="Nothing was terminated.")
    _finish(session, _with_hosts(session, infra, _take_down))


async def _set_up(host: SshHost) -> _Row:
    await host.set_up()
    return await _look_at(host)


async def _look_at(host: SshHost) -> _Row:
    note = host.note
    if note is None:
        return _Row(host.spec.pool, host.spec.name, _NOT_SET_UP, f"sky ssh up --infra {host.spec.pool}")
    await host.heard()
    note = host.note or note
    machine, silent = note.machine, host.silent
    return _Row(
        pool=host.spec.pool,
        host=host.spec.name,
        state=_SILENT if silent else _READY,
        why=silent or "",
        cpus=machine.vcpus,
        memory_gib=machine.memory_gib,
        gpus=machine.gpu_summary,
        replicas=len(host.instances()),
    )


async def _take_down(host: SshHost) -> _Row:
    if host.note is None:
        return _Row(host.spec.pool, host.spec.name, _NOT_SET_UP)
    count = await host.take_down()
    return _Row(host.spec.pool, host.spec.name, _REMOVED, replicas=count)


def _with_hosts(session: Session, infra: str | None, work: Callable[[SshHost], Awaitable[_Row]]) -> list[_Row]:
    """Do something with every host at once; a row for each, whether or not it went well."""
    import asyncio  # not for `sky --help`

    return asyncio.run(_each(_provider(session), infra, work))


def _provider(session: Session) -> SshProvider:
    from skyserve.clock import SystemClock
    from skyserve.providers.ssh import SshProvider, pools_file

    path = pools_file(session.config)
    if not path.exists():
        raise UsageError(f"there is no {path}", hint="list your hosts in it; `sky ssh up --help` shows how")
    return SshProvider(session.config, SystemClock())


async def _each(provider: SshProvider, infra: str | None, work: Callable[[SshHost], Awaitable[_Row]]) -> list[_Row]:
    import asyncio

    pools = provider.pools()
    if infra is not None and infra not in pools:
        near = wording.nearest(infra, list(pools))
        raise UsageError(f"there is no pool '{infra}'", hint=f"did you mean '{near}'?" if near else ", ".join(pools))
    hosts = [provider.host(spec) for pool, specs in pools.items() if infra in (None, pool) for spec in specs]
    try:
        return list(await asyncio.gather(*(_tried(host, work) for host in hosts)))
    finally:
        await provider.close()


async def _tried(host: SshHost, work: Callable[[SshHost], Awaitable[_Row]]) -> _Row:
    try:
        return await work(host)
    except CredentialsRejected as error:
        hint = f"try `ssh {host.spec.name}` by hand: it has to work without a question"
        return _Row(host.spec.pool, host.spec.name, _FAILED, f"{error.message}; {hint}")
    except ProviderError as error:
        return _Row(host.spec.pool, host.spec.name, _FAILED, error.message)


def _finish(session: Session, rows: Sequence[_Row]) -> None:
    """Show the hosts; exit code 1 when one of them is not as it should be."""
    screen = session.screen
    if session.as_json:
        screen.json({"hosts": [row.json() for row in rows]})
    else:
        for line in screen.table("Hosts", _HEADERS, [row.cells() for row in rows], expendable=_EXPENDABLE):
            screen.data(line)
    bad = [row for row in rows if row.state in (_FAILED, _SILENT)]
    if bad:
        for row in bad:
            screen.error(f"{row.pool}/{row.host}: {row.why}")
        raise click.exceptions.Exit(1)
