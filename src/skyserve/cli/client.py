"""The control API, as functions: one method per route, views in, views out, the controller's errors raised as ours.

Knows the wire; knows neither how a controller is found nor what is printed.
"""

from __future__ import annotations

import base64
import http.client
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar
from urllib.parse import quote, urlencode, urlsplit

from skyserve import errors
from skyserve.errors import ControllerUnavailable, ProviderError, SkyServeError, SpecError
from skyserve.model.codec import CodecError, JsonValue, from_json, to_json
from skyserve.model.service import ServiceSpec, UpdateMode
from skyserve.model.view import DecisionView, HistoryView, MixView, ProviderView, ServiceView

_T = TypeVar("_T")
_CHUNK = 65536
_COPY_TIMEOUT_S = 600.0  # the controller copies the workdir before it answers
_LOGS_HINT = "sky controller logs"


@dataclass(frozen=True, slots=True)
class ControllerInfo:
    """What a controller says of itself. `started_at` is Unix seconds."""

    pid: int
    version: str
    started_at: float
    home: str
    services: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PlanAnswer:
    """Where a service could run; `refusals` are pairs of an alternative and why nothing can run it. `mix` is what a
    spot service would start with."""

    candidates: tuple[ProviderView, ...]
    refusals: tuple[tuple[str, str], ...] = ()
    warnings: tuple[str, ...] = ()
    mix: MixView | None = None


@dataclass(frozen=True, slots=True)
class HealthView:
    """What is known of the places of one `scope`: not asked before `until_at` (Unix seconds), after `strikes` refusals
    in a row of which the last, at `since_at`, said `why`. `kind` is CAPACITY, QUOTA, THROTTLED or CREDENTIALS."""

    scope: str
    kind: str
    since_at: float
    until_at: float
    strikes: int
    why: str


@dataclass(frozen=True, slots=True)
class LogSource:
    """Which log: `kind` is `replica` (with its id), `load_balancer` or `controller`."""

    kind: str
    replica_id: int | None = None

    @property
    def title(self) -> str:
        """The name that a line of it is prefixed with."""
        return self.kind if self.replica_id is None else f"{self.kind} {self.replica_id}"


@dataclass(frozen=True, slots=True)
class _Services:
    services: tuple[ServiceView, ...]


@dataclass(frozen=True, slots=True)
class _Version:
    version: int


@dataclass(frozen=True, slots=True)
class _VersionedSpec:
    version: int
    spec: ServiceSpec
    latest: int | None = None


@dataclass(frozen=True, slots=True)
class _Health:
    pools: tuple[HealthView, ...]


@dataclass(frozen=True, slots=True)
class _Forgotten:
    forgotten: int


@dataclass(frozen=True, slots=True)
class _Decisions:
    decisions: tuple[DecisionView, ...]


