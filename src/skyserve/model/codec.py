"""Dataclasses to JSON and back: what is stored, logged and sent between processes goes through here.

It knows types, not meanings: no field or class of the model is named. What it can convert is what the model is made of:
dataclasses, enums (by value), `tuple[X, ...]` and fixed tuples, `Mapping` with `str` or `int` keys, `str`, `int`,
`float`, `bool`, `None`, and unions whose members look different in JSON. Where several dataclasses stand in one union,
each is tagged with its class name under `kind`. Any other type is refused when it is first met (TypeError).

Later versions may add fields: unknown keys are ignored, missing ones take the field's default. All else is strict; a
value of a wrong type raises CodecError. Numbers come back as they were, an int in a float's place included; infinity
and NaN are refused both ways because JSON has no word for them. Mappings keep their order: the same value always gives
the same text, and a replayed decision sees what the first one saw.
"""

from __future__ import annotations

import dataclasses
import json
import math
import types
import typing
from collections.abc import Callable, Mapping
from enum import Enum
from functools import cache
from typing import Any, TypeVar, overload

T = TypeVar("T")

JsonValue = None | bool | int | float | str | list[Any] | dict[str, Any]
"""What `json` reads and writes."""

_KIND = "kind"


class CodecError(ValueError):
    """A value does not have the declared type; `path` leads to it, such as `.plan.replicas[2].status`."""

    def __init__(self, problem: str) -> None:
        super().__init__(problem)
        self.problem = problem
        self.path = ""

    def __str__(self) -> str:
        return f"{self.path or 'value'}: {self.problem}"

    def enter(self, step: str) -> None:
        """Say that the culprit was found inside `step`."""
        self.path = step + self.path


def to_json(value: object, declared: object = None) -> JsonValue:
    """The value as JSON. `declared` is its type where the class alone does not say it all: a union to be tagged."""
    encoded: JsonValue = _converter(declared).encode(value) if declared is not None else _encode_undeclared(value)
    return encoded


@overload
def from_json(cls: type[T], data: JsonValue) -> T: ...
@overload
def from_json(cls: types.UnionType, data: JsonValue) -> object: ...
def from_json(cls: Any, data: JsonValue) -> object:
    """The value of type `cls` that `to_json` made `data` of. Raises CodecError."""
    return _converter(cls).decode(data)


def dumps(value: object, declared: object = None) -> str:
    """The value as compact ASCII text. Raises CodecError."""
    return json.dumps(to_json(value, declared), separators=(",", ":"), allow_nan=False)


def loads(cls: type[T], text: str | bytes) -> T:
    """The value of type `cls` that `dumps` made `text` of. Raises CodecError."""
    try:
        data = json.loads(text)
    except ValueError as error:
        raise CodecError(f"not JSON: {error}") from error
    return from_json(cls, data)


@dataclasses.dataclass(frozen=True, slots=True)
class _Converter:
    """Both directions for one type. `takes`: classes of the values it encodes; `reads`: classes of JSON it decodes."""

    encode: Callable[[Any], Any]
    decode: Callable[[Any], Any]
    takes: tuple[type, ...]
    reads: tuple[type, ...]


def _compile(declared: Any) -> _Converter:
    origin = typing.get_origin(declared)
    if origin in (typing.Union, types.UnionType):
        return _union(typing.get_args(declared))
    if origin is tuple:
        return _tuple(typing.get_args(declared))
    if origin in (Mapping, dict):
        return _mapping(*typing.get_args(declared))
    if declared in _SCALARS:
        return _SCALARS[declared]
    if isinstance(declared, type) and issubclass(declared, Enum):
        return _enum(declared)
    if isinstance(declared, type) and dataclasses.is_dataclass(declared):
        return _record(declared)
    raise TypeError(f"the codec cannot convert {declared!r}")


_converter: Callable[[Any], _Converter] = cache(_compile)
"""Compiled once per type: every tick of every service passes here."""


def _encode_undeclared(value: object) -> Any:
    """Encode by the value's class: containers at the top have no declared element type."""
    if isinstance(value, tuple | list):
        return [_encode_undeclared(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): _encode_undeclared(item) for key, item in value.items()}
    return _converter(type(value)).encode(value)


def _wrong(expected: str, value: object) -> CodecError:
    # The value itself may be long or secret, so only its type is told.
    return CodecError(f"expected {expected}, got {'null' if value is None else type(value).__name__}")


# --- scalars ---------------------------------------------------------------------------------------------------------


def _null(value: Any) -> Any:
    if value is None:
        return None
    raise _wrong("null", value)


