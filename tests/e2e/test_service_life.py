"""A service from up to down, as a user sees it, with everything real but the model."""

from __future__ import annotations

import http.client
import json
import os
import signal
import ssl
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from tests.e2e.conftest import Sky, door_processes, processes_of, wait_for
from tests.load_balancer.test_door_tls import certify

pytestmark = pytest.mark.e2e


def get(url: str, timeout: float = 10.0) -> dict[str, str]:
    with urllib.request.urlopen(url, timeout=timeout) as response:
        return dict(json.load(response))


class Traffic:
    """Clients that keep asking, one request after the other, and remember every failure."""

    def __init__(self, url: str, clients: int = 4) -> None:
        self._url = url
        self._done = threading.Event()
        self._threads = [threading.Thread(target=self._ask) for _ in range(clients)]
        self.answers: list[dict[str, str]] = []
        self.failures: list[str] = []

    def _ask(self) -> None:
        while not self._done.is_set():
            request = urllib.request.Request(self._url, data=b"{}", method="POST")
            try:
                with urllib.request.urlopen(request, timeout=30) as response:
                    self.answers.append(json.load(response))
            except (OSError, http.client.HTTPException) as error:
                self.failures.append(repr(error))

    def of(self, key: str, last: int = 0) -> set[str]:
        """What the answers say under this key: all of them, or so many at the end, once there are that many."""
        answers = self.answers[-last:]
        return {answer[key] for answer in answers} if len(answers) >= last else set()

    def __enter__(self) -> Traffic:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        for thread in self._threads:
            thread.join()


def replica_pid(sky: Sky, endpoint: object) -> int:
    """The process that listens on a replica's port: the engine itself."""
    port = str(endpoint).rpartition(":")[2]
    engines = [pid for pid, line in processes_of(sky.home).items() if "engine.py" in line]
    for pid in engines:
        if f"PORT={port}\0".encode() in Path(f"/proc/{pid}/environ").read_bytes():
            return pid
    raise AssertionError(f"no engine on port {port}")


def test_up_balances_explains_and_down_leaves_nothing(sky: Sky) -> None:
    endpoint = sky.up("chat", 2)
    assert endpoint.startswith("http://127.0.0.1:300")
    assert len(sky.ready()) == 2
    wait_for(lambda: {get(f"{endpoint}/x")["replica"] for _ in range(10)} == {"1", "2"}, why="both answer")
    assert sky("serve", "status", "--endpoint", "chat").strip() == endpoint
    why = sky("serve", "why", "chat")
    assert why.count("LAUNCH") == 2
    assert "BELOW_TARGET" in why
    assert "engine of replica 1 starts" in sky("serve", "logs", "chat", "1", "--no-follow")
    assert (sky.home / "state.db").stat().st_mode & 0o077 == 0
    sky("serve", "down", "chat", "-y")
    assert "No existing services" in sky("serve", "status")
    assert not [line for line in processes_of(sky.home).values() if "controller" not in line]
    assert not list((sky.home / "services").iterdir())
    assert not [path for path in (sky.home / "local").rglob("*") if path.is_file() and path.name != "lock"]


def test_streams_pass_through_event_by_event(sky: Sky) -> None:
    endpoint = sky.up("chat", 1)
    started = time.monotonic()
    arrivals = []
    with urllib.request.urlopen(f"{endpoint}/stream/10", timeout=10) as response:
        for line in response:
            if line.startswith(b"data:"):
                arrivals.append(time.monotonic() - started)
    assert len(arrivals) == 11
    assert arrivals[0] < arrivals[-1] / 2, "the first event does not wait for the last"


def test_killing_a_replica_under_load_fails_no_request(sky: Sky) -> None:
    endpoint = sky.up("chat", 2)
    with Traffic(f"{endpoint}/slow") as traffic:
        wait_for(lambda: traffic.of("replica") == {"1", "2"}, why="both answer")
        os.kill(replica_pid(sky, sky.replicas()[1]["endpoint"]), signal.SIGKILL)
        wait_for(lambda: set(sky.ready()) == {2, 3}, why="the replacement becomes ready")
        wait_for(lambda: traffic.of("replica", last=20) == {"2", "3"}, why="the replacement takes its share")
    assert traffic.failures == []
    assert traffic.of("replica") == {"1", "2", "3"}
    why = sky("serve", "why", "chat", "--replica", "3")
    assert "REPLACE_FAILED" in why


def test_killing_the_controller_harms_nobody_and_its_successor_adopts_all(sky: Sky) -> None:
    endpoint = sky.up("chat", 2)
    before = {id_: row["endpoint"] for id_, row in sky.ready().items()}
    pid = sky.controller_pid()
    with Traffic(f"{endpoint}/x") as traffic:
        os.kill(pid, signal.SIGKILL)
        seen = len(traffic.answers)
        wait_for(lambda: len(traffic.answers) > seen + 50)
        assert {id_: row["endpoint"] for id_, row in sky.ready().items()} == before
    assert traffic.failures == []
    assert sky.controller_pid() != pid
    engines = [line for line in processes_of(sky.home).values() if "engine.py" in line]
    assert len(engines) == 2, "nothing was launched twice"


@pytest.mark.parametrize("all_of_it", [False, True], ids=["its first process", "all its workers"])
def test_killing_the_door_brings_it_back(sky: Sky, all_of_it: bool) -> None:
    endpoint = sky.up("chat", 1)
    first, *others = door_processes(sky.home)
    for pid in (first, *others) if all_of_it else (first,):
        os.kill(pid, signal.SIGKILL)

    def answers() -> bool:
        try:
            return bool(get(f"{endpoint}/x"))
        except OSError:
            return False

    wait_for(answers, seconds=10, why="the endpoint answers again")


