"""A controller that is only its API: a real socket, scripted answers, the lock and the address file of a real one."""

from __future__ import annotations

import fcntl
import io
import json
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from skyserve import __version__
from skyserve.catalog import snapshot
from skyserve.cli.main import main
from skyserve.cli.render import Screen
from skyserve.cli.session import Session
from skyserve.config import Config
from skyserve.model.codec import from_json, to_json
from skyserve.model.service import ServiceSpec
from skyserve.model.view import DecisionView, HistoryView, ProviderView, ReplicaView, ServiceView

START = 1_700_000_000.0
TOKEN = "token-of-the-fake"
LOCAL = ProviderView("local", "host", "local/localhost", 2, 8, None, 0.0, chosen=True)


def replica(replica_id: int = 1, status: str = "READY", **changes: object) -> ReplicaView:
    """A replica on this machine, launched two minutes before START."""
    view = ReplicaView(
        service_name="web",
        id=replica_id,
        version=1,
        status=status,
        endpoint=f"http://127.0.0.1:4000{replica_id}" if status == "READY" else None,
        launched_at=START - 125,
        infra="local/localhost",
        resources="1x[host]",
    )
    return replace(view, **changes)


def service(name: str = "web", status: str = "READY", *replicas: ReplicaView, **changes: object) -> ServiceView:
    """A service that wants as many replicas as it is given."""
    view = ServiceView(
        name=name,
        status=status,
        versions=tuple(sorted({one.version for one in replicas if one.status == "READY"})),
        latest_version=1,
        uptime_s=3723.0 if status == "READY" else None,
        ready=sum(one.status == "READY" for one in replicas),
        total=sum(not one.status.startswith("FAILED") for one in replicas),
        target=len(replicas),
        endpoint="http://127.0.0.1:30001",
        policy=f"Fixed {len(replicas)} replicas",
        load_balancing_policy="least_load",
        requested_resources="1x[L4:1]",
        created_at=START - 200,
        replicas=tuple(replace(one, service_name=name) for one in replicas),
    )
    return replace(view, **changes)


