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
from hypothesis import given
from hypothesis import strategies as st
from tests.load_balancer.conftest import OK
from tests.load_balancer.test_door_capacity import NoConnection
from tests.load_balancer.test_door_process import GET, Process, door, numbers, replica, scrape

from skyserve.load_balancer import wire
from skyserve.load_balancer.board import ROWS, Board, new_board, read_verdict, verdict
from skyserve.load_balancer.cpus import usable_cpus, usual_workers
from skyserve.load_balancer.crew import PATIENCE_S
from skyserve.load_balancer.metrics import text
from skyserve.load_balancer.pool import EJECTION_MAX_S, EJECTION_S, STRIKES, Pool
from skyserve.load_balancer.wire import Stop, encode_stop, encode_table
from skyserve.model.evidence import LoadReport
from skyserve.model.routing import Endpoint, RoutingTable
from skyserve.model.service import LoadBalancer

__all__ = ["door", "replica"]
WORKERS = 3

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks at processes and sockets in /proc")


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def table(number: int, *addresses: str, workers: int | None = WORKERS, **settings: object) -> bytes:
    policy = str(settings.pop("policy", "least_load"))
    rows = tuple(Endpoint(number, address) for number, address in enumerate(addresses, 3))
    balancer = LoadBalancer(workers=workers, **settings)  # type: ignore[arg-type]
    return encode_table(RoutingTable(number, policy, settings=balancer, endpoints=rows))


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


def test_a_worker_that_hangs_is_replaced(door: Process, replica: str) -> None:
    process = door.start()
    controller, _ = door.controller()
    controller.say(table(1, replica))
    until(lambda: listening(door.port) == WORKERS, "all listen")
    for _ in range(20):
        assert door.ask().endswith(b"ok")
    controller.hear_until(lambda report: report.load.requests_total == 20)
    (victim, other) = children(process.pid)
    os.kill(victim, signal.SIGSTOP)
    until(lambda: victim not in children(process.pid), "it is not waited for")
    until(lambda: listening(door.port) == WORKERS, "another one listens")
    assert other in children(process.pid)
    for _ in range(20):
        assert door.ask().endswith(b"ok")
    report = controller.hear_until(lambda report: report.load.requests_total == 40)
    assert report.responses == {200: 40}


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


def test_nobody_says_how_many_workers(door: Process, replica: str) -> None:
    """One for each CPU that may be used, four at most; all of them serve, and none is reported before it does."""
    process = door.start()
    controller, _ = door.controller()
    controller.say(table(7, replica, workers=None))
    heard = controller.hear_until(lambda report: report.load.table != 0)
    assert heard.load.table == 7
    workers = min(4, usable_cpus())
    until(lambda: listening(door.port) == workers, f"{workers} listen")
    assert len(children(process.pid)) == workers - 1
    for _ in range(40):
        assert door.ask().endswith(b"ok")
    report = controller.hear_until(lambda report: report.responses == {200: 40})
    assert report.load.table == 7


def test_what_one_worker_finds_out_about_a_replica_the_others_know(door: Process, replica: str) -> None:
    """Each ejection costs one request a detour, in all workers together: without a word between them it would cost one
    in each of them."""
    door.start()
    controller, _ = door.controller()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, but nobody listens
        controller.say(table(1, f"127.0.0.1:{taken.getsockname()[1]}", replica, policy="round_robin"))
        until(lambda: listening(door.port) == WORKERS, "all listen")
        started_at = time.monotonic()
        for _ in range(60):
            assert door.ask().endswith(b"ok")
        windows = 1 + int((time.monotonic() - started_at) / EJECTION_S)
        report = controller.hear_until(lambda report: report.responses == {200: 60})
    assert 1 <= report.retries <= windows


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


def two_pools(*ids: int) -> tuple[list[Pool[NoConnection]], Board]:
    """Two workers' pools that see each other, and the memory between them."""
    first = new_board()
    boards = (first, Board(first.file, 1))
    pools: list[Pool[NoConnection]] = [Pool(lambda: None), Pool(lambda: None)]
    for pool, board in zip(pools, boards, strict=True):
        pool.apply([Endpoint(id_, f"h:{id_}") for id_ in ids], 0.0)
        pool.share(board)
    return pools, first


def usable(pool: Pool[NoConnection], now: float) -> list[int]:
    return [page.replica_id for page in pool.candidates(now, ())]


