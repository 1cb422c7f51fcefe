"""Collects what is wrong with a Service YAML and tells it with its place. Knows the text, not what the keys mean."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from skyserve.errors import SpecError

_LINE_BREAK = re.compile("\r\n|[\n\r\x85\u2028\u2029]")  # what YAML takes for the end of a line
_WIDTH = 120
_MOST_TOLD = 20


@dataclass(frozen=True, slots=True)
class Place:
    """Where something stands: zero-based line and column, and the span of characters; or a command line flag.

    A place without a span stands for the whole file.
    """

    line: int = 0
    column: int = 0
    start: int = 0
    end: int = 0
    flag: str | None = None


@dataclass(frozen=True, slots=True)
class _Problem:
    place: Place
    message: str
    hint: str | None


class Problems:
    """The problems of one Service YAML; `label` is what its places are named after, mostly the path."""

    def __init__(self, text: str, label: str) -> None:
        self._lines = lines_of(text)
        self._label = label
        self._found: list[_Problem] = []
        self._private: Collection[int] = ()

    def add(self, place: Place, message: str, hint: str | None = None) -> None:
        """Note a problem; reading goes on, so that one run tells of all of them."""
        self._found.append(_Problem(place, message, hint))

    def hide(self, lines: Collection[int]) -> None:
        """Never quote these lines (counted from zero): they hold secrets."""
        self._private = lines

    def raise_if_any(self) -> None:
        """Raise the first problem in the order of the file; its hint ends with the others, one a line."""
        if not self._found:
            return
        ordered = sorted(
            dict.fromkeys(self._found), key=lambda found: (found.place.flag is not None, found.place.start)
        )
        first, others = ordered[0], ordered[1:]
        told = [f"also {self._where(other.place)}: {other.message}" for other in others[:_MOST_TOLD]]
        if len(others) > _MOST_TOLD:
            told.append(f"and {len(others) - _MOST_TOLD} more")
        hint = "\n".join([first.hint, *told] if first.hint else told)
        raise SpecError(
            first.message, hint=hint or None, where=self._where(first.place), excerpt=self._excerpt(first.place)
        )

    def _where(self, place: Place) -> str:
        return place.flag or f"{self._label}:{place.line + 1}:{place.column + 1}"

    def _excerpt(self, place: Place) -> str:
        quotable = place.end > place.start and place.line < len(self._lines) and place.line not in self._private
        line = self._lines[place.line] if quotable else ""
        if not line.strip():
            return ""
        begin = max(0, place.column - _WIDTH // 2) if len(line) > _WIDTH else 0
        window = line[begin : begin + _WIDTH]
        before = window[: place.column - begin]
        carets = max(1, min(place.end - place.start, len(window) - len(before)))
        indent = "".join("\t" if char == "\t" else " " for char in before)
        return f"{_printable(window)}\n{indent}{'^' * carets}"


def lines_of(text: str) -> list[str]:
    """The lines of a text as YAML counts them."""
    return _LINE_BREAK.split(text)


def shown(text: str) -> str:
    """A user's text as it may stand in a message: quoted, short, without control characters."""
    return repr(text if len(text) <= 40 else text[:37] + "...")


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known name that was most likely meant, if any is close."""
    by_lower = {name.lower(): name for name in known}
    found = difflib.get_close_matches(word.lower()[:60], by_lower, n=1, cutoff=0.65)
    return by_lower[found[0]] if found else None


def _printable(text: str) -> str:
    return "".join(char if char.isprintable() or char == "\t" else "\ufffd" for char in text)
