"""The Azure adapter against the fake Resource Manager, by way of Azure's own SDK; its words by themselves."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import json
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.bed import azure_fake
from tests.bed.azure_fake import SUBSCRIPTION, AzureFake, Bearer, adapter
from tests.bed.core import CloudCore, Fault, Machine

from skyserve.clock import SystemClock
from skyserve.config import Config
from skyserve.errors import (
    CapacityUnavailable,
    CredentialsRejected,
    OrderRejected,
    PlaceRefused,
    ProviderUnavailable,
    QuotaExceeded,
    Throttled,
)
from skyserve.model.offering import CapacityType, Location, Offering
from skyserve.model.resources import Accelerator
from skyserve.providers.azure import AzureCloud
from skyserve.providers.azure import words as words
from skyserve.providers.azure.api import Clients
from skyserve.providers.base import LaunchOrder
from skyserve.providers.vm_cloud import TAG_INSTALLATION, TAG_SERVICE, TAG_TOKEN, Vm, VmOrder, VmState

OURS = "sky-0123456789ab"
SERVICE = "mixtral-7f3a"
HERE = "203.0.113.7/32"


class QuickClock:
    """A clock that runs `speed` times as fast as the machine's: what takes ten seconds takes a moment."""

    def __init__(self, speed: float) -> None:
        self.speed = speed
        self.began = time.time()

    def now(self) -> float:
        return self.began + (time.time() - self.began) * self.speed

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds / self.speed)


class Bed:
    """An account, its adapter, and orders for it."""

    def __init__(self, fake: AzureFake, home: Path) -> None:
        self.fake = fake
        self.core = fake.core
        self.config = Config(home=home)
        home.mkdir(exist_ok=True)
        (home / "installation").write_text(f"{OURS}\n")
        self.cloud = adapter(fake, self.config)

    def create(self, order: VmOrder | None = None) -> Vm:
        return asyncio.run(self.cloud.create(order or an_order()))

    def machines(self) -> list[Vm]:
        return list(asyncio.run(self.cloud.machines()))

    def only(self) -> Vm:
        (found,) = self.machines()
        return found

    def body(self) -> dict:
        (rented,) = self.fake.rented.values()
        return rented.body

    def machine(self) -> Machine:
        (found,) = self.fake.machines
        return found


@pytest.fixture
def bed(tmp_path: Path) -> Iterator[Bed]:
    with CloudCore() as core, AzureFake(core) as fake:
        yield Bed(fake, tmp_path / "home")


def an_order(
    token: str = "t1",
    *,
    size: str = "Standard_D8s_v5",
    region: str = "eastus",
    zone: str | None = None,
    spot: bool = False,
    gpu: str | None = None,
    service: str = SERVICE,
    ports: tuple[int, ...] = (22, 8080),
    allow_from: tuple[str, ...] = (HERE,),
    **wanted: object,
) -> VmOrder:
    kind = CapacityType.SPOT if spot else CapacityType.ON_DEMAND
    offering = Offering(
        "azure", size, Location("azure", region, zone), kind, Accelerator(gpu) if gpu else None, 8, 32, 0.4
    )
    order = LaunchOrder(
        service=service,
        service_name="mixtral",
        replica_id=1,
        version=1,
        token=token,
        workspace="w",
        offering=offering,
        run="serve",
        setup=None,
        port=8080,
        **wanted,  # type: ignore[arg-type]
    )
    tags = {TAG_INSTALLATION: OURS, TAG_SERVICE: service, TAG_TOKEN: token}
    return VmOrder(order, f"mixtral-{token}", tags, "#!/bin/bash\necho hello\n", ports, allow_from)


# ---- a machine's life


def test_a_machine_is_made_listed_and_deleted(bed):
    made = bed.create()
    assert made.state is VmState.BOOTING
    assert (made.service, made.token) == (SERVICE, "t1")
    seen = bed.only()
    assert seen.id == made.id == made.id.lower()
    assert seen.state is VmState.RUNNING
    assert seen.host == bed.machine().ip
    assert bed.machine().user_data == "#!/bin/bash\necho hello\n"
    asyncio.run(bed.cloud.delete(made.id))
    assert bed.machines() == []
    asyncio.run(bed.cloud.delete(made.id))  # fine again
    assert bed.core.leftovers() == []


