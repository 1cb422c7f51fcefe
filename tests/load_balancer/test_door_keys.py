"""API keys at the door: who is let in, who is not, and that the latter cost nothing and wake nobody."""

from __future__ import annotations

import json
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest
from tests.load_balancer.conftest import Rig

from skyserve.load_balancer.framing import parse_request_head
from skyserve.load_balancer.keys import Keys, Visitor, for_table, shown_by, with_keys_in_force
from skyserve.load_balancer.sync import TableFile
from skyserve.load_balancer.wire import BadWord, decode_order, encode_table
from skyserve.model.routing import RoutingTable

ONE, TWO, WRONG = b"first-key-0123456789abcdef", b"second-key-0123456789abcdef", b"some-other-0123456789abcdef"


def digests(*keys: bytes) -> tuple[str, ...]:
    return tuple(sha256(key).hexdigest() for key in keys)


def request(key: bytes | None = None, *more: bytes, method: bytes = b"GET", body: bytes = b"") -> bytes:
    lines = [b"%b /v1/models HTTP/1.1" % method, b"Host: x"]
    lines += [b"Authorization: Bearer " + key] if key else []
    lines += [b"Content-Length: %d" % len(body)] if body else []
    return b"\r\n".join([*lines, *more]) + b"\r\n\r\n" + body


def untouched(rig: Rig) -> bool:
    """Whether nothing that an autoscaler goes by has been counted."""
    load = rig.door.report().load
    return (load.requests_total, load.held, load.arrivals_per_s) == (0, 0, 0.0) and rig.busy() == 0


# ---- what shows a key


@pytest.mark.parametrize(
    ("lines", "keys"),
    [
        ((), ()),
        ((b"Authorization: Bearer K",), (b"K",)),
        ((b"authorization:bEARER   K \t",), (b"K",)),
        ((b"X-API-Key: K",), (b"K",)),
        ((b"X-Api-Key:\tK",), (b"K",)),
        ((b"Authorization: K",), ()),
        ((b"Authorization: Basic K",), ()),
        ((b"Authorization: Bearer",), ()),
        ((b"Authorization: BearerK",), ()),
        ((b"X-API-Key:",), ()),
        ((b"Proxy-Authorization: Bearer K",), ()),
        ((b"X-Authorization: Bearer K",), ()),
        ((b"A: \xff Authorization: Bearer K",), ()),
        ((b"Authorization: Basic abc", b"A: b", b"X-API-Key: K"), (b"K",)),
        ((b"X-API-Key: L", b"Authorization: Bearer K"), (b"L", b"K")),
        ((b"Authorization: Bearer K", b"Authorization: Bearer L"), ()),
        ((b"X-API-Key: K", b"x-api-key: K"), ()),
        ((b"Authorization: Bearer K", b"X-API-Key: K", b"Authorization: Bearer K"), ()),
    ],
)
def test_what_shows_a_key(lines: tuple[bytes, ...], keys: tuple[bytes, ...]) -> None:
    assert shown_by(parse_request_head(request(None, *lines)).fields) == keys


def test_what_was_right_is_not_hashed_again_until_the_keys_change() -> None:
    hashed = []

    class Counting(Keys):
        def admits(self, shown):
            hashed.append(shown)
            return super().admits(shown)

    keys, visitor = Counting(digests(ONE)), Visitor()
    for target in (b"/a", b"/b", b"/c"):
        head = parse_request_head(request(ONE).replace(b"/v1/models", target))
        assert visitor.refusal(keys, head) is None
        assert head.admitted_by is keys
    assert hashed == [(ONE,)]
    assert visitor.refusal(keys, parse_request_head(request(WRONG))) is not None
    assert visitor.refusal(Counting(digests(TWO)), parse_request_head(request(ONE))) is not None
    assert hashed == [(ONE,), (WRONG,), (ONE,)]


def test_a_table_with_the_same_keys_changes_nothing() -> None:
    table = RoutingTable(1, api_keys=digests(ONE, TWO))
    keys = for_table(table, None)
    assert for_table(replace(table, number=2, api_keys=digests(TWO, ONE)), keys) is keys
    assert for_table(replace(table, number=2, api_keys=digests(TWO)), keys) is not keys
    assert for_table(RoutingTable(3), keys) is None


# ---- over sockets