def _bool(value: Any) -> Any:
    if isinstance(value, bool):
        return value
    raise _wrong("a boolean", value)


def _int(value: Any) -> Any:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    raise _wrong("a whole number", value)


def _float(value: Any) -> Any:
    if isinstance(value, float):
        if math.isfinite(value):
            return value
        raise CodecError(f"expected a finite number, got {value}")
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    raise _wrong("a number", value)


def _str(value: Any) -> Any:
    if isinstance(value, str):
        return value
    raise _wrong("a string", value)


_SCALARS = {
    type(None): _Converter(_null, _null, (type(None),), (type(None),)),
    bool: _Converter(_bool, _bool, (bool,), (bool,)),
    int: _Converter(_int, _int, (int,), (int,)),
    float: _Converter(_float, _float, (float, int), (float, int)),
    str: _Converter(_str, _str, (str,), (str,)),
}


def _enum(cls: type[Enum]) -> _Converter:
    members: dict[Any, Enum] = {member.value: member for member in cls}
    classes = tuple({type(value) for value in members})
    if not set(classes) <= {str, int}:
        raise TypeError(f"the codec cannot convert {cls.__name__}: its values must be strings or whole numbers")

    def encode(value: Any) -> Any:
        if isinstance(value, cls):
            return value.value
        raise _wrong(cls.__name__, value)

    def decode(data: Any) -> Any:
        member = members.get(data) if type(data) in classes else None
        if member is None:
            raise CodecError(f"expected one of {', '.join(map(str, members))}, got {data!r:.60}")
        return member

    return _Converter(encode, decode, (cls,), classes)


# --- containers ------------------------------------------------------------------------------------------------------


def _tuple(arguments: tuple[Any, ...]) -> _Converter:
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        return _sequence(_converter(arguments[0]))
    parts = tuple(_converter(argument) for argument in arguments)
    encoders = tuple(part.encode for part in parts)
    decoders = tuple(part.decode for part in parts)

    def convert(steps: tuple[Callable[[Any], Any], ...], items: Any) -> list[Any]:
        if len(items) != len(steps):
            raise CodecError(f"expected {len(steps)} items, got {len(items)}")
        return _each(zip(steps, items, strict=True))

    def encode(value: Any) -> Any:
        if not isinstance(value, tuple):
            raise _wrong("a tuple", value)
        return convert(encoders, value)

    def decode(data: Any) -> Any:
        if not isinstance(data, list):
            raise _wrong("an array", data)
        return tuple(convert(decoders, data))

    return _Converter(encode, decode, (tuple,), (list,))


def _sequence(part: _Converter) -> _Converter:
    def encode(value: Any) -> Any:
        if not isinstance(value, tuple):
            raise _wrong("a tuple", value)
        return _each((part.encode, item) for item in value)

    def decode(data: Any) -> Any:
        if not isinstance(data, list):
            raise _wrong("an array", data)
        return tuple(_each((part.decode, item) for item in data))

    return _Converter(encode, decode, (tuple,), (list,))


def _each(pairs: typing.Iterable[tuple[Callable[[Any], Any], Any]]) -> list[Any]:
    done: list[Any] = []
    try:
        for convert, item in pairs:
            done.append(convert(item))
    except CodecError as error:
        error.enter(f"[{len(done)}]")
        raise
    return done


def _mapping(key_type: Any, value_type: Any) -> _Converter:
    if key_type not in (str, int):
        raise TypeError(f"the codec cannot convert mapping keys of {key_type!r}")
    part = _converter(value_type)
    key_of = _str if key_type is str else _int_key
    check_key = _str if key_type is str else _int

    def encode(value: Any) -> Any:
        if not isinstance(value, Mapping):
            raise _wrong("a mapping", value)
        return _items(value, lambda key: str(check_key(key)), part.encode)

    def decode(data: Any) -> Any:
        if not isinstance(data, dict):
            raise _wrong("an object", data)
        return _items(data, key_of, part.decode)

    return _Converter(encode, decode, (Mapping,), (dict,))


def _items(source: Mapping[Any, Any], key_of: Callable[[Any], Any], convert: Callable[[Any], Any]) -> dict[Any, Any]:
    done: dict[Any, Any] = {}
    key: Any = None
    try:
        for key, item in source.items():
            done[key_of(key)] = convert(item)
    except CodecError as error:
        error.enter(f"[{key!r:.60}]")
        raise
    return done


def _int_key(key: str) -> int:
    try:
        number = int(key)
    except ValueError:
        number = None
    if number is None or str(number) != key:
        raise CodecError("expected a whole number as the key")
    return number


