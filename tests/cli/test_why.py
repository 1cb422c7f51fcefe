"""`sky serve why`: a decision in words, and as JSON."""

from __future__ import annotations

import time

import pytest

from skyserve.cli.why import decision_lines
from skyserve.model.view import DecisionView

AT = 1_700_000_000.0
LAUNCH = DecisionView(
    seq=4,
    at=AT,
    verb="LAUNCH",
    replica_id=7,
    subject="local/localhost host",
    code="BELOW_TARGET",
    text="3 wanted, 2 alive",
    facts={"wanted": 3, "qps": 44.0},
    rejected=(("aws/us-east-1 A10G:8", "COOLING (no capacity)"), ("azure/eastus", "DEARER")),
)


@pytest.fixture
def decided(fake, make_service):
    """A service with one decision."""
    fake.services = {"web": make_service("web", "READY")}
    fake.decisions = [LAUNCH]
    return fake


def test_a_decision_in_words():
    hour = time.strftime("%H:%M:%S", time.localtime(AT))
    assert decision_lines(LAUNCH, AT + 1) == [
        f"{hour} LAUNCH replica 7  local/localhost host",
        "         because BELOW_TARGET  3 wanted, 2 alive  (wanted=3, qps=44)",
        "         not     aws/us-east-1 A10G:8  COOLING (no capacity)",
        "         not     azure/eastus          DEARER",
    ]


def test_another_day_is_dated():
    assert decision_lines(LAUNCH, AT + 3 * 86400)[0].startswith("2023-11-1")


def test_the_question_reaches_the_controller(sky, decided):
    result = sky("serve", "why", "web", "--replica", "7", "--tail", "5")
    assert result.code == 0
    assert result.out.splitlines()[1].strip().startswith("because BELOW_TARGET")
    assert decided.requests[-1][1] == "/v1/services/web/decisions?limit=5&replica=7"


def test_json(sky, decided):
    assert sky("serve", "why", "web", "-o", "json").json["decisions"][0]["code"] == "BELOW_TARGET"


def test_follow_as_json_lines(sky, decided):
    sky.interrupt_after_sleeps = 1
    result = sky("serve", "why", "web", "--follow", "-o", "json")
    assert result.code == 130
    assert [line["seq"] for line in result.json_lines] == [4, 4]
    assert "after=4" in decided.requests[-1][1]


def test_nothing_decided_yet(sky, decided):
    decided.decisions = []
    result = sky("serve", "why", "web")
    assert (result.out, result.err) == ("", "Nothing has been decided yet.\n")