@pytest.mark.parametrize("method", [b"GET", b"POST", b"OPTIONS", b"DELETE", b"PROPFIND"])
def test_only_a_right_key_is_let_in(rig, method: bytes) -> None:
    async def scenario(rig: Rig) -> None:
        replica = await rig.replica()
        rig.list(replica, api_keys=digests(ONE, TWO))
        body = b"{}" if method == b"POST" else b""
        for key, status in ((ONE, 200), (TWO, 200), (WRONG, 401), (None, 401), (ONE[:-1], 401), (ONE + b"x", 401)):
            answer = await rig.ask(request(key, method=method, body=body))
            assert answer.status == status
            if status == 401:
                assert answer.one("www-authenticate") == b"Bearer"
                error = json.loads(answer.body)["error"]
                assert (error["code"], error["type"]) == ("invalid_api_key", "invalid_request_error")
        assert (await rig.ask(request(None, b"X-API-Key: " + TWO, method=method))).status == 200
        assert [one.one("authorization") for one in replica.requests] == [b"Bearer " + ONE, b"Bearer " + TWO, None]
        assert replica.requests[-1].one("x-api-key") == TWO
        assert rig.door.report().responses == {200: 3, 401: 4}
        assert rig.door.report().load.requests_total == 3

    rig(scenario)


def test_a_preflight_needs_a_key_like_any_other(rig_once) -> None:
    async def scenario(rig: Rig) -> None:
        rig.list(await rig.replica(), api_keys=digests(ONE))
        preflight = request(None, b"Origin: https://a", b"Access-Control-Request-Method: POST", method=b"OPTIONS")
        assert (await rig.ask(preflight)).status == 401

    rig_once(scenario)


