"""TLS at the endpoint: the certificate that the table names, its renewal, and never a word without it."""

from __future__ import annotations

import asyncio
import os
import ssl
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from tests.load_balancer.conftest import PATIENCE_S, Rig, Wire

from skyserve.load_balancer.server import Server, open_listener
from skyserve.load_balancer.tls import LOOK_S
from skyserve.model.routing import RoutingTable
from skyserve.model.service import Tls

GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


def certify(folder: Path, name: str) -> Tls:
    """A key and a certificate that it signed itself; they replace what is there, whole."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    names = [x509.DNSName("localhost"), x509.IPAddress(ip_address("127.0.0.1"))]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime.now(UTC) - timedelta(days=1))
        .not_valid_after(datetime.now(UTC) + timedelta(days=2))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    put(folder / "key.pem", key.private_bytes(pem, pkcs8, serialization.NoEncryption()))
    put(folder / "cert.pem", certificate.public_bytes(pem))
    return Tls(str(folder / "key.pem"), str(folder / "cert.pem"))


def put(path: Path, data: bytes) -> None:
    aside = path.with_suffix(".new")
    aside.write_bytes(data)
    aside.replace(path)


async def visit(rig: Rig, certfile: str) -> tuple[Wire, str]:
    """A client that trusts this certificate alone, and the name that it was shown."""
    context = ssl.create_default_context(cafile=certfile)
    context.set_alpn_protocols(["h2", "http/1.1"])
    opened = asyncio.open_connection("127.0.0.1", rig.port, ssl=context, server_hostname="localhost")
    wire = Wire(*await asyncio.wait_for(opened, PATIENCE_S))
    rig._clients.append(wire)
    tls = wire.writer.get_extra_info("ssl_object")
    assert tls.selected_alpn_protocol() == "http/1.1"
    return wire, dict(pair for (pair,) in tls.getpeercert()["subject"])["commonName"]


def use(rig: Rig, tls: Tls | None) -> None:
    rig._number += 1
    table = rig.door.table
    rig.door.apply(RoutingTable(rig._number, table.policy, table.settings, table.endpoints, tls=tls))
    rig.later(0.0)


async def serving(rig: Rig) -> None:
    await rig.until(lambda: rig.server._changing is None and rig.server._listening is not None)


def test_requests_bodies_and_refusals_over_tls(rig, tmp_path: Path) -> None:
    files = certify(tmp_path, "one")
    size = 3 * 1024 * 1024

    async def echo(wire, request) -> None:
        wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(request.body) + request.body)

    async def scenario(rig: Rig) -> None:
        replica = await rig.replica(echo)
        use(rig, files)
        await serving(rig)
        client, _ = await visit(rig, files.certfile)
        for body in (b"abc", os.urandom(size)):
            client.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
            assert (await client.answer()).body == body
        assert replica.requests[0].one("x-forwarded-proto") == b"https"
        assert replica.requests[0].one("forwarded") == b'for=127.0.0.1;host="x";proto=https'
        client.send(b"nonsense\n\n")
        assert (await client.answer()).status == 400

    rig(scenario)


def test_a_renewed_certificate_is_taken_without_a_restart(rig, tmp_path: Path) -> None:
    files = certify(tmp_path, "one")

    async def scenario(rig: Rig) -> None:
        await rig.replica()
        use(rig, files)
        await serving(rig)
        client, name = await visit(rig, files.certfile)
        assert name == "one"
        put(tmp_path / "cert.pem", b"half a file")
        rig.later(LOOK_S)
        certify(tmp_path, "two")
        rig.later(LOOK_S)
        _, name = await visit(rig, files.certfile)
        assert name == "two"
        client.send(GET)  # who was there before stays
        assert (await client.answer()).body == b"ok"

    rig(scenario)


def test_a_broken_renewal_changes_nothing(rig, tmp_path: Path) -> None:
    files = certify(tmp_path, "one")
    trusted = tmp_path / "trusted.pem"
    trusted.write_bytes(Path(files.certfile).read_bytes())

    async def scenario(rig: Rig) -> None:
        await rig.replica()
        use(rig, files)
        await serving(rig)
        for broken in (b"half a file", (tmp_path / "key.pem").read_bytes()):
            put(tmp_path / "cert.pem", broken)
            rig.later(LOOK_S)
            assert (await visit(rig, str(trusted)))[1] == "one"

    rig(scenario)


def test_the_table_turns_tls_on_and_off(rig, tmp_path: Path) -> None:
    files = certify(tmp_path, "one")

    async def scenario(rig: Rig) -> None:
        await rig.replica()
        old = await rig.client()
        old.send(GET)
        assert (await old.answer()).body == b"ok"
        use(rig, files)
        await serving(rig)
        plain = await rig.client()
        plain.send(GET)
        assert b"ok" not in await plain.reader.read()
        old.send(GET)
        assert (await old.answer()).body == b"ok"
        use(rig, None)
        await serving(rig)
        assert (await rig.ask(GET)).body == b"ok"

    rig(scenario)


def test_without_a_certificate_that_can_be_used_nobody_is_served(rig, tmp_path: Path) -> None:
    files = Tls(str(tmp_path / "key.pem"), str(tmp_path / "cert.pem"))

    async def scenario(rig: Rig) -> None:
        replica = await rig.replica()
        use(rig, files)
        assert rig.server._listening is None
        waiting = await rig.client()  # the kernel takes it in, and nobody else
        waiting.send(GET)
        certify(tmp_path, "late")
        rig.later(0.0)
        await serving(rig)
        assert b"ok" not in await waiting.reader.read()
        client, _ = await visit(rig, files.certfile)
        client.send(GET)
        assert (await client.answer()).body == b"ok"
        assert len(replica.requests) == 1

    rig(scenario)


def test_ipv6_clients_and_replicas(rig_once) -> None:
    async def scenario(rig: Rig) -> None:
        replica = await rig.replica(host="::1")
        listener = open_listener("::1", 0)
        server = Server(rig.door)
        port = listener.getsockname()[1]
        await server.start(listener)
        wire = Wire(*await asyncio.open_connection("::1", port))
        rig._clients.append(wire)
        wire.send(GET)
        assert (await wire.answer()).body == b"ok"
        assert replica.requests[0].one("x-forwarded-for") == b"::1"
        assert replica.requests[0].one("forwarded") == b'for="[::1]";host="x";proto=http'
        wire.close()
        server.stop(0.0)
        await server.stopped

    try:
        open_listener("::1", 0).close()
    except OSError:
        pytest.skip("this machine has no IPv6")
    rig_once(scenario)
