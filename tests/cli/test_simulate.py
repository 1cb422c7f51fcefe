"""`sky serve simulate`: on recorded markets, with and without requests, told in rows, documents and pictures."""

from __future__ import annotations

import gzip
import json
from itertools import takewhile

import pytest

ZONES = ("us-east-1a", "us-east-2b", "us-west-2c")
ROWS = 144


@pytest.fixture
def trace(tmp_path):
    """Half a day of three zones with two machines each; the cheapest is empty in the middle third."""
    there, gone = [2] * (ROWS // 3), [0] * (ROWS // 3)
    content = {
        "name": "three_zones",
        "zones": ZONES,
        "gap_seconds": 300,
        "instance": "p3.2xlarge",
        "on_demand_price": 3.0,
        "spot_price": dict(zip(ZONES, (0.9, 1.0, 1.1), strict=True)),
        "capacity": dict(zip(ZONES, (there + gone + there, [2] * ROWS, [2] * ROWS), strict=True)),
    }
    path = tmp_path / "three.json.gz"
    path.write_bytes(gzip.compress(json.dumps(content).encode()))
    return str(path)


@pytest.fixture
def write(tmp_path):
    """Writes a Service YAML, and returns its path."""

    def _write(policy: str = "replicas: 2", resources: str = "use_spot: true") -> str:
        path = tmp_path / "service.yaml"
        path.write_text(
            f"name: web\nservice:\n  readiness_probe: /\n  {policy}\n"
            f"resources:\n  ports: 8080\n  accelerators: V100:1\n  {resources}\nrun: x $PORT\n"
        )
        return str(path)

    return _write


AUTOSCALED = "replica_policy: {min_replicas: 1, max_replicas: 6, target_qps_per_replica: 1, upscale_delay_seconds: 60}"


def _rows(result) -> dict[str, dict[str, str]]:
    """Rows of the comparison, by policy."""
    headings, *rows = [line.split() for line in takewhile(bool, result.out.splitlines()[1:])]
    return {row[0]: dict(zip(headings, row, strict=True)) for row in rows}


def test_policies_are_compared_on_a_recorded_market(sky, write, trace):
    result = sky("serve", "simulate", write(), "--spot-trace", trace, "--compare", "on-demand,round-robin,spothedge+1")
    assert result.code == 0
    assert result.out.splitlines()[0] == "web: 12 hours on three_zones"
    rows = _rows(result)
    assert list(rows) == ["on-demand", "round-robin", "spothedge+1"]
    assert rows["on-demand"]["/ON_DEMAND"] == "1.000"
    assert rows["on-demand"]["AVAILABLE"] == "100.00%"
    assert float(rows["round-robin"]["/ON_DEMAND"]) < 0.4
    assert rows["spothedge+1"]["PREEMPTED"] == "1"
    told = result.err.splitlines()
    assert told[0] == "Simulating web: 12 hours on three_zones, 3 spot pools in 3 locations"
    assert "spothedge+1, run 3 of 3" in told


def test_one_policy_is_told_with_its_places(sky, write, trace):
    result = sky("serve", "simulate", write("replicas: 3"), "--spot-trace", trace)
    lines = result.out.splitlines()
    assert lines[2].split()[0] == "ours"
    assert lines[4] == "Where the replicas were"
    assert {line.split()[0] for line in lines[6:]} <= {
        *(f"aws/{zone[:-1]}/{zone}" for zone in ZONES),
        *(f"aws/{zone[:-1]}" for zone in ZONES),
    }


def test_the_document_is_clean_json(sky, write, trace):
    result = sky(
        *("serve", "simulate", write(), "--spot-trace", trace, "--compare", "ours,on-demand", "--output", "json"),
        *("--duration", "6h", "--tick", "60", "--cold-start", "120", "--notice", "30", "--seed", "7"),
    )
    document = result.json
    assert {key: document[key] for key in document if key != "policies"} == {
        "service": "web",
        "market": "three_zones",
        "days": 0.25,
        "spot_pools": 3,
        "requests": None,
        "tick_s": 60.0,
        "cold_start_s": 120.0,
        "notice_s": 30.0,
        "left_out_s": 2160.0,
        "seed": 7,
        "runs_done": 2,
        "runs_wanted": 2,
    }
    ours, on_demand = document["policies"]
    assert (ours["policy"], on_demand["policy"]) == ("ours", "on-demand")
    assert on_demand["figures"]["cost_ratio"]["mean"] == pytest.approx(1.0)
    assert on_demand["figures"]["latency_p99_s"] is None


def test_requests_scale_the_service_and_have_latencies(sky, write, trace):
    result = sky(
        *("serve", "simulate", write(AUTOSCALED), "--spot-trace", trace, "--duration", "3h", "-o", "json"),
        *("--requests", "poisson:1.5", "--rate-scale", "2", "--replica-speed", "8000:100:4"),
    )
    assert result.json["requests"] == "Poisson, 3 requests/s"
    [ours] = result.json["policies"]
    figures = {name: found and found["mean"] for name, found in ours["figures"].items()}
    assert 2.5 < figures["wanted"] <= 4.0
    assert figures["requests"] == pytest.approx(3 * 10800 * 0.9, rel=0.05)
    assert 1.0 < figures["latency_p50_s"] < figures["latency_p99_s"] < 100
    assert "a replica can do" in result.err


def test_a_request_trace_is_read_from_a_file(sky, write, trace, tmp_path):
    requests = tmp_path / "arrivals.txt"
    requests.write_text("".join(f"{second}\n" for second in range(60)))
    result = sky("serve", "simulate", write(), "--spot-trace", trace, "--duration", "1h", "--requests", str(requests))
    assert "requests: arrivals.txt, 60 requests, 1 a second, repeated;" in result.err
    assert _rows(sky("serve", "simulate", write(), "--spot-trace", trace, "--compare", "ours"))["ours"]
    requests.write_text("1\ntwo\n")
    result = sky("serve", "simulate", write(), "--spot-trace", trace, "--requests", str(requests))
    assert (result.code, result.out) == (2, "")
    assert f"error: {requests}:2: an instant in seconds is wanted, not 'two'" in result.err


def test_without_requests_an_autoscaled_service_stays_small(sky, write, trace):
    result = sky("serve", "simulate", write(AUTOSCALED), "--spot-trace", trace, "-o", "json")
    assert "warning: without --requests the service stays at its minimum of 1 replica" in result.err
    assert result.json["policies"][0]["figures"]["wanted"]["mean"] == 1.0


def test_a_target_that_no_replica_can_keep_is_told(sky, write, trace):
    result = sky(
        *("serve", "simulate", write(AUTOSCALED), "--spot-trace", trace, "--duration", "1h"),
        *("--requests", "poisson:0.1", "--replica-speed", "8000:10:2"),
    )
    assert "warning: `target_qps_per_replica` is 1, but a replica can do 0." in result.err


def test_several_runs_have_intervals(sky, write, trace):
    result = sky(
        *("serve", "simulate", write(AUTOSCALED), "--spot-trace", trace, "--duration", "2h", "--tick", "60"),
        *("--requests", "poisson:1", "--repeats", "3", "--compare", "ours"),
    )
    assert result.out.splitlines()[0] == "web: 2 hours on three_zones, mean of 3 runs ±95 %"
    assert " ±" in result.out
    assert "ours, run 3 of 3" in result.err


def test_runs_that_would_be_alike_are_refused(sky, write, trace):
    result = sky("serve", "simulate", write(), "--spot-trace", trace, "--repeats", "3")
    assert result.code == 2
    assert "error: there is no chance in a recorded market without requests: all runs would be alike" in result.err


def test_capacity_prices_and_places_can_be_changed(sky, write, trace):
    def mean(figure: str, *options: str) -> float:
        asked = ("serve", "simulate", write("replicas: 6"), "--spot-trace", trace, "--compare", "round-robin")
        return sky(*asked, "--tick", "300", *options, "-ojson").json["policies"][0]["figures"][figure]["mean"]

    usual = mean("cost")
    assert mean("cost", "--price-scale", "2") == pytest.approx(2 * usual)
    assert mean("cost", "--capacity-factor", "0.5") == pytest.approx(usual / 2, rel=0.02)
    assert mean("cost", "--infra", "aws/us-west-2") == pytest.approx(2 * 1.1 * 11)
    assert mean("availability", "--capacity-factor", "3") > mean("availability")


def test_a_service_on_demand_has_no_spot(sky, write, trace):
    [row] = _rows(
        sky("serve", "simulate", write(), "--spot-trace", trace, "--no-use-spot", "--compare", "yaml")
    ).values()
    assert (row["/ON_DEMAND"], row["OD_SHARE"], row["PREEMPTED"]) == ("1.000", "100.0%", "0")
    result = sky("serve", "simulate", write(resources="use_spot: false"), "--spot-trace", trace)
    assert result.out.splitlines()[2].split()[:3] == ["on-demand", "66.00", "1.000"]


def test_places_that_are_not_in_the_trace(sky, write, trace):
    result = sky("serve", "simulate", write(), "--spot-trace", trace, "--infra", "gcp")
    assert result.code == 1
    assert "error: none of the places of three_zones is one in which the service may run" in result.err


def test_the_picture_is_drawn(sky, write, trace, tmp_path):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed; it comes with skyserve[sim]")
    for kind, beginning in (("png", b"\x89PNG"), ("html", b"<!doctype html>")):
        path = tmp_path / f"picture.{kind}"
        result = sky("serve", "simulate", write(), "--spot-trace", trace, "--picture", str(path))
        assert path.read_bytes().startswith(beginning)
        assert result.err.splitlines()[-1] == f"Picture: {path}"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--compare", "spothegde"], "no policy is called 'spothegde'; did you mean 'spothedge'?"),
        (["--picture", "a.jpg"], "no picture can be drawn as 'a.jpg'"),
        (["--picture", "nowhere/a.png"], "there is no directory nowhere for the picture"),
        (["--duration", "soon"], "'soon' is no duration"),
        (["--duration", "0h"], "'0h' is no duration"),
        (["--duration", "2h", "--days", "1"], "--days and --duration say the same thing"),
        (["--replica-speed", "8000:0:4"], "'8000:0:4' is no speed of a replica"),
        (["--replica-speed", "fast"], "'fast' is no speed of a replica"),
        (["--requests", "poisson:none"], "`poisson:none` names no rate above 0"),
        (["--requests", "nowhere.csv"], "there is no file nowhere.csv"),
    ],
)
def test_what_cannot_be_is_refused_before_the_long_part(sky, write, trace, options, message):
    result = sky("serve", "simulate", write(), "--spot-trace", trace, *options)
    assert (result.code, result.out) == (2, "")
    assert f"error: {message}" in result.err


