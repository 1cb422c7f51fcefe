"""How much a replica, a request or a body may take: limits of concurrency, size and time, and the slow start."""

from __future__ import annotations

import asyncio
import json

import pytest
from tests.load_balancer.conftest import OK, Request, Rig, Wire

from skyserve.load_balancer.pool import Pool
from skyserve.model.routing import Endpoint

GET = b"GET / HTTP/1.1\r\nHost: x\r\nAccept: application/json\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: x\r\nAccept: application/json\r\nContent-Length: 3\r\n\r\nabc"
MIB = 1024 * 1024


async def never(wire: Wire, request: Request) -> None:
    await wire.reader.read()


def code(answer) -> str:
    return json.loads(answer.body)["error"]["code"]


# ---- concurrency ---------------------------------------------------------------------------------------------------


def test_no_replica_gets_more_than_it_may_and_the_rest_wait_their_turn(rig) -> None:
    at_once, most = 0, 0

    async def slow(wire: Wire, request: Request) -> None:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        await asyncio.sleep(0.005)
        at_once -= 1
        wire.send(OK)

    async def scenario(rig: Rig) -> None:
        replicas = [await rig.replica(slow), await rig.replica(slow)]
        rig.settings(max_concurrency_per_replica=3)
        answers = await asyncio.gather(*(rig.ask(POST) for _ in range(60)))
        assert {answer.status for answer in answers} == {200}
        assert most <= 6
        assert [len(replica.requests) for replica in replicas] == [30, 30]

    rig(scenario)


def test_who_waits_for_a_busy_replica_is_told_so(rig) -> None:
    async def scenario(rig: Rig) -> None:
        await rig.replica(never)
        rig.settings(max_concurrency_per_replica=1, queue_size=1, queue_timeout_seconds=60.0)
        (await rig.client()).send(POST)
        await rig.until(lambda: rig.busy() == 1)
        waiting = asyncio.create_task(rig.ask(POST))
        await rig.until(lambda: len(rig.door.hold) == 1)
        turned_away = await rig.ask(POST)
        assert (turned_away.status, code(turned_away), turned_away.one("retry-after")) == (429, "queue_full", b"5")
        assert b"every replica has as many requests as it may" in turned_away.body
        rig.later(60.0)
        answer = await waiting
        assert (answer.status, code(answer), answer.one("retry-after")) == (503, "replicas_busy", b"5")

    rig(scenario)


def test_an_ejected_replica_is_no_way_around_the_limit(rig) -> None:
    async def scenario(rig: Rig) -> None:
        dead, busy = await rig.replica(), await rig.replica(never)
        await dead.stop()
        rig.settings(max_concurrency_per_replica=1)
        (await rig.client()).send(POST)
        await rig.until(lambda: len(busy.requests) == 1)
        waiting = asyncio.create_task(rig.ask(POST))
        await rig.until(lambda: len(rig.door.hold) == 1)
        await busy.stop()
        await dead.start()
        rig.later(1.0)
        assert (await waiting).body == b"ok"

    rig(scenario)


# ---- bodies --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "status"), [(MIB, 200), (MIB + 1, 413)])
@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_may_have_a_limit(rig, size: int, status: int, chunked: bool) -> None:
    async def scenario(rig: Rig) -> None:
        replica = await rig.replica()
        rig.settings(max_body_mib=1.0)
        framed = b"Transfer-Encoding: chunked" if chunked else b"Content-Length: %d" % size
        frame = b"%06x\r\n%b\r\n0\r\n\r\n"
        body = frame % (size - 15, b"x" * (size - 15)) if chunked else b"x" * size
        assert len(body) == size
        client = await rig.client()
        client.send(b"POST / HTTP/1.1\r\nHost: x\r\nAccept: application/json\r\n" + framed + b"\r\n\r\n" + body)
        answer = await client.answer()
        assert answer.status == status
        if status == 413:
            assert (code(answer), answer.one("connection")) == ("body_too_large", b"close")
            assert not replica.requests
            client.send(GET)
            assert await client.ended()

    rig(scenario)


def test_a_chunked_body_that_is_too_large_and_comes_whole_is_refused(rig) -> None:
    async def scenario(rig: Rig) -> None:
        replica = await rig.replica()
        rig.settings(max_body_mib=0.0001)
        client = await rig.client()
        head = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        client.send(head + b"c8\r\n" + b"x" * 200 + b"\r\n0\r\n\r\n" + GET)
        answer = await client.answer()
        assert (answer.status, answer.one("connection")) == (413, b"close")
        assert await client.ended()
        assert replica.accepted == 0

    rig(scenario)


