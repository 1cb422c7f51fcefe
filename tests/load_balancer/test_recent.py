"""What the door tells of the last minute: requests under way, answers by version, when to come again."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import pytest
from tests.load_balancer.conftest import PATIENCE_S, Request, Rig, Wire, answer_ok

from skyserve.load_balancer.door import Door
from skyserve.load_balancer.recent import QUIET_S, Recent, Tally, by_version, merged
from skyserve.load_balancer.report import Counters
from skyserve.load_balancer.server import COUNT_S
from skyserve.model.evidence import LoadReport, VersionAnswers
from skyserve.model.routing import Endpoint, RoutingTable
from skyserve.model.service import LoadBalancer


@dataclass
class Page:
    replica_id: int
    own: int = 0
    done: int = 0
    taken_s: float = 0.0


def looked(recent: Recent, pages: Sequence[Page], seconds: float, *, held: int = 0) -> LoadReport:
    """After so many seconds of looks, four a second."""
    for _ in range(int(seconds * 4)):
        recent.look(recent.now + 0.25, pages, sum(page.own for page in pages), held)
    return recent.tell(LoadReport(0.0, "b", 1), pages)


def test_requests_under_way_are_means_over_two_spans_and_the_least_of_a_second() -> None:
    recent, page = Recent(0.0), Page(1, own=1)
    looked(recent, [page], 60)
    page.own = 40
    report = looked(recent, [page], 2, held=2)
    assert report.steady_ongoing == 42
    assert report.burst_ongoing == pytest.approx((4 * 1 + 2 * 42) / 6, rel=0.1)
    assert report.ongoing == pytest.approx((58 * 1 + 2 * 42) / 60, rel=0.1)


def test_open_answers_in_which_nothing_moves_are_left_out() -> None:
    recent = Recent(0.0, quiet=3)
    report = looked(recent, [Page(1, own=5)], 10)
    assert (report.ongoing, report.quiet) == (2.0, 3)


def test_a_jump_is_worth_a_report_at_once() -> None:
    recent = Recent(0.0)
    assert not recent.look(0.25, [], 3, 0)
    recent.tell(LoadReport(0.0, "b", 1), [])
    assert [recent.look(at, [], 40, 0) for at in (0.5, 0.75, 1.0, 1.25)] == [False, False, True, True]
    recent.tell(LoadReport(0.0, "b", 1), [])
    assert not recent.look(1.5, [], 43, 0)


def test_what_replicas_finish_and_have_is_told_over_a_minute() -> None:
    recent, busy, idle = Recent(0.0), Page(1, own=4), Page(2)
    for _ in range(100):
        busy.done += 2
        report = looked(recent, [busy, idle], 1)
    assert report.done_per_s == {1: pytest.approx(2.0, rel=0.05)}
    assert report.busy == {1: pytest.approx(4.0, rel=0.05)}


def test_answers_are_counted_by_version_and_their_times_over_a_minute() -> None:
    recent = Recent(0.0)
    old, new = recent.tally(1), recent.tally(2)
    old.count(200, 3, 5)
    new.count(500, 3, 5)
    new.fail()
    looked(recent, [], 1)
    report = looked(recent, [], 100)
    assert [(row.version, row.answers, row.errors) for row in report.versions] == [(1, 1, 0), (2, 2, 2)]
    assert report.versions[0].first_byte[3] == report.versions[0].whole[5] == 1
    assert sum(report.first_byte) == sum(report.whole) == 0, "that was more than a minute ago"
    old.count(200, 3, 5)
    assert looked(recent, [], 1).whole[5] == 1


def test_the_oldest_versions_are_forgotten() -> None:
    recent = Recent(0.0)
    for version in range(1, 30):
        assert isinstance(recent.tally(version), Tally)
    assert sorted(recent.tallies) == list(range(22, 30))


def test_workers_make_one_report_and_what_the_gone_counted_stays() -> None:
    row = VersionAnswers(1, 10, 1, (1, 2), (3, 4))
    one = LoadReport(0.0, "b", 1, ongoing=2.0, done_per_s={1: 1.0}, first_byte=(1, 0), versions=(row,))
    two = LoadReport(0.0, "b", 1, ongoing=3.0, held=3, quiet=1, done_per_s={1: 2.0, 2: 1.0}, first_byte=(0, 1))
    both = merged(one, one, [two], (row,))
    assert both.ongoing == 4.0, "what is under way is known to all; of what waits each knows its own"
    assert both.done_per_s == {1: 3.0, 2: 1.0}
    assert both.first_byte == (1, 1)
    assert both.versions == (VersionAnswers(1, 20, 2, (2, 4), (6, 8)),)
    assert by_version([]) == ()


def test_the_rate_of_arrivals_has_a_short_span_too() -> None:
    counters = Counters(0.0)
    for second in range(100):
        counters.arrived(second + 0.5)
    for _ in range(12):
        counters.arrived(100.0)
    assert counters.arrivals_per_s(100.9, 6) == pytest.approx(17.1 / 6, rel=0.02)
    assert counters.arrivals_per_s(100.9) == pytest.approx(71.1 / 60, rel=0.02)


class Hour:
    """A door whose two clocks are set."""

    def __init__(self) -> None:
        self.at = 1000.0
        self.door = Door("b", lambda: self.at, Random(0))
        self.door.wall = lambda: self.at

    def table(self, **changes: object) -> None:
        number = self.door.table.number + 1
        self.door.apply(RoutingTable(number, **changes))  # type: ignore[arg-type]


def test_a_client_is_told_when_a_replica_is_expected() -> None:
    hour = Hour()
    hour.table()
    assert hour.door.retry_after_s() == 5
    hour.table(start_s=80.0)
    assert hour.door.retry_after_s() == 80
    hour.table(start_s=80.0, ready_at=1042.5)
    assert hour.door.retry_after_s() == 43
    hour.at = 1062.5
    assert hour.door.retry_after_s() == 20, "it is as late as it may be late again"
    hour.at = 9000.0
    assert hour.door.retry_after_s() == 80


def test_a_client_is_told_how_long_those_before_it_will_take() -> None:
    hour = Hour()
    row = Endpoint(1, "127.0.0.1:1")
    hour.table(endpoints=(row,), settings=LoadBalancer(max_concurrency_per_replica=1))
    page = hour.door.pool.page(1)
    assert page is not None
    hour.door.pool.enter(page, hour.at)
    assert hour.door.retry_after_s() == 5
    for _ in range(80):
        hour.at += 0.25
        page.done += 1
        hour.door.sweep()
    for number in range(100):
        hour.door.hold.waiting[number] = None  # type: ignore[index]
    assert hour.door.retry_after_s() == pytest.approx(100 / 4, abs=2)


STREAMS = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n"
TUNNELS = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: w\r\n\r\n"


@pytest.mark.parametrize("head", [STREAMS, TUNNELS])
def test_an_open_answer_counts_while_something_moves(rig, head: bytes) -> None:
    moves = asyncio.Event()

    async def replica(wire: Wire, request: Request) -> None:
        wire.send(head)
        await moves.wait()
        wire.send(b"6\r\nsecond\r\n")
        await asyncio.sleep(PATIENCE_S)

    async def scenario(rig: Rig) -> None:
        await rig.replica(replica)
        client = await rig.client()
        client.send(b"GET /events HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: w\r\n\r\n")
        await client.read_head()
        rig.later(QUIET_S / 2)
        assert rig.door.report().load.quiet == 0
        for seconds in (QUIET_S, COUNT_S, COUNT_S):
            rig.later(seconds)
        report = rig.door.report().load
        assert (report.quiet, report.steady_ongoing, sum(report.in_flight.values())) == (1, 0, 1)
        moves.set()
        await client.reader.readuntil(b"second")
        for seconds in (COUNT_S, COUNT_S):
            rig.later(seconds)
        assert rig.door.report().load.quiet == 0

    rig(scenario)


def test_answers_are_counted_under_the_version_of_their_replica(rig) -> None:
    async def bad(wire: Wire, request: Request) -> None:
        wire.send(b"HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n")

    async def breaks(wire: Wire, request: Request) -> None:
        wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf")
        wire.reset()

    async def scenario(rig: Rig) -> None:
        replicas = [await rig.replica(script) for script in (answer_ok, bad, breaks)]
        for version, replica in enumerate(replicas, start=1):
            row = Endpoint(1, replica.address, version=version)
            rig.door.apply(RoutingTable(rig.door.table.number + 1, endpoints=(row,)))
            for _ in range(2):
                await rig.ask(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        rows = {row.version: (row.answers, row.errors) for row in rig.door.report().load.versions}
        assert rows[1] == (2, 0)
        assert rows[2] == (2, 2)
        assert rows[3] == (2, 2)

    rig(scenario)
