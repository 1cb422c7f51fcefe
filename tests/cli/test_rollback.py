"""`sky serve history` and `sky serve rollback`, and what `status` and `update` tell of rollouts."""

from __future__ import annotations

from dataclasses import replace

import pytest

from skyserve.cli import tables
from skyserve.model.view import HistoryView, RejectedView, RolloutView, VersionView

ROWS = (
    VersionView(1, 1_700_000_000.0, "rolling", "replaced", source="run: one\n"),
    VersionView(
        2, 1_700_000_100.0, "canary", "current", changes=("envs.A", "envs.B", "port", "run", "setup"), source="x"
    ),
    VersionView(3, 1_700_000_200.0, "rolling", "rolled back", "2 replicas failed", ("as version 1",), "run: three\n"),
)
GATE = RolloutView(2, 1, "canary", "proving", 1, 3, 0.05, 40, 2, 700, 1)


@pytest.fixture
def serving(fake, make_service, make_replica):
    """A service `web` whose third version was rolled back."""
    old, new = make_replica(1, version=2), make_replica(2, version=4)
    fake.history = HistoryView(ROWS, current=2, back_to=1)
    fake.script = {
        "web": [
            make_service("web", "READY", old, target=1, latest_version=3),
            make_service("web", "READY", old, target=1, latest_version=4),
            make_service("web", "READY", new, target=1, latest_version=4),
        ]
    }
    return fake


def test_history_is_a_table(sky, serving):
    result = sky("serve", "history", "web")
    lines = result.out.splitlines()
    assert lines[0] == "Versions of 'web'"
    assert lines[1].split() == ["VERSION", "CREATED", "MODE", "STATUS", "CHANGES"]
    assert "envs.A, envs.B, port, run, 1 more" in lines[3]
    assert "rolled back: 2 replicas failed" in lines[4]
    assert "sky serve rollback web" in result.err


def test_history_as_json(sky, serving):
    document = sky("serve", "history", "web", "-o", "json").json
    assert (document["current"], document["back_to"]) == (2, 1)
    assert [row["status"] for row in document["versions"]] == ["replaced", "current", "rolled back"]


def test_rollback_shows_what_changes_back_and_waits(sky, serving):
    result = sky("serve", "rollback", "web", "-y")
    assert result.code == 0, result.err
    assert "-run: three\n+run: one\n" in result.err
    assert "gets version 4, which is version 1 over again (rolling)" in result.err
    assert serving.calls("POST", "/v1/services/web/rollback") == [{"to": 1, "mode": "rolling"}]
    assert result.out == "http://127.0.0.1:30001\n"


def test_rollback_to_a_version_that_is_not_kept(sky, serving):
    result = sky("serve", "rollback", "web", "--to", "7", "-y")
    assert result.code == 2
    assert "these are: 1, 2, 3" in result.err
    serving.history = replace(serving.history, back_to=None)
    assert "no other version of 'web' ever served" in sky("serve", "rollback", "web", "-y").err


def test_rollback_asks(sky, serving):
    result = sky("serve", "rollback", "web", "--to", "2", answer="n\n")
    assert "Going back to version 2 of service 'web'. Proceed?" in result.err
    assert serving.calls("POST", "/v1/services/web/rollback") == []


def test_status_tells_how_far_an_update_has_come(sky, fake, make_service, make_replica):
    fake.services["web"] = make_service("web", "READY", make_replica(1), rollout=GATE, latest_version=2)
    told = sky("serve", "status", "web").out
    assert (
        "web: version 2 is proving (canary, step 1 of 3: up to 5% of the requests); "
        "failed answers: version 2 2 of 40, version 1 1 of 700"
    ) in told


def test_status_keeps_why_a_version_was_rolled_back_with_its_last_words(sky, fake, make_service, make_replica):
    rejected = RejectedView(2, 1.0, "3 replicas failed in a row", "run ended with exit code 3\nno such model")
    fake.services["web"] = make_service("web", "READY", make_replica(1), rejected=(rejected,), latest_version=2)
    told = sky("serve", "status", "web").out
    assert "web: version 2 was rolled back: 3 replicas failed in a row\n  run ended with exit code 3\n  no such" in told
    fake.services["web"] = replace(fake.services["web"], latest_version=3)
    assert "rolled back" not in sky("serve", "status", "web").out


def test_an_update_that_is_rolled_back_says_so_and_fails(sky, fake, yaml, make_service, make_replica):
    from pathlib import Path

    from skyserve.spec.load import load_service

    spec = replace(load_service(Path(yaml), fingerprint_key=bytes(32), name_suffix="0000").spec, name="web")
    fake.specs = {"web": (1, spec)}
    old, rejected = make_replica(1), RejectedView(2, 1.0, "it failed", "boom")
    going = make_service("web", "READY", old, target=1, latest_version=2, rollout=GATE)
    fake.script = {
        "web": [
            make_service("web", "READY", old, target=1),
            going,
            replace(going, rollout=None, rejected=(rejected,)),
        ]
    }
    result = sky("serve", "update", "web", str(yaml), "--mode", "canary", "-y")
    assert result.code == 1
    assert "service 'web' goes back: version 2 was rolled back: it failed\n  boom" in result.err
    (body,) = fake.calls("PUT", "/v1/services/web")
    assert body["mode"] == "canary"


def test_nothing_is_told_of_a_service_without_an_update(make_service):
    assert tables.rollout_lines(make_service("web", "READY")) == []
