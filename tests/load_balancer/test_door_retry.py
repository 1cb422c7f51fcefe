"""When a request is repeated, when it is not, and who is left out meanwhile."""

from __future__ import annotations

import asyncio
import json

import pytest
from tests.load_balancer.conftest import settled

from skyserve.load_balancer import forward

GET = b"GET / HTTP/1.1\r\nHost: x\r\nAccept: application/json\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: x\r\nAccept: application/json\r\nContent-Length: 3\r\n\r\nabc"


async def drop(wire, request) -> None:
    wire.writer.transport.abort()


async def never(wire, request) -> None:
    await wire.reader.read()


def test_a_refused_connection_goes_elsewhere_at_once_and_ejects(rig) -> None:
    async def scenario(rig) -> None:
        dead, alive = await rig.replica(), await rig.replica()
        await dead.stop()
        news = []
        rig.door.on_news = lambda: news.append(rig.door.pool.suspects())
        for _ in range(6):
            assert (await rig.ask(POST)).body == b"ok"
        assert len(alive.requests) == 6
        assert news == [(dead.id,)]  # told once, at once
        assert rig.door.counters.retries == 1  # and not tried again meanwhile
        await dead.start()
        rig.later(1.0)
        await rig.until(lambda: rig.door.pool.candidates(rig.door.time(), ())[0].replica_id == dead.id)
        for _ in range(4):
            await rig.ask(GET)
        assert dead.requests
        assert rig.door.pool.suspects() == ()

    rig(scenario)


def test_any_number_of_dead_replicas_is_passed_over(rig) -> None:
    async def scenario(rig) -> None:
        dead = [await rig.replica() for _ in range(5)]
        await rig.replica()
        for replica in dead:
            await replica.stop()
        assert (await rig.ask(POST)).body == b"ok"
        assert rig.door.pool.suspects() == tuple(replica.id for replica in dead)

    rig(scenario)


def test_when_all_are_ejected_they_are_tried_anyway(rig) -> None:
    async def scenario(rig) -> None:
        replica = await rig.replica()
        rig.settings(queue_timeout_seconds=0.0)
        await replica.stop()
        assert (await rig.ask(GET)).status == 503
        assert not rig.door.pool.candidates(rig.door.time(), ())
        await replica.start()
        assert (await rig.ask(GET)).body == b"ok"

    rig(scenario)


def test_a_held_request_goes_to_the_replica_that_refused_it_when_it_is_back(rig) -> None:
    async def scenario(rig) -> None:
        replica = await rig.replica()
        await replica.stop()
        asked = asyncio.create_task(rig.ask(POST))
        await rig.until(lambda: len(rig.door.hold) == 1)
        await replica.start()
        rig.later(1.0)
        assert (await asked).body == b"ok"

    rig(scenario)


def test_a_stale_connection_is_replaced_without_blame(rig) -> None:
    async def close_after(wire, request) -> None:
        if wire.reader.at_eof():
            return
        wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        await wire.reader.readuntil(b"\r\n\r\nabc")  # the next request comes while this end is closing
        wire.writer.transport.abort()

    async def scenario(rig) -> None:
        replica = await rig.replica(close_after)
        for _ in range(3):
            assert (await rig.ask(POST)).body == b"ok"
        assert replica.accepted == 3
        assert rig.door.pool.suspects() == ()
        assert rig.door.counters.retries == 2

    rig(scenario)


def test_what_must_not_be_repeated_takes_no_connection_that_may_be_stale(rig) -> None:
    async def drop_the_second(wire, request) -> None:
        wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        await wire.reader.readuntil(b"\r\n\r\nabc")
        replica.requests.append(request)
        wire.writer.transport.abort()

    replica = None

    async def scenario(rig) -> None:
        nonlocal replica
        replica = await rig.replica(drop_the_second)
        rig.settings(retry="safe")
        assert (await rig.ask(POST)).status == 200
        rig.later(1.5)
        assert (await rig.ask(POST)).status == 200
        assert replica.accepted == 2
        assert (await rig.ask(POST)).status == 502  # used just now, so it went there, and may have had its effect
        assert len(replica.requests) == 3
        assert rig.door.counters.retries == 0

    rig(scenario)


@pytest.mark.parametrize(("retry", "seen"), [("idempotent", 3), ("safe", 1)])
def test_a_request_that_kills_cannot_kill_all_over_kept_connections(rig, retry: str, seen: int) -> None:
    async def scenario(rig) -> None:
        async def die(wire, request) -> None:
            victims.append(request)
            asyncio.get_running_loop().create_task(replicas[len(victims) - 1].stop())
            await wire.reader.read()

        victims = []
        replicas = [await rig.replica() for _ in range(5)]
        rig.settings(retry=retry)
        for _ in range(5):
            assert (await rig.ask(GET)).body == b"ok"  # now there is a connection to each
        for replica in replicas:
            replica.script = die
        assert (await rig.ask(POST)).status == 502
        assert len(victims) == seen

    rig(scenario)


