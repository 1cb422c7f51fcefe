"""The store in a SQL database: every statement, once, for the embedded SQLite and for PostgreSQL.

It knows tables and transactions and nothing of what plans mean. Each method of SqlStore is one transaction on one
thread of its own, so the event loop never waits for a disk. Every write first locks the service's row; what follows may
look before it writes, in the same words on both databases. No SQLAlchemy error leaves this module, and none that does
leave shows a statement's parameters: they hold the user's configuration.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

import sqlalchemy as sa

from skyserve.errors import Conflict, LeaseLost, ServiceExists, ServiceNotFound, StoreUnavailable
from skyserve.model.codec import CodecError, dumps, loads
from skyserve.model.decision import Decision, Memory, Observation, Plan
from skyserve.model.health import Cooldown
from skyserve.model.replica import ALIVE, Replica, ReplicaStatus
from skyserve.model.rollout import VERSIONS_KEPT
from skyserve.model.service import ServiceSpec, UpdateMode
from skyserve.store.base import Lease, ServiceState, StoredVersion, used_versions
from skyserve.store.database import for_reading, open_database, reported

T = TypeVar("T")

DECISIONS_KEPT = 5000
"""The newest entries of a service's decision log that survive pruning."""

_PRUNE_EVERY = 100

METADATA = sa.MetaData()


def _belongs_to_service() -> sa.Column[str]:
    return sa.Column("service", sa.Text, sa.ForeignKey("services.name", ondelete="CASCADE"), primary_key=True)


