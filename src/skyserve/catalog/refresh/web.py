"""HTTP to a price API: retries with growing pauses, Retry-After, and one error class per thing the user can do. Knows
HTTP; knows no cloud, and no price. Neither query strings nor headers get into messages: keys may be in them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import urlsplit

from skyserve import __version__
from skyserve.catalog.refresh.answer import Answer, Json
from skyserve.clock import Clock
from skyserve.errors import CatalogError, CredentialsRejected, ProviderUnavailable, SkyServeError, Throttled

if TYPE_CHECKING:
    import aiohttp

T = TypeVar("T")

ATTEMPTS = 5
_FIRST_PAUSE_S = 1.0
_LONGEST_PAUSE_S = 120.0
"""A server that asks for more patience than this is not waited for: the user hears of it instead."""

_CONNECT_TIMEOUT_S = 20.0
_SILENCE_TIMEOUT_S = 60.0
_CHUNK_BYTES = 1 << 18
_REFUSAL_BYTES = 4096

_AGAIN = "Run `sky catalog refresh` again: it goes on where it stopped. The last good prices stay in use."


@dataclass(frozen=True, slots=True)
class Request:
    """What to ask. A `body` makes it a POST of JSON. `key_hint` says how to give the key, where one is wanted."""

    url: str
    params: Mapping[str, str] = field(default_factory=dict, repr=False)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    body: Json = None
    key_hint: str | None = None

    @property
    def address(self) -> str:
        """The address without what may hold a secret."""
        parts = urlsplit(self.url)
        return f"{parts.scheme}://{parts.hostname}{f':{parts.port}' if parts.port else ''}{parts.path}"


class BrokenOffError(Exception):
    """For `consume` to raise: the body has ended, and it is not whole. It is asked for again."""


class _Unwell(Exception):
    """This attempt failed, the next may not. `error` is what to raise when there is no next."""

    def __init__(self, error: SkyServeError, pause_s: float | None = None) -> None:
        super().__init__(error.message)
        self.error = error
        self.pause_s = pause_s


class Web:
    """One connection pool for all price APIs."""

    def __init__(self, session: aiohttp.ClientSession, clock: Clock) -> None:
        self._session = session
        self._clock = clock

    async def json(self, request: Request) -> Answer:
        """The JSON answer. Raises Throttled, ProviderUnavailable, CredentialsRejected or CatalogError."""

        async def whole(chunks: AsyncIterator[bytes]) -> bytes:
            return b"".join([chunk async for chunk in chunks])

        return Answer.parse(await self.read(request, whole), request.address)

    async def read(self, request: Request, consume: Callable[[AsyncIterator[bytes]], Awaitable[T]]) -> T:
        """What `consume` makes of the body as it comes; it starts anew when the body breaks off. Errors as `json`."""
        attempt = 1
        while True:
            try:
                return await self._attempt(request, consume)
            except _Unwell as unwell:
                pause_s = _FIRST_PAUSE_S * 2 ** (attempt - 1) if unwell.pause_s is None else unwell.pause_s
                if attempt == ATTEMPTS or pause_s > _LONGEST_PAUSE_S:
                    raise unwell.error from unwell.__cause__
            await self._clock.sleep(pause_s)
            attempt += 1

    async def _attempt(self, request: Request, consume: Callable[[AsyncIterator[bytes]], Awaitable[T]]) -> T:
        import aiohttp

        method = "GET" if request.body is None else "POST"
        try:
            async with self._session.request(
                method,
                request.url,
                params=request.params,
                headers=request.headers,
                json=request.body,
                allow_redirects=request.key_hint is None,  # a key goes to nobody but whom it was meant for
            ) as response:
                if response.status != 200:
                    refusal = await response.content.read(_REFUSAL_BYTES)
                    raise self._refused(request, response.status, response.headers.get("Retry-After"), refusal)
                return await consume(response.content.iter_chunked(_CHUNK_BYTES))
        except (aiohttp.ClientError, TimeoutError, BrokenOffError) as error:
            # The error's own text may quote the whole address, so only its kind is told.
            reason = getattr(error, "strerror", None) or type(error).__name__
            raise _Unwell(ProviderUnavailable(f"{request.address}: no answer ({reason})", hint=_AGAIN)) from error

    def _refused(self, request: Request, status: int, retry_after: str | None, body: bytes) -> Exception:
        said = f"{request.address}: HTTP {status}"
        if status == 429:
            pause_s = self._pause_s(retry_after)
            wait_s = _LONGEST_PAUSE_S if pause_s is None else pause_s
            return _Unwell(Throttled(f"{said}: too many requests", retry_after_s=wait_s, hint=_AGAIN), pause_s)
        if status >= 500 or status == 408:
            return _Unwell(ProviderUnavailable(said, hint=_AGAIN), self._pause_s(retry_after))
        # Google says 400 to a key that it does not know.
        if status in (401, 403) or (status == 400 and b"API key" in body):
            if request.key_hint is not None:
                return CredentialsRejected(f"{said}: the key is not accepted", hint=request.key_hint)
            return CatalogError(f"{said}: refused, although no key is needed there", hint=_AGAIN)
        return CatalogError(
            f"{said}: the price API does not know this request",
            hint="The last good prices stay in use. If this persists, the price API has changed: update SkyServe.",
        )

    def _pause_s(self, retry_after: str | None) -> float | None:
        """Retry-After in seconds, be it written as seconds or as a date; None when absent or unreadable."""
        if not retry_after:
            return None
        if retry_after.strip().isdigit():
            return float(retry_after)
        try:
            return max(0.0, parsedate_to_datetime(retry_after).timestamp() - self._clock.now())
        except ValueError:
            return None


@asynccontextmanager
async def open_web(clock: Clock) -> AsyncIterator[Web]:
    """A Web, closed with all its connections at the end."""
    import aiohttp

    timeout = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_TIMEOUT_S, sock_read=_SILENCE_TIMEOUT_S)
    headers = {"User-Agent": f"skyserve/{__version__}"}
    async with aiohttp.ClientSession(timeout=timeout, headers=headers) as session:
        yield Web(session, clock)


U = TypeVar("U")


async def each(items: Sequence[T], work: Callable[[T], Awaitable[U]], *, at_once: int) -> list[U]:
    """`work` done on every item, at most `at_once` at a time.

    After an error nothing more is begun, but what has begun may end, as it is kept for the next try; then it is raised.
    """
    todo = iter(enumerate(items))
    done: dict[int, U] = {}
    errors: list[SkyServeError] = []

    async def worker() -> None:
        for index, item in todo:
            try:
                done[index] = await work(item)
            except SkyServeError as error:
                errors.append(error)
            if errors:
                return

    async with asyncio.TaskGroup() as group:
        for _ in range(min(at_once, len(items))):
            group.create_task(worker())
    if errors:
        raise errors[0]
    return [done[index] for index in range(len(items))]
