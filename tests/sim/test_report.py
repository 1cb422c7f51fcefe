"""Figures of runs, means of several runs, rows of text and the document for programs."""

from __future__ import annotations

import json

import pytest
from tests.sim.runs import BEGIN, HOUR, machine, run, served

from skyserve.sim import report, table


def test_figures_of_a_run():
    found = report.figures(
        run(
            machines=[
                machine(1, -2, 10, preempted=True, cost=10.0),
                machine(2, 10, 24),
                machine(3, 0, 10, zone="us-west-2b", spot=False),
            ],
            refusals=((BEGIN + 1, "a"), (BEGIN + 2, "a"), (BEGIN - 1, "a")),
        )
    )
    assert (found.cost, found.cost_per_day) == (54.0, 54.0)
    assert (found.cost_ratio, found.bound_ratio) == (54 / 144, 54 / 48)
    assert (found.preemptions, found.launches, found.failed_launches_per_day) == (1, 2, 2.0)
    assert found.on_demand_share == 30 / 54
    assert found.replica_hours == pytest.approx(34.0)
    assert found.wanted == 2.0
    assert (found.requests, found.latency_p99_s) == (None, None)


def test_figures_of_the_requests():
    found = report.figures(run(served=served()))
    assert (found.requests, found.rejected_share, found.retried_share) == (1000.0, 0.01, 0.005)
    assert (found.latency_p50_s, found.latency_p99_s, found.waited_p99_s) == (2.0, 12.0, 1.5)


def test_what_was_not_measured_is_none():
    found = report.figures(run(on_demand_cost=0.0, bound_cost=None, machines=[machine(cost=0.0)]))
    assert (found.cost_ratio, found.bound_ratio, found.on_demand_share) == (None, None, None)
    nothing = report.figures(run(served=served(requests=0, completed=0, latency_s={}, waited_s={})))
    assert (nothing.rejected_share, nothing.latency_p99_s) == (None, None)


def test_hours_by_place_and_kind():
    machines = [machine(1, -5, 4), machine(2, 4, 9), machine(3, 0, 20, zone="us-west-2b", spot=False)]
    assert report.hours(run(machines=machines)) == {
        ("aws/us-west-2/us-west-2b", "ON_DEMAND"): 20.0,
        ("aws/us-east-1/us-east-1a", "SPOT"): 9.0,
    }


def test_a_mean_over_time():
    steps = [(BEGIN - HOUR, 3), (BEGIN + 6 * HOUR, 0), (BEGIN + 12 * HOUR, 2)]
    assert report.mean_over_time(steps, BEGIN, BEGIN + 24 * HOUR) == pytest.approx((18 + 24) / 24)
    assert report.mean_over_time([], BEGIN, BEGIN + 1) == 0.0
    assert report.mean_over_time(steps, BEGIN, BEGIN) == 0.0


def test_confidence_intervals():
    assert report.interval([3.0]) == report.Interval(3.0, 3.0, 3.0)
    assert report.interval([None, None]) is None
    found = report.interval([1.0, 2.0, 3.0, None])
    assert found.mean == 2.0
    assert found.half == pytest.approx(4.303 / 3**0.5)
    many = report.interval([float(i % 2) for i in range(100)])
    assert many.half == pytest.approx(1.96 * 0.5025 / 10, rel=1e-3)


def test_runs_of_a_policy_are_summed_up():
    one, two = report.summarise([run("ours", cost=40.0), run("on-demand", cost=144.0), run("ours", cost=60.0)])
    assert (one.policy, one.runs, one.days, one.mean("cost")) == ("ours", 2, 1.0, 50.0)
    assert (two.policy, two.runs, two.mean("cost"), two.mean("latency_p99_s")) == ("on-demand", 1, 144.0, None)
    assert one.hours == {("aws/us-east-1/us-east-1a", "SPOT"): 24.0}


def test_the_document_is_json():
    document = report.document(report.summarise([run("ours", served=served()), run("on-demand")]))
    read = json.loads(json.dumps(document))
    assert [one["policy"] for one in read] == ["ours", "on-demand"]
    assert read[0]["figures"]["latency_p99_s"] == {"mean": 12.0, "low": 12.0, "high": 12.0}
    assert read[1]["figures"]["latency_p99_s"] is None
    assert read[0]["replica_hours"] == [
        {"location": "aws/us-east-1/us-east-1a", "capacity_type": "SPOT", "hours": 24.0}
    ]


def test_rows_of_the_comparison():
    headings, rows = table.comparison(report.summarise([run("ours"), run("on-demand", cost=1440.0, bound_cost=None)]))
    assert headings == (
        *("POLICY", "COST($)", "/ON_DEMAND", "/BOUND", "AVAILABLE", "PREEMPTED", "LAUNCHED", "REFUSED/DAY"),
        "OD_SHARE",
    )
    assert rows == [
        ("ours", "24.00", "0.167", "0.500", "90.00%", "0", "1", "0", "0.0%"),
        ("on-demand", "1,440", "10.000", "", "90.00%", "0", "1", "0", "0.0%"),
    ]
    assert set(table.EXPENDABLE) <= {heading for heading, _, _ in table._COLUMNS}


def test_rows_have_intervals_where_there_are_several_runs():
    runs = [run("ours", cost=cost, served=served(p99)) for cost, p99 in ((20.0, 100.0), (30.0, 140.0))]
    headings, [row] = table.comparison(report.summarise(runs))
    cells = dict(zip(headings, row, strict=True))
    assert (cells["COST($)"], cells["P50"], cells["P99"]) == ("25.00 ±63.53", "2s", "120s ±254s")
    assert cells["REJECTED"] == "1.00%"


def test_rows_of_the_places():
    [summary] = report.summarise([run(machines=[machine(1, 0, 6), machine(2, 0, 18, spot=False)])])
    assert table.places(summary)[1] == [
        ("aws/us-east-1/us-east-1a", "ON_DEMAND", "18.0", "75.0%"),
        ("aws/us-east-1/us-east-1a", "SPOT", "6.0", "25.0%"),
    ]
