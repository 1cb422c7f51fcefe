"""`sky serve down`: say what ends, ask, wait until it is gone."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypedDict, Unpack

import click

from skyserve.cli import wording
from skyserve.cli.options import output_option
from skyserve.cli.session import Detached, Session, not_found, pass_session
from skyserve.errors import UsageError

if TYPE_CHECKING:
    from skyserve.model.view import ReplicaView, ServiceView

_POLL_S = 0.5


class _Flags(TypedDict):
    purge: bool
    yes: bool
    detach: bool


@dataclass(frozen=True, slots=True)
class _Going:
    """What ends: services, or one replica of the only one of them."""

    services: tuple[ServiceView, ...]
    replica_id: int | None = None

    @property
    def title(self) -> str:
        names = wording.quoted(view.name for view in self.services)
        if self.replica_id is not None:
            return f"replica {self.replica_id} of service {names}"
        noun = "service" if len(self.services) == 1 else "services"
        replicas = sum(len(view.replicas) for view in self.services)
        return f"{noun} {names} with {wording.count(replicas, 'replica')}"


@click.command()
@click.argument("names", nargs=-1, metavar="[NAME|GLOB]...")
@click.option("--all", "-a", "everything", is_flag=True, help="Take every service down.")
@click.option("--purge", "-p", is_flag=True, help="Forget the service even if something of it cannot be ended.")
@click.option("--replica-id", type=int, metavar="N", help="Remove only this replica, of exactly one service.")
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@click.option("--async", "detach", is_flag=True, help="Do not wait until it is gone.")
@output_option
@pass_session
def down(
    session: Session, names: tuple[str, ...], everything: bool, replica_id: int | None, **flags: Unpack[_Flags]
) -> None:
    """Take services down: their replicas end, their endpoints close.

    \b
    Examples:
      sky serve down mixtral
      sky serve down 'test-*' --yes
      sky serve down mixtral --replica-id 3
    """
    going = _chosen(session, names, everything=everything, replica_id=replica_id)
    if not going.services:
        session.screen.say("No existing services.")
        _report(session, going)
        return
    if not flags["yes"]:
        session.screen.confirm(f"Terminating {going.title}. Proceed?", if_no="Nothing was terminated.")
    client = session.controller()
    for view in going.services:
        if going.replica_id is None:
            client.down(view.name, purge=flags["purge"])
        else:
            client.remove_replica(view.name, going.replica_id)
    if not flags["detach"]:
        try:
            _await_end(session, going)
        except KeyboardInterrupt:
            session.screen.say(f"\nThe termination of {going.title} goes on. To look at it: sky serve status")
            raise Detached from None
    _report(session, going, ended=not flags["detach"])


def _chosen(session: Session, names: Sequence[str], *, everything: bool, replica_id: int | None) -> _Going:
    if bool(names) == everything:
        raise UsageError("name the services to take down, or say --all", hint="sky serve down NAME")
    views = session.services()
    known = [view.name for view in views]
    wanted: set[str] = set(known) if everything else set()
    for pattern in names:
        matched = [name for name in known if fnmatch.fnmatchcase(name, pattern)]
        if not matched:
            raise not_found(pattern, known)
        wanted.update(matched)
    chosen = tuple(view for view in views if view.name in wanted)
    if replica_id is not None:
        _require_replica(chosen, replica_id)
    return _Going(chosen, replica_id)


def _require_replica(chosen: Sequence[ServiceView], replica_id: int) -> None:
    if len(chosen) != 1:
        raise UsageError("--replica-id wants exactly one service", hint="sky serve down NAME --replica-id N")
    (view,) = chosen
    if all(replica.id != replica_id for replica in view.replicas):
        there = ", ".join(str(replica.id) for replica in view.replicas) or "none"
        raise UsageError(f"service '{view.name}' has no replica {replica_id}; it has: {there}", hint="sky serve status")


def _await_end(session: Session, going: _Going) -> None:
    from skyserve.cli import wait

    remaining = _replica_remains(going) if going.replica_id is not None else _services_remain(going)
    with session.screen.progress() as progress:
        while left := remaining(session.controller().services()):
            now = session.now()
            progress.show([row for view in left for row in wait.rows(view, now, name_replicas=len(left) > 1)])
            session.sleep(_POLL_S)


def _services_remain(going: _Going) -> Callable[[Sequence[ServiceView]], list[ServiceView]]:
    # A service of the same name may be brought up meanwhile; that is another one.
    ours = {(view.name, view.created_at) for view in going.services}
    return lambda views: [view for view in views if (view.name, view.created_at) in ours]


def _replica_remains(going: _Going) -> Callable[[Sequence[ServiceView]], list[ServiceView]]:
    def has_it(replicas: Sequence[ReplicaView]) -> bool:
        return any(replica.id == going.replica_id for replica in replicas)

    services = _services_remain(going)
    return lambda views: [view for view in services(views) if has_it(view.replicas)]


def _report(session: Session, going: _Going, *, ended: bool = True) -> None:
    if going.services:
        session.screen.say(f"{'Terminated' if ended else 'Terminating'} {going.title}.")
    if session.as_json:
        names = [view.name for view in going.services]
        session.screen.json({"services": names, "replica_id": going.replica_id, "ended": ended})