SERVICES = sa.Table(
    "services",
    METADATA,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("uid", sa.Text, nullable=False),
    sa.Column("wanted", sa.Boolean, nullable=False),
    sa.Column("purge", sa.Boolean, nullable=False),
    sa.Column("halted", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("port", sa.Integer, nullable=False),
    sa.Column("latest_version", sa.BigInteger, nullable=False),
    sa.Column("update_mode", sa.Text, nullable=False),
    sa.Column("revision", sa.BigInteger, nullable=False),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("next_replica_id", sa.BigInteger, nullable=False),
    sa.Column("memory", sa.Text, nullable=False),
    sa.Column("target", sa.BigInteger, nullable=False),
    sa.Column("note", sa.Text, nullable=False),  # a JSON string: logs may hold what a database's text may not
    sa.Column("first_ready_at", sa.Double),
    sa.Column("lease_holder", sa.Text),
    sa.Column("lease_fence", sa.BigInteger, nullable=False),
    sa.Column("lease_expires_at", sa.Double, nullable=False),
)
VERSIONS = sa.Table(
    "versions",
    METADATA,
    _belongs_to_service(),
    sa.Column("version", sa.BigInteger, primary_key=True),
    sa.Column("spec", sa.Text, nullable=False),
    sa.Column("mode", sa.Text, nullable=False),
    sa.Column("created_at", sa.Double, nullable=False),
)
REPLICAS = sa.Table(
    "replicas",
    METADATA,
    _belongs_to_service(),
    sa.Column("id", sa.BigInteger, primary_key=True),
    sa.Column("status", sa.Text, nullable=False),
    sa.Column("body", sa.Text, nullable=False),
)
EVICTIONS = sa.Table(
    "evictions", METADATA, _belongs_to_service(), sa.Column("replica_id", sa.BigInteger, primary_key=True)
)
DECISIONS = sa.Table(
    "decisions",
    METADATA,
    _belongs_to_service(),
    sa.Column("seq", sa.BigInteger, primary_key=True),
    sa.Column("at", sa.Double, nullable=False),
    sa.Column("observation", sa.Text, nullable=False),
    sa.Column("plan", sa.Text, nullable=False),
    sa.Column("policy", sa.Text, nullable=False),
)

HEALTH = sa.Table(
    "health",
    METADATA,
    sa.Column("scope", sa.Text, primary_key=True),
    sa.Column("body", sa.Text, nullable=False),
)

# What every tick asks, built once: to build a statement takes longer than to run it.
_SERVICE = sa.bindparam("service", type_=sa.Text)
_SERVICE_ROW = sa.select(SERVICES).where(SERVICES.c.name == _SERVICE)
# SQLite has no row locks and leaves the clause out: there, writing transactions begin one after the other.
_SERVICE_ROW_LOCKED = _SERVICE_ROW.with_for_update()
_REPLICA_ROWS = sa.select(REPLICAS.c.id, REPLICAS.c.body).where(REPLICAS.c.service == _SERVICE).order_by(REPLICAS.c.id)
_EVICTION_ROWS = (
    sa.select(EVICTIONS.c.replica_id).where(EVICTIONS.c.service == _SERVICE).order_by(EVICTIONS.c.replica_id)
)
_HEALTH_ROWS = sa.select(HEALTH.c.body).order_by(HEALTH.c.scope)
_SPEC_ROWS = (
    sa.select(VERSIONS.c.version, VERSIONS.c.spec)
    .where(VERSIONS.c.service == _SERVICE, VERSIONS.c.version.in_(sa.bindparam("versions", expanding=True)))
    .order_by(VERSIONS.c.version)
)


def open_store(where: str | Path) -> SqlStore:
    """The store at a path (SQLite) or URL (`postgresql://...`; `sqlite://` is one in memory), schema up to date.

    Blocks until that is done. Raises StoreUnavailable, also when a newer SkyServe has upgraded the database.
    """
    return SqlStore(*open_database(where))


class SqlStore:
    """A `Store` in a SQL database; made by `open_store`."""

    def __init__(self, engine: sa.Engine, place: str) -> None:
        self._writer = engine
        self._reader = for_reading(engine)
        self._place = place
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="store")
        self._closed = False

    async def services(self) -> Sequence[str]:
        """Names of all services, oldest first."""
        query = sa.select(SERVICES.c.name).order_by(SERVICES.c.created_at, SERVICES.c.name)
        return await self._run(self._reader, lambda db: tuple(db.execute(query).scalars()))

    async def create(self, spec: ServiceSpec, *, uid: str, port: int, now: float) -> ServiceState:
        """A new service at version 1. Raises ServiceExists when the name is taken (also by one that is going down)."""
        return await self._run(self._writer, lambda db: _create(db, spec, uid, port, now))

    async def put_version(self, spec: ServiceSpec, *, mode: UpdateMode, now: float) -> int:
        """Store the next version of an existing, wanted service; return its number. Raises ServiceNotFound."""
        return await self._run(self._writer, lambda db: _put_version(db, spec, mode, now))

    async def versions(self, service: str) -> Sequence[StoredVersion]:
        """The versions that are kept, oldest first. Raises ServiceNotFound."""
        return await self._run(self._reader, lambda db: _versions(db, service))

    async def load(self, service: str) -> ServiceState:
        """The whole stored state of one service, with the specs its replicas need. Raises ServiceNotFound."""
        return await self._run(self._reader, lambda db: _load(db, service))

    async def commit(self, seen: Observation, plan: Plan, *, lease: Lease) -> int:
        """Write what the plan changes, all or nothing, and return the new revision; the seen one if nothing changed.

        Raises Conflict when the stored revision is no longer the seen one, LeaseLost when the lease is not current.
        """
        return await self._run(self._writer, lambda db: _commit(db, seen, plan, lease))

    async def want_down(self, service: str, *, purge: bool) -> None:
        """Remember that the user took the service down. Once purging is asked for, it stays so."""
        await self._run(self._writer, lambda db: _want_down(db, service, purge))

    async def evict(self, service: str, replica_id: int) -> None:
        """Remember that the user wants one replica removed, until a plan no longer has it alive."""
        await self._run(self._writer, lambda db: _evict(db, service, replica_id))

    async def halt(self, service: str, *, halted: bool) -> None:
        """Remember whether the user wants the machine stopped."""
        await self._run(self._writer, lambda db: _halt(db, service, halted))

    async def delete(self, service: str) -> None:
        """Forget a service and all that belongs to it. Fine when it is already gone."""
        statement = sa.delete(SERVICES).where(SERVICES.c.name == service)
        await self._run(self._writer, lambda db: db.execute(statement).close())

    async def lease(self, service: str, holder: str, *, now: float, ttl_s: float) -> Lease:
        """Take or renew the lease. Renewing it is the one write that leaves the revision as it is."""
        return await self._run(self._writer, lambda db: _lease(db, service, holder, now, now + ttl_s))

    async def decisions(self, service: str, *, after: int = 0, limit: int | None = None) -> Sequence[Decision]:
        """The decision log, oldest first: entries with seq > after, and of those the newest `limit`."""
        newest = sa.select(DECISIONS).where(DECISIONS.c.service == service, DECISIONS.c.seq > after)
        newest = newest.order_by(DECISIONS.c.seq.desc()).limit(limit)
        rows = await self._run(self._reader, lambda db: db.execute(newest).mappings().all())
        # A long log takes a while to decode, and neither the loop nor the next commit should wait for that.
        return await asyncio.to_thread(lambda: tuple(_decision(row) for row in reversed(rows)))

    async def health(self) -> Sequence[Cooldown]:
        """What is known of capacity pools, by scope."""
        return await self._run(self._reader, _health)

    async def forget_health(self, scope: str | None) -> int:
        """Forget what is known of one scope, or of all; how many entries that were."""
        return await self._run(self._writer, lambda db: _forget_health(db, scope))

    async def close(self) -> None:
        """Release the database, once what is under way has ended. Fine to call again."""
        if not self._closed:
            self._closed = True
            await asyncio.get_running_loop().run_in_executor(self._thread, self._writer.dispose)
            self._thread.shutdown()

    async def _run(self, engine: sa.Engine, work: Callable[[sa.Connection], T]) -> T:
        if self._closed:
            raise StoreUnavailable(f"The database {self._place} was closed.", hint="SkyServe is stopping: start again.")
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._transaction, engine, work)

    def _transaction(self, engine: sa.Engine, work: Callable[[sa.Connection], T]) -> T:
        with reported(self._place), engine.begin() as db:
            return work(db)


