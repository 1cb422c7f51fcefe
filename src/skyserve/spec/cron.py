"""Cron lines: when they fire, in any time zone, and which of several is in force. Knows instants, not what they bring.

A line fires when the clock on the wall shows one of its times. A time that the clock skips counts as the instant at
which it jumps; a time that comes twice counts when it comes first. So every line fires as often as it says.
"""

from __future__ import annotations

import calendar
import logging
import math
import re
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta, tzinfo
from functools import lru_cache
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError, available_timezones

from skyserve.model.scaling import Bounds, Schedule
from skyserve.spec.problems import nearest, shown

ALIASES: Mapping[str, str] = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
}
_LONGEST_SEARCH_DAYS = 9 * 366
"""February 29th may be eight years away."""
_LEAP_YEAR = 2000
_DAY_MINUTES = 24 * 60

log = logging.getLogger(__name__)


class CronError(ValueError):
    """A cron line or time zone that cannot be read: `start` to `end` of its text is to blame, `hint` may help."""

    def __init__(self, message: str, start: int, end: int, hint: str | None = None) -> None:
        super().__init__(message)
        self.start, self.end, self.hint = start, end, hint


@dataclass(frozen=True, slots=True)
class _Part:
    """One of the five fields: what it is called, what it may hold, and names that stand for numbers."""

    title: str
    low: int
    high: int
    names: Mapping[str, int]


_MONTHS = {name.upper(): number for number, name in enumerate(calendar.month_abbr) if name}
_DAYS = {name: number for number, name in enumerate(("SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT"))}
_PARTS = (
    _Part("minute", 0, 59, {}),
    _Part("hour", 0, 23, {}),
    _Part("day of the month", 1, 31, {}),
    _Part("month", 1, 12, _MONTHS),
    _Part("day of the week", 0, 7, _DAYS),
)


@dataclass(frozen=True, slots=True)
class Cron:
    """A cron line that was read. `times` are minutes of the day; days of the week count from Sunday, 0.

    With `either` it is enough that the day of the month or the day of the week fits.
    """

    times: tuple[int, ...]
    days: frozenset[int]
    months: frozenset[int]
    weekdays: frozenset[int]
    either: bool

    def next_after(self, at: float, zone: tzinfo) -> float | None:
        """The first instant after `at` at which the line fires."""
        for day in self._days_from(at, zone, -1, 1):
            position = self._fired(day, at, zone)
            if position < len(self.times):
                return _instant(day, self.times[position], zone)
        return None

    def last_by(self, at: float, zone: tzinfo) -> float | None:
        """The last instant, `at` itself among them, at which the line fired."""
        for day in self._days_from(at, zone, 1, -1):
            position = self._fired(day, at, zone)
            if position:
                return _instant(day, self.times[position - 1], zone)
        return None

    def _days_from(self, at: float, zone: tzinfo, offset: int, step: int) -> Iterator[date]:
        """The days that fit, from the one of `at` plus `offset`: a clock that is set back may bring a day again."""
        day = datetime.fromtimestamp(at, zone).date() + timedelta(days=offset)
        for _ in range(_LONGEST_SEARCH_DAYS):
            if self._fits(day):
                yield day
            day += timedelta(days=step)

    def _fits(self, day: date) -> bool:
        if day.month not in self.months:
            return False
        by_month, by_week = day.day in self.days, day.isoweekday() % 7 in self.weekdays
        return by_month or by_week if self.either else by_month and by_week

    def _fired(self, day: date, at: float, zone: tzinfo) -> int:
        """How many of the times of a day have come by `at`."""
        return bisect_right(self.times, at, key=lambda minute: _instant(day, minute, zone))


@lru_cache(maxsize=256)
def parse(text: str) -> Cron:
    """Read a line of five fields, or an alias such as `@daily`. Raises CronError."""
    line = ALIASES.get(text.strip().lower(), text)
    words = list(re.finditer(r"\S+", line))
    if line.lstrip().startswith("@"):
        close = nearest(line.strip(), ALIASES)
        hint = f"did you mean {close}?" if close else f"there are {', '.join(ALIASES)}"
        raise CronError(f"{shown(text)} is no name of a cron line", 0, len(text), hint)
    if len(words) != len(_PARTS):
        message = f"a cron line has 5 fields, not {len(words)}"
        raise CronError(
            message, 0, len(text), "minute, hour, day of the month, month, day of the week: 0 8 * * MON-FRI"
        )
    minutes, hours, days, months, weekdays = (
        _values(part, word[0], word.start()) for part, word in zip(_PARTS, words, strict=True)
    )
    either = not (words[2][0].startswith("*") or words[4][0].startswith("*"))
    if not either and not any(day <= calendar.monthrange(_LEAP_YEAR, month)[1] for day in days for month in months):
        raise CronError("no such day ever comes", words[2].start(), words[3].end())
    times = tuple(sorted(60 * hour + minute for hour in hours for minute in minutes))
    return Cron(times, days, months, frozenset(day % 7 for day in weekdays), either)


