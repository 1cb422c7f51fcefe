"""The part of JSONPath that names one value: `$.a.b[0]["c"]`. Knows documents, not what is looked for in them."""

from __future__ import annotations

import re

FORM = 'a path such as $.queue.length or $.queues[0]["length"]'
_STEP = re.compile(r"""\.([A-Za-z_][\w-]*)|\[(-?[0-9]{1,9})\]|\["([^"\\]*)"\]|\['([^'\\]*)'\]""")


class Absent(LookupError):
    """The document has no such value."""


def parse(path: str) -> tuple[str | int, ...] | None:
    """The keys and positions that lead to the value; None for what is no such path."""
    if not path.startswith("$"):
        return None
    steps: list[str | int] = []
    at = 1
    while at < len(path):
        match = _STEP.match(path, at)
        if match is None:
            return None
        name, position, *quoted = match.groups()
        key = name if name is not None else next((text for text in quoted if text is not None), "")
        steps.append(key if position is None else int(position))
        at = match.end()
    return tuple(steps)


def pick(document: object, steps: tuple[str | int, ...]) -> object:
    """The value that the steps lead to. Raises Absent."""
    value = document
    for step in steps:
        value = _under(value, step)
    return value


def _under(value: object, step: str | int) -> object:
    if isinstance(step, str):
        if isinstance(value, dict) and step in value:
            return value[step]
    elif isinstance(value, list) and -len(value) <= step < len(value):
        return value[step]
    raise Absent(f"nothing is at {step!r}, where the path leads")
