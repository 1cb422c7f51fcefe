"""How a database is opened, and how its errors are told: all that is peculiar to SQLite or to PostgreSQL.

It knows files, connections and locks, and nothing of tables.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.pool import ConnectionPoolEntry

from skyserve.errors import StoreUnavailable, UsageError
from skyserve.store.migrations import upgrade

_LOCK_WAIT_S = 10
_UPGRADE_LOCK = 0x5B75E47E  # any number will do, as long as every SkyServe takes the same one
_ELSEWHERE = "Check that PostgreSQL is up, reachable, and accepts this user and password."

_HINTS = (
    ("full", "Free some disk space. What was stored before is intact."),
    ("disk i/o error", "Check the disk: is it full, over quota, or failing? What was stored before is intact."),
    ("locked", "Another process keeps the database busy: find it and stop it, then try again."),
    ("not a database", "The file is something else or damaged: move it away, or restore a backup."),
    ("malformed", "The file is damaged: move it away, or restore a backup."),
    ("readonly", "Check the owner and the permissions of the file and its folder."),
    ("unable to open", "Check the owner and the permissions of the file and its folder."),
    ("permission denied", "Check the owner and the permissions of the file and its folder."),
    ("connection", _ELSEWHERE),
    ("timeout", _ELSEWHERE),
)


def open_database(where: str | Path) -> tuple[sa.Engine, str]:
    """The database at a path or URL with its schema up to date, and its name for messages (never with a password).

    Raises StoreUnavailable when it cannot be opened, UsageError when the URL is none that SkyServe can use.
    """
    url = _url(where)
    embedded = url.get_backend_name() == "sqlite"
    place = (url.database or "in memory") if embedded else _without_secrets(url)
    with reported(place):
        if not embedded:
            engine = _postgresql(url)
            _upgrade(engine)
        elif url.database in (None, "", ":memory:"):
            engine = _sqlite(url, sa.StaticPool)
            _upgrade(engine)
        else:
            path = Path(url.database)
            with _first_come(path):
                engine = _sqlite(url, sa.QueuePool)
                _upgrade(engine)
    return engine, place


def for_reading(engine: sa.Engine) -> sa.Engine:
    """The same database, whose transactions see one state throughout and block nobody."""
    if engine.dialect.name == "sqlite":
        return engine.execution_options(sqlite_begin="BEGIN")
    return engine.execution_options(isolation_level="REPEATABLE READ")


@contextmanager
def reported(place: str) -> Iterator[None]:
    """Turn every error of the database into StoreUnavailable, with the driver's own words as the reason."""
    try:
        yield
    except (sa.exc.SQLAlchemyError, sqlite3.Error, OSError) as error:
        reason = str(getattr(error, "orig", None) or error).strip().partition("\n")[0]
        hint = next((hint for sign, hint in _HINTS if sign in reason.lower()), "See the reason above, then try again.")
        raise StoreUnavailable(f"The database {place} cannot be used: {reason}.", hint=hint) from error


def _url(where: str | Path) -> sa.URL:
    if isinstance(where, Path) or "://" not in where:
        return sa.URL.create("sqlite", database=str(where))
    try:
        url = sa.make_url(where)
    except (sa.exc.ArgumentError, ValueError):
        url = sa.URL.create("unknown")
    if url.drivername in ("postgresql", "postgres"):
        url = url.set(drivername="postgresql+psycopg")
    if url.drivername not in ("sqlite", "postgresql+psycopg"):
        raise UsageError(
            "SkyServe cannot keep its state at that database URL.",
            hint="Use a file's path, or a URL such as postgresql://user@host/skyserve.",
        )
    return url


def _without_secrets(url: sa.URL) -> str:
    # A password may stand in the query as well.
    return url.set(drivername="postgresql", query={}).render_as_string(hide_password=True)


def _upgrade(engine: sa.Engine) -> None:
    try:
        with engine.begin() as db:
            if engine.dialect.name == "postgresql":
                db.execute(sa.select(sa.func.pg_advisory_xact_lock(_UPGRADE_LOCK)))
            upgrade(db)
    except BaseException:
        engine.dispose()
        raise


# --- SQLite ----------------------------------------------------------------------------------------------------------


@contextmanager
def _first_come(path: Path) -> Iterator[None]:
    """Create what is missing of a private database file, and keep other processes from opening it meanwhile.

    Of two that switch a new file to WAL at once, one would now and then fail. The lock is on the folder, because
    closing a file releases the locks that SQLite itself holds on it for other connections of this process.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        with suppress(FileExistsError):
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        for name in (path.name, f"{path.name}-wal", f"{path.name}-shm"):
            with suppress(FileNotFoundError):  # SQLite gives the two the mode of the first
                path.with_name(name).chmod(0o600)
        yield
    finally:
        os.close(folder)


def _sqlite(url: sa.URL, pool: type[sa.Pool]) -> sa.Engine:
    arguments = {"timeout": _LOCK_WAIT_S, "check_same_thread": False}
    engine = sa.create_engine(url, poolclass=pool, connect_args=arguments, hide_parameters=True)

    @sa.event.listens_for(engine, "connect")
    def prepare(connection: DBAPIConnection, _: ConnectionPoolEntry) -> None:
        connection.isolation_level = None  # or the driver would begin transactions of its own, too late
        cursor = connection.cursor()
        for pragma in ("journal_mode = WAL", "synchronous = NORMAL", "foreign_keys = ON"):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @sa.event.listens_for(engine, "begin")
    def begin(connection: sa.Connection) -> None:
        # A transaction that reads first and writes later can be refused half way: take the right to write at once.
        connection.exec_driver_sql(connection.get_execution_options().get("sqlite_begin", "BEGIN IMMEDIATE"))

    return engine


# --- PostgreSQL ------------------------------------------------------------------------------------------------------


def _postgresql(url: sa.URL) -> sa.Engine:
    try:
        engine = sa.create_engine(
            url, pool_pre_ping=True, connect_args={"connect_timeout": _LOCK_WAIT_S}, hide_parameters=True
        )
    except ImportError as error:
        raise StoreUnavailable(
            "The driver for PostgreSQL is not installed.", hint="Install it: pip install 'skyserve[postgres]'"
        ) from error

    @sa.event.listens_for(engine, "connect")
    def prepare(connection: DBAPIConnection, _: ConnectionPoolEntry) -> None:
        cursor = connection.cursor()
        cursor.execute(f"SET lock_timeout = '{_LOCK_WAIT_S}s'")
        cursor.close()
        connection.commit()

    return engine
