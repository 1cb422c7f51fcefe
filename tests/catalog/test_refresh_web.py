"""Fetching: what is tried again and for how long, what is not, and what never gets into a message."""

from __future__ import annotations

import asyncio

import pytest
from aiohttp import web
from tests.catalog.refresh_servers import PriceServer, QuickClock, serving

from skyserve.catalog.refresh.web import ATTEMPTS, Request, each, open_web
from skyserve.errors import CatalogError, CredentialsRejected, ProviderUnavailable, SkyServeError, Throttled


def fetch(server: PriceServer, clock: QuickClock, *, key_hint: str | None = None) -> str:
    async def run() -> str:
        async with serving(server) as url, open_web(clock) as connections:
            request = Request(f"{url}/prices", {"key": "hush"}, {"Authorization": "Bearer hush"}, key_hint=key_hint)
            return (await connections.json(request))["word"].text()

    return asyncio.run(run())


def failing(*faults: web.Response | str) -> PriceServer:
    return PriceServer(lambda asked: {"word": "fine"}, {"/prices": list(faults)})


def test_an_answer_is_read() -> None:
    assert fetch(failing(), QuickClock()) == "fine"


def test_a_server_that_asks_for_patience_gets_it() -> None:
    clock = QuickClock()
    assert fetch(failing(web.Response(status=429, headers={"Retry-After": "7"})), clock) == "fine"
    assert clock.slept == [7]


def test_retry_after_may_be_a_date() -> None:
    clock = QuickClock()
    date = {"Retry-After": "Sun, 22 Nov 2026 12:00:30 GMT"}
    assert fetch(failing(web.Response(status=503, headers=date)), clock) == "fine"
    assert clock.slept == [30]


def test_pauses_grow_without_an_end_to_the_trouble() -> None:
    clock = QuickClock()
    with pytest.raises(ProviderUnavailable, match="HTTP 502"):
        fetch(failing(*[web.Response(status=502) for _ in range(ATTEMPTS)]), clock)
    assert clock.slept == [1, 2, 4, 8]


def test_too_long_a_pause_is_for_the_user_to_decide() -> None:
    clock = QuickClock()
    with pytest.raises(Throttled) as caught:
        fetch(failing(web.Response(status=429, headers={"Retry-After": "3600"})), clock)
    assert caught.value.retry_after_s == 3600
    assert not clock.slept


def test_a_body_that_breaks_off_is_asked_for_again() -> None:
    server = failing("truncated")
    assert fetch(server, QuickClock()) == "fine"
    assert len(server.asked) == 2


def test_what_is_not_json_is_not_asked_for_again() -> None:
    server = failing("malformed")
    with pytest.raises(CatalogError, match="not JSON"):
        fetch(server, QuickClock())
    assert len(server.asked) == 1


@pytest.mark.parametrize(
    "refusal",
    [
        web.Response(status=401),
        web.Response(status=403),
        web.Response(status=400, text='{"error": {"message": "API key not valid. Please pass a valid API key."}}'),
    ],
    ids=["401", "403", "400 as Google says it"],
)
def test_a_key_that_is_not_accepted(refusal: web.Response) -> None:
    with pytest.raises(CredentialsRejected) as caught:
        fetch(failing(refusal), QuickClock(), key_hint="make a key")
    assert caught.value.hint == "make a key"


@pytest.mark.parametrize("status", [401, 404])
def test_other_refusals_are_the_catalogs_trouble(status: int) -> None:
    with pytest.raises(CatalogError, match=f"HTTP {status}"):
        fetch(failing(web.Response(status=status)), QuickClock())


def test_a_key_is_not_carried_to_another_place() -> None:
    server = failing(web.Response(status=302, headers={"Location": "/elsewhere"}))
    with pytest.raises(CatalogError, match="HTTP 302"):
        fetch(server, QuickClock(), key_hint="make a key")
    assert server.paths == ["/prices"]


@pytest.mark.parametrize("fault", [web.Response(status=404), web.Response(status=401), "malformed"])
def test_messages_have_no_query_and_no_key(fault: web.Response | str) -> None:
    with pytest.raises(SkyServeError) as caught:
        fetch(failing(fault), QuickClock(), key_hint="make a key")
    assert "/prices" in caught.value.message
    assert "hush" not in caught.value.message


def test_a_server_that_is_not_there() -> None:
    async def run() -> None:
        async with serving(failing()) as url:
            pass
        async with open_web(QuickClock()) as connections:
            await connections.json(Request(url, {"key": "hush"}))

    with pytest.raises(ProviderUnavailable) as caught:
        asyncio.run(run())
    assert "hush" not in caught.value.message


def test_few_at_a_time_and_in_order() -> None:
    now, most = 0, 0

    async def work(item: int) -> int:
        nonlocal now, most
        now += 1
        most = max(most, now)
        for _ in range(5 - item):
            await asyncio.sleep(0)
        now -= 1
        return item * 10

    assert asyncio.run(each([1, 2, 3, 4], work, at_once=2)) == [10, 20, 30, 40]
    assert most == 2


def test_after_an_error_what_has_begun_is_finished_and_nothing_else_begun() -> None:
    begun: list[int] = []
    ended: list[int] = []

    async def work(item: int) -> None:
        begun.append(item)
        if item == 1:
            raise CatalogError("one")
        for _ in range(5):
            await asyncio.sleep(0)
        ended.append(item)

    with pytest.raises(CatalogError, match="one"):
        asyncio.run(each([2, 1, 3, 4], work, at_once=2))
    assert (begun, ended) == ([2, 1], [2])