def test_it_boots_before_it_runs(tmp_path):
    now = [1000.0]
    with CloudCore(boot_s=30, shutdown_s=30, now=lambda: now[0]) as core, AzureFake(core) as fake:
        bed = Bed(fake, tmp_path / "home")
        made = bed.create()
        assert bed.only().state is VmState.BOOTING
        assert bed.only().host is None
        now[0] += 30
        assert bed.only().state is VmState.RUNNING
        asyncio.run(bed.cloud.delete(made.id))
        assert bed.only().state is VmState.STOPPING
        now[0] += 30
        assert bed.machines() == []


def test_the_same_token_gives_the_same_machine(bed):
    first = bed.create()
    again = bed.create()
    assert again.id == first.id
    assert again.state is VmState.RUNNING
    assert (again.service, again.token) == (SERVICE, "t1")
    assert len(bed.fake.rented) == 1


def test_everything_of_a_machine_goes_with_it(bed):
    bed.create()
    properties = bed.body()["properties"]
    interface = properties["networkProfile"]["networkInterfaceConfigurations"][0]["properties"]
    address = interface["ipConfigurations"][0]["properties"]["publicIPAddressConfiguration"]["properties"]
    kinds = (properties["storageProfile"]["osDisk"], interface, address)
    assert [kind["deleteOption"] for kind in kinds] == ["Delete"] * 3


def test_nobody_can_log_in_but_us(bed):
    bed.create()
    bed.create(an_order("t2"))
    systems = [one.body["properties"]["osProfile"] for one in bed.fake.rented.values()]
    assert all("adminPassword" not in system for system in systems)
    assert all(system["linuxConfiguration"]["disablePasswordAuthentication"] for system in systems)
    keys = [system["linuxConfiguration"]["ssh"]["publicKeys"][0]["keyData"] for system in systems]
    assert keys[0].startswith("ssh-ed25519 ")
    assert keys[0] != keys[1]


def test_all_regions_and_pages_are_listed_at_once(bed):
    for number in range(azure_fake.PAGE + 1):
        bed.create(an_order(f"t{number}", region=("eastus", "westeurope")[number % 2]))
    assert {vm.token for vm in bed.machines()} == {f"t{number}" for number in range(azure_fake.PAGE + 1)}
    assert len({vm.host for vm in bed.machines()}) == azure_fake.PAGE + 1


def test_a_machine_that_goes_while_pages_are_read_hides_no_other(bed):
    made = [bed.create(an_order(f"t{number}")) for number in range(azure_fake.PAGE + 1)]
    answer = bed.fake.answer

    def and_then_one_goes(verb, target, headers, body):
        told = answer(verb, target, headers, body)
        if "virtualMachines?" in target and len(bed.fake.machines) == len(made):
            bed.core.delete(bed.fake.machines[0].id)
        return told

    bed.fake.answer = and_then_one_goes
    assert made[-1].id in {vm.id for vm in bed.machines()}


def test_machines_of_other_installations_are_not_ours(bed):
    theirs = an_order("t9")
    bed.create(dataclasses.replace(theirs, tags={**theirs.tags, TAG_INSTALLATION: "sky-other"}))
    assert bed.machines() == []
    assert not any("networkInterfaces" in request for request in bed.fake.requests)
    bed.create()
    assert [vm.token for vm in bed.machines()] == ["t1"]


@pytest.mark.parametrize("skipped", [0, 1, 2, 3])
def test_a_list_that_fails_is_no_answer(bed, skipped):
    bed.create()
    calls = iter(range(10))
    fault = bed.core.fault

    def later(operation: str, where: str = "") -> Fault | None:
        if operation == "list" and next(calls) == skipped:
            return Fault("list", "unavailable")
        return fault(operation, where)

    bed.core.fault = later
    with pytest.raises(ProviderUnavailable):
        bed.machines()


# ---- spot


def test_spot(bed):
    bed.create(an_order(spot=True))
    properties = bed.body()["properties"]
    assert (properties["priority"], properties["evictionPolicy"]) == ("Spot", "Deallocate")
    assert properties["billingProfile"] == {"maxPrice": -1}
    assert bed.machine().spot


