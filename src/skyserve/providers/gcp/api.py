"""GCP's REST API: whose credentials, one call, the end of an operation, and refusals as they come.

Knows HTTP, Google's sign-in and the shape of its answers. Must not know machines, nor what a refusal means to us.
`google.auth` is imported when there are credentials to load, never before.
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import json
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path

from skyserve import __version__
from skyserve.clock import Clock
from skyserve.config import Config
from skyserve.errors import CredentialsRejected, ProviderUnavailable
from skyserve.providers.base import NotConfigured

TITLE = "GCP"
LOGIN_HINT = "gcloud auth application-default login"
PROJECT_HINT = "export GOOGLE_CLOUD_PROJECT=PROJECT, or gcloud auth application-default set-quota-project PROJECT"

_SCOPE = "https://www.googleapis.com/auth/compute"
_MODULES = ("google", "google.auth", "requests")
_CALL_S = 20.0
_CONNECT_S = 8.0
_PAUSE_S = 0.5

Json = Mapping[str, object]
Query = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Account:
    """Who we are there. `bearer` gives a valid access token; it blocks, and raises errors of the ProviderError family.

    `billed` is the project that calls are counted on, where it is not the one that the credentials belong to.
    """

    project: str
    who: str
    bearer: Callable[[], str] = field(repr=False)
    billed: str | None = None


def find_account(config: Config) -> Account:
    """The account that Google's own tools would use here, found without any network. Raises NotConfigured."""
    missing = next((name for name in _MODULES if importlib.util.find_spec(name) is None), None)
    if missing is not None:
        reason = f"its SDK is not installed: there is no Python module {missing}"
        raise NotConfigured(TITLE, reason, "pip install 'skyserve[gcp]'")
    env = config.inherited_env
    folder = env.get("CLOUDSDK_CONFIG") or ".config/gcloud"
    named = env.get("GOOGLE_APPLICATION_CREDENTIALS") or f"{folder}/application_default_credentials.json"
    path = config.user_home / named.removeprefix("~/")  # an absolute path stays as it is
    found = _read_credentials(path)
    project = env.get("GOOGLE_CLOUD_PROJECT") or env.get("CLOUDSDK_CORE_PROJECT")
    project = project or text(found, "project_id") or text(found, "quota_project_id")
    if not project:
        raise NotConfigured(TITLE, f"no project: {path} names none, and GOOGLE_CLOUD_PROJECT is not set", PROJECT_HINT)
    who = text(found, "client_email") or text(found, "account") or text(found, "type").replace("_", " ")
    return Account(project, who, _Bearer(_load(found, path)), text(found, "quota_project_id") or None)


def _read_credentials(path: Path) -> Json:
    try:
        found: object = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise NotConfigured(TITLE, f"there is no {path}", LOGIN_HINT) from error
    except OSError as error:
        raise NotConfigured(TITLE, f"{path} cannot be read: {error.strerror}", LOGIN_HINT) from error
    except ValueError as error:
        raise NotConfigured(TITLE, f"{path} is not JSON: {error}", LOGIN_HINT) from error
    if not isinstance(found, dict) or not found.get("type"):
        raise NotConfigured(TITLE, f"{path} holds no credentials", LOGIN_HINT)
    return found


_LOADERS: Mapping[str, tuple[str, str, bool]] = {
    "service_account": ("google.oauth2.service_account", "from_service_account_info", True),
    "authorized_user": ("google.oauth2.credentials", "from_authorized_user_info", False),
    "external_account": ("google.auth.identity_pool", "from_info", True),
    "impersonated_service_account": (
        "google.auth.impersonated_credentials",
        "from_impersonated_service_account_info",
        True,
    ),
}
"""Module and method for each type of credentials, and whether it wants to be told the scope: a user's has its own."""


def _load(found: Json, path: Path) -> _Credentials:
    kind = text(found, "type")
    if kind not in _LOADERS:
        raise NotConfigured(TITLE, f"{path} holds credentials of an unknown type: {kind}", LOGIN_HINT)
    module, method, scoped = _LOADERS[kind]
    load = getattr(importlib.import_module(module).Credentials, method)
    errors = importlib.import_module("google.auth.exceptions")
    try:
        return _Credentials(load(found, scopes=[_SCOPE]) if scoped else load(found))
    except (ValueError, KeyError, TypeError, errors.GoogleAuthError) as error:
        raise NotConfigured(TITLE, f"{path} holds broken credentials: {error}", LOGIN_HINT) from error


class _Credentials:
    """Google's credentials, which have no types of their own."""

    def __init__(self, inner: object) -> None:
        self._inner = inner

    @property
    def valid(self) -> bool:
        return bool(getattr(self._inner, "valid", False))

    @property
    def token(self) -> str:
        return str(getattr(self._inner, "token", ""))

    def refresh(self) -> None:
        transport = importlib.import_module("google.auth.transport.requests")
        with importlib.import_module("requests").Session() as session:
            getattr(self._inner, "refresh")(transport.Request(session))  # noqa: B009 - an object of unknown type


