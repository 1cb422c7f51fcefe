"""The JSON Schema says what the table of fields says."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

from skyserve.spec.fields import SECTIONS
from skyserve.spec.kinds import Refused
from skyserve.spec.schema import json_schema


def nodes(schema: object) -> Iterator[dict[str, object]]:
    if isinstance(schema, dict):
        yield schema
        for value in schema.values():
            yield from nodes(value)
    elif isinstance(schema, list):
        for value in schema:
            yield from nodes(value)


def test_it_is_plain_json_of_the_2020_12_draft() -> None:
    schema = json_schema()
    assert json.loads(json.dumps(schema)) == schema
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert schema["required"] == ["service", "run"]


def test_every_section_lists_its_keys_and_allows_no_others() -> None:
    objects = [node for node in nodes(json_schema()) if "properties" in node and node.get("type") == "object"]
    found = {tuple(node["properties"]): node for node in objects if isinstance(node["properties"], dict)}
    for section in SECTIONS:
        keys = tuple(field.name for field in section.fields if not isinstance(field.kind, Refused))
        properties = found[keys]["properties"]
        assert isinstance(properties, dict)
        assert all(one["description"] for one in properties.values())
        assert found[keys]["additionalProperties"] is False


def test_patterns_are_regular_expressions_that_bind_the_whole_text() -> None:
    patterns = [node["pattern"] for node in nodes(json_schema()) if isinstance(node.get("pattern"), str)]
    assert patterns
    for pattern in map(str, patterns):
        re.compile(pattern)
        assert pattern.startswith("^(?:")
        assert pattern.endswith(")$")


def test_bounds_and_defaults_come_along() -> None:
    text = json.dumps(json_schema())
    assert '"type": "integer", "minimum": 1, "maximum": 65535' in text
    assert (
        '"type": "number", "exclusiveMinimum": 0, "description": "How long one probe may take.", "default": 15.0'
        in text
    )
    assert (
        '"enum": ["round_robin", "least_load", "instance_aware_least_load", "power_of_two", "session_affinity"]' in text
    )
