"""Counters on a clock of their own."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from skyserve.load_balancer.report import WINDOW_S, Counters


def test_the_rate_is_a_mean_over_the_window() -> None:
    counters = Counters(100.0)
    for second in range(200):
        for _ in range(3):
            counters.arrived(100.0 + second + 0.5)
    assert counters.requests_total == 600
    assert counters.window_s(300.0) == WINDOW_S
    assert abs(counters.arrivals_per_s(300.0) - 3.0) < 0.06
    assert counters.arrivals_per_s(300.0 + WINDOW_S + 2) == 0.0


def test_a_young_door_says_what_its_rate_covers() -> None:
    counters = Counters(0.0)
    for _ in range(20):
        counters.arrived(4.0)
    assert (counters.window_s(10.0), counters.arrivals_per_s(10.0)) == (10.0, 2.0)
    assert counters.window_s(0.0) == 1.0


@given(st.lists(st.floats(0, 300), max_size=60), st.floats(0, 100))
def test_nothing_is_lost_or_counted_twice(arrivals: list[float], later: float) -> None:
    counters = Counters(0.0)
    for at in sorted(arrivals):
        counters.arrived(at)
    now = max(arrivals, default=0.0) + later
    counted = counters.arrivals_per_s(now) * counters.window_s(now)
    inner = sum(at > now - WINDOW_S + 1 for at in arrivals)
    outer = sum(at >= now - WINDOW_S - 1 for at in arrivals)
    assert inner - 1e-6 <= counted <= outer + 1e-6
    assert counters.requests_total == len(arrivals)
