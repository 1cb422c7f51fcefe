"""Shares of the requests by version: drawn first, kept by sessions, and no obstacle where a version cannot serve."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest

from skyserve.load_balancer.door import Door
from skyserve.load_balancer.framing import RequestHead, parse_request_head
from skyserve.model.routing import Endpoint, RoutingTable

REQUEST = parse_request_head(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
OLD, NEW = (1, 2, 3), 4
ROWS = (
    *(Endpoint(id_, f"127.0.0.1:{9000 + id_}", version=1) for id_ in OLD),
    Endpoint(NEW, "127.0.0.1:9004", version=2),
)


def door(
    shares: dict[int, float], number: int = 1, policy: str = "least_load", rows: tuple[Endpoint, ...] = ROWS
) -> Door:
    made = Door("b", lambda: 0.0, Random(7))
    assert made.apply(RoutingTable(number, policy=policy, endpoints=rows, shares=shares))
    return made


def taken(of: Door, request: RequestHead = REQUEST, tried: tuple[int, ...] = ()) -> int:
    page = of.choose(request, tried)
    assert page is not None
    return page.replica_id


@pytest.mark.parametrize("share", [0.05, 0.25, 0.5])
@pytest.mark.parametrize("policy", ["least_load", "round_robin", "power_of_two"])
def test_a_version_gets_its_share(share: float, policy: str) -> None:
    made = door({2: share, 1: 1 - share}, policy=policy)
    counted = Counter(taken(made) for _ in range(8000))
    assert counted[NEW] / 8000 == pytest.approx(share, abs=0.02)
    assert max(counted[id_] for id_ in OLD) - min(counted[id_] for id_ in OLD) < 400, "the policy picks within"


def test_without_shares_all_are_alike() -> None:
    made = door({})
    assert Counter(taken(made) for _ in range(400)) == dict.fromkeys((*OLD, NEW), 100)


def test_a_version_that_cannot_take_a_request_loses_its_share() -> None:
    made = door({2: 1.0, 1: 0.0})
    assert taken(made) == NEW
    assert taken(made, tried=(NEW,)) in OLD
    gone = door({2: 0.5, 1: 0.5}, rows=ROWS[:3])
    assert {taken(gone) for _ in range(50)} == set(OLD)


def test_versions_without_a_share_get_nothing_while_another_can() -> None:
    assert {taken(door({1: 1.0})) for _ in range(50)} <= set(OLD)


def test_sessions_keep_their_version_and_move_only_forward() -> None:
    sessions = [parse_request_head(b"GET / HTTP/1.1\r\nHost: x\r\nX-Session-ID: s%d\r\n\r\n" % n) for n in range(400)]
    before: set[int] = set()
    for number, share in enumerate((0.05, 0.25, 0.5), 1):
        made = door({2: share, 1: 1 - share}, number, "session_affinity")
        homes = [taken(made, session) for session in sessions]
        assert homes == [taken(made, session) for session in sessions], "sticky"
        moved = {place for place, home in enumerate(homes) if home == NEW}
        assert before <= moved
        assert len(moved) / 400 == pytest.approx(share, abs=0.06)
        before = moved