# --- dataclasses -----------------------------------------------------------------------------------------------------


def _record(cls: type) -> _Converter:
    hints = typing.get_type_hints(cls)
    fields = [field for field in dataclasses.fields(cls) if field.init]
    parts = {field.name: _converter(hints[field.name]) for field in fields}
    required = [field.name for field in fields if _has_no_default(field)]
    encode = _record_encoder(cls, [(name, part.encode) for name, part in parts.items()])
    decode = _record_decoder(cls, {name: part.decode for name, part in parts.items()}, required)
    return _Converter(encode, decode, (cls,), (dict,))


def _record_encoder(cls: type, encoders: list[tuple[str, Callable[[Any], Any]]]) -> Callable[[Any], Any]:
    def encode(value: Any) -> Any:
        if type(value) is not cls:
            raise _wrong(cls.__name__, value)
        data: dict[str, Any] = {}
        name = ""
        try:
            for name, convert in encoders:
                data[name] = convert(getattr(value, name))
        except CodecError as error:
            error.enter(f".{name}")
            raise
        return data

    return encode


def _record_decoder(cls: type, decoders: dict[str, Callable[[Any], Any]], required: list[str]) -> Callable[[Any], Any]:
    def decode(data: Any) -> Any:
        if not isinstance(data, dict):
            raise _wrong(f"an object ({cls.__name__})", data)
        arguments: dict[str, Any] = {}
        name = ""
        try:
            for name, item in data.items():
                if name in decoders:
                    arguments[name] = decoders[name](item)
        except CodecError as error:
            error.enter(f".{name}")
            raise
        for name in required:
            if name not in arguments:
                raise CodecError(f"{cls.__name__} lacks {name!r}")
        return cls(**arguments)

    return decode


def _has_no_default(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


# --- unions ----------------------------------------------------------------------------------------------------------


def _union(members: tuple[Any, ...]) -> _Converter:
    classes = [member for member in members if isinstance(member, type) and dataclasses.is_dataclass(member)]
    parts = [_converter(member) for member in members if member not in classes or len(classes) == 1]
    if len(classes) > 1:
        parts.append(_tagged(classes))
    expected = " or ".join(getattr(member, "__name__", str(member)) for member in members)
    readers = _readers(parts, expected)
    writers: dict[type, Callable[[Any], Any]] = {}

    def encode(value: Any) -> Any:
        convert = writers.get(type(value))
        if convert is None:
            convert = writers[type(value)] = _writer(parts, value, expected)
        return convert(value)

    def decode(data: Any) -> Any:
        convert = readers.get(type(data))
        if convert is None:
            raise _wrong(expected, data)
        return convert(data)

    takes = tuple(cls for part in parts for cls in part.takes)
    return _Converter(encode, decode, takes, tuple(readers))


def _readers(parts: list[_Converter], expected: str) -> dict[type, Callable[[Any], Any]]:
    """Which member reads which class of JSON. An int may be read as an int or as a float: to us they are the same."""
    readers: dict[type, Callable[[Any], Any]] = {}
    for part in parts:
        for cls in part.reads:
            if cls in readers and {readers[cls], part.decode} != {_int, _float}:
                raise TypeError(f"the codec cannot tell the members of {expected} apart in JSON")
            readers[cls] = part.decode
    return readers


def _writer(parts: list[_Converter], value: Any, expected: str) -> Callable[[Any], Any]:
    for part in parts:
        if type(value) in part.takes:
            return part.encode
    for part in parts:
        # A bool is an int to Python, never to JSON.
        if isinstance(value, part.takes) and not isinstance(value, bool):
            return part.encode
    raise _wrong(expected, value)


def _tagged(classes: list[type]) -> _Converter:
    parts = {cls: _converter(cls) for cls in classes}
    by_name = {cls.__name__: part for cls, part in parts.items()}
    for cls in classes:
        if any(field.name == _KIND for field in dataclasses.fields(cls)):
            raise TypeError(f"the codec cannot tag {cls.__name__}: it has a field {_KIND!r}")

    def encode(value: Any) -> Any:
        return {_KIND: type(value).__name__, **parts[type(value)].encode(value)}

    def decode(data: Any) -> Any:
        part = by_name.get(data.get(_KIND)) if isinstance(data.get(_KIND), str) else None
        if part is None:
            raise CodecError(f"expected {_KIND!r} to be one of {', '.join(by_name)}, got {data.get(_KIND)!r:.60}")
        return part.decode(data)

    return _Converter(encode, decode, tuple(classes), (dict,))
