"""Reading engines and the user's metric over real sockets, by a clock that moves when it is told to."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import aiohttp
import pytest
from tests.controller.engine_pages import LLAMA, VLLM
from tests.controller.site import Serving, Site, plain
from tests.load_balancer.test_door_tls import certify

from skyserve.clock import VirtualClock
from skyserve.controller.metric import MetricQuestion
from skyserve.controller.scrape import MOST_BYTES, PAGE_INTERVAL_S, STALE_AFTER_S, Scraper, Unread, fetch
from skyserve.model.scaling import EngineSample, MetricReading
from skyserve.model.service import ReplicaTls


class TurnClock(VirtualClock):
    """A virtual clock that says when somebody has gone to sleep: a turn is over then."""

    def __init__(self) -> None:
        super().__init__()
        self.slept: asyncio.Queue[float] = asyncio.Queue()

    async def sleep(self, seconds: float) -> None:
        self.slept.put_nowait(seconds)
        await super().sleep(seconds)

    async def turn(self, seconds: float = 0.0) -> float:
        """Let time pass, then wait for the end of one reading; how long it pauses then."""
        await self.advance(seconds)
        return await asyncio.wait_for(self.slept.get(), 20)


@dataclass
class Bench:
    site: Site
    clock: TurnClock
    scraper: Scraper
    nudges: list[float]


@asynccontextmanager
async def bench() -> AsyncIterator[Bench]:
    site, clock, nudges = Site(), TurnClock(), list[float]()
    server = await asyncio.start_server(site.serve, "127.0.0.1", 0)
    site.port = server.sockets[0].getsockname()[1]
    async with aiohttp.ClientSession(auto_decompress=False) as session:
        scraper = Scraper(session, clock, lambda: nudges.append(clock.now()))
        try:
            yield Bench(site, clock, scraper, nudges)
        finally:
            await scraper.close()
            server.close()
            await server.wait_closed()


def run(scenario: Callable[[Bench], Awaitable[None]]) -> None:
    async def whole() -> None:
        async with bench() as made:
            await scenario(made)

    asyncio.run(whole())


def test_pages_become_samples_and_tokens_a_rate() -> None:
    async def scenario(b: Bench) -> None:
        b.site.answers["/metrics"] = plain(LLAMA)
        began_at = b.clock.now()
        b.scraper.follow({7: b.site.url("/metrics")}, None)
        assert b.scraper.samples() == {}
        assert await b.clock.turn() == PAGE_INTERVAL_S
        assert b.scraper.samples() == {7: EngineSample(began_at, 5.0, 2.0, 0.125)}
        b.site.answers["/metrics"] = plain(LLAMA.replace(b"5120", b"5220"))
        await b.clock.turn(PAGE_INTERVAL_S)
        assert b.scraper.samples()[7].tokens_per_s == 50.0
        assert b.scraper.reading() is None

    run(scenario)


def test_each_replica_is_read_by_itself() -> None:
    async def scenario(b: Bench) -> None:
        b.site.answers = {"/a": plain(LLAMA), "/b": plain(VLLM)}
        b.scraper.follow({1: b.site.url("/a"), 2: b.site.url("/b"), 3: b.site.url("/none")}, None)
        for _ in range(3):
            await b.clock.turn()
        found = b.scraper.samples()
        assert {id_: sample.waiting for id_, sample in found.items()} == {1: 5.0, 2: 7.0}
        b.scraper.follow({2: b.site.url("/b"), 3: b.site.url("/none")}, None)
        assert b.scraper.samples().keys() == {2}
        b.scraper.follow({2: b.site.url("/a")}, None)
        assert b.scraper.samples() == {}, "another page is another engine"
        await b.clock.turn()
        assert b.scraper.samples()[2].waiting == 5.0

    run(scenario)


def test_silence_is_not_zero_and_old_samples_are_dropped() -> None:
    async def scenario(b: Bench) -> None:
        b.site.answers["/metrics"] = plain(LLAMA)
        b.scraper.follow({7: b.site.url("/metrics")}, None)
        await b.clock.turn()
        b.site.answers["/metrics"] = plain(b"", "500 Oops")
        heard = b.scraper.samples()
        waited_s = 0.0
        while waited_s + PAGE_INTERVAL_S <= STALE_AFTER_S:
            await b.clock.turn(PAGE_INTERVAL_S)
            waited_s += PAGE_INTERVAL_S
            assert b.scraper.samples() == heard
        await b.clock.turn(PAGE_INTERVAL_S)
        assert b.scraper.samples() == {}
        b.site.answers["/metrics"] = plain(LLAMA)
        await b.clock.turn(PAGE_INTERVAL_S)
        assert b.scraper.samples()[7].waiting == 5.0

    run(scenario)


def test_the_loop_is_nudged_when_requests_begin_to_wait() -> None:
    async def scenario(b: Bench) -> None:
        calm, busy = LLAMA.replace(b"deferred 5", b"deferred 0"), LLAMA
        expected = []
        b.site.answers["/metrics"] = plain(calm)
        b.scraper.follow({7: b.site.url("/metrics")}, None)
        await b.clock.turn()
        for page, calls in ((busy, True), (busy, False), (calm, False), (busy, True)):
            b.site.answers["/metrics"] = plain(page)
            await b.clock.turn(PAGE_INTERVAL_S)
            expected += [b.clock.now()] if calls else []
            assert b.nudges == expected

    run(scenario)


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (plain(b"llamacpp:requests_deferred 5\n", "503 Busy"), "it answered 503"),
        (b"HTTP/1.1 302 Found\r\nLocation: /metrics\r\nContent-Length: 0\r\n\r\n", "it answered 302"),
        (b"nonsense\r\n\r\n", "the request failed"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf", "the request failed: ClientPayloadError"),
        (b"HTTP/1.1 200 OK\r\n\r\n" + b"a 1\n" * (MOST_BYTES // 4 + 1), "the answer is longer than 1 MiB"),
        (plain(b"some_other_name 5\n"), "it shows no metric that is understood"),
    ],
    ids=["503", "302", "nonsense", "half", "endless", "strange"],
)
def test_pages_that_cannot_be_read_are_told_once(answer: bytes, why: str, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(b: Bench) -> None:
        b.site.answers["/metrics"] = answer
        b.scraper.follow({7: b.site.url("/metrics")}, None)
        await b.clock.turn()
        await b.clock.turn(PAGE_INTERVAL_S)
        assert all(sample.waiting is None for sample in b.scraper.samples().values())
        assert b.nudges == []
        told = [record.getMessage() for record in caplog.records]
        assert [text.startswith(f"{b.site.url('/metrics')} cannot be read: {why}") for text in told] == [True]

    with caplog.at_level(logging.WARNING, "skyserve.controller.scrape"):
        run(scenario)


def test_what_never_answers_has_its_time() -> None:
    async def scenario() -> None:
        async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read()
            writer.close()

        server = await asyncio.start_server(silent, "127.0.0.1", 0)
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
        async with aiohttp.ClientSession() as session:
            with pytest.raises(Unread, match=r"longer than 0\.1s"):
                await fetch(session, url, {}, 0.1)
            server.close()
            await server.wait_closed()
            with pytest.raises(Unread, match="nothing accepts connections"):
                await fetch(session, url, {}, 5.0)
            with pytest.raises(Unread, match="the request failed"):
                await fetch(session, "http://[broken", {}, 5.0)

    asyncio.run(scenario())


def test_the_page_of_a_replica_that_speaks_tls(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    files = certify(tmp_path, "replica")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(files.certfile, files.keyfile)
    trusting = ReplicaTls(ca_file=files.certfile, server_name="localhost")

    def read(endpoint: str, tls: ReplicaTls) -> bool:
        heard: list[bool] = []

        async def scenario(b: Bench) -> None:
            b.scraper.follow({7: f"https://{endpoint}/metrics"}, None, {7: tls})
            await b.clock.turn()
            heard.append(7 in b.scraper.samples())

        run(scenario)
        return heard[0]

    with Serving(context, LLAMA) as engine:
        assert read(engine.endpoint, trusting)
        assert read(engine.endpoint, ReplicaTls(verify=False))
        assert not read(engine.endpoint, ReplicaTls())
    assert "no TLS connection can be made" in caplog.text


def test_the_users_metric() -> None:
    async def scenario(b: Bench) -> None:
        b.site.answers["/depth"] = plain(b'{"queue": {"length": 120}}')
        headers = {"Authorization": "Bearer hunter2"}
        asked = MetricQuestion(b.site.url("/depth?of=jobs"), None, "$.queue.length", headers, 30.0)
        began_at = b.clock.now()
        b.scraper.follow({}, asked)
        assert b.scraper.reading() is None
        assert await b.clock.turn() == 30.0
        assert b.scraper.reading() == MetricReading(began_at, 120.0)
        assert "GET /depth?of=jobs HTTP/1.1\r\n" in b.site.heads[0]
        assert "Authorization: Bearer hunter2\r\n" in b.site.heads[0]
        await b.clock.turn(30.0)
        assert b.nudges == [began_at], "the number is as before"
        b.site.answers["/depth"] = plain(b'{"queue": {}}')
        await b.clock.turn(30.0)
        assert b.scraper.reading() == MetricReading(began_at + 60, None, "the answer has nothing at $.queue.length")
        assert b.nudges == [began_at, began_at + 60]
        b.scraper.follow({}, None)
        assert b.scraper.reading() is None

    run(scenario)


def test_a_prometheus_query_arrives_as_it_was_written() -> None:
    async def scenario(b: Bench) -> None:
        query = 'sum(rate(x{job="a+b & c"}[1m])) * 100%2'
        body = b'{"status":"success","data":{"resultType":"vector","result":[{"metric":{},"value":[1,"7"]}]}}'
        b.site.answers["/api/v1/query"] = plain(body)
        b.scraper.follow({}, MetricQuestion(b.site.url(""), query, None, {}, 10.0))
        await b.clock.turn()
        reading = b.scraper.reading()
        assert reading is not None
        assert reading.value == 7.0
        target = b.site.heads[0].split()[1]
        assert parse_qs(urlsplit(target).query) == {"query": [query]}

    run(scenario)


def test_secrets_are_in_no_log_and_no_detail(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(b: Bench) -> None:
        for headers in ({"X": "hunter2"}, {"X": "hunter2\r\nY: z"}):
            b.scraper.follow({}, MetricQuestion(b.site.url("/none"), None, None, headers, 10.0))
            await b.clock.turn()
            reading = b.scraper.reading()
            assert reading is not None
            assert reading.value is None
            assert reading.detail
            assert "hunter2" not in reading.detail
        assert caplog.records
        assert all("hunter2" not in record.getMessage() for record in caplog.records)

    with caplog.at_level(logging.DEBUG):
        run(scenario)
