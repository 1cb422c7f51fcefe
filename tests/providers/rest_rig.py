"""What the tests of clouds with a REST API share: a home, a clock that passes by itself, and orders."""

from __future__ import annotations

from pathlib import Path

from skyserve.config import Config
from skyserve.model.offering import CapacityType, Location, Offering
from skyserve.model.resources import Accelerator
from skyserve.providers.base import LaunchOrder
from skyserve.providers.identity import installation
from skyserve.providers.vm_cloud import TAG_INSTALLATION, TAG_SERVICE, TAG_TOKEN, VmOrder


class PassingClock:
    """Whoever sleeps is awake at once, that much later."""

    def __init__(self) -> None:
        self.at = 1_800_000_000.0
        self.slept: list[float] = []

    def now(self) -> float:
        return self.at

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.at += max(0.0, seconds)


def config_at(home: Path, **env: str) -> Config:
    """An installation of its own, with nothing of the real user's."""
    return Config(home=home / "state", inherited_env={"HOME": str(home), **env})


def offering(
    cloud: str, instance_type: str, place: str, *, spot: bool = False, accelerator: Accelerator | None = None
) -> Offering:
    """An offering at `region` or `region/zone`."""
    region, _, zone = place.partition("/")
    kind = CapacityType.SPOT if spot else CapacityType.ON_DEMAND
    return Offering(cloud, instance_type, Location(cloud, region, zone or None), kind, accelerator, 8, 60, 1.0)


def order_for(config: Config, offering: Offering, token: str = "chat-1a2b3c4d-1-1", **more) -> VmOrder:
    """What VmProvider orders; `more` are fields of the LaunchOrder, or `ports` and `allow_from` of the VmOrder."""
    ports = more.pop("ports", (22, 8080))
    allow_from = more.pop("allow_from", ("203.0.113.7/32",))
    service = more.pop("service", "chat-1a2b3c4d")
    order = LaunchOrder(
        service=service,
        service_name="chat",
        replica_id=1,
        version=1,
        token=token,
        workspace="v1",
        offering=offering,
        run="serve",
        setup=None,
        port=8080,
        **more,
    )
    tags = {TAG_INSTALLATION: installation(config), TAG_SERVICE: service, TAG_TOKEN: token}
    return VmOrder(order, f"sky-{token}", tags, "#!/bin/bash\necho 'hello' \"$HOME\"\n", ports, allow_from)