def test_people_get_a_sentence(rig_once) -> None:
    async def scenario(rig: Rig) -> None:
        rig.list(await rig.replica(), api_keys=digests(ONE))
        answer = await rig.ask(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert answer.one("content-type") == b"text/plain; charset=utf-8"
        assert b"Authorization: Bearer KEY" in answer.body
        head = await rig.ask(b"HEAD / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (head.status, head.body, head.one("content-length")) == (401, b"", b"%d" % len(answer.body))
        old = await rig.ask(b"GET / HTTP/1.0\r\n\r\n")
        assert (old.status, old.one("connection")) == (401, b"close")

    rig_once(scenario)


def test_no_keys_at_all_admit_nobody(rig_once) -> None:
    async def scenario(rig: Rig) -> None:
        rig.list(await rig.replica(), api_keys=())
        assert (await rig.ask(request(ONE))).status == 401
        assert (await rig.ask(request())).status == 401

    rig_once(scenario)


def test_a_service_at_zero_is_not_woken(rig) -> None:
    async def scenario(rig: Rig) -> None:
        rig.list(api_keys=digests(ONE))
        for key in (None, WRONG):
            assert (await rig.ask(request(key))).status == 401
        assert untouched(rig)
        client = await rig.client()
        client.send(request(ONE))
        await rig.until(lambda: len(rig.door.hold) == 1)

    rig(scenario)


def test_a_key_that_is_taken_away_works_no_longer_on_a_connection_that_stays(rig) -> None:
    async def scenario(rig: Rig) -> None:
        replica = await rig.replica()
        rig.list(replica, api_keys=digests(ONE))
        client = await rig.client()
        for _ in range(2):
            client.send(request(ONE))
            assert (await client.answer()).status == 200
        rig.list(replica)  # a new table, the same keys
        client.send(request(ONE))
        assert (await client.answer()).status == 200
        rig.list(replica, api_keys=digests(TWO))
        client.send(request(ONE))
        assert (await client.answer()).status == 401
        client.send(request(TWO))
        assert (await client.answer()).status == 200
        rig.list(replica, api_keys=None)
        client.send(request())
        assert (await client.answer()).status == 200
        rig.list(replica, api_keys=digests(ONE))
        client.send(request())
        assert (await client.answer()).status == 401
        assert replica.accepted == 1

    rig(scenario)


def test_the_same_head_with_another_length_is_still_known(rig_once) -> None:
    async def scenario(rig: Rig) -> None:
        rig.list(await rig.replica(), api_keys=digests(ONE))
        client = await rig.client()
        for size in (1, 20, 300):
            client.send(request(ONE, method=b"POST", body=b"x" * size))
            assert (await client.answer()).status == 200
        client.send(request(WRONG, method=b"POST", body=b"xx"))
        assert (await client.answer()).status == 401

    rig_once(scenario)


def test_who_waits_is_looked_at_again_when_the_keys_change(rig) -> None:
    async def scenario(rig: Rig) -> None:
        stays, goes, none = [await rig.client() for _ in range(3)]
        for client, key in ((stays, ONE), (goes, TWO), (none, None)):  # no table has come yet
            client.send(request(key))
        await rig.until(lambda: len(rig.door.hold) == 3)
        replica = await rig.replica(listed=False)
        rig.list(api_keys=digests(ONE, TWO))
        assert (await none.answer()).status == 401
        assert len(rig.door.hold) == 2
        rig.list(replica, api_keys=digests(ONE))
        assert (await goes.answer()).status == 401
        assert (await stays.answer()).status == 200
        assert [one.one("authorization") for one in replica.requests] == [b"Bearer " + ONE]

    rig(scenario)


def test_pipelined_requests_are_judged_one_by_one(rig) -> None:
    async def scenario(rig: Rig) -> None:
        replica = await rig.replica()
        rig.list(replica, api_keys=digests(ONE))
        client = await rig.client()
        wrong = request(WRONG, method=b"POST", body=b"abc")
        client.send(request(ONE) + wrong + request() + request(ONE, method=b"POST", body=b"z") + request(WRONG))
        assert [(await client.answer()).status for _ in range(5)] == [200, 401, 401, 200, 401]
        assert [one.body for one in replica.requests] == [b"", b"z"]
        client.send(request(None, b"Connection: close"))
        assert (await client.answer()).one("connection") == b"close"
        assert await client.ended()

    rig(scenario)


@pytest.mark.parametrize("length", [b"Content-Length: 50000000", b"Transfer-Encoding: chunked"])
def test_the_body_of_who_is_refused_is_not_waited_for(rig, length: bytes) -> None:
    async def scenario(rig: Rig) -> None:
        rig.list(await rig.replica(), api_keys=digests(ONE))
        client = await rig.client()
        client.send(request(WRONG, length, b"Expect: 100-continue", method=b"POST"))
        head = await client.read_head()
        assert head.startswith(b"HTTP/1.1 401 ")
        assert b"\r\nConnection: close\r\n" in head
        client.send(request(ONE))  # a body, for all that the door can know
        assert b"HTTP/1.1" not in await client.reader.read()
        assert untouched(rig)

    rig(scenario)


def test_who_is_let_in_is_told_to_continue_by_the_replica(rig) -> None:
    async def script(wire, head) -> None:
        wire.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        assert await wire.reader.readexactly(3) == b"abc"
        wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    async def scenario(rig: Rig) -> None:
        rig.list(await rig.replica(script), api_keys=digests(ONE))
        client = await rig.client()
        client.send(request(ONE, b"Content-Length: 3", b"Expect: 100-continue", method=b"POST"))
        assert (await client.read_head()).startswith(b"HTTP/1.1 100 ")
        client.send(b"abc")
        assert (await client.answer()).status == 200

    rig(scenario)


def test_a_tunnel_is_opened_with_a_key_only(rig) -> None:
    async def script(wire, head) -> None:
        wire.send(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
        wire.send(await wire.reader.readexactly(4))

    async def scenario(rig: Rig) -> None:
        replica = await rig.replica(script)
        rig.list(replica, api_keys=digests(ONE))
        upgrade = (b"Connection: Upgrade", b"Upgrade: websocket")
        client = await rig.client()
        client.send(request(None, *upgrade))
        assert (await client.answer()).status == 401
        client.send(request(ONE, *upgrade))
        assert (await client.answer()).status == 101
        client.send(b"ping")
        assert await client.reader.readexactly(4) == b"ping"
        assert len(replica.requests) == 1
        client.close()

    rig(scenario)


def test_who_is_refused_and_does_not_read_is_not_read_from(rig) -> None:
    async def scenario(rig: Rig) -> None:
        rig.list(await rig.replica(), api_keys=digests(ONE))
        client = await rig.client()
        client.writer.transport.set_write_buffer_limits(high=2**30)
        client.send(request(WRONG) * 200_000)
        await rig.stalled()
        (served,) = rig.server._clients
        assert served.read_paused
        assert rig.door.counters.responses[401] < 200_000

    rig(scenario)


# ---- tables


def test_a_table_that_holds_anything_but_digests_is_refused_without_quoting_it() -> None:
    good = encode_table(RoutingTable(1, api_keys=digests(ONE)))
    for bad in (ONE.decode(), digests(ONE)[0].upper(), ""):
        with pytest.raises(BadWord) as caught:
            decode_order(good.replace(digests(ONE)[0].encode(), bad.encode()))
        assert not bad or bad not in str(caught.value)


def test_keys_that_could_not_be_read_stay_as_they_are_in_force() -> None:
    unread = RoutingTable(5, keys_unread=True)
    keyed = RoutingTable(4, api_keys=digests(ONE))
    assert with_keys_in_force(unread, keyed).api_keys == digests(ONE)
    assert with_keys_in_force(unread, RoutingTable(4)).api_keys == (), "an open door closes"
    assert with_keys_in_force(unread, RoutingTable(0)).api_keys == (), "so does one that knows nothing"
    assert with_keys_in_force(keyed, unread) is keyed
    closed = for_table(unread, None)
    assert closed is not None
    assert not closed.admits((ONE,))


def test_a_table_whose_keys_were_replaced_is_not_kept_when_the_new_one_cannot_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    TableFile(tmp_path).save(RoutingTable(1))
    tables = TableFile(tmp_path)
    assert tables.load() == RoutingTable(1)
    monkeypatch.setattr(Path, "replace", full)
    tables.save(RoutingTable(2))
    assert tables.load() == RoutingTable(1), "the old one is better than none"
    tables.save(RoutingTable(3, api_keys=digests(ONE)))
    assert tables.load() is None, "it would have let everybody in"
