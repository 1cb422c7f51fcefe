"""Whatever happens to requests, in whatever order, the counts come back to zero (the rig looks after each test)."""

from __future__ import annotations

import asyncio
from random import Random

import pytest


def misbehaving(rng: Random):
    async def script(wire, request) -> None:
        what = rng.randrange(9)
        await asyncio.sleep(rng.random() * 0.01)
        if what == 0:
            wire.writer.transport.abort()
        elif what == 1:
            wire.close()
        elif what == 2:
            wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc")
            await asyncio.sleep(rng.random() * 0.01)
            wire.close()
        elif what == 3:
            wire.send(b"HTTP/1.1 200 OK\r\n\r\nabc")
            wire.close()
        elif what == 4:
            wire.send(b"junk\r\n\r\n")
        elif what == 5:
            await asyncio.sleep(0.4)
        else:
            wire.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
            await asyncio.sleep(rng.random() * 0.01)
            wire.send(b"0\r\n\r\n")

    return script


async def customer(rig, rng: Random) -> int:
    """One client with some requests, and little patience; how many good requests were answered."""
    client = await rig.client()
    answered = 0
    for _ in range(rng.randrange(1, 5)):
        body = b"x" * rng.choice([0, 3, 100_000])
        declared = len(body) + rng.choice([0, 0, 0, 50])
        head = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % declared
        good = rng.random() < 0.9
        client.send(head + body if good else b"bad\n\n")
        try:
            if rng.random() < 0.2:
                await asyncio.sleep(rng.random() * 0.02)
                break
            answer = await asyncio.wait_for(client.answer(), 0.3)
        except (TimeoutError, OSError, asyncio.IncompleteReadError):
            break
        answered += good
        if not answer.whole or answer.one("connection") == b"close":
            break
    client.reset() if rng.random() < 0.3 else client.close()
    return answered


@pytest.mark.parametrize("seed", range(3))
def test_counts_come_back_to_zero(rig, seed: int) -> None:
    rng = Random(seed)

    async def scenario(rig) -> None:
        replicas = [await rig.replica(misbehaving(rng)) for _ in range(3)]
        rig.settings(stream_timeout_seconds=0.3, queue_size=5, queue_timeout_seconds=0.3)
        customers = [asyncio.create_task(customer(rig, rng)) for _ in range(60)]
        for _ in range(6):
            await asyncio.sleep(0.04)
            some = rng.sample(replicas, rng.randrange(4))
            rig.list(*some[1:], draining=tuple(some[:1]))
        victim = rng.choice(replicas)
        await victim.stop()
        rig.list(*replicas)
        answered = sum(await asyncio.gather(*customers))
        await victim.start()
        assert rig.door.counters.requests_total >= max(answered, 1)

    rig(scenario)
