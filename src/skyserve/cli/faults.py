"""Errors as the user sees them: lines on stderr, and a JSON document on stdout for programs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from skyserve.errors import SkyServeError, SpecError

if TYPE_CHECKING:
    from skyserve.cli.render import Screen
    from skyserve.model.codec import JsonValue


def document(error: SkyServeError) -> JsonValue:
    """What `--output json` says of an error."""
    where = error.where if isinstance(error, SpecError) else None
    return {"code": error.code, "message": error.message, "hint": error.hint, "where": where}


def explain(screen: Screen, error: SkyServeError) -> None:
    """What failed and why, where in the YAML, and what to do: on stderr."""
    where = error.where if isinstance(error, SpecError) else None
    screen.error(f"{where}: {error.message}" if where else error.message)
    if isinstance(error, SpecError) and error.excerpt:
        for line in error.excerpt.splitlines():
            screen.say(f"  {line}")
    if error.hint:
        screen.hint(error.hint)


def report(screen: Screen, error: SkyServeError, *, as_json: bool) -> int:
    """Tell the user, and the program that reads stdout; return the exit code.

    The document is one line, because it may follow a stream of JSON lines.
    """
    if as_json:
        screen.json({"error": document(error)}, line=True)
    explain(screen, error)
    return error.exit_code
