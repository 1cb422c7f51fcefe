"""The door's own errors: JSON for who speaks it, a sentence for everybody else, and the same sentence for both."""

from __future__ import annotations

import json

import pytest
from tests.load_balancer.conftest import Rig

from skyserve.load_balancer.headers import Failure, began_in_json, error_bytes, speaks_json


@pytest.mark.parametrize(
    ("target", "fields", "in_json"),
    [
        (b"/", b"", False),
        (b"/", b"Accept: */*", False),
        (b"/", b"Accept: text/html, application/xhtml+xml", False),
        (b"/", b"User-Agent: json", False),
        (b"/?a=/v1/", b"", False),
        (b"/v1", b"", False),
        (b"/v1/models", b"Accept: text/html", True),
        (b"/", b"Accept: application/json", True),
        (b"/", b"accept: text/html, Application/Problem+JSON;q=0.5", True),
        (b"/generate", b"CONTENT-TYPE: application/json; charset=utf-8", True),
    ],
)
@pytest.mark.parametrize("method", [b"GET", b"POST"])
def test_who_speaks_json_is_answered_in_json(
    rig_once, method: bytes, target: bytes, fields: bytes, in_json: bool
) -> None:
    async def scenario(rig: Rig) -> None:
        rig.settings(queue_size=0)
        request = b"%b %b HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n%b\r\n\r\n" % (method, target, fields or b"A: b")
        answer = await rig.ask(request)
        assert (answer.status, answer.one("retry-after")) == (503, b"5")
        kind, said = answer.one("content-type"), answer.body
        if in_json:
            error = json.loads(said)["error"]
            assert (kind, error["type"], error["code"]) == (b"application/json", "server_error", "no_replica_ready")
            said = f"{error['message']}\n".encode()
        else:
            assert kind == b"text/plain; charset=utf-8"
        assert said == b"no replica became ready in time\n"

    rig_once(scenario)


@pytest.mark.parametrize(
    ("data", "in_json"),
    [
        (b"", False),
        (b"\x16\x03\x01", False),
        (b"POST /v1/chat", True),
        (b"\r\n\r\nPOST /v1/chat HTTP/1.1\r\n", True),
        (b"POST / HTTP/1.1\r\nContent-Type: application/json", True),
        (b"POST / HTTP/1.1\r\nA: b\r\n\r\n\r\nContent-Type: application/json", False),
        (b"POST / HTTP/1.1\nContent-Type: application/json\n\n", False),
    ],
)
def test_as_much_of_a_head_as_there_is_tells(data: bytes, in_json: bool) -> None:
    assert began_in_json(data) is in_json


def test_a_body_is_announced_and_not_sent_where_none_may_be() -> None:
    failure = Failure(503, "no_replica_ready", "no replica", 7)
    for in_json in (False, True):
        whole = error_bytes(failure, json=in_json, connection=b"", with_body=True)
        head = error_bytes(failure, json=in_json, connection=b"", with_body=False)
        assert head.endswith(b"\r\n\r\n")
        assert whole.startswith(head)
        assert b"\r\nContent-Length: %d\r\n" % (len(whole) - len(head)) in head
    assert not speaks_json(b"/", b"")
