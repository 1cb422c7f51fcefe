"""What a value in a Service YAML may look like. Knows no particular key; `fields` is the table of those."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Boolean:
    """true or false."""


@dataclass(frozen=True, slots=True)
class Integer:
    """A whole number within bounds."""

    minimum: int
    maximum: int | None = None


@dataclass(frozen=True, slots=True)
class Number:
    """A finite number: at least `minimum`, or strictly more than `above`; at most `maximum`."""

    minimum: float | None = None
    above: float | None = None
    maximum: float | None = None


@dataclass(frozen=True, slots=True)
class Text:
    """A text. `form` says in words what `pattern` allows; `choices` are compared without regard to case.

    With `as_written` numbers and booleans are taken for the text they were written as.
    """

    form: str = "a text"
    pattern: str | None = None
    choices: tuple[str, ...] = ()
    as_written: bool = False


@dataclass(frozen=True, slots=True)
class ListOf:
    """A list of values of one kind."""

    item: Kind


@dataclass(frozen=True, slots=True)
class MapOf:
    """A map from names of the user's choice to values of one kind.

    `nullable` values may be left empty; of `private` maps no message quotes anything.
    """

    value: Kind
    key: Text = Text()
    nullable: bool = False
    private: bool = False


@dataclass(frozen=True, slots=True)
class Section:
    """A map with known keys."""

    name: str
    fields: tuple[Field, ...]
    doc: str = ""

    @property
    def by_name(self) -> Mapping[str, Field]:
        """The fields by their keys."""
        return {one.name: one for one in self.fields}


@dataclass(frozen=True, slots=True)
class OneOf:
    """Any of several kinds."""

    kinds: tuple[Kind, ...]


@dataclass(frozen=True, slots=True)
class Anything:
    """Whatever YAML can say."""


@dataclass(frozen=True, slots=True)
class Refused:
    """A form that is known and not accepted; `reason` ends the sentence that begins with the key."""

    reason: str
    hint: str | None = None


Kind = Boolean | Integer | Number | Text | ListOf | MapOf | Section | OneOf | Anything | Refused


@dataclass(frozen=True, slots=True)
class Field:
    """One key: what it may hold, what it means, and what holds if it is not given.

    `stored_only` marks what is accepted and remembered but not acted on yet.
    """

    name: str
    kind: Kind
    doc: str = ""
    default: str | int | float | bool | None = None
    required: bool = False
    stored_only: bool = field(default=False, kw_only=True)


def words(kind: Kind) -> str:
    """The kind in words, to follow "must be"."""
    match kind:
        case Boolean():
            return "true or false"
        case Integer() | Number():
            return _number_words(kind)
        case Text():
            return f"one of {', '.join(kind.choices)}" if kind.choices else kind.form
        case ListOf():
            return "a list"
        case OneOf():
            accepted = [words(one) for one in kind.kinds if not isinstance(one, Refused)]
            return " or ".join(dict.fromkeys(accepted))
        case MapOf() | Section():
            return "a map"
        case Anything() | Refused():
            return "anything"


def _number_words(kind: Integer | Number) -> str:
    noun = "a whole number" if isinstance(kind, Integer) else "a number"
    if isinstance(kind, Number) and kind.above is not None:
        return f"{noun} above {kind.above:g}"
    if kind.minimum is not None and kind.maximum is not None:
        return f"{noun} from {kind.minimum} to {kind.maximum}"
    return noun if kind.minimum is None else f"{noun} of {kind.minimum:g} or more"


def matches(kind: Text, text: str) -> bool:
    """Whether the text has the form that is asked for."""
    if kind.choices:
        return text.lower() in kind.choices
    return kind.pattern is None or re.fullmatch(kind.pattern, text) is not None