class ControlClient:
    """One controller at `url`. Every call opens its own connection; `timeout_s` bounds each wait for an answer.

    Every method raises ControllerUnavailable when the controller does not answer, Unauthorized when it does not know
    the token, and otherwise the error that the controller itself met.
    """

    def __init__(self, url: str, token: str, *, timeout_s: float = 60.0) -> None:
        parts = urlsplit(url)
        self.url = url
        self._host = parts.hostname or "127.0.0.1"
        self._port = parts.port or 80
        self.token = token
        self._timeout_s = timeout_s

    def controller(self) -> ControllerInfo:
        """What the controller says of itself."""
        return self._view(ControllerInfo, "GET", "/v1/controller")

    def stop(self) -> None:
        """Ask the controller to end; replicas and endpoints go on."""
        self._call("POST", "/v1/controller/stop", {})

    def plan(self, spec: ServiceSpec) -> PlanAnswer:
        """Where a service could run, and at what price."""
        return self._view(PlanAnswer, "POST", "/v1/plan", {"spec": to_json(spec)})

    def create(self, spec: ServiceSpec, secrets: Mapping[str, str]) -> ServiceView:
        """Bring a service up. Raises ServiceExists."""
        body = {"spec": to_json(spec), "secrets": dict(secrets)}
        return self._patient()._view(ServiceView, "POST", "/v1/services", body)

    def update(self, spec: ServiceSpec, secrets: Mapping[str, str], mode: UpdateMode) -> int:
        """Make `spec` the newest version of the service it names; return the version's number."""
        body = {"spec": to_json(spec), "secrets": dict(secrets), "mode": mode.value}
        return self._patient()._view(_Version, "PUT", _path(spec.name), body).version

    def services(self) -> tuple[ServiceView, ...]:
        """Every service."""
        return self._view(_Services, "GET", "/v1/services").services

    def service(self, name: str) -> ServiceView:
        """One service. Raises ServiceNotFound."""
        return self._view(ServiceView, "GET", _path(name))

    def spec(self, name: str) -> tuple[int, int, ServiceSpec]:
        """The version that a service aims for, the number of its latest, and the spec of the former."""
        answer = self._view(_VersionedSpec, "GET", _path(name, "spec"))
        return answer.version, answer.latest or answer.version, answer.spec

    def history(self, name: str) -> HistoryView:
        """The versions of a service. Raises ServiceNotFound."""
        return self._view(HistoryView, "GET", _path(name, "versions"))

    def rollback(self, name: str, to: int, mode: UpdateMode) -> int:
        """Give a service an earlier version anew; the number of the version that it gets."""
        body: JsonValue = {"to": to, "mode": mode.value}
        return self._patient()._view(_Version, "POST", _path(name, "rollback"), body).version

    def down(self, name: str, *, purge: bool) -> None:
        """Take a service down; with `purge` it is forgotten even if something of it cannot be ended."""
        self._call("DELETE", _path(name, purge=int(purge)))

    def remove_replica(self, name: str, replica_id: int) -> None:
        """Remove one replica; the controller replaces it if the service wants as many as before."""
        self._call("DELETE", _path(name, "replicas", str(replica_id)))

    def decisions(
        self, name: str, *, limit: int, after: int | None = None, replica_id: int | None = None
    ) -> tuple[DecisionView, ...]:
        """Entries of the decision log, oldest first: the last `limit`, or the first `limit` after number `after`."""
        path = _path(name, "decisions", after=after, limit=limit, replica=replica_id)
        return self._view(_Decisions, "GET", path).decisions

    def logs(self, name: str, source: LogSource, *, follow: bool, tail: int | None) -> Iterator[bytes]:
        """Pieces of a log as they come; with `follow` until its source is gone."""
        path = _path(name, "logs", source=source.kind, replica=source.replica_id, follow=int(follow), tail=tail)
        connection = self._connect(None if follow else self._timeout_s)
        try:
            response = self._answer(connection, "GET", path, None)
            while piece := _piece(response):
                yield piece
        finally:
            connection.close()

    def halt(self, name: str, *, halted: bool) -> None:
        """Stop the machine of a cluster and keep its disk, or let it go on."""
        self._call("PUT", _path(name, "halted"), {"halted": halted})

    def execute(self, name: str, script: str) -> Iterator[bytes | int]:
        """Run a script on the machine of a cluster: its output as it comes, and at last its exit code."""
        connection = self._connect(None)
        try:
            response = self._answer(connection, "POST", _path(name, "execute"), {"script": script})
            while line := _line(response):
                yield _told(line)
        finally:
            connection.close()

    def health(self) -> tuple[HealthView, ...]:
        """What is known of capacity pools, by scope."""
        return self._view(_Health, "GET", "/v1/infra/health").pools

    def forget_health(self, scope: str | None) -> int:
        """Forget what is known of one scope, or of all; how many entries that were."""
        query = "" if scope is None else f"?{urlencode({'scope': scope})}"
        return self._view(_Forgotten, "DELETE", f"/v1/infra/health{query}").forgotten

    def _patient(self) -> ControlClient:
        return ControlClient(self.url, self.token, timeout_s=_COPY_TIMEOUT_S)

    def _view(self, cls: type[_T], method: str, path: str, body: JsonValue = None) -> _T:
        try:
            return from_json(cls, self._call(method, path, body))
        except CodecError as error:
            raise _misunderstood(str(error)) from error

    def _call(self, method: str, path: str, body: JsonValue = None) -> JsonValue:
        connection = self._connect(self._timeout_s)
        try:
            return _document(self._answer(connection, method, path, body).read())
        except (OSError, http.client.HTTPException) as error:
            raise _unreachable(self.url, error) from error
        finally:
            connection.close()

    def _connect(self, timeout_s: float | None) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(self._host, self._port, timeout=timeout_s)

    def _answer(
        self, connection: http.client.HTTPConnection, method: str, path: str, body: JsonValue
    ) -> http.client.HTTPResponse:
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"}
        payload = None if body is None else json.dumps(body).encode()
        try:
            connection.request(method, path, body=payload, headers=headers)
            response = connection.getresponse()
            refusal = response.read() if response.status >= 400 else b""
        except (OSError, http.client.HTTPException) as error:
            raise _unreachable(self.url, error) from error
        if response.status >= 400:
            raise refused(response.status, refusal)
        return response


