"""Whether a request's body is what a model of Azure's SDK allows. Knows how the models describe themselves; knows no
particular one."""

from __future__ import annotations

import enum
import sys
import typing
from collections.abc import Iterator
from typing import Any

_OPEN = ("VirtualMachineSizeTypes",)
"""Enumerations that the SDK does not know whole: sizes come and go."""


def problems(expected: Any, value: object, where: str) -> Iterator[str]:
    """What a value has that its model, or its type, does not allow: unknown and read-only fields, wrong values."""
    origin = typing.get_origin(expected)
    if hasattr(expected, "_deserialize") and isinstance(expected, type):
        yield from _in_fields(expected, value, where)
    elif origin is list:
        for index, item in enumerate(value if isinstance(value, list) else [None]):
            yield from problems(typing.get_args(expected)[0], item, f"{where}[{index}]")
    elif origin is dict:
        if not isinstance(value, dict) or not all(isinstance(one, str) for one in value.values()):
            yield f"{where} is not an object of texts"
    elif origin is typing.Union:
        yield from _in_options(typing.get_args(expected), value, where)
    elif expected in (str, int, bool, float):
        fits = isinstance(value, (int, float) if expected is float else expected)
        if not fits or (expected is not bool and isinstance(value, bool)):
            yield f"{where} is not {expected.__name__}: {value!r}"


def _in_options(options: tuple[Any, ...], value: object, where: str) -> Iterator[str]:
    """Optional fields, and enumerations, which the SDK declares as `str or Enum`."""
    enums = [one for one in options if isinstance(one, enum.EnumMeta)]
    if enums:
        if enums[0].__name__ not in _OPEN and value not in {member.value for member in enums[0]}:
            yield f"{where} cannot be {value!r}"
        return
    yield from problems(next(one for one in options if one is not type(None)), value, where)


def _in_fields(model: Any, value: object, where: str) -> Iterator[str]:
    if not isinstance(value, dict):
        yield f"{where} is not an object"
        return
    model({})  # a model learns its own wire names when one is made for the first time
    namespace = sys.modules[model.__module__.rpartition(".")[0]]
    hints = typing.get_type_hints(model, localns={"_models": namespace})
    fields = {declared._rest_name: (name, declared) for name, declared in model._attr_to_rest_field.items()}
    for key, item in value.items():
        if key not in fields:
            yield f"Could not find member '{key}' on object of type '{model.__name__}' ({where})"
            continue
        name, declared = fields[key]
        if declared._visibility == ["read"]:
            yield f"{where}.{key} is read-only"
        yield from problems(hints[name], item, f"{where}.{key}")
