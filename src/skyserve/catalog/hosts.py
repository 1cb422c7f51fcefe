"""Machines that accelerators are attached to on order: Google's price list has them apart. Knows which machines carry
how many of which; knows no files."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping

from skyserve.catalog.row import Row

LARGEST_N1: Mapping[tuple[str, int], int] = {
    ("K80", 1): 8, ("K80", 2): 16, ("K80", 4): 32, ("K80", 8): 64,
    ("P4", 1): 24, ("P4", 2): 48, ("P4", 4): 96,
    ("P100", 1): 16, ("P100", 2): 32, ("P100", 4): 64,
    ("T4", 1): 48, ("T4", 2): 48, ("T4", 4): 96,
    ("V100", 1): 12, ("V100", 2): 24, ("V100", 4): 48, ("V100", 8): 96,
}  # fmt: skip
"""vCPUs of the largest N1 machine that may carry so many of them."""

_CPUS_PER_ACCELERATOR = 4
"""N1 machines with fewer vCPUs are left out: their memory does not hold what such an accelerator is to work on."""

_BUILT_IN = {
    "A100": r"a2-(highgpu|megagpu)-{count}g",
    "A100-80GB": r"a2-ultragpu-{count}g",
    "B200": r"a4-highgpu-{count}g",
    "H100": r"a3-highgpu-{count}g",
    "H100-MEGA": r"a3-megagpu-{count}g",
    "H200": r"a3-ultragpu-{count}g",
}
_INCOMPLETE = re.compile(r"(a2|a3|a4|g2)-")
_HOST = re.compile(r"(n1|a2|a3|a4|g2)-")
_L4_CPUS = {1: (4, 8, 12, 16, 32), 2: (24,), 4: (48,), 8: (96,)}


def with_accelerators(machines: Iterable[Row], attached: Iterable[Row]) -> Iterator[Row]:
    """Whole machines: each accelerator, sold by itself, in the machines of its zone (or region) that carry it.

    Prices are sums. `attached` rows have no instance type; of them the accelerator, count, place and price count.
    """
    by_place: dict[tuple[str, str], list[Row]] = {}
    for machine in machines:
        if machine.accelerator is None and _HOST.match(machine.instance_type):
            by_place.setdefault((machine.cloud, machine.region), []).append(machine)
    for accelerator in attached:
        for machine in by_place.get((accelerator.cloud, accelerator.region), ()):
            if machine.zone in (None, accelerator.zone) and carries(machine, accelerator):
                yield _sum(machine, accelerator)


def is_whole(machine: Row) -> bool:
    """Whether such a machine, listed without accelerators, can be had without them."""
    return machine.accelerator is not None or not _INCOMPLETE.match(machine.instance_type)


def carries(machine: Row, accelerator: Row) -> bool:
    """Whether the machine may, or must, be ordered with so many of the accelerator."""
    name, count = accelerator.accelerator or "", int(accelerator.accelerator_count)
    largest = LARGEST_N1.get((name, count))
    if largest is not None:
        size = _CPUS_PER_ACCELERATOR * count
        return bool(re.match(r"n1-(standard|highmem)-", machine.instance_type)) and size <= machine.vcpus <= largest
    if name == "L4":
        return machine.instance_type in [f"g2-standard-{cpus}" for cpus in _L4_CPUS.get(count, ())]
    pattern = _BUILT_IN.get(name)
    return pattern is not None and bool(re.fullmatch(pattern.format(count=count), machine.instance_type))


def _sum(machine: Row, accelerator: Row) -> Row:
    return machine._replace(
        zone=accelerator.zone or machine.zone,
        accelerator=accelerator.accelerator,
        accelerator_count=accelerator.accelerator_count,
        accelerator_memory_gib=accelerator.accelerator_memory_gib,
        price_per_hour=_both(machine.price_per_hour, accelerator.price_per_hour),
        spot_price_per_hour=_both(machine.spot_price_per_hour, accelerator.spot_price_per_hour),
        source=accelerator.source,
    )


def _both(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else round(one + other, 6)
