"""Policies, on plain values."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from random import Random

import pytest

from skyserve.load_balancer.framing import parse_request_head
from skyserve.load_balancer.policies import make_policy

REQUEST = parse_request_head(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
NAMES = ("round_robin", "least_load", "instance_aware_least_load")


@dataclass
class Row:
    replica_id: int
    in_flight: int = 0
    weight: float = 1.0
    ewma_s: float = 0.0


def picks(name: str, rows: list[Row], times: int) -> list[int]:
    policy = make_policy(name)
    assert policy is not None
    return [policy.pick(REQUEST, rows, Random(0)).replica_id for _ in range(times)]


@pytest.mark.parametrize("name", NAMES)
def test_equals_take_turns(name: str) -> None:
    assert picks(name, [Row(3), Row(5), Row(7)], 6) == [3, 5, 7, 3, 5, 7]


def test_round_robin_does_not_look_at_load() -> None:
    assert Counter(picks("round_robin", [Row(1, 9), Row(2)], 10)) == {1: 5, 2: 5}


def test_least_load_takes_the_least_loaded() -> None:
    assert picks("least_load", [Row(1, 2), Row(2, 1), Row(3, 1)], 4) == [2, 3, 2, 3]


def test_weights_count_for_the_instance_aware_one() -> None:
    assert picks("instance_aware_least_load", [Row(1, 3, weight=4.0), Row(2, 1, weight=1.0)], 2) == [1, 1]
    assert picks("least_load", [Row(1, 3, weight=4.0), Row(2, 1, weight=1.0)], 2) == [2, 2]


def test_an_unknown_policy_is_none() -> None:
    assert make_policy("no_such_policy") is None
