"""Orders, machines and refusals, from our words into those of GCP's API and back. Pure: asks nobody, keeps nothing.

Knows machine series, disks, images, labels, statuses and error codes. Must not know HTTP, nor in what order to call.
"""

from __future__ import annotations

import hashlib
import ipaddress
import json
import re
from collections.abc import Mapping, Sequence
from http import HTTPStatus

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
from skyserve.providers.gcp.api import LOGIN_HINT, Json, Refusal, entries, mapping, parsed, text
from skyserve.providers.vm_cloud import TAG_INSTALLATION, TAG_SERVICE, TAG_TOKEN, Vm, VmOrder, VmState

DEFAULT_DISK_GIB = 100

NETWORK = "global/networks/default"
_UBUNTU = "projects/ubuntu-os-cloud/global/images/family/ubuntu-2204-lts"
_UBUNTU_ARM = f"{_UBUNTU}-arm64"
_WITH_DRIVER = "projects/deeplearning-platform-release/global/images/family/common-cu129-ubuntu-2204-nvidia-580"

STOPPED_RUN = "skyserve-stopped-run"
"""The label of a machine that we stopped. It names the run that ended so, and is void once the machine runs again."""

_ARM_SERIES = frozenset({"t2a", "c4a", "n4a"})
_HYPERDISK_SERIES = frozenset({"a4", "c4", "c4a", "c4d", "g4", "h4d", "m4", "n4", "n4a", "n4d", "x4"})
"""Machines that cannot start from a persistent disk."""
_NO_STANDARD_DISK_SERIES = frozenset({"a3", "c3", "c3d", "g2", "h3", "m3", "z3"})
_PERSISTENT = {"low": "pd-standard", "medium": "pd-balanced", "high": "pd-ssd", "ultra": "pd-ssd", "best": "pd-ssd"}
_HYPERDISK_IOPS = {"high": 10_000, "ultra": 30_000, "best": 30_000}
_IOPS_PER_GIB = 500

_ATTACHED = {name: f"nvidia-tesla-{name.lower()}" for name in ("K80", "P4", "P100", "T4", "V100")}
"""Accelerators that are ordered with a machine of the N1 series. All others come with their machine types."""

_NO_CAPACITY = re.compile(r"RESOURCE_POOL_EXHAUSTED|STOCKOUT|MIN_COUNT_NOT_REACHED", re.IGNORECASE)
_THROTTLED = re.compile(r"RATE_?LIMIT_?EXCEEDED|RATE_?EXCEEDED", re.IGNORECASE)
_OVER_QUOTA = re.compile(r"QUOTA_?EXCEEDED", re.IGNORECASE)
_BUSY = re.compile(r"NOT_?READY|IN_?USE_?BY_?ANOTHER|BACKEND_?ERROR|INTERNAL", re.IGNORECASE)
_CHANGED_MEANWHILE = "fingerprint"
_CLOSED = re.compile(r"accessNotConfigured|SERVICE_DISABLED|billing", re.IGNORECASE)
_NOT_SOLD = re.compile(
    r"(machineTypes?|acceleratorTypes?)\b.*(not|n't)|does not exist in zone", re.IGNORECASE | re.DOTALL
)
NOT_SOLD_S = 6 * 3600.0
"""How long a place is left alone where such a machine, or anything at all, is not to be had."""

_REGION_WIDE = frozenset({"IN_USE_ADDRESSES", "INSTANCES", "SSD_TOTAL_GB", "DISKS_TOTAL_GB", "CPUS_ALL_REGIONS"})


def told(refusal: Refusal, project: str, offering: Offering | None = None) -> ProviderError:
    """A refusal in the contract's terms. `offering` is what was asked for, if it was a machine."""
    said = f"{refusal.reason}: {refusal.message}" if refusal.reason else refusal.message
    if _NO_CAPACITY.search(refusal.reason):
        return CapacityUnavailable(said)
    if refusal.status == HTTPStatus.TOO_MANY_REQUESTS or _THROTTLED.search(refusal.reason):
        return Throttled(said, retry_after_s=refusal.retry_after_s or 5.0)
    if _OVER_QUOTA.search(refusal.reason):
        return _over_quota(said, refusal.message, project, offering)
    if refusal.status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN) or _CLOSED.search(refusal.reason):
        return CredentialsRejected(said, hint=_access_hint(refusal, project))
    if offering is not None and _NOT_SOLD.search(refusal.message):
        return CapacityUnavailable(f"not sold there: {said}", retry_after_s=NOT_SOLD_S)
    busy = _BUSY.search(refusal.reason) or _CHANGED_MEANWHILE in refusal.message
    if busy or refusal.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return ProviderUnavailable(said)
    return OrderRejected(said, hint="see docs/howto/gcp.md")


