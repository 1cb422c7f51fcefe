"""Recorded markets: what is read from a file, and what is refused."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path

import pytest
from tests.sim.worlds import recordings

from skyserve.errors import UsageError
from skyserve.model.offering import CapacityType, Location
from skyserve.model.resources import Accelerator
from skyserve.sim.market import BEGIN_AT, Steps
from skyserve.sim.traces import load_trace, load_traces

GOOD: dict[str, object] = {
    "name": "two zones",
    "zones": ["us-east-1f", "us-west-2a"],
    "gap_seconds": 300,
    "start": "2023-02-15T22:08:16Z",
    "instance": "p3.2xlarge (1x V100)",
    "on_demand_price": 3.06,
    "spot_price": {"us-east-1f": 1.2, "us-west-2a": [0.9, 0.9, 1.0]},
    "capacity": {"us-east-1f": [4, 0, 0], "us-west-2a": [1, 1, 1]},
}


def write(tmp_path: Path, content: object, name: str = "trace.json") -> Path:
    path = tmp_path / name
    data = json.dumps(content).encode()
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return path


@pytest.mark.parametrize("name", ["trace.json", "trace.json.gz", "trace"])
def test_a_trace_becomes_a_market(tmp_path: Path, name: str) -> None:
    market = load_trace(write(tmp_path, GOOD, name))
    east, west, east_lasting, west_lasting = market.pools
    assert (market.name, market.length_s, market.begin_at) == ("two zones", 900.0, 1_676_498_896.0)
    assert east.offering.location == Location("aws", "us-east-1", "us-east-1f")
    assert (east.offering.instance_type, east.offering.capacity_type) == ("p3.2xlarge", CapacityType.SPOT)
    assert east.capacity == Steps((0.0, 300.0), (4, 0))
    assert west.price == Steps((0.0, 600.0), (0.9, 1.0))
    assert east_lasting.offering.location == Location("aws", "us-east-1")
    assert (east_lasting.capacity, east_lasting.price.values) == (None, (3.06,))
    assert west_lasting.offering.location.region == "us-west-2"


@pytest.mark.parametrize(
    ("zone", "location"),
    [
        ("ap-southeast-1b", Location("aws", "ap-southeast-1", "ap-southeast-1b")),
        ("us-central1-a", Location("gcp", "us-central1", "us-central1-a")),
        ("asia-southeast1-c", Location("gcp", "asia-southeast1", "asia-southeast1-c")),
        ("azure/eastus/eastus-1", Location("azure", "eastus", "eastus-1")),
    ],
)
def test_a_zone_tells_its_cloud(tmp_path: Path, zone: str, location: Location) -> None:
    content = {**GOOD, "zones": [zone], "capacity": {zone: [1]}, "spot_price": {zone: 1}}
    assert load_trace(write(tmp_path, content)).pools[0].offering.location == location


def test_a_cloud_may_be_named(tmp_path: Path) -> None:
    content = {**GOOD, "cloud": "azure", "zones": ["eastus-1"], "capacity": {"eastus-1": [1]}}
    market = load_trace(write(tmp_path, {**content, "spot_price": {"eastus-1": 1}}))
    assert market.pools[0].offering.location == Location("azure", "eastus", "eastus-1")
    assert market.pools[0].offering.provider == "azure"


def test_accelerators_may_be_named(tmp_path: Path) -> None:
    market = load_trace(write(tmp_path, {**GOOD, "accelerators": "v100:2"}))
    assert {pool.offering.accelerator for pool in market.pools} == {Accelerator("V100", 2)}


def test_what_is_known_of_a_machine_elsewhere_is_added(tmp_path: Path) -> None:
    market = load_trace(write(tmp_path, GOOD), lambda offering: replace(offering, vcpus=8.0))
    assert {pool.offering.vcpus for pool in market.pools} == {8.0}


def test_several_traces_are_one_market(tmp_path: Path) -> None:
    zone = "us-central1-a"
    other = {**GOOD, "name": "other", "zones": [zone], "capacity": {zone: [1, 2]}, "spot_price": {zone: 1}}
    market = load_traces([write(tmp_path, GOOD, "a.json"), write(tmp_path, other, "b.json")])
    assert (market.name, market.length_s) == ("two zones+other", 600.0)
    assert len(market.pools) == 6


@pytest.mark.parametrize("start", [None, "2023-09", "2023-04-19 (or later)", 7])
def test_a_date_that_cannot_be_read_does_not_matter(tmp_path: Path, start: object) -> None:
    assert load_trace(write(tmp_path, {**GOOD, "start": start})).begin_at == BEGIN_AT


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"gap_seconds": 0}, "`gap_seconds` must be a number above 0, not 0"),
        ({"gap_seconds": True}, "`gap_seconds`"),
        ({"gap_seconds": None}, "`gap_seconds`"),
        ({"on_demand_price": "3"}, "`on_demand_price` must be a number above 0, not '3'"),
        ({"on_demand_price": float("inf")}, "`on_demand_price`"),
        ({"zones": []}, "`zones` must be a list of names"),
        ({"zones": [1]}, "`zones` must be a list of names"),
        ({"zones": ["us-east-1f", "us-east-1f"]}, "names a zone twice"),
        ({"zones": ["us-east-1f", "us-east-1g"]}, "`capacity` has no entry for us-east-1g"),
        ({"capacity": [1, 2]}, "`capacity` must have an entry for each zone"),
        ({"capacity": {"us-east-1f": 4, "us-west-2a": [1]}}, "`capacity` of us-east-1f must be a list"),
        ({"capacity": {"us-east-1f": [], "us-west-2a": [1]}}, "`capacity` of us-east-1f must be a list"),
        ({"capacity": {"us-east-1f": [1, -1], "us-west-2a": [1, 1]}}, "row 1: -1 is not a number of 0 or more"),
        ({"capacity": {"us-east-1f": [1, None], "us-west-2a": [1, 1]}}, "row 1: None"),
        ({"capacity": {"us-east-1f": [1, 1], "us-west-2a": [1]}}, "1 rows for us-west-2a, 2 for us-east-1f"),
        ({"spot_price": {"us-east-1f": 1}}, "`spot_price` has no entry for us-west-2a"),
        ({"spot_price": {"us-east-1f": "cheap", "us-west-2a": 1}}, "'cheap' is not a number above 0"),
        ({"spot_price": {"us-east-1f": 0, "us-west-2a": 1}}, "0 is not a number above 0"),
        ({"spot_price": {"us-east-1f": [1, 1], "us-west-2a": 1}}, "has 2 rows, its capacity 3"),
        ({"accelerators": "V100:many"}, "`accelerators` must be written as in V100:1"),
        ({"accelerators": 4}, "`accelerators` must be written as in V100:1"),
    ],
)
def test_what_is_no_trace_is_refused(tmp_path: Path, change: dict[str, object], told: str) -> None:
    path = write(tmp_path, {**GOOD, **change})
    with pytest.raises(UsageError) as caught:
        load_trace(path)
    assert caught.value.message.startswith(f"{path}: ")
    assert told in caught.value.message
    assert caught.value.hint


def test_a_zone_of_no_cloud_is_refused_with_the_way_out(tmp_path: Path) -> None:
    content = {**GOOD, "zones": ["here"], "capacity": {"here": [1]}, "spot_price": {"here": 1}}
    with pytest.raises(UsageError) as caught:
        load_trace(write(tmp_path, content))
    assert "'here'" in caught.value.message
    assert "cloud/region/zone" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"zone,capacity\n", "is not JSON"),
        (b"[1, 2]", "is not a JSON object"),
        (b"\x1f\x8bnot really gzipped", "is not JSON"),
        (gzip.compress(b'{"zones": []}')[:-9], "is not JSON"),
        (b"\xff\xfe", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
    ],
)
def test_what_is_no_json_object_is_refused(tmp_path: Path, data: bytes, told: str) -> None:
    path = tmp_path / "trace.json"
    path.write_bytes(data)
    with pytest.raises(UsageError) as caught:
        load_trace(path)
    assert told in caught.value.message


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        load_traces([tmp_path / "nothing"])
    with pytest.raises(UsageError, match="no trace file"):
        load_traces([])


def test_every_recording_at_hand_is_read() -> None:
    for path in sorted(recordings().glob("*.json.gz")):
        market = load_trace(path)
        assert market.length_s > 86400, path
        assert len(market.spot) >= 3, path
        assert market.on_demand is not None, path
