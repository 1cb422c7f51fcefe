"""The store in this process's memory, for the simulator and for tests: nothing is encoded, nothing outlives it.

It keeps the values that it is given, which never change. It must behave as the store in a database does.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

from skyserve.errors import Conflict, LeaseLost, ServiceExists, ServiceNotFound, StoreUnavailable
from skyserve.model.decision import Decision, Memory, Observation, Plan
from skyserve.model.health import Cooldown
from skyserve.model.replica import ALIVE, Replica, ReplicaStatus
from skyserve.model.rollout import VERSIONS_KEPT
from skyserve.model.service import ServiceSpec, UpdateMode
from skyserve.store.base import Lease, ServiceState, StoredVersion, used_versions

DECISIONS_KEPT = 5000
"""The newest entries of a service's decision log that are kept, unless another number is asked for."""


@dataclass(slots=True)
class _Row:
    """One service. `state` has the specs of the versions in use only, as it is loaded; `versions` are all of them."""

    state: ServiceState
    versions: dict[int, StoredVersion]
    decisions: deque[Decision]
    logged: int = 0
    lease: Lease | None = None


@dataclass(slots=True)
class _Shelf:
    """What stores on the same memory share."""

    rows: dict[str, _Row] = field(default_factory=dict)
    health: tuple[Cooldown, ...] = ()


class MemoryStore:
    """A `Store` without a database. One made `beside` another shares its memory, as two controllers do a database.

    `decisions_kept` bounds the decision log of each service; 0 keeps none.
    """

    def __init__(self, *, beside: MemoryStore | None = None, decisions_kept: int = DECISIONS_KEPT) -> None:
        self._shelf: _Shelf = beside._shelf if beside is not None else _Shelf()
        self._decisions_kept = decisions_kept
        self._closed = False

    async def services(self) -> Sequence[str]:
        """Names of all services, oldest first."""
        states = [row.state for row in self._open().rows.values()]
        return tuple(state.name for state in sorted(states, key=lambda state: (state.created_at, state.name)))

    async def create(self, spec: ServiceSpec, *, uid: str, port: int, now: float) -> ServiceState:
        """A new service at version 1. Raises ServiceExists when the name is taken (also by one that is going down)."""
        shelf = self._open()
        if (name := spec.name) in shelf.rows:
            raise ServiceExists(
                f"A service named {name!r} is already there.",
                hint=f"Change it with `sky serve update {name}`, or take it down with `sky serve down {name}`.",
            )
        state = ServiceState(
            name=spec.name,
            uid=uid,
            wanted=True,
            purge=False,
            port=port,
            latest_version=1,
            update_mode=UpdateMode.ROLLING,
            revision=1,
            created_at=now,
            specs={1: spec},
            replicas=(),
            next_replica_id=1,
            memory=Memory(),
            health=shelf.health,
        )
        first = StoredVersion(1, spec, UpdateMode.ROLLING, now)
        shelf.rows[spec.name] = _Row(state, {1: first}, deque(maxlen=self._decisions_kept))
        return state

    async def put_version(self, spec: ServiceSpec, *, mode: UpdateMode, now: float) -> int:
        """Store the next version of an existing, wanted service; return its number. Raises ServiceNotFound."""
        row = self._row(spec.name)
        if not row.state.wanted:
            raise ServiceNotFound(
                f"Service {spec.name!r} is going down and cannot be updated.",
                hint=f"Wait until `sky serve status {spec.name}` no longer shows it, then use `sky serve up`.",
            )
        version = row.state.latest_version + 1
        row.versions[version] = StoredVersion(version, spec, mode, now)
        _write(row, replace(row.state, latest_version=version, update_mode=mode))
        for old in row.versions.keys() - row.state.specs.keys():
            if old <= version - VERSIONS_KEPT:
                del row.versions[old]
        return version

    async def versions(self, service: str) -> Sequence[StoredVersion]:
        """The versions that are kept, oldest first. Raises ServiceNotFound."""
        row = self._row(service)
        return tuple(row.versions[version] for version in sorted(row.versions))

    async def load(self, service: str) -> ServiceState:
        """The whole stored state of one service, with the specs its replicas need. Raises ServiceNotFound."""
        row = self._row(service)
        if row.state.health is not self._shelf.health:
            row.state = replace(row.state, health=self._shelf.health)
        return row.state

    async def commit(self, seen: Observation, plan: Plan, *, lease: Lease) -> int:
        """Keep what the plan changes, and return the new revision; the seen one if nothing changed.

        Raises Conflict when the stored revision is no longer the seen one, LeaseLost when the lease is not current.
        """
        row = _checked(self._open().rows.get(seen.service), seen, lease)
        before = row.state
        logged = bool(plan.actions or plan.notes)
        first_ready_at = before.first_ready_at
        if first_ready_at is None and any(replica.status is ReplicaStatus.READY for replica in plan.replicas):
            first_ready_at = seen.now
        after = replace(
            before,
            replicas=_by_id(before, plan),
            next_replica_id=plan.next_replica_id,
            memory=plan.memory,
            evict=_unfulfilled(before.evict, plan),
            first_ready_at=first_ready_at,
            target=plan.target,
            note=" ".join(dict.fromkeys(reason.text for reason in plan.waiting)),
        )
        if not logged and not plan.learnt and after == before:
            return seen.revision
        if plan.learnt:
            self._learn(plan.learnt)
        if logged:
            row.logged += 1
            if self._decisions_kept:
                row.decisions.append(Decision(row.logged, seen.now, seen, plan))
        return _write(row, after)

    def _learn(self, learnt: Sequence[Cooldown]) -> None:
        """Replace what is known of the scopes that a plan learnt about; an entry without strikes is forgotten."""
        known = {entry.scope: entry for entry in (*self._shelf.health, *learnt)}
        self._shelf.health = tuple(known[scope] for scope in sorted(known) if known[scope].strikes)

    async def want_down(self, service: str, *, purge: bool) -> None:
        """Remember that the user took the service down. Once purging is asked for, it stays so."""
        row = self._row(service)
        after = replace(row.state, wanted=False, purge=purge or row.state.purge)
        if after != row.state:
            _write(row, after)

    async def evict(self, service: str, replica_id: int) -> None:
        """Remember that the user wants one replica removed, until a plan no longer has it alive."""
        row = self._row(service)
        if replica_id not in row.state.evict:
            _write(row, replace(row.state, evict=tuple(sorted({*row.state.evict, replica_id}))))

    async def halt(self, service: str, *, halted: bool) -> None:
        """Remember whether the user wants the machine stopped."""
        row = self._row(service)
        if row.state.halted != halted:
            _write(row, replace(row.state, halted=halted))

    async def delete(self, service: str) -> None:
        """Forget a service and all that belongs to it. Fine when it is already gone."""
        self._open().rows.pop(service, None)

    async def lease(self, service: str, holder: str, *, now: float, ttl_s: float) -> Lease:
        """Take or renew the lease. Renewing it is the one write that leaves the revision as it is."""
        row = self._row(service)
        held = row.lease
        if held is not None and held.holder == holder:
            row.lease = replace(held, expires_at=now + ttl_s)
            return row.lease
        if held is not None and held.expires_at > now:
            raise LeaseLost(
                f"Service {service!r} is run by {held.holder} for {held.expires_at - now:.0f} s more.",
                hint="Stop the other controller, or wait until its lease runs out.",
            )
        row.lease = Lease(service, holder, held.fence + 1 if held else 1, now + ttl_s)
        _write(row, row.state)
        return row.lease

    async def decisions(self, service: str, *, after: int = 0, limit: int | None = None) -> Sequence[Decision]:
        """The decision log, oldest first: entries with seq > after, and of those the newest `limit`."""
        row = self._open().rows.get(service)
        found = [entry for entry in row.decisions if entry.seq > after] if row else []
        return tuple(found if limit is None else found[max(0, len(found) - limit) :])

    async def health(self) -> Sequence[Cooldown]:
        """What is known of capacity pools, by scope."""
        return self._open().health

    async def forget_health(self, scope: str | None) -> int:
        """Forget what is known of one scope, or of all; how many entries that were."""
        shelf = self._open()
        kept = tuple(entry for entry in shelf.health if scope is not None and entry.scope != scope)
        forgotten = len(shelf.health) - len(kept)
        shelf.health = kept
        return forgotten

    async def close(self) -> None:
        """Refuse to be used from now on. Fine to call again."""
        self._closed = True

    def _open(self) -> _Shelf:
        if self._closed:
            raise StoreUnavailable("The store in memory was closed.", hint="SkyServe is stopping: start again.")
        return self._shelf

    def _row(self, service: str) -> _Row:
        row = self._open().rows.get(service)
        if row is None:
            hint = "`sky serve status` lists the services."
            raise ServiceNotFound(f"There is no service named {service!r}.", hint=hint)
        return row


