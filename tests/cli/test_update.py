"""`sky serve update`: the diff, the question, and the wait for the new version."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from skyserve.spec.load import load_service


@pytest.fixture
def serving(fake, yaml, make_service, make_replica):
    """A service `web` at version 1, from the YAML."""
    spec = replace(load_service(Path(yaml), fingerprint_key=bytes(32), name_suffix="0000").spec, name="web")
    fake.specs = {"web": (1, spec)}
    old, new = make_replica(1), make_replica(2, version=2)
    fake.script = {
        "web": [
            make_service("web", "READY", old, target=1),
            make_service("web", "READY", old, target=1, latest_version=2),
            make_service("web", "READY", old, replace(new, status="STARTING"), target=1, latest_version=2),
            make_service("web", "READY", old, new, target=1, latest_version=2),
            make_service("web", "READY", replace(old, status="DRAINING"), new, target=1, latest_version=2),
            make_service("web", "READY", new, new, target=1, latest_version=2),
        ]
    }
    return fake


def test_shows_the_diff_and_waits(sky, serving, yaml):
    yaml.write_text(yaml.read_text().replace("/health", "/ready"))
    result = sky("serve", "update", "web", str(yaml), "-y")
    assert result.code == 0, result.err
    assert result.out == "http://127.0.0.1:30001\n"
    assert "-  readiness_probe: /health\n+  readiness_probe: /ready\n" in result.err
    assert "replica 1    DRAINING" in result.err
    (body,) = serving.calls("PUT", "/v1/services/web")
    assert body["mode"] == "rolling"
    assert body["spec"]["name"] == "web"


def test_blue_green_and_json(sky, serving, yaml):
    result = sky("serve", "update", "web", str(yaml), "-y", "--mode", "blue_green", "-o", "json")
    assert result.json["latest_version"] == 2
    (body,) = serving.calls("PUT", "/v1/services/web")
    assert body["mode"] == "blue_green"


def test_same_yaml_is_said(sky, serving, yaml):
    result = sky("serve", "update", "web", str(yaml), "--env", "A=1", "--dryrun")
    assert "The Service YAML is that of version 1; flags, envs or secrets differ." in result.err
    assert serving.calls("PUT", "/v1/services/web") == []


def test_secrets_are_not_in_the_diff(sky, serving, yaml):
    yaml.write_text(yaml.read_text() + "secrets:\n  HF_TOKEN: very-private-value\n")
    result = sky("serve", "update", "web", str(yaml), "--dryrun")
    assert "HF_TOKEN" in result.err
    assert "very-private-value" not in result.err


def test_the_question(sky, serving, yaml):
    result = sky("serve", "update", "web", str(yaml), answer="n\n")
    assert result.code == 2
    assert "Updating service 'web'. Proceed? [Y/n]: " in result.err
    assert "Nothing was changed." in result.err


def test_unknown_service(sky, fake, yaml):
    result = sky("serve", "update", "nope", str(yaml), "-y")
    assert result.code == 1
    assert "no service is called 'nope'" in result.err


def test_a_version_that_never_gets_ready(sky, serving, yaml, make_service, make_replica):
    old, broken = make_replica(1), make_replica(2, "FAILED", version=2, detail="boom")
    serving.script["web"][2:] = [make_service("web", "READY", old, broken, target=1, latest_version=2)]
    result = sky("serve", "update", "web", str(yaml), "-y")
    assert result.code == 1
    assert "does not get version 2 ready; older replicas serve on" in result.err
    assert "boom" in result.err


def test_ctrl_c_while_waiting(sky, serving, yaml):
    sky.interrupt_after_sleeps = 1
    result = sky("serve", "update", "web", str(yaml), "-y")
    assert result.code == 130
    assert "Service 'web' keeps updating without this command." in result.err