def test_a_trace_that_is_none_is_refused(sky, write, tmp_path):
    path = tmp_path / "no.json"
    path.write_text("[]")
    result = sky("serve", "simulate", write(), "--spot-trace", str(path))
    assert (result.code, result.err.splitlines()[0]) == (2, f"error: {path}: is not a JSON object")


def test_a_trace_may_be_shorter_than_asked(sky, write, trace):
    result = sky("serve", "simulate", write(), "--spot-trace", trace, "--days", "30", "--compare", "ours")
    assert "warning: the trace ends after 0.5 days" in result.err


def test_ctrl_c_tells_what_was_done(sky, write, trace, monkeypatch):
    from skyserve.sim import run

    really = run.simulate

    def interrupted(*args, policy: str, **rest):
        if policy == "on-demand":
            raise KeyboardInterrupt
        return really(*args, policy=policy, **rest)

    monkeypatch.setattr(run, "simulate", interrupted)
    result = sky("serve", "simulate", write(), "--spot-trace", trace, "--compare", "ours,on-demand,spothedge")
    assert result.code == 130
    assert "Interrupted: 1 of 3 runs were done." in result.err
    assert list(_rows(result)) == ["ours"]
    result = sky("serve", "simulate", write(), "--spot-trace", trace, "--compare", "on-demand")
    assert (result.code, result.out) == (130, "")