def test_an_eviction_is_seen_and_deleted(bed):
    made = bed.create(an_order(spot=True))
    bed.core.interrupt(bed.machine().id, notice_s=0)
    seen = bed.only()
    assert (seen.state, seen.detail) == (VmState.PREEMPTED, "Azure evicted the machine")
    asyncio.run(bed.cloud.delete(made.id))
    assert bed.machines() == []


def test_stopped_by_us_is_not_evicted(bed):
    made = bed.create(an_order(spot=True))
    asyncio.run(bed.cloud.stop(made.id))
    assert bed.machine().state == "stopped"
    assert bed.only().state is VmState.STOPPED
    assert bed.only().token == "t1"  # the other tags are still there
    asyncio.run(bed.cloud.start(made.id))
    assert bed.only().state is VmState.RUNNING
    assert bed.only().host == bed.machine().ip


def test_a_start_that_comes_to_nothing_is_seen_in_the_end(tmp_path):
    with CloudCore() as core, AzureFake(core) as fake:
        bed = Bed(fake, tmp_path / "home")
        made = bed.create(an_order(spot=True))
        asyncio.run(bed.cloud.stop(made.id))
        core.capacity["*"] = 0
        with pytest.raises(CapacityUnavailable):
            asyncio.run(bed.cloud.start(made.id))
        assert bed.only().state is VmState.STOPPED
        late = AzureCloud(
            azure_fake.account(), OURS, QuickClock(1e6), Clients(azure_fake.account(), fake.url, Bearer())
        )
        assert [vm.state for vm in asyncio.run(late.machines())] == [VmState.PREEMPTED]


def test_stopped_by_somebody_else(bed):
    bed.create()
    bed.core.stop(bed.machine().id)
    assert bed.only().state is VmState.STOPPED


def notice(bed: Bed) -> re.Match[str] | None:
    asked = bed.cloud.notice
    path = asked.url.removeprefix("http://169.254.169.254")
    headers = {name.lower(): value for name, value in asked.headers.items()}
    status, answer = bed.core.answer(bed.machine().id, "GET", path, headers)
    assert status == 200
    return re.search(asked.pattern, answer.decode())


def test_the_notice_of_an_eviction(bed):
    bed.create(an_order(spot=True))
    assert notice(bed) is None
    bed.core.interrupt(bed.machine().id, notice_s=30)
    assert notice(bed)["at"].endswith(" GMT")


@pytest.mark.parametrize(
    ("events", "at"),
    [
        ([{"NotBefore": "soon", "EventType": "Preempt"}], "soon"),
        ([{"EventType": "Freeze", "NotBefore": "never"}, {"EventType": "Preempt", "NotBefore": "now"}], "now"),
        ([{"EventType": "Preempt", "NotBefore": ""}], None),
    ],
)
def test_a_notice_is_understood_in_any_order(events, at):
    found = re.search(AzureCloud.notice.pattern, json.dumps({"DocumentIncarnation": 1, "Events": events}))
    assert found["at"] == at


def test_other_events_are_no_notice():
    events = {"DocumentIncarnation": 1, "Events": [{"EventType": "Reboot", "NotBefore": "soon"}]}
    assert re.search(AzureCloud.notice.pattern, json.dumps(events)) is None


# ---- what was asked for


def test_zone_labels_disk_and_size(bed):
    bed.create(an_order(zone="eastus-2", labels={"team": "search", TAG_TOKEN: "mine"}, disk_size=512, disk_tier="high"))
    body = bed.body()
    assert body["zones"] == ["2"]
    assert body["location"] == "eastus"
    assert body["tags"] == {"team": "search", TAG_INSTALLATION: OURS, TAG_SERVICE: SERVICE, TAG_TOKEN: "t1"}
    disk = body["properties"]["storageProfile"]["osDisk"]
    assert (disk["diskSizeGB"], disk["managedDisk"]["storageAccountType"]) == (512, "Premium_LRS")
    assert body["properties"]["hardwareProfile"] == {"vmSize": "Standard_D8s_v5"}


