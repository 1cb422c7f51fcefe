"""Talking to one Kubernetes API server: requests, watches and logs, and what its refusals mean.

Plain HTTP over aiohttp: the generated client libraries take a second of CPU to import, and their models refuse fields
that are newer or older than they are. Knows the API's protocol; must not know what the objects are for.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import ssl
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NoReturn

from skyserve.errors import (
    CredentialsRejected,
    OrderRejected,
    ProviderError,
    ProviderUnavailable,
    QuotaExceeded,
    Throttled,
)
from skyserve.providers.kubernetes.objects import Object, listed, number, part, text

if TYPE_CHECKING:
    import aiohttp  # takes a while, and `sky check` may find that nothing is configured

_JSON = {"Content-Type": "application/json"}
_MERGE = {"Content-Type": "application/merge-patch+json"}
_METADATA = {"Accept": "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io"}
_CHANNELS = "v4.channel.k8s.io"
_STDIN, _STATUS = 0, 3
_CONTENTION_TRIES = 5
_PAGE = 500
_READ_TIMEOUT_S = 10.0
_WATCH_S = 240
_REST_S = 0.2
_CHUNK = 65536
_DENIED = re.compile(r'\bUser "(?P<user>[^"]*)" cannot (?P<what>.+)')
_QUOTA = "exceeded quota"


@dataclass(frozen=True, slots=True)
class Access:
    """How a context's API server is reached. `authorization` is a header's value; it is never shown."""

    server: str
    namespace: str
    tls: ssl.SSLContext | bool
    authorization: str | None = field(default=None, repr=False)
    proxy: str | None = None
    server_name: str | None = None


class NotThere(Exception):
    """The object that was asked for does not exist."""


class AlreadyThere(Exception):
    """An object of that name exists."""


class _Changed(Exception):
    """An object was changed by somebody else while it was patched."""


class Outdated(Exception):
    """A watch cannot go on where it stopped: list again."""


class Api:
    """One context's API server. Use it as an asynchronous context manager; connections end with it.

    Methods raise ProviderErrors, and NotThere or AlreadyThere where an object's absence or presence is the answer.
    `where` is the location that refusals reach.
    """

    def __init__(self, context: str, access: Access, where: str) -> None:
        self._context = context
        self._access = access
        self._where = where
        self._session: aiohttp.ClientSession | None = None
        self.namespace = access.namespace

    async def __aenter__(self) -> Api:
        import aiohttp

        headers = {"Accept": "application/json", "User-Agent": "skyserve"}
        if self._access.authorization:
            headers["Authorization"] = self._access.authorization
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=self._access.tls),
            headers=headers,
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=5.0, sock_read=_READ_TIMEOUT_S),
            read_bufsize=2**20,
        )
        return self

    async def __aexit__(self, *exc: object) -> None:
        if self._session is not None:
            await self._session.close()

    def path(self, kind: str, name: str = "") -> str:
        """The path of the namespace's objects of a kind of the core API (`pods`), or of one of them."""
        return f"/api/v1/namespaces/{self.namespace}/{kind}" + (f"/{name}" if name else "")

    async def get(self, path: str, **query: str) -> Object:
        """One object, or whatever else answers at a path."""
        return await self._call("GET", path, query)

    async def find(self, path: str, **query: str) -> list[Object]:
        """All objects of a collection, page by page."""
        return (await self.find_from(path, query))[0]

    async def find_metadata(self, path: str, **query: str) -> list[Object]:
        """All objects of a collection, but only their metadata: of Secrets with files this is far less."""
        return (await self.find_from(path, query, _METADATA))[0]

    async def find_from(
        self, path: str, query: Mapping[str, str], headers: Mapping[str, str] | None = None
    ) -> tuple[list[Object], str]:
        """All objects of a collection, and the resource version from which a watch goes on."""
        found: list[Object] = []
        asked = {**query, "limit": str(_PAGE)}
        while True:
            try:
                page = await self._call("GET", path, asked, headers=headers)
            except Outdated as error:
                raise ProviderUnavailable(f"{self._context}: the list changed too fast to be read") from error
            found += listed(page, "items")
            more = text(page, "metadata", "continue")
            if not more:
                return found, text(page, "metadata", "resourceVersion")
            asked["continue"] = more

    async def create(self, path: str, body: Object) -> Object:
        """Create an object. Raises AlreadyThere."""
        return await self._call("POST", path, {}, body, headers=_JSON)

    async def patch(self, path: str, body: Object) -> Object:
        """Merge `body` into an object."""
        for _ in range(_CONTENTION_TRIES):
            with contextlib.suppress(_Changed):
                return await self._call("PATCH", path, {}, body, headers=_MERGE)
        raise ProviderUnavailable(f"{self._context}: {path} is changed all the time by somebody else")

    async def delete(self, path: str, **query: str) -> Object:
        """Delete an object. Raises NotThere."""
        return await self._call("DELETE", path, query)

    async def watch(
        self, path: str, query: Mapping[str, str], *, since: str, seconds: int = _WATCH_S
    ) -> AsyncIterator[Object]:
        """Events of a collection after a resource version, for `seconds` at most. Raises Outdated."""
        query = {**query, "watch": "1", "resourceVersion": since, "timeoutSeconds": str(seconds)}
        async with self._open("GET", path, query, read_timeout_s=seconds + 5.0) as response:
            async for line in response.content:
                event: object = json.loads(line)
                if text(event, "type") == "ERROR":
                    if number(event, "object", "code") == 410:
                        raise Outdated
                    raise ProviderUnavailable(f"{self._context}: {text(event, 'object', 'message')}")
                yield part(event)

    async def stream(self, path: str, **query: str) -> AsyncIterator[bytes]:
        """The bytes that answer at a path, as they come: a log, which may be quiet for as long as it likes."""
        async with self._open("GET", path, query, read_timeout_s=None) as response:
            async for data in response.content.iter_chunked(_CHUNK):
                yield data

    async def execute(self, path: str, command: Sequence[str], stdin: bytes) -> AsyncIterator[bytes | int]:
        """Run a command in a pod: its output as it comes, then its exit code. It gets `stdin`, which stays open."""
        import aiohttp

        query = [("stdin", "true"), ("stdout", "true"), ("stderr", "true"), *(("command", part) for part in command)]
        async with self._socket(f"{path}/exec", query) as socket:
            await socket.send_bytes(bytes([_STDIN]) + stdin)
            async for message in socket:
                if message.type is not aiohttp.WSMsgType.BINARY or len(message.data) < 2:
                    continue
                if message.data[0] == _STATUS:
                    yield _exit_code(_parsed(message.data[1:]))
                    return
                yield bytes(message.data[1:])
        raise ProviderUnavailable(f"{self._context}: the connection to the pod broke off")

    @contextlib.asynccontextmanager
    async def _socket(
        self, path: str, query: Sequence[tuple[str, str]]
    ) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
        import aiohttp

        if self._session is None:
            raise RuntimeError("the API server is used outside its context")
        with self._patience():
            try:
                async with self._session.ws_connect(
                    f"{self._access.server}{path}",
                    params=query,
                    protocols=(_CHANNELS,),
                    proxy=self._access.proxy,
                    max_msg_size=0,
                ) as socket:
                    yield socket
            except aiohttp.WSServerHandshakeError as error:
                if error.status == 404:
                    raise NotThere(error.message) from error
                raise self._meaning(error.status, error.message, {}) from error

    async def _call(
        self,
        method: str,
        path: str,
        query: Mapping[str, str],
        body: Object | None = None,
        *,
        headers: Mapping[str, str] | None = None,
    ) -> Object:
        async with self._open(method, path, query, body, headers=headers) as response:
            return part(json.loads(await response.read()))

    @contextlib.asynccontextmanager
    async def _open(
        self,
        method: str,
        path: str,
        query: Mapping[str, str],
        body: Object | None = None,
        *,
        headers: Mapping[str, str] | None = None,
        read_timeout_s: float | None = _READ_TIMEOUT_S,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        import aiohttp

        if self._session is None:
            raise RuntimeError("the API server is used outside its context")
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=5.0, sock_read=read_timeout_s)
        data = None if body is None else json.dumps(body).encode()
        with self._patience():
            async with self._session.request(
                method,
                f"{self._access.server}{path}",
                params=query,
                data=data,
                headers=headers,
                timeout=timeout,
                proxy=self._access.proxy,
                server_hostname=self._access.server_name,
            ) as response:
                if response.status >= 400:
                    self._refuse(method, path, response, await response.read())
                yield response

    @contextlib.contextmanager
    def _patience(self) -> Iterator[None]:
        """Whatever keeps the server from answering is silence."""
        import aiohttp

        try:
            yield
        except (aiohttp.ClientConnectorCertificateError, aiohttp.ClientConnectorSSLError) as error:
            raise ProviderUnavailable(
                f"the API server of context {self._context} has a certificate that is not trusted: {error}",
                hint="fetch the kubeconfig anew with your cluster's tool",
            ) from error
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            told = str(error) or type(error).__name__
            raise ProviderUnavailable(
                f"the API server of context {self._context} does not answer: {told}",
                hint=f"kubectl --context {self._context} get nodes",
            ) from error

    def _refuse(self, method: str, path: str, response: aiohttp.ClientResponse, body: bytes) -> NoReturn:
        status = _parsed(body)
        message = text(status, "message") or body[:200].decode(errors="replace").strip() or str(response.reason)
        reason = text(status, "reason")
        if response.status == 404 and method != "POST":
            raise NotThere(message)
        if response.status == 409 and reason == "AlreadyExists":
            raise AlreadyThere(message)
        if response.status == 409 and method == "PATCH":
            raise _Changed(message)
        if response.status == 410:
            raise Outdated
        if response.status == 429:
            raise Throttled(f"{self._context}: {message}", retry_after_s=_seconds(response.headers.get("Retry-After")))
        raise self._meaning(response.status, message, status)

    def _meaning(self, code: int, message: str, status: Object) -> ProviderError:
        """What a refusal calls for."""
        told = f"context {self._context}: {message}"
        denied = _DENIED.search(message)
        if code == 401:
            return CredentialsRejected(
                f"the API server of context {self._context} does not accept the credentials: {message}",
                hint=f"kubectl --context {self._context} auth whoami, and log in anew with your cluster's tool",
            )
        if code == 403 and _QUOTA in message:
            hint = f"kubectl --context {self._context} -n {self.namespace} describe quota"
            return QuotaExceeded(told, hint=hint, location=self._where)
        if code == 403 and denied:
            hint = f"ask your cluster's administrator that {denied['user'] or 'your user'} may {denied['what']}"
            return CredentialsRejected(told, hint=hint)
        if code == 422:
            return OrderRejected(f"context {self._context} refuses the order: {_causes(status) or message}")
        if code >= 500 or code in (408, 409):
            return ProviderUnavailable(told)
        return OrderRejected(told)  # admission policies answer 400 and 403, a namespace that is missing 404


