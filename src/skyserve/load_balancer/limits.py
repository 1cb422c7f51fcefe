"""How long the door waits for others: clients, replicas, connections. One value, handed to whoever waits.

It knows durations and what they are good for, and nothing of how they are kept.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """Durations in seconds. They bound what a client can hold on to without doing anything; none of them bounds how
    long an answer or an upload may take that goes on.

    `idle_s`: a client's connection without a request.
    `head_s`: a request head, from its first byte.
    `stall_s`: a client that takes no byte of what waits for it, or sends none of the body it has promised.
    `linger_s`: what a client still sends is thrown away for so long, so that it can read an answer that came early.
    `settle_s`: a replica that dropped a request and accepts connections this much later did not die of it.
    """

    idle_s: float = 120.0
    head_s: float = 30.0
    stall_s: float = 300.0
    linger_s: float = 2.0
    settle_s: float = 1.0