@pytest.mark.parametrize(
    ("size", "tier", "expected"),
    [
        ("Standard_D8s_v5", None, "StandardSSD_LRS"),
        ("Standard_D8s_v5", "low", "Standard_LRS"),
        ("Standard_D8s_v5", "ultra", "Premium_LRS"),
        ("Standard_D8_v5", "best", "StandardSSD_LRS"),
    ],
)
def test_disk_tiers(bed, size, tier, expected):
    bed.create(an_order(size=size, disk_tier=tier))
    disk = bed.body()["properties"]["storageProfile"]["osDisk"]
    assert disk["managedDisk"]["storageAccountType"] == expected
    assert disk["diskSizeGB"] == words.DEFAULT_DISK_GIB


@pytest.mark.parametrize(
    ("size", "gpu", "expected"),
    [
        ("Standard_D8s_v5", None, "Canonical:0001-com-ubuntu-server-jammy:22_04-lts-gen2:latest"),
        ("Standard_D8pds_v5", None, "Canonical:0001-com-ubuntu-server-jammy:22_04-lts-arm64:latest"),
        ("Standard_NC24ads_A100_v4", "A100-80GB", "microsoft-dsvm:ubuntu-hpc:2204:latest"),
        ("Standard_ND96isr_MI300X_v5", "MI300X", "microsoft-dsvm:ubuntu-hpc:2204-rocm:latest"),
        ("Standard_NV36ads_A10_v5", "A10", "Canonical:0001-com-ubuntu-server-jammy:22_04-lts-gen2:latest"),
    ],
)
def test_images(size, gpu, expected):
    assert ":".join(words.image(an_order(size=size, gpu=gpu).order).values()) == expected


def test_a_share_of_a_gpu_gets_its_driver_first(bed):
    bed.create(an_order(size="Standard_NV36ads_A10_v5", gpu="A10"))
    script = bed.machine().user_data
    assert script.startswith("#!/bin/bash\n")
    assert script.index("gpu-driver.run") < script.index("echo hello")
    assert bed.body()["properties"]["securityProfile"] == {"securityType": "Standard"}


def test_the_longest_user_data_fits_with_the_driver(bed):
    order = an_order(size="Standard_NV36ads_A10_v5", gpu="A10")
    bed.create(dataclasses.replace(order, user_data="#" * AzureCloud.user_data_limit))
    assert len(base64.b64decode(bed.body()["properties"]["osProfile"]["customData"])) == 65535


@pytest.mark.parametrize(
    ("named", "expected"),
    [
        ("me:mine:my-sku:1.2.3", {"publisher": "me", "offer": "mine", "sku": "my-sku", "version": "1.2.3"}),
        ("/subscriptions/s/resourceGroups/g/x", {"id": "/subscriptions/s/resourceGroups/g/x"}),
        ("/CommunityGalleries/g/Images/i", {"communityGalleryImageId": "/CommunityGalleries/g/Images/i"}),
        ("/SharedGalleries/g/Images/i", {"sharedGalleryImageId": "/SharedGalleries/g/Images/i"}),
    ],
)
def test_an_image_of_the_users(bed, named, expected):
    bed.create(an_order(image_id=named, gpu="A10"))
    assert bed.body()["properties"]["storageProfile"]["imageReference"] == expected
    assert bed.machine().user_data.startswith("#!/bin/bash\necho hello")


def test_what_is_no_image_is_rejected(bed):
    with pytest.raises(OrderRejected, match="ami-123") as told:
        bed.create(an_order(image_id="ami-123"))
    assert "publisher:offer:sku:version" in told.value.hint
    assert not bed.fake.rented


def test_gpus_without_a_driver_are_left_out():
    wanted = [
        an_order(gpu="A10"),
        an_order(gpu="MI25"),
        an_order(size="Standard_NCC40ads_H100_v5", gpu="H100"),
        an_order(region="usgovvirginia"),
        an_order(),
    ]
    offerings = [order.order.offering for order in wanted]
    cloud = AzureCloud(azure_fake.account(), OURS, SystemClock())
    assert asyncio.run(cloud.narrow(offerings)) == [offerings[0], offerings[4]]


# ---- the ground


def test_the_firewall_admits_us_and_nobody_else(bed):
    bed.create()
    assert bed.machine().allowed == {(22, HERE), (8080, HERE)}


