"""A fake cloud with a small JSON API over HTTP: what such fakes share. Strict, as a fake that takes anything proves
nothing. Must not know any cloud's paths or words."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import UnionType
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from tests.bed.core import CloudCore

KEY = "fake-key"
_HANG_S = 20.0


@dataclass(frozen=True)
class Call:
    """One request. `body` is None when there is none."""

    method: str
    path: str
    params: Mapping[str, str]
    body: Any

    def __str__(self) -> str:
        return f"{self.method} {self.path}"


class Refuse(Exception):
    """Raised by a fake to answer with an error."""

    def __init__(self, status: int, body: object, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(status, body)
        self.status = status
        self.body = body
        self.headers = headers or {}


class Hang(Exception):
    """Raised by a fake that does not answer."""


class JsonServer:
    """Serves `answer` on 127.0.0.1 between `start` and `stop`; `asked` are the calls so far, in order."""

    def __init__(self, core: CloudCore) -> None:
        self.core = core
        self.key = KEY
        self.asked: list[Call] = []
        self._server: ThreadingHTTPServer | None = None
        self._serving: threading.Thread | None = None
        self._lock = threading.RLock()

    def answer(self, call: Call) -> tuple[int, object]:
        """The status and the JSON of an answer (None: an empty body). Raises Refuse or Hang."""
        raise NotImplementedError

    def unauthorized(self) -> Refuse:
        """What a request with another key gets."""
        raise NotImplementedError

    @property
    def url(self) -> str:
        """Where it listens."""
        assert self._server is not None
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def start(self) -> JsonServer:
        """Serve in threads."""
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self._serving = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._serving.start()
        return self

    def stop(self) -> None:
        """Stop serving. Fine to call again."""
        self.core.closing.set()
        server, self._server = self._server, None
        if server is not None and self._serving is not None:
            server.shutdown()
            self._serving.join()
            server.server_close()

    def __enter__(self) -> JsonServer:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def count(self, call: str) -> int:
        """How often `METHOD /path` was asked."""
        return sum(str(one) == call for one in self.asked)

    def respond(self, call: Call, bearer: str) -> tuple[int, object, Mapping[str, str]]:
        """One answer, whatever becomes of it."""
        try:
            if bearer != f"Bearer {self.key}":
                raise self.unauthorized()
            with self._lock:
                self.asked.append(call)
                status, body = self.answer(call)
        except Refuse as refused:
            return refused.status, refused.body, refused.headers
        return status, body, {}


def misfits(value: object, shape: object, where: str = "$") -> list[str]:
    """What is wrong with a JSON value. A shape is a type, `[shape]` for a list, or a dict of shapes: a name that ends
    with `?` may be missing, and no other names may be there."""
    if isinstance(shape, type | UnionType):
        wrong = not isinstance(value, shape) or (isinstance(value, bool) and shape is not bool)
        return [f"{where}: {value!r} is of the wrong type"] if wrong else []
    if isinstance(shape, list):
        if not isinstance(value, list):
            return [f"{where}: not a list"]
        return [error for index, one in enumerate(value) for error in misfits(one, shape[0], f"{where}[{index}]")]
    assert isinstance(shape, dict)
    if not isinstance(value, dict):
        return [f"{where}: not an object"]
    known = {name.removesuffix("?"): one for name, one in shape.items()}
    errors = [f"{where}: additional property {name!r}" for name in value if name not in known]
    errors += [f"{where}: missing property {name!r}" for name in shape if name[-1] != "?" and name not in value]
    return errors + [e for name in value if name in known for e in misfits(value[name], known[name], f"{where}.{name}")]


def _handler(fake: JsonServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 10.0

        def handle_any(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            text = self.rfile.read(length)
            parts = urlsplit(self.path)
            call = Call(self.command, parts.path, dict(parse_qsl(parts.query)), json.loads(text) if text else None)
            try:
                status, body, headers = fake.respond(call, self.headers.get("Authorization", ""))
            except Hang:
                fake.core.closing.wait(_HANG_S)
                self.close_connection = True
                return
            content = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_PATCH = do_PUT = do_DELETE = handle_any  # noqa: N815

        def log_message(self, format: str, *args: object) -> None:
            pass

    return Handler
