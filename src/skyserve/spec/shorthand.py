"""The short forms of `resources:`, from text to model: `8+`, `A100:4`, `aws/us-east-1`, `1TB`, `8080-8082`."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from skyserve.model import accelerators
from skyserve.model.resources import Accelerator, Quantity
from skyserve.model.source import GitSource, git_source
from skyserve.spec.problems import shown

KNOWN_ACCELERATORS = accelerators.NAMES
"""Canonical names of accelerators that clouds offer; others are kept as they are written."""

KNOWN_CLOUDS = (
    "aws", "azure", "cudo", "do", "fluidstack", "gcp", "hyperbolic", "ibm", "kubernetes", "lambda", "local", "nebius",
    "oci", "paperspace", "primeintellect", "runpod", "scp", "seeweb", "shadeform", "slurm", "ssh", "vast", "vsphere",
)  # fmt: skip
"""Names of places to run in; others are kept as they are written."""

_CLOUD_ALIASES = {"k8s": "kubernetes"}
_CONTEXT_CLOUDS = frozenset({"kubernetes", "ssh", "slurm"})  # what follows them is one name, slashes and all
_GIB = {"": 1.0, "g": 1.0, "gi": 1.0, "gb": 1.0, "gib": 1.0, "m": 1 / 1024, "mi": 1 / 1024, "mb": 1 / 1024,
        "mib": 1 / 1024, "t": 1024.0, "ti": 1024.0, "tb": 1024.0, "tib": 1024.0}  # fmt: skip
_MOST_PORTS = 100


class Malformed(ValueError):
    """A short form that cannot be read; the text ends a sentence that begins with the key, as in "must be ..."."""


def accelerator(text: str, count: float | None = None) -> Accelerator:
    """`L4`, `A100:8` or a name with its count given apart; the name in its canonical spelling."""
    name, colon, written = text.rpartition(":") if ":" in text else (text, "", "")
    if colon and count is not None:
        raise Malformed(f"gives two counts for {shown(text)}")
    amount = float(written) if colon else 1.0 if count is None else count
    if not 0 < amount < 10_000:
        raise Malformed(f"must ask for more than 0 and less than 10000 accelerators, not {shown(text)}")
    return Accelerator(canonical_accelerator(name), int(amount) if amount.is_integer() else amount)


def canonical_accelerator(name: str) -> str:
    """The canonical spelling of a known accelerator, and an unknown one as it is."""
    return accelerators.canonical(name)


def quantity(text: str) -> Quantity:
    """`8`, `8+`, `32GB+` or `4x`; sizes in GiB."""
    amount, unit, plus = _amount(text)
    if unit == "x":
        if plus:
            raise Malformed(f"must be a multiple such as 4x or a minimum such as 32+, not {shown(text)}")
        return Quantity(amount, per_vcpu=True)
    return Quantity(amount * _factor(unit, text), at_least=plus)


def size_gib(text: str) -> int:
    """`256`, `256GB` or `1TB` as a whole number of GiB."""
    amount, unit, _ = _amount(text)
    size = amount * _factor(unit, text)
    if not size.is_integer():
        raise Malformed(f"must be a whole number of GiB, not {shown(text)}")
    return int(size)


def infra(text: str) -> tuple[str | None, str | None, str | None]:
    """`cloud/region/zone` apart; None stands for any. Behind `k8s/` and `ssh/` all the rest is one name."""
    first, _, rest = text.strip("/").partition("/")
    name = cloud(first)
    if name in _CONTEXT_CLOUDS:
        return name, _any(rest), None
    parts = rest.split("/") if rest else []
    if len(parts) > 2:
        raise Malformed(f"must be cloud/region/zone, not {shown(text)}")
    region, zone = [*parts, "", ""][:2]
    return _any(name), _any(region), _any(zone)


def cloud(text: str) -> str:
    """The name of a cloud in its canonical spelling."""
    return _CLOUD_ALIASES.get(text.lower(), text.lower())


def git(text: str) -> GitSource | None:
    """The repository that `git+URL`, `URL.git` or `git@host:path`, each with `#REF` or without, stands for."""
    given = git_source(text)
    if given is not None:
        return given
    url, _, ref = text.partition("#")
    if url.startswith(("git@", "git://")) or ("://" in url and url.endswith(".git")):
        return GitSource(url, ref or None)
    return None


def holds_password(url: str) -> bool:
    """Whether a URL carries more than a user's name before its host."""
    parts = urlsplit(url)
    return bool(parts.password) or (parts.scheme in ("http", "https") and bool(parts.username))


def ports(text: str) -> tuple[int, ...]:
    """`8080`, or all of the range `8080-8082`."""
    first, _, last = text.partition("-")
    low, high = int(first), int(last or first)
    if not 1 <= low <= high <= 65535:
        raise Malformed(f"must be within 1 and 65535, the lower one first, not {shown(text)}")
    if high - low >= _MOST_PORTS:
        raise Malformed(f"must open at most {_MOST_PORTS} ports, not {shown(text)}")
    return tuple(range(low, high + 1))


def _any(part: str) -> str | None:
    return None if part in ("", "*") else part


def _amount(text: str) -> tuple[float, str, bool]:
    match = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)\s*([A-Za-z]*)(\+?)", text.strip())
    if match is None:
        raise Malformed(f"must be an amount such as 8 or 8+, not {shown(text)}")
    amount = float(match[1])
    if amount <= 0:
        raise Malformed(f"must be above 0, not {shown(text)}")
    return amount, match[2].lower(), bool(match[3])


def _factor(unit: str, text: str) -> float:
    factor = _GIB.get(unit)
    if factor is None:
        raise Malformed(f"has a unit that is not known: {shown(text)}; use MB, GB or TB")
    return factor