def test_ranges_are_written_as_azure_wants_them(bed):
    bed.create(an_order(ports=(22,), allow_from=("203.0.113.7/24",)))
    assert bed.machine().allowed == {(22, "203.0.113.0/24")}


def test_only_those_with_ipv4_addresses_can_come(bed):
    bed.create(an_order(allow_from=("2001:db8::/64", HERE)))
    assert bed.machine().allowed == {(22, HERE), (8080, HERE)}
    bed.create(an_order("t2", allow_from=("2001:db8::/64",)))
    assert bed.fake.machines[1].allowed == set()


def test_another_version_does_not_close_the_ports_of_the_first(bed):
    bed.create()
    bed.create(an_order("t2", ports=(22, 9000)))
    assert [machine.allowed for machine in bed.fake.machines] == [
        {(22, HERE), (8080, HERE)},
        {(22, HERE), (9000, HERE)},
    ]
    assert len(bed.fake.groups) == 1


def test_one_group_per_service_and_region_made_once(bed):
    for number, region in enumerate(("eastus", "eastus", "westeurope")):
        bed.create(an_order(f"t{number}", region=region))
    assert {group["tags"][TAG_SERVICE] for group in bed.fake.groups.values()} == {SERVICE}
    assert {group["location"] for group in bed.fake.groups.values()} == {"eastus", "westeurope"}
    puts = [request for request in bed.fake.requests if request.startswith("PUT") and "virtualNetworks" in request]
    assert len(puts) == 2


def test_machines_at_once_share_the_ground(bed):
    async def both() -> None:
        await asyncio.gather(bed.cloud.create(an_order("t1")), bed.cloud.create(an_order("t2")))

    asyncio.run(both())
    assert len([request for request in bed.fake.requests if request.endswith("virtualNetworks/network")]) == 1
    assert len(bed.machines()) == 2


def test_the_ground_is_waited_for(bed):
    bed.fake.network_s = 0.3
    bed.create()
    assert bed.only().state is VmState.RUNNING


def test_ground_that_takes_too_long_is_asked_for_again_later(bed):
    bed.fake.network_s = 1e6
    cloud = AzureCloud(
        azure_fake.account(), OURS, QuickClock(200), Clients(azure_fake.account(), bed.fake.url, Bearer())
    )
    with pytest.raises(ProviderUnavailable, match="network"):
        asyncio.run(cloud.create(an_order()))
    assert not bed.fake.rented
    bed.fake.network_s = 0
    bed.create()


def test_ground_that_somebody_removed_is_made_again(bed):
    bed.create()
    bed.fake.groups.clear()
    bed.fake.things.clear()
    with pytest.raises(ProviderUnavailable):
        bed.create(an_order("t2"))
    assert bed.create(an_order("t2")).token == "t2"


def test_release_leaves_nothing(bed):
    made = bed.create()
    bed.create(an_order("t2", region="westeurope"))
    bed.create(an_order("t3", service="other-1"))
    asyncio.run(bed.cloud.release(SERVICE))
    assert [group["tags"][TAG_SERVICE] for group in bed.fake.groups.values()] == ["other-1"]
    assert [vm.token for vm in bed.machines()] == ["t3"]
    assert all("other-1" in path for path in bed.fake.things)
    asyncio.run(bed.cloud.release(SERVICE))  # fine again
    asyncio.run(bed.cloud.delete(made.id))
    bed.create(an_order("t4"))  # and the ground can be made anew


def test_release_spares_what_is_not_ours(bed):
    bed.create()
    for group in bed.fake.groups.values():
        group["tags"][TAG_INSTALLATION] = "sky-other"
    asyncio.run(bed.cloud.release(SERVICE))
    assert len(bed.fake.groups) == 1


def test_long_names_of_groups_stay_apart():
    long = [an_order(service=f"{'m' * 90}-{number}") for number in (1, 2)]
    groups = [words.ground(SUBSCRIPTION, OURS, order).group for order in long]
    assert groups[0] != groups[1]
    assert all(len(group) <= 90 for group in groups)


# ---- refusals


def refused(bed: Bed, kind: str, detail: str = "", *, where: str = "*", order: VmOrder | None = None) -> Exception:
    bed.core.faults.append(Fault("create", kind, detail=detail, where=where, retry_after_s=7))
    with pytest.raises(Exception) as told:  # noqa: PT011  the caller looks at it
        bed.create(order)
    return told.value


