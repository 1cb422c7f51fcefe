"""What the door is told of a service's API keys: digests, made of secrets that stay here.

It must not know the door, nor what becomes of a table without keys.
"""

from __future__ import annotations

from hashlib import sha256

from skyserve.controller.senses import SecretReading
from skyserve.errors import StoreUnavailable
from skyserve.model.service import ServiceSpec


def digests(secrets: SecretReading, tag: str, version: int, spec: ServiceSpec) -> tuple[str, ...] | None:
    """The digests of a version's API keys; None when it wants none, and everybody may ask.

    Raises StoreUnavailable when one of them cannot be read: then nobody may take that for the absence of a key.
    """
    names = spec.load_balancer.api_keys
    if not names:
        return None
    values = secrets.get(tag, version)
    lost = [name for name in names if not values.get(name)]
    if lost:
        raise StoreUnavailable(
            f"The API key {lost[0]} of version {version} is not among the secrets that are kept.",
            hint="Give it again with `sky serve update`.",
        )
    return tuple(sorted({sha256(values[name].encode()).hexdigest() for name in names}))
