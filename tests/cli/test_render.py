"""What the screen makes of a terminal's width."""

from __future__ import annotations

import fcntl
import os
import struct
import termios
from collections.abc import Iterator
from contextlib import contextmanager

from skyserve.cli.render import Screen

HEADERS = ("NAME", "PLACE", "STATUS")
ROWS = [("first", "somewhere-far-away", "READY")]


@contextmanager
def screen(columns: int) -> Iterator[Screen]:
    """A screen on a real terminal of so many columns."""
    master, slave = os.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    try:
        with open(slave, "w", buffering=1, closefd=False) as terminal:
            yield Screen(terminal, terminal, terminal, {"NO_COLOR": "1"})
    finally:
        os.close(slave)
        os.close(master)


def test_a_wide_terminal_gets_every_column() -> None:
    with screen(80) as wide:
        assert wide.columns == 80
        lines = wide.table("Things", HEADERS, ROWS, expendable=("PLACE",))
    assert lines == ["Things", "NAME   PLACE               STATUS", "first  somewhere-far-away  READY"]


def test_a_narrow_terminal_does_without_some_columns_and_says_so() -> None:
    with screen(20) as narrow:
        lines = narrow.table("Things", HEADERS, ROWS, expendable=("PLACE", "NAME"))
    assert lines == ["Things (narrow terminal, without PLACE)", "NAME   STATUS", "first  READY"]


def test_what_is_not_expendable_stays_however_narrow_the_terminal() -> None:
    with screen(5) as narrow:
        assert narrow.table("Things", HEADERS, ROWS)[1].split() == list(HEADERS)


def test_a_pipe_has_no_width() -> None:
    with open(os.devnull, "r+") as nothing:
        assert Screen(nothing, nothing, nothing, {}).columns is None