# --- the transactions ------------------------------------------------------------------------------------------------


def _create(db: sa.Connection, spec: ServiceSpec, uid: str, port: int, now: float) -> ServiceState:
    row = {
        "name": spec.name,
        "uid": uid,
        "wanted": True,
        "purge": False,
        "halted": False,
        "port": port,
        "latest_version": 1,
        "update_mode": UpdateMode.ROLLING.value,
        "revision": 1,
        "created_at": now,
        "next_replica_id": 1,
        "memory": dumps(Memory()),
        "target": 0,
        "note": dumps(""),
        "lease_fence": 0,
        "lease_expires_at": 0.0,
    }
    try:
        db.execute(sa.insert(SERVICES).values(row))
    except sa.exc.IntegrityError as error:
        raise ServiceExists(
            f"A service named {spec.name!r} is already there.",
            hint=f"Change it with `sky serve update {spec.name}`, or take it down with `sky serve down {spec.name}`.",
        ) from error
    _insert_version(db, spec, 1, UpdateMode.ROLLING, now)
    return _load(db, spec.name)


def _put_version(db: sa.Connection, spec: ServiceSpec, mode: UpdateMode, now: float) -> int:
    row = _locked(db, spec.name)
    if not row["wanted"]:
        raise ServiceNotFound(
            f"Service {spec.name!r} is going down and cannot be updated.",
            hint=f"Wait until `sky serve status {spec.name}` no longer shows it, then use `sky serve up`.",
        )
    version: int = row["latest_version"] + 1
    _insert_version(db, spec, version, mode, now)
    _update(db, row, latest_version=version, update_mode=mode.value)
    _forget_versions(db, spec.name, version)
    return version


def _forget_versions(db: sa.Connection, service: str, latest: int) -> None:
    """What is old and not in use cannot be gone back to."""
    used = _used_versions(_row(db, _SERVICE_ROW, service), _replicas(db, service))
    old = VERSIONS.c.version <= latest - VERSIONS_KEPT
    db.execute(sa.delete(VERSIONS).where(VERSIONS.c.service == service, old, VERSIONS.c.version.not_in(sorted(used))))


def _versions(db: sa.Connection, service: str) -> tuple[StoredVersion, ...]:
    _row(db, _SERVICE_ROW, service)
    query = sa.select(VERSIONS).where(VERSIONS.c.service == service).order_by(VERSIONS.c.version)
    return tuple(
        StoredVersion(row["version"], _spec(row["spec"]), UpdateMode(row["mode"]), row["created_at"])
        for row in db.execute(query).mappings()
    )


def _replicas(db: sa.Connection, service: str) -> tuple[Replica, ...]:
    return tuple(_replica(body) for _, body in db.execute(_REPLICA_ROWS, {"service": service}))


def _used_versions(row: sa.RowMapping, replicas: Sequence[Replica]) -> set[int]:
    return used_versions(row["latest_version"], replicas, _decode(Memory, row["memory"]))


def _insert_version(db: sa.Connection, spec: ServiceSpec, version: int, mode: UpdateMode, now: float) -> None:
    row = {"service": spec.name, "version": version, "spec": dumps(spec), "mode": mode.value, "created_at": now}
    db.execute(sa.insert(VERSIONS).values(row))


def _load(db: sa.Connection, service: str) -> ServiceState:
    row = _row(db, _SERVICE_ROW, service)
    replicas = _replicas(db, service)
    memory = _decode(Memory, row["memory"])
    versions = used_versions(row["latest_version"], replicas, memory)
    specs = db.execute(_SPEC_ROWS, {"service": service, "versions": sorted(versions)})
    return ServiceState(
        name=row["name"],
        uid=row["uid"],
        wanted=row["wanted"],
        purge=row["purge"],
        port=row["port"],
        latest_version=row["latest_version"],
        update_mode=UpdateMode(row["update_mode"]),
        revision=row["revision"],
        created_at=row["created_at"],
        specs={version: _spec(text) for version, text in specs},
        replicas=replicas,
        next_replica_id=row["next_replica_id"],
        memory=memory,
        evict=_evictions(db, service),
        halted=row["halted"],
        health=_health(db),
        first_ready_at=row["first_ready_at"],
        target=row["target"],
        note=_decode(str, row["note"]),
    )


