"""The names of accelerators: the one spelling that is used inside, other spellings people and clouds use, and memory.

Knows neither prices nor machines; what a cloud offers is in the catalog.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from types import MappingProxyType

MEMORY_GIB: Mapping[str, float | None] = MappingProxyType({
    "A10": 24, "A10G": 24, "A16": 16, "A30": 24, "A40": 48, "A100": 40, "A100-80GB": 80, "A100-80GB-SXM": 80,
    "B200": 180, "B300": 270, "GB200": 184, "GB300": 270, "GH200": 96, "H100": 80, "H100-MEGA": 80, "H100-NVL": 94,
    "H100-SXM": 80, "H200": 141, "H200-SXM": 141, "K80": 12, "L4": 24, "L40": 48, "L40S": 48, "M60": 8, "P4": 8,
    "P40": 24, "P100": 16, "T4": 16, "T4g": 16, "V100": 16, "V100-32GB": 32,
    "RTX3060": 12, "RTX3070": 8, "RTX3080": 10, "RTX3090": 24, "RTX4070": 12, "RTX4080": 16, "RTX4090": 24,
    "RTX5080": 16, "RTX5090": 32, "RTX4000-Ada": 20, "RTX6000": 24, "RTX6000-Ada": 48, "RTXA4000": 16, "RTXA4500": 20,
    "RTXA5000": 24, "RTXA6000": 48, "RTX-PRO-4500": 32, "RTX-PRO-6000": 96,
    "MI25": 16, "MI100": 32, "MI210": 64, "MI250": 128, "MI300X": 192, "MI325X": 256, "MI355X": 288, "V520": 8,
    "V620": 32, "V710": 28, "Gaudi": 32, "Gaudi2": 96, "Gaudi3": 128, "Qualcomm-AI100": 16,
    "Inferentia": 8, "Inferentia2": 32, "Trainium": 32, "Trainium2": 96,
    "tpu-v2-8": None, "tpu-v3-8": None, "tpu-v4-8": None, "tpu-v5litepod-1": None, "tpu-v5litepod-4": None,
    "tpu-v5litepod-8": None, "tpu-v5p-8": None, "tpu-v6e-1": None, "tpu-v6e-4": None, "tpu-v6e-8": None,
})  # fmt: skip
"""Canonical names, and the GiB of one such accelerator; None where the name stands for a group of chips."""

NAMES = tuple(MEMORY_GIB)
"""Canonical names of accelerators that clouds offer; others are kept as they are written."""

_ALIASES = {
    "a100-40gb": "A100",
    "a4000": "RTXA4000",
    "a4500": "RTXA4500",
    "a5000": "RTXA5000",
    "a6000": "RTXA6000",
    "h100-80gb": "H100",
    "h100-mega-80gb": "H100-MEGA",
    "h200-141gb": "H200",
    "rtxpro4500": "RTX-PRO-4500",
    "rtxpro6000": "RTX-PRO-6000",
    "qualcomm ai100": "Qualcomm-AI100",
    "v100-16gb": "V100",
}
_CANONICAL = {name.lower(): name for name in NAMES} | _ALIASES


def canonical(name: str) -> str:
    """The spelling used inside for an accelerator written in any case or under an alias; an unknown one as it is."""
    return _CANONICAL.get(name.strip().lower(), name.strip())


def memory_gib(name: str) -> float | None:
    """GiB of one accelerator of that canonical name; None when not known."""
    return MEMORY_GIB.get(name)


def nearest(name: str, known: Iterable[str] = NAMES, *, most: int = 3) -> tuple[str, ...]:
    """Names of `known` that look like `name`, the most similar first."""
    spelling = {one.lower(): one for one in known}
    wanted = name.strip().lower()
    close = difflib.get_close_matches(wanted, spelling, n=most, cutoff=0.5)
    longer = sorted(one for one in spelling if one.startswith(f"{wanted}-"))
    return tuple(spelling[one] for one in dict.fromkeys([*longer, *close]))[:most]
