"""The store contract, against every database that SkyServe can keep its state in."""

from __future__ import annotations

import asyncio
import os
import shutil
import uuid
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import sqlalchemy as sa
from tests.contract import postgres
from tests.contract.store_suite import Run, StoreContract

from skyserve.store.base import Store
from skyserve.store.memory import MemoryStore
from skyserve.store.sql import open_store

MEMORY = "memory"
"""Stands for a database where there is none."""
POSTGRES_URL = os.environ.get("SKYSERVE_TEST_POSTGRES_URL")


@contextmanager
def own_schema(server: str) -> Iterator[str]:
    """The URL of a schema of a PostgreSQL server that is ours alone, and gone afterwards."""
    url = sa.make_url(server).set(drivername="postgresql+psycopg")
    schema = f"skyserve_test_{uuid.uuid4().hex}"
    engine = sa.create_engine(url)
    try:
        with engine.begin() as db:
            db.execute(sa.schema.CreateSchema(schema))
        own = url.update_query_dict({"options": f"-csearch_path={schema}"})
        yield own.render_as_string(hide_password=False)
    finally:
        with engine.begin() as db:
            db.execute(sa.schema.DropSchema(schema, cascade=True))
        engine.dispose()


@pytest.fixture(scope="module")
def fresh_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new database file: making one takes longer than most tests."""
    path = tmp_path_factory.mktemp("fresh") / "state.db"
    asyncio.run(open_store(path).close())
    return path


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """A PostgreSQL database: the one that is named, or one of our own."""
    if POSTGRES_URL:
        yield POSTGRES_URL
    elif why := postgres.missing():
        pytest.skip(why)
    else:
        with postgres.cluster() as url:
            yield url


@pytest.fixture(params=["sqlite", "postgresql", "memory"])
def database(request: pytest.FixtureRequest, fresh_file: Path, tmp_path: Path) -> Iterator[str]:
    """A database without services: a path or a URL; or MEMORY."""
    if request.param == "memory":
        yield MEMORY
    elif request.param == "sqlite":
        yield str(shutil.copy(fresh_file, tmp_path / "state.db"))
    else:
        with own_schema(request.getfixturevalue("postgres_url")) as url:
            yield url


def _opened(database: str, stores: int) -> list[Store]:
    """As many stores on one database."""
    if database != MEMORY:
        return [open_store(database) for _ in range(stores)]
    first = MemoryStore()
    return [first, *(MemoryStore(beside=first) for _ in range(stores - 1))]


@pytest.fixture
def run(database: str) -> Run:
    """Runs a scenario with as many stores on one database as it wants."""

    def run(scenario: Callable[..., Coroutine[object, object, None]], stores: int = 1) -> None:
        async def main() -> None:
            opened = _opened(database, stores)
            try:
                await scenario(*opened)
            finally:
                for store in opened:
                    await store.close()

        asyncio.run(main())

    return run


class TestStores(StoreContract):
    """SqlStore and MemoryStore keep the contract."""


def test_two_first_starts_on_postgresql_both_succeed(postgres_url: str) -> None:
    async def both(url: str) -> None:
        stores = await asyncio.gather(*(asyncio.to_thread(open_store, url) for _ in range(2)))
        for store in stores:
            assert list(await store.services()) == []
            await store.close()

    with own_schema(postgres_url) as url:
        asyncio.run(both(url))
