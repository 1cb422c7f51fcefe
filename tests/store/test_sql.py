"""The SQL store beyond the contract: what is left after a full disk and a violent death, pruning, unreadable rows."""

from __future__ import annotations

import asyncio
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Coroutine, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sa
from tests.contract.store_suite import BECAUSE, a_replica, a_spec, begin, launching, nothing_to_do, seen

from skyserve.errors import StoreUnavailable
from skyserve.model.decision import Note
from skyserve.model.replica import ReplicaStatus
from skyserve.store.secrets import SecretStore
from skyserve.store.sql import DECISIONS_KEPT, SqlStore, open_store

ROOT = Path(__file__).parents[2]

Scenario = Callable[[SqlStore], Coroutine[object, object, None]]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state.db"


@contextmanager
def disk_of(pages: int) -> Iterator[None]:
    """Databases connected to meanwhile find no more room than this; a page has 4 KiB."""

    def limit(connection: sqlite3.Connection, _: object) -> None:
        connection.execute(f"PRAGMA max_page_count = {pages}")

    sa.event.listen(sa.Pool, "connect", limit)
    try:
        yield
    finally:
        sa.event.remove(sa.Pool, "connect", limit)


def within(path: Path, *scenarios: Scenario) -> None:
    """Run scenarios one after the other, each with a store of its own."""

    async def one(scenario: Scenario) -> None:
        store = open_store(path)
        try:
            await scenario(store)
        finally:
            await store.close()

    for scenario in scenarios:
        asyncio.run(one(scenario))


def test_a_full_disk_is_told_and_the_old_state_stays(path: Path) -> None:
    async def fill(store: SqlStore) -> None:
        state, lease = await begin(store)
        await store.commit(seen(state), launching(state, 1), lease=lease)
        state = await store.load("chat")
        bulky = replace(nothing_to_do(state), replicas=(replace(a_replica(1), detail="x" * 500_000), a_replica(2)))
        with pytest.raises(StoreUnavailable, match="database or disk is full") as caught:
            await store.commit(seen(state), replace(bulky, notes=(Note(1, BECAUSE),)), lease=lease)
        assert "Free some disk space" in str(caught.value.hint)
        assert await store.load("chat") == state
        small = replace(nothing_to_do(state), replicas=(a_replica(1, ReplicaStatus.STARTING),))
        assert await store.commit(seen(state), small, lease=lease) == state.revision + 1, "and smaller things still fit"
        assert len(await store.decisions("chat")) == 1

    with disk_of(pages=60):
        within(path, fill)


FILL = """
import asyncio, resource, sys
from dataclasses import replace
from skyserve.errors import StoreUnavailable
from skyserve.store.sql import open_store
from tests.contract.store_suite import *

async def main():
    store = open_store(sys.argv[1])
    state, lease = await begin(store)
    resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, 400_000))
    try:
        while True:
            await store.commit(seen(state), launching(state, state.next_replica_id), lease=lease)
            state = await store.load("chat")
            print(state.revision, flush=True)
    except StoreUnavailable as error:
        print(error.hint)
    finally:
        await store.close()

asyncio.run(main())
"""


def test_writes_that_the_system_refuses_lose_nothing_that_was_committed(path: Path) -> None:
    command = [sys.executable, "-W", "error", "-c", FILL, path]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert result.stderr == ""
    *revisions, hint = result.stdout.splitlines()
    assert "What was stored before is intact" in hint

    async def whole(store: SqlStore) -> None:
        await consistent(store, at_least=int(revisions[-1]))

    within(path, whole)


LAUNCH_FOREVER = """
import asyncio, sys
from skyserve.store.sql import open_store
from tests.contract.store_suite import *

async def main():
    store = open_store(sys.argv[1])
    state, lease = await begin(store)
    while True:
        await store.commit(seen(state), launching(state, state.next_replica_id), lease=lease)
        state = await store.load("chat")
        print(state.revision, flush=True)

asyncio.run(main())
"""


