"""Schema steps: from nothing to what the statements expect, and never backwards over a newer SkyServe's work."""

from __future__ import annotations

import asyncio
import sqlite3
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

from skyserve.errors import StoreUnavailable
from skyserve.store.migrations import HEAD, revision, upgrade
from skyserve.store.sql import METADATA, open_store

SCRIPTS = str(files("skyserve.store.migrations"))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state.db"


def opened_and_closed(path: Path) -> None:
    asyncio.run(open_store(path).close())


def test_the_newest_step_is_the_one_that_opening_ends_at(path: Path) -> None:
    assert ScriptDirectory(SCRIPTS).get_current_head() == HEAD
    opened_and_closed(path)
    with sqlite3.connect(path) as db:
        assert db.execute("SELECT version_num FROM alembic_version").fetchall() == [(HEAD,)]
    db.close()


def test_the_steps_make_the_tables_that_the_statements_use() -> None:
    engine = sa.create_engine("sqlite://")
    with engine.begin() as db:
        assert revision(db) is None
        upgrade(db)
        assert compare_metadata(MigrationContext.configure(db), METADATA) == []
    engine.dispose()


def test_every_step_can_be_taken_back() -> None:
    engine = sa.create_engine("sqlite://")
    with engine.begin() as db:
        upgrade(db)
        config = Config()
        config.set_main_option("script_location", SCRIPTS)
        config.attributes["connection"] = db
        command.downgrade(config, "base")
        assert sa.inspect(db).get_table_names() == ["alembic_version"]
        upgrade(db)
        assert "services" in sa.inspect(db).get_table_names()
    engine.dispose()


def test_a_newer_schema_is_refused_and_left_alone(path: Path) -> None:
    opened_and_closed(path)
    with sqlite3.connect(path) as db:
        db.execute("UPDATE alembic_version SET version_num = '9999'")
        db.commit()
    with pytest.raises(
        StoreUnavailable, match=f"has schema 9999, but this SkyServe knows schemas up to {HEAD}"
    ) as caught:
        open_store(path)
    assert "newer SkyServe" in str(caught.value.hint)
    assert db.execute("SELECT version_num FROM alembic_version").fetchall() == [("9999",)]
    db.close()


OPEN = """
import asyncio, sys
from skyserve.store.sql import open_store
sys.stdin.readline()
store = open_store(sys.argv[1])
print(list(asyncio.run(store.services())), "alembic" in sys.modules)
asyncio.run(store.close())
"""


def test_processes_that_open_a_new_database_at_once_all_succeed(path: Path) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-W", "error", "-c", OPEN, path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    results = [process.communicate(timeout=60) for process in processes]
    assert [error for _, error in results] == ["", "", ""]
    # One ran the steps; those that came later did not even load what runs them.
    assert sorted(output for output, _ in results) == ["[] False\n", "[] False\n", "[] True\n"]
