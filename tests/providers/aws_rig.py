"""The AWS adapter in a home of its own, and the account it works in: moto's server with the bed's machines."""

from __future__ import annotations

import asyncio
from copy import copy
from dataclasses import replace
from pathlib import Path

from tests.bed.aws_fake import AwsFake, adapter
from tests.bed.core import CloudCore

from skyserve.config import Config
from skyserve.model.offering import CapacityType, Location, Offering
from skyserve.model.resources import Accelerator
from skyserve.providers.aws import AwsCloud
from skyserve.providers.aws.api import Api
from skyserve.providers.base import LaunchOrder
from skyserve.providers.identity import installation
from skyserve.providers.vm_cloud import TAG_INSTALLATION, TAG_SERVICE, TAG_TOKEN, Vm, VmOrder

EAST, WEST, EUROPE = "us-east-1", "us-west-2", "eu-west-1"
HOME, OFFICE = "203.0.113.7/32", "198.51.100.0/24"


class Hands:
    """A clock that the test moves; whoever sleeps on it moves it too."""

    def __init__(self) -> None:
        self.at = 1_700_000_000.0

    def now(self) -> float:
        return self.at

    async def sleep(self, seconds: float) -> None:
        self.at += seconds


class Rig:
    """The adapter under test in a home of its own, and the account it works in."""

    def __init__(self, fake: AwsFake, home: Path, api: Api) -> None:
        self.api = api
        self.clock = Hands()
        self.core = CloudCore(now=self.clock.now)
        self.fake = fake
        fake.renew(self.core)
        self.config = Config(home=home, inherited_env={"HOME": str(home)})
        self.cloud = self.another_controller()

    def another_controller(self, api: Api | None = None) -> AwsCloud:
        return adapter(self.fake, self.config, self.clock, api=api or self.api)

    def another_installation(self, home: Path) -> Rig:
        """Somebody else in the same account."""
        other = copy(self)
        other.config = replace(self.config, home=home)
        other.cloud = other.another_controller()
        return other

    def order(self, token: str = "t1", offering: Offering | None = None, **rest: object) -> VmOrder:
        where = offering or offer()
        ours = {TAG_INSTALLATION: installation(self.config), TAG_SERVICE: "chat-u1", TAG_TOKEN: token}
        order = LaunchOrder("chat-u1", "chat", 1, 1, token, "v1", where, "run", None, 8080)
        full = replace(order, **rest)  # type: ignore[arg-type]
        return VmOrder(full, f"chat-{token}", ours, "#!/bin/bash\n", (22, 8080), (HOME,))

    def create(self, token: str = "t1", offering: Offering | None = None, **rest: object) -> Vm:
        return self.launch(self.order(token, offering, **rest))

    def launch(self, order: VmOrder) -> Vm:
        return asyncio.run(self.cloud.create(order))

    def machines(self) -> dict[str, Vm]:
        return {machine.token: machine for machine in asyncio.run(self.cloud.machines())}

    def asked_regions(self) -> set[str]:
        """The regions that one listing asks for machines."""
        self.fake.calls.clear()
        self.machines()
        return {call.region for call in self.fake.asked("DescribeInstances")}


def offer(
    instance_type: str = "m7i.2xlarge",
    region: str = EAST,
    zone: str | None = "a",
    *,
    spot: bool = False,
    chip: str | None = None,
) -> Offering:
    place = Location("aws", region, f"{region}{zone}" if zone else None)
    capacity = CapacityType.SPOT if spot else CapacityType.ON_DEMAND
    return Offering("aws", instance_type, place, capacity, Accelerator(chip) if chip else None, 8, 32, 0.4)


def machine_id(machine: Vm) -> str:
    return machine.id.partition(":")[2]


def configured(home: Path, **env: str) -> Config:
    return Config(home=home, inherited_env={"HOME": str(home), **env})
