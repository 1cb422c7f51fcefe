"""What is said to Azure and what its answers mean: names, images, request bodies, machine states. All in the REST API's
own words, as plain JSON. Knows no SDK, no credentials and no network; asks nothing itself.
"""

from __future__ import annotations

import base64
import hashlib
import ipaddress
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from skyserve.errors import OrderRejected
from skyserve.model.offering import CapacityType, Offering
from skyserve.providers.base import LaunchOrder
from skyserve.providers.vm_cloud import TAG_SERVICE, TAG_TOKEN, Vm, VmOrder, VmState

DEFAULT_DISK_GIB = 256
"""Size of the disk when the service does not say: room for weights and an engine."""

TAG_HALTED = "skyserve-halted"
"""On a machine that we stopped: STOPPED, or the Unix second until which a start may take."""
STOPPED = "stopped"

NETWORK = "network"
SUBNET = "machines"

_GROUP_NAME_LIMIT = 90
_USER_DATA_LIMIT = 65535  # before it is encoded
_NETWORK_API = "2022-11-01"  # with which Compute makes the machine's network interface and address
_DISK_TIERS = {"low": "Standard_LRS", "medium": "StandardSSD_LRS"}  # anything faster is premium

_UBUNTU = ("Canonical", "0001-com-ubuntu-server-jammy")
_HPC = ("microsoft-dsvm", "ubuntu-hpc")
_VIRTUAL_GPUS = frozenset({"A10", "RTX-PRO-6000"})
_NO_DRIVER = frozenset({"GB200", "M60", "MI25", "V620", "V710"})
_CONFIDENTIAL = "Standard_NCC"
_OTHER_CLOUDS = ("usgov", "usdod", "china")  # have an API of their own

_SIZE = re.compile(r"Standard_[A-Z]+\d+(?:-\d+)?(?P<features>[a-z]*)")
_SHARED_IMAGES = {"/sharedgalleries/": "sharedGalleryImageId", "/communitygalleries/": "communityGalleryImageId"}

VIRTUAL_GPU_DRIVER = """#!/bin/bash
# A share of a GPU works only with the driver that Microsoft licenses for its machines. No image has it.
(
  command -v nvidia-smi && exit
  export DEBIAN_FRONTEND=noninteractive
  apt-get -o DPkg::Lock::Timeout=300 update
  apt-get -o DPkg::Lock::Timeout=300 install -y build-essential dkms "linux-headers-$(uname -r)"
  curl -fsSL --retry 5 -o /root/gpu-driver.run 'https://go.microsoft.com/fwlink/?linkid=874272'
  sh /root/gpu-driver.run --silent --dkms
  rm -f /root/gpu-driver.run
  sed '/^FeatureType/d' /etc/nvidia/gridd.conf.template > /etc/nvidia/gridd.conf
  printf 'IgnoreSP=FALSE\\nEnableUI=FALSE\\n' >> /etc/nvidia/gridd.conf
  systemctl restart nvidia-gridd
) > /var/log/gpu-driver.log 2>&1
"""
"""Run before an order's user data on machines with virtual GPUs. What fails is in its log; the rest runs."""

USER_DATA_LIMIT = _USER_DATA_LIMIT - len(VIRTUAL_GPU_DRIVER)
"""Bytes that are left for an order's user data on every machine."""


@dataclass(frozen=True, slots=True)
class Ground:
    """Where a service's machines of one region stand: a resource group with its network, and a firewall in it.

    `path` is the group's id; a firewall admits the same ports from the same addresses for ever.
    """

    subscription: str
    group: str
    region: str
    firewall: str

    @property
    def path(self) -> str:
        """The resource group's id."""
        return f"/subscriptions/{self.subscription}/resourceGroups/{self.group}"


def ground(subscription: str, installation: str, order: VmOrder) -> Ground:
    """Where the machine of an order will stand."""
    region = order.order.offering.location.region
    group = f"skyserve-{installation}-{order.order.service}-{region}"
    if len(group) > _GROUP_NAME_LIMIT:
        group = f"{group[: _GROUP_NAME_LIMIT - 13]}-{_digest(group)}"
    admitted = f"{sorted(set(order.ports))} {sorted(set(order.allow_from))}"
    return Ground(subscription, group, region, f"firewall-{_digest(admitted)}")


def can_launch(offering: Offering) -> bool:
    """Whether there is a system image on which the machine's GPUs work, and this API reaches its region."""
    accelerator = offering.accelerator.name if offering.accelerator else ""
    closed = offering.location.region.startswith(_OTHER_CLOUDS)
    return not (closed or accelerator in _NO_DRIVER or offering.instance_type.startswith(_CONFIDENTIAL))


def network_body(region: str, tags: Mapping[str, str]) -> dict[str, object]:
    """A virtual network with one subnet, which no other network can reach."""
    subnet = {"name": SUBNET, "properties": {"addressPrefix": "10.0.0.0/16"}}
    properties = {"addressSpace": {"addressPrefixes": ["10.0.0.0/16"]}, "subnets": [subnet]}
    return {"location": region, "tags": dict(tags), "properties": properties}


