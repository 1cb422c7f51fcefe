"""Google's machine types: which parts their prices are added up of, and the shapes of those that serve models, for a
catalog that does not know them yet. Knows no network."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType

from skyserve.catalog.refresh.gcp_skus import Part, PriceSheet
from skyserve.catalog.refresh.hardware import Hardware
from skyserve.model.accelerators import memory_gib

_OWN_FAMILIES = ("a3-megagpu", "a3-ultragpu")
"""Machine types whose parts are sold under a name of their own; otherwise the family is the first word."""

_NO_RULE = re.compile(r"^(f1|g1|m2|tpu)\b|^g4-standard-(6|12|24)$|lssd|-metal$")
"""Old shared cores, premiums, TPUs, parts of a GPU, and disks of varying size: no sum of parts gives their price."""

_DISK_GIB: Mapping[str, float] = MappingProxyType({
    "a2-ultragpu": 375.0, "a3-highgpu": 750.0, "a3-megagpu": 750.0, "a3-ultragpu": 1500.0,
})  # fmt: skip
"""GiB of local disk per GPU that belong to the machine and are charged with it."""


def has_rule(instance_type: str) -> bool:
    """Whether the machine's price is the sum of its parts."""
    return _NO_RULE.search(instance_type) is None


def price(instance_type: str, hardware: Hardware, sheet: PriceSheet, region: str, *, spot: bool) -> float | None:
    """Dollars an hour of a machine there; None when a part of it is not sold there."""
    count = hardware.accelerator_count
    if hardware.accelerator:
        whole = sheet.price(Part.SLICE, hardware.accelerator, region, spot=spot)
        if whole is not None:
            return whole * count
    family = next((name for name in _OWN_FAMILIES if instance_type.startswith(name)), instance_type.partition("-")[0])
    amounts = [(Part.CORE, family, hardware.vcpus), (Part.MEMORY, family, hardware.memory_gib)]
    if hardware.accelerator:
        amounts.append((Part.GPU, hardware.accelerator, count))
    disk_gib = _DISK_GIB.get("-".join(instance_type.split("-")[:2]), 0.0) * count
    if disk_gib:
        amounts.append((Part.LOCAL_DISK, "", disk_gib))
    total = 0.0
    for part, of, amount in amounts:
        each = sheet.price(part, of, region, spot=spot)
        if each is None:
            return None
        total += each * amount
    return round(total, 6)


def _shapes() -> dict[str, Hardware]:
    gpus = [
        ("a2-highgpu-{}g", "A100", (1, 2, 4, 8), 12, 85),
        ("a2-ultragpu-{}g", "A100-80GB", (1, 2, 4, 8), 12, 170),
        ("a3-highgpu-{}g", "H100", (1, 2, 4, 8), 26, 234),
        ("a3-megagpu-{}g", "H100-MEGA", (8,), 26, 234),
        ("a3-ultragpu-{}g", "H200", (8,), 28, 369),
        ("a4-highgpu-{}g", "B200", (8,), 28, 496),
    ]
    found = {
        name.format(count): Hardware(vcpus * count, gib * count, gpu, count, memory_gib(gpu))
        for name, gpu, counts, vcpus, gib in gpus
        for count in counts
    }
    l4_machines = {4: 1, 8: 1, 12: 1, 16: 1, 24: 2, 32: 1, 48: 4, 96: 8}
    for vcpus, count in l4_machines.items():
        found[f"g2-standard-{vcpus}"] = Hardware(vcpus, 4 * vcpus, "L4", count, memory_gib("L4"))
    for family, gib_per_vcpu, sizes in (
        ("e2-standard", 4.0, (2, 4, 8, 16, 32)),
        ("n1-standard", 3.75, (1, 2, 4, 8, 16, 32, 64, 96)),
        ("n2-standard", 4.0, (2, 4, 8, 16, 32, 48, 64, 80, 96, 128)),
        ("c3-standard", 4.0, (4, 8, 22, 44, 88, 176)),
    ):
        for vcpus in sizes:
            found[f"{family}-{vcpus}"] = Hardware(vcpus, gib_per_vcpu * vcpus)
    return found


SHAPES: Mapping[str, Hardware] = MappingProxyType(_shapes())
"""Machine types that are looked for although no last good row has them."""
