"""`sky serve validate` and `schema`: offline, and honest in their exit codes."""

from __future__ import annotations

import pytest


@pytest.fixture
def bad(tmp_path):
    """A Service YAML with a misspelt key."""
    path = tmp_path / "bad.yaml"
    path.write_text("service:\n  replica: 2\nresources:\n  ports: 8080\nrun: x\n")
    return path


def test_valid(sky, yaml, home):
    result = sky("serve", "validate", str(yaml))
    assert (result.code, result.out, result.err) == (0, f"{yaml}: valid\n", "")
    assert not home.exists()


def test_every_file_is_judged(sky, yaml, bad):
    result = sky("serve", "validate", str(bad), str(yaml))
    assert (result.code, result.out) == (2, f"{yaml}: valid\n")
    assert f"error: {bad}:2:3: " in result.err


def test_json(sky, yaml, bad):
    result = sky("serve", "validate", str(yaml), str(bad), "-o", "json")
    assert result.code == 2
    good, wrong = result.json["files"]
    assert good == {"file": str(yaml), "valid": True, "warnings": []}
    assert wrong["valid"] is False
    assert wrong["error"]["where"] == f"{bad}:2:3"


def test_schema_is_a_json_schema(sky, home):
    found = sky("serve", "schema").json
    assert "service" in found["properties"]
    assert not home.exists()
