"""Kubernetes' objects as they come over the wire: reading parts of them, quantities, instants, and names that it
accepts. Pure; knows the shape of Kubernetes' API and nothing of servers."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from datetime import datetime

Object = Mapping[str, object]
"""One object of the API, as JSON has it."""

_LABEL_LIMIT = 63
_LABEL = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")
_SUFFIXES = {
    **{letter: 1000.0**power for power, letter in enumerate("kMGTPE", start=1)},
    **{f"{letter}i": 1024.0**power for power, letter in enumerate("KMGTPE", start=1)},
    **{"n": 1e-9, "u": 1e-6, "m": 1e-3, "": 1.0},
}
_QUANTITY = re.compile(r"([+-]?[0-9.]+(?:[eE][+-]?[0-9]+)?)([KMGTPE]i|[numkMGTPE]?)")
GIB = 1024.0**3


def at(thing: object, *path: str) -> object:
    """What lies at a path of keys; None where it leads nowhere."""
    for key in path:
        if not isinstance(thing, Mapping):
            return None
        thing = thing.get(key)
    return thing


def text(thing: object, *path: str) -> str:
    """The string at a path; empty where there is none."""
    found = at(thing, *path)
    return found if isinstance(found, str) else ""


def number(thing: object, *path: str) -> int | None:
    """The integer at a path."""
    found = at(thing, *path)
    return found if isinstance(found, int) and not isinstance(found, bool) else None


def part(thing: object, *path: str) -> Object:
    """The object at a path; an empty one where there is none."""
    found = at(thing, *path)
    return found if isinstance(found, Mapping) else {}


def listed(thing: object, *path: str) -> Sequence[Object]:
    """The objects of the list at a path."""
    found = at(thing, *path)
    return [one for one in found if isinstance(one, Mapping)] if isinstance(found, list) else []


def strings(thing: object, *path: str) -> Mapping[str, str]:
    """The string values of the object at a path: labels, annotations."""
    return {key: value for key, value in part(thing, *path).items() if isinstance(value, str)}


def quantity(written: object) -> float:
    """`500m`, `16Gi` or `2` as a number (bytes, CPUs, pieces); 0 for what is none."""
    match = _QUANTITY.fullmatch(str(written).strip())
    if match is None:
        return 0.0
    try:
        return float(match[1]) * _SUFFIXES[match[2]]
    except ValueError:
        return 0.0


def instant(written: str) -> float | None:
    """An RFC 3339 time as Unix seconds."""
    try:
        return datetime.fromisoformat(written.replace("Z", "+00:00")).timestamp()
    except ValueError:
        return None


def condition(thing: object, kind: str) -> Object:
    """The condition of that type in an object's status; an empty one where there is none."""
    return next((one for one in listed(thing, "status", "conditions") if text(one, "type") == kind), {})


def label_value(exact: str) -> str:
    """`exact` where it may be the value of a label, otherwise a digest that may."""
    return exact if _LABEL.fullmatch(exact) else f"x-{digest(exact)}"


def object_name(readable: str, *unique: str) -> str:
    """A DNS label that tells people something and is unique to `unique`."""
    slug = re.sub(r"[^a-z0-9]+", "-", readable.lower()).strip("-")[: _LABEL_LIMIT - 20].strip("-")
    return "-".join(["sky", *([slug] if slug else []), digest(*unique)])


def digest(*parts: str) -> str:
    """Twelve characters that stand for the parts."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:12]
