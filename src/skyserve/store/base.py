"""The store contract. Every write is one transaction; concurrency is one mechanism: a lease, and a revision that is
compared and set. Nothing but JSON is stored, through `model.codec`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from skyserve.model.decision import Decision, Memory, Observation, Plan
from skyserve.model.health import Cooldown
from skyserve.model.replica import Replica
from skyserve.model.service import ServiceSpec, UpdateMode


@dataclass(frozen=True, slots=True)
class ServiceState:
    """All that is stored of one service.

    `revision` grows with every write to it. `evict` is what the user asked to remove, `halted` whether the
    user wants the machine stopped. `health` is what all services
    together know of capacity pools. `first_ready_at` is when it first had a ready replica; `note` says what the last
    plan waits for.
    """

    name: str
    uid: str
    wanted: bool
    purge: bool
    port: int
    latest_version: int
    update_mode: UpdateMode
    revision: int
    created_at: float
    specs: Mapping[int, ServiceSpec]
    replicas: tuple[Replica, ...]
    next_replica_id: int
    memory: Memory
    evict: tuple[int, ...] = ()
    halted: bool = False
    health: tuple[Cooldown, ...] = ()
    first_ready_at: float | None = None
    target: int = 0
    note: str = ""


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to run one service's loop until `expires_at`, Unix seconds; `fence` grows with each new holder."""

    service: str
    holder: str
    fence: int
    expires_at: float


@dataclass(frozen=True, slots=True)
class StoredVersion:
    """One version of a service as it was given: how it was to take over, and when, Unix seconds."""

    version: int
    spec: ServiceSpec
    mode: UpdateMode
    created_at: float


def used_versions(latest: int, replicas: Iterable[Replica], memory: Memory) -> set[int]:
    """The versions that a decision needs the specs of."""
    used = {latest, memory.rollout.aim(latest)}
    if memory.rollout.good is not None:
        used.add(memory.rollout.good)
    for replica in replicas:
        used.add(replica.version)
        used.add(replica.launched_version)
    return used


class Store(Protocol):
    """The memory of one installation. Raises StoreUnavailable when the database cannot be used."""

    async def services(self) -> Sequence[str]:
        """Names of all services, oldest first."""
        ...

    async def create(self, spec: ServiceSpec, *, uid: str, port: int, now: float) -> ServiceState:
        """A new service at version 1. Raises ServiceExists when the name is taken (also by one that is going down)."""
        ...

    async def put_version(self, spec: ServiceSpec, *, mode: UpdateMode, now: float) -> int:
        """Store the next version of an existing, wanted service; return its number. Raises ServiceNotFound."""
        ...

    async def versions(self, service: str) -> Sequence[StoredVersion]:
        """The versions that are kept, oldest first: the newest VERSIONS_KEPT, and older ones in use. Raises
        ServiceNotFound."""
        ...

    async def load(self, service: str) -> ServiceState:
        """The whole stored state of one service. Raises ServiceNotFound."""
        ...

    async def commit(self, seen: Observation, plan: Plan, *, lease: Lease) -> int:
        """Write the plan's rows, memory and decision in one transaction; return the new revision.

        The decision is logged when the plan has actions or notes. What the plan learnt of capacity pools goes to
        the knowledge that all services share. Raises Conflict when the stored revision is no
        longer `seen.revision`, LeaseLost when the lease is not the current one.
        """
        ...

    async def want_down(self, service: str, *, purge: bool) -> None:
        """Remember that the user took the service down. Raises ServiceNotFound."""
        ...

    async def evict(self, service: str, replica_id: int) -> None:
        """Remember that the user wants one replica removed. Raises ServiceNotFound."""
        ...

    async def halt(self, service: str, *, halted: bool) -> None:
        """Remember whether the user wants the machine stopped. Raises ServiceNotFound."""
        ...

    async def delete(self, service: str) -> None:
        """Forget a service and all that belongs to it. Fine when it is already gone."""
        ...

    async def lease(self, service: str, holder: str, *, now: float, ttl_s: float) -> Lease:
        """Take or renew the lease. Raises LeaseLost while another holder's has not expired, ServiceNotFound."""
        ...

    async def decisions(self, service: str, *, after: int = 0, limit: int | None = None) -> Sequence[Decision]:
        """The decision log, oldest first: entries with seq > after, and of those the newest `limit`."""
        ...

    async def health(self) -> Sequence[Cooldown]:
        """What is known of capacity pools, by scope."""
        ...

    async def forget_health(self, scope: str | None) -> int:
        """Forget what is known of one scope, or of all; how many entries that were."""
        ...

    async def close(self) -> None:
        """Release the database."""
        ...
