"""JSON Schema of the Service YAML, for editors and other tools. Made from the table of fields, so it cannot differ."""

from __future__ import annotations

from skyserve.spec.fields import SERVICE_YAML
from skyserve.spec.kinds import Boolean, Field, Integer, Kind, ListOf, MapOf, Number, OneOf, Refused, Section, Text

Schema = dict[str, object]


def json_schema() -> Schema:
    """The schema (draft 2020-12) as plain data; keys that are refused are not in it."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "SkyServe Service YAML",
        **_section(SERVICE_YAML),
    }


def _section(section: Section) -> Schema:
    fields = [field for field in section.fields if not isinstance(field.kind, Refused)]
    schema: Schema = {
        "type": "object",
        "description": section.doc,
        "properties": {field.name: _field(field) for field in fields},
        "additionalProperties": False,
    }
    required = [field.name for field in fields if field.required]
    return schema | ({"required": required} if required else {})


def _field(field: Field) -> Schema:
    schema = _kind(field.kind) | {"description": field.doc}
    return schema if field.default is None else schema | {"default": field.default}


def _kind(kind: Kind) -> Schema:
    match kind:
        case Boolean():
            return {"type": "boolean"}
        case Integer() | Number():
            return _number(kind)
        case Text():
            return _text(kind)
        case ListOf():
            return {"type": "array", "items": _kind(kind.item)}
        case MapOf():
            return _map(kind)
        case Section():
            return _section(kind)
        case OneOf():
            return {"anyOf": [_kind(one) for one in kind.kinds if not isinstance(one, Refused)]}
        case _:
            return {}


def _number(kind: Integer | Number) -> Schema:
    schema: Schema = {"type": "integer" if isinstance(kind, Integer) else "number"}
    if kind.minimum is not None:
        schema["minimum"] = kind.minimum
    if kind.maximum is not None:
        schema["maximum"] = kind.maximum
    if isinstance(kind, Number) and kind.above is not None:
        schema["exclusiveMinimum"] = kind.above
    return schema


def _text(kind: Text) -> Schema:
    schema: Schema = {"type": ["string", "number", "boolean"] if kind.as_written else "string"}
    if kind.choices:
        schema["enum"] = list(kind.choices)
    elif kind.pattern is not None:
        schema["pattern"] = f"^(?:{kind.pattern})$"
    return schema


def _map(kind: MapOf) -> Schema:
    value = _kind(kind.value)
    schema: Schema = {"type": "object"}
    schema["additionalProperties"] = {"anyOf": [value, {"type": "null"}]} if kind.nullable and value else value
    if kind.key.pattern is not None:
        schema["propertyNames"] = {"pattern": f"^(?:{kind.key.pattern})$"}
    return schema
