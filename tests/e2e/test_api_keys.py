"""API keys as a user meets them: given, asked for, taken away, and nowhere to be read."""

from __future__ import annotations

import urllib.error
import urllib.request
from pathlib import Path

import pytest
from tests.e2e.conftest import Sky, processes_of, wait_for

pytestmark = pytest.mark.e2e

FIRST, SECOND = "first-0123456789abcdef", "second-0123456789abcdef"


def status(url: str, key: str) -> int:
    request = urllib.request.Request(f"{url}/x", headers={"Authorization": f"Bearer {key}"} if key else {})
    try:
        with urllib.request.urlopen(request, timeout=10) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        error.close()
        return error.code


def write(sky: Sky, *names: str) -> Path:
    path = sky.yaml(1, extra="secrets: {ALICE: null, BOB: null}\n")
    path.write_text(path.read_text().replace("idempotent}", f"idempotent, api_keys: [{', '.join(names)}]}}"))
    return path


def test_keys_are_asked_for_replaced_and_never_shown(sky: Sky) -> None:
    given = sky.home.parent / "keys.env"
    given.write_text(f"ALICE={FIRST}\nBOB={SECOND}\n")
    flags = ("--secret-file", str(given), "-y")
    sky("serve", "up", str(write(sky, "ALICE", "BOB")), "-n", "chat", *flags)
    endpoint = sky.endpoint()
    assert [status(endpoint, key) for key in (FIRST, SECOND, "other", "")] == [200, 200, 401, 401]

    (before,) = sky.ready()
    sky("serve", "update", "chat", str(write(sky, "BOB")), *flags)
    wait_for(lambda: status(endpoint, FIRST) == 401, why="a key that was taken away opens nothing")
    assert status(endpoint, SECOND) == 200
    assert set(sky.ready()) == {before}, "no replica was touched"

    given.write_text(f"ALICE={FIRST}\nBOB={FIRST[::-1]}\n")
    sky("serve", "update", "chat", str(write(sky, "BOB")), *flags)
    assert [status(endpoint, key) for key in (FIRST[::-1], SECOND)] == [200, 401]

    kept = [path for path in sky.home.rglob("*") if path.is_file() and "secrets" not in path.parts]
    assert any(path.name == "table.json" for path in kept)
    assert not [path for path in kept if any(key.encode() in path.read_bytes() for key in (FIRST, SECOND))]
    assert not [line for line in processes_of(sky.home).values() if FIRST in line or SECOND in line]
