"""Requests on replicas: queueing theory where it has an answer, and the rules of the door where it has not."""

from __future__ import annotations

import math
from array import array

import pytest

from skyserve.model.service import LoadBalancer
from skyserve.sim.arrivals import Flow, Flows, Lengths, Poisson, Recorded, usual_lengths
from skyserve.sim.load import Durations, Speed, Traffic, requests_per_replica

BEGIN = 1_700_000_000.0
ONE_TOKEN_A_SECOND = Speed(prefill_tokens_per_s=1e9, decode_tokens_per_s=1.0, concurrency=1)


def at(*instants: float, seconds: float = 10.0) -> Recorded:
    """Requests at these instants, each of so many seconds of work; then nothing for a long time."""
    points = array("d", [0.0, *instants, 1e6])
    return Recorded("test", points, array("d", [0.0] * len(points)), array("d", [seconds] * len(points)), LENGTHS)


LENGTHS = Lengths((0.0,), (10.0,))
BOTH = [(1, 1.0), (2, 1.0)]


def traffic(requests, *, speed=ONE_TOKEN_A_SECOND, **door: float) -> Traffic:
    return Traffic(requests, speed=speed, door=LoadBalancer(**door))


def test_one_after_the_other_on_one_replica():
    mine = traffic(at(1.0, 2.0))
    report = mine.advance(BEGIN, BEGIN + 5, [(7, 1.0)])
    assert (report.in_flight, report.held, report.requests_total) == ({7: 1}, 2, 3)
    assert mine.advance(BEGIN + 5, BEGIN + 100, [(7, 1.0)]).in_flight == {7: 0}
    served = mine.served()
    assert (served.requests, served.completed, served.rejected) == (3, 3, 0)
    assert served.latency_s[99.0] == pytest.approx(28.0, rel=0.006)
    assert served.waited_s[50.0] == pytest.approx(9.0, rel=0.006)


def test_a_replica_of_twice_the_speed_takes_half_the_time():
    mine = traffic(at())
    mine.advance(BEGIN, BEGIN + 100, [(1, 2.0)])
    assert mine.served().latency_s[50.0] == pytest.approx(5.0, rel=0.006)


def test_the_least_loaded_replica_is_next_and_equals_take_turns():
    mine = traffic(at(1.0, 2.0, 3.0), speed=Speed(1e9, 1.0, 8))
    assert mine.advance(BEGIN, BEGIN + 2, [(1, 1.0), (2, 1.0)]).in_flight == {1: 2, 2: 1}
    assert mine.advance(BEGIN + 2, BEGIN + 3, [(1, 1.0), (2, 1.0)]).in_flight == {1: 2, 2: 2}


def test_what_waits_is_bounded():
    mine = traffic(at(1.0, 2.0, 3.0), queue_size=2)
    report = mine.advance(BEGIN, BEGIN + 4, [])
    assert (report.held, report.in_flight) == (2, {})
    assert mine.served().rejected == 2


def test_nobody_waits_longer_than_allowed():
    mine = traffic(at(1.0, 30.0), queue_timeout_seconds=60.0)
    assert mine.advance(BEGIN, BEGIN + 70, []).held == 1
    report = mine.advance(BEGIN + 70, BEGIN + 75, BOTH)
    assert (report.held, sum(report.in_flight.values())) == (0, 1)
    assert mine.served().rejected == 2


def test_a_full_queue_makes_room_by_what_waited_too_long():
    mine = traffic(at(50.0), queue_size=1, queue_timeout_seconds=20.0)
    assert mine.advance(BEGIN, BEGIN + 51, []).held == 1
    assert mine.served().rejected == 1


def test_what_a_lost_replica_did_is_done_again_before_what_waits():
    mine = traffic(at(1.0, 2.0))
    mine.advance(BEGIN, BEGIN + 8, BOTH)
    report = mine.advance(BEGIN + 8, BEGIN + 12, [(2, 1.0)])
    # Replica 2 is done at 11 s and takes the request of 0 s, which replica 1 had for 8 s; that of 2 s goes on waiting.
    assert (report.in_flight, report.held) == ({2: 1}, 1)
    mine.advance(BEGIN + 12, BEGIN + 100, [(2, 1.0)])
    served = mine.served()
    assert (served.completed, served.retried) == (3, 1)
    assert served.latency_s[99.0] == pytest.approx(29.0, rel=0.006)


def test_a_replica_that_leaves_finishes_what_it_has():
    mine = traffic(at(1.0, 2.0))
    mine.advance(BEGIN, BEGIN + 1.5, BOTH)
    mine.advance(BEGIN + 1.5, BEGIN + 10.5, [(2, 1.0)], leaving=[1])
    served = mine.served()
    assert (served.completed, served.retried) == (1, 0)
    assert mine.advance(BEGIN + 10.5, BEGIN + 10.6, [(2, 1.0)]).in_flight == {2: 1}


def test_a_replica_may_come_back():
    mine = traffic(at(), queue_timeout_seconds=1e6)
    mine.advance(BEGIN, BEGIN + 5, [(1, 1.0)])
    assert mine.advance(BEGIN + 5, BEGIN + 50, []).held == 1
    mine.advance(BEGIN + 50, BEGIN + 70, [(1, 1.0)])
    assert mine.served().latency_s[50.0] == pytest.approx(60.0, rel=0.006)


