"""What a replica asks of a machine that it shares with others, as an offering and back. Knows the words of `resources`
and of instance types; must not know where the machine is, nor what else runs on it."""

from __future__ import annotations

import re

from skyserve.errors import OrderRejected
from skyserve.model.offering import CapacityType, Location, Offering
from skyserve.model.resources import Resources
from skyserve.providers.machine import Ask, Machine

_INSTANCE_TYPE = re.compile(r"host(?:-(max)?([\d.]+)cpu)?(?:-(max)?([\d.]+)gib)?")


def ask_for(resources: Resources, machine: Machine) -> Ask:
    """Every size is set apart. An exact one (`8`, not `8+` or `4x`) is a limit too, as a machine of that size is."""
    cpus, memory = resources.cpus, resources.memory
    vcpus = cpus.amount if cpus else None
    only_vcpus = cpus is not None and not cpus.at_least
    if memory is None:
        return Ask(vcpus, None, resources.accelerators, only_vcpus)
    memory_gib = memory.amount * (vcpus or machine.vcpus) if memory.per_vcpu else memory.amount
    only_memory = not (memory.at_least or memory.per_vcpu)
    return Ask(vcpus, memory_gib, resources.accelerators, only_vcpus, only_memory)


def offering(provider: str, location: Location, ask: Ask, machine: Machine) -> Offering:
    """The instance type says what is set apart (`host-2cpu-4gib`), as the sizes of a bare `host` are the machine's; and
    what is a limit (`host-max2cpu-max4gib`)."""
    cpu = "" if ask.vcpus is None else f"-{'max' if ask.only_vcpus else ''}{ask.vcpus:g}cpu"
    gib = "" if ask.memory_gib is None else f"-{'max' if ask.only_memory else ''}{ask.memory_gib:g}gib"
    return Offering(
        provider=provider,
        instance_type=f"host{cpu}{gib}",
        location=location,
        capacity_type=CapacityType.ON_DEMAND,
        accelerator=ask.accelerator,
        vcpus=machine.vcpus if ask.vcpus is None else ask.vcpus,
        memory_gib=machine.memory_gib if ask.memory_gib is None else ask.memory_gib,
        price_per_hour=0.0,
    )


def ask_of(offering: Offering) -> Ask:
    """The inverse of `offering`. Raises OrderRejected."""
    match = _INSTANCE_TYPE.fullmatch(offering.instance_type)
    if match is None:
        raise OrderRejected(f"there is no instance type {offering.instance_type} on {offering.location.region}")
    only_cpu, cpu, only_gib, gib = match.groups()
    vcpus, memory_gib = float(cpu) if cpu else None, float(gib) if gib else None
    return Ask(vcpus, memory_gib, offering.accelerator, only_cpu is not None, only_gib is not None)


def described(resources: Resources) -> str:
    """An alternative in a few words, for whoever is told that it is refused."""
    parts = (
        resources.cloud,
        resources.region,
        resources.zone,
        resources.instance_type,
        resources.accelerators,
        f"cpus={resources.cpus}" if resources.cpus else None,
        f"memory={resources.memory}" if resources.memory else None,
        "spot" if resources.use_spot else None,
    )
    return " ".join(str(part) for part in parts if part) or "any resources"
