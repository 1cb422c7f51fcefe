"""Probes on real sockets, the watch over providers, and what becomes of provider calls."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import aiohttp
import pytest
from tests.controller.site import Serving
from tests.load_balancer.test_door_tls import certify

from skyserve.clock import SystemClock, VirtualClock
from skyserve.controller.act import refusal
from skyserve.controller.files import Files
from skyserve.controller.probe import Prober, Question, ask, question
from skyserve.controller.watch import Watch
from skyserve.errors import (
    CapacityUnavailable,
    CredentialsRejected,
    OrderRejected,
    ProviderError,
    ProviderUnavailable,
    QuotaExceeded,
    Throttled,
    UsageError,
)
from skyserve.model.evidence import Listing, OutcomeKind, Silent
from skyserve.model.service import ReadinessProbe, ReplicaTls, ServiceSpec
from skyserve.providers.fake import FakeProvider

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def answering(status: bytes, seen: list[bytes] | None = None) -> Serve:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError:
            writer.close()  # the prober thought better of it
            return
        length = next((int(x[15:]) for x in head.lower().split(b"\r\n") if x.startswith(b"content-length:")), 0)
        body = await reader.readexactly(length)
        if seen is not None:
            seen.append(head + body)
        writer.write(b"HTTP/1.1 " + status + b"\r\nContent-Length: 0\r\n\r\n")
        writer.close()
        await writer.wait_closed()

    return serve


async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()
    writer.close()
    await writer.wait_closed()


async def settle(server: asyncio.Server) -> None:
    """Close a server and let its handlers end."""
    server.close()
    me = asyncio.current_task()
    handlers = [task for task in asyncio.all_tasks() if task is not me]
    await asyncio.gather(*handlers, return_exceptions=True)


async def probe_once(serve: Serve | None, probe: ReadinessProbe, values: dict[str, str]) -> tuple[bool, str]:
    server = await asyncio.start_server(serve or silent, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    if serve is None:
        server.close()
        await server.wait_closed()
    async with aiohttp.ClientSession() as session:
        result = await ask(session, question(f"127.0.0.1:{port}", probe, values))
    await settle(server)
    return result


@pytest.mark.parametrize(
    ("serve", "ok", "words"),
    [
        (answering(b"200 OK"), True, "answered 200"),
        (answering(b"204 No Content"), False, "answered 204"),
        (answering(b"302 Found"), False, "answered 302"),
        (answering(b"503 Loading"), False, "answered 503"),
        (silent, False, "longer than 0.2s"),
        (None, False, "nothing accepts connections"),
    ],
)
def test_only_200_is_ready(serve: Serve | None, ok: bool, words: str) -> None:
    result = asyncio.run(probe_once(serve, ReadinessProbe("/health", timeout_seconds=0.2), {}))
    assert result[0] is ok
    assert words in result[1]


def test_a_replica_that_speaks_tls_is_probed_over_tls(tmp_path: Path) -> None:
    files = certify(tmp_path, "replica")
    (tmp_path / "other").mkdir()
    wrong = certify(tmp_path / "other", "other")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(files.certfile, files.keyfile)
    rightly = ReplicaTls(ca_file=files.certfile, server_name="localhost")
    probe = ReadinessProbe("/health", timeout_seconds=5.0)

    async def scenario(endpoint: str, other: str) -> None:
        async with aiohttp.ClientSession() as session:
            for tls, asked, ok, words in (
                (rightly, endpoint, True, "answered 200"),
                (ReplicaTls(verify=False), endpoint, True, "answered 200"),
                (ReplicaTls(ca_file=wrong.certfile), endpoint, False, "its certificate is not accepted"),
                (replace(rightly, server_name="else.where"), endpoint, False, "its certificate is not accepted"),
                (rightly, other, False, f"no TLS with {other}"),
                (None, endpoint, False, "GET /health failed"),
            ):
                told = await ask(session, question(asked, probe, {}, tls))
                assert told[0] is ok, tls
                assert words in told[1], tls

    with Serving(context) as over_tls, Serving(None) as plain:
        asyncio.run(scenario(over_tls.endpoint, plain.endpoint))


def test_a_post_probe_fills_in_secrets_and_shows_them_nowhere() -> None:
    seen: list[bytes] = []
    probe = ReadinessProbe("/v1/x", post_data='{"model": "$MODEL"}', headers={"Authorization": "Bearer ${KEY}"})
    values = {"MODEL": 'say "hi"', "KEY": "hunter2"}
    assert asyncio.run(probe_once(answering(b"200 OK", seen), probe, values))[0]
    assert b'{"model": "say \\"hi\\""}' in seen[0]
    assert b"Bearer hunter2" in seen[0]
    assert "hunter2" not in repr(question("127.0.0.1:1", probe, values))


def test_a_header_that_could_smuggle_is_a_failed_probe() -> None:
    probe = ReadinessProbe("/", headers={"X": "$KEY"})
    ok, words = asyncio.run(probe_once(answering(b"200 OK"), probe, {"KEY": "a\r\nEvil: 1"}))
    assert not ok
    assert "Evil" not in words


def test_the_prober_nudges_on_change_and_hurries_when_told() -> None:
    async def scenario() -> None:
        healthy = True

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await answering(b"200 OK" if healthy else b"500 Sick")(reader, writer)

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        nudges: asyncio.Queue[None] = asyncio.Queue()
        async with aiohttp.ClientSession() as session:
            prober = Prober(session, SystemClock(), lambda: nudges.put_nowait(None))
            endpoint = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
            prober.follow({7: Question(endpoint, "/", None, {}, 5.0, 3600.0)})
            await asyncio.wait_for(nudges.get(), 5)
            assert prober.results()[7].ok
            healthy = False
            prober.hurry(7)
            await asyncio.wait_for(nudges.get(), 5)
            assert not prober.results()[7].ok
            prober.follow({})
            assert prober.results() == {}
            await prober.close()
        await settle(server)

    asyncio.run(scenario())


def test_the_watch_tells_silence_from_absence_and_whom_a_change_concerns() -> None:
    async def scenario() -> None:
        clock = VirtualClock()
        cloud = FakeProvider(clock)
        changed: list[set[str]] = []
        watch = Watch(cloud, clock, changed.append)
        assert isinstance(watch.answer("chat-u1"), Silent)
        await watch.ask()
        assert watch.answer("chat-u1") == Listing(clock.now(), ())
        cloud.silent = True
        await clock.advance(5)
        await watch.ask()
        since = clock.now()
        await clock.advance(5)
        await watch.ask()
        answer = watch.answer("chat-u1")
        assert isinstance(answer, Silent)
        assert answer.since_at == since
        assert changed == [set(), set()]

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (CapacityUnavailable("x"), OutcomeKind.CAPACITY),
        (QuotaExceeded("x"), OutcomeKind.QUOTA),
        (Throttled("x", retry_after_s=9), OutcomeKind.THROTTLED),
        (CredentialsRejected("x"), OutcomeKind.CREDENTIALS),
        (OrderRejected("x"), OutcomeKind.REJECTED),
        (ProviderUnavailable("x"), OutcomeKind.UNAVAILABLE),
        (ProviderError("x"), OutcomeKind.UNAVAILABLE),
    ],
)
def test_each_provider_error_has_its_reaction(error: ProviderError, kind: OutcomeKind) -> None:
    outcome = refusal("t", error, 5.0)
    assert (outcome.kind, outcome.detail) == (kind, "x")
    assert outcome.retry_after_s == (9 if kind is OutcomeKind.THROTTLED else 0)


def test_files_are_copied_when_the_version_is_given(tmp_path: Path) -> None:
    work = tmp_path / "work"
    (work / ".git").mkdir(parents=True)
    (work / "app.py").write_text("one")
    (tmp_path / "model.bin").write_text("weights")
    files = Files(tmp_path / "home")
    mounts = {"models/model.bin": str(tmp_path / "model.bin")}
    spec = ServiceSpec(name="chat", run="x", workdir=str(work), file_mounts=mounts)
    files.take(spec, 3)
    (work / "app.py").write_text("two")
    assert (files.workdir(3) / "app.py").read_text() == "one"
    assert not (files.workdir(3) / ".git").exists()
    assert files.mount(3, "models/model.bin").read_text() == "weights"
    files.drop(3)
    assert not files.workdir(3).exists()
    with pytest.raises(UsageError, match="is not there"):
        files.take(ServiceSpec(name="chat", run="x", workdir=str(tmp_path / "none")), 4)
