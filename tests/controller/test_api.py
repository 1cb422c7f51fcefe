"""The control API on a real socket: who may ask, and what bad questions get."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
from collections.abc import Callable
from pathlib import Path

import uvicorn
from tests.controller.rig import FixedRoster, chat

from skyserve.clock import SystemClock
from skyserve.config import Config
from skyserve.controller.api import Identity, build
from skyserve.controller.supervisor import Supervisor
from skyserve.model.codec import to_json
from skyserve.providers.fake import FakeProvider
from skyserve.store.secrets import SecretStore
from skyserve.store.sql import open_store

TOKEN = "correct horse"
Answer = tuple[int, dict[str, object]]
Ask = Callable[..., Answer]


def serve(home: Path, scenario: Callable[[Ask], None]) -> None:
    async def main() -> None:
        clock = SystemClock()
        store = await asyncio.to_thread(open_store, home / "state.db")
        cloud = FakeProvider(clock)
        supervisor = Supervisor(Config(home), store, FixedRoster(cloud), clock, SecretStore(home / "secrets"))
        await supervisor.start()
        listener = socket.create_server(("127.0.0.1", 0))
        app = build(supervisor, Identity(1, clock.now(), TOKEN, lambda: None))
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="off"))
        server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
        task = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            await asyncio.to_thread(scenario, asker(listener.getsockname()[1]))
        finally:
            server.should_exit = True
            await task
            listener.close()
            await supervisor.close()

    asyncio.run(main())


def asker(port: int) -> Ask:
    def ask(method: str, path: str, body: object = None, token: str = TOKEN) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        try:
            data = body if isinstance(body, bytes) else None if body is None else json.dumps(body).encode()
            connection.request(method, path, data, {"Authorization": f"Bearer {token}"})
            response = connection.getresponse()
            return response.status, json.loads(response.read())
        finally:
            connection.close()

    return ask


def code(answer: Answer) -> tuple[int, object]:
    status, body = answer
    error = body["error"]
    assert isinstance(error, dict)
    return status, error["code"]


def test_without_the_token_nothing_is_told(tmp_path: Path) -> None:
    def scenario(ask: Ask) -> None:
        for token in ("", "wrong", "córrect"):
            assert code(ask("GET", "/v1/services", token=token.encode().decode("latin-1"))) == (401, "UNAUTHORIZED")
            assert code(ask("POST", "/v1/controller/stop", token="x")) == (401, "UNAUTHORIZED")
        assert ask("GET", "/v1/controller")[0] == 200

    serve(tmp_path, scenario)


def test_bad_questions_get_one_clear_error(tmp_path: Path) -> None:
    spec = to_json(chat(1))

    def scenario(ask: Ask) -> None:
        assert ask("GET", "/v1/services") == (200, {"services": []})
        assert code(ask("GET", "/v1/services/nobody")) == (404, "SERVICE_NOT_FOUND")
        assert code(ask("DELETE", "/v1/services/nobody")) == (404, "SERVICE_NOT_FOUND")
        assert code(ask("DELETE", "/v1/services/nobody/replicas/1")) == (404, "SERVICE_NOT_FOUND")
        assert code(ask("PUT", "/v1/services/chat", {"spec": spec, "secrets": {}})) == (404, "SERVICE_NOT_FOUND")
        for body in (b"{", b"[]", b"{}", {"spec": 3}, {"spec": {"name": "x"}}):
            assert code(ask("POST", "/v1/services", body)) == (400, "USAGE")
        assert code(ask("POST", "/v1/services", {"spec": spec, "secrets": {"KEY": "v"}})) == (400, "USAGE")
        assert code(ask("PUT", "/v1/services/other", {"spec": spec, "secrets": {}})) == (400, "USAGE")
        assert code(ask("PUT", "/v1/services/chat", {"spec": spec, "secrets": {}, "mode": "x"})) == (400, "USAGE")

    serve(tmp_path, scenario)


def test_whatever_is_sent_is_answered_with_one_clear_error(tmp_path: Path) -> None:
    spec = to_json(chat(1))
    assert isinstance(spec, dict)
    probe = {**spec["readiness_probe"], "initial_delay_seconds": float("nan")}

    def scenario(ask: Ask) -> None:
        for body in (b"[" * 200_000, b'{"spec": ' * 50_000, b"\xff", {"spec": {**spec, "readiness_probe": probe}}):
            assert code(ask("POST", "/v1/services", body)) == (400, "USAGE")
        for name in ("../../evil", "a/b", "", "a\0b", "\ud800", "x" * 500):
            assert code(ask("POST", "/v1/services", {"spec": {**spec, "name": name}})) == (400, "USAGE")
        secret = {"spec": {**spec, "secrets": {"KEY": "f"}}, "secrets": {"KEY": ["v"]}}
        assert code(ask("POST", "/v1/services", secret)) == (400, "USAGE")
        for query in (f"after={10**30}", "limit=-1", "replica=one"):
            assert code(ask("GET", f"/v1/services/chat/decisions?{query}")) == (400, "USAGE")
        assert code(ask("DELETE", "/v1/services/chat/replicas/one")) == (400, "USAGE")
        assert code(ask("GET", "/v2/services")) == (400, "USAGE")
        assert code(ask("PATCH", "/v1/services")) == (400, "USAGE")

    serve(tmp_path, scenario)


def test_what_nobody_offers_is_refused_with_the_reasons(tmp_path: Path) -> None:
    spec = to_json(chat(1))
    assert isinstance(spec, dict)
    resources = {"alternatives": [{"accelerators": {"name": "L4", "count": 8}}], "ordered": False}
    body = {"spec": {**spec, "resources": resources}, "secrets": {}}

    def scenario(ask: Ask) -> None:
        status, plan = ask("POST", "/v1/plan", body)
        assert status == 200
        assert plan["candidates"] == []
        assert code(ask("POST", "/v1/services", body)) == (422, "INFEASIBLE")
        assert ask("GET", "/v1/services") == (200, {"services": []})
        assert not (tmp_path / "services").exists()

    serve(tmp_path, scenario)
