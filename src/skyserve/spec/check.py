"""Holds a tree of YAML against the table of fields. Knows keys one by one, not how they depend on each other."""

from __future__ import annotations

import math
import re

from skyserve.spec.document import NEEDED, Entry, YamlList, YamlMap, YamlNode, YamlScalar, is_null
from skyserve.spec.fields import SECTIONS
from skyserve.spec.kinds import (
    Anything,
    Boolean,
    Field,
    Integer,
    Kind,
    ListOf,
    MapOf,
    Number,
    OneOf,
    Refused,
    Section,
    Text,
    matches,
    words,
)
from skyserve.spec.problems import Problems, nearest, shown


def check(kind: Kind, node: YamlNode, path: str, problems: Problems) -> None:
    """Note every place at or under `node` that is not of its kind; `path` names the node in messages."""
    if isinstance(kind, OneOf):
        kind = _choose(kind, node)
    if isinstance(kind, Refused):
        problems.add(node.place, f"`{path}` {kind.reason}", kind.hint)
    elif isinstance(kind, Section) and isinstance(node, YamlMap):
        _check_section(kind, node, path, problems)
    elif isinstance(kind, MapOf) and isinstance(node, YamlMap):
        for entry in node.entries:
            _check_map_entry(kind, entry, path, problems)
    elif isinstance(kind, ListOf) and isinstance(node, YamlList):
        for number, item in enumerate(node.items):
            check(kind.item, item, f"{path}[{number}]", problems)
    elif not _fits(kind, node):
        private = isinstance(kind, MapOf) and kind.private
        described = "" if private else f", not {_described(node)}"
        problems.add(node.place, f"`{path}` must be {words(kind)}{described}", _hint(kind, node))


def without_effect(kind: Kind, node: YamlNode) -> list[str]:
    """The names of the keys at or under `node` that are given but not acted on yet. The tree has passed `check`."""
    if isinstance(kind, OneOf):
        kind = _choose(kind, node)
    if isinstance(kind, ListOf) and isinstance(node, YamlList):
        return [key for item in node.items for key in without_effect(kind.item, item)]
    if not isinstance(kind, Section) or not isinstance(node, YamlMap):
        return []
    found = []
    for entry in node.given():
        field = kind.by_name[entry.key]
        found += [entry.key] if field.stored_only else without_effect(field.kind, entry.value)
    return found


def _choose(one_of: OneOf, node: YamlNode) -> Kind:
    """The kind that the value was meant to be: the first that fits or has its shape, else any of them."""
    for kind in one_of.kinds:
        if _fits(kind, node) or _same_shape(kind, node):
            return kind
    refused = next((kind for kind in one_of.kinds if isinstance(kind, Refused)), None)
    return refused if refused and not isinstance(node, YamlScalar) else one_of


def _same_shape(kind: Kind, node: YamlNode) -> bool:
    if isinstance(node, YamlMap):
        return isinstance(kind, (Section, MapOf))
    return isinstance(node, YamlList) and isinstance(kind, ListOf)


def _fits(kind: Kind, node: YamlNode) -> bool:
    if isinstance(kind, Anything):
        return True
    if not isinstance(node, YamlScalar):
        return False
    match kind:
        case Boolean():
            return isinstance(node.value, bool)
        case Integer() | Number():
            return _number_fits(kind, node.value)
        case Text():
            return _text_fits(kind, node)
        case _:
            return False


def _number_fits(kind: Integer | Number, value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return False
    if (kind.minimum is not None and value < kind.minimum) or (kind.maximum is not None and value > kind.maximum):
        return False
    if isinstance(kind, Integer):
        return isinstance(value, int)
    return kind.above is None or value > kind.above


def _text_fits(kind: Text, node: YamlScalar) -> bool:
    if node.value is None or (not isinstance(node.value, str) and not kind.as_written):
        return False
    return matches(kind, node.text)


def _check_map_entry(kind: MapOf, entry: Entry, path: str, problems: Problems) -> None:
    if not matches(kind.key, entry.key):
        problems.add(entry.place, f"{shown(entry.key)} in `{path}` must be {words(kind.key)}")
    elif not (kind.nullable and is_null(entry.value)):
        check(kind.value, entry.value, _joined(path, entry.key), problems)


def _check_section(section: Section, node: YamlMap, path: str, problems: Problems) -> None:
    fields = section.by_name
    meant: set[str | None] = set()
    for entry in node.entries:
        field = fields.get(entry.key)
        if field is None:
            meant.add(_unknown_key(section, entry, path, problems))
        elif isinstance(field.kind, Refused):
            problems.add(entry.place, f"`{_joined(path, entry.key)}` {field.kind.reason}", field.kind.hint)
        elif not is_null(entry.value):
            check(field.kind, entry.value, _joined(path, entry.key), problems)
    for field in section.fields:
        if field.required and field.name not in meant and node.entry(field.name) is None:
            problems.add(node.title, f"`{_joined(path, field.name)}` is missing", _what_it_is(field))


def _what_it_is(field: Field) -> str:
    return NEEDED if isinstance(field.kind, Section) else field.doc


def _unknown_key(section: Section, entry: Entry, path: str, problems: Problems) -> str | None:
    """Note an unknown key; the key that was likely meant."""
    known = [field.name for field in section.fields if not isinstance(field.kind, Refused)]
    elsewhere = [one.name for one in SECTIONS if one.name and entry.key in one.by_name]
    close = nearest(entry.key, known)
    if elsewhere and elsewhere[0] != section.name:
        hint = f"`{entry.key}` belongs under `{elsewhere[0]}:`"
    elif close:
        hint = f"did you mean `{close}`?"
    else:
        hint = f"known keys: {', '.join(known)}"
    problems.add(entry.place, f"unknown key {shown(entry.key)}" + (f" in `{path}`" if path else ""), hint)
    return close


def _joined(path: str, key: str) -> str:
    key = key if re.fullmatch(r"[\w./:~-]{1,60}", key) else shown(key)
    return f"{path}.{key}" if path else key


def _described(node: YamlNode) -> str:
    match node:
        case YamlMap():
            return "a map"
        case YamlList():
            return "a list"
        case YamlScalar(value=None):
            return "empty"
        case YamlScalar(value=str()):
            return f"the text {shown(node.text)}"
        case YamlScalar():
            return node.text if len(node.text) <= 40 else f"{node.text[:37]}..."


def _hint(kind: Kind, node: YamlNode) -> str | None:
    if isinstance(kind, OneOf):
        return next((hint for one in kind.kinds if (hint := _hint(one, node))), None)
    if not isinstance(node, YamlScalar) or not isinstance(node.value, str):
        return None
    if isinstance(kind, Boolean) and node.text.lower() in ("yes", "no", "on", "off"):
        return f"write {'true' if node.text.lower() in ('yes', 'on') else 'false'}"
    if isinstance(kind, (Integer, Number)) and re.fullmatch(r"-?[0-9]+(\.[0-9]+)?", node.text):
        return "remove the quotes"
    if isinstance(kind, Text) and kind.choices:
        close = nearest(node.text, kind.choices)
        return f"did you mean {close}?" if close else None
    return None