def _over_quota(said: str, message: str, project: str, offering: Offering | None) -> QuotaExceeded:
    """Quotas hold for a region, or for the project everywhere; and mostly for one family of machines, or one GPU."""
    hint = f"ask for more at https://console.cloud.google.com/iam-admin/quotas?project={project}"
    if offering is None:
        return QuotaExceeded(said, hint=hint)
    metric = re.search(r"Quota '([A-Z0-9_]+)'", message)
    place = offering.location
    types: str | None = f"{series_of(offering.instance_type)}-*"
    if metric is not None and metric[1] in _REGION_WIDE:
        types = None
    elif attached_kind(offering):
        types = offering.shape
    everywhere = "globally" in message or (metric is not None and metric[1].endswith("ALL_REGIONS"))
    location = place.cloud if everywhere else f"{place.cloud}/{place.region}"
    return QuotaExceeded(said, hint=hint, location=location, instance_types=types)


def _access_hint(refusal: Refusal, project: str) -> str:
    if re.search(r"billing", f"{refusal.reason} {refusal.message}", re.IGNORECASE):
        return f"gcloud billing projects link {project} --billing-account ACCOUNT"
    if _CLOSED.search(refusal.reason):
        return f"gcloud services enable compute.googleapis.com --project {project}"
    if refusal.status == HTTPStatus.UNAUTHORIZED:
        return LOGIN_HINT
    return f"the roles that are needed in {project}: docs/howto/gcp.md"


# ---- an order, in the API's words


def series_of(instance_type: str) -> str:
    """The family of a machine type: what it can start from, and what its quota is, depend on it."""
    return instance_type.partition("-")[0]


def attached_kind(offering: Offering) -> str | None:
    """The API's name of the accelerator that must be ordered with the machine; None if it has none, or its own."""
    if offering.accelerator is None or series_of(offering.instance_type) != "n1":
        return None
    return _ATTACHED.get(offering.accelerator.name)


def launchable(offering: Offering) -> bool:
    """TPUs are another API's, and an N1 machine cannot carry a GPU that has no name for it."""
    if offering.accelerator is None:
        return True
    if offering.accelerator.name.lower().startswith("tpu"):
        return False
    return series_of(offering.instance_type) != "n1" or attached_kind(offering) is not None


def instance_body(order: VmOrder, zone: str, project: str) -> dict[str, object]:
    """The order as an instance that can be inserted in this zone."""
    offering = order.order.offering
    body: dict[str, object] = {
        "name": order.name,
        "description": json.dumps(dict(order.tags), sort_keys=True),
        "machineType": f"zones/{zone}/machineTypes/{offering.instance_type}",
        "disks": [_boot_disk(order, zone, project)],
        "networkInterfaces": [
            {"network": NETWORK, "accessConfigs": [{"type": "ONE_TO_ONE_NAT", "name": "External NAT"}]}
        ],
        "scheduling": _scheduling(offering),
        "labels": _labels(order.order.labels) | _labels(order.tags),
        "metadata": {"items": _metadata(order)},
        "tags": {"items": [shared_name(order.tags)]},
    }
    attached = attached_kind(offering)
    if attached is not None and offering.accelerator is not None:
        kind = f"zones/{zone}/acceleratorTypes/{attached}"
        body["guestAccelerators"] = [{"acceleratorType": kind, "acceleratorCount": int(offering.accelerator.count)}]
    return body


