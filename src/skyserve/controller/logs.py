"""Output of replicas, of the door and of the controller, as streams."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from skyserve.clock import Clock
from skyserve.controller.supervisor import Supervisor
from skyserve.errors import ServiceNotFound, UsageError
from skyserve.model.replica import Replica
from skyserve.store.base import ServiceState

FOLLOW_POLL_S = 0.25
_CHUNK = 1 << 16


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which output: `source` is replica, load_balancer or controller; `tail` limits to the last lines."""

    service: str
    source: str
    replica: int | None
    follow: bool
    tail: int | None


async def open_stream(supervisor: Supervisor, wanted: Wanted) -> AsyncIterator[bytes]:
    """The stream of one output. Raises ServiceNotFound for a replica that is not there, UsageError for a bad source."""
    state = await supervisor.store.load(wanted.service)
    if wanted.source == "controller":
        return tail_file(supervisor.config.controller_log, supervisor.clock, wanted)
    if wanted.source == "load_balancer":
        path = supervisor.config.service_dir(f"{state.name}-{state.uid}") / "door.log"
        return tail_file(path, supervisor.clock, wanted)
    if wanted.source != "replica":
        raise UsageError(f"unknown log source {wanted.source!r}", hint="one of: replica, load_balancer, controller")
    replica = _find(state, wanted)
    if replica.offering is None or replica.instance_id is None:
        return _nothing()
    provider = supervisor.providers[replica.offering.provider]
    return provider.logs(replica.instance_id, follow=wanted.follow, tail=wanted.tail)


def _find(state: ServiceState, wanted: Wanted) -> Replica:
    for replica in state.replicas:
        if replica.id == wanted.replica:
            return replica
    known = ", ".join(str(r.id) for r in state.replicas) or "none"
    raise ServiceNotFound(f"service {state.name!r} has no replica {wanted.replica}", hint=f"its replicas: {known}")


async def _nothing() -> AsyncIterator[bytes]:
    nothing: tuple[bytes, ...] = ()
    for chunk in nothing:
        yield chunk


async def tail_file(path: Path, clock: Clock, wanted: Wanted) -> AsyncIterator[bytes]:
    """A log file of ours: its last lines, then what is added while followed."""
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return
    with file:
        content = file.read()
        lines = content.splitlines(keepends=True)
        yield b"".join(lines if wanted.tail is None else lines[-wanted.tail :] if wanted.tail else [])
        while wanted.follow:
            chunk = file.read(_CHUNK)
            if chunk:
                yield chunk
            else:
                await clock.sleep(FOLLOW_POLL_S)