def test_an_idle_connection_that_ends_is_not_used(rig) -> None:
    async def scenario(rig) -> None:
        replica = await rig.replica()
        await rig.ask(GET)
        replica.wires[0].close()
        await settled()
        assert (await rig.ask(GET)).body == b"ok"
        assert rig.door.counters.retries == 0

    rig(scenario)


@pytest.mark.parametrize(
    ("retry", "request_", "status", "tries"),
    [
        ("idempotent", GET, 200, 1),
        ("idempotent", POST, 200, 1),
        ("safe", GET, 200, 1),
        ("safe", POST, 502, 0),
    ],
)
def test_a_request_that_nobody_answered(rig, retry: str, request_: bytes, status: int, tries: int) -> None:
    async def scenario(rig) -> None:
        bad, good = await rig.replica(drop), await rig.replica()
        rig.settings(retry=retry)
        answer = await rig.ask(request_)
        assert answer.status == status
        assert (len(bad.requests), len(good.requests)) == (1, tries)
        assert tries == 0 or good.requests[0].body == bad.requests[0].body

    rig(scenario)


def test_a_replica_killed_in_the_middle_of_a_request_is_replaced(rig) -> None:
    async def scenario(rig) -> None:
        victim = await rig.replica(never)
        heir = await rig.replica()
        asked = asyncio.create_task(rig.ask(POST))
        await rig.until(lambda: len(victim.requests) == 1)
        await victim.stop()
        assert (await asked).body == b"ok"
        assert heir.requests[0].body == b"abc"

    rig(scenario)


def test_three_replicas_at_most_see_a_request_and_none_twice(rig) -> None:
    async def scenario(rig) -> None:
        replicas = [await rig.replica(drop) for _ in range(5)]
        answer = await rig.ask(POST)
        assert answer.status == 502
        assert answer.one("retry-after") == b"1"
        error = json.loads(answer.body)["error"]
        assert (error["type"], error["code"]) == ("server_error", "bad_gateway")
        assert sorted(len(replica.requests) for replica in replicas) == [0, 0, 1, 1, 1]

    rig(scenario)


async def dropped(rig, replica) -> asyncio.Task:
    """A request that the only replica has dropped, and that waits for another one."""
    asked = asyncio.create_task(rig.ask(POST))
    await rig.until(lambda: len(rig.door.hold) == 1)
    assert len(replica.requests) == 1
    return asked


def test_a_dropped_request_waits_for_another_replica(rig) -> None:
    async def scenario(rig) -> None:
        asked = await dropped(rig, await rig.replica(drop))
        await rig.replica()
        assert (await asked).body == b"ok"

    rig(scenario)


def test_a_request_dropped_by_a_replica_that_lives_is_told_so_soon(rig) -> None:
    async def scenario(rig) -> None:
        replica = await rig.replica(drop)
        asked = await dropped(rig, replica)
        rig.later(0.9)
        await settled()
        assert not asked.done()
        rig.later(0.1)
        answer = await asked
        assert (answer.status, answer.one("retry-after")) == (502, b"1")
        assert b"it is still there" in answer.body
        assert (len(replica.requests), replica.accepted) == (1, 2)  # it was asked for a connection, and for no more

    rig(scenario)


def test_a_request_whose_replica_died_waits_until_it_is_back(rig) -> None:
    async def scenario(rig) -> None:
        replica = await rig.replica(never)
        asked = asyncio.create_task(rig.ask(POST))
        await rig.until(lambda: len(replica.requests) == 1)
        await replica.stop()
        for _ in range(3):
            rig.later(20.0)
            await settled()
            assert not asked.done()
        await replica.start()
        rig.later(20.0)
        assert (await asked).status == 502  # it must not get the same request again
        assert len(replica.requests) == 1

    rig(scenario)


@pytest.mark.parametrize("how", ["draining", "removed"])
def test_a_replica_that_leaves_is_no_reason_to_give_up(rig, how: str) -> None:
    async def scenario(rig) -> None:
        replica = await rig.replica(drop)
        asked = await dropped(rig, replica)
        rig.list(draining=(replica,) if how == "draining" else ())
        rig.later(20.0)
        await settled()
        assert not asked.done()
        rig.list(await rig.replica(listed=False))
        assert (await asked).body == b"ok"

    rig(scenario)