def firewall_body(order: VmOrder, tags: Mapping[str, str]) -> dict[str, object]:
    """A network security group: the order's ports from the order's addresses. Azure itself denies all else."""
    sources = _ipv4(order.allow_from)
    rule = {
        "protocol": "Tcp",
        "sourcePortRange": "*",
        "sourceAddressPrefixes": sources,
        "destinationAddressPrefix": "*",
        "destinationPortRanges": [str(port) for port in sorted(set(order.ports))],
        "access": "Allow",
        "direction": "Inbound",
        "priority": 100,
    }
    rules = [{"name": "admit", "properties": rule}] if sources and order.ports else []
    region = order.order.offering.location.region
    return {"location": region, "tags": dict(tags), "properties": {"securityRules": rules}}


def machine_body(order: VmOrder, place: Ground, public_key: str) -> dict[str, object]:
    """A machine with its network interface, public address and disk, which all go when it goes."""
    wanted, offering = order.order, order.order.offering
    properties: dict[str, object] = {
        "hardwareProfile": {"vmSize": offering.instance_type},
        "storageProfile": {"imageReference": image(wanted), "osDisk": _disk(wanted)},
        "osProfile": _system(order, public_key),
        "networkProfile": {
            "networkApiVersion": _NETWORK_API,
            "networkInterfaceConfigurations": [_interface(order.name, place)],
        },
    }
    if offering.capacity_type is CapacityType.SPOT:
        # A machine that is evicted stays, deallocated, until we delete it: one that vanished could not be told from
        # one that was lost. -1: evicted for capacity only, never for its price, which is capped by the on-demand one.
        properties |= {"priority": "Spot", "evictionPolicy": "Deallocate", "billingProfile": {"maxPrice": -1}}
    if offering.accelerator:
        properties["securityProfile"] = {"securityType": "Standard"}  # secure boot refuses drivers built on the machine
    body: dict[str, object] = {
        "location": offering.location.region,
        "tags": {**wanted.labels, **order.tags},
        "properties": properties,
    }
    if offering.location.zone:
        body["zones"] = [offering.location.zone.rpartition("-")[2]]  # `1`, or `eastus-1`
    return body


def image(wanted: LaunchOrder) -> dict[str, str]:
    """The system image: the user's, or a free one without terms to accept that suits the machine's hardware."""
    if wanted.image_id is not None:
        return _named_image(wanted.image_id)
    (publisher, offer), sku = _fitting_image(wanted.offering)
    return {"publisher": publisher, "offer": offer, "sku": sku, "version": "latest"}


def user_data(order: VmOrder) -> str:
    """The script for the first boot, encoded; with the driver's installation where no image has it."""
    script = order.user_data
    accelerator = order.order.offering.accelerator
    if accelerator and accelerator.name in _VIRTUAL_GPUS and order.order.image_id is None:
        script = VIRTUAL_GPU_DRIVER + script
    return base64.b64encode(script.encode()).decode()


def part(node: object, *path: str) -> object:
    """What a JSON object holds at a path; None where there is nothing."""
    for key in path:
        if not isinstance(node, Mapping):
            return None
        node = node.get(key)
    return node


def text(node: object, *path: str) -> str:
    """The text at a path; empty where there is none."""
    found = part(node, *path)
    return found if isinstance(found, str) else ""


def items(node: object, *path: str) -> Sequence[object]:
    """The list at a path; empty where there is none."""
    found = part(node, *path)
    return found if isinstance(found, Sequence) and not isinstance(found, str) else ()


def tag(resource: object, name: str) -> str:
    """A resource's tag; empty where it has none of that name."""
    return text(resource, "tags", name)


def address_of(interfaces: Sequence[object], addresses: Sequence[object]) -> dict[str, str]:
    """Public IP addresses by the id of the machine, in lower case."""
    known = {text(address, "id").lower(): text(address, "properties", "ipAddress") for address in addresses}
    found = {}
    for interface in interfaces:
        machine = text(interface, "properties", "virtualMachine", "id").lower()
        for configuration in items(interface, "properties", "ipConfigurations"):
            address = known.get(text(configuration, "properties", "publicIPAddress", "id").lower())
            if machine and address:
                found[machine] = address
    return found


def vm(machine: object, status: object, host: str | None, now: float) -> Vm:
    """One machine of ours. `machine` has its tags, `status` its instance view; they may be the same object.

    Ids are in lower case: Azure does not always spell a group's name alike.
    """
    statuses = {
        text(one, "code"): text(one, "message") for one in items(status, "properties", "instanceView", "statuses")
    }
    power = next((code.partition("/")[2] for code in statuses if code.startswith("PowerState/")), "")
    failure = next((code for code in statuses if code.startswith("ProvisioningState/failed/")), "")
    state = _state(machine, power, now)
    return Vm(
        id=text(machine, "id").lower(),
        service=tag(machine, TAG_SERVICE),
        token=tag(machine, TAG_TOKEN),
        state=state,
        host=host,
        detail=_detail(state, failure.rpartition("/")[2], statuses.get(failure, "")),
    )


