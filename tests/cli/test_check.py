"""`sky check`: the report, its exit code, and names that nobody knows."""

from __future__ import annotations

import os

import pytest


@pytest.fixture
def here(sky, tmp_path):
    """A user whose home directory is the test's own, with bash on the PATH."""
    sky.environ = {"HOME": str(tmp_path), "PATH": os.defpath}
    return sky


def test_report(here, tmp_path):
    result = here("check", "local", "lambda")
    assert (result.code, result.err) == (0, "")
    assert result.out.splitlines() == [
        "Checking credentials to enable infra for SkyServe.",
        "  Local: enabled",
        "  Lambda: disabled",
        f"    Reason: there is no {tmp_path}/.lambda_cloud/lambda_keys",
        "    Hint: mkdir -p ~/.lambda_cloud && echo 'api_key = KEY' > ~/.lambda_cloud/lambda_keys",
        "",
        "To enable a cloud, follow the hints above and rerun: sky check",
        "",
        "Enabled infra",
        "  Local",
    ]


def test_nothing_of_what_was_asked_is_enabled(here):
    here.environ |= {"RUNPOD_API_KEY": "very-private", "RUNPOD_API_BASE_URL": "http://127.0.0.1:9"}
    result = here("check", "RunPod", "-v")
    assert result.code == 1
    assert "    Reason: RunPod: no answer" in result.out
    assert result.out.endswith("No infra to check/enabled.\n")
    assert "very-private" not in result.out


def test_verbose_says_what_this_machine_has(here):
    assert "    Details: " in here("check", "local", "-v").out
    assert "    Details: " not in here("check", "local").out


def test_json_of_everything(here):
    clouds = here("check", "-o", "json").json["clouds"]
    names = ["local", "aws", "azure", "gcp", "kubernetes", "lambda", "runpod", "ssh"]
    assert [one["name"] for one in clouds] == names
    assert [one["name"] for one in clouds if one["enabled"]] == ["local"]
    assert all(one["reason"] and one["hint"] for one in clouds if not one["enabled"])


def test_unknown_cloud(here):
    result = here("check", "azur")
    assert (result.code, result.err) == (2, "error: no cloud is called 'azur'\nhint: did you mean 'azure'?\n")
    assert "known: local, aws," in here("check", "zzz").err