def test_knocking_at_one_replica_serves_all_who_wait(rig) -> None:
    async def scenario(rig) -> None:
        replica = await rig.replica(drop)
        asked = [asyncio.create_task(rig.ask(POST)) for _ in range(20)]
        await rig.until(lambda: len(rig.door.hold) == 20)
        rig.later(1.0)
        assert {answer.status for answer in await asyncio.gather(*asked)} == {502}
        assert replica.accepted <= 22

    rig(scenario)


def test_a_dropped_request_has_the_deadline_of_all(rig) -> None:
    async def scenario(rig) -> None:
        replica = await rig.replica(never)
        asked = asyncio.create_task(rig.ask(POST))
        await rig.until(lambda: len(replica.requests) == 1)
        await replica.stop()
        await rig.until(lambda: len(rig.door.hold) == 1)
        rig.later(rig.door.settings.queue_timeout_seconds)
        assert (await asked).status == 502

    rig(scenario)


def test_one_that_never_answers_on_fresh_connections_is_left_out(rig) -> None:
    async def scenario(rig) -> None:
        bad, good = await rig.replica(drop), await rig.replica()
        for _ in range(10):
            assert (await rig.ask(POST)).body == b"ok"
        assert len(bad.requests) == 3
        assert len(good.requests) == 10

    rig(scenario)


def test_an_answer_that_has_begun_is_not_repeated(rig) -> None:
    async def begin(wire, request) -> None:
        wire.send(b"HTTP/1.1 2")
        await settled()
        wire.close()

    async def scenario(rig) -> None:
        first, second = await rig.replica(begin), await rig.replica()
        assert (await rig.ask(GET)).status == 502
        assert (len(first.requests), len(second.requests)) == (1, 0)

    rig(scenario)


@pytest.mark.parametrize(("size", "status"), [(900_000, 200), (4_000_000, 502)])
def test_a_body_is_kept_for_a_retry_up_to_a_limit(rig, size: int, status: int) -> None:
    assert 900_000 < forward.KEPT_LIMIT < 4_000_000

    async def scenario(rig) -> None:
        await rig.replica(drop)
        good = await rig.replica()
        body = bytes(range(250)) * (size // 250)
        answer = await rig.ask(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % size + body)
        assert answer.status == status
        assert status != 200 or good.requests[0].body == body

    rig(scenario)


def test_silence_before_the_answer_is_a_504_and_no_retry(rig) -> None:
    async def scenario(rig) -> None:
        silent, other = await rig.replica(never), await rig.replica()
        rig.settings(stream_timeout_seconds=9.0)
        asked = asyncio.create_task(rig.ask(GET))
        await rig.until(lambda: len(silent.requests) == 1)
        rig.later(8.0)
        assert rig.busy() == 1
        rig.later(2.0)
        answer = await asked
        assert (answer.status, b"replica_timeout" in answer.body) == (504, True)
        await rig.until(lambda: (silent.left, len(other.requests), rig.busy()) == (1, 0, 0))

    rig(scenario)


def test_silence_in_the_middle_cuts(rig) -> None:
    async def stall(wire, request) -> None:
        wire.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n")
        await wire.reader.read()

    async def scenario(rig) -> None:
        await rig.replica(stall)
        rig.settings(stream_timeout_seconds=0.2)
        answer = await rig.ask(GET)
        assert (answer.status, answer.whole) == (200, False)

    rig(scenario)


def test_a_slow_client_is_not_a_silent_replica(rig) -> None:
    size = 16 * 1024 * 1024

    async def large(wire, request) -> None:
        wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size + b"x" * size)

    async def scenario(rig) -> None:
        await rig.replica(large)
        rig.settings(stream_timeout_seconds=0.2)
        client = await rig.client()
        client.send(GET)
        await client.read_head()
        await rig.stalled()
        for _ in range(4):
            rig.later(0.2)
            await settled()
        assert len(await client.reader.readexactly(size)) == size

    rig(scenario)


def test_least_load_takes_turns_among_equals_and_sees_streams(rig) -> None:
    async def scenario(rig) -> None:
        replicas = [await rig.replica() for _ in range(3)]
        client = await rig.client()
        for _ in range(9):
            client.send(GET)
            await client.answer()
        assert [len(replica.requests) for replica in replicas] == [3, 3, 3]
        replicas[0].script = never
        while not rig.busy():
            busy = await rig.client()
            busy.send(GET)
            await settled()
        before = len(replicas[0].requests)
        for _ in range(6):
            await rig.ask(GET)
        assert len(replicas[0].requests) == before

    rig(scenario)
