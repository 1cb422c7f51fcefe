"""The control API: what the command line (and later the dashboard) asks the controller. Loopback, with a token."""

from __future__ import annotations

import asyncio
import base64
import hmac
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Annotated

from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse

from skyserve import __version__
from skyserve.controller import logs
from skyserve.controller.history import history_view
from skyserve.controller.supervisor import Supervisor
from skyserve.controller.views import decision_views, provider_views, service_view
from skyserve.decide.optimize import rank
from skyserve.errors import (
    CapacityUnavailable,
    Conflict,
    Infeasible,
    ProviderError,
    ServiceExists,
    ServiceNotFound,
    SkyServeError,
    StoreError,
    Unauthorized,
    UsageError,
)
from skyserve.model.codec import CodecError, from_json, to_json
from skyserve.model.health import Cooldown
from skyserve.model.service import ServiceSpec, UpdateMode
from skyserve.model.view import ServiceView
from skyserve.providers.base import Exit

_STATUS: tuple[tuple[type[SkyServeError], int], ...] = (
    (Unauthorized, 401),
    (ServiceNotFound, 404),
    (ServiceExists, 409),
    (Conflict, 409),
    (Infeasible, 422),
    (CapacityUnavailable, 422),
    (UsageError, 400),
    (StoreError, 503),
)

Count = Annotated[int, Query(ge=0, le=2**53)]
"""A number in a query, within what JSON and every database can hold."""


@dataclass(frozen=True, slots=True)
class Identity:
    """What the API says of the controller itself; `stop` asks it to leave."""

    pid: int
    started_at: float
    token: str
    stop: Callable[[], None]


