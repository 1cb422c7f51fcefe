"""The routing table: what the controller tells the door, as a value with a number."""

from __future__ import annotations

from dataclasses import dataclass

from skyserve.model.service import LoadBalancer, ReplicaTls, Tls


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One row of the routing table. A draining row gets no new requests, but keeps those it has.

    `address` is `host:port`; `weight` is the replica's relative capacity; `tls` says how to speak TLS to it, and None
    that it speaks in plain text.
    """

    replica_id: int
    address: str
    weight: float = 1.0
    draining: bool = False
    tls: ReplicaTls | None = None


@dataclass(frozen=True, slots=True)
class RoutingTable:
    """All that a door needs to know. A table with a higher `number` replaces the one before it.

    `tls` are the files of the endpoint's key and certificate; without them it is not encrypted.
    `closing` is set while the service goes down: new requests are refused, those under way end in peace.
    """

    number: int
    policy: str = "least_load"
    settings: LoadBalancer = LoadBalancer()
    endpoints: tuple[Endpoint, ...] = ()
    closing: bool = False
    tls: Tls | None = None