@dataclass
class FakeController:
    """What the API shows. `script` holds the coming views of a service: each look at it takes one, the last stays."""

    services: dict[str, ServiceView] = field(default_factory=dict)
    script: dict[str, list[ServiceView | None]] = field(default_factory=dict)
    specs: dict[str, tuple[int, ServiceSpec]] = field(default_factory=dict)
    history: HistoryView | None = None
    candidates: tuple[ProviderView, ...] = (LOCAL,)
    refusals: tuple[tuple[str, str], ...] = ()
    warnings: tuple[str, ...] = ()
    decisions: list[DecisionView] = field(default_factory=list)
    logs: dict[tuple[str, int | None], list[bytes]] = field(default_factory=dict)
    executed: list[dict[str, object]] = field(default_factory=lambda: [{"exit": 0}])
    """What a script that is executed tells, a document a line."""
    health: list[dict[str, object]] = field(default_factory=list)
    refuse: dict[str, tuple[int, object]] = field(default_factory=dict)
    """Errors by `METHOD /path`: status and document."""
    token: str = TOKEN
    requests: list[tuple[str, str, object]] = field(default_factory=list)
    ended: threading.Event = field(default_factory=threading.Event)
    lock: int = -1
    """The descriptor that holds the lock."""

    def calls(self, method: str, path: str) -> list[object]:
        """The bodies with which a route was called."""
        return [body for called, at, body in self.requests if called == method and urlsplit(at).path == path]

    def look(self, name: str) -> ServiceView | None:
        coming = self.script.get(name)
        if coming:
            view = coming.pop(0) if len(coming) > 1 else coming[0]
            if view is None:
                self.services.pop(name, None)
            else:
                self.services[name] = view
        return self.services.get(name)

    def answer(self, method: str, target: str, body: Mapping[str, object] | None) -> tuple[int, object]:
        """Status and document of one call."""
        path = urlsplit(target).path
        if f"{method} {path}" in self.refuse:
            return self.refuse[f"{method} {path}"]
        if path == "/v1/controller":
            names = sorted(self.services)
            return 200, {"pid": 42, "version": __version__, "started_at": START - 60, "home": "/h", "services": names}
        if path == "/v1/controller/stop":
            self.ended.set()
            return 200, {}
        if path == "/v1/plan":
            return 200, {
                "candidates": to_json(self.candidates),
                "refusals": to_json(self.refusals),
                "warnings": list(self.warnings),
            }
        if path == "/v1/infra/health":
            return self._health(method, parse_qs(urlsplit(target).query))
        if path == "/v1/services":
            return self._create(body) if method == "POST" else self._list()
        return self._one(method, path, body)

    def _health(self, method: str, query: Mapping[str, list[str]]) -> tuple[int, object]:
        if method == "GET":
            return 200, {"pools": self.health}
        scopes = query.get("scope")
        kept = [pool for pool in self.health if scopes and pool["scope"] not in scopes]
        forgotten, self.health = len(self.health) - len(kept), kept
        return 200, {"forgotten": forgotten}

    def _list(self) -> tuple[int, object]:
        views = [self.look(name) for name in sorted({*self.services, *self.script})]
        return 200, {"services": [to_json(view) for view in views if view]}

    def _create(self, body: Mapping[str, object] | None) -> tuple[int, object]:
        spec = from_json(ServiceSpec, body["spec"])
        view = service(spec.name, "NO_REPLICA", target=0)
        self.services[spec.name] = view
        return 201, to_json(view)

    def _one(self, method: str, path: str, body: Mapping[str, object] | None) -> tuple[int, object]:
        name, _, rest = path.removeprefix("/v1/services/").partition("/")
        view = self.look(name) if method == "GET" and not rest else self.services.get(name)
        if view is None:
            return 404, {"error": {"code": "SERVICE_NOT_FOUND", "message": f"no service {name}", "hint": None}}
        if method == "GET" and rest == "spec":
            version, spec = self.specs[name]
            return 200, {"version": version, "spec": to_json(spec)}
        if method == "GET" and rest == "versions":
            return 200, to_json(self.history)
        if method == "POST" and rest == "rollback":
            return 200, {"version": view.latest_version + 1}
        if method == "GET" and rest == "decisions":
            return 200, {"decisions": to_json(tuple(self.decisions))}
        if rest == "halted":
            return 200, {}
        if method == "PUT":
            return 200, {"version": view.latest_version + 1}
        return 200, to_json(view) if method == "GET" else {}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    fake: FakeController

    def _serve(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length)) if length else None
        self.fake.requests.append((self.command, self.path, body))
        if self.headers.get("Authorization") != f"Bearer {self.fake.token}":
            self._send(401, {"error": {"code": "UNAUTHORIZED", "message": "unknown token", "hint": None}})
        elif self.path.partition("?")[0].endswith("/logs"):
            self._send_log()
        elif self.path.endswith("/execute"):
            self._send(200, b"".join(json.dumps(line).encode() + b"\n" for line in self.fake.executed))
        else:
            self._send(*self.fake.answer(self.command, self.path, body))

    do_GET = do_POST = do_PUT = do_DELETE = _serve  # noqa: N815 - the names that the base class looks for

    def _send(self, status: int, document: object) -> None:
        content = document if isinstance(document, bytes) else json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _send_log(self) -> None:
        query = {key: values[0] for key, values in parse_qs(urlsplit(self.path).query).items()}
        key = (query["source"], int(query["replica"]) if "replica" in query else None)
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for piece in self.fake.logs.get(key, []):
            self.wfile.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
            self.wfile.flush()
        if query.get("follow") == "1":
            self.fake.ended.wait(30)
        self.wfile.write(b"0\r\n\r\n")

    def log_message(self, format: str, *args: object) -> None:
        """Stay silent."""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A state directory that does not exist yet."""
    return tmp_path / "home"


@pytest.fixture
def fake(home: Path) -> Iterator[FakeController]:
    """A controller that runs: its address is announced and its lock is held."""
    controller = FakeController()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"fake": controller}))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    home.mkdir(mode=0o700, exist_ok=True)
    controller.lock = os.open(home / "controller.lock", os.O_CREAT | os.O_RDWR, 0o600)
    fcntl.flock(controller.lock, fcntl.LOCK_EX)
    url = f"http://127.0.0.1:{server.server_port}"
    (home / "controller.json").write_text(json.dumps({"pid": 42, "url": url, "token": TOKEN}))
    yield controller
    controller.ended.set()
    server.shutdown()
    thread.join()
    server.server_close()
    os.close(controller.lock)


@dataclass(frozen=True)
class Result:
    """What a command came to."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> object:
        """Stdout, which has to be one JSON document."""
        return json.loads(self.out)

    @property
    def json_lines(self) -> list[object]:
        """Stdout, which has to be a JSON document on every line."""
        return [json.loads(line) for line in self.out.splitlines()]


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        """Always."""
        return True