def _exit_code(status: Object) -> int:
    """The exit code that a status tells; whatever could not run at all failed with 126."""
    if text(status, "status") == "Success":
        return 0
    told = [text(one, "message") for one in listed(status, "details", "causes") if text(one, "reason") == "ExitCode"]
    return int(told[0]) if told and told[0].isdigit() else 126


def _parsed(body: bytes) -> Object:
    try:
        return part(json.loads(body))
    except ValueError:
        return {}


def _causes(status: Object) -> str:
    """The paths of the fields that are wrong, and what is wrong with each."""
    causes = listed(status, "details", "causes")
    return "; ".join(f"{text(cause, 'field')}: {text(cause, 'message')}" for cause in causes)


def _seconds(header: str | None) -> float:
    try:
        return max(1.0, float(header or "1"))
    except ValueError:
        return 1.0


async def follow(api: Api, path: str, changed: Callable[[Object], None], **query: str) -> None:
    """Call `changed` with each event of a collection, for ever, or with nothing when some may have been missed.

    ProviderErrors come out.
    """
    while True:
        _, since = await api.find_from(path, query)
        with contextlib.suppress(Outdated):
            while True:
                async for event in api.watch(path, query, since=since):
                    since = text(event, "object", "metadata", "resourceVersion") or since
                    changed(event)
                await asyncio.sleep(_REST_S)
        changed({})  # what happened in between is not told
