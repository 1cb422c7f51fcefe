"""The routing table: what the controller tells the door, as a value with a number."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from skyserve.model.service import LoadBalancer, ReplicaTls, Tls


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One row of the routing table. A draining row gets no new requests, but keeps those it has.

    `address` is `host:port`; `weight` is the replica's relative capacity; `tls` says how to speak TLS to it, and None
    that it speaks in plain text. `version` is what its answers are counted under.
    """

    replica_id: int
    address: str
    weight: float = 1.0
    draining: bool = False
    tls: ReplicaTls | None = None
    version: int = 0


@dataclass(frozen=True, slots=True)
class RoutingTable:
    """All that a door needs to know. A table with a higher `number` replaces the one before it.

    `tls` are the files of the endpoint's key and certificate; without them it is not encrypted.
    `closing` is set while the service goes down: new requests are refused, those under way end in peace.
    `shares` are the parts, of 1, that the versions named in it get of the new requests while each of them can take any;
    without it all replicas are alike.
    `ready_at` is when another replica is expected to be ready, Unix seconds, and `start_s` how many seconds a replica
    takes from its launch to its readiness, as far as that is known: what clients that cannot be served now are told.
    `api_keys` are SHA-256 digests, in hex, of the keys of which a request must show one: None lets everybody in, none
    of them nobody. `keys_unread`: keys are wanted and could not be read; those in force stay, and without any nobody
    is let in.
    """

    number: int
    policy: str = "least_load"
    settings: LoadBalancer = LoadBalancer()
    endpoints: tuple[Endpoint, ...] = ()
    closing: bool = False
    tls: Tls | None = None
    shares: Mapping[int, float] = field(default_factory=dict)
    ready_at: float | None = None
    start_s: float | None = None
    api_keys: tuple[str, ...] | None = None
    keys_unread: bool = False
