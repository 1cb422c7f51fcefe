"""`sky infra health`: what is known of capacity pools."""

from __future__ import annotations

import pytest

START = 1_700_000_000.0


def _entry(scope: str, kind: str = "CAPACITY", until_in_s: float = 252, strikes: int = 3) -> dict[str, object]:
    found = {"scope": scope, "kind": kind, "since_at": START - 8, "until_at": START + until_in_s, "strikes": strikes}
    return {**found, "why": "no capacity", "location": "of no interest"}


@pytest.fixture
def sick(fake):
    """Three places that refused, and one that gave what was asked."""
    fake.health = [
        _entry("aws/us-east-1/us-east-1a p5.48xlarge SPOT"),
        _entry("aws/us-west-2 p5* *", "QUOTA", 3600, 1),
        _entry("gcp/us-east4 g2-standard-4 SPOT", until_in_s=-1),
        _entry("azure/eastus x SPOT", until_in_s=-1, strikes=0),
    ]
    return fake


def test_nothing_is_known_and_nothing_started(sky, home):
    result = sky("infra", "health")
    assert (result.code, result.out, result.err) == (0, "Nothing is known.\n", "")
    assert sky("infra", "health", "-o", "json").json == {"pools": []}
    assert not home.exists()


def test_table(sky, sick):
    result = sky("infra", "health")
    lines = result.out.splitlines()
    assert lines[:2] == ["Capacity pools", lines[1]]
    assert lines[1].split() == ["SCOPE", "STATE", "UNTIL", "STRIKES", "WHY"]
    assert "cooling down" in lines[2]
    assert "(in 4m 12s)  3        no capacity" in lines[2]
    assert "blocked by a quota" in lines[3]
    assert "may be asked         -" in lines[4]
    assert "gave what was asked  -" in lines[5]


def test_forget(sky, sick):
    result = sky("infra", "health", "--forget", "aws/us-west-2 p5* *", "-o", "json")
    assert len(result.json["pools"]) == 3
    assert result.err == "Forgotten: 1 line. What they named may be asked again at once.\n"
    assert sky("infra", "health", "--forget", "all").out == "Nothing is known.\n"


def test_forget_what_is_not_known(sky, sick):
    result = sky("infra", "health", "--forget", "aws/us-west-2 p5*")
    assert result.code == 2
    assert result.err == "error: nothing is known of 'aws/us-west-2 p5*'\nhint: did you mean 'aws/us-west-2 p5* *'?\n"
    assert len(sick.health) == 4


def test_forget_without_a_controller(sky):
    assert sky("infra", "health", "--forget", "all").code == 2
