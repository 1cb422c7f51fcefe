"""The provider contract's worlds of clouds that rent out machines: each a fake of the cloud's API, the product's own
adapter, and hosts of the bed that run the real user data, agent and supervisor."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.bed import aws_fake, azure_fake, gcp_fake, lambda_fake, runpod_fake
from tests.bed.core import CloudCore, Fault
from tests.bed.hosts import Bed
from tests.bed.network import CONTROLLER
from tests.bed.private import private_network
from tests.contract.world import Trouble, World

from skyserve.clock import SystemClock
from skyserve.config import Config
from skyserve.model.evidence import Instance
from skyserve.model.offering import CapacityType, Location, Offering
from skyserve.model.resources import Accelerator, Resources
from skyserve.providers.base import Provider
from skyserve.providers.vm import VmProvider
from skyserve.providers.vm_cloud import VmCloud

CloudOf = Callable[[Config], VmCloud]
_KINDS = {Trouble.THROTTLED: "throttled", Trouble.CREDENTIALS: "credentials", Trouble.SILENT: "unavailable"}
BOOT_S, SHUTDOWN_S = 0.2, 0.3


class VmWorld(World):
    """Rented machines. `cloud_of` makes the adapter, pointed at the fake, for an installation's settings."""

    reports = True
    test_host = CONTROLLER

    def __init__(self, home: Path, core: CloudCore, cloud_of: CloudOf, *offerings: Offering) -> None:
        super().__init__(home)
        self.core = core
        self.offering, self.spot_offering = offerings[0], offerings[-1]
        self.resources = Resources(instance_type=self.offering.instance_type, accelerators=self.offering.accelerator)
        self._cloud_of = cloud_of

    def controller(self) -> Provider:
        return self._provider(self.home / "home")

    def stranger(self) -> Provider:
        return self._provider(self.home / "stranger")

    def take_back(self, instance: Instance, notice_s: float) -> None:
        assert instance.address
        host = instance.address.rpartition(":")[0]
        [machine] = [one for one in self.core.machines.values() if one.ip == host]
        self.core.interrupt(machine.id, notice_s)

    @contextmanager
    def trouble(self, kind: Trouble) -> Iterator[None]:
        core = self.core
        if kind is Trouble.CAPACITY:
            core.capacity = {"*": 0}
        elif kind is Trouble.QUOTA:
            core.quota = 0
        else:
            core.faults.append(Fault("*", _KINDS[kind], times=None))
        try:
            yield
        finally:
            core.capacity, core.quota = {}, None
            core.faults.clear()

    def leftovers(self) -> list[str]:
        return [f"{machine.name} {machine.tags}" for machine in self.core.leftovers()]

    async def pass_time(self) -> None:
        await asyncio.sleep(0.2)  # clouds are asked seldom, and machines tell

    def _provider(self, home: Path) -> Provider:
        config = Config(home=home, public_addresses=(f"{CONTROLLER}/32",), inherited_env={"USER": "tester"})
        return VmProvider(self._cloud_of(config), config, SystemClock())


@contextmanager
def machines(*, containers: bool = False, metadata_names: tuple[str, ...] = ()) -> Iterator[CloudCore]:
    """An account whose machines are hosts of a bed, in a network of their own."""
    with (
        private_network(),
        Bed(["here"], metadata_names=metadata_names) as bed,
        CloudCore(bed, boot_s=BOOT_S, shutdown_s=SHUTDOWN_S, containers=containers) as core,
    ):
        yield core


def pair(cloud: str, kind: str, region: str, zone: str | None, gpu: Accelerator | None = None) -> tuple[Offering, ...]:
    """A machine on demand, and the same on spot."""
    place = Location(cloud, region, zone)
    both = (CapacityType.ON_DEMAND, CapacityType.SPOT)
    return tuple(Offering(cloud, kind, place, capacity, gpu, 4, 16, 0.2) for capacity in both)


@contextmanager
def gcp_world(home: Path) -> Iterator[World]:
    with machines() as core, gcp_fake.GcpFake(core) as fake:
        offerings = pair("gcp", "e2-standard-4", "us-central1", "us-central1-a")
        yield VmWorld(home, core, lambda config: gcp_fake.adapter(fake, config), *offerings)
        assert fake.flaws == []


@contextmanager
def aws_world(home: Path) -> Iterator[World]:
    with machines() as core:
        fake = aws_fake.AwsFake(core)
        fake.start()
        fake.regions = ["us-east-1", "us-west-2"]
        try:
            api = aws_fake.way(fake)
            offerings = pair("aws", "m5.xlarge", "us-east-1", "us-east-1a")
            yield VmWorld(home, core, lambda config: aws_fake.adapter(fake, config, SystemClock(), api=api), *offerings)
        finally:
            fake.stop()


@contextmanager
def azure_world(home: Path) -> Iterator[World]:
    with machines() as core, azure_fake.AzureFake(core) as fake:
        offerings = pair("azure", "Standard_D8s_v5", "eastus", None)
        yield VmWorld(home, core, lambda config: azure_fake.adapter(fake, config), *offerings)


@contextmanager
def lambda_world(home: Path) -> Iterator[World]:
    with machines() as core, lambda_fake.LambdaFake(core) as fake:
        offerings = pair("lambda", "gpu_1x_a10", "us-east-1", None, Accelerator("A10"))
        yield VmWorld(home, core, lambda config: lambda_fake.adapter(fake, config), *offerings)


@contextmanager
def runpod_world(home: Path) -> Iterator[World]:
    with machines(containers=True) as core, runpod_fake.RunPodFake(core) as fake:
        offerings = pair("runpod", "1x_L4_SECURE", "RO", "EU-RO-1", Accelerator("L4"))
        world = VmWorld(home, core, lambda config: runpod_fake.adapter(fake, config), *offerings)
        world.cannot = {"notice": "five seconds and a SIGTERM are all the warning that a spot pod gets"}
        yield world
