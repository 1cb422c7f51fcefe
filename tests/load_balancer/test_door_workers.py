"""Several workers behind one port: one load, one queue's worth of places, one report, and nobody left behind."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.load_balancer.conftest import OK
from tests.load_balancer.test_door_capacity import NoConnection
from tests.load_balancer.test_door_process import GET, Process, door, numbers, replica, scrape

from skyserve.load_balancer import wire
from skyserve.load_balancer.board import ROWS, Board, new_board
from skyserve.load_balancer.crew import PATIENCE_S
from skyserve.load_balancer.metrics import text
from skyserve.load_balancer.pool import Pool
from skyserve.load_balancer.wire import Stop, encode_stop, encode_table
from skyserve.model.evidence import LoadReport
from skyserve.model.routing import Endpoint, RoutingTable
from skyserve.model.service import LoadBalancer

__all__ = ["door", "replica"]
WORKERS = 3

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks at processes and sockets in /proc")


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def table(number: int, *addresses: str, workers: int = WORKERS, **settings: object) -> bytes:
    rows = tuple(Endpoint(number, address) for number, address in enumerate(addresses, 3))
    balancer = LoadBalancer(workers=workers, **settings)  # type: ignore[arg-type]
    return encode_table(RoutingTable(number, settings=balancer, endpoints=rows))


def listening(port: int) -> int:
    """How many sockets listen on a port."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(row[3] == "0A" and row[1].endswith(f":{port:04X}") for row in rows)


def until(condition, why: str) -> None:
    deadline = time.monotonic() + 20.0
    while not condition():
        assert time.monotonic() < deadline, why
        time.sleep(0.02)


@pytest.fixture
def silent() -> Iterator[list[socket.socket]]:
    """Two replicas that take connections and never answer."""
    listeners = [socket.create_server(("127.0.0.1", 0), backlog=512) for _ in range(2)]
    for listener in listeners:
        listener.settimeout(20.0)
    yield listeners
    for listener in listeners:
        listener.close()


def test_workers_share_the_port_and_report_as_one(door: Process, replica: str) -> None:
    process = door.start()
    controller, hello = door.controller()
    controller.say(table(1, replica))
    until(lambda: listening(door.port) == WORKERS, "all listen")
    for _ in range(60):
        assert door.ask().endswith(b"ok")
    report = controller.hear_until(lambda report: report.responses == {200: 60})
    assert (report.load.boot, report.load.table, report.load.requests_total) == (hello.boot, 1, 60)
    assert report.load.in_flight == {3: 0}

    def page() -> dict[str, float]:
        return numbers(scrape(door.admin, "/metrics").partition("\r\n\r\n")[2])

    until(lambda: page()["skyserve_door_requests_total"] == 60, "each worker's numbers arrive")
    assert page()['skyserve_door_first_byte_seconds_bucket{le="+Inf"}'] == 60
    assert page()["skyserve_door_table_number"] == 1
    others = children(process.pid)
    assert len(others) == WORKERS - 1
    controller.say(encode_stop(Stop(5.0)))
    assert process.wait(10.0) == 0
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in others), "no worker is left")
    assert b"Traceback" not in process.stderr.read()


def test_least_load_stays_least_load(door: Process, silent: list[socket.socket]) -> None:
    """Every stream stays open, so the two replicas must have the same number of them, give or take a few."""
    door.start()
    controller, _ = door.controller()
    controller.say(table(1, *(f"127.0.0.1:{one.getsockname()[1]}" for one in silent)))
    until(lambda: listening(door.port) == WORKERS, "all listen")
    clients = []
    try:
        for count in range(1, 61):
            client = socket.create_connection(("127.0.0.1", door.port), timeout=5.0)
            client.sendall(GET)
            clients.append(client)
            if count % 20 == 0:
                controller.hear_until(lambda report, count=count: sum(report.load.in_flight.values()) == count)
        report = controller.hear_until(lambda report: sum(report.load.in_flight.values()) == 60)
        assert abs(report.load.in_flight[3] - report.load.in_flight[4]) <= 2 * (WORKERS - 1)
        for client in clients[:30]:
            client.close()
        controller.hear_until(lambda report: sum(report.load.in_flight.values()) == 30)
    finally:
        for client in clients:
            client.close()
    controller.hear_until(lambda report: sum(report.load.in_flight.values()) == 0)


def test_a_worker_that_is_killed_is_replaced_and_what_it_counted_stays(door: Process, replica: str) -> None:
    process = door.start()
    controller, hello = door.controller()
    controller.say(table(1, replica))
    until(lambda: listening(door.port) == WORKERS, "all listen")
    for _ in range(30):
        assert door.ask().endswith(b"ok")
    controller.hear_until(lambda report: report.responses == {200: 30})
    (victim, other) = children(process.pid)
    os.kill(victim, signal.SIGKILL)
    until(lambda: len(set(children(process.pid)) - {victim}) == WORKERS - 1, "another one is there")
    until(lambda: listening(door.port) == WORKERS, "and listens")
    for _ in range(30):
        assert door.ask().endswith(b"ok")
    report = controller.hear_until(lambda report: report.responses == {200: 60})
    assert (report.load.boot, report.load.requests_total) == (hello.boot, 60)
    assert other in children(process.pid)