# ---- time ----------------------------------------------------------------------------------------------------------


def test_an_answer_may_have_to_begin_in_time(rig) -> None:
    async def scenario(rig: Rig) -> None:
        replica = await rig.replica(never)
        other = await rig.replica()
        rig.list(replica)
        rig.settings(first_byte_timeout_seconds=9.0)
        rig.list(replica)
        asked = asyncio.create_task(rig.ask(POST))
        await rig.until(lambda: len(replica.requests) == 1)
        rig.later(8.0)
        assert rig.busy() == 1
        rig.later(2.0)
        answer = await asked
        assert (answer.status, code(answer)) == (504, "replica_timeout")
        assert other.requests == []

    rig(scenario)


def test_an_answer_that_has_begun_in_time_may_take_its_time(rig) -> None:
    go = asyncio.Event()

    async def quiet(wire: Wire, request: Request) -> None:
        wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n")
        await go.wait()
        wire.send(b"ok")

    async def scenario(rig: Rig) -> None:
        await rig.replica(quiet)
        rig.settings(first_byte_timeout_seconds=9.0)
        client = await rig.client()
        client.send(GET)
        await client.read_head()
        rig.later(900.0)
        go.set()
        assert await client.reader.readexactly(2) == b"ok"

    rig(scenario)


@pytest.mark.parametrize("begun", [False, True])
def test_a_request_may_have_a_limit_as_a_whole(rig, begun: bool) -> None:
    async def endless(wire: Wire, request: Request) -> None:
        if begun:
            wire.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n")
        await wire.reader.read()

    async def scenario(rig: Rig) -> None:
        replica = await rig.replica(endless)
        rig.settings(request_timeout_seconds=30.0)
        client = await rig.client()
        client.send(POST)
        await rig.until(lambda: len(replica.requests) == 1)
        if begun:
            await client.read_head()
        rig.later(29.0)
        assert rig.busy() == 1
        rig.later(2.0)
        if begun:
            assert await client.reader.read() in (b"1\r\na\r\n", b"")
        else:
            answer = await client.answer()
            assert (answer.status, code(answer)) == (504, "request_timeout")
        await rig.until(lambda: rig.busy() == 0)

    rig(scenario)


def test_waiting_counts_as_well(rig) -> None:
    async def scenario(rig: Rig) -> None:
        rig.settings(request_timeout_seconds=30.0)
        asked = asyncio.create_task(rig.ask(POST))
        await rig.until(lambda: len(rig.door.hold) == 1)
        rig.later(31.0)
        assert (await asked).status == 504

    rig(scenario)


# ---- new replicas --------------------------------------------------------------------------------------------------


class NoConnection:
    idle_since = 0.0

    def close(self) -> None:
        """Nothing is there."""


def test_a_new_replica_gets_its_share_little_by_little() -> None:
    pool: Pool[NoConnection] = Pool(lambda: None)
    pool.limit(None, 100.0)
    pool.apply([Endpoint(1, "h:1"), Endpoint(2, "h:2")], 0.0)
    assert [page.replica_id for page in pool.candidates(0.0, ())] == [1, 2], "all are new: nobody to compare with"
    for page in pool.candidates(0.0, ()):
        for _ in range(40):
            pool.enter(page, 0.0)
    pool.apply([Endpoint(n, f"h:{n}") for n in (1, 2, 3)], 1000.0)
    taken = {}
    for age in (5, 25, 50, 100):
        while newest := [page for page in pool.candidates(1000.0 + age, ()) if page.replica_id == 3]:
            if newest[0].in_flight >= 40:
                break
            pool.enter(newest[0], 1000.0 + age)
        taken[age] = pool.page(3).in_flight
    assert taken == {5: 2, 25: 10, 50: 20, 100: 40}


def test_with_nothing_to_do_a_new_replica_is_as_good_as_any() -> None:
    pool: Pool[NoConnection] = Pool(lambda: None)
    pool.limit(None, 100.0)
    pool.apply([Endpoint(1, "h:1")], 0.0)
    pool.apply([Endpoint(1, "h:1"), Endpoint(2, "h:2")], 1000.0)
    assert [page.replica_id for page in pool.candidates(1001.0, ())] == [1, 2]
