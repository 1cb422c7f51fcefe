"""On which port a `run` script will listen, as far as its text tells. Knows the variables that say a replica's port;
must not know where replicas run."""

from __future__ import annotations

import re

PORT_VARIABLE = "$SKYSERVE_REPLICA_PORT"
"""What a script should listen on, wherever it runs; `$PORT` for short."""

_ASKS = re.compile(r"\b(?:SKYSERVE_REPLICA_)?PORT\b")


def asks_for_its_port(run: str) -> bool:
    """Whether a `run` text mentions $PORT or $SKYSERVE_REPLICA_PORT, and so can listen wherever it is told to."""
    return _ASKS.search(run) is not None


def hard_codes_port(run: str, port: int) -> bool:
    """Whether a `run` text certainly listens on this port and no other: it says the number, and asks for no port."""
    return re.search(rf"(?<![\d.]){port}(?![\d.])", run) is not None and not asks_for_its_port(run)
