"""What clouds with a small HTTP API and a bearer key need: JSON calls whose refusals are errors of the ProviderError
family, launches that happen once per token where the API knows no such thing, and answers kept for a few seconds.
Knows HTTP; must not know any cloud."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar
from weakref import WeakValueDictionary

from skyserve import __version__
from skyserve.catalog.refresh.answer import Answer, Json
from skyserve.clock import Clock
from skyserve.errors import (
    CatalogError,
    CredentialsRejected,
    OrderRejected,
    ProviderError,
    ProviderUnavailable,
    Throttled,
)
from skyserve.providers.vm_cloud import Vm

T = TypeVar("T")

TIMEOUT_S = 25.0
"""How long one call may take in all, in seconds."""

_CONNECT_TIMEOUT_S = 10.0
_RETRY_AFTER_S = 10.0
_QUOTED = 300  # characters of a cloud's own words in a message


@dataclass(frozen=True, slots=True)
class Refusal:
    """An answer that is not a success: `said` is what the cloud says of it in words, `body` its JSON (null if none)."""

    status: int
    said: str
    body: Answer


Explain = Callable[[Refusal], ProviderError | None]


@dataclass(frozen=True, slots=True)
class Account:
    """Where a cloud's API is and who asks. `origin` says where the key was found, `key_hint` how to give another."""

    title: str
    url: str
    key: str = field(repr=False)
    origin: str
    key_hint: str


class Rest:
    """Calls to one API. Each has a connection of its own: calls are seconds apart, and so there is nothing to close.

    `explain` turns the refusals that the cloud has a code for into errors; None leaves one to the HTTP status.
    """

    def __init__(self, account: Account, explain: Explain, timeout_s: float = TIMEOUT_S) -> None:
        self._account = account
        self._explain = explain
        self._timeout_s = timeout_s

    async def ask(
        self,
        call: str,
        read: Callable[[Answer], T],
        *,
        body: Json = None,
        params: Mapping[str, str] | None = None,
    ) -> T:
        """What `read` makes of the JSON answer to a call such as `GET /things`.

        `read` may raise errors of the ProviderError family; an answer of another shape than it expects counts as none.
        """
        status, retry_after, text = await self._send(call, body, params)
        if not 200 <= status < 300:
            raise self._refused(call, status, retry_after, text)
        try:
            return read(Answer.parse(text or b"null", call))
        except (CatalogError, LookupError, ValueError) as error:
            raise ProviderUnavailable(f"{self._account.title}: not the answer that was expected: {error}") from error

    async def tell(self, call: str, *, body: Json = None) -> None:
        """A call of whose answer nothing is needed but that it is not a refusal."""
        await self.ask(call, lambda _: None, body=body)

    async def end(self, call: str, *, body: Json = None) -> None:
        """A call that ends something. Fine when there is no such thing."""
        status, retry_after, text = await self._send(call, body, None)
        if status != 404 and not 200 <= status < 300:
            raise self._refused(call, status, retry_after, text)

    async def _send(self, call: str, body: Json, params: Mapping[str, str] | None) -> tuple[int, str | None, bytes]:
        import aiohttp  # takes a while, and `sky check` may find that nothing is configured

        method, path = call.split(" ", 1)
        timeout = aiohttp.ClientTimeout(total=self._timeout_s, sock_connect=_CONNECT_TIMEOUT_S)
        headers = {"Authorization": f"Bearer {self._account.key}", "User-Agent": f"skyserve/{__version__}"}
        try:
            async with (
                aiohttp.ClientSession(timeout=timeout, headers=headers) as session,
                session.request(
                    method,
                    f"{self._account.url}{path}",
                    params=params,
                    json=body,
                    allow_redirects=False,  # a key goes to nobody but whom it was meant for
                ) as response,
            ):
                return response.status, response.headers.get("Retry-After"), await response.read()
        except (aiohttp.ClientError, TimeoutError) as error:
            reason = getattr(error, "strerror", None) or type(error).__name__
            raise ProviderUnavailable(f"{self._account.title}: no answer to {call} ({reason})") from error

    def _refused(self, call: str, status: int, retry_after: str | None, text: bytes) -> ProviderError:
        refusal = _refusal(call, status, text)
        said = f"{self._account.title}: {call}: HTTP {status}{f': {refusal.said}' if refusal.said else ''}"
        try:
            known = self._explain(refusal)
        except CatalogError:  # an error page of somebody in between, by its shape
            known = None
        if known is not None:
            return known
        if status == 429:
            wait_s = float(retry_after) if retry_after and retry_after.strip().isdigit() else _RETRY_AFTER_S
            return Throttled(said, retry_after_s=max(1.0, wait_s))
        if status in (401, 403):
            return CredentialsRejected(said, hint=self._account.key_hint)
        if 400 <= status < 500 and status != 408:
            return OrderRejected(said)
        return ProviderUnavailable(said)


def _refusal(call: str, status: int, text: bytes) -> Refusal:
    try:
        body = Answer.parse(text or b"null", call)
    except CatalogError:
        body = Answer(None, call)
    try:
        said = _words(body)
    except CatalogError:
        said = ""
    return Refusal(status, said, body)


def _words(body: Answer) -> str:
    """What an error's JSON says in words: `{error: {message}}`, `{error}`, `{detail, errors: [...]}` or `{message}`."""
    if "error" in body:
        inner = body["error"]
        try:
            return inner.text()[:_QUOTED]
        except CatalogError:
            return inner["message"].text_or("")[:_QUOTED]
    for key in ("detail", "message", "title"):
        if key in body:
            more = body["errors"].elements() if "errors" in body else []
            return " ".join([body[key].text(), *(one.text() for one in more)])[:_QUOTED]
    return ""


class Launches:
    """Makes a launch happen once per token where the API knows no such thing: one at a time, after a look whether it
    has happened already. What was just launched is known for `unseen_s` seconds although no listing shows it yet."""

    def __init__(self, clock: Clock, unseen_s: float = 60.0) -> None:
        self._clock = clock
        self._unseen_s = unseen_s
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._fresh: dict[str, tuple[Vm, float]] = {}

    async def once(
        self,
        token: str,
        machines: Callable[[], Awaitable[Sequence[Vm]]],
        launch: Callable[[], Awaitable[Vm]],
    ) -> Vm:
        """The machine of that token: the one that `machines` lists, or was just launched, or a new one by `launch`."""
        async with self._turns.setdefault(token, asyncio.Lock()):
            known = next((vm for vm in await machines() if vm.token == token), None)
            now = self._clock.now()
            self._fresh = {key: one for key, one in self._fresh.items() if now - one[1] < self._unseen_s}
            if known is None and token in self._fresh:
                known, _ = self._fresh[token]
            if known is None:
                known = await launch()
                self._fresh[token] = (known, self._clock.now())
            return known


class Kept(Generic[T]):
    """Answers by what was asked, each used for `for_s` seconds instead of asking again."""

    def __init__(self, clock: Clock, for_s: float) -> None:
        self._clock = clock
        self._for_s = for_s
        self._known: dict[str, tuple[T, float]] = {}

    async def get(self, what: str, ask: Callable[[], Awaitable[T]]) -> T:
        """What is known of `what`, or what `ask` answers now."""
        if what in self._known and self._clock.now() - self._known[what][1] < self._for_s:
            return self._known[what][0]
        answer = await ask()
        self._known[what] = (answer, self._clock.now())
        return answer