class _Bearer:
    """An access token that is renewed when it has run out. For threads."""

    def __init__(self, credentials: _Credentials) -> None:
        self._credentials = credentials
        self._lock = threading.Lock()

    def __call__(self) -> str:
        errors = importlib.import_module("google.auth.exceptions")
        with self._lock:
            try:
                if not self._credentials.valid:
                    self._credentials.refresh()
            except errors.TransportError as error:
                raise ProviderUnavailable(f"Google's sign-in does not answer: {error}") from error
            except errors.GoogleAuthError as error:
                if getattr(error, "retryable", False):
                    raise ProviderUnavailable(f"Google's sign-in does not answer: {error}") from error
                raise CredentialsRejected(f"Google does not renew the login: {error}", hint=LOGIN_HINT) from error
            return self._credentials.token


class Refusal(Exception):
    """What the API, or an operation, said no with. `reason` is its code; `status` is HTTP's, 0 where there is none."""

    def __init__(self, status: int, reason: str, message: str, retry_after_s: float = 0.0) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason
        self.message = message
        self.retry_after_s = retry_after_s


class Compute:
    """The API of one project: one call, and the end of an operation."""

    def __init__(self, account: Account, endpoint: str, clock: Clock) -> None:
        self._account = account
        self._base = f"{endpoint.rstrip('/')}/projects/{account.project}"
        self._clock = clock

    async def call(
        self,
        method: str,
        path: str,
        body: Json | None = None,
        params: Query | None = None,
        version: str | None = None,
    ) -> Json:
        """The answer. Raises `Refusal`, or ProviderUnavailable where there is none. Few methods have a `version`."""
        import aiohttp  # takes a while, and `sky check` may find that nothing is configured

        token = await asyncio.to_thread(self._account.bearer)
        headers = {"Authorization": f"Bearer {token}", "User-Agent": f"skyserve/{__version__}"}
        if self._account.billed:
            headers["X-Goog-User-Project"] = self._account.billed
        if version:
            headers["X-Goog-Api-Version"] = version
        timeout = aiohttp.ClientTimeout(total=_CALL_S, sock_connect=_CONNECT_S)
        url = f"{self._base}/{path}".rstrip("/")
        try:
            # A session for each call: there are few, and nobody would tell us when to close a lasting one.
            async with (
                aiohttp.ClientSession(timeout=timeout) as session,
                session.request(
                    method, url, json=body, params=params, headers=headers, allow_redirects=False
                ) as response,
            ):
                status, data = response.status, await response.read()
                retry_after = response.headers.get("Retry-After", "")
        except (aiohttp.ClientError, TimeoutError) as error:
            raise ProviderUnavailable(f"GCP does not answer: {str(error) or type(error).__name__}") from error
        answer = parsed(data)
        if status >= HTTPStatus.BAD_REQUEST:
            raise _refusal(status, answer, float(retry_after) if retry_after.isdigit() else 0.0)
        if answer is None:
            raise ProviderUnavailable(f"GCP's answer to {method} {path} is not a JSON object")
        return answer

    async def follow(self, scope: str, operation: Json, limit_s: float) -> Json:
        """The operation when it is done, or as it was last seen when the limit is reached or nobody answers.

        `scope` is `zones/ZONE` or `global`. Raises `Refusal` when it is done and has failed.
        """
        try:
            async with asyncio.timeout(limit_s):
                while text(operation, "status") != "DONE":
                    operation = await self.call("POST", f"{scope}/operations/{text(operation, 'name')}/wait")
                    if text(operation, "status") != "DONE":  # the API may answer early
                        await self._clock.sleep(_PAUSE_S)
        except (TimeoutError, ProviderUnavailable, Refusal):  # it goes on whether or not we hear of it
            return operation
        failure = failure_of(operation)
        if failure is not None:
            raise failure
        return operation


def parsed(data: bytes) -> Json | None:
    """A JSON object; None where it is not one."""
    try:
        answer: object = json.loads(data or b"{}")
    except ValueError:
        return None
    return answer if isinstance(answer, dict) else None


def _refusal(status: int, answer: Json | None, retry_after_s: float) -> Refusal:
    error = at(answer, "error")
    first = next(iter(entries(error, "errors")), None)
    detailed = next((text(one, "reason") for one in entries(error, "details") if text(one, "reason")), "")
    reason = text(first, "reason") or detailed or text(error, "status")
    return Refusal(status, reason, text(error, "message") or f"HTTP {status}", retry_after_s)


def failure_of(operation: Json) -> Refusal | None:
    """Why an operation failed, None while it is under way or when it went well."""
    first = next(iter(entries(operation, "error", "errors")), None)
    if first is None:
        return None
    status = operation.get("httpErrorStatusCode")
    message = text(first, "message") or text(operation, "httpErrorMessage")
    return Refusal(status if isinstance(status, int) else 0, text(first, "code"), message)


def at(data: object, *path: str) -> object:
    """What is there below these keys, None if it is not there."""
    for key in path:
        data = data.get(key) if isinstance(data, Mapping) else None
    return data


def text(data: object, *path: str) -> str:
    """The text there; empty if there is none."""
    found = at(data, *path)
    return found if isinstance(found, str) else ""


def entries(data: object, *path: str) -> list[object]:
    """The list there; empty if there is none."""
    found = at(data, *path)
    return found if isinstance(found, list) else []


def mapping(data: object, *path: str) -> dict[str, object]:
    """The object there; empty if there is none."""
    found = at(data, *path)
    return found if isinstance(found, dict) else {}
