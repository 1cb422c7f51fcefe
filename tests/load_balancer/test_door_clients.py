"""Clients that others wrote, through the door: curl, OpenAI's library, node's fetch, aiohttp's WebSocket."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
from pathlib import Path

import aiohttp
import openai
import pytest
from tests.load_balancer.conftest import Request, Rig, Wire
from tests.load_balancer.test_door_conformance import echo

WORDS = ["The", " door", " is", " open", "."]
MODEL = {"id": "c1", "created": 1, "model": "m"}


async def engine(wire: Wire, request: Request) -> None:
    """As much of an engine as an OpenAI client needs: a whole answer, or one by events."""
    path = request.line.split(b" ")[1]
    if path == b"/v1/chat/completions" and json.loads(request.body).get("stream"):
        wire.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        for word in WORDS:
            choice = {"index": 0, "delta": {"content": word}, "finish_reason": None}
            event(wire, json.dumps({**MODEL, "object": "chat.completion.chunk", "choices": [choice]}))
            await asyncio.sleep(0.001)
        event(wire, "[DONE]")
        wire.send(b"0\r\n\r\n")
    elif path == b"/v1/chat/completions":
        message = {"role": "assistant", "content": "".join(WORDS)}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        body = json.dumps({**MODEL, "object": "chat.completion", "choices": [choice]}).encode()
        wire.send(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
    else:
        if request.one("expect") and request.one("content-length"):
            wire.send(b"HTTP/1.1 100 Continue\r\n\r\n")
            request.body = await wire.reader.readexactly(int(request.one("content-length") or 0))
        wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(request.body) + request.body)


def event(wire: Wire, text: str) -> None:
    data = f"data: {text}\n\n".encode()
    wire.send(b"%x\r\n%b\r\n" % (len(data), data))


async def said_by(*command: str, given: bytes = b"") -> bytes:
    pipe = asyncio.subprocess.PIPE
    stdin = pipe if given else asyncio.subprocess.DEVNULL  # who has nothing to say must not find that nobody listens
    process = await asyncio.create_subprocess_exec(*command, stdin=stdin, stdout=pipe, stderr=pipe)
    out, err = await asyncio.wait_for(process.communicate(given or None), 15.0)
    assert process.returncode == 0, err.decode()
    return out


def test_openai_library(rig_once) -> None:
    async def scenario(rig: Rig) -> None:
        await rig.replica(engine)
        messages = [{"role": "user", "content": "?"}]
        async with openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{rig.port}/v1", api_key="k", max_retries=0) as client:
            whole = await client.chat.completions.create(model="m", messages=messages)
            assert whole.choices[0].message.content == "".join(WORDS)
            parts = [
                part.choices[0].delta.content
                async for part in await client.chat.completions.create(model="m", messages=messages, stream=True)
            ]
            assert parts == WORDS
            await rig.until(lambda: rig.busy() == 0)

    rig_once(scenario)


def test_openai_library_understands_the_doors_own_errors(rig_once) -> None:
    async def scenario(rig: Rig) -> None:
        rig.settings(queue_size=0)
        async with openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{rig.port}/v1", api_key="k", max_retries=0) as client:
            with pytest.raises(openai.InternalServerError, match="no replica became ready in time") as raised:
                await client.models.list()
        assert (raised.value.status_code, raised.value.code) == (503, "no_replica_ready")

    rig_once(scenario)


@pytest.mark.skipif(shutil.which("curl") is None, reason="apt-get install curl")
def test_curl(rig_once) -> None:
    large = b"z" * 2_000_000

    async def scenario(rig: Rig) -> None:
        await rig.replica(engine)
        url = f"http://127.0.0.1:{rig.port}/echo"
        curl = ("curl", "-sS", "--fail", "--max-time", "10")
        assert await said_by(*curl, "-d", "a=b", url, url) == b"a=b" * 2
        assert await said_by(*curl, "-H", "Expect: 100-continue", "--data-binary", "@-", url, given=large) == large
        assert await said_by(*curl, "-T", "-", url, given=b"abc") == b"3\r\nabc\r\n0\r\n\r\n", "an upload in chunks"
        assert await said_by(*curl, "--http1.0", "-d", "old", url) == b"old"
        assert await said_by(*curl, "--http2", "-d", "x", url) == b"x", "an upgrade to HTTP/2 is not taken"
        assert b"200 OK" in await said_by(*curl, "-I", url)
        stream = f"http://127.0.0.1:{rig.port}/v1/chat/completions"
        events = (await said_by(*curl, "-N", "--json", '{"stream": true}', stream)).decode()
        assert [line for line in events.splitlines() if line][-1] == "data: [DONE]"
        assert events.count("data: ") == len(WORDS) + 1

    rig_once(scenario)


@pytest.mark.skipif(shutil.which("curl") is None, reason="apt-get install curl")
def test_curl_shows_people_a_sentence(rig_once) -> None:
    async def scenario(rig: Rig) -> None:
        rig.settings(queue_size=0)
        url, api = f"http://127.0.0.1:{rig.port}/", f"http://127.0.0.1:{rig.port}/v1/models"
        told = ("-w", "%{http_code} %{content_type} %header{retry-after}")
        sentence = "no replica became ready in time"
        assert (await said_by("curl", "-sS", *told, url)).decode() == f"{sentence}\n503 text/plain; charset=utf-8 5"
        body, _, rest = (await said_by("curl", "-sS", *told, api)).decode().rpartition("}")
        assert json.loads(body + "}")["error"]["message"] == sentence
        assert rest == "503 application/json 5"

    rig_once(scenario)


@pytest.mark.skipif(shutil.which("curl") is None, reason="apt-get install curl")
def test_curl_that_insists_on_http2_gets_a_clear_no(rig_once) -> None:
    async def scenario(rig: Rig) -> None:
        replica = await rig.replica(engine)
        pipe = asyncio.subprocess.PIPE
        insists = ("curl", "-sS", "--max-time", "10", "--http2-prior-knowledge", f"http://127.0.0.1:{rig.port}/")
        process = await asyncio.create_subprocess_exec(*insists, stdout=pipe, stderr=pipe)
        await asyncio.wait_for(process.communicate(), 15.0)
        assert process.returncode not in (0, 28), "it fails at once, and does not run out of time"
        assert rig.door.counters.responses == {505: 1}
        assert replica.accepted == 0

    rig_once(scenario)


WRK_SECONDS = 2
WRK_POST = """
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
wrk.body = '{"prompt": "' .. string.rep("x", 2000) .. '"}'
"""


@pytest.mark.skipif(shutil.which("wrk") is None, reason="apt-get install wrk")
@pytest.mark.parametrize("script", ["", WRK_POST], ids=["GET", "POST"])
def test_wrk(rig_once, tmp_path: Path, script: str) -> None:
    """Two seconds of it: no answer that is not 200, no connection that fails, and nothing left behind."""

    async def scenario(rig: Rig) -> None:
        replicas = [await rig.replica(engine), await rig.replica(engine)]
        lua = tmp_path / "wrk.lua"
        lua.write_text(script)
        wrk = ("wrk", "-t1", "-c8", f"-d{WRK_SECONDS}s", "-s", str(lua), f"http://127.0.0.1:{rig.port}/echo")
        said = (await said_by(*wrk)).decode()
        asked = int(re.search(r"(\d+) requests in", said)[1])
        assert "Non-2xx" not in said, said
        assert "Socket errors" not in said, said
        assert asked > 100
        await rig.until(lambda: rig.busy() == 0)
        assert set(rig.door.counters.responses) == {200}
        assert asked <= rig.door.counters.requests_total <= asked + 8
        assert sum(replica.accepted for replica in replicas) <= 2 * 8 + 8, "connections to replicas are kept"

    rig_once(scenario)


@pytest.mark.skipif(shutil.which("node") is None, reason="apt-get install nodejs")
def test_node_fetch(rig_once) -> None:
    program = """
    const url = process.argv[1];
    const ask = (stream) => fetch(url, {method: "POST", body: JSON.stringify({stream})});
    const whole = await (await ask(false)).json();
    let text = "";
    for await (const part of (await ask(true)).body) text += Buffer.from(part).toString();
    console.log(JSON.stringify([whole.choices[0].message.content, text.split("data: ").length - 1]));
    """

    async def scenario(rig: Rig) -> None:
        await rig.replica(engine)
        url = f"http://127.0.0.1:{rig.port}/v1/chat/completions"
        said = await said_by("node", "--input-type=module", "-e", program, url)
        assert json.loads(said) == ["".join(WORDS), len(WORDS) + 1]

    rig_once(scenario)


def test_aiohttp_websocket(rig_once) -> None:
    async def scenario(rig: Rig) -> None:
        async def greet(wire: Wire, request: Request) -> None:
            key = request.one("sec-websocket-key") or b""
            await echo(wire, request, accept=key)

        await rig.replica(greet)
        async with aiohttp.ClientSession() as session, session.ws_connect(f"http://127.0.0.1:{rig.port}/ws") as socket:
            await socket.send_str("hello")
            assert await socket.receive_str() == "hello"
            await socket.send_bytes(b"x" * 1_000_000)
            assert await socket.receive_bytes() == b"x" * 1_000_000
            await socket.ping()

    rig_once(scenario)
