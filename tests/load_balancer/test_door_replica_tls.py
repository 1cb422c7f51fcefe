"""Replicas that speak TLS: everything that plain ones get, and nobody who does not prove who he is."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest
from tests.load_balancer.conftest import Request, Rig, Wire
from tests.load_balancer.test_door_tls import certify, serving, use, visit

from skyserve.load_balancer.wire import decode_order, encode_table
from skyserve.model.routing import Endpoint, RoutingTable
from skyserve.model.service import ReplicaTls, Tls

GET = b"GET /a?b HTTP/1.1\r\nHost: x\r\n\r\n"
UPGRADE = b"GET /ws HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
SWITCHING = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
MIB = 1024 * 1024


async def echo(wire: Wire, request: Request) -> None:
    wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(request.body) + request.body)


async def talk_back(wire: Wire, request: Request) -> None:
    """A tunnel that says again what it hears, until it hears the end or `bye`."""
    wire.send(SWITCHING)
    while heard := await wire.reader.read(65536):
        wire.send(heard)
        if heard.endswith(b"bye"):
            break
    raise ConnectionResetError


def test_requests_bodies_and_streams(rig, tmp_path: Path) -> None:
    files = certify(tmp_path, "replica")
    big = os.urandom(3 * MIB)

    async def scenario(rig: Rig) -> None:
        replica = await rig.replica(echo, files=files)
        client = await rig.client()
        for body in (b"abc", big, b"def"):
            client.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
            assert (await client.answer()).body == body
        assert replica.accepted == 1, "the connection is kept, and its handshake with it"
        assert replica.requests[0].one("x-forwarded-proto") == b"http", "that is how the client speaks"
        ssl_object = replica.wires[0].writer.get_extra_info("ssl_object")
        assert ssl_object.version() == "TLSv1.3"

        async def stream(wire: Wire, request: Request) -> None:
            wire.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            for word in (b"one", b"two", b"three"):
                wire.send(b"%x\r\n%b\r\n" % (len(word), word))
                heard.append(await said.get())
            wire.send(b"0\r\n\r\n")

        said: asyncio.Queue[bytes] = asyncio.Queue()
        heard: list[bytes] = []
        replica.script = stream
        client.send(GET)
        await client.read_head()
        for word in (b"one", b"two", b"three"):  # the next one is sent when this one has come
            assert await client.reader.readexactly(len(word) + 5) == b"%x\r\n%b\r\n" % (len(word), word)
            said.put_nowait(word)
        assert await client.reader.readexactly(5) == b"0\r\n\r\n"

    rig(scenario)


def test_a_slow_reader_slows_a_replica_that_speaks_tls(rig, tmp_path: Path) -> None:
    files, size = certify(tmp_path, "replica"), 64 * MIB
    sent = 0

    async def pour(wire: Wire, request: Request) -> None:
        nonlocal sent
        wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
        while sent < size:
            wire.send(bytes(MIB))
            await wire.writer.drain()
            sent += MIB

    async def scenario(rig: Rig) -> None:
        await rig.replica(pour, files=files)
        client = await rig.client()
        client.send(GET)
        await client.read_head()
        await rig.stalled()
        assert sent < size / 2
        assert len(await client.reader.readexactly(size)) == size

    rig(scenario)


@pytest.mark.parametrize("ends", ["client", "replica"])
@pytest.mark.parametrize("both", [False, True], ids=["replica alone", "both sides"])
def test_a_tunnel(rig, tmp_path: Path, ends: str, both: bool) -> None:
    """It ends for both sides when one of them ends it: TLS has no half of an end."""
    files = certify(tmp_path, "replica")

    async def scenario(rig: Rig) -> None:
        replica = await rig.replica(talk_back, files=files)
        if both:
            use(rig, files)
            await serving(rig)
            client, _ = await visit(rig, files.certfile)
        else:
            client = await rig.client()
        client.send(UPGRADE + b"early")
        assert (await client.read_head()).startswith(b"HTTP/1.1 101")
        assert await client.reader.readexactly(5) == b"early"
        client.send(b"x" * MIB)
        assert await client.reader.readexactly(MIB) == b"x" * MIB
        if ends == "replica":
            client.send(b"bye")
            assert await asyncio.wait_for(client.reader.read(), 5.0) == b"bye"
        else:
            client.close()
        await rig.until(lambda: replica.left == 1)
        await rig.until(lambda: rig.busy() == 0)

    rig(scenario)


def test_a_replica_that_ends_a_tunnel_is_heard_by_a_client_over_tls(rig, tmp_path: Path) -> None:
    """A plain replica that ends its side: the client cannot be told of half an end, so it is told of the whole."""
    files = certify(tmp_path, "endpoint")

    async def end(wire: Wire, request: Request) -> None:
        wire.send(SWITCHING + b"bye")
        wire.writer.write_eof()
        await wire.reader.read()

    async def scenario(rig: Rig) -> None:
        await rig.replica(end)
        use(rig, files)
        await serving(rig)
        client, _ = await visit(rig, files.certfile)
        client.send(UPGRADE)
        await client.read_head()
        assert await asyncio.wait_for(client.reader.read(), 5.0) == b"bye"
        await rig.until(lambda: rig.busy() == 0)

    rig(scenario)


# ---- who is believed ------------------------------------------------------------------------------------------------


def trusts(right: Tls, wrong: Tls) -> dict[str, tuple[ReplicaTls, bool]]:
    return {
        "its own certificate": (ReplicaTls(ca_file=right.certfile), True),
        "by name": (ReplicaTls(ca_file=right.certfile, server_name="localhost"), True),
        "by another name": (ReplicaTls(ca_file=right.certfile, server_name="else.where"), False),
        "another certificate": (ReplicaTls(ca_file=wrong.certfile), False),
        "what this machine trusts": (ReplicaTls(), False),
        "whoever answers": (ReplicaTls(verify=False), True),
        "whoever answers to another name": (ReplicaTls(verify=False, server_name="else.where"), True),
        "a file that is not there": (ReplicaTls(ca_file="/nowhere/ca.pem"), False),
        "a file that is none": (ReplicaTls(ca_file=right.keyfile), False),
    }


@pytest.mark.parametrize("name", trusts(Tls("", ""), Tls("", "")))
def test_only_those_who_prove_who_they_are_get_requests(rig, tmp_path: Path, caplog, name: str) -> None:
    for folder in ("right", "wrong"):
        (tmp_path / folder).mkdir()
    right, wrong = certify(tmp_path / "right", "replica"), certify(tmp_path / "wrong", "replica")
    tls, believed = trusts(right, wrong)[name]

    async def scenario(rig: Rig) -> None:
        replica = await rig.replica(files=right, tls=tls)
        rig.settings(queue_timeout_seconds=0.0)
        answer = await rig.ask(GET)
        assert answer.status == (200 if believed else 503)
        assert len(replica.requests) == believed
        assert rig.door.pool.suspects() == (() if believed else (replica.id,))
        heir = await rig.replica(files=right)
        for _ in range(4):
            assert (await rig.ask(GET)).body == b"ok", "those who are believed serve all"
        assert len(heir.requests) >= 2
        assert believed is ("replica 1: no TLS with" not in caplog.text)

    rig(scenario)


def test_plain_and_tls_replicas_side_by_side_and_one_that_changes(rig, tmp_path: Path) -> None:
    """As in a rolling update: the table says of each row how it is spoken to."""
    files = certify(tmp_path, "replica")

    async def scenario(rig: Rig) -> None:
        plain, over_tls = await rig.replica(), await rig.replica(files=files)
        for _ in range(6):
            assert (await rig.ask(GET)).body == b"ok"
        assert (len(plain.requests), len(over_tls.requests)) == (3, 3)
        assert (plain.accepted, over_tls.accepted) == (1, 1)
        await plain.stop()
        plain.context, plain.tls = over_tls.context, over_tls.tls
        await plain.start()
        rig.list(plain)
        assert (await rig.ask(GET)).body == b"ok"
        assert len(plain.requests) == 4

    rig(scenario)


def test_a_plain_replica_where_tls_is_said_is_asked_nothing(rig) -> None:
    async def scenario(rig: Rig) -> None:
        replica = await rig.replica(tls=ReplicaTls(verify=False))
        rig.settings(queue_timeout_seconds=0.0)
        assert (await rig.ask(GET)).status == 503
        assert replica.requests == []

    rig(scenario)


def test_a_new_authority_is_taken_without_a_restart(rig, tmp_path: Path) -> None:
    files = certify(tmp_path, "one")

    async def scenario(rig: Rig) -> None:
        replica = await rig.replica(files=files)
        assert (await rig.ask(GET)).body == b"ok"
        await replica.stop()
        certify(tmp_path, "two")
        replica.context.load_cert_chain(files.certfile, files.keyfile)
        await replica.start()
        rig.door.pool.close_idle()
        assert (await rig.ask(GET)).body == b"ok"

    rig(scenario)


def test_redirects_say_how_the_replica_is_spoken_to(rig_once, tmp_path: Path) -> None:
    files = certify(tmp_path, "replica")

    async def scenario(rig: Rig) -> None:
        replica = await rig.replica(files=files)
        rig.settings(mode="redirect")
        assert (await rig.ask(GET)).one("location") == f"https://{replica.address}/a?b".encode()

    rig_once(scenario)


@pytest.mark.parametrize("tls", [ReplicaTls(), ReplicaTls(verify=False), ReplicaTls(True, "/ca.pem", "a.b"), None])
def test_the_table_carries_it(tls: ReplicaTls | None) -> None:
    table = RoutingTable(3, endpoints=(Endpoint(1, "h:1", tls=tls), Endpoint(2, "h:2", draining=True, tls=tls)))
    assert decode_order(encode_table(table)) == table


def test_silence_in_a_handshake_is_a_replica_that_cannot_be_reached(rig) -> None:
    async def scenario(rig: Rig) -> None:
        async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read()
            writer.close()

        server = await asyncio.start_server(silent, "127.0.0.1", 0)
        address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        alive = await rig.replica()
        rig.settings(connect_timeout_seconds=0.2)
        rows = (Endpoint(0, address, tls=ReplicaTls(verify=False)), Endpoint(alive.id, alive.address))
        rig._number += 1
        rig.door.apply(RoutingTable(rig._number, settings=rig.door.settings, endpoints=rows))
        assert (await rig.ask(GET)).body == b"ok"
        assert rig.door.pool.suspects() == (0,)
        server.close()

    rig(scenario)