def build(supervisor: Supervisor, identity: Identity) -> FastAPI:
    """The application. Every route needs the token; every error is `{"error": {code, message, hint}}`."""
    app = FastAPI(title="SkyServe control API", version=__version__, docs_url=None, redoc_url=None, openapi_url=None)

    @app.middleware("http")
    async def authorize(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        sent = request.headers.get("authorization", "").removeprefix("Bearer ")
        if not hmac.compare_digest(sent.encode(), identity.token.encode()):
            return _answer(Unauthorized("the control API does not know this token"))
        return await call_next(request)

    @app.exception_handler(SkyServeError)
    async def explain(_request: Request, error: SkyServeError) -> Response:
        return _answer(error)

    @app.exception_handler(RequestValidationError)
    async def refuse(_request: Request, error: RequestValidationError) -> Response:
        wrong = "; ".join(f"{problem['loc'][-1]}: {problem['msg']}" for problem in error.errors())
        return _answer(UsageError(f"the request cannot be understood: {wrong}"))

    @app.exception_handler(404)
    @app.exception_handler(405)
    async def miss(request: Request, _error: Exception) -> Response:
        hint = "a controller of another version may be running: `sky controller stop` ends it"
        return _answer(UsageError(f"there is no {request.method} {request.url.path} here", hint=hint))

    _controller_routes(app, supervisor, identity)
    _service_routes(app, supervisor)
    _change_routes(app, supervisor)
    _version_routes(app, supervisor)
    _infra_routes(app, supervisor)
    return app


def _answer(error: SkyServeError) -> JSONResponse:
    status = next((status for cls, status in _STATUS if isinstance(error, cls)), 500)
    body = {"error": {"code": error.code, "message": error.message, "hint": error.hint}}
    return JSONResponse(body, status_code=status)


def _controller_routes(app: FastAPI, supervisor: Supervisor, identity: Identity) -> None:
    @app.get("/v1/controller")
    async def controller() -> JSONResponse:
        return JSONResponse(
            {
                "pid": identity.pid,
                "version": __version__,
                "started_at": identity.started_at,
                "home": str(supervisor.config.home),
                "services": supervisor.names(),
            }
        )

    @app.post("/v1/controller/stop")
    async def stop() -> JSONResponse:
        identity.stop()
        return JSONResponse({})


def _service_routes(app: FastAPI, supervisor: Supervisor) -> None:
    async def view(name: str) -> ServiceView:
        load, trouble = supervisor.condition(name)
        state = await supervisor.store.load(name)
        host, now = supervisor.config.endpoint_host, supervisor.clock.now()
        return service_view(state, host=host, now=now, load=load, trouble=trouble)

    @app.get("/v1/services")
    async def services() -> JSONResponse:
        shown = []
        for name in await supervisor.store.services():
            try:
                shown.append(to_json(await view(name)))
            except ServiceNotFound:
                continue  # it went away between the two questions
        return JSONResponse({"services": shown})

    @app.get("/v1/services/{name}")
    async def service(name: str) -> JSONResponse:
        return JSONResponse(to_json(await view(name)))

    @app.get("/v1/services/{name}/decisions")
    async def decisions(
        name: str, after: Count = 0, limit: Count | None = None, replica: Count | None = None
    ) -> JSONResponse:
        entries = await supervisor.store.decisions(name, after=after, limit=limit if replica is None else None)
        lines = [to_json(line) for line in decision_views(entries, replica)]
        return JSONResponse({"decisions": lines[-limit:] if limit else lines})

    @app.get("/v1/services/{name}/logs")
    async def output(
        name: str,
        replica: Count | None = None,
        source: str = "replica",
        follow: bool = False,
        tail: Count | None = None,
    ) -> Response:
        wanted = logs.Wanted(name, source, replica, follow, tail)
        stream = await logs.open_stream(supervisor, wanted)
        return StreamingResponse(_until_gone(stream), media_type="text/plain")


def _version_routes(app: FastAPI, supervisor: Supervisor) -> None:
    @app.get("/v1/services/{name}/spec")
    async def spec(name: str) -> JSONResponse:
        state = await supervisor.store.load(name)
        aim = state.memory.rollout.aim(state.latest_version)
        return JSONResponse({"version": aim, "latest": state.latest_version, "spec": to_json(state.specs[aim])})

    @app.get("/v1/services/{name}/versions")
    async def versions(name: str) -> JSONResponse:
        state, stored = await supervisor.store.load(name), await supervisor.store.versions(name)
        return JSONResponse(to_json(history_view(state, stored)))

    @app.put("/v1/services/{name}")
    async def update(name: str, request: Request) -> JSONResponse:
        spec, body = await _spec(request)
        if spec.name != name:
            raise UsageError(f"the spec is named {spec.name!r}, not {name!r}")
        mode = _mode(body.get("mode", "rolling"))
        return JSONResponse({"version": await supervisor.update(spec, _secrets(spec, body), mode)})

    @app.post("/v1/services/{name}/rollback")
    async def rollback(name: str, request: Request) -> JSONResponse:
        body = await _object_of(request)
        to = body.get("to")
        if to is not None and (isinstance(to, bool) or not isinstance(to, int)):
            raise UsageError("`to` is no number of a version")
        mode = _mode(body.get("mode", "rolling"))
        return JSONResponse({"version": await supervisor.rollback(name, to, mode)})


def _infra_routes(app: FastAPI, supervisor: Supervisor) -> None:
    @app.get("/v1/infra/health")
    async def health() -> JSONResponse:
        entries = await supervisor.store.health()
        return JSONResponse({"pools": [{"scope": entry.scope, **_object(entry)} for entry in entries]})

    @app.delete("/v1/infra/health")
    async def forget(scope: str | None = None) -> JSONResponse:
        return JSONResponse({"forgotten": await supervisor.forget_health(scope)})


def _object(entry: Cooldown) -> dict[str, object]:
    shown = to_json(entry)
    return dict(shown) if isinstance(shown, dict) else {}


async def _until_gone(stream: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    try:
        async for chunk in stream:
            yield chunk
    except asyncio.CancelledError:
        return


def _change_routes(app: FastAPI, supervisor: Supervisor) -> None:
    @app.post("/v1/plan")
    async def plan(request: Request) -> JSONResponse:
        spec, _ = await _spec(request)
        offered, warnings = await supervisor.plan(spec)
        mix = await supervisor.preview(spec, offered)
        return JSONResponse(
            {
                "candidates": [to_json(view) for view in provider_views(spec, rank(offered.offerings, spec))],
                "mix": None if mix is None else to_json(mix),
                "refusals": [list(refusal) for refusal in offered.refusals],
                "warnings": list(warnings),
            }
        )

    @app.post("/v1/services")
    async def create(request: Request) -> JSONResponse:
        spec, body = await _spec(request)
        state = await supervisor.create(spec, _secrets(spec, body))
        host, now = supervisor.config.endpoint_host, supervisor.clock.now()
        shown = service_view(state, host=host, now=now, load=None, trouble="")
        return JSONResponse(to_json(shown), status_code=201)

    @app.delete("/v1/services/{name}")
    async def down(name: str, purge: bool = False) -> JSONResponse:
        await supervisor.down(name, purge=purge)
        return JSONResponse({})

    @app.put("/v1/services/{name}/halted")
    async def halt(name: str, request: Request) -> JSONResponse:
        await supervisor.halt(name, halted=bool((await _object_of(request)).get("halted")))
        return JSONResponse({})

    @app.post("/v1/services/{name}/execute")
    async def execute(name: str, request: Request) -> Response:
        script = (await _object_of(request)).get("script")
        if not isinstance(script, str):
            raise UsageError("the request holds no script")
        stream = await supervisor.execute(name, script)
        return StreamingResponse(_until_gone(_in_lines(stream)), media_type="application/x-ndjson")

    @app.delete("/v1/services/{name}/replicas/{replica_id}")
    async def evict(name: str, replica_id: int) -> JSONResponse:
        await supervisor.evict(name, replica_id)
        return JSONResponse({})


async def _object_of(request: Request) -> Mapping[str, object]:
    try:
        body = await request.json()
    except (ValueError, RecursionError) as error:
        raise UsageError(f"the request is not JSON: {error}") from error
    if not isinstance(body, dict):
        raise UsageError("the request is no JSON object")
    return body


async def _in_lines(stream: AsyncIterator[bytes | Exit]) -> AsyncIterator[bytes]:
    """One JSON object a line: `{"data": BASE64}` for output, `{"exit": CODE}` or `{"error": TEXT}` at last."""
    try:
        async for part in stream:
            line = {"exit": part.code} if isinstance(part, Exit) else {"data": base64.b64encode(part).decode()}
            yield json.dumps(line).encode() + b"\n"
    except ProviderError as error:
        yield json.dumps({"error": error.message}).encode() + b"\n"


async def _spec(request: Request) -> tuple[ServiceSpec, Mapping[str, object]]:
    try:
        body = await request.json()
        return from_json(ServiceSpec, body["spec"]), body
    except (CodecError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UsageError(f"the request holds no valid spec: {error}") from error


def _secrets(spec: ServiceSpec, body: Mapping[str, object]) -> dict[str, str]:
    given = body.get("secrets", {})
    if not isinstance(given, dict) or set(given) != set(spec.secrets):
        raise UsageError("the request's secrets are not those that the spec names")
    if not all(isinstance(value, str) for value in given.values()):
        raise UsageError("the request's secrets are not all texts")
    return given


def _mode(value: object) -> UpdateMode:
    try:
        return UpdateMode(value)
    except ValueError as error:
        modes = ", ".join(mode.value for mode in UpdateMode)
        raise UsageError(f"unknown update mode {value!r}", hint=f"one of: {modes}") from error