def test_a_bar_grows_on_a_terminal(sky, write, trace, plain):
    result = sky("serve", "simulate", write(), "--spot-trace", trace, "--compare", "ours,on-demand", answer="")
    shown = plain(result.err)
    assert "╌   0% ours, run 1 of 2" in shown
    assert f"{'━' * 30} 100% 2 runs in " in shown
    assert "/ON_DEMAND" in plain(result.out)


def test_without_a_trace_the_market_is_made_up_from_the_price_lists(sky, prices, write):
    asked = ("serve", "simulate", write(), "--gpus", "L4:8", "--days", "2", "--compare", "ours,on-demand")
    result = sky(*asked)
    assert result.code == 0
    assert result.out.splitlines()[0] == "web: 2 days on made-up market 0"
    assert "Simulating web: 2 days on made-up market 0, 3 spot pools in 3 locations" in result.err
    rows = _rows(result)
    assert rows["on-demand"]["/ON_DEMAND"] == "1.000"
    assert float(rows["ours"]["/ON_DEMAND"]) < 1.0
    assert sky(*asked).out == result.out
    assert sky(*asked, "--seed", "1").out != result.out


def test_several_made_up_markets(sky, prices, write):
    result = sky("serve", "simulate", write(), "--gpus", "L4:8", "--days", "2", "--repeats", "3", "--compare", "ours")
    assert result.out.splitlines()[0] == "web: 2 days on 3 made-up markets, mean of 3 runs ±95 %"
    assert " ±" in result.out.splitlines()[2]
    document = sky("serve", "simulate", write(), "--gpus", "L4:8", "--days", "2", "--repeats", "2", "-o", "json").json
    assert (document["runs_done"], document["policies"][0]["runs"]) == (2, 2)


def test_a_week_is_the_usual_length(sky, prices, write):
    document = sky("serve", "simulate", write(), "--gpus", "L4:1", "-o", "json").json
    assert document["days"] == 7.0


def test_what_no_cloud_offers_cannot_be_simulated(sky, prices, write):
    result = sky("serve", "simulate", write(), "--gpus", "L4:2")
    assert (result.code, result.out) == (1, "")
    assert "error: no cloud offers what this service asks for" in result.err
    assert "hint: with `accelerators: L4:8` it could run on GCP" in result.err