def _checked(row: _Row | None, seen: Observation, lease: Lease) -> _Row:
    """The row of a service that is still as it was seen, by a controller that may still write it."""
    if row is None or row.state.uid != seen.uid:
        raise Conflict(f"Service {seen.service!r} was deleted since it was observed.", hint="Observe again.")
    held = row.lease
    if held is None or (lease.service, lease.holder, lease.fence) != (seen.service, held.holder, held.fence):
        raise LeaseLost(
            f"The lease of service {seen.service!r} is now held by {held.holder if held else 'nobody'}.",
            hint="Another controller runs this service: stop one of the two.",
        )
    if row.state.revision != seen.revision:
        raise Conflict(
            f"Service {seen.service!r} changed: revision {seen.revision} was seen, {row.state.revision} is stored.",
            hint="Observe again.",
        )
    return row


def _write(row: _Row, state: ServiceState) -> int:
    """Keep a state of a service under the next revision; return that."""
    needed = used_versions(state.latest_version, state.replicas, state.memory)
    specs = state.specs
    if needed != specs.keys():
        specs = {version: row.versions[version].spec for version in sorted(needed & row.versions.keys())}
    row.state = replace(state, specs=specs, revision=state.revision + 1)
    return row.state.revision


def _by_id(before: ServiceState, plan: Plan) -> tuple[Replica, ...]:
    """The plan's rows in the order in which they are loaded; the very same tuple where nothing changed."""
    rows = plan.replicas
    if any(earlier.id >= later.id for earlier, later in pairwise(rows)):
        rows = tuple(sorted(rows, key=lambda replica: replica.id))
    return before.replicas if rows == before.replicas else rows


def _unfulfilled(evict: tuple[int, ...], plan: Plan) -> tuple[int, ...]:
    """The wishes that the plan does not fulfil: their replicas are still alive."""
    if not evict:
        return evict
    alive = {replica.id for replica in plan.replicas if replica.status in ALIVE}
    return tuple(replica_id for replica_id in evict if replica_id in alive)
