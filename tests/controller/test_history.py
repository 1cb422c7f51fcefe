"""The versions of a service: what became of each, and which one a rollback goes back to."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest
from tests.controller.test_supervisor import IDLE, chat, supervised

from skyserve.controller import history
from skyserve.errors import UsageError
from skyserve.model.decision import Memory
from skyserve.model.rollout import Rejected, RolloutMemory
from skyserve.model.service import ServiceSpec, UpdateMode
from skyserve.store.base import ServiceState, StoredVersion
from skyserve.store.memory import MemoryStore


def stored(*runs: str) -> list[StoredVersion]:
    return [
        StoredVersion(number, ServiceSpec("chat", run), UpdateMode.ROLLING, float(number))
        for number, run in enumerate(runs, 1)
    ]


def state(versions: list[StoredVersion], rollout: RolloutMemory) -> ServiceState:
    async def made() -> ServiceState:
        return await MemoryStore().create(versions[0].spec, uid="u", port=1, now=0.0)

    return replace(asyncio.run(made()), latest_version=len(versions), memory=Memory(rollout=rollout))


def test_every_version_has_a_status_and_what_it_changed() -> None:
    versions = stored("one", "two", "three", "one")
    rejected = (Rejected(3, 9.0, "it failed"),)
    told = history.history_view(state(versions, RolloutMemory(4, good=2, rejected=rejected, served=(1, 2))), versions)
    assert [row.status for row in told.versions] == ["replaced", "current", "rolled back", "rolling out"]
    assert [row.changes for row in told.versions] == [(), ("run",), ("run",), ("as version 1",)]
    assert (told.current, told.back_to, told.versions[2].why) == (2, 2, "it failed")
    stopped = RolloutMemory(4, good=2, stopped="it failed", served=(1, 2))
    assert [row.status for row in history.history_view(state(versions, stopped), versions).versions][2:] == [
        "superseded",
        "stopped",
    ]


@pytest.mark.parametrize(
    ("rollout", "to", "expected"),
    [
        (RolloutMemory(3, good=2, served=(1, 2)), None, 2),
        (RolloutMemory(3, good=3, served=(1, 2, 3)), None, 2),
        (RolloutMemory(3, good=3, served=(1, 3)), None, 1),
        (RolloutMemory(3, good=3, served=(1, 3)), 2, 2),
        (RolloutMemory(2, good=2, served=(1, 2)), None, 2),
    ],
)
def test_where_a_rollback_goes(rollout: RolloutMemory, to: int | None, expected: int) -> None:
    versions = stored("one", "two", "three")
    assert history.target(state(versions, rollout), versions, to).version == expected


@pytest.mark.parametrize(
    ("rollout", "to", "problem"),
    [
        (RolloutMemory(2, good=2, rejected=(Rejected(3, 1.0, "bad"),), served=(1, 2)), None, "rolled back already"),
        (RolloutMemory(2, good=2, rejected=(Rejected(3, 1.0, "bad"),), served=(1, 2)), 2, "aims for version 2 already"),
        (RolloutMemory(3, good=3, served=(3,)), None, "no version"),
        (RolloutMemory(3, good=3, served=(3,)), 3, "aims for version 3 already"),
        (RolloutMemory(3, good=3, served=(3,)), 9, "is not kept"),
    ],
)
def test_where_it_cannot_go(rollout: RolloutMemory, to: int | None, problem: str) -> None:
    versions = stored("one", "two", "three")
    with pytest.raises(UsageError, match=problem):
        history.target(state(versions, rollout), versions, to)


def test_a_rollback_brings_files_and_secrets_of_then_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        work = tmp_path / "work"
        work.mkdir()
        (work / "weights").write_text("old")
        spec = replace(chat(), replica_policy=IDLE, workdir=str(work), secrets={"KEY": "f"})
        async with supervised(tmp_path / "home", monkeypatch) as supervisor:
            made = await supervisor.create(spec, {"KEY": "old"})
            (work / "weights").write_text("new")
            await supervisor.update(spec, {"KEY": "new"}, UpdateMode.ROLLING)
            assert await supervisor.rollback("chat", 1, UpdateMode.BLUE_GREEN) == 3
            tag = f"{made.name}-{made.uid}"
            copies = supervisor.config.service_dir(tag) / "versions"
            assert (copies / "3" / "workdir" / "weights").read_text() == "old"
            secrets = supervisor.config.secrets_dir / tag
            assert (secrets / "3.json").read_text() == (secrets / "1.json").read_text()
            loaded = await supervisor.store.load("chat")
            assert (loaded.latest_version, loaded.update_mode) == (3, UpdateMode.BLUE_GREEN)
            with pytest.raises(UsageError):
                await supervisor.rollback("chat", 77, UpdateMode.ROLLING)
            assert sorted(path.name for path in secrets.iterdir()) == ["1.json", "2.json", "3.json"]

    asyncio.run(scenario())
