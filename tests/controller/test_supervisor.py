"""The supervisor: what fails is begun again, and what is over leaves nothing behind."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from tests.controller.rig import FixedRoster, chat
from tests.controller.site import Site, plain

from skyserve.clock import SystemClock
from skyserve.config import Config
from skyserve.controller import supervisor as module
from skyserve.controller.supervisor import Supervisor
from skyserve.errors import StoreUnavailable
from skyserve.model.scaling import CustomMetric
from skyserve.model.service import ReplicaPolicy, UpdateMode
from skyserve.providers.fake import FakeProvider
from skyserve.store.base import Store
from skyserve.store.secrets import SecretStore
from skyserve.store.sql import open_store

IDLE = ReplicaPolicy(0, 1, target_qps_per_replica=1.0)


class Full:
    """A store on a disk that is full whenever something shall be deleted."""

    def __init__(self, store: Store, times: int) -> None:
        self._store = store
        self.times = times

    def __getattr__(self, name: str) -> object:
        return getattr(self._store, name)

    async def delete(self, service: str) -> None:
        if self.times:
            self.times -= 1
            raise StoreUnavailable("database or disk is full")
        await self._store.delete(service)


class Clumsy(FakeProvider):
    """An adapter that cannot give back what was shared at the first attempt."""

    clumsy = 1

    async def release(self, service: str) -> None:
        if self.clumsy:
            self.clumsy -= 1
            raise AttributeError("no such thing")
        await super().release(service)


@asynccontextmanager
async def supervised(home: Path, monkeypatch: pytest.MonkeyPatch, failures: int = 0) -> AsyncIterator[Supervisor]:
    monkeypatch.setattr(module, "RESTART_PAUSE_S", 0.05)
    clock = SystemClock()
    store = Full(await asyncio.to_thread(open_store, home / "state.db"), failures)
    roster = FixedRoster(Clumsy(clock))
    config = Config(home, inherited_env={})
    supervisor = Supervisor(config, store, roster, clock, SecretStore(config.secrets_dir))  # type: ignore[arg-type]
    await supervisor.start()
    try:
        yield supervisor
    finally:
        for name in supervisor.names():
            await supervisor.down(name, purge=True)
        await eventually(lambda: not supervisor.names())
        await supervisor.close()


async def eventually(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not done():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)


def test_a_burial_that_fails_half_way_is_finished_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        async with supervised(tmp_path, monkeypatch, failures=2) as supervisor:
            await supervisor.create(replace(chat(), replica_policy=IDLE), {})
            await supervisor.down("chat", purge=False)
            await eventually(lambda: not supervisor.names())
            assert await supervisor.store.services() == ()
            assert not list((tmp_path / "services").iterdir())

    asyncio.run(scenario())


def test_a_service_that_is_deleted_behind_our_back_is_buried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        async with supervised(tmp_path, monkeypatch) as supervisor:
            await supervisor.create(replace(chat(), replica_policy=IDLE), {})
            await supervisor.store.delete("chat")
            await supervisor.forget_health(None)  # look now
            await eventually(lambda: not supervisor.names())

    asyncio.run(scenario())


def test_copies_of_versions_that_are_old_and_that_nothing_runs_are_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        work = tmp_path / "work"
        work.mkdir()
        spec = replace(chat(), replica_policy=IDLE, workdir=str(work), secrets={"KEY": "f"})
        async with supervised(tmp_path / "home", monkeypatch) as supervisor:
            state = await supervisor.create(spec, {"KEY": "v"})
            for _ in range(12):
                await supervisor.update(spec, {"KEY": "v"}, UpdateMode.ROLLING)
            tag = f"{state.name}-{state.uid}"
            kept = supervisor.config.service_dir(tag) / "versions"
            assert sorted(path.name for path in kept.iterdir()) == sorted(str(n) for n in range(4, 14))
            secrets = supervisor.config.secrets_dir / tag
            assert sorted(path.name for path in secrets.iterdir()) == sorted(f"{n}.json" for n in range(4, 14))

    asyncio.run(scenario())


def test_work_that_fails_is_begun_again_and_after_a_good_run_soon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        async with supervised(tmp_path, monkeypatch) as supervisor:
            troubles: list[str] = []

            async def work() -> None:
                if len(troubles) < 3:
                    raise KeyError(len(troubles))

            async with asyncio.timeout(10):
                await supervisor._persist("work", work, troubles.append)
            assert [trouble.partition(": ")[2] for trouble in troubles] == ["KeyError: 0", "KeyError: 1", "KeyError: 2"]

    asyncio.run(scenario())


def test_the_users_metric_is_read_for_as_long_as_there_is_the_service(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        site = Site(answers={"/depth": plain(b"120")})
        server = await asyncio.start_server(site.serve, "127.0.0.1", 0)
        site.port = server.sockets[0].getsockname()[1]
        metric = CustomMetric(site.url("/depth"), 50, headers={"Authorization": "Bearer $KEY"}, interval_seconds=0.05)
        policy = ReplicaPolicy(0, 1, custom_metric=metric)
        async with supervised(tmp_path, monkeypatch) as supervisor:
            await supervisor.create(replace(chat(), replica_policy=policy, secrets={"KEY": "f"}), {"KEY": "hunter2"})
            await eventually(lambda: len(site.heads) > 2)
            assert [task for task in asyncio.all_tasks() if "Scraper." in repr(task)]
            await supervisor.down("chat", purge=False)
            await eventually(lambda: not supervisor.names())
            assert all("Authorization: Bearer hunter2" in head for head in site.heads)
            assert not [task for task in asyncio.all_tasks() if "Scraper." in repr(task)]
        server.close()
        await server.wait_closed()

    asyncio.run(scenario())
