"""YAML text to a tree in which every key and value knows its place. Knows YAML 1.2, not what the keys mean."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, ReusedAnchorWarning, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from ruamel.yaml.reader import ReaderError

from skyserve.spec.problems import Place, Problems, shown

NEEDED = "a Service YAML needs `service:`, `resources:` and `run:`"
"""The hint when there is too little in a file to tell what is wrong with it."""
_MOST_NODES = 20_000  # aliases are expanded: a short text can stand for a huge tree
_MOST_DEPTH = 60
_TAG = "tag:yaml.org,2002:"
_TEXT_TAGS = frozenset({"str", "timestamp", "value", "merge"})
_TRUTHS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


@dataclass(frozen=True, slots=True)
class YamlScalar:
    """A single value; `text` is how it was written, without quotes."""

    value: str | int | float | bool | None
    text: str
    place: Place


@dataclass(frozen=True, slots=True)
class YamlList:
    """A sequence."""

    items: tuple[YamlNode, ...]
    place: Place


@dataclass(frozen=True, slots=True)
class Entry:
    """One key of a map with its value."""

    key: str
    place: Place
    value: YamlNode


@dataclass(frozen=True, slots=True)
class YamlMap:
    """A mapping; `title` is the place of the key that introduces it. Keys with a null value count as not given."""

    entries: tuple[Entry, ...]
    place: Place
    title: Place

    def entry(self, key: str) -> Entry | None:
        """The entry of a key that was given a value."""
        return next((entry for entry in self.given() if entry.key == key), None)

    def given(self) -> Iterator[Entry]:
        """The entries that have a value."""
        return (entry for entry in self.entries if not is_null(entry.value))

    def node(self, key: str) -> YamlNode | None:
        """The value of a key."""
        entry = self.entry(key)
        return None if entry is None else entry.value

    def place_of(self, key: str) -> Place:
        """Where the key's value stands; where the map is introduced if the key is not there."""
        entry = self.entry(key)
        return self.title if entry is None else entry.value.place

    def map(self, key: str) -> YamlMap | None:
        """The value of a key that holds a map."""
        node = self.node(key)
        return node if isinstance(node, YamlMap) else None

    def text(self, key: str) -> str | None:
        """The value of a key that holds a single value, as written."""
        node = self.node(key)
        return node.text if isinstance(node, YamlScalar) else None

    def number(self, key: str, default: float) -> float:
        """The value of a key that holds a number."""
        node = self.node(key)
        return float(node.value) if isinstance(node, YamlScalar) and isinstance(node.value, (int, float)) else default

    def integer(self, key: str, default: int) -> int:
        """The value of a key that holds a whole number."""
        return int(self.number(key, default))

    def flag(self, key: str, default: bool) -> bool:
        """The value of a key that holds true or false."""
        node = self.node(key)
        return node.value if isinstance(node, YamlScalar) and isinstance(node.value, bool) else default


YamlNode = YamlScalar | YamlList | YamlMap


def is_null(node: YamlNode) -> bool:
    """Whether a value is YAML's null."""
    return isinstance(node, YamlScalar) and node.value is None


def plain(node: YamlNode) -> object:
    """The value without its places: dict, list, str, int, float, bool or None."""
    match node:
        case YamlScalar():
            return node.value
        case YamlList():
            return [plain(item) for item in node.items]
        case YamlMap():
            return {entry.key: plain(entry.value) for entry in node.entries}


def read_document(text: str, problems: Problems) -> YamlMap | None:
    """The one map of a YAML text. What is wrong goes to `problems`; None means that there is nothing to go on with."""
    node = _compose(text, problems)
    if node is None:
        return None
    if not isinstance(node, MappingNode):
        problems.add(_place(node), "a Service YAML is a map of keys and values", "start with `service:`")
        return None
    try:
        root = _Converter(problems).convert(node, Place(), 0)
    except _GiveUp:
        return None
    return root if isinstance(root, YamlMap) else None


def check_characters(node: YamlNode, problems: Problems) -> None:
    """Note texts at or under `node` that no process and no UTF-8 file can be given."""
    match node:
        case YamlScalar():
            _check_text(node.text, node.place, problems)
        case YamlList():
            for item in node.items:
                check_characters(item, problems)
        case YamlMap():
            for entry in node.entries:
                _check_text(entry.key, entry.place, problems)
                check_characters(entry.value, problems)


def _check_text(text: str, place: Place, problems: Problems) -> None:
    if any(char == "\0" or "\ud800" <= char <= "\udfff" for char in text):
        problems.add(place, "NUL and half surrogate pairs cannot be passed on: this is not a text in UTF-8")