def refused(status: int, body: bytes) -> SkyServeError:
    """The exception that the controller's error document stands for."""
    try:
        document = _document(body)
    except ControllerUnavailable:
        document = None
    found = document.get("error") if isinstance(document, dict) else None
    if not isinstance(found, dict):
        return ControllerUnavailable(f"the controller answered with HTTP status {status}", hint=_LOGS_HINT)
    code, message, hint = (found.get(key) for key in ("code", "message", "hint"))
    text = str(message or f"HTTP status {status}")
    advice = str(hint) if hint else None
    cls = _by_code(SkyServeError).get(str(code), SkyServeError)
    if cls is SpecError:
        where, excerpt = found.get("where"), found.get("excerpt")
        return SpecError(text, hint=advice, where=str(where) if where else None, excerpt=str(excerpt or ""))
    if cls is errors.Throttled:  # wants a number that only the controller has a use for
        cls = ProviderError
    return cls(text, hint=advice)


def _by_code(root: type[SkyServeError]) -> dict[str, type[SkyServeError]]:
    found = {root.code: root}
    for child in root.__subclasses__():
        found.update(_by_code(child))
    return found


def _path(name: str, *parts: str, **query: str | int | None) -> str:
    path = "/".join(["/v1/services", quote(name, safe=""), *parts])
    given = {key: value for key, value in query.items() if value is not None}
    return f"{path}?{urlencode(given)}" if given else path


def _piece(response: http.client.HTTPResponse) -> bytes:
    try:
        return response.read1(_CHUNK)
    except (OSError, http.client.HTTPException) as error:
        raise ControllerUnavailable("the log stream broke off", hint="run the command again") from error


def _line(response: http.client.HTTPResponse) -> bytes:
    try:
        return response.readline()
    except (OSError, http.client.HTTPException) as error:
        raise ControllerUnavailable("the output broke off", hint="the script may have been ended with it") from error


def _told(line: bytes) -> bytes | int:
    told = _document(line)
    if isinstance(told, dict):
        data, code, error = told.get("data"), told.get("exit"), told.get("error")
        if isinstance(data, str):
            return base64.b64decode(data)
        if isinstance(code, int):
            return code
        if isinstance(error, str):
            raise ProviderError(error)
    raise _misunderstood("a line of another kind")


def _document(body: bytes) -> JsonValue:
    try:
        document: JsonValue = json.loads(body or b"null")
    except ValueError as error:
        raise _misunderstood("no JSON") from error
    return document


def _misunderstood(what: str) -> ControllerUnavailable:
    return ControllerUnavailable(
        f"the controller's answer is not understood ({what}): is it of another version?",
        hint="`sky controller stop`, then run the command again; replicas and endpoints go on",
    )


def _unreachable(url: str, error: Exception) -> ControllerUnavailable:
    if isinstance(error, TimeoutError):
        return ControllerUnavailable(f"the controller at {url} does not answer in time", hint=_LOGS_HINT)
    return ControllerUnavailable(f"the controller at {url} cannot be reached: {error}", hint=_LOGS_HINT)
