"""Bad versions under load, each in its own way: rolled back by itself, and hardly anybody notices."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.e2e.conftest import Sky, wait_for
from tests.e2e.test_service_life import Traffic

pytestmark = pytest.mark.e2e

ROLLOUT = "{canary_steps: [20, 50], step_seconds: 2, failure_budget: 2}"


def yaml(sky: Sky, replicas: int = 2, **envs: str) -> str:
    """A service whose replicas have a few seconds to get ready, and which lets a bad version go soon."""
    path = sky.yaml(replicas, **envs)
    quick = "endpoint_probe_interval_seconds: 1\n    initial_delay_seconds: 4"
    text = path.read_text().replace("endpoint_probe_interval_seconds: 1", quick)
    path.write_text(text.replace("retry: idempotent}", f"retry: idempotent}}\n  rollout: {ROLLOUT}"))
    return str(path)


def up(sky: Sky) -> str:
    sky("serve", "up", yaml(sky, ENGINE_VERSION="1"), "-n", "chat", "-y")
    return sky.endpoint()


def versions(sky: Sky) -> dict[int, dict[str, object]]:
    told = json.loads(sky("serve", "history", "chat", "-o", "json"))
    return {row["version"]: row for row in told["versions"]}


@pytest.mark.parametrize(
    ("mode", "envs", "why"),
    [
        ("rolling", {"EXIT": "3"}, "run ended with exit code 3"),
        ("canary", {"NEVER": "1"}, "not ready 4s after the start of setup"),
    ],
)
def test_a_version_that_never_serves_is_rolled_back_and_no_request_fails(
    sky: Sky, mode: str, envs: dict[str, str], why: str
) -> None:
    endpoint = up(sky)
    before = {id_: row["endpoint"] for id_, row in sky.ready().items()}
    with Traffic(f"{endpoint}/x") as traffic:
        sky("serve", "update", "chat", yaml(sky, ENGINE_VERSION="2", **envs), "--mode", mode, "-y", code=1)
        assert "version 2 was rolled back: 2 replicas failed in a row, and none was ever ready" in sky.err
        assert why in sky.err
        if "EXIT" in envs:
            assert "engine: no such model: gpt-none" in sky.err
        assert {id_: row["endpoint"] for id_, row in sky.ready().items()} == before, "the old ones serve as ever"
    assert traffic.failures == []
    assert traffic.of("version") == {"1"}
    assert versions(sky)[2]["status"] == "rolled back"
    assert "version 2 was rolled back" in sky("serve", "status", "chat")
    assert "ROLLED_BACK" in sky("serve", "why", "chat", "--tail", "100")


def test_a_version_that_fails_a_fifth_of_the_requests_is_rolled_back_before_a_hundredth_has_failed(sky: Sky) -> None:
    endpoint = up(sky)
    with Traffic(f"{endpoint}/slow", clients=12) as traffic:
        wait_for(lambda: len(traffic.answers) > 300, why="the old version answers")
        sky("serve", "update", "chat", yaml(sky, ENGINE_VERSION="2", FAILS="5"), "--mode", "canary", "-y", code=1)
        assert "of its answers failed" in sky.err
        asked = len(traffic.answers)
        wait_for(lambda: len(traffic.answers) > asked + 300, why="the old version answers alone again")
        assert traffic.of("version", last=50) == {"1"}
    assert 0 < len(traffic.failures) < 0.01 * len(traffic.answers)
    assert {row["version"] for row in sky.ready().values()} == {1}


def test_a_probe_that_asks_for_the_wrong_thing_touches_nobody(sky: Sky) -> None:
    endpoint = up(sky)
    before = {id_: row["endpoint"] for id_, row in sky.ready().items()}
    wrong = Path(yaml(sky, ENGINE_VERSION="1"))
    wrong.write_text(wrong.read_text().replace("path: /health", "path: /missing"))
    with Traffic(f"{endpoint}/x") as traffic:
        sky("serve", "update", "chat", str(wrong), "-y", code=1)
        assert "its readiness probe fails on replicas that are ready: GET /missing answered 404" in sky.err
        assert {id_: row["endpoint"] for id_, row in sky.ready().items()} == before
    assert traffic.failures == []


def test_a_sound_canary_takes_over_and_a_rollback_brings_the_old_version_back(sky: Sky) -> None:
    endpoint = up(sky)
    with Traffic(f"{endpoint}/x") as traffic:
        path = yaml(sky, ENGINE_VERSION="2")
        sky("serve", "update", "chat", path, "--mode", "canary", "-y")
        assert "+  ENGINE_VERSION: '2'" in sky.err
        assert {row["version"] for row in sky.ready().values()} == {2}
        wait_for(lambda: traffic.of("version", last=20) == {"2"}, why="the new version answers alone")
        sky("serve", "rollback", "chat", "-y")
        assert "which is version 1 over again" in sky.err
        assert "-  ENGINE_VERSION: '2'" in sky.err
        wait_for(lambda: traffic.of("version", last=20) == {"1"}, why="the old version answers again")
    assert traffic.failures == []
    told = versions(sky)
    assert {n: row["status"] for n, row in told.items()} == {1: "replaced", 2: "current", 3: "rolling out"}
    assert told[2]["changes"] == ["envs.ENGINE_VERSION"]
    assert told[3]["changes"] == ["as version 1"]
    assert Path(path).exists()
    sky("serve", "rollback", "chat", "--to", "9", "-y", code=2)
    assert "version 9 of 'chat' is not kept" in sky.err
