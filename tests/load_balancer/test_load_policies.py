"""Policies, on plain values."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from random import Random

import pytest

from skyserve.load_balancer.framing import RequestHead, parse_request_head
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


def test_power_of_two_takes_the_better_of_two() -> None:
    rows = [Row(1, 9), Row(2, 0), Row(3, 9)]
    policy, rng = make_policy("power_of_two"), Random(1)
    assert policy is not None
    taken = Counter(policy.pick(REQUEST, rows, rng).replica_id for _ in range(3000))
    assert 1900 < taken[2] < 2100, "whenever it is one of the two: two times in three"
    assert policy.pick(REQUEST, rows[:1], rng).replica_id == 1


def test_power_of_two_keeps_loads_close() -> None:
    rows = [Row(n) for n in range(16)]
    policy, rng = make_policy("power_of_two"), Random(2)
    assert policy is not None
    for _ in range(1600):
        policy.pick(REQUEST, rows, rng).in_flight += 1
    loads = [row.in_flight for row in rows]
    assert max(loads) - min(loads) <= 8


def of_session(name: bytes, field: bytes = b"X-Session-ID: ") -> RequestHead:
    return parse_request_head(b"GET / HTTP/1.1\r\nHost: x\r\nA: b\r\n%b%b\r\n\r\n" % (field, name))


def test_a_session_stays_and_only_those_of_a_replica_that_left_move() -> None:
    rows = [Row(n, in_flight=n) for n in range(1, 6)]
    policy, other_door = (
        make_policy("session_affinity", "header:x-session-id"),
        make_policy("session_affinity", "header:X-Session-ID"),
    )
    assert policy is not None
    assert other_door is not None
    sessions = [of_session(b"s%d" % n) for n in range(500)]
    before = [policy.pick(one, rows, Random(0)).replica_id for one in sessions]
    assert before == [other_door.pick(one, rows, Random(9)).replica_id for one in sessions]
    assert min(Counter(before).values()) > 60
    after = [policy.pick(one, rows[:-1], Random(0)).replica_id for one in sessions]
    assert {was for was, is_ in zip(before, after, strict=True) if was != is_} == {5}


def test_sessions_follow_weights_and_a_cookie_can_name_them() -> None:
    rows = [Row(1, weight=3.0), Row(2, weight=1.0)]
    policy = make_policy("session_affinity", "cookie:sid")
    assert policy is not None
    sessions = [of_session(b"a=b; sid=%d; sidx=%d" % (n, n * 7), b"cookie: ") for n in range(1000)]
    taken = Counter(policy.pick(one, rows, Random(0)).replica_id for one in sessions)
    assert 680 < taken[1] < 820
    odd = [of_session(b"x=%d; sid=4" % n, b"Cookie:") for n in range(50)]
    assert len({policy.pick(one, rows, Random(0)).replica_id for one in odd}) == 1


def test_without_a_session_the_least_loaded_takes_it() -> None:
    policy = make_policy("session_affinity", "cookie:sid")
    assert policy is not None
    for request in (REQUEST, of_session(b"other=1", b"Cookie: ")):
        assert policy.pick(request, [Row(1, 5), Row(2, 1)], Random(0)).replica_id == 2
