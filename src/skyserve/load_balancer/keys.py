"""Who may ask: the API keys of a service, of which the door knows nothing but SHA-256 digests.

Pure: heads in, yes or no out. It must not know connections, nor where keys come from.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import replace
from hashlib import sha256

from skyserve.load_balancer.framing import RequestHead
from skyserve.load_balancer.headers import Failure
from skyserve.model.routing import RoutingTable

_FIELDS = re.compile(rb"\r\n(?i:(authorization)|x-api-key):[ \t]*+([^\r]*)")
_BEARER = re.compile(rb"(?i:bearer)[ \t]++([^ \t].*)", re.DOTALL)
_MOST = 2
"""Fields that can show a key, each of them once."""

MISSING = Failure(401, "invalid_api_key", "this endpoint needs an API key: send `Authorization: Bearer KEY`")
WRONG = Failure(401, "invalid_api_key", "the API key is not one of this endpoint")

Shown = tuple[bytes, ...]
"""The keys that a request shows."""


class Keys:
    """The keys of one set of digests, in hex. Another set is another object: what the one has admitted, the other has
    not. An empty set admits nobody."""

    __slots__ = ("_digests", "hex")

    def __init__(self, digests: Collection[str]) -> None:
        self.hex = frozenset(digests)
        # Looking a digest up takes a time that depends on its bytes. That tells nothing: nobody can choose a key by the
        # begin of its SHA-256, and from the digest no way leads back to the key.
        self._digests = frozenset(bytes.fromhex(digest) for digest in digests)

    def admits(self, shown: Shown) -> bool:
        """Whether one of them is right."""
        return any(sha256(key).digest() in self._digests for key in shown)


class Visitor:
    """What one connection has shown: what was right once is not hashed again while the keys are the same."""

    __slots__ = ("_admitted_by", "_shown")

    def __init__(self) -> None:
        self._shown: Shown = ()
        self._admitted_by: Keys | None = None

    def refusal(self, keys: Keys, head: RequestHead) -> Failure | None:
        """Why a request is not let in, or None; then its head is marked for the next one that has the same."""
        shown = shown_by(head.fields)
        if self._admitted_by is not keys or shown != self._shown:
            if not keys.admits(shown):
                return WRONG if shown else MISSING
            self._shown, self._admitted_by = shown, keys
        head.admitted_by = keys
        return None


def shown_by(fields: bytes) -> Shown:
    """The keys in `Authorization: Bearer KEY` and in `X-API-Key: KEY`. A field that is there twice shows none: the
    replica could read the other one."""
    found = _FIELDS.findall(fields)
    if not found or len(found) > _MOST or (len(found) == _MOST and bool(found[0][0]) == bool(found[1][0])):
        return ()
    shown = []
    for authorization, value in found:
        key = value.rstrip(b" \t")
        if authorization:
            bearer = _BEARER.fullmatch(key)
            key = bearer[1] if bearer else b""
        if key:
            shown.append(key)
    return tuple(shown)


def for_table(table: RoutingTable, before: Keys | None) -> Keys | None:
    """The keys that a table wants, None when everybody may ask; the same object as `before` while they are the same."""
    if table.keys_unread:
        return before or Keys(())
    if table.api_keys is None:
        return None
    return before if before is not None and before.hex == frozenset(table.api_keys) else Keys(table.api_keys)


def with_keys_in_force(table: RoutingTable, before: RoutingTable) -> RoutingTable:
    """The table itself, but for one that was written while the keys could not be read: it goes on with those of the
    one `before`, and where there are none it lets nobody in."""
    if not table.keys_unread:
        return table
    return replace(table, api_keys=before.api_keys or (), keys_unread=False)
