"""Opening a database: its files are private, and whatever goes wrong is told in words that help."""

from __future__ import annotations

import asyncio
import fcntl
import os
import sqlite3
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from skyserve.errors import StoreUnavailable, UsageError
from skyserve.model.service import ServiceSpec
from skyserve.store.database import reported
from skyserve.store.sql import SqlStore, open_store


def modes(folder: Path) -> dict[str, int]:
    return {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}


async def with_one_service(store: SqlStore) -> None:
    await store.create(ServiceSpec("chat", "serve"), uid="u1", port=30001, now=1.0)


def test_the_files_and_a_new_home_are_private(tmp_path: Path) -> None:
    home = tmp_path / "new" / "home"

    async def scenario() -> None:
        store = open_store(home / "state.db")
        await with_one_service(store)
        assert modes(home) == {"state.db": 0o600, "state.db-wal": 0o600, "state.db-shm": 0o600}
        await store.close()

    before = os.umask(0)
    try:
        asyncio.run(scenario())
    finally:
        os.umask(before)
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    assert modes(home) == {"state.db": 0o600}, "closing leaves one whole file"


def test_a_file_that_others_could_read_is_made_private_again(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    asyncio.run(open_store(path).close())
    path.chmod(0o644)
    asyncio.run(open_store(path).close())
    assert modes(tmp_path) == {"state.db": 0o600}


@pytest.mark.parametrize("name", ["state.db", "a b%20c?mode=ro#x;.db"])
def test_a_path_is_taken_as_it_is(tmp_path: Path, name: str) -> None:
    asyncio.run(open_store(str(tmp_path / name)).close())
    asyncio.run(open_store(tmp_path / name).close())
    assert list(modes(tmp_path)) == [name]


def test_opening_waits_while_another_process_opens(tmp_path: Path) -> None:
    folder = os.open(tmp_path, os.O_RDONLY)
    with ThreadPoolExecutor(1) as pool:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
            opening = pool.submit(open_store, tmp_path / "state.db")
            with pytest.raises(TimeoutError):
                opening.result(timeout=0.1)
            assert modes(tmp_path) == {}
        finally:
            os.close(folder)
        asyncio.run(opening.result(timeout=10).close())
    assert modes(tmp_path) == {"state.db": 0o600}


def test_a_url_of_a_file_is_the_same_as_its_path(tmp_path: Path) -> None:
    async def scenario() -> None:
        store, same = open_store(f"sqlite:///{tmp_path / 'state.db'}"), open_store(tmp_path / "state.db")
        await with_one_service(store)
        assert list(await same.services()) == ["chat"]
        await store.close()
        await same.close()

    asyncio.run(scenario())
    assert modes(tmp_path) == {"state.db": 0o600}


def test_a_store_in_memory_is_a_store_of_its_own() -> None:
    async def scenario() -> None:
        store, other = open_store("sqlite://"), open_store("sqlite://")
        await with_one_service(store)
        assert (await store.load("chat")).uid == "u1"
        assert list(await other.services()) == []
        await store.close()
        await other.close()

    asyncio.run(scenario())


def test_a_file_that_is_something_else_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    path.write_text("dear diary\n" * 100)
    with pytest.raises(StoreUnavailable, match=r"state\.db cannot be used: file is not a database") as caught:
        open_store(path)
    assert "restore a backup" in str(caught.value.hint)
    assert path.read_text() == "dear diary\n" * 100


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "home").write_text("")
    with pytest.raises(StoreUnavailable, match=r"cannot be used: .*(exists|directory)"):
        open_store(tmp_path / "home" / "state.db")


@pytest.mark.parametrize(
    "url", ["mysql://root:hunter2@db/x", "sqlite+aiosqlite:///x", "postgresql+pg8000://db/x", "://"]
)
def test_a_url_of_another_kind_is_refused(url: str) -> None:
    with pytest.raises(UsageError, match="cannot keep its state at that database URL") as caught:
        open_store(url)
    assert "hunter2" not in f"{caught.value.message} {caught.value.hint}"


@pytest.mark.parametrize(
    "url", ["postgresql://sky:hunter2@127.0.0.1:1/state", "postgres://127.0.0.1:1/state?user=sky&password=hunter2"]
)
def test_a_postgresql_that_is_not_there_is_told_without_the_password(url: str) -> None:
    with pytest.raises(StoreUnavailable) as caught:
        open_store(url)
    assert "PostgreSQL" in f"{caught.value.message} {caught.value.hint}"
    assert "hunter2" not in f"{caught.value.message} {caught.value.hint}"


@pytest.mark.parametrize(
    ("error", "reason", "hint"),
    [
        (sqlite3.OperationalError("database or disk is full"), "database or disk is full", "Free some disk space"),
        (sqlite3.OperationalError("disk I/O error"), "disk I/O error", "over quota"),
        (sqlite3.OperationalError("database is locked"), "database is locked", "Another process"),
        (sqlite3.DatabaseError("database disk image is malformed"), "malformed", "restore a backup"),
        (sqlite3.OperationalError("attempt to write a readonly database"), "readonly", "permissions"),
        (PermissionError(13, "Permission denied"), "Permission denied", "permissions"),
        (sqlite3.OperationalError("something new\nwith details"), "something new.", "See the reason"),
    ],
)
def test_each_trouble_has_a_reason_and_a_hint(error: Exception, reason: str, hint: str) -> None:
    with pytest.raises(StoreUnavailable) as caught, reported("/home/state.db"):
        raise error
    assert caught.value.message.startswith("The database /home/state.db cannot be used: ")
    assert reason in caught.value.message
    assert hint in str(caught.value.hint)
