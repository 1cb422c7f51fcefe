"""Summaries of runs as rows of text, for terminals and pages alike. Pure; knows no terminal."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from skyserve.sim.report import Interval, Summary

_Words = Callable[[float], str]


def _plain(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.3g}"


def _dollars(value: float) -> str:
    return f"{value:,.2f}" if abs(value) < 1000 else f"{value:,.0f}"


def _ratio(value: float) -> str:
    return f"{value:.3f}"


def _percent(value: float) -> str:
    return f"{100 * value:.1f}%"


def _fine_percent(value: float) -> str:
    return f"{100 * value:.2f}%"


def _seconds(value: float) -> str:
    return f"{value:.0f}s" if value >= 100 else f"{value:.3g}s"


_COLUMNS: Sequence[tuple[str, str, _Words]] = (
    ("COST($)", "cost", _dollars),
    ("/ON_DEMAND", "cost_ratio", _ratio),
    ("/BOUND", "bound_ratio", _ratio),
    ("AVAILABLE", "availability", _fine_percent),
    ("PREEMPTED", "preemptions", _plain),
    ("LAUNCHED", "launches", _plain),
    ("REFUSED/DAY", "failed_launches_per_day", _plain),
    ("OD_SHARE", "on_demand_share", _percent),
    ("P50", "latency_p50_s", _seconds),
    ("P90", "latency_p90_s", _seconds),
    ("P99", "latency_p99_s", _seconds),
    ("REJECTED", "rejected_share", _fine_percent),
)
EXPENDABLE = ("P90", "LAUNCHED", "/BOUND", "OD_SHARE", "REFUSED/DAY", "P50", "PREEMPTED", "COST($)")
"""What a narrow terminal does without, in this order."""


def comparison(summaries: Sequence[Summary]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Headings, and a row for each policy; columns that no policy has a value for are left out."""
    shown = [column for column in _COLUMNS if any(one.figures[column[1]] for one in summaries)]
    rows = [(one.policy, *(_cell(one.figures[name], words) for _, name, words in shown)) for one in summaries]
    return ("POLICY", *(heading for heading, _, _ in shown)), rows


def places(summary: Summary) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Headings, and a row for each location that had replicas: how long, and how much of the whole that is."""
    whole = sum(summary.hours.values())
    rows: list[tuple[str, ...]] = [
        (location, capacity_type, f"{amount:,.1f}", _percent(amount / whole))
        for (location, capacity_type), amount in summary.hours.items()
    ]
    return ("LOCATION", "CAPACITY_TYPE", "REPLICA_HOURS", "SHARE"), rows


def _cell(interval: Interval | None, words: _Words) -> str:
    if interval is None:
        return ""
    around = f" ±{words(interval.half)}" if interval.high > interval.low else ""
    return f"{words(interval.mean)}{around}"
