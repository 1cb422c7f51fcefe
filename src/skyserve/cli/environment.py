"""`KEY=VALUE` as flags and as files. Knows the syntax; the caller's own environment is handed in."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from skyserve.errors import UsageError

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_QUOTES = ("'", '"')


def assignments(file: str | None, pairs: Sequence[str], mine: Mapping[str, str], *, flag: str) -> dict[str, str]:
    """The variables that a file and flags set; flags win. `KEY` alone takes the value from `mine`.

    Raises UsageError; values are never part of its message, because they may be secrets.
    """
    found = _read(Path(file)) if file else {}
    for pair in pairs:
        name, given, value = pair.partition("=")
        _check(name, flag)
        if not given and name not in mine:
            raise UsageError(f"{flag} {name}: {name} is not set in your environment", hint=f"{flag} {name}=VALUE")
        found[name] = value if given else mine[name]
    return found


def _read(path: Path) -> dict[str, str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read: {error}") from error
    found = {}
    for number, raw in enumerate(lines, start=1):
        line = raw.strip().removeprefix("export ").lstrip()
        if not line or line.startswith("#"):
            continue
        name, given, value = line.partition("=")
        if not given:
            raise UsageError(f"{path}:{number}: no '=' in this line", hint="write KEY=VALUE, one a line")
        _check(name.rstrip(), f"{path}:{number}")
        found[name.rstrip()] = _unquoted(value.strip())
    return found


def _unquoted(value: str) -> str:
    if len(value) >= 2 and value[0] in _QUOTES and value[-1] == value[0]:
        return value[1:-1]
    return value


def _check(name: str, where: str) -> None:
    if not _NAME.fullmatch(name):
        raise UsageError(f"{where}: the name of a variable is letters, digits and '_', not beginning with a digit")
