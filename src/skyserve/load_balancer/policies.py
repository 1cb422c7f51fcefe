"""Which replica takes a request. A policy looks at the books that the pool keeps and keeps none itself, but for the
place in its own round. It must not know connections, time or the routing table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from hashlib import blake2b
from math import log
from random import Random
from typing import Protocol, TypeVar

from skyserve.load_balancer.framing import RequestHead

DEFAULT_POLICY = "least_load"

ENTRY_POINTS = "skyserve.load_balancing_policies"
"""Entry-point group under which other packages offer policies: a name, and a callable without arguments."""


class Candidate(Protocol):
    """What a policy may know of a replica."""

    @property
    def replica_id(self) -> int:
        """Its id."""
        ...

    @property
    def weight(self) -> float:
        """Its relative capacity."""
        ...

    @property
    def in_flight(self) -> int:
        """Requests it has been given and has not finished."""
        ...

    @property
    def ewma_s(self) -> float:
        """Moving average of its time to the first byte of an answer; 0 while unknown."""
        ...


C = TypeVar("C", bound=Candidate)


class Policy(Protocol):
    """Chooses among the replicas that may be used now."""

    def pick(self, request: RequestHead, endpoints: Sequence[C], rng: Random) -> C:
        """One of `endpoints`, which is never empty and in the order of ids."""
        ...


class RoundRobin:
    """One after the other, by replica id."""

    def __init__(self) -> None:
        self._last = -1

    def pick(self, request: RequestHead, endpoints: Sequence[C], rng: Random) -> C:
        """See Policy."""
        chosen = _next_after(self._last, endpoints)
        self._last = chosen.replica_id
        return chosen


class LeastLoad:
    """The one with the fewest requests in flight; equals take turns."""

    def __init__(self) -> None:
        self._last = -1

    def pick(self, request: RequestHead, endpoints: Sequence[C], rng: Random) -> C:
        """See Policy."""
        last, least = self._last, endpoints[0]
        load = least.in_flight
        turn = least if least.replica_id > last else None
        for endpoint in endpoints:
            other = endpoint.in_flight
            if other < load:
                least, load = endpoint, other
                turn = endpoint if endpoint.replica_id > last else None
            elif turn is None and other == load and endpoint.replica_id > last:
                turn = endpoint
        chosen = turn or least
        self._last = chosen.replica_id
        return chosen


class PowerOfTwo:
    """Of two that are drawn at random the one with fewer requests in flight for its weight. With several doors in front
    of the same replicas it keeps them from running to the same one."""

    def pick(self, request: RequestHead, endpoints: Sequence[C], rng: Random) -> C:
        """See Policy."""
        if len(endpoints) == 1:
            return endpoints[0]
        first = rng.randrange(len(endpoints))
        second = (first + rng.randrange(1, len(endpoints))) % len(endpoints)
        one, other = endpoints[first], endpoints[second]
        return one if one.in_flight * other.weight <= other.in_flight * one.weight else other


class SessionAffinity:
    """The same one for the same session, as long as it is there; what names no session goes to the least loaded.

    Each session has an order of its own in which it prefers replicas (a hash of both), so that one which comes or goes
    moves only the sessions that belong on it, and all doors agree without a word.
    """

    def __init__(self, session_key: str) -> None:
        kind, _, name = session_key.partition(":")
        self._cookie = name.encode() + b"=" if kind == "cookie" else None
        self._field = b"cookie:" if kind == "cookie" else name.lower().encode() + b":"
        self._others = LeastLoad()

    def pick(self, request: RequestHead, endpoints: Sequence[C], rng: Random) -> C:
        """See Policy."""
        session = self.session(request)
        if not session:
            return self._others.pick(request, endpoints, rng)
        return max(endpoints, key=lambda endpoint: _attraction(session, endpoint))

    def session(self, request: RequestHead) -> bytes:
        """What names the session of a request; empty where nothing does."""
        size = len(self._field)
        for line in request.lines:
            if line[:size].lower() != self._field:
                continue
            value = line[size:].strip()
            if self._cookie is None:
                return value
            for pair in value.split(b";"):
                if pair.strip().startswith(self._cookie):
                    return pair.strip()
        return b""


def _attraction(session: bytes, endpoint: Candidate) -> float:
    """How much a session prefers a replica. Over all sessions each replica gets a share like its weight."""
    digest = blake2b(session, digest_size=6, salt=b"%d" % endpoint.replica_id).digest()
    return -endpoint.weight / log((int.from_bytes(digest, "big") + 1) / (2**48 + 2))


class InstanceAwareLeastLoad:
    """The one with the fewest requests in flight for its weight; equals take turns."""

    def __init__(self) -> None:
        self._last = -1

    def pick(self, request: RequestHead, endpoints: Sequence[C], rng: Random) -> C:
        """See Policy."""
        chosen = _least([endpoint.in_flight / endpoint.weight for endpoint in endpoints], endpoints, self._last)
        self._last = chosen.replica_id
        return chosen


def _least(loads: Sequence[float], endpoints: Sequence[C], last: int) -> C:
    least = min(loads)
    first: C | None = None
    for load, endpoint in zip(loads, endpoints, strict=True):
        if load == least:
            if endpoint.replica_id > last:
                return endpoint
            first = first or endpoint
    return first or endpoints[0]


def _next_after(last: int, endpoints: Sequence[C]) -> C:
    return min(endpoints, key=lambda endpoint: (endpoint.replica_id <= last, endpoint.replica_id))


_BUILT_IN: Mapping[str, Callable[[], Policy]] = {
    "round_robin": RoundRobin,
    "least_load": LeastLoad,
    "instance_aware_least_load": InstanceAwareLeastLoad,
    "power_of_two": PowerOfTwo,
}


def make_policy(name: str, session_key: str = "") -> Policy | None:
    """A fresh policy of that name: built in, or offered by an installed package. None when there is none."""
    if name == "session_affinity":
        return SessionAffinity(session_key)
    built_in = _BUILT_IN.get(name)
    if built_in is not None:
        return built_in()
    from importlib.metadata import entry_points  # slow to import, and most doors never need it

    for offered in entry_points(group=ENTRY_POINTS, name=name):
        policy: Policy = offered.load()()
        return policy
    return None
