"""The command, the controller and the door on several clouds at once: fakes of their APIs, real hosts below them."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from tests.bed.aws_fake import AwsFake
from tests.bed.azure_fake import AzureFake
from tests.bed.core import CloudCore, Machine
from tests.bed.gcp_fake import GcpFake
from tests.bed.hosts import Bed
from tests.bed.lambda_fake import LambdaFake
from tests.bed.runpod_fake import RunPodFake
from tests.e2e.conftest import Sky, wait_for
from tests.e2e.test_service_life import Traffic, get

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400)]

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
resources:
  ports: 8080
  any_of: {places}
workdir: {workdir}
secrets: {{GREETING: }}
setup: echo "$GREETING" > greeting.txt
run: |
  exec python3 app.py
"""

APP = """\
import http.server, json, os, pathlib

class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def answer(self):
        length = int(self.headers.get("Content-Length") or 0)
        self.rfile.read(length)
        told = {
            "replica": os.environ["SKYPILOT_SERVE_REPLICA_ID"],
            "cloud": json.loads(os.environ["SKYPILOT_CLUSTER_INFO"])["cloud"],
            "greeting": pathlib.Path("greeting.txt").read_text().strip(),
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

Server(("0.0.0.0", int(os.environ["PORT"])), Handler).serve_forever()
"""


@dataclass
class Sky2Clouds:
    """A controller whose clouds are fakes, and the command that talks to it."""

    sky: Sky
    cores: dict[str, CloudCore]
    facts: dict[str, dict[str, object]]
    _process: subprocess.Popen[bytes] | None = None
    _log: list[str] = field(default_factory=list)

    def start(self) -> None:
        """Start the controller, and wait until it can be asked."""
        path = self.sky.home.parent / "fakes.json"
        path.write_text(json.dumps(self.facts))
        self.sky.home.mkdir(exist_ok=True)
        address = self.sky.home / "controller.json"
        address.unlink(missing_ok=True)
        with (self.sky.home / "controller.log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.bed.controller", str(path)],
                env={**self.sky.env, "HOME": str(self.sky.home.parent), "SKYSERVE_IDLE_EXIT_S": "600"},
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
            )
        wait_for(address.exists, seconds=30, why="the controller does not come up")

    def kill(self) -> None:
        """kill -9."""
        assert self._process is not None
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()

    def stop(self) -> None:
        """End the controller, as the user would."""
        self.sky("controller", "stop")
        assert self._process is not None
        self._process.wait(timeout=30)

    def machines(self) -> dict[str, list[Machine]]:
        """What each account pays for now."""
        return {name: core.leftovers() for name, core in self.cores.items()}


@contextmanager
def clouds(sky: Sky, bed: Bed | None, *names: str, boot_s: float = 0.1) -> Iterator[Sky2Clouds]:
    """These clouds, and a controller that knows them and nothing else."""
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
        world = Sky2Clouds(sky, cores, facts)
        world.start()
        yield world


def service_yaml(sky: Sky, places: str, replicas: int) -> Path:
    work = sky.home.parent / "work"
    work.mkdir(exist_ok=True)
    (work / "app.py").write_text(APP)
    path = sky.home.parent / "service.yaml"
    path.write_text(SERVICE.format(places=places, replicas=replicas, workdir=work))
    return path


THREE = """
  - {infra: aws/us-east-1, instance_type: m6i.large}
  - {infra: gcp/us-central1, instance_type: e2-standard-2}
  - {infra: azure/eastus, instance_type: Standard_D2s_v5}
"""


