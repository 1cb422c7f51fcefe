"""Which version takes a request, where the routing table gives versions shares of the requests.

The version is drawn first, among those that can take any; the policy then picks among its replicas. What names a
session always draws the same lot, so it stays with its version while the shares stay, and as a newer version's share
grows it moves there once and never back. It must not know connections or time, and keeps no books.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from hashlib import blake2b
from random import Random
from typing import TypeVar

from skyserve.load_balancer.framing import RequestHead
from skyserve.load_balancer.policies import Candidate, Policy, SessionAffinity
from skyserve.model.routing import RoutingTable

C = TypeVar("C", bound=Candidate)


class Lots:
    """Draws the version, and lets a policy of its own pick: one that goes round would begin anew whenever the
    lot fell on another version."""

    def __init__(self, policy: Callable[[], Policy]) -> None:
        self._policy = policy
        self._policies: dict[int, Policy] = {}
        self._version: Mapping[int, int] = {}
        self._shares: Mapping[int, float] = {}

    def follow(self, table: RoutingTable, *, anew: bool) -> None:
        """Go by this table; `anew` when its policy is another one than before."""
        if anew or not table.shares:
            self._policies = {}
        self._version = {row.replica_id: row.version for row in table.endpoints} if table.shares else {}
        self._shares = table.shares

    def pick(self, request: RequestHead, candidates: Sequence[C], rng: Random) -> C:
        """One of the candidates, which are never empty."""
        by_version: dict[int, list[C]] = {}
        for candidate in candidates:
            by_version.setdefault(self._version.get(candidate.replica_id, 0), []).append(candidate)
        version = self._drawn(request, tuple(by_version), rng)
        return self._policy_of(version).pick(request, by_version[version], rng)

    def _drawn(self, request: RequestHead, versions: Sequence[int], rng: Random) -> int:
        parts = {version: self._shares.get(version, 0.0) for version in sorted(versions, reverse=True)}
        most = max(parts, key=lambda version: parts[version])
        if len(parts) == 1:
            return most
        lot = sum(parts.values()) * _draw(request, self._policy_of(most), rng)
        for version, part in parts.items():  # the newest first: who is there already stays there as it grows
            if lot < part:
                return version
            lot -= part
        return most

    def _policy_of(self, version: int) -> Policy:
        if version not in self._policies:
            self._policies[version] = self._policy()
        return self._policies[version]


def _draw(request: RequestHead, policy: Policy, rng: Random) -> float:
    """A number from 0 to below 1: of a session always the same."""
    session = policy.session(request) if isinstance(policy, SessionAffinity) else b""
    if not session:
        return rng.random()
    return int.from_bytes(blake2b(session, digest_size=6, salt=b"version").digest(), "big") / 2**48