def _scheduling(offering: Offering) -> dict[str, object]:
    # Nothing restarts by itself: the controller replaces what has ended, and would not expect it to come back.
    scheduling: dict[str, object] = {"automaticRestart": False}
    spot = offering.capacity_type is CapacityType.SPOT
    if spot or offering.accelerator is not None:
        scheduling["onHostMaintenance"] = "TERMINATE"
    if spot:
        scheduling["provisioningModel"] = "SPOT"
        # STOP and not DELETE: what was taken back stays listed, and we see why it ended before we delete it.
        scheduling["instanceTerminationAction"] = "STOP"
    return scheduling


def _boot_disk(order: VmOrder, zone: str, project: str) -> dict[str, object]:
    wanted, series = order.order, series_of(order.order.offering.instance_type)
    size, tier = wanted.disk_size or DEFAULT_DISK_GIB, wanted.disk_tier or "medium"
    disk: dict[str, object] = {
        "sourceImage": _image(wanted.image_id, wanted.offering, project),
        "diskSizeGb": str(size),
    }
    kind = _PERSISTENT.get(tier, "pd-balanced")
    if series in _HYPERDISK_SERIES:
        kind = "hyperdisk-balanced"
        if tier in _HYPERDISK_IOPS:
            iops = min(_HYPERDISK_IOPS[tier], _IOPS_PER_GIB * size)
            disk |= {"provisionedIops": str(iops), "provisionedThroughput": str(max(140, min(1200, iops // 25)))}
    elif kind == "pd-standard" and series in _NO_STANDARD_DISK_SERIES:
        kind = "pd-balanced"
    disk["diskType"] = f"zones/{zone}/diskTypes/{kind}"
    return {"boot": True, "autoDelete": True, "type": "PERSISTENT", "initializeParams": disk}


def _image(wanted: str | None, offering: Offering, project: str) -> str:
    if wanted is None:
        if offering.accelerator is not None:
            return _WITH_DRIVER
        return _UBUNTU_ARM if series_of(offering.instance_type) in _ARM_SERIES else _UBUNTU
    return wanted if "/" in wanted else f"projects/{project}/global/images/{wanted}"


def _metadata(order: VmOrder) -> list[dict[str, str]]:
    # `startup-script` and not cloud-init's `user-data`: all of Google's images have the agent that runs it, Ubuntu and
    # deep-learning ones alike, while cloud-init is missing from those that are built on Debian. The agent runs it at
    # each boot, so it marks its first run. The mark bears the machine's name: an image made of this disk has it too.
    mark = f"/var/lib/skyserve-booted/{order.name}"
    guard = f'mkdir -p "{mark.rpartition("/")[0]}" && mkdir "{mark}" 2>/dev/null || exit 0'
    values = {"startup-script": f"#!/bin/bash\n{guard}\n{order.user_data}"} | dict(order.tags)
    if order.order.labels:
        values["skyserve-labels"] = json.dumps(dict(order.order.labels), sort_keys=True)
    if order.order.offering.accelerator is not None:
        values["install-nvidia-driver"] = "True"  # older deep-learning images have it on the disk, not installed
    return [{"key": key, "value": value} for key, value in values.items()]


def _labels(wanted: Mapping[str, str]) -> dict[str, str]:
    return {_label(key, "k"): _label(value) for key, value in wanted.items()}


def _label(given: str, first: str = "") -> str:
    """A text as the API takes it: as it is if possible, otherwise with a digest, so that different ones differ.

    `first` is put before what may not begin a label's key.
    """
    plain = re.sub(r"[^a-z0-9_-]", "-", given.lower())
    if first and not re.match(r"[a-z]", plain):
        plain = f"{first}-{plain}"
    if plain == given and len(plain) <= 63:
        return plain
    return f"{plain[:54]}-{hashlib.sha256(given.encode()).hexdigest()[:8]}"


def shared_name(tags: Mapping[str, str]) -> str:
    """The name of a service's firewall rule, and of the network tag that puts its machines under the rule."""
    service = tags[TAG_SERVICE]
    digest = hashlib.sha256(f"{tags[TAG_INSTALLATION]}/{service}".encode()).hexdigest()[:12]
    plain = re.sub(r"[^a-z0-9-]", "-", service.lower()).strip("-")
    return f"sky-{plain[:44].strip('-')}-{digest}".replace("--", "-")


def ipv4(sources: Sequence[str]) -> list[str]:
    """Those ranges that a rule of the default network, which is IPv4, may name."""
    return sorted({str(net) for net in map(_network, sources) if net.version == 4})


def _network(source: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    return ipaddress.ip_network(source, strict=False)


# ---- a machine, in ours

FIELDS = (
    "name,zone,status,statusMessage,description,labels,labelFingerprint,lastStartTimestamp,"
    "scheduling/provisioningModel,networkInterfaces/accessConfigs/natIP"
)
PAGE_FIELDS = f"nextPageToken,unreachables,warning,items/*/warning,items/*/instances({FIELDS})"
"""All but the metadata: the start scripts of many machines would make up nearly all of the answer."""

_STATES = {
    "PENDING": VmState.BOOTING,
    "PROVISIONING": VmState.BOOTING,
    "STAGING": VmState.BOOTING,
    "RUNNING": VmState.RUNNING,
    "REPAIRING": VmState.RUNNING,  # it may come through: the readiness probe says whether it serves
    "DEPROVISIONING": VmState.STOPPING,
}
_ENDING = frozenset({"STOPPING", "PENDING_STOP", "SUSPENDING"})


def tags_of(instance: Json) -> Mapping[str, object]:
    """Our tags as they were given; labels are folded to what the API takes."""
    tags = parsed(text(instance, "description").encode())
    return tags or {}


def run_of(instance: Json) -> str:
    """A label value that names the machine's present or last run."""
    return re.sub(r"[^a-z0-9]", "-", text(instance, "lastStartTimestamp").lower()) or "none"


def _state(instance: Json, deleting: bool) -> tuple[VmState, str]:
    """Where it stands, and why it ended if that was not our doing."""
    status, words = text(instance, "status"), text(instance, "statusMessage")
    if status in _STATES:
        return _STATES[status], ""
    ours = text(instance, "labels", STOPPED_RUN) == run_of(instance)
    ending = status in _ENDING
    if ending and (deleting or ours):
        return VmState.STOPPING, ""
    if ours:
        return VmState.STOPPED, ""
    if text(instance, "scheduling", "provisioningModel") == "SPOT":
        if ending:
            return VmState.RUNNING, ""  # being taken back, and good for half a minute yet
        return VmState.PREEMPTED, words or "Compute Engine took the spot machine back"
    return VmState.STOPPED, words or f"the machine is {status}, and not by us"


def being_taken_back(instance: Json, vm: Vm) -> bool:
    """Whether a machine that still runs will be gone in half a minute."""
    return vm.state is VmState.RUNNING and text(instance, "status") in _ENDING


def vm_of(instance: Json, deleting: bool = False) -> Vm:
    """A listed machine. `deleting`: we have asked for its end."""
    tags = tags_of(instance)
    state, detail = _state(instance, deleting)
    interface = next(iter(entries(instance, "networkInterfaces")), None)
    access = next(iter(entries(interface, "accessConfigs")), None)
    return Vm(
        id=vm_id_of(instance),
        service=text(tags, TAG_SERVICE),
        token=text(tags, TAG_TOKEN),
        state=state,
        host=text(access, "natIP") or None,
        detail=detail,
    )


def path_of(vm_id: str) -> str:
    """Where the API has a machine, by our id of it."""
    zone, _, name = vm_id.partition("/")
    return f"zones/{zone}/instances/{name}"


def vm_id_of(instance: Json) -> str:
    """The id that we know a listed machine by."""
    return f"{text(instance, 'zone').rpartition('/')[2]}/{text(instance, 'name')}"


def silent_zones(answer: Json) -> list[str]:
    """The places that a listing could not reach. An empty place also has a warning, of another code."""
    silent = [str(one) for one in entries(answer, "unreachables")]
    silent += [
        place
        for place, scope in mapping(answer, "items").items()
        if text(scope, "warning", "code") not in ("", "NO_RESULTS_ON_PAGE")
    ]
    if not silent and text(answer, "warning", "code") in ("UNREACHABLE", "PARTIAL_SUCCESS"):
        silent.append(text(answer, "warning", "message") or "some zones")
    return silent


def ports_of(rule: Json | None) -> set[int]:
    """The TCP ports that a firewall rule admits."""
    return {int(str(port)) for one in entries(rule, "allowed") for port in entries(one, "ports") if str(port).isdigit()}
