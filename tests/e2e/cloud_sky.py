"""The command and a controller whose providers are told to them: fakes of clouds, with real hosts below them.

And the service that is brought up on them. Must not know which provider does what.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.bed.aws_fake import AwsFake
from tests.bed.azure_fake import AzureFake
from tests.bed.core import CloudCore, Machine
from tests.bed.gcp_fake import GcpFake
from tests.bed.hosts import Bed
from tests.bed.lambda_fake import LambdaFake
from tests.bed.network import CONTROLLER
from tests.bed.runpod_fake import RunPodFake
from tests.e2e.conftest import Sky, wait_for

ROOT = Path(__file__).parents[2]
FAKES: dict[str, type[Any]] = {
    "aws": AwsFake,
    "azure": AzureFake,
    "gcp": GcpFake,
    "lambda": LambdaFake,
    "runpod": RunPodFake,
}
TOLD = ("url", "key", "token", "project", "launch_every_s", "env", "renumbered")
"""What the controller's process must know of a fake, as far as that has it."""

SERVICE = """\
service:
  readiness_probe:
    path: /health
    endpoint_probe_interval_seconds: 1
  replicas: {replicas}
  load_balancer: {{retry: idempotent}}
resources:
  ports: 8080
  any_of: {places}
workdir: {workdir}
file_mounts:
  assets/motto.txt: {motto}
secrets: {{GREETING: }}
setup: |
  echo setting up
  echo "$GREETING" > greeting.txt
run: |
  exec python3 app.py
"""

APP = """\
import http.server, json, os, pathlib

class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # an answer leaves in one piece: who is killed has given none, or all of it
    def answer(self):
        length = int(self.headers.get("Content-Length") or 0)
        self.rfile.read(length)
        told = {
            "replica": os.environ["SKYPILOT_SERVE_REPLICA_ID"],
            "cloud": json.loads(os.environ["SKYPILOT_CLUSTER_INFO"])["cloud"],
            "greeting": pathlib.Path("greeting.txt").read_text().strip(),
            "motto": pathlib.Path("assets/motto.txt").read_text().strip(),
        }
        body = json.dumps(told).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    do_GET = do_POST = answer
    def log_message(self, *_):
        pass

class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128
    def server_bind(self):
        import socketserver
        socketserver.TCPServer.server_bind(self)

print("serving", flush=True)
Server(("0.0.0.0", int(os.environ["PORT"])), Handler).serve_forever()
"""
MOTTO = "anywhere"


@dataclass
class Clouds:
    """The accounts, and the command of an installation whose clouds they are."""

    sky: Sky
    cores: dict[str, CloudCore]

    def machines(self) -> dict[str, list[Machine]]:
        """What each account pays for now."""
        return {name: core.leftovers() for name, core in self.cores.items()}

    def all_gone(self) -> None:
        """Wait until nothing is left, by the providers' own lists."""
        wait_for(lambda: not any(self.machines().values()), seconds=60, why=str(self.machines()))

    def kill_controller(self) -> bool:
        """kill -9, if there is one; the next command brings another one up."""
        try:
            os.kill(self.sky.controller_pid(), signal.SIGKILL)
        except (OSError, ValueError):
            return False
        return True


class CloudSky(Sky):
    """`sky` with providers that were told to it."""

    fakes: Path

    def start(self, *args: str, **options: object) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "tests.bed.sky", str(self.fakes), *args]
        streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen(command, env=self.env, text=True, **{**streams, **options})  # type: ignore[call-overload,no-any-return]


@contextmanager
def providers(sky: Sky, facts: Mapping[str, Mapping[str, object]]) -> Iterator[Sky]:
    """An installation that knows these providers and no others; see `tests.bed.controller`. At the end it is down."""
    sky.__class__ = CloudSky
    assert isinstance(sky, CloudSky)
    sky.fakes = sky.home.parent / "fakes.json"
    sky.fakes.write_text(json.dumps(facts))
    sky.env |= {"PYTHONPATH": str(ROOT), "HOME": str(sky.home.parent)}
    try:
        yield sky
    finally:
        sky("serve", "down", "--all", "-y", timeout=120)
        sky("down", "--all", "-y", timeout=120)
        sky("controller", "stop")


@contextmanager
def clouds(sky: Sky, bed: Bed | None, *names: str, boot_s: float = 0.1) -> Iterator[Clouds]:
    """These clouds, and an installation that knows them and nothing else. At the end it knows them no more."""
    with ExitStack() as stack:
        cores, facts = {}, {}
        for name in names:
            core = stack.enter_context(CloudCore(bed, boot_s=boot_s, containers=name == "runpod"))
            fake = FAKES[name](core)
            fake.start()
            stack.callback(fake.stop)
            cores[name] = core
            known = {key: getattr(fake, key) for key in TOLD if hasattr(fake, key)}
            facts[name] = {"module": f"tests.bed.{name}_fake", **known}
        sky.env["SKYSERVE_PUBLIC_ADDRESS"] = f"{CONTROLLER}/32"
        stack.enter_context(providers(sky, facts))
        yield Clouds(sky, cores)


def service_yaml(sky: Sky, places: str, replicas: int) -> Path:
    """A Service YAML for `APP`, which wants the secret GREETING."""
    work = sky.home.parent / "work"
    work.mkdir(exist_ok=True)
    (work / "app.py").write_text(APP)
    motto = sky.home.parent / "motto.txt"
    motto.write_text(f"{MOTTO}\n")
    path = sky.home.parent / "service.yaml"
    path.write_text(SERVICE.format(places=places, replicas=replicas, workdir=work, motto=motto))
    return path
