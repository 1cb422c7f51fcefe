"""Reads the engines' metrics and the user's, beside the loop: one task for each, so that a slow one delays nobody.

What is not heard is not made up: a page that cannot be read gives no sample, a metric that cannot be read no value.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Mapping

import aiohttp

from skyserve.clock import Clock
from skyserve.controller.engines import Page, read_page, sampled
from skyserve.controller.metric import MetricQuestion, NoNumber, number_in
from skyserve.model.scaling import EngineSample, MetricReading
from skyserve.model.service import ReplicaTls
from skyserve.trust import context_for

PAGE_INTERVAL_S = 2.0
PAGE_TIMEOUT_S = 5.0
METRIC_TIMEOUT_S = 10.0
STALE_AFTER_S = 15.0
"""An engine that has said nothing for so long is silent."""
MOST_BYTES = 1024 * 1024

_PAGE_HEADERS = {"Accept": "text/plain", "Accept-Encoding": "identity"}

log = logging.getLogger(__name__)


class Unread(Exception):
    """There was no answer; the text says why, without anything secret."""


class Scraper:
    """Reads for one service. `nudge` is called when what was read calls for a decision now."""

    def __init__(self, session: aiohttp.ClientSession, clock: Clock, nudge: Callable[[], None]) -> None:
        self._session = session
        self._clock = clock
        self._nudge = nudge
        self._pages: dict[int, tuple[tuple[str, ReplicaTls | None], asyncio.Task[None]]] = {}
        self._metric: tuple[MetricQuestion, asyncio.Task[None]] | None = None
        self._samples: dict[int, EngineSample] = {}
        self._reading: MetricReading | None = None
        self._troubles: dict[str, str] = {}

    def samples(self) -> Mapping[int, EngineSample]:
        """What each replica's engine said last, unless that is too long ago."""
        since_at = self._clock.now() - STALE_AFTER_S
        return {id_: sample for id_, sample in self._samples.items() if sample.at >= since_at}

    def reading(self) -> MetricReading | None:
        """The user's metric as last read; None before that, and when there is none."""
        return self._reading

    def follow(
        self,
        pages: Mapping[int, str],
        metric: MetricQuestion | None,
        tls: Mapping[int, ReplicaTls] | None = None,
    ) -> None:
        """Read exactly these from now on: pages by replica id, and how to speak TLS to those that do. What changed, or
        whose task broke, starts afresh."""
        asked = {id_: (url, None if tls is None else tls.get(id_)) for id_, url in pages.items()}
        for replica_id, (page, task) in list(self._pages.items()):
            if asked.get(replica_id) != page or task.done():
                task.cancel()
                del self._pages[replica_id]
                self._samples.pop(replica_id, None)
                self._troubles.pop(page[0], None)
        for replica_id, page in asked.items():
            if replica_id not in self._pages:
                self._pages[replica_id] = (page, _started(self._read_for_ever(replica_id, *page)))
        if self._metric is not None and (self._metric[0] != metric or self._metric[1].done()):
            self._metric[1].cancel()
            self._metric, self._reading = None, None
        if metric is not None and self._metric is None:
            self._metric = (metric, _started(self._ask_for_ever(metric)))

    async def close(self) -> None:
        """Stop reading."""
        tasks = [task for _, task in self._pages.values()]
        if self._metric is not None:
            tasks.append(self._metric[1])
        self.follow({}, None)
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _read_for_ever(self, replica_id: int, url: str, tls: ReplicaTls | None) -> None:
        before: Page | None = None
        before_at = 0.0
        while True:
            at = self._clock.now()
            try:
                page = await self._page(url, tls)
            except Unread as error:
                self._tell(url, str(error))
            else:
                self._tell(url, "" if page.tells_anything else "it shows no metric that is understood")
                self._heard(replica_id, sampled(page, at, before, before_at))
                before, before_at = page, at
            await self._clock.sleep(PAGE_INTERVAL_S)

    async def _page(self, url: str, tls: ReplicaTls | None) -> Page:
        status, body = await fetch(self._session, url, _PAGE_HEADERS, PAGE_TIMEOUT_S, tls=tls)
        if status != 200:
            raise Unread(f"it answered {status}")
        return read_page(body)

    def _heard(self, replica_id: int, sample: EngineSample) -> None:
        before = self._samples.get(replica_id)
        self._samples[replica_id] = sample
        if sample.waiting and not (before is not None and before.waiting):
            self._nudge()

    async def _ask_for_ever(self, asked: MetricQuestion) -> None:
        while True:
            at = self._clock.now()
            value, detail = await self._value(asked)
            before, self._reading = self._reading, MetricReading(at, value, detail)
            self._tell(asked.shown, detail)
            if before is None or before.value != value:
                self._nudge()
            await self._clock.sleep(asked.interval_s)

    async def _value(self, asked: MetricQuestion) -> tuple[float | None, str]:
        try:
            headers = {"Accept-Encoding": "identity", **asked.headers}
            status, body = await fetch(self._session, asked.address, headers, METRIC_TIMEOUT_S, asked.parameters)
            return number_in(asked, status, body), ""
        except (Unread, NoNumber) as error:
            return None, str(error)

    def _tell(self, what: str, trouble: str) -> None:
        """Log what cannot be read, once for each reason."""
        if trouble and self._troubles.get(what) != trouble:
            log.warning("%s cannot be read: %s", what, trouble)
        self._troubles[what] = trouble


async def fetch(
    session: aiohttp.ClientSession,
    url: str,
    headers: Mapping[str, str],
    timeout_s: float,
    parameters: Mapping[str, str] | None = None,
    tls: ReplicaTls | None = None,
) -> tuple[int, bytes]:
    """Status and body of one GET, never redirected: headers may be secret. `tls` is for a replica that speaks it.
    Raises Unread."""
    try:
        async with session.get(
            url,
            params=parameters,
            headers=headers,
            timeout=aiohttp.ClientTimeout(total=timeout_s),
            allow_redirects=False,
            ssl=context_for(tls) if tls else True,
            server_hostname=tls.server_name if tls else None,
        ) as response:
            return response.status, await _bounded(response)
    except TimeoutError:
        raise Unread(f"it took longer than {timeout_s:g}s") from None
    except aiohttp.ClientSSLError:
        raise Unread("no TLS connection can be made: is the certificate one that this machine trusts?") from None
    except aiohttp.ClientConnectorError:
        raise Unread("nothing accepts connections there") from None
    except (aiohttp.ClientError, OSError, ValueError) as error:
        raise Unread(f"the request failed: {type(error).__name__}") from None


async def _bounded(response: aiohttp.ClientResponse) -> bytes:
    body = bytearray()
    async for chunk in response.content.iter_any():
        body += chunk
        if len(body) > MOST_BYTES:
            raise Unread("the answer is longer than 1 MiB")
    return bytes(body)


def _started(work: Coroutine[None, None, None]) -> asyncio.Task[None]:
    return asyncio.create_task(work)
