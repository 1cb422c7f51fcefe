"""What the text of `run` tells about the port that it will listen on."""

from __future__ import annotations

import pytest

from skyserve.spec.listening import asks_for_its_port, hard_codes_port


@pytest.mark.parametrize(
    ("run", "asks", "hard_coded"),
    [
        ("vllm serve m --port 8080", False, True),
        ("vllm serve m --port $PORT", True, False),
        ('vllm serve m --port "${SKYSERVE_REPLICA_PORT:-8080}"', True, False),
        ("vllm serve m --port $MY_PORT", False, False),
        ("vllm serve m --port 18080 --seed 80801", False, False),
        ("serve http://0.0.0.0:8080/", False, True),
    ],
)
def test_tells_who_has_a_port_of_its_own_mind(run: str, asks: bool, hard_coded: bool) -> None:
    assert asks_for_its_port(run) is asks
    assert hard_codes_port(run, 8080) is hard_coded
