"""The picture of runs: that it is one, that it says what it should, and that the numbers behind it are right."""

from __future__ import annotations

import re
import sys

import pytest
from tests.sim.runs import BEGIN, HOUR, machine, run, served

from skyserve.errors import UsageError
from skyserve.sim import picture

pytest.importorskip("matplotlib", reason="matplotlib is not installed; it comes with skyserve[sim]")

MACHINES = [
    machine(1, 0, 12, preempted=True),
    machine(2, 0, 24, zone="us-west-2b"),
    machine(3, 12, 24, spot=False),
]
RUNS = [run("spothedge+1", MACHINES), run("ours", MACHINES, served=served()), run("ours", [machine()])]


def test_a_png():
    content = picture.draw(RUNS, "two policies", "png")
    assert content.startswith(b"\x89PNG")
    width, height = (int.from_bytes(content[at : at + 4], "big") for at in (16, 20))
    assert (width, height) == (1560, pytest.approx(806, abs=2))


def test_the_same_runs_give_the_same_svg():
    content = picture.draw(RUNS, "two policies", "svg")
    assert content == picture.draw(RUNS, "two policies", "svg")
    # Words are drawn, so that they look the same everywhere; what they are stands beside them as a comment.
    words = set(re.findall(rb"<!-- (.+?) -->", content))
    assert {b"two policies", b"spothedge+1", b"ours", b"replicas", b"us-east-1a, spot", b"ready", b"wanted"} <= words
    assert {b"hours since the beginning", b"cost so far (US$)", b"on demand, any zone"} <= words


def test_a_page_needs_nothing_else():
    page = picture.draw(RUNS, "web <1>", "html").decode()
    assert page.startswith("<!doctype html>")
    assert "<h1>web &lt;1&gt;</h1>" in page
    assert page.count("<svg") == 1
    assert "<td>spothedge+1</td>" in page
    assert not re.search(r"""(src|href)=["']https?:|<script|<link|url\(http""", page)


def test_many_zones_share_a_colour_and_days_are_the_unit_of_a_long_run():
    machines = [machine(i, 0, 24 + i, zone=f"us-east-{i}a") for i in range(1, 11)]
    content = picture.draw([run(machines=machines, end_at=BEGIN + 100 * HOUR)], "", "svg")
    assert b"<!-- other zones, spot -->" in content
    assert b"<!-- days since the beginning -->" in content
    assert content.count(b"a, spot -->") == len(picture._COLOURS)


def test_a_run_in_which_nothing_ran():
    nothing = run(wanted=(), ready=(), machines=(), bound_cost=None)
    assert picture.draw([nothing], "", "png").startswith(b"\x89PNG")


def test_the_numbers_behind_the_lines():
    view = picture._View(run(machines=MACHINES))
    assert view.unit == "hours"
    assert sum(view.alive(MACHINES)) / picture._BINS == pytest.approx(2.0)
    assert view.spent()[-1] == pytest.approx(12 + 24 + 36)
    assert view.spent()[picture._BINS // 2] == pytest.approx(24)
    # Two are ready, but for half an hour at the beginning and one in the middle.
    assert sum(view.short()) / picture._BINS == pytest.approx(1 / 24)
    assert view.in_proportion(144.0)[picture._BINS // 4] == pytest.approx(36.0)


def test_without_matplotlib_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UsageError, match="pictures need matplotlib") as caught:
        picture.draw(RUNS, "", "png")
    assert caught.value.hint == "pip install 'skyserve[sim]'"