@pytest.mark.parametrize("code", ["AllocationFailed", "OverconstrainedAllocationRequest", "ZonalAllocationFailed"])
def test_no_capacity_inside_the_operation(bed, code):
    error = refused(bed, "capacity", f"{code}: There is none.")
    assert isinstance(error, CapacityUnavailable)
    assert (error.location, error.instance_types) == (None, None)  # that pool, and no other
    assert code in error.message
    assert bed.machines() == []  # what was left of it is gone
    assert isinstance(bed.create(), Vm)  # the same token may be tried again


@pytest.mark.parametrize("kind", ["throttled", "unavailable", "credentials"])
def test_a_machine_that_was_accepted_is_not_given_up_for_want_of_news(bed, kind):
    bed.core.faults.append(Fault("operation", kind))
    made = bed.create()
    assert not bed.core.faults[0].times
    assert bed.only().id == made.id


def test_no_capacity_in_a_zone(bed):
    bed.core.capacity["eastus-1/*"] = 0
    with pytest.raises(CapacityUnavailable):
        bed.create(an_order(zone="eastus-1"))
    bed.create(an_order("t2", zone="eastus-2"))


def test_no_capacity_at_once(bed):
    bed.fake.at_once = True
    error = refused(bed, "capacity", order=an_order(spot=True))
    assert isinstance(error, CapacityUnavailable)
    assert (error.location, error.instance_types) == ("azure/eastus", "Standard_D8s_v5")
    assert error.retry_after_s > 60


def test_no_capacity_late_is_seen_in_the_listing(bed):
    bed.fake.operation_s = 1e6
    bed.core.capacity["*"] = 0
    cloud = AzureCloud(
        azure_fake.account(), OURS, QuickClock(200), Clients(azure_fake.account(), bed.fake.url, Bearer())
    )
    made = asyncio.run(cloud.create(an_order()))
    seen = bed.only()
    assert (seen.id, seen.state) == (made.id, VmState.PREEMPTED)
    assert seen.detail.startswith("AllocationFailed: ")
    asyncio.run(bed.cloud.delete(made.id))
    assert bed.machines() == []


@pytest.mark.parametrize(
    ("detail", "location", "types"),
    [
        ("exceeding approved standardNCADSA100v4Family Cores quota", "azure/eastus", "Standard_D8s_v5"),
        ("exceeding approved LowPriorityCores quota", "azure/eastus", None),
        ("exceeding approved Total Regional Cores quota", "azure/eastus", None),
        ("PublicIPCountLimitReached: Cannot create more.", "azure/eastus", None),
        ("QuotaExceeded: Too many.", "azure/eastus", "Standard_D8s_v5"),
        ("RequestDisallowedByPolicy: Not in this region.", "azure/eastus", None),
    ],
)
def test_quota(bed, detail, location, types):
    error = refused(bed, "quota", detail)
    assert isinstance(error, QuotaExceeded)
    assert (error.location, error.instance_types) == (location, types)
    assert error.hint


def test_a_quota_is_no_lack_of_rights(bed):
    error = refused(bed, "credentials", "OperationNotAllowed: exceeding approved LowPriorityCores quota")
    assert isinstance(error, QuotaExceeded)


def test_a_policy_that_forbids_the_region(bed):
    bed.core.faults.append(Fault("group", "credentials", detail="RequestDisallowedByPolicy: Not in this region."))
    with pytest.raises(QuotaExceeded) as told:
        bed.create()
    assert told.value.location == "azure/eastus"


def test_quota_of_the_account(bed):
    bed.core.quota = 0
    with pytest.raises(QuotaExceeded, match="Total Regional Cores"):
        bed.create()


@pytest.mark.parametrize(
    "detail",
    [
        "InvalidParameter: The value Standard_D8s_v5 provided for the VM size is not valid.",
        "BadRequest: The selected VM size 'Standard_D8s_v5' cannot boot Hypervisor Generation '2'.",
        "LocationNotSupportAvailabilityZones: No zones here.",
        "OperationNotAllowed: The VM size does not support Spot.",
    ],
)
def test_a_size_that_is_not_to_be_had_here_stops_nothing_else(bed, detail):
    error = refused(bed, "rejected", detail)
    assert isinstance(error, CapacityUnavailable)
    assert (error.location, error.instance_types) == ("azure/eastus", "Standard_D8s_v5")