def _values(part: _Part, text: str, start: int) -> frozenset[int]:
    """What one field says: a list of `*`, numbers, names and ranges, each perhaps with a step."""
    found: set[int] = set()
    for item in text.split(","):
        found.update(_range(part, item, start))
        start += len(item) + 1
    return frozenset(found)


def _range(part: _Part, item: str, start: int) -> range:
    end = start + max(1, len(item))
    match = re.fullmatch(r"(?:(\*)|([0-9A-Za-z]+)(?:-([0-9A-Za-z]+))?)(?:/([0-9]{1,4}))?", item)
    if match is None:
        message = f"the {part.title} cannot be {shown(item)}"
        raise CronError(message, start, end, "`*`, numbers, lists 1,2, ranges 1-5 and steps */10 are known")
    star, first, last, step = match.groups()
    if step is not None and int(step) == 0:
        raise CronError(f"the {part.title} has a step of 0", start, end)
    if star:
        # Of the week, 7 is 0 again: a step that comes to it would count Sunday twice.
        return range(part.low, min(part.high, 6) + 1 if part.names is _DAYS else part.high + 1, int(step or 1))
    low = _number(part, first, start, end)
    high = _number(part, last, start, end) if last else part.high if step else low
    if part.names is _DAYS and last and high == 0 < low:
        high = 7
    if low > high:
        raise CronError(f"the {part.title} goes from {low} down to {high}", start, end, "write two ranges with a comma")
    return range(low, high + 1, int(step or 1))


def _number(part: _Part, text: str, start: int, end: int) -> int:
    if text.upper() in part.names:
        return part.names[text.upper()]
    if text.isdigit() and len(text) <= 4 and part.low <= int(text) <= part.high:
        return int(text)
    close = nearest(text, part.names)
    names = f", or a name such as {next(iter(part.names))}" if part.names else ""
    message = f"the {part.title} must be from {part.low} to {part.high}{names}, not {shown(text)}"
    raise CronError(message, start, end, f"did you mean {close}?" if close else None)


@lru_cache(maxsize=64)
def zone(name: str) -> tzinfo:
    """The time zone of a name such as Europe/Berlin. Raises CronError."""
    if name == "UTC":
        return UTC
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        close = nearest(name, available_timezones())
        hint = f"did you mean {close}?" if close else "names are such as UTC, Europe/Berlin and America/New_York"
        raise CronError(f"there is no time zone {shown(name)}", 0, len(name), hint) from None


def _instant(day: date, minute: int, zone: tzinfo) -> float:
    """When the clock shows this time first, or jumps over it."""
    local = datetime(day.year, day.month, day.day, minute // 60, minute % 60, tzinfo=zone)
    at = local.timestamp()
    if datetime.fromtimestamp(at, zone).replace(tzinfo=None) == local.replace(tzinfo=None):
        return at
    early, late = local.replace(fold=1).timestamp(), at
    after = datetime.fromtimestamp(late, zone).utcoffset()
    while late - early > 1:
        middle = (early + late) // 2
        if datetime.fromtimestamp(middle, zone).utcoffset() == after:
            late = middle
        else:
            early = middle
    return late


class Timetable:
    """The bounds that schedules set. Asked often, it calculates only when another line's turn has come."""

    def __init__(self) -> None:
        self._schedules: tuple[Schedule, ...] = ()
        self._from_at, self._until_at = math.inf, math.inf
        self._bounds: Bounds | None = None

    def bounds_at(self, schedules: tuple[Schedule, ...], now: float) -> Bounds | None:
        """What holds at `now`; None without schedules."""
        if not schedules:
            return None
        if schedules != self._schedules or not self._from_at <= now < self._until_at:
            self._schedules, self._bounds = schedules, bounds_at(schedules, now)
            until_at = None if self._bounds is None else self._bounds.until_at
            self._from_at, self._until_at = now, math.inf if until_at is None else until_at
        return self._bounds


def bounds_at(schedules: tuple[Schedule, ...], now: float) -> Bounds | None:
    """The bounds of the line that fired last, the later in the list where several did, until any line fires again."""
    in_force, since_at = None, -math.inf
    coming: list[float] = []
    for schedule, cron, where in _readable(schedules):
        last_at, next_at = cron.last_by(now, where), cron.next_after(now, where)
        if last_at is not None and last_at >= since_at:
            in_force, since_at = schedule, last_at
        if next_at is not None:
            coming.append(next_at)
    if in_force is None:
        return None
    return Bounds(in_force.cron, in_force.min_replicas, in_force.max_replicas, min(coming, default=None))


def _readable(schedules: tuple[Schedule, ...]) -> Iterator[tuple[Schedule, Cron, tzinfo]]:
    """The schedules that can be read here: this machine may lack a time zone that another one knew."""
    for schedule in schedules:
        try:
            yield schedule, parse(schedule.cron), zone(schedule.timezone)
        except CronError as error:
            log.warning("the schedule %s is left out: %s", schedule.cron, error)