def test_workers_come_and_go_with_the_table(door: Process, replica: str) -> None:
    process = door.start()
    controller, _ = door.controller()
    for number, workers in enumerate((1, 3, 2, 1), 1):
        controller.say(table(number, replica, workers=workers))
        until(lambda workers=workers: listening(door.port) == workers, f"{workers} listen")
        until(lambda workers=workers: len(children(process.pid)) == workers - 1, "and no more are there")
        assert door.ask().endswith(b"ok")
    controller.hear_until(lambda report: (report.load.table, report.load.requests_total) == (4, 4))


def test_all_workers_finish_what_they_have(door: Process, silent: list[socket.socket]) -> None:
    process = door.start()
    controller, _ = door.controller()
    controller.say(table(1, *(f"127.0.0.1:{one.getsockname()[1]}" for one in silent)))
    until(lambda: listening(door.port) == WORKERS, "all listen")
    clients = [socket.create_connection(("127.0.0.1", door.port), timeout=20.0) for _ in range(12)]
    for client in clients:
        client.sendall(GET)
    asked = [silent[number % 2].accept()[0] for number in range(12)]
    controller.say(encode_stop(Stop(30.0)))
    until(lambda: listening(door.port) == 0, "nobody listens")
    time.sleep(PATIENCE_S + 0.5)  # longer than a worker without requests is waited for
    for one in asked:
        one.sendall(OK)
    for client in clients:
        assert client.recv(65536).startswith(b"HTTP/1.1 200")
    assert process.wait(10.0) == 0
    for one in (*asked, *clients):
        one.close()


def test_without_the_first_one_the_others_leave(door: Process, replica: str) -> None:
    process = door.start()
    controller, _ = door.controller()
    controller.say(table(1, replica))
    until(lambda: listening(door.port) == WORKERS, "all listen")
    others = children(process.pid)
    process.kill()
    process.wait()
    until(lambda: listening(door.port) == 0, "nobody listens")
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in others), "no worker is left")
    door.start(door.port)
    assert door.controller()[1].table == 1
    until(lambda: listening(door.port) == WORKERS, "all are back, from the kept table")
    assert door.ask().endswith(b"ok")


# ---- by themselves ------------------------------------------------------------------------------------------------


def test_pools_of_two_workers_see_each_others_requests() -> None:
    first = new_board()
    second = Board(first.file, 1)
    pools: list[Pool[NoConnection]] = [Pool(lambda: None), Pool(lambda: None)]
    for pool, board in zip(pools, (first, second), strict=True):
        pool.apply([Endpoint(1, "h:1"), Endpoint(ROWS + 2, "h:2")], 0.0)
        pool.share(board)
        pool.limit(4, 0.0)
    seen = Counter()
    for turn in range(8):
        pool = pools[turn % 2]
        page = min(pool.candidates(0.0, ()), key=lambda page: page.in_flight)
        pool.enter(page, 0.0)
        seen[page.replica_id] += 1
    assert seen == {1: 4, ROWS + 2: 4}
    for pool in pools:
        assert pool.candidates(0.0, ()) == []
        assert pool.busy
        assert sum(pool.in_flight().values()) == 4, "its own are reported, and no other's"
    first.clear(1)
    assert [(page.replica_id, page.in_flight) for page in pools[0].candidates(0.0, ())] == [(ROWS + 2, 0)]
    pools[0].share(None)
    assert [(page.replica_id, page.in_flight) for page in pools[0].candidates(0.0, ())] == [(ROWS + 2, 0)]
    os.close(first.file)


def test_what_workers_count_makes_one_page() -> None:
    labels = (("replica", "3"),)
    one = [("requests_total", (), 2), ("in_flight", labels, 1), ("table_number", (), 7), ("table_age_seconds", (), 0.5)]
    two = [("requests_total", (), 3), ("in_flight", labels, 4), ("table_number", (), 6), ("table_age_seconds", (), 9.5)]
    found = numbers(text([one, wire.decode_samples(wire.encode_samples(two))]))
    assert found == {
        "skyserve_door_requests_total": 5,
        'skyserve_door_in_flight{replica="3"}': 5,
        "skyserve_door_table_number": 6,
        "skyserve_door_table_age_seconds": 9.5,
    }


def test_those_that_are_gone_stay_counted() -> None:
    load = LoadReport(0.0, "b", 1, requests_total=5)
    totals = wire.Totals().plus(wire.DoorReport(load, responses={200: 4, 502: 1}, retries=2))
    again = totals.plus(wire.DoorReport(load, responses={200: 5}))
    assert again == wire.Totals(10, {200: 9, 502: 1}, 2)


@pytest.mark.parametrize("line", [b'{"type":"samples"}', b'{"type":"samples","samples":[1]}', b'{"type":"samples"'])
def test_samples_that_are_none_are_refused(line: bytes) -> None:
    assert wire.is_samples(line)
    with pytest.raises(wire.BadWord):
        wire.decode_samples(line)
