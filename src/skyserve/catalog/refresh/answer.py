"""Reading a JSON answer whose shape is somebody else's: typed steps into it, and an error that names the step which
failed. Knows no cloud and no network."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import TypeAlias

from skyserve.errors import CatalogError

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"

CHANGED = "The last good prices stay in use. If this persists, the price API has changed: update SkyServe."


class Answer:
    """One JSON value and the path that led to it. Accessors raise CatalogError when the value is of another kind."""

    __slots__ = ("_value", "_where")

    def __init__(self, value: Json, where: str) -> None:
        self._value = value
        self._where = where

    @classmethod
    def parse(cls, text: bytes, where: str) -> Answer:
        """Read JSON text; `where` says whose answer it is."""
        try:
            value: Json = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise CatalogError(f"{where}: the answer is not JSON", hint=CHANGED) from error
        return cls(value, where)

    def __getitem__(self, key: str) -> Answer:
        """The member `key`; a missing one reads as null."""
        if not isinstance(self._value, dict):
            raise self._wrong("an object")
        return Answer(self._value.get(key), f"{self._where}.{key}")

    def __contains__(self, key: str) -> bool:
        return isinstance(self._value, dict) and self._value.get(key) is not None

    def members(self) -> Iterator[tuple[str, Answer]]:
        """Names and values of an object."""
        if not isinstance(self._value, dict):
            raise self._wrong("an object")
        for key, value in self._value.items():
            yield key, Answer(value, f"{self._where}.{key}")

    def elements(self) -> list[Answer]:
        """The elements of an array."""
        if not isinstance(self._value, list):
            raise self._wrong("an array")
        return [Answer(value, f"{self._where}[{index}]") for index, value in enumerate(self._value)]

    def text(self) -> str:
        """A string."""
        if not isinstance(self._value, str):
            raise self._wrong("a text")
        return self._value

    def text_or(self, absent: str) -> str:
        """A string, or `absent` for null."""
        return absent if self._value is None else self.text()

    def number(self) -> float:
        """A finite number, also one that is written as text."""
        value = self._value
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise self._wrong("a number")
        try:
            number = float(value)
        except (ValueError, OverflowError):
            raise self._wrong("a number") from None
        if not math.isfinite(number):
            raise self._wrong("a number")
        return number

    def number_or_none(self) -> float | None:
        """A number, or None for null."""
        return None if self._value is None else self.number()

    def flag(self) -> bool:
        """True or false."""
        if not isinstance(self._value, bool):
            raise self._wrong("true or false")
        return self._value

    def _wrong(self, wanted: str) -> CatalogError:
        kind = "null" if self._value is None else type(self._value).__name__
        return CatalogError(f"{self._where} should be {wanted}, and is {kind}", hint=CHANGED)
