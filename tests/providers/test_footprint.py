"""What an adapter keeps in mind, and what of it outlives a restart."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from skyserve.clock import VirtualClock
from skyserve.errors import ProviderUnavailable
from skyserve.providers.footprint import Footprint, Lately


def test_a_new_footprint_knows_nothing(tmp_path: Path) -> None:
    footprint = Footprint(tmp_path / "cloud.json")
    assert (footprint.complete, footprint.regions, footprint.debts) == (False, frozenset(), frozenset())
    assert not footprint.path.exists()


def test_what_was_entered_is_known_after_a_restart(tmp_path: Path) -> None:
    async def scenario() -> None:
        footprint = Footprint(tmp_path / "cloud.json")
        await asyncio.gather(*(footprint.enter(f"r{index}") for index in range(8)))
        await footprint.enter(complete=True)
        await footprint.owe("chat-u1")
        await footprint.owe("code-u2")
        await footprint.settle("chat-u1")

    asyncio.run(scenario())
    again = Footprint(tmp_path / "cloud.json")
    assert again.complete
    assert again.regions == {f"r{index}" for index in range(8)}
    assert again.debts == {"code-u2"}
    assert [path.name for path in tmp_path.iterdir()] == ["cloud.json"]


def test_what_is_known_is_not_written_again(tmp_path: Path) -> None:
    footprint = Footprint(tmp_path / "cloud.json")
    asyncio.run(footprint.enter("r1"))
    footprint.path.unlink()
    asyncio.run(footprint.enter("r1"))
    assert not footprint.path.exists()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"complete": true}', '{"complete": 1, "regions": 2, "debts": []}'])
def test_a_damaged_file_counts_as_none(tmp_path: Path, content: str) -> None:
    (tmp_path / "cloud.json").write_text(content)
    footprint = Footprint(tmp_path / "cloud.json")
    assert (footprint.complete, footprint.regions) == (False, frozenset())


def test_what_cannot_be_kept_is_not_believed_either(tmp_path: Path) -> None:
    footprint = Footprint(tmp_path / "missing" / "cloud.json")
    with pytest.raises(ProviderUnavailable, match="cannot be written"):
        asyncio.run(footprint.enter("r1"))
    assert footprint.regions == frozenset()


def test_answers_hold_for_a_while() -> None:
    clock = VirtualClock()
    answers: Lately[str] = Lately(clock, 60)
    assert answers.get("images", "here") is None
    assert answers.put("ami-1", "images", "here") == answers.get("images", "here") == "ami-1"
    assert answers.get("images", "there") is None
    asyncio.run(clock.advance(60))
    assert answers.get("images", "here") is None
    assert answers.get("images", "here", stale=True) == "ami-1"
    answers.clear()
    assert answers.get("images", "here", stale=True) is None