@pytest.mark.parametrize("detail", ["", "PlatformImageNotFound: No such image.", "VMMarketplaceInvalidInput: Terms."])
def test_an_order_that_is_wrong(bed, detail):
    assert isinstance(refused(bed, "rejected", detail), OrderRejected)


def test_labels_that_azure_does_not_take(bed):
    with pytest.raises(OrderRejected, match="InvalidTagNameCharacters"):
        bed.create(an_order(labels={"example.com/team": "search"}))


@pytest.mark.parametrize("operation", ["create", "list", "delete", "group", "network"])
def test_too_many_calls(bed, operation):
    async def a_life() -> None:
        made = await bed.cloud.create(an_order())
        await bed.cloud.machines()
        await bed.cloud.delete(made.id)

    bed.core.faults.append(Fault(operation, "throttled", retry_after_s=7))
    with pytest.raises(Throttled) as told:
        asyncio.run(a_life())
    assert told.value.retry_after_s == 7
    assert not bed.core.faults[0].times  # and it was not asked again


@pytest.mark.parametrize("operation", ["create", "list", "delete", "stop", "start", "release"])
def test_silence_and_refusal_of_every_call(bed, operation):
    made = bed.create()
    calls = {
        "create": lambda: bed.cloud.create(an_order("t2")),
        "list": bed.cloud.machines,
        "delete": lambda: bed.cloud.delete(made.id),
        "stop": lambda: bed.cloud.stop(made.id),
        "start": lambda: bed.cloud.start(made.id),
        "release": lambda: bed.cloud.release(SERVICE),
    }
    for kind, expected in (("unavailable", ProviderUnavailable), ("credentials", CredentialsRejected)):
        bed.core.faults.append(Fault(operation, kind))
        with pytest.raises(expected) as told:
            asyncio.run(calls[operation]())
        assert not isinstance(told.value, PlaceRefused)


@pytest.mark.parametrize("code", ["ResourceGroupBeingDeleted", "Conflict", "OperationNotAllowed"])
def test_what_passes_by_itself_is_silence(bed, code):
    assert isinstance(refused(bed, "quota", f"{code}: Later."), ProviderUnavailable)


def test_a_server_that_is_not_there(bed):
    bed.fake.stop()
    with pytest.raises(ProviderUnavailable):
        bed.machines()


@pytest.mark.parametrize("vm_id", ["i-123", "/subscriptions/x"])
def test_ids_that_are_none_of_azure(bed, vm_id):
    asyncio.run(bed.cloud.delete(vm_id))  # there is nothing to end
    with pytest.raises(OrderRejected):
        asyncio.run(bed.cloud.stop(vm_id))


def test_a_machine_of_another_subscription_is_not_taken_for_gone(bed):
    made = bed.create()
    with pytest.raises(CredentialsRejected) as told:
        asyncio.run(bed.cloud.delete(made.id.replace(SUBSCRIPTION, "other")))
    assert "AZURE_SUBSCRIPTION_ID=other" in told.value.hint


# ---- the account


def test_check_names_who_pays(bed):
    found = asyncio.run(bed.cloud.check())
    assert found.usable
    assert found.account == "client test [Test bed]"


def test_check_of_a_subscription_that_is_switched_off(bed):
    bed.fake.state = "Disabled"
    found = asyncio.run(bed.cloud.check())
    assert not found.usable
    assert "Disabled" in found.reason


@pytest.mark.parametrize("wrong", ["token", "role"])
def test_check_with_credentials_that_are_refused(bed, wrong):
    if wrong == "token":
        bed.fake.token = "another one"
    else:
        bed.core.faults.append(Fault("check", "credentials"))
    found = asyncio.run(bed.cloud.check())
    assert not found.usable
    assert found.hint


def test_check_when_azure_is_silent(bed):
    bed.core.faults.append(Fault("check", "unavailable"))
    with pytest.raises(ProviderUnavailable):
        asyncio.run(bed.cloud.check())