def test_update_rolls_without_losing_a_request(sky: Sky) -> None:
    endpoint = sky.up("chat", 2, ENGINE_VERSION="1")
    with Traffic(f"{endpoint}/x") as traffic:
        sky("serve", "update", "chat", str(sky.yaml(2, ENGINE_VERSION="2")), "-y")
        assert {row["version"] for row in sky.ready().values()} == {2}
        wait_for(lambda: traffic.of("version", last=20) == {"2"}, why="the new version answers alone")
    assert traffic.failures == []
    assert traffic.answers[0]["version"] == "1"


def test_a_change_of_replicas_relaunches_nothing(sky: Sky) -> None:
    sky.up("chat", 1)
    before = sky.ready()[1]["endpoint"]
    sky("serve", "update", "chat", str(sky.yaml(2)), "-y")
    ready = sky.ready()
    assert set(ready) == {1, 2}
    assert ready[1]["endpoint"] == before


def test_an_unhealthy_replica_gets_no_traffic_until_it_is_well(sky: Sky) -> None:
    sickness = sky.home.parent / "sick"
    sky.up("chat", 1, UNHEALTHY=str(sickness))
    sickness.touch()
    wait_for(lambda: sky.replicas()[1]["status"] == "NOT_READY", why="the probe fails")
    sickness.unlink()
    wait_for(lambda: sky.replicas()[1]["status"] == "READY", why="the probe succeeds again")


def test_requests_wait_while_no_replica_is_ready(sky: Sky) -> None:
    path = sky.yaml(1, START_S="3")
    sky("serve", "up", str(path), "-n", "chat", "-y", "--async")
    endpoint = wait_for(lambda: sky.endpoint() if "http" in sky.endpoint() else None)

    def answered() -> bool:
        try:
            return get(f"{endpoint}/x", timeout=20)["replica"] == "1"
        except urllib.error.URLError as error:
            if isinstance(error.reason, ConnectionRefusedError):
                return False  # the door itself is still starting
            raise

    wait_for(answered, why="the held request is answered by the first replica")


def test_a_certificate_makes_the_endpoint_https(sky: Sky) -> None:
    files = certify(sky.home.parent, "one")
    path = sky.yaml(1)
    tls = f"retry: idempotent}}\n  tls: {{keyfile: {files.keyfile}, certfile: {files.certfile}}}"
    path.write_text(path.read_text().replace("retry: idempotent}", tls))
    sky("serve", "up", str(path), "-n", "chat", "-y")
    endpoint = sky.endpoint()
    assert endpoint.startswith("https://127.0.0.1:")
    trusting = ssl.create_default_context(cafile=files.certfile)
    with urllib.request.urlopen(f"{endpoint}/x", timeout=10, context=trusting) as response:
        assert json.load(response)["replica"] == "1"
    with pytest.raises(ConnectionError):
        get(endpoint.replace("https", "http"))
    Path(files.certfile).write_text("no certificate")
    sky("serve", "update", "chat", str(path), "-y", code=2)
    assert "cannot be used" in sky.err


def test_replicas_may_speak_tls(sky: Sky) -> None:
    """From plain text to TLS and on to a certificate that is not trusted: what is ready goes on answering."""
    files = certify(sky.home.parent, "replica")
    other = sky.home.parent / "other"
    other.mkdir()
    told = {"CERTFILE": files.certfile, "KEYFILE": files.keyfile}

    def write(certfile: str, version: str) -> Path:
        path = sky.yaml(1, ENGINE_VERSION=version, **told)
        trust = f"retry: idempotent}}\n  replica_tls: {{ca_file: {certfile}, server_name: localhost}}"
        path.write_text(path.read_text().replace("retry: idempotent}", trust))
        return path

    endpoint = sky.up("chat", 1)
    sky("serve", "update", "chat", str(write(files.certfile, "2")), "-y")
    wait_for(lambda: get(f"{endpoint}/x")["version"] == "2", why="the version that speaks TLS answers")
    (ready,) = wait_for(lambda: [r for r in sky.ready().values() if r["version"] == 2], why="it is ready")
    assert str(ready["endpoint"]).startswith("https://")
    distrusting = write(certify(other, "other").certfile, "3")
    distrusting.write_text(
        distrusting.read_text().replace("path: /health", "path: /health\n    initial_delay_seconds: 1")
    )
    sky("serve", "update", "chat", str(distrusting), "-y", "--async")
    why = "its certificate is not accepted"
    wait_for(lambda: any(why in str(replica["detail"]) for replica in sky.replicas().values()), why=why)
    assert get(f"{endpoint}/x")["version"] == "2"
    missing = write(str(other / "none.pem"), "4")
    sky("serve", "update", "chat", str(missing), "-y", code=2)
    assert "`replica_tls.ca_file`: there is no" in sky.err


def test_redirect_mode(sky: Sky) -> None:
    path = sky.yaml(1)
    path.write_text(path.read_text().replace("retry: idempotent", "mode: redirect"))
    sky("serve", "up", str(path), "-n", "chat", "-y")
    with urllib.request.urlopen(f"{sky.endpoint()}/a?b=c", timeout=10) as response:
        assert response.url == f"{sky.ready()[1]['endpoint']}/a?b=c"


def test_terminating_one_replica_brings_another(sky: Sky) -> None:
    sky.up("chat", 2)
    sky("serve", "down", "chat", "--replica-id", "1", "-y")
    wait_for(lambda: set(sky.ready()) == {2, 3})
    assert "USER_REQUEST" in sky("serve", "why", "chat", "--replica", "1")


def test_two_services_side_by_side(sky: Sky) -> None:
    first, second = sky.up("one", 1), sky.up("two", 1)
    assert first != second
    sky("serve", "down", "one", "-y")
    assert get(f"{second}/x")["replica"] == "1"