def _state(machine: object, power: str, now: float) -> VmState:
    provisioning = text(machine, "properties", "provisioningState")
    if provisioning == "Deleting":
        return VmState.STOPPING
    if power in ("running", "unknown"):
        return VmState.RUNNING
    if power == "starting":
        return VmState.BOOTING
    if power and _halted(machine, now):
        return VmState.STOPPED if power in ("stopped", "deallocated") else VmState.STOPPING
    if provisioning == "Failed":
        return VmState.PREEMPTED  # it never came to be, or not again
    if power in ("deallocating", "deallocated") and text(machine, "properties", "priority") == "Spot":
        return VmState.PREEMPTED
    return VmState.STOPPED if power else VmState.BOOTING


def _halted(machine: object, now: float) -> bool:
    """Whether it is down because we stopped it, or because our start has not got far yet."""
    halted = tag(machine, TAG_HALTED)
    return halted == STOPPED or (halted.isdecimal() and now < int(halted))


def _detail(state: VmState, code: str, message: str) -> str:
    if state is not VmState.PREEMPTED:
        return ""
    return f"{code}: {message}".removesuffix(": ") if code else "Azure evicted the machine"


def _fitting_image(offering: Offering) -> tuple[tuple[str, str], str]:
    accelerator = offering.accelerator.name if offering.accelerator else None
    if accelerator == "MI300X":
        return _HPC, "2204-rocm"
    if accelerator is not None and accelerator not in _VIRTUAL_GPUS:
        return _HPC, "2204"
    return _UBUNTU, "22_04-lts-arm64" if "p" in _features(offering.instance_type) else "22_04-lts-gen2"


def _features(size: str) -> str:
    """The letters after a size's number: `p` is an Arm processor, `s` takes premium disks."""
    match = _SIZE.match(size)
    return match["features"] if match else ""


def _named_image(name: str) -> dict[str, str]:
    if name.startswith("/"):
        kinds = (kind for start, kind in _SHARED_IMAGES.items() if name.lower().startswith(start))
        return {next(kinds, "id"): name}
    fields = name.split(":")
    if len(fields) != 4 or not all(fields):
        raise OrderRejected(
            f"image_id {name!r} is not an image of Azure",
            hint="give publisher:offer:sku:version, or the resource id of an image, which begins with /subscriptions/",
        )
    return dict(zip(("publisher", "offer", "sku", "version"), fields, strict=True))


def _disk(wanted: LaunchOrder) -> dict[str, object]:
    tier = _DISK_TIERS.get(wanted.disk_tier or "medium", "Premium_LRS")
    if tier == "Premium_LRS" and "s" not in _features(wanted.offering.instance_type):
        tier = "StandardSSD_LRS"  # this size takes no premium disks
    return {
        "createOption": "FromImage",
        "deleteOption": "Delete",
        "diskSizeGB": wanted.disk_size or DEFAULT_DISK_GIB,
        "managedDisk": {"storageAccountType": tier},
    }


def _system(order: VmOrder, public_key: str) -> dict[str, object]:
    keys = [{"path": "/home/skyserve/.ssh/authorized_keys", "keyData": public_key}]
    return {
        "computerName": order.name,
        "adminUsername": "skyserve",
        "customData": user_data(order),
        "linuxConfiguration": {"disablePasswordAuthentication": True, "ssh": {"publicKeys": keys}},
    }


def _interface(name: str, place: Ground) -> dict[str, object]:
    inside = f"{place.path}/providers/Microsoft.Network"
    address = {
        "name": name,
        "sku": {"name": "Standard"},
        "properties": {"deleteOption": "Delete", "publicIPAllocationMethod": "Static"},
    }
    configuration = {
        "name": "main",
        "properties": {
            "primary": True,
            "subnet": {"id": f"{inside}/virtualNetworks/{NETWORK}/subnets/{SUBNET}"},
            "publicIPAddressConfiguration": address,
        },
    }
    properties = {
        "primary": True,
        "deleteOption": "Delete",
        "networkSecurityGroup": {"id": f"{inside}/networkSecurityGroups/{place.firewall}"},
        "ipConfigurations": [configuration],
    }
    return {"name": name, "properties": properties}


def _ipv4(ranges: Sequence[str]) -> list[str]:
    """The machines have IPv4 addresses only: nobody comes from the others, and one rule may not mix both kinds."""
    networks = (ipaddress.ip_network(one, strict=False) for one in ranges)
    return sorted({str(network) for network in networks if network.version == 4})


def _digest(words: str) -> str:
    return hashlib.sha256(words.encode()).hexdigest()[:12]
