"""The number of replicas follows the load: a step of it within two seconds, to nothing and back without a refusal."""

from __future__ import annotations

import json
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pytest
from tests.e2e.conftest import ENGINE, Sky, wait_for

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]

SERVICE = """\
service:
  readiness_probe: {{path: /health, endpoint_probe_interval_seconds: 1}}
  replica_policy:
    min_replicas: {least}
    max_replicas: 4
    target_ongoing_requests_per_replica: 10
    downscale_delay_seconds: {down_s}
  load_balancer: {{queue_size: {queue}}}
resources: {{ports: 8080}}
envs: {{START_S: '{start_s}'}}
run: exec {python} {engine}
"""


def up(sky: Sky, least: int, *, down_s: float = 1.0, queue: int = 1000, start_s: float = 0.0) -> str:
    path = sky.home.parent / "service.yaml"
    setting = {"least": least, "down_s": down_s, "queue": queue, "start_s": start_s}
    path.write_text(SERVICE.format(python=sys.executable, engine=ENGINE, **setting))
    sky("serve", "up", str(path), "-n", "chat", "-y")
    return sky.endpoint()


def post(endpoint: str, path: str = "/slow") -> tuple[int, dict[str, str]]:
    request = urllib.request.Request(f"{endpoint}{path}", b"x", {"Content-Type": "text/plain"})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            answer.read()
            return answer.status, dict(answer.headers)
    except urllib.error.HTTPError as error:
        with error:
            error.read()
            return error.code, dict(error.headers)


def keep_asking(endpoint: str, seconds: float) -> list[int]:
    until, codes = time.monotonic() + seconds, []
    while time.monotonic() < until:
        codes.append(post(endpoint)[0])
    return codes


def targets(sky: Sky) -> list[tuple[float, int]]:
    """The instants of all decisions, with the number of replicas that was wanted from then on."""
    sky.collect_decisions()
    rows = [(json.loads(observation), json.loads(plan)) for observation, plan in sky.decisions.values()]
    return sorted((observation["now"], plan["target"]) for observation, plan in rows)


def test_a_step_of_load_is_answered_within_two_seconds_and_no_request_fails(sky: Sky) -> None:
    endpoint = up(sky, 1, down_s=60)
    with ThreadPoolExecutor(41) as pool:
        one = pool.submit(keep_asking, endpoint, 10.0)
        time.sleep(2.0)
        stepped_at = time.time()
        many = [pool.submit(keep_asking, endpoint, 8.0) for _ in range(39)]
        wait_for(lambda: len(sky.ready()) == 4, seconds=30, why="all four replicas are ready")
        codes = {code for asked in (one, *many) for code in asked.result()}
    assert codes == {200}
    decided = [(at - stepped_at, target) for at, target in targets(sky)]
    decided_s = min(after_s for after_s, target in decided if target > 1)
    assert decided_s <= 2.0, decided
    why = sky("serve", "why", "chat")
    assert "requests under way" in why
    assert "4 wanted, was" in why


def test_it_goes_to_zero_and_the_first_request_after_that_is_answered(sky: Sky) -> None:
    endpoint = up(sky, 0)
    for _ in range(2):
        assert post(endpoint)[0] == 200
        wait_for(lambda: not sky.replicas(), seconds=40, why="no replica is left")
    assert sky.service()["status"] == "NO_REPLICA"


def test_beyond_the_queue_a_client_is_told_when_to_come_again(sky: Sky) -> None:
    """One request waits, and the next is turned away with the time that the start is seen to take."""
    endpoint = up(sky, 0, queue=1, start_s=3.0)
    assert post(endpoint)[0] == 200
    wait_for(lambda: not sky.replicas(), seconds=40, why="no replica is left")
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(post, endpoint)
        wait_for(lambda: sky.replicas(), why="a replica is being started")
        code, headers = post(endpoint)
        again_s = int(headers["Retry-After"])
        assert (code, 1 <= again_s <= 8) == (429, True)
        assert first.result()[0] == 200
    assert post(endpoint)[0] == 200