class Pressed(Terminal):
    """A keyboard on which Ctrl-C is pressed when it is read."""

    def readline(self, *_: object) -> str:
        """Never returns."""
        raise KeyboardInterrupt


@dataclass
class Sky:
    """Runs `sky` in this process, on a clock that sleeping moves on."""

    home: Path
    environ: dict[str, str] = field(default_factory=dict)
    controller_command: tuple[str, ...] = ("false",)
    virtual: bool = True
    interrupt_after_sleeps: int | None = None
    _now: float = START

    def __call__(self, *args: str, answer: str | None = None, stdin: io.StringIO | None = None) -> Result:
        """Run one command line; with `answer` or `stdin` the three streams are a terminal."""
        tty = answer is not None or stdin is not None
        stream = Terminal if tty else io.StringIO
        out, err = stream(), stream()
        config = Config.from_environ({"SKYSERVE_HOME": str(self.home), **self.environ})
        screen = Screen(stdin or stream(answer or ""), out, err, config.inherited_env)
        session = Session(config, screen, controller_command=self.controller_command)
        if self.virtual:
            session.now, session.sleep = (lambda: self._now), self._sleep
        code = main(list(args), session)
        return Result(code, out.getvalue(), err.getvalue())

    def _sleep(self, seconds: float) -> None:
        if self.interrupt_after_sleeps is not None:
            if self.interrupt_after_sleeps == 0:
                raise KeyboardInterrupt
            self.interrupt_after_sleeps -= 1
        self._now += seconds
        time.sleep(0.001)


@pytest.fixture
def sky(home: Path) -> Sky:
    """The command, under the test's own home."""
    return Sky(home)


@pytest.fixture
def make_service() -> Callable[..., ServiceView]:
    """Builds service views."""
    return service


@pytest.fixture
def make_replica() -> Callable[..., ReplicaView]:
    """Builds replica views."""
    return replica


@pytest.fixture
def pressed() -> type[Pressed]:
    """A keyboard on which Ctrl-C is pressed."""
    return Pressed


@pytest.fixture
def plain() -> Callable[[str], str]:
    """Takes terminal codes out of a text."""
    return lambda text: re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


@pytest.fixture
def yaml(tmp_path: Path) -> Path:
    """A Service YAML with two replicas."""
    path = tmp_path / "service.yaml"
    service_part = "service:\n  readiness_probe: /health\n  replicas: 2\n"
    path.write_text(f"{service_part}resources:\n  ports: 8080\nrun: python app.py --port $PORT\n")
    return path


_PRICES = """\
cloud,instance_type,accelerator,accelerator_count,vcpus,memory_gib,price,spot_price,region,zone
azure,Standard_NC48ads_A100_v4,A100-80GB,2,48,440,7.346,1.5,eastus,
azure,Standard_NC48ads_A100_v4,A100-80GB,2,48,440,8,,westus,
gcp,g2-standard-96,L4,8,96,384,7.98,3.2,us-east4,us-east4-a
gcp,g2-standard-96,L4,8,96,384,7.98,2.9,us-east4,us-east4-b
gcp,g2-standard-4,L4,1,4,16,0.705,0.27,us-east4,us-east4-a
aws,g6.48xlarge,L4,8,192,768,13.35,4,us-east-1,
aws,g6.xlarge,L4,1,4,16,0.805,0.19,us-east-1,
aws,g6.xlarge,L4,1,4,16,0.9,,eu-west-1,
aws,m6i.2xlarge,,,8,32,0.384,0.1,us-east-1,
"""


@pytest.fixture
def price_list(tmp_path: Path) -> Path:
    """A CSV file with a few prices of three clouds."""
    path = tmp_path / "prices.csv"
    path.write_text(_PRICES)
    return path


@pytest.fixture
def prices(price_list: Path, home: Path) -> Path:
    """The catalog in use holds these prices and no others; the directory of its files."""
    snapshot.use(price_list, home)
    return home / "catalog"


@pytest.fixture
def damaged(prices: Path) -> None:
    """A catalog with a byte that is not as it was."""
    archive = next(prices.rglob("gcp-*.catalog"))
    content = bytearray(archive.read_bytes())
    content[len(content) // 2] ^= 1
    archive.write_bytes(content)