def _commit(db: sa.Connection, seen: Observation, plan: Plan, lease: Lease) -> int:
    row = _checked(db, seen, lease)
    changed = _put_replicas(db, seen, plan.replicas)
    changed |= _consume_evictions(db, seen.service, plan.replicas)
    changed |= _learn(db, plan.learnt)
    if plan.actions or plan.notes:
        _log(db, seen, plan)
        changed = True
    became_ready = any(replica.status is ReplicaStatus.READY for replica in plan.replicas)
    values = {
        "memory": dumps(plan.memory),
        "next_replica_id": plan.next_replica_id,
        "target": plan.target,
        "note": dumps(_explanation(plan)),
        "first_ready_at": seen.now if became_ready and row["first_ready_at"] is None else row["first_ready_at"],
    }
    if not changed and all(row[column] == value for column, value in values.items()):
        return seen.revision
    return _update(db, row, **values)


def _checked(db: sa.Connection, seen: Observation, lease: Lease) -> sa.RowMapping:
    """The locked row of a service that is still as it was seen, by a controller that may still write it."""
    row = _find(db, _SERVICE_ROW_LOCKED, seen.service)
    if row is None or row["uid"] != seen.uid:
        raise Conflict(f"Service {seen.service!r} was deleted since it was observed.", hint="Observe again.")
    if (lease.service, lease.holder, lease.fence) != (seen.service, row["lease_holder"], row["lease_fence"]):
        raise LeaseLost(
            f"The lease of service {seen.service!r} is now held by {row['lease_holder'] or 'nobody'}.",
            hint="Another controller runs this service: stop one of the two.",
        )
    if row["revision"] != seen.revision:
        raise Conflict(
            f"Service {seen.service!r} changed: revision {seen.revision} was seen, {row['revision']} is stored.",
            hint="Observe again.",
        )
    return row


def _put_replicas(db: sa.Connection, seen: Observation, replicas: Sequence[Replica]) -> bool:
    """Make the stored rows those of the plan; whether any had to be touched. What is stored is what was seen: the
    revision is the same."""
    before = {replica.id: replica for replica in seen.replicas}
    changed = [replica for replica in replicas if before.get(replica.id) != replica]
    kept = {replica.id for replica in replicas} - {replica.id for replica in changed}
    outdated = [id_ for id_ in before if id_ not in kept]
    if outdated:
        db.execute(sa.delete(REPLICAS).where(REPLICAS.c.service == seen.service, REPLICAS.c.id.in_(outdated)))
    if changed:
        rows = [{"service": seen.service, "id": r.id, "status": r.status.value, "body": dumps(r)} for r in changed]
        db.execute(sa.insert(REPLICAS), rows)
    return bool(outdated or changed)


def _consume_evictions(db: sa.Connection, service: str, replicas: Sequence[Replica]) -> bool:
    """Drop the wishes that the plan fulfils: their replicas are not alive any more."""
    alive = {replica.id for replica in replicas if replica.status in ALIVE}
    done = [id_ for id_ in _evictions(db, service) if id_ not in alive]
    if done:
        db.execute(sa.delete(EVICTIONS).where(EVICTIONS.c.service == service, EVICTIONS.c.replica_id.in_(done)))
    return bool(done)


def _learn(db: sa.Connection, learnt: Sequence[Cooldown]) -> bool:
    """Replace what is known of the scopes that a plan learnt about; an entry without strikes is forgotten."""
    if learnt:
        db.execute(sa.delete(HEALTH).where(HEALTH.c.scope.in_([entry.scope for entry in learnt])))
    rows = [{"scope": entry.scope, "body": dumps(entry)} for entry in learnt if entry.strikes]
    if rows:
        db.execute(sa.insert(HEALTH), rows)
    return bool(learnt)


def _health(db: sa.Connection) -> tuple[Cooldown, ...]:
    return tuple(_decode(Cooldown, body) for body in db.execute(_HEALTH_ROWS).scalars())


def _forget_health(db: sa.Connection, scope: str | None) -> int:
    statement = sa.delete(HEALTH) if scope is None else sa.delete(HEALTH).where(HEALTH.c.scope == scope)
    return db.execute(statement).rowcount


