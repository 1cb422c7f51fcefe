"""Numbers, durations and instants in words. Pure: text out, nothing printed, no clock read."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime

_UNITS = ((86400, "d"), (3600, "h"), (60, "m"), (1, "s"))
_AGO = ((86400, "day"), (3600, "hr"), (60, "min"))


def duration(seconds: float | None) -> str:
    """`1h 3m 2s`; at most three units, `-` for None."""
    if seconds is None:
        return "-"
    parts: list[str] = []
    rest = max(0, int(seconds))
    for size, unit in _UNITS:
        amount, rest = divmod(rest, size)
        if amount or parts:
            parts.append(f"{amount}{unit}")
    return " ".join(part for part in parts[:3] if not part.startswith("0")) or "0s"


def ago(seconds: float) -> str:
    """`2 mins ago`; anything below a minute is `a few secs ago`."""
    for size, unit in _AGO:
        if seconds >= size:
            amount = int(seconds // size)
            return f"{amount} {unit}{'s' if amount > 1 else ''} ago"
    return "a few secs ago"


def clock_time(at: float, now: float) -> str:
    """The local time of day of a Unix instant; with the date in front when it is not the day of `now`."""
    moment, today = (datetime.fromtimestamp(instant, tz=UTC).astimezone() for instant in (at, now))
    return moment.strftime("%H:%M:%S" if moment.date() == today.date() else "%Y-%m-%d %H:%M:%S")


def number(amount: float) -> str:
    """Integers bare, anything else with one decimal."""
    return f"{amount:.0f}" if amount == int(amount) else f"{amount:.1f}"


def dollars(amount: float) -> str:
    """`7.35`; below a cent with the digits that tell it from nothing, as in `0.0014`."""
    return f"{amount:.4f}" if 0 < amount < 0.01 else f"{amount:.2f}"


def count(amount: int, noun: str) -> str:
    """`1 replica`, `2 replicas`."""
    return f"{amount} {noun}{'' if amount == 1 else 's'}"


def quoted(names: Iterable[str]) -> str:
    """`'a', 'b'`."""
    return ", ".join(f"'{name}'" for name in names)


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that was probably meant."""
    import difflib

    return next(iter(difflib.get_close_matches(name, list(known), n=1)), None)


def last_lines(text: str, lines: int) -> list[str]:
    """The last non-empty lines of a text."""
    return [line.rstrip() for line in text.splitlines() if line.strip()][-lines:]
