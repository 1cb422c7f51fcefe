"""Cron lines: against a walk over every minute, on days on which clocks are set, and what of several is in force."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, tzinfo
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from skyserve.model.scaling import Bounds, Schedule
from skyserve.spec.cron import ALIASES, Cron, CronError, Timetable, bounds_at, parse, zone

BERLIN, NEW_YORK = ZoneInfo("Europe/Berlin"), ZoneInfo("America/New_York")


def at(text: str, where: tzinfo = UTC) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=where).timestamp()


def text_of(instant: float | None, where: tzinfo = UTC) -> str:
    return "" if instant is None else datetime.fromtimestamp(instant, where).isoformat(" ", "minutes")


def firings(line: str, begin: str, count: int, where: tzinfo = UTC) -> list[str]:
    cron, instant, found = parse(line), at(begin, where), []
    for _ in range(count):
        following = cron.next_after(instant, where)
        assert following is not None
        assert cron.last_by(following, where) == following
        assert cron.last_by(following - 1, where) != following
        found.append(text_of(following, where))
        instant = following
    return found


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("0 8 * * *", ["2026-03-11 08:00", "2026-03-12 08:00"]),
        ("30 10,22 * * *", ["2026-03-10 22:30", "2026-03-11 10:30"]),
        ("*/25 * * * *", ["2026-03-10 12:25", "2026-03-10 12:50", "2026-03-10 13:00"]),
        ("5/25 * * * *", ["2026-03-10 12:05", "2026-03-10 12:30", "2026-03-10 12:55", "2026-03-10 13:05"]),
        ("0 0-6/3 * * *", ["2026-03-11 00:00", "2026-03-11 03:00", "2026-03-11 06:00", "2026-03-12 00:00"]),
        ("0 8 * * MON-FRI", ["2026-03-11 08:00", "2026-03-12 08:00", "2026-03-13 08:00", "2026-03-16 08:00"]),
        ("0 8 * * 0", ["2026-03-15 08:00", "2026-03-22 08:00"]),
        ("0 8 * * 7", ["2026-03-15 08:00", "2026-03-22 08:00"]),
        ("0 8 * * fri-sun", ["2026-03-13 08:00", "2026-03-14 08:00", "2026-03-15 08:00", "2026-03-20 08:00"]),
        ("0 8 * * 5-7", ["2026-03-13 08:00", "2026-03-14 08:00", "2026-03-15 08:00", "2026-03-20 08:00"]),
        ("0 8 * * */2", ["2026-03-12 08:00", "2026-03-14 08:00", "2026-03-15 08:00", "2026-03-17 08:00"]),
        ("0 8 31 * *", ["2026-03-31 08:00", "2026-05-31 08:00"]),
        ("0 8 1 jan,Jul *", ["2026-07-01 08:00", "2027-01-01 08:00"]),
        ("0 8 13 * FRI", ["2026-03-13 08:00", "2026-03-20 08:00", "2026-03-27 08:00", "2026-04-03 08:00"]),
        ("0 8 */10 * FRI", ["2026-05-01 08:00", "2026-07-31 08:00"]),
        ("0 0 29 2 *", ["2028-02-29 00:00", "2032-02-29 00:00"]),
        ("0 0 30 2 SUN", ["2027-02-07 00:00"]),
        ("@Hourly", ["2026-03-10 13:00", "2026-03-10 14:00"]),
        ("@daily", ["2026-03-11 00:00", "2026-03-12 00:00"]),
        ("@weekly", ["2026-03-15 00:00", "2026-03-22 00:00"]),
        ("@monthly", ["2026-04-01 00:00", "2026-05-01 00:00"]),
        ("@yearly", ["2027-01-01 00:00", "2028-01-01 00:00"]),
        ("  0   8  *  *  *  ", ["2026-03-11 08:00"]),
    ],
)
def test_when_lines_fire(line: str, expected: list[str]) -> None:
    assert firings(line, "2026-03-10 12:00", len(expected)) == [f"{text}+00:00" for text in expected]


def test_february_29th_may_be_eight_years_away() -> None:
    assert firings("0 0 29 2 *", "2096-03-01 00:00", 1) == ["2104-02-29 00:00+00:00"]


@pytest.mark.parametrize(
    ("line", "where", "begin", "expected"),
    [
        # At 02:00 the clock jumps to 03:00: what was due in between is due at the jump, once.
        ("30 2 * * *", BERLIN, "2026-03-28 12:00", ["2026-03-29 03:00+02:00", "2026-03-30 02:30+02:00"]),
        ("0 3 * * *", BERLIN, "2026-03-28 12:00", ["2026-03-29 03:00+02:00", "2026-03-30 03:00+02:00"]),
        (
            "*/30 * * * *",
            BERLIN,
            "2026-03-29 01:00",
            ["2026-03-29 01:30+01:00", "2026-03-29 03:00+02:00", "2026-03-29 03:30+02:00"],
        ),
        ("30 2 * * *", NEW_YORK, "2026-03-07 12:00", ["2026-03-08 03:00-04:00", "2026-03-09 02:30-04:00"]),
        # At 03:00 the clock is set back to 02:00: what is due in between is due the first time, once.
        ("30 2 * * *", BERLIN, "2026-10-24 12:00", ["2026-10-25 02:30+02:00", "2026-10-26 02:30+01:00"]),
        (
            "*/30 * * * *",
            BERLIN,
            "2026-10-25 01:30",
            ["2026-10-25 02:00+02:00", "2026-10-25 02:30+02:00", "2026-10-25 03:00+01:00"],
        ),
        # A day that never was: the island crossed the date line.
        (
            "0 12 * * *",
            ZoneInfo("Pacific/Apia"),
            "2011-12-29 13:00",
            ["2011-12-31 00:00+14:00", "2011-12-31 12:00+14:00"],
        ),
        # Half an hour, around midnight.
        ("15 2 * * *", ZoneInfo("Australia/Lord_Howe"), "2026-10-03 12:00", ["2026-10-04 02:30+11:00"]),
        (
            "30 23 * * *",
            ZoneInfo("America/Havana"),
            "2026-10-31 12:00",
            ["2026-10-31 23:30-04:00", "2026-11-01 23:30-05:00"],
        ),
        (
            "0 0 * * *",
            ZoneInfo("America/Havana"),
            "2026-03-07 12:00",
            ["2026-03-08 01:00-04:00", "2026-03-09 00:00-04:00"],
        ),
    ],
)
def test_days_on_which_clocks_are_set(line: str, where: tzinfo, begin: str, expected: list[str]) -> None:
    assert firings(line, begin, len(expected), where) == expected


def walked(cron: Cron, begin: float, minutes: int, where: tzinfo) -> list[float]:
    """Every firing of some days, found by looking at the clock every minute."""
    found = []
    shown = latest = datetime.fromtimestamp(begin - 86400, where).replace(tzinfo=None)
    for number in range(-1440, minutes):
        instant = begin + 60 * number
        before, shown = shown, datetime.fromtimestamp(instant, where).replace(tzinfo=None)
        skipped = int((shown - before) / timedelta(minutes=1)) - 1
        fresh = [before + timedelta(minutes=1 + one) for one in range(skipped)] + [shown]
        if any(one > latest and fits(cron, one) for one in fresh) and number >= 0:
            found.append(instant)
        latest = max(latest, shown)
    return found


def fits(cron: Cron, shown: datetime) -> bool:
    by_month, by_week = shown.day in cron.days, shown.isoweekday() % 7 in cron.weekdays
    by_day = by_month or by_week if cron.either else by_month and by_week
    return by_day and shown.month in cron.months and 60 * shown.hour + shown.minute in cron.times


def read(line: str) -> tuple[Cron | None, CronError | None]:
    try:
        return parse(line), None
    except CronError as error:
        return None, error


def field(low: int, high: int) -> st.SearchStrategy[str]:
    number = st.integers(low, high)
    step = st.integers(1, high + 3).map(lambda n: f"/{n}")
    ranged = st.tuples(number, number).map(lambda ends: f"{min(ends)}-{max(ends)}")
    item = number.map(str) | st.tuples(ranged | st.just("*"), st.just("") | step).map("".join)
    return st.just("*") | st.lists(item, min_size=1, max_size=3).map(",".join)


LINES = st.tuples(field(0, 59), field(0, 23), field(1, 31), field(1, 12), field(0, 7)).map(" ".join)
ZONES = st.sampled_from(
    [
        "UTC",
        "Europe/Berlin",
        "America/New_York",
        "America/Havana",
        "Australia/Lord_Howe",
        "Asia/Kathmandu",
        "Pacific/Apia",
    ]
)
CHANGES = st.sampled_from(
    ["2026-03-28", "2026-03-07", "2026-10-24", "2026-10-31", "2026-10-03", "2026-04-04", "2028-02-28"]
)


@given(line=LINES, name=ZONES, day=CHANGES, hour=st.integers(0, 23))
@example(line="30 2 * * *", name="Europe/Berlin", day="2026-03-28", hour=12)
@settings(max_examples=40, deadline=None)
def test_every_line_fires_as_a_walk_over_every_minute_says(line: str, name: str, day: str, hour: int) -> None:
    cron, refused = read(line)
    if cron is None:
        assert "no such day" in str(refused)
        return
    where, begin, minutes = zone(name), at(f"{day} {hour:02}:00"), 3 * 1440
    expected = walked(cron, begin, minutes, where)
    found, instant = [], begin - 1
    while True:
        following = cron.next_after(instant, where)
        if following is None or following >= begin + 60 * minutes:
            break
        assert following > instant
        found.append(following)
        instant = following
    assert found == expected
    end = begin + 60 * minutes - 1
    back = []
    last = cron.last_by(end, where)
    while last is not None and last >= begin:
        back.append(last)
        last = cron.last_by(last - 1, where)
    assert back[::-1] == expected


@given(
    st.text(max_size=30) | st.lists(st.text("0123456789*,-/ MONJAx@", max_size=8), min_size=5, max_size=5).map(" ".join)
)
def test_any_text_is_read_or_refused_with_a_place_in_it(text: str) -> None:
    cron, refused = read(text)
    if cron is not None:
        assert cron.next_after(0.0, UTC) is not None
    if refused is not None:
        assert 0 <= refused.start <= refused.end <= max(len(text), refused.start + 1)
        assert str(refused)


@pytest.mark.parametrize(
    ("line", "blamed", "message"),
    [
        ("0 8 * *", "0 8 * *", "has 5 fields, not 4"),
        ("0 8 * * * *", "0 8 * * * *", "has 5 fields, not 6"),
        ("60 8 * * *", "60", "the minute must be from 0 to 59"),
        ("0 8-25 * * *", "8-25", "the hour must be from 0 to 23"),
        ("0 8 0 * *", "0", "the day of the month must be from 1 to 31"),
        ("0 8 L * *", "L", "the day of the month must be from 1 to 31"),
        ("0 8 * 1,FEV *", "FEV", "or a name such as JAN"),
        ("0 8 * * 8", "8", "the day of the week must be from 0 to 7"),
        ("0 8 * * 5#2", "5#2", "cannot be '5#2'"),
        ("0 17-9 * * *", "17-9", "goes from 17 down to 9"),
        ("*/0 8 * * *", "*/0", "a step of 0"),
        ("0 8 31 4,6 *", "31 4,6", "no such day"),
        ("@reboot", "@reboot", "no name of a cron line"),
    ],
)
def test_what_is_to_blame(line: str, blamed: str, message: str) -> None:
    with pytest.raises(CronError, match=message.replace("*", r"\*")) as caught:
        parse(line)
    assert line[caught.value.start : caught.value.end] == blamed


@pytest.mark.parametrize("name", ["Europe/Berln", "", "/etc/localtime", "../x", "Europe", "a\0b", "\ud800", "x" * 5000])
def test_time_zones_that_do_not_exist(name: str) -> None:
    with pytest.raises(CronError, match="there is no time zone"):
        zone(name)


def test_aliases_are_lines() -> None:
    assert all(parse(name) == parse(line) for name, line in ALIASES.items())


OFFICE = (
    Schedule("0 8 * * MON-FRI", 4, 12, "Europe/Berlin"),
    Schedule("0 19 * * MON-FRI", 1, None, "Europe/Berlin"),
)


@pytest.mark.parametrize(
    ("now", "least", "until"),
    [
        ("2026-03-10 07:59", 1, "2026-03-10 08:00"),
        ("2026-03-10 08:00", 4, "2026-03-10 19:00"),
        ("2026-03-10 19:00", 1, "2026-03-11 08:00"),
        ("2026-03-15 12:00", 1, "2026-03-16 08:00"),
    ],
)
def test_the_line_whose_time_came_last_is_in_force(now: str, least: int, until: str) -> None:
    bounds = bounds_at(OFFICE, at(now, BERLIN))
    line, most = (OFFICE[0].cron, 12) if least == 4 else (OFFICE[1].cron, None)
    assert bounds == Bounds(line, least, most, at(until, BERLIN))


def test_of_lines_that_come_together_the_last_is_in_force() -> None:
    lines = (Schedule("0 8 * * *", 2), Schedule("0 8 * * MON", 5), Schedule("0 20 * * *", 1))
    monday, tuesday = bounds_at(lines, at("2026-03-16 08:30")), bounds_at(lines, at("2026-03-17 08:30"))
    assert monday is not None
    assert monday.min_replicas == 5
    assert tuesday is not None
    assert tuesday.min_replicas == 2


def test_zones_differ() -> None:
    lines = (Schedule("0 8 * * *", 2, timezone="Asia/Tokyo"), Schedule("0 8 * * *", 3, timezone="America/New_York"))
    bounds = bounds_at(lines, at("2026-03-10 00:00"))
    assert bounds == Bounds("0 8 * * *", 2, None, at("2026-03-10 12:00"))


def test_without_schedules_there_are_no_bounds() -> None:
    assert bounds_at((), 0.0) is None
    assert Timetable().bounds_at((), 0.0) is None


def test_what_cannot_be_read_here_is_left_out() -> None:
    lost = Schedule("0 8 * * *", 9, timezone="Mars/Olympus")
    assert bounds_at((lost,), 0.0) is None
    bounds = bounds_at((*OFFICE, lost), at("2026-03-10 12:00"))
    assert bounds is not None
    assert bounds.min_replicas == 4


def test_a_timetable_calculates_only_when_a_turn_has_come() -> None:
    timetable, now = Timetable(), at("2026-03-10 12:00", BERLIN)
    first = timetable.bounds_at(OFFICE, now)
    assert timetable.bounds_at(OFFICE, now + 3600) is first
    evening = timetable.bounds_at(OFFICE, at("2026-03-10 19:00", BERLIN))
    assert evening is not None
    assert evening.min_replicas == 1
    assert timetable.bounds_at(OFFICE, now) == first, "a clock that was set back"
    changed = (Schedule("0 8 * * *", 7),)
    assert timetable.bounds_at(changed, now) == bounds_at(changed, now)