async def consistent(store: SqlStore, at_least: int) -> None:
    """Whatever the last commit was, all of it is there: each one launched one replica and logged it."""
    state, log = await store.load("chat"), await store.decisions("chat")
    assert state.revision >= at_least
    assert [replica.id for replica in state.replicas] == list(range(1, state.next_replica_id))
    assert [entry.seq for entry in log] == [replica.id for replica in state.replicas]
    assert log[-1].observation.revision == state.revision - 1
    assert log[-1].plan.replicas == state.replicas
    assert log[-1].plan.target == state.target == len(state.replicas)


def test_a_controller_killed_amid_commits_leaves_a_whole_state(path: Path) -> None:
    command = [sys.executable, "-c", LAUNCH_FOREVER, path]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            told = [int(process.stdout.readline()) for _ in range(25)]
        finally:
            process.send_signal(signal.SIGKILL)
        told += [int(line) for line in process.stdout.read().split()]

    async def goes_on(store: SqlStore) -> None:
        await consistent(store, at_least=told[-1])
        lease = await store.lease("chat", "controller-b", now=99.0, ttl_s=30.0)
        state = await store.load("chat")
        await store.commit(seen(state), launching(state, state.next_replica_id), lease=lease)

    within(path, goes_on)


def test_only_the_newest_decisions_are_kept(path: Path) -> None:
    async def log_one(store: SqlStore) -> None:
        state, lease = await begin(store)
        await store.commit(seen(state), replace(nothing_to_do(state), notes=(Note(None, BECAUSE),)), lease=lease)

    async def log_another(store: SqlStore) -> None:
        state = await store.load("chat")
        lease = await store.lease("chat", "controller-a", now=11.0, ttl_s=30.0)
        await store.commit(seen(state), replace(nothing_to_do(state), notes=(Note(None, BECAUSE),)), lease=lease)
        log = await store.decisions("chat")
        assert (len(log), log[-1].seq) == (DECISIONS_KEPT, DECISIONS_KEPT + 100)

    within(path, log_one)
    with closing(sqlite3.connect(path)) as db, db:
        db.execute(
            "WITH RECURSIVE n(seq) AS (SELECT 2 UNION ALL SELECT seq + 1 FROM n WHERE seq < ?) "
            "INSERT INTO decisions SELECT d.service, n.seq, d.at, d.observation, d.plan, d.policy FROM decisions d, n",
            (DECISIONS_KEPT + 99,),
        )
    within(path, log_another)


def test_a_row_that_cannot_be_read_is_told_by_its_path(path: Path) -> None:
    async def launch(store: SqlStore) -> None:
        state, lease = await begin(store)
        await store.commit(seen(state), launching(state, 1), lease=lease)

    async def read(store: SqlStore) -> None:
        with pytest.raises(StoreUnavailable, match=r"a Replica that cannot be read: \.status: .*'DANCING'") as caught:
            await store.load("chat")
        assert "newer SkyServe" in str(caught.value.hint)

    within(path, launch)
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("""UPDATE replicas SET body = replace(body, '"PENDING"', '"DANCING"')""")
    within(path, read)


def test_a_refused_write_shows_no_configuration_even_in_its_traceback(path: Path) -> None:
    async def fail(store: SqlStore) -> None:
        spec = replace(a_spec(run="for-my-eyes"), source="#" * 500_000)
        with pytest.raises(StoreUnavailable) as caught:
            await store.create(spec, uid="u", port=30001, now=1.0)
        told = [repr(error) + str(error) for error in chain_of(caught.value)]
        assert len(told) > 1
        assert not any("for-my-eyes" in text for text in told)

    with disk_of(pages=60):
        within(path, fail)


def chain_of(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def test_values_of_secrets_are_not_in_the_database(path: Path) -> None:
    secrets = SecretStore(path.parent / "secrets")

    async def serve(store: SqlStore) -> None:
        secrets.put("chat-u1", 1, {"TOKEN": "hunter2-hunter2"})
        state, lease = await begin(store)
        await store.commit(seen(state), launching(state, 1), lease=lease)
        files = [file.read_bytes() for file in path.parent.glob("state.db*")]
        assert len(files) == 3
        assert any(b'"TOKEN":"fingerprint"' in content for content in files)
        assert not any(b"hunter2" in content for content in files)

    within(path, serve)
