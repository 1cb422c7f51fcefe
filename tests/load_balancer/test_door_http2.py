"""HTTP/2 is not spoken, and whoever tries it is told so at once."""

from __future__ import annotations

import asyncio

import pytest
from tests.load_balancer.conftest import Rig

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS = b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"
HEADERS = b"\x00\x00\x05\x01\x05\x00\x00\x00\x01\x82\x86\x84\x41\x01"
UPGRADE = (
    b"POST /v1/x HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: %b\r\n"
    b"HTTP2-Settings: AAMAAABkAAQAAP__\r\nContent-Length: 3\r\n\r\nabc"
)


@pytest.mark.parametrize("step", [1, 7, 1000])
def test_prior_knowledge_is_refused_and_the_connection_ends(rig, step: int) -> None:
    said = PREFACE + SETTINGS + HEADERS

    async def scenario(rig: Rig) -> None:
        replica = await rig.replica()
        client = await rig.client()
        for start in range(0, len(said), step):
            client.send(said[start : start + step])
            await asyncio.sleep(0)
        answer = await client.answer()
        assert (answer.status, answer.one("connection")) == (505, b"close")
        assert answer.body == b"only HTTP/1.0 and HTTP/1.1 are spoken here\n"
        assert await client.ended()
        assert replica.accepted == 0

    rig(scenario)


@pytest.mark.parametrize("to", [b"h2c", b"H2C, websocket"])
def test_an_upgrade_is_answered_in_http1(rig, to: bytes) -> None:
    async def scenario(rig: Rig) -> None:
        replica = await rig.replica()
        client = await rig.client()
        for _ in range(2):
            client.send(UPGRADE % to)
            assert (await client.answer()).body == b"ok"
        assert [request.body for request in replica.requests] == [b"abc", b"abc"]
        for request in replica.requests:
            assert request.all("upgrade") + request.all("http2-settings") + request.all("connection") == []

    rig(scenario)
