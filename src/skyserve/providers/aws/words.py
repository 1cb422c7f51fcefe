"""What is said to AWS and what its answers mean: images, disks, security rules, states, error codes. Pure: asks nobody.

Knows the EC2 API's own words. Must not know boto3, credentials, nor in what order to call.
"""

from __future__ import annotations

import hashlib
import ipaddress
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from skyserve.errors import (
    CapacityUnavailable,
    CredentialsRejected,
    OrderRejected,
    ProviderError,
    ProviderUnavailable,
    QuotaExceeded,
    Throttled,
)
from skyserve.model.offering import CapacityType, Offering
from skyserve.providers.aws.api import AwsError, Told, number, rows, text
from skyserve.providers.vm_cloud import TAG_SERVICE, TAG_TOKEN, Vm, VmOrder, VmState

NAME = "aws"
DEFAULT_DISK_GIB = 256
"""Size of the disk when the service does not say: room for weights and an engine."""

_UBUNTU = "/aws/service/canonical/ubuntu/server/22.04/stable/current/{arch}/hvm/ebs-gp2/ami-id"
_NVIDIA = "/aws/service/deeplearning/ami/{arch}/base-oss-nvidia-driver-gpu-ubuntu-22.04/latest/ami-id"
_OLD_NVIDIA = "/aws/service/deeplearning/ami/{arch}/base-proprietary-nvidia-driver-gpu-ubuntu-22.04/latest/ami-id"
_NEURON = "/aws/service/neuron/dlami/multi-framework/ubuntu-24.04/latest/image_id"

_BEFORE_TURING = ("K80", "M60", "P100", "V100", "V100-32GB")  # unknown to NVIDIA's open kernel modules
_NEURON_CHIPS = ("Inferentia", "Inferentia2", "Trainium", "Trainium2")
_OTHER_CHIPS = ("Gaudi", "Gaudi2", "Qualcomm-AI100", "V520", "V620")  # plain Ubuntu: their drivers are up to `setup`
_ARM64 = re.compile(r"(a1|[a-z]+\d+[a-z]*g[a-z]*|[a-z]\d+[a-z]*-gb\d+)\.")

_STATES = {
    "pending": VmState.BOOTING,
    "running": VmState.RUNNING,
    "stopping": VmState.STOPPING,
    "stopped": VmState.STOPPED,
    "shutting-down": VmState.STOPPING,
}
_THROTTLED_FOR_S = 5.0
_NOT_OFFERED_FOR_S = 6 * 3600.0
_SPOT_ENDS = ("Server.SpotInstanceTermination", "Server.SpotInstanceShutdown")


def vm_id(region: str, instance: Told) -> str:
    """The id by which the rest of the product knows an instance."""
    return f"{region}:{text(instance, 'InstanceId')}"


def machine(region: str, instance: Told) -> Vm | None:
    """An instance as the contract has it; None when it is gone for good, and not taken back."""
    state, detail = text(instance, "State", "Name"), ""
    stands = _STATES.get(state)
    if state in ("shutting-down", "terminated"):
        transition = text(instance, "StateTransitionReason")
        detail = text(instance, "StateReason", "Message") or transition
        if (text(instance, "StateReason", "Code") or transition).startswith(_SPOT_ENDS):
            stands = VmState.PREEMPTED
    if stands is None:
        return None
    tags = {text(tag, "Key"): text(tag, "Value") for tag in rows(instance, "Tags")}
    return Vm(
        id=vm_id(region, instance),
        service=tags.get(TAG_SERVICE, ""),
        token=tags.get(TAG_TOKEN, ""),
        state=stands,
        host=text(instance, "PublicIpAddress") or None,
        detail=detail,
    )


@dataclass(frozen=True, slots=True)
class Image:
    """An AMI: where its system disk is attached, and how large that is at least, GiB."""

    id: str
    root_device: str
    smallest_gib: int


Rule = tuple[int, str]
"""A TCP port, and the network (CIDR) that may reach it."""


def request(order: VmOrder, image: Image, subnet: Told, group_id: str) -> dict[str, object]:
    """RunInstances. Raises OrderRejected for a disk that is smaller than the image."""
    offering = order.order.offering
    tags = tag_list({**order.order.labels, **order.tags, "Name": order.name})
    interface = {
        "DeviceIndex": 0,
        "SubnetId": text(subnet, "SubnetId"),
        "Groups": [group_id],
        "AssociatePublicIpAddress": True,
        "DeleteOnTermination": True,
    }
    request: dict[str, object] = {
        "ImageId": image.id,
        "InstanceType": offering.instance_type,
        "MinCount": 1,
        "MaxCount": 1,
        "ClientToken": hashlib.sha256(f"{order.name} {order.tags[TAG_TOKEN]}".encode()).hexdigest(),  # 64 are allowed
        "UserData": order.user_data,
        "NetworkInterfaces": [interface],
        "BlockDeviceMappings": [{"DeviceName": image.root_device, "Ebs": _disk(order, image)}],
        "MetadataOptions": {"HttpEndpoint": "enabled", "HttpTokens": "required", "HttpPutResponseHopLimit": 2},
        "InstanceInitiatedShutdownBehavior": "terminate",
        "TagSpecifications": [{"ResourceType": kind, "Tags": tags} for kind in ("instance", "volume")],
    }
    if offering.capacity_type is CapacityType.SPOT:
        once = {"SpotInstanceType": "one-time", "InstanceInterruptionBehavior": "terminate"}
        request["InstanceMarketOptions"] = {"MarketType": "spot", "SpotOptions": once}
    return request


