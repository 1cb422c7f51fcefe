"""Google's description of the Compute Engine API, turned into routes, JSON Schemas and partial answers.

The description is the discovery document that `google-api-python-client` brings along. Knows no machine.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import googleapiclient
import jsonschema

Body = dict[str, Any]


@dataclass(frozen=True)
class Route:
    """One method of the API."""

    id: str
    verb: str
    path: re.Pattern[str]
    parameters: Mapping[str, Body]
    request: str | None
    response: str | None


@cache
def discovery() -> Body:
    """Google's description of the API."""
    folder = Path(googleapiclient.__file__).parent / "discovery_cache" / "documents"
    document: Body = json.loads((folder / "compute.v1.json").read_text("utf-8"))
    return document


@cache
def routes() -> tuple[Route, ...]:
    """All methods of version 1."""
    return tuple(_routes(discovery()["resources"]))


def _routes(resources: Mapping[str, Body]) -> Iterator[Route]:
    for resource in resources.values():
        yield from _routes(resource.get("resources", {}))
        for method in resource.get("methods", {}).values():
            pattern = re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>[^/]+)", re.escape(method["path"]))
            yield Route(
                id=method["id"].removeprefix("compute."),
                verb=method["httpMethod"],
                path=re.compile(pattern),
                parameters=method.get("parameters", {}) | discovery()["parameters"],
                request=method.get("request", {}).get("$ref"),
                response=method.get("response", {}).get("$ref"),
            )


@cache
def validator(ref: str, method: str) -> jsonschema.Draft202012Validator:
    """A validator of one schema; as a request of `method` it also wants the fields that this method requires."""
    definitions: Body = {}
    waiting = [ref]
    while waiting:
        name = waiting.pop()
        if name not in definitions:
            definitions[name] = _json_schema(discovery()["schemas"][name], method, waiting)
    return jsonschema.Draft202012Validator({"$ref": f"#/$defs/{ref}", "$defs": definitions})


def _json_schema(node: Body, method: str, seen: list[str]) -> Body:
    if "$ref" in node:
        seen.append(node["$ref"])
        return {"$ref": f"#/$defs/{node['$ref']}"}
    kind = node.get("type", "object")
    if kind == "any":
        return {}
    found: Body = {"type": kind}
    if "enum" in node:
        found["enum"] = node["enum"]
    if kind == "string" and "pattern" in node:
        found["pattern"] = f"^(?:{node['pattern']})$"
    elif kind == "string" and node.get("format") in ("int64", "uint64"):
        found["pattern"] = r"^-?\d+$"
    if kind == "array":
        found["items"] = _json_schema(node["items"], method, seen)
    if kind == "object":
        properties = node.get("properties", {})
        found["properties"] = {key: _json_schema(value, method, seen) for key, value in properties.items()}
        more = node.get("additionalProperties")
        found["additionalProperties"] = False if more is None else _json_schema(more, method, seen)
        found["required"] = [
            key for key, value in properties.items() if method in value.get("annotations", {}).get("required", ())
        ]
    return found


Tree = dict[str, "Tree"]


def masked(data: Any, tree: Tree) -> Any:
    """A partial answer: what `fields` asks for, as a tree; a leaf stands for all that is below it."""
    if not tree:
        return data
    if isinstance(data, list):
        return [masked(one, tree) for one in data]
    return {
        key: masked(value, tree.get(key, tree.get("*", {}))) for key, value in data.items() if {key, "*"} & tree.keys()
    }


def fields_tree(tokens: list[str]) -> Tree:
    """The tree of a `fields` parameter such as `a,b/c,d/*/e(f,g)`, cut into its names and signs; it is used up."""
    tree: Tree = {}
    while tokens:
        node = tree.setdefault(tokens.pop(0), {})
        while tokens and tokens[0] == "/":
            tokens.pop(0)
            node = node.setdefault(tokens.pop(0), {})
        if tokens and tokens[0] == "(":
            tokens.pop(0)
            node.update(fields_tree(tokens))
            tokens.pop(0)
        if not tokens or tokens[0] != ",":
            break
        tokens.pop(0)
    return tree
