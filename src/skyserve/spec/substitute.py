"""`$NAME` and `${NAME}` in texts. Knows strings only; where the values come from is the caller's affair."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping

_VARIABLE = re.compile(r"\$(?:\{([A-Za-z_][A-Za-z0-9_]*)\}|([A-Za-z_][A-Za-z0-9_]*))")


def substitute(text: str, values: Mapping[str, str]) -> str:
    """Put values in the place of their names, once: a value that holds `$OTHER` is not looked into.

    Names without a value stay as they are written.
    """
    return _fill(text, values, lambda value: value)


def substitute_json(text: str, values: Mapping[str, str]) -> str:
    """As `substitute`, for a JSON text: values are escaped, so none can end the string it stands in."""
    return _fill(text, values, lambda value: json.dumps(value)[1:-1])


def names_in(text: str) -> frozenset[str]:
    """The names that the text has places for."""
    return frozenset(match[1] or match[2] for match in _VARIABLE.finditer(text))


def _fill(text: str, values: Mapping[str, str], escape: Callable[[str], str]) -> str:
    def replacement(match: re.Match[str]) -> str:
        value = values.get(match[1] or match[2])
        return match[0] if value is None else escape(value)

    return _VARIABLE.sub(replacement, text)