@pytest.mark.bed
def test_one_service_on_three_clouds_outlives_a_region(bed: Bed, sky: Sky) -> None:
    with clouds(sky, bed, "aws", "gcp", "azure") as world:
        for core in world.cores.values():
            core.capacity["*"] = 1
        sky(
            *("serve", "up", str(service_yaml(sky, THREE, 3)), "-n", "chat", "-y", "--secret", "GREETING=hello"),
            timeout=180,
        )
        url = sky.endpoint()
        answers = [get(url) for _ in range(12)]
        assert {answer["cloud"] for answer in answers} == {"aws", "gcp", "azure"}
        assert {answer["greeting"] for answer in answers} == {"hello"}
        assert not any("hello" in machine.user_data for core in world.cores.values() for machine in core.leftovers())
        with Traffic(url) as traffic:
            time.sleep(1)
            (victim,) = world.cores["gcp"].leftovers()
            world.cores["gcp"].capacity["*"] = 0
            bed.host(victim.id).kill()
            world.cores["gcp"].vanish(victim.id)
            time.sleep(3)
        assert traffic.failures == []
        assert len(traffic.answers) > 20
        sky("serve", "down", "chat", "-y", timeout=120)
        wait_for(lambda: not any(world.machines().values()), seconds=30, why=str(world.machines()))
        world.stop()


@pytest.mark.bed
def test_notice_of_a_cloud_starts_a_replacement_before_the_machine_goes(bed: Bed, sky: Sky) -> None:
    place = "\n  - {infra: aws/us-east-1, instance_type: m6i.large, use_spot: true}\n"
    with clouds(sky, bed, "aws") as world:
        yaml = service_yaml(sky, place, 1)
        sky("serve", "up", str(yaml), "-n", "chat", "-y", "--secret", "GREETING=hello", timeout=180)
        core = world.cores["aws"]
        (victim,) = core.leftovers()
        with Traffic(sky.endpoint(), clients=2) as traffic:
            noticed_at = time.monotonic()
            core.interrupt(victim.id, notice_s=30.0)
            wait_for(lambda: len(core.leftovers()) == 2, seconds=20, why="no replacement")
            took_s = time.monotonic() - noticed_at
            wait_for(lambda: any(row["id"] != 1 for row in sky.ready().values()), seconds=60, why="not ready in time")
            wait_for(lambda: victim not in core.leftovers(), seconds=60, why="the old machine stays")
            time.sleep(1)
        assert took_s < 6.0, f"the replacement came {took_s:.1f}s after the notice"
        assert traffic.failures == []
        assert "INTERRUPTION_NOTICE" in sky("serve", "why", "chat")
        sky("serve", "down", "chat", "-y", timeout=120)
        wait_for(lambda: not any(world.machines().values()), seconds=30, why=str(world.machines()))
        world.stop()


def test_crashes_of_the_controller_leave_no_machine_and_make_no_second_one(sky: Sky) -> None:
    """200 launches on paper machines, which never boot, while the controller is killed again and again."""
    rng = random.Random(7)
    with clouds(sky, None, "gcp", boot_s=3600.0) as world:
        core = world.cores["gcp"]
        place = "\n  - {infra: gcp/us-central1, instance_type: e2-standard-2}\n"
        yaml = service_yaml(sky, place, 20)
        done = threading.Event()

        def disturb() -> None:
            while not done.wait(rng.uniform(0.5, 2.0)):
                world.kill()
                world.start()

        launched: Counter[str] = Counter()
        for round_ in range(10):
            chaos = threading.Thread(target=disturb)
            done.clear()
            chaos.start()
            try:
                name = f"chat{round_}"
                for _ in range(20):
                    with sky.start(
                        "serve", "up", str(yaml), "-n", name, "-y", "--async", "--secret", "GREETING=x"
                    ) as process:
                        process.communicate(timeout=60)
                    if name in sky("serve", "status", "-o", "json"):
                        break
                wait_for(lambda: len(core.leftovers()) >= 20, seconds=60, why=f"{len(core.leftovers())} machines")
            finally:
                done.set()
                chaos.join()
            launched.update(machine.token for machine in core.machines.values() if machine.token not in launched)
            assert len(core.leftovers()) == 20
            sky("serve", "down", name, "-y", timeout=120)
            wait_for(lambda: core.leftovers() == [], seconds=60, why=str(core.leftovers()))
        assert sum(launched.values()) >= 200
        assert max(launched.values()) == 1
        world.stop()