def test_an_ejection_holds_for_all_workers_and_so_does_its_end() -> None:
    (mine, yours), board = two_pools(1, 2)
    kept = NoConnection()
    yours.put_idle(yours.page(1), kept, 0.0)
    mine.refused(mine.page(1), 10.0)
    assert usable(yours, 10.0) == [2]
    assert yours.page(1).idle == [], "its idle connections are not believed in any more"
    assert (yours.ejections, yours.suspects()) == (0, (1,))
    assert usable(yours, 11.0) == [1, 2]
    yours.enter(yours.page(1), 11.0)
    assert usable(mine, 11.0) == [2], "one of them tries, and one is enough"
    yours.refused(yours.page(1), 11.0)
    yours.leave(yours.page(1))
    assert mine.page(1).ejected_until == 12.0
    assert usable(mine, 12.9) == [2], "the pause doubles, whoever found out"
    assert usable(mine, 13.0) == [1, 2]
    mine.enter(mine.page(1), 13.0)
    mine.connected(mine.page(1), 13.0)
    assert usable(yours, 13.0) == [1, 2]
    assert (mine.suspects(), yours.suspects()) == ((), ())
    os.close(board.file)


def test_a_trial_that_comes_to_nothing_is_made_again_by_another_worker() -> None:
    (mine, yours), board = two_pools(1)
    mine.refused(mine.page(1), 0.0)
    mine.enter(mine.page(1), 1.0)
    assert usable(yours, 1.0) == []
    assert usable(yours, 2.0) == [1]
    os.close(board.file)


def test_one_that_drops_requests_is_left_out_by_all_until_it_answers_one_of_them() -> None:
    (mine, yours), board = two_pools(1, 2)
    for _ in range(STRIKES):
        mine.unanswered(mine.page(1), 0.0)
    assert usable(yours, 0.0) == [2]
    yours.connected(yours.page(1), 0.0)
    assert usable(mine, 0.0) == usable(yours, 0.0) == [2], "to accept is not to answer"
    yours.refused(yours.page(2), 0.0)
    assert usable(mine, 0.0) == [1], "better than one that is not there"
    yours.answered(yours.page(1), 0.1)
    assert usable(mine, 0.0) == [1]
    assert mine.suspects() == (2,)
    os.close(board.file)


def test_what_was_said_of_another_life_or_another_replica_is_not_believed() -> None:
    (mine, yours), board = two_pools(1)
    mine.refused(mine.page(1), 0.0)
    assert usable(yours, 0.0) == []
    for pool in (mine, yours):
        pool.apply([Endpoint(1, "elsewhere:1")], 0.1)
        assert usable(pool, 0.1) == [1], "it has moved"
    mine.refused(mine.page(1), 0.2)
    for pool in (mine, yours):
        pool.apply([Endpoint(ROWS + 1, "h:9")], 0.3)
        assert usable(pool, 0.3) == [ROWS + 1], "it has the same cell"
    mine.refused(mine.page(ROWS + 1), 0.4)
    third: Pool[NoConnection] = Pool(lambda: None)
    third.apply([Endpoint(ROWS + 1, "h:9")], 0.5)
    third.share(Board(board.file, 2))
    assert usable(third, 0.5) == [ROWS + 1], "who joins finds out for itself"
    os.close(board.file)


@given(st.floats(0, 1e9), st.floats(0, EJECTION_MAX_S), st.booleans())
def test_a_verdict_is_read_as_it_was_given(until_s: float, span_s: float, refuses: bool) -> None:
    said = verdict(until_s, span_s, refuses=refuses)
    assert 0 <= said < 2**64
    assert read_verdict(said) == (pytest.approx(until_s, abs=0.001), pytest.approx(span_s, abs=0.001), refuses)


@pytest.mark.parametrize(
    ("files", "cpus"),
    [
        ({}, 64),
        ({"proc/self/cgroup": "1:cpu:/x\n"}, 64),
        ({"proc/self/cgroup": "0::/\n"}, 64),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "150000 100000\n"}, 2),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, 64),
        (
            {
                "proc/self/cgroup": "0::/pod/one\n",
                "sys/fs/cgroup/pod/one/cpu.max": "max 100000\n",
                "sys/fs/cgroup/pod/cpu.max": "50000 100000\n",
            },
            1,
        ),
    ],
)
def test_cpus_are_those_that_may_be_used(tmp_path: Path, monkeypatch, files: dict[str, str], cpus: int) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)))
    for name, text_ in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text_)
    assert usable_cpus(tmp_path) == cpus
    assert usual_workers(tmp_path) == min(4, cpus)


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