def _compose(text: str, problems: Problems) -> Node | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ReusedAnchorWarning)
            node = YAML(typ="safe", pure=True).compose(text)
    except ReaderError as error:
        place = Place(text.count("\n", 0, error.position), 0, error.position, error.position + 1)
        problems.add(place, f"YAML does not allow the character U+{ord(text[error.position]):04X} here")
    except MarkedYAMLError as error:
        problems.add(*_syntax_problem(error))
    except RecursionError:
        problems.add(Place(), "lists and maps are nested too deeply")
    except (YAMLError, ValueError, OverflowError) as error:
        problems.add(Place(), f"not valid YAML: {shown(str(error))}")
    else:
        if isinstance(node, Node):
            return node
        problems.add(Place(), "there is nothing in it", NEEDED)
    return None


def _syntax_problem(error: MarkedYAMLError) -> tuple[Place, str, str | None]:
    mark = error.problem_mark or error.context_mark
    place = Place(mark.line, mark.column, mark.index, mark.index + 1) if mark else Place()
    problem = str(error.problem or error.context or "it cannot be read")
    if "another document" in problem:
        return place, "there is more than one document in it", "keep one: remove the `---` or `...` between them"
    hint = None
    if error.context and error.context_mark:
        hint = f"{error.context} that starts in line {error.context_mark.line + 1}"
    if "'\\t'" in problem:
        hint = "indent with spaces: YAML does not allow tabs there"
    elif "alias" in f"{error.context} {problem}":
        hint = "put quotes around a text that begins with `*`, such as a cron line"
    elif "mapping values are not allowed" in problem:
        hint = "check the indentation, and put quotes around a value that holds `: `"
    return place, f"not valid YAML: {problem}", hint


def _place(node: Node) -> Place:
    start, end = node.start_mark, node.end_mark
    return Place(start.line, start.column, start.index, end.index)


class _GiveUp(Exception):
    """The tree cannot be built; the problem has been noted."""


class _Converter:
    def __init__(self, problems: Problems) -> None:
        self._problems = problems
        self._count = 0

    def convert(self, node: Node, title: Place, depth: int) -> YamlNode:
        self._count += 1
        if self._count > _MOST_NODES or depth > _MOST_DEPTH:
            self._problems.add(title, "it is too large or nested too deeply", "check for an alias that holds itself")
            raise _GiveUp
        place = _place(node)
        if isinstance(node, ScalarNode):
            return YamlScalar(self._value(node), node.value, place)
        if isinstance(node, SequenceNode):
            return YamlList(tuple(self.convert(item, _place(item), depth + 1) for item in node.value), place)
        entries = tuple(self._entries(node, depth)) if isinstance(node, MappingNode) else ()
        return YamlMap(entries, place, title)

    def _entries(self, node: MappingNode, depth: int) -> Iterator[Entry]:
        seen: dict[str, Place] = {}
        merged: list[Entry] = []
        for key_node, value_node in node.value:
            place = _place(key_node)
            if not isinstance(key_node, ScalarNode):
                self._problems.add(place, "a key must be a plain word, not a list or a map")
                continue
            key = str(key_node.value)
            if key_node.tag == _TAG + "merge":
                merged += self._merged(value_node, place, depth)
                continue
            if key in seen:
                self._problems.add(place, f"the key {shown(key)} is given twice", f"first in line {seen[key].line + 1}")
                continue
            seen[key] = place
            yield Entry(key, place, self.convert(value_node, place, depth + 1))
        for entry in merged:
            if entry.key not in seen:
                seen[entry.key] = entry.place
                yield entry

    def _merged(self, node: Node, place: Place, depth: int) -> list[Entry]:
        sources = node.value if isinstance(node, SequenceNode) else [node]
        entries: list[Entry] = []
        for source in sources:
            if isinstance(source, MappingNode):
                converted = self.convert(source, place, depth + 1)
                entries += converted.entries if isinstance(converted, YamlMap) else ()
            else:
                self._problems.add(place, "`<<` merges maps only")
        return entries

    def _value(self, node: ScalarNode) -> str | int | float | bool | None:
        kind = str(node.tag).removeprefix(_TAG)
        text = str(node.value)
        try:
            return _scalar_value(kind, text)
        except KeyError:
            self._problems.add(_place(node), f"the tag {shown(str(node.tag))} means nothing here", "remove the tag")
        except (ValueError, OverflowError):
            pass  # digits beyond any number that is of use: still a text
        return text


def _scalar_value(kind: str, text: str) -> str | int | float | bool | None:
    if kind in _TEXT_TAGS:
        return text
    if kind == "null":
        return None
    if kind == "bool":
        return _TRUTHS[text.lower()]
    if kind == "int":
        return _integer(text)
    if kind == "float":
        return _float(text)
    raise KeyError(kind)


def _integer(text: str) -> int:
    digits = text.replace("_", "")
    value = int(digits, 0 if digits.lstrip("+-")[:2].lower() in ("0x", "0o", "0b") else 10)
    if abs(value) >= 2**63:
        raise OverflowError(text)
    return value


def _float(text: str) -> float:
    digits = text.replace("_", "").lower()
    if digits.lstrip("+-") in (".inf", ".nan"):
        return float(digits.replace(".", ""))
    value = float(digits)
    if math.isinf(value):
        raise OverflowError(text)
    return value
