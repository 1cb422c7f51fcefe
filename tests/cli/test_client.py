"""The control API's client: errors come back as the classes they left as."""

from __future__ import annotations

import json

import pytest

from skyserve import errors
from skyserve.cli.client import ControlClient, refused
from skyserve.errors import SkyServeError


def _all(cls: type[SkyServeError]) -> list[type[SkyServeError]]:
    return [cls, *(found for child in cls.__subclasses__() for found in _all(child))]


@pytest.mark.parametrize("cls", [cls for cls in _all(SkyServeError) if cls is not errors.Throttled])
def test_every_error_code_is_known(cls):
    body = json.dumps({"error": {"code": cls.code, "message": "it failed", "hint": "do this"}}).encode()
    error = refused(500, body)
    assert type(error) is cls
    assert (error.message, error.hint, error.exit_code) == ("it failed", "do this", cls.exit_code)


def test_throttled_needs_no_number():
    error = refused(429, b'{"error": {"code": "THROTTLED", "message": "slow down", "hint": null}}')
    assert (error.message, error.hint) == ("slow down", None)


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b'{"detail": "x"}'])
def test_an_answer_that_is_not_ours(body):
    assert "HTTP status 502" in refused(502, body).message


def test_wrong_token(sky, fake):
    fake.token = "another"
    result = sky("serve", "status", "-o", "json")
    assert result.code == 4
    assert result.json["error"]["code"] == "UNAUTHORIZED"


@pytest.mark.parametrize("document", [b"no json", {"services": [{"name": 1}]}, {}])
def test_an_answer_of_another_version(sky, fake, document):
    fake.refuse = {"GET /v1/services": (200, document)}
    result = sky("serve", "status")
    assert result.code == 1
    assert "is it of another version?" in result.err


def test_an_error_of_the_controller_is_shown_as_it_is(sky, fake):
    document = {"error": {"code": "STORE_UNAVAILABLE", "message": "the disk is full", "hint": "free some space"}}
    fake.refuse = {"GET /v1/services": (503, document)}
    result = sky("serve", "status")
    assert (result.code, result.err) == (1, "error: the disk is full\nhint: free some space\n")


def test_nobody_listens():
    with pytest.raises(errors.ControllerUnavailable, match="cannot be reached"):
        ControlClient("http://127.0.0.1:9", "t", timeout_s=5).services()