def _disk(order: VmOrder, image: Image) -> dict[str, object]:
    wish, tier = order.order.disk_size, order.order.disk_tier or "medium"
    if wish is not None and wish < image.smallest_gib:
        raise OrderRejected(
            f"AWS: a disk of {wish} GiB is too small for the image {image.id}",
            hint=f"set `disk_size` to {image.smallest_gib} or more",
        )
    size_gib = wish or max(DEFAULT_DISK_GIB, image.smallest_gib)
    if tier in ("ultra", "best"):
        iops = max(100, min(20_000, 500 * size_gib))  # io2 has at most 500 a GiB on every machine type
        kind: dict[str, object] = {"VolumeType": "io2", "Iops": iops}
    else:
        iops, mib_per_s = {"low": (3000, 125), "medium": (3000, 250), "high": (12_000, 750)}[tier]
        iops = max(3000, min(iops, 500 * size_gib))
        kind = {"VolumeType": "gp3", "Iops": iops, "Throughput": min(mib_per_s, iops // 4)}
    return {"VolumeSize": size_gib, "DeleteOnTermination": True, **kind}


def image_parameter(offering: Offering) -> str:
    """The SSM parameter that holds the AMI for this hardware."""
    arm64 = _ARM64.match(offering.instance_type) is not None
    chip = offering.accelerator.name if offering.accelerator else None
    if chip in _NEURON_CHIPS:
        return _NEURON
    if chip is None or chip in _OTHER_CHIPS:
        return _UBUNTU.format(arch="arm64" if arm64 else "amd64")
    nvidia = _OLD_NVIDIA if chip in _BEFORE_TURING else _NVIDIA
    return nvidia.format(arch="arm64" if arm64 else "x86_64")


def tag_list(tags: Mapping[str, str]) -> list[dict[str, str]]:
    """Tags as they are given to what is made."""
    return [{"Key": key, "Value": value} for key, value in tags.items()]


def tag_filters(tags: Mapping[str, str]) -> list[dict[str, object]]:
    """Tags as they are asked for."""
    return [{"Name": f"tag:{key}", "Values": [value]} for key, value in tags.items()]


def networks(allow_from: Sequence[str]) -> list[str]:
    """The networks as AWS writes them. Raises OrderRejected for what is none."""
    try:
        return [str(ipaddress.ip_network(cidr, strict=False)) for cidr in allow_from]
    except ValueError as error:
        raise OrderRejected(f"AWS: {error}", hint="SKYSERVE_PUBLIC_ADDRESS holds addresses or CIDR ranges") from error


def rules(group: Told) -> set[Rule]:
    """The rules of a group that can be ours: TCP, one port each."""
    found: set[Rule] = set()
    for permission in rows(group, "IpPermissions"):
        port = number(permission, "FromPort")
        if text(permission, "IpProtocol") == "tcp" and port == number(permission, "ToPort"):
            found |= {(port, text(source, "CidrIp")) for source in rows(permission, "IpRanges")}
            found |= {(port, text(source, "CidrIpv6")) for source in rows(permission, "Ipv6Ranges")}
    return found


def permissions(rules: Collection[Rule]) -> list[dict[str, object]]:
    """Rules as a security group is told of them."""
    found: list[dict[str, object]] = []
    for port, network in sorted(rules):
        kind, key = ("Ipv6Ranges", "CidrIpv6") if ":" in network else ("IpRanges", "CidrIp")
        found.append({"IpProtocol": "tcp", "FromPort": port, "ToPort": port, kind: [{key: network}]})
    return found


_REACTIONS: Mapping[str, type[ProviderError]] = {
    code: reaction
    for reaction, codes in (
        (CapacityUnavailable, "SpotMaxPriceTooLow UnfulfillableCapacity Unsupported"),
        (QuotaExceeded, "MaxSpotInstanceCountExceeded PendingVerification OptInRequired"),
        (Throttled, "RequestLimitExceeded TooManyRequests TooManyRequestsException"),
        (CredentialsRejected, "AuthFailure Blocked UnauthorizedOperation AccessDenied AccessDeniedException"),
        (CredentialsRejected, "ExpiredToken ExpiredTokenException RequestExpired MissingAuthenticationToken"),
        (CredentialsRejected, "InvalidClientTokenId InvalidAccessKeyId InvalidSecurityToken SignatureDoesNotMatch"),
        (CredentialsRejected, "IncompleteSignature UnrecognizedClientException ProfileNotFound InvalidConfigError"),
        (CredentialsRejected, "NoCredentialsError PartialCredentialsError CredentialRetrievalError"),
        (CredentialsRejected, "TokenRetrievalError SSOTokenLoadError UnauthorizedSSOTokenError"),
        (ProviderUnavailable, "InvalidGroup.NotFound InvalidSubnetID.NotFound"),  # just made, not known everywhere
        (OrderRejected, "ParamValidationError UnsupportedOperation ValidationError"),
    )
    for code in codes.split()
}
"""By AWS's codes, and the names of boto3's own errors; others are told by how they are spelled, see `_reaction`."""

_SHARED_QUOTAS = {
    **dict.fromkeys(("g", "gr", "vt"), "G and VT"),
    **{"p": "P", "inf": "Inf", "trn": "Trn", "dl": "DL", "f": "F", "x": "X", "hpc": "HPC", "u": "High Memory"},
}
"""First letters of instance types, and the quota on their vCPUs; that of all others is called Standard."""


def meaning(error: AwsError, offering: Offering | None = None) -> ProviderError:
    """An AWS error in the contract's terms. `offering` is what was asked for, and says how far a refusal reaches."""
    reaction = _reaction(error.code)
    said = f"AWS: {error.message.rstrip('.')} ({error.code})"
    if reaction is Throttled:
        return Throttled(said, retry_after_s=_THROTTLED_FOR_S)
    if reaction is CredentialsRejected:
        hint = "run `aws sts get-caller-identity`; the permissions that are needed are in docs/howto/aws.md"
        return CredentialsRejected(said, hint=hint)
    if reaction is CapacityUnavailable and offering is not None:
        return _no_capacity(error.code, said, offering)
    if reaction is QuotaExceeded and offering is not None:
        return _over_quota(error.code, said, offering)
    return reaction(said)


def _reaction(code: str) -> type[ProviderError]:
    if code in _REACTIONS:
        return _REACTIONS[code]
    if code.startswith("Insufficient"):
        return CapacityUnavailable
    if code.endswith("LimitExceeded"):
        return QuotaExceeded
    if "Throttl" in code:
        return Throttled
    wrong = code.startswith(("Invalid", "Missing", "Malformed", "Unknown"))
    return OrderRejected if wrong else ProviderUnavailable  # what nobody knows the meaning of changes nothing


def _no_capacity(code: str, said: str, offering: Offering) -> CapacityUnavailable:
    """Capacity is a zone's and of one type, unless AWS speaks of more."""
    where, types = str(offering.location), offering.instance_type
    if code == "InsufficientFreeAddressesInSubnet":
        types = "*"
    wait_s = _NOT_OFFERED_FOR_S if code == "Unsupported" else 0.0  # that type is not sold there
    return CapacityUnavailable(f"{said} [{where}]", location=where, instance_types=types, retry_after_s=wait_s)


def _over_quota(code: str, said: str, offering: Offering) -> QuotaExceeded:
    """Quotas are a region's; those on vCPUs are shared by families of types, of which the nearest are named."""
    region, instance_type = offering.location.region, offering.instance_type
    location = f"{NAME}/{region}"
    if code not in ("VcpuLimitExceeded", "InstanceLimitExceeded", "MaxSpotInstanceCountExceeded"):
        return QuotaExceeded(f"{said} [{region}]", location=location, instance_types="*")
    letters = re.split(r"[^a-z]", instance_type)[0]
    kind = _SHARED_QUOTAS.get(letters, "Standard (A, C, D, H, I, M, R, T, Z)")
    family = f"{letters}*" if letters in _SHARED_QUOTAS else f"{instance_type.partition('.')[0]}.*"
    spot = offering.capacity_type is CapacityType.SPOT
    if spot and letters == "p":  # the only class that is split, and only there
        kind, family = "P5" if instance_type.startswith("p5") else "P4, P3 and P2", f"{instance_type[:2]}*"
    quota = f"All {kind} Spot Instance Requests" if spot else f"Running On-Demand {kind} instances"
    hint = f"ask for more of the quota `{quota}` in {region}: Service Quotas console, Amazon EC2"
    return QuotaExceeded(f"{said} [{region}: {quota}]", hint=hint, location=location, instance_types=family)


def unfit(what: str, hint: str, place: str, types: str = "*") -> QuotaExceeded:
    """The account lacks something there that it could have: not before somebody has seen to it."""
    return QuotaExceeded(f"AWS: {what}", hint=hint, location=f"{NAME}/{place}", instance_types=types)
