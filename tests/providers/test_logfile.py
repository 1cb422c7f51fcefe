"""A rotated log reads as one, also while it is written."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from skyserve.providers.logfile import LogReader, append_log, last_lines, stream


@pytest.fixture
def log(tmp_path: Path) -> Path:
    (tmp_path / "log.2").write_text("one\ntwo\n")
    (tmp_path / "log.1").write_text("three\nfo")
    (tmp_path / "log").write_text("ur\nfive\n")
    return tmp_path / "log"


def rotate(log: Path) -> None:
    log.with_name("log.1").replace(log.with_name("log.2"))
    log.replace(log.with_name("log.1"))


async def read(log: Path, tail: int | None = None) -> str:
    return b"".join([data async for data in stream(log, tail=tail, follow=False, ended=lambda: True)]).decode()


@pytest.mark.parametrize(
    ("tail", "expected"),
    [
        (None, "one\ntwo\nthree\nfour\nfive\n"),
        (0, ""),
        (1, "five\n"),
        (2, "four\nfive\n"),
        (3, "three\nfour\nfive\n"),
        (4, "two\nthree\nfour\nfive\n"),
        (5, "one\ntwo\nthree\nfour\nfive\n"),
        (99, "one\ntwo\nthree\nfour\nfive\n"),
    ],
)
def test_the_tail_reaches_over_the_parts(log: Path, tail: int | None, expected: str) -> None:
    assert asyncio.run(read(log, tail)) == expected


def test_an_unfinished_line_is_a_line(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("one\ntwo")
    assert asyncio.run(read(tmp_path / "log", 1)) == "two"
    assert asyncio.run(read(tmp_path / "log", 0)) == ""


def test_lines_longer_than_a_piece(tmp_path: Path) -> None:
    lines = [f"{number}" * 100_000 + "\n" for number in (1, 2, 3)]
    (tmp_path / "log").write_text("".join(lines))
    assert asyncio.run(read(tmp_path / "log", 2)) == "".join(lines[1:])


def test_no_log_is_empty(tmp_path: Path) -> None:
    assert asyncio.run(read(tmp_path / "log")) == ""
    assert last_lines(tmp_path / "log", 5) == []


def test_reading_goes_on_through_rotations(log: Path) -> None:
    reader = LogReader(log)
    text = b"".join(iter(reader.read, b""))
    with log.open("a") as file:
        file.write("six\n")
    rotate(log)
    log.write_text("seven\n")
    rotate(log)
    log.write_text("eight\n")
    text += b"".join(iter(reader.read, b""))
    reader.close()
    assert text.decode() == "one\ntwo\nthree\nfour\nfive\nsix\nseven\neight\n"


def test_following_ends_with_the_last_words(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("begin\n")
    asked: list[bool] = []

    def ended() -> bool:
        asked.append(True)
        if len(asked) == 2:
            with log.open("a") as file:
                file.write("end\n")
        return len(asked) > 1

    async def follow() -> bytes:
        return b"".join([data async for data in stream(log, tail=None, follow=True, ended=ended)])

    assert asyncio.run(follow()) == b"begin\nend\n"


def test_last_lines_are_readable(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(b"\x1b[1mbold\x1b[0m\n\xff\tx\n10%\r20%\r30%\n")
    assert last_lines(tmp_path / "log", 3) == ["10%", "20%", "30%"]
    assert last_lines(tmp_path / "log", 5)[:2] == ["[1mbold[0m", "�x"]


def test_kept_logs_are_appended_and_cut_at_a_line(log: Path, tmp_path: Path) -> None:
    kept = tmp_path / "kept.log"
    append_log(log, kept, heading="again", limit_bytes=1000)
    assert kept.read_text() == "one\ntwo\nthree\nfour\nfive\n"
    append_log(log, kept, heading="again", limit_bytes=1000)
    assert kept.read_text() == "one\ntwo\nthree\nfour\nfive\nagain\none\ntwo\nthree\nfour\nfive\n"
    append_log(log, kept, heading="again", limit_bytes=12)
    assert kept.read_text() == "four\nfive\n"