def _log(db: sa.Connection, seen: Observation, plan: Plan) -> None:
    of_service = DECISIONS.c.service == seen.service
    newest: int = db.execute(sa.select(sa.func.max(DECISIONS.c.seq)).where(of_service)).scalar() or 0
    entry = Decision(newest + 1, seen.now, seen, plan)
    row = {
        "service": seen.service,
        "seq": entry.seq,
        "at": entry.at,
        "observation": dumps(seen),
        "plan": dumps(plan),
        "policy": entry.policy,
    }
    db.execute(sa.insert(DECISIONS).values(row))
    if entry.seq % _PRUNE_EVERY == 0:
        db.execute(sa.delete(DECISIONS).where(of_service, DECISIONS.c.seq <= entry.seq - DECISIONS_KEPT))


def _explanation(plan: Plan) -> str:
    """What the plan waits for, each thing once; empty when it waits for nothing."""
    return " ".join(dict.fromkeys(reason.text for reason in plan.waiting))


def _want_down(db: sa.Connection, service: str, purge: bool) -> None:
    row = _locked(db, service)
    purge = purge or row["purge"]
    if row["wanted"] or row["purge"] != purge:
        _update(db, row, wanted=False, purge=purge)


def _halt(db: sa.Connection, service: str, halted: bool) -> None:
    row = _locked(db, service)
    if row["halted"] != halted:
        _update(db, row, halted=halted)


def _evict(db: sa.Connection, service: str, replica_id: int) -> None:
    row = _locked(db, service)
    if replica_id not in _evictions(db, service):
        db.execute(sa.insert(EVICTIONS).values({"service": service, "replica_id": replica_id}))
        _update(db, row)


def _lease(db: sa.Connection, service: str, holder: str, now: float, expires_at: float) -> Lease:
    row = _locked(db, service)
    if row["lease_holder"] == holder:
        statement = sa.update(SERVICES).where(SERVICES.c.name == service)
        db.execute(statement.values(lease_expires_at=expires_at))
        return Lease(service, holder, row["lease_fence"], expires_at)
    if row["lease_holder"] is not None and row["lease_expires_at"] > now:
        raise LeaseLost(
            f"Service {service!r} is run by {row['lease_holder']} for {row['lease_expires_at'] - now:.0f} s more.",
            hint="Stop the other controller, or wait until its lease runs out.",
        )
    fence: int = row["lease_fence"] + 1
    _update(db, row, lease_holder=holder, lease_fence=fence, lease_expires_at=expires_at)
    return Lease(service, holder, fence, expires_at)


# --- rows ------------------------------------------------------------------------------------------------------------


def _locked(db: sa.Connection, service: str) -> sa.RowMapping:
    return _row(db, _SERVICE_ROW_LOCKED, service)


def _row(db: sa.Connection, query: sa.Executable, service: str) -> sa.RowMapping:
    row = _find(db, query, service)
    if row is None:
        raise ServiceNotFound(f"There is no service named {service!r}.", hint="`sky serve status` lists the services.")
    return row


def _find(db: sa.Connection, query: sa.Executable, service: str) -> sa.RowMapping | None:
    return db.execute(query, {"service": service}).mappings().one_or_none()


def _update(db: sa.Connection, row: sa.RowMapping, **values: object) -> int:
    """Change a locked row, and its revision with it; return that."""
    revision: int = row["revision"] + 1
    db.execute(sa.update(SERVICES).where(SERVICES.c.name == row["name"]).values(revision=revision, **values))
    return revision


def _evictions(db: sa.Connection, service: str) -> tuple[int, ...]:
    return tuple(db.execute(_EVICTION_ROWS, {"service": service}).scalars())


def _decision(row: sa.RowMapping) -> Decision:
    observation, plan = _decode(Observation, row["observation"]), _decode(Plan, row["plan"])
    return Decision(row["seq"], row["at"], observation, plan, row["policy"])


@lru_cache(maxsize=256)
def _spec(text: str) -> ServiceSpec:
    """Versions never change, and each is read on every tick."""
    return _decode(ServiceSpec, text)


@lru_cache(maxsize=8192)
def _replica(text: str) -> Replica:
    """All rows are read on every tick, and few of them have changed."""
    return _decode(Replica, text)


def _decode(cls: type[T], text: str) -> T:
    try:
        return loads(cls, text)
    except CodecError as error:
        raise StoreUnavailable(
            f"The database holds a {cls.__name__} that cannot be read: {error}.",
            hint="Was it written by a newer SkyServe, or changed by hand? Install that version, or restore a backup.",
        ) from error