def test_books_are_as_long_as_there_are_replicas():
    mine = traffic(Poisson(1.0, LENGTHS))
    for step in range(200):
        mine.advance(BEGIN + step, BEGIN + step + 1, [(step, 1.0), (step + 1, 1.0)])
    assert len(mine._loads) < 6


def test_waiting_agrees_with_erlang():
    """M/M/4 at 80 % load: the share of requests that wait, and the 99th percentile of the time to wait."""
    servers, mean_s, rate = 4, 2.0, 1.6
    answers = tuple(-mean_s * math.log(1 - (i + 0.5) / 4096) for i in range(4096))
    requests = Poisson(rate, Lengths((0.0,) * 4096, answers))
    mine = Traffic(
        requests,
        speed=Speed(1e9, 1.0, 2),
        door=LoadBalancer(queue_size=10**6, queue_timeout_seconds=1e9),
        seed=1,
    )
    mine.advance(BEGIN, BEGIN + 150_000, BOTH)
    offered = rate * mean_s
    last = offered**servers / math.factorial(servers) / (1 - offered / servers)
    waits = last / (sum(offered**k / math.factorial(k) for k in range(servers)) + last)
    p99 = -math.log(0.01 / waits) / (servers / mean_s - rate)
    served = mine.served()
    assert 1 - mine._waited.none / served.completed == pytest.approx(waits, rel=0.03)
    assert served.waited_s[99.0] == pytest.approx(p99, rel=0.1)


def test_the_same_seed_gives_the_same_and_steps_do_not_matter():
    def told(step: float, seed: int):
        mine = Traffic(Poisson(3.0, usual_lengths()), seed=seed)
        for number in range(int(3600 / step)):
            report = mine.advance(BEGIN + number * step, BEGIN + (number + 1) * step, BOTH)
        return mine.served(), report.in_flight, report.held

    assert told(20.0, 3) == told(900.0, 3) != told(20.0, 4)


def test_the_rate_is_that_of_the_last_minute():
    mine = traffic(at(*range(1, 100)), queue_size=10**6)
    assert mine.advance(BEGIN, BEGIN + 30, []).arrivals_per_s == pytest.approx(1.0, abs=0.05)
    report = mine.advance(BEGIN + 30, BEGIN + 120, [])
    assert (report.arrivals_per_s, report.window_s) == (pytest.approx(39 / 60), 60.0)
    assert report.requests_total == 100
    assert mine.advance(BEGIN + 120, BEGIN + 300, []).arrivals_per_s == 0.0


def test_counting_can_begin_later():
    mine = traffic(at(1.0, 200.0))
    mine.advance(BEGIN, BEGIN + 100, BOTH)
    mine.count_from_here()
    mine.advance(BEGIN + 100, BEGIN + 300, BOTH)
    served = mine.served()
    assert (served.requests, served.completed) == (1, 1)


def test_percentiles_are_exact_to_half_a_per_cent():
    durations = Durations()
    for thousandth in range(1, 1001):
        durations.add(thousandth / 10)
    assert durations.percentiles() == {
        50.0: pytest.approx(50.0, rel=0.006),
        90.0: pytest.approx(90.0, rel=0.006),
        95.0: pytest.approx(95.0, rel=0.006),
        99.0: pytest.approx(99.0, rel=0.006),
    }
    assert Durations().percentiles() == {}


def test_recorded_requests_are_repeated_without_a_gap():
    requests = Recorded("test", array("d", [0.0, 1.0, 2.0]), None, None, LENGTHS, scale=2.0)
    mine = traffic(requests, queue_size=10**6)
    assert mine.advance(BEGIN, BEGIN + 149.9, []).requests_total == 300
    assert requests.mean_rate == pytest.approx(2.0)


@pytest.mark.parametrize("pattern", ["gamma", "weibull"])
def test_flows_have_their_rate_whatever_the_gaps(pattern):
    flows = Flows(
        "test", ((Flow("a", 2.0, pattern, 0.4), Flow("b", 1.0)), (Flow("a", 8.0, pattern, 0.4),)), 600.0, LENGTHS
    )
    mine = traffic(flows, queue_size=0)
    assert mine.advance(BEGIN, BEGIN + 120_000, []).requests_total == pytest.approx(5.5 * 120_000, rel=0.02)
    assert flows.mean_rate == 5.5


def test_the_usual_lengths_are_those_of_conversations():
    lengths = usual_lengths()
    assert sorted(lengths.prompt)[2048] == pytest.approx(760, rel=0.02)
    assert sum(lengths.answer) / len(lengths.answer) == pytest.approx(213, rel=0.01)


def test_work_takes_some_time_even_without_tokens():
    assert Speed().seconds([0.0, 800.0], [0.0, 6.0]) == [0.001, pytest.approx(0.2)]


def test_what_a_replica_can_do():
    assert requests_per_replica(Poisson(1.0, LENGTHS), Speed(1e9, 2.0, 8)) == pytest.approx(8 / 5)
    nobody = Flows("test", ((),), 600.0, LENGTHS)
    assert requests_per_replica(nobody, Speed()) == 0.0
