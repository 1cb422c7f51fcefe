"""Price APIs on loopback, in the shapes that the real ones have, and the faults that they have now and then."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from aiohttp import web

from skyserve.catalog.refresh.feed import Progress, Setting, Steps
from skyserve.catalog.refresh.web import open_web
from skyserve.catalog.row import Row
from skyserve.catalog.snapshot import current

TODAY = "2026-11-22"
NOW = 1_795_348_800.0


class QuickClock:
    """Sleeping takes no time, but is remembered, and moves the hour."""

    def __init__(self, start: float = NOW) -> None:
        self.at = start
        self.slept: list[float] = []

    def now(self) -> float:
        return self.at

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.at += seconds
        await asyncio.sleep(0)


@dataclass(frozen=True)
class Asked:
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: str


Answers = Callable[[Asked], object]
"""JSON for the request, or bytes as they are, or a response of one's own."""


@dataclass
class PriceServer:
    """Answers by `answers`; before that a path has its `faults`, one a request."""

    answers: Answers
    faults: dict[str, list[web.Response | str]] = field(default_factory=dict)
    asked: list[Asked] = field(default_factory=list)

    @property
    def paths(self) -> list[str]:
        return [asked.path for asked in self.asked]

    async def handle(self, request: web.Request) -> web.StreamResponse:
        asked = Asked(request.path, dict(request.query), dict(request.headers), await request.text())
        self.asked.append(asked)
        faults = self.faults.get(request.path, [])
        if faults:
            fault = faults.pop(0)
            if isinstance(fault, web.Response):
                return fault
            return await _spoiled(request, fault, _body(self.answers(asked)))
        answer = self.answers(asked)
        return answer if isinstance(answer, web.Response) else web.Response(body=_body(answer))


def _body(answer: object) -> bytes:
    return answer if isinstance(answer, bytes) else json.dumps(answer).encode()


async def _spoiled(request: web.Request, fault: str, body: bytes) -> web.StreamResponse:
    if fault == "malformed":
        return web.Response(body=body[: len(body) // 2])
    response = web.StreamResponse(headers={"Content-Length": str(len(body))})
    await response.prepare(request)
    await response.write(body[: len(body) // 2])
    if request.transport is not None:
        request.transport.close()  # the body breaks off in the middle
    return response


@asynccontextmanager
async def serving(server: PriceServer) -> AsyncIterator[str]:
    """The server's address while it runs."""
    application = web.Application()
    application.router.add_route("*", "/{anything:.*}", server.handle)
    runner = web.AppRunner(application, shutdown_timeout=1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@asynccontextmanager
async def setting_for(
    server: PriceServer, cloud: str, known: tuple[Row, ...] = (), clock: QuickClock | None = None
) -> AsyncIterator[Setting]:
    """What a feed needs to talk to the server and nobody else."""
    clock = clock or QuickClock()
    async with serving(server) as url, open_web(clock) as connections:
        yield Setting(connections, clock, known=known, base_urls={cloud: url, f"{cloud}-spot-advisor": url})


def silent_steps(cloud: str) -> Steps:
    return Steps(cloud, lambda progress: None)


class Watcher:
    """Keeps all progress that it is told."""

    def __init__(self) -> None:
        self.seen: list[Progress] = []

    def __call__(self, progress: Progress) -> None:
        self.seen.append(progress)


def known_row(cloud: str, instance_type: str, region: str, **others: object) -> Row:
    """A last good row; of no accelerator, unless said."""
    row = Row(cloud, instance_type, region, None, None, 0, None, 4, 16, "x86_64", 1.0, None, None, "2026-01-01", "old")
    return row._replace(**others)


def rows_in_use(home: Path, cloud: str) -> list[Row]:
    return [row for row in current(home).rows() if row.cloud == cloud]
