"""GCP's adapter against the fake Compute Engine, whose routes and schemas are Google's own."""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import pytest
from google.auth.credentials import AnonymousCredentials
from googleapiclient import discovery
from googleapiclient.errors import HttpError
from tests.bed.core import CloudCore, Fault
from tests.bed.gcp_fake import GcpFake, adapter

from skyserve.config import Config
from skyserve.errors import (
    CapacityUnavailable,
    CredentialsRejected,
    OrderRejected,
    ProviderError,
    ProviderUnavailable,
    QuotaExceeded,
    Throttled,
)
from skyserve.model.offering import CapacityType, Location, Offering
from skyserve.model.resources import Accelerator
from skyserve.providers import gcp
from skyserve.providers.base import LaunchOrder
from skyserve.providers.gcp import GcpCloud
from skyserve.providers.gcp import api as gcp_api
from skyserve.providers.identity import installation
from skyserve.providers.vm_cloud import TAG_INSTALLATION, TAG_SERVICE, TAG_TOKEN, Vm, VmOrder, VmState

T = TypeVar("T")

OFFICE = "203.0.113.7/32"


class Hour:
    """The fake's clock."""

    def __init__(self) -> None:
        self.at = 1_700_000_000.0

    def __call__(self) -> float:
        return self.at


@dataclass
class Bench:
    """The adapter, the fake behind it and the cloud behind that."""

    core: CloudCore
    fake: GcpFake
    cloud: GcpCloud
    config: Config
    hour: Hour

    def run(self, call: Coroutine[Any, Any, T]) -> T:
        return asyncio.run(call)

    def order(self, token: str = "Chat-u1-1-1", offering: Offering | None = None, **changes: Any) -> VmOrder:
        of_replica = {key: value for key, value in changes.items() if key not in ("ports", "allow_from")}
        of_machine = {key: value for key, value in changes.items() if key in ("ports", "allow_from")}
        wanted = LaunchOrder("Chat-u1", "Chat", 1, 1, token, "w", offering or CPU, "serve", None, 8080)
        tags = {TAG_INSTALLATION: installation(self.config), TAG_SERVICE: "Chat-u1", TAG_TOKEN: token}
        name = f"sky-{token.lower()}"
        order = VmOrder(replace(wanted, **of_replica), name, tags, "#!/bin/bash\necho hi\n", (22, 8080), (OFFICE,))
        return replace(order, **of_machine)

    def launch(self, token: str = "Chat-u1-1-1", offering: Offering | None = None, **changes: Any) -> Vm:
        return self.run(self.cloud.create(self.order(token, offering, **changes)))

    def listed(self) -> dict[str, Vm]:
        return {vm.id: vm for vm in self.run(self.cloud.machines())}

    def inserted(self) -> dict[str, Any]:
        return self.fake.asked("instances.insert")[-1]

    def restarted(self) -> GcpCloud:
        """The adapter of the next controller, which remembers nothing."""
        return adapter(self.fake, self.config)


def offering(
    kind: str = "e2-standard-4",
    zone: str | None = "us-central1-a",
    gpu: Accelerator | None = None,
    capacity: CapacityType = CapacityType.ON_DEMAND,
) -> Offering:
    return Offering("gcp", kind, Location("gcp", "us-central1", zone), capacity, gpu, 4, 16, 0.2)


CPU = offering()
SPOT = offering(capacity=CapacityType.SPOT)
T4 = offering("n1-standard-8", gpu=Accelerator("T4", 2))
L4 = offering("g2-standard-8", gpu=Accelerator("L4", 1), capacity=CapacityType.SPOT)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    hour = Hour()
    core = CloudCore(now=hour)
    with GcpFake(core) as fake:
        config = Config(home=tmp_path / "home")
        yield Bench(core, fake, adapter(fake, config), config, hour)
        assert fake.flaws == []


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Launches are not followed for long."""
    monkeypatch.setattr(gcp, "_FOLLOW_S", 0.05)
    monkeypatch.setattr(gcp, "_RULE_S", 0.05)


async def until(true: Callable[[], bool]) -> None:
    """Return when it is; for things that happen in the fake's threads."""
    for _ in range(1000):
        if true():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it never was")


# ---- what is ordered


def test_a_launch_is_listed_with_exact_tags_and_an_address(bench: Bench) -> None:
    vm = bench.launch()
    assert (vm.id, vm.state, vm.host) == ("us-central1-a/sky-chat-u1-1-1", VmState.BOOTING, None)
    seen = bench.listed()[vm.id]
    assert (seen.service, seen.token, seen.state) == ("Chat-u1", "Chat-u1-1-1", VmState.RUNNING)
    assert seen.host == bench.core.machines[vm.id].ip


def test_a_machine_without_accelerator(bench: Bench) -> None:
    bench.launch()
    body = bench.inserted()
    assert "guestAccelerators" not in body
    assert body["scheduling"] == {"automaticRestart": False}
    disk = body["disks"][0]
    assert disk["autoDelete"]
    assert disk["initializeParams"]["sourceImage"].endswith("/family/ubuntu-2204-lts")
    assert "serviceAccounts" not in body


def test_an_accelerator_is_attached_to_n1_only(bench: Bench) -> None:
    bench.launch(offering=T4)
    body = bench.inserted()
    kind = "zones/us-central1-a/acceleratorTypes/nvidia-tesla-t4"
    assert body["guestAccelerators"] == [{"acceleratorType": kind, "acceleratorCount": 2}]
    assert body["scheduling"]["onHostMaintenance"] == "TERMINATE"
    bench.launch("t2", L4)
    body = bench.inserted()
    assert "guestAccelerators" not in body
    assert "nvidia" in body["disks"][0]["initializeParams"]["sourceImage"]


def test_spot_machines_stay_listed_when_they_are_taken_back(bench: Bench) -> None:
    bench.launch(offering=SPOT)
    assert bench.inserted()["scheduling"] == {
        "automaticRestart": False,
        "onHostMaintenance": "TERMINATE",
        "provisioningModel": "SPOT",
        "instanceTerminationAction": "STOP",
    }


@pytest.mark.parametrize(
    ("kind", "tier", "disk"),
    [
        ("e2-standard-4", None, "pd-balanced"),
        ("e2-standard-4", "low", "pd-standard"),
        ("g2-standard-8", "low", "pd-balanced"),
        ("e2-standard-4", "high", "pd-ssd"),
        ("e2-standard-4", "best", "pd-ssd"),
        ("c4a-standard-4", "low", "hyperdisk-balanced"),
        ("n4-standard-4", "ultra", "hyperdisk-balanced"),
    ],
)
def test_disk_types_follow_tier_and_series(bench: Bench, kind: str, tier: str | None, disk: str) -> None:
    gpu = Accelerator("L4", 1) if kind.startswith("g2") else None
    bench.launch(offering=offering(kind, gpu=gpu), disk_tier=tier, disk_size=200)
    found = bench.inserted()["disks"][0]["initializeParams"]
    assert found["diskType"] == f"zones/us-central1-a/diskTypes/{disk}"
    assert found["diskSizeGb"] == "200"
    assert ("provisionedIops" in found) == (tier == "ultra")


@pytest.mark.parametrize(
    ("wanted", "image"),
    [
        (None, "projects/ubuntu-os-cloud/global/images/family/ubuntu-2204-lts-arm64"),
        ("my-image", "projects/demo-project/global/images/my-image"),
        ("projects/p/global/images/family/f", "projects/p/global/images/family/f"),
    ],
)
def test_images(bench: Bench, wanted: str | None, image: str) -> None:
    bench.launch(offering=offering("t2a-standard-4"), image_id=wanted)
    assert bench.inserted()["disks"][0]["initializeParams"]["sourceImage"] == image


def test_labels_are_folded_and_nothing_is_lost(bench: Bench) -> None:
    labels = {"Team": "Ärzte & Co", "team": "x", "9lives": "", TAG_TOKEN: "mine", "long": "x" * 80}
    bench.launch(labels=labels)
    body = bench.inserted()
    found = body["labels"]
    assert found["team"] == "x"
    assert len(found) == len(labels) + 2, "different keys stay different; ours win"
    assert found[TAG_TOKEN].startswith("chat-u1-1-1-")
    metadata = {item["key"]: item["value"] for item in body["metadata"]["items"]}
    assert json.loads(metadata["skyserve-labels"]) == labels
    assert metadata[TAG_TOKEN] == "Chat-u1-1-1"


def test_user_data_runs_once(bench: Bench, tmp_path: Path) -> None:
    bench.launch()
    script = {item["key"]: item["value"] for item in bench.inserted()["metadata"]["items"]}["startup-script"]
    script = script.replace("/var/lib", str(tmp_path))
    said = [subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True) for _ in range(2)]
    assert [one.stdout for one in said] == ["hi\n", ""]


def test_the_limit_leaves_room_for_the_guard(bench: Bench) -> None:
    big = "#!/bin/bash\n" + "#" * (bench.cloud.user_data_limit - 12)
    bench.run(bench.cloud.create(replace(bench.order(), user_data=big)))


# ---- once per token


def test_the_same_token_gives_the_same_machine(bench: Bench) -> None:
    first = bench.launch()
    assert bench.launch().id == first.id
    assert bench.run(bench.restarted().create(bench.order())).id == first.id
    assert len(bench.core.leftovers()) == 1


def test_a_machine_that_is_there_is_recognised_by_its_name(bench: Bench) -> None:
    bench.launch()
    bench.fake._by_request.clear()  # as the API forgets request ids after a while
    again = bench.launch()
    assert (again.state, again.token) == (VmState.RUNNING, "Chat-u1-1-1")
    assert len(bench.core.leftovers()) == 1


def test_a_name_that_is_somebody_elses_is_refused(bench: Bench) -> None:
    bench.launch()
    theirs = replace(bench.order("other"), name="sky-chat-u1-1-1")
    with pytest.raises(OrderRejected, match="another machine"):
        bench.run(bench.cloud.create(theirs))


def test_after_a_failure_the_same_token_is_tried_anew(bench: Bench) -> None:
    bench.core.faults.append(Fault("create", "capacity"))
    with pytest.raises(CapacityUnavailable):
        bench.launch()
    assert bench.launch().id in bench.listed()


# ---- a whole region


def test_an_offering_of_a_region_takes_the_zone_that_has_room(bench: Bench) -> None:
    bench.core.capacity = {"us-central1-[ab]/*": 0}
    vm = bench.launch(offering=offering(zone=None))
    assert vm.id.startswith("us-central1-c/")
    bench.core.capacity = {}
    assert bench.run(bench.restarted().create(bench.order(offering=offering(zone=None)))).id == vm.id


def test_a_region_without_room_says_so(bench: Bench) -> None:
    bench.core.capacity = {"*": 0}
    with pytest.raises(CapacityUnavailable) as caught:
        bench.launch(offering=offering(zone=None))
    assert caught.value.location is None
    assert {path for path, _ in bench.fake.calls if path == "instances.insert"}
    assert len(bench.fake.asked("instances.insert")) == 3


def test_a_region_that_the_project_does_not_have_is_left_alone(bench: Bench) -> None:
    there = offering(zone=None)
    elsewhere = replace(there, location=replace(there.location, region="mars-north1"))
    with pytest.raises(CapacityUnavailable, match="not there") as caught:
        bench.launch(offering=elsewhere)
    assert caught.value.location == "gcp/mars-north1"
    assert caught.value.retry_after_s > 3600


# ---- what the operation says


def test_capacity_and_quota_are_refused_inside_the_operation(bench: Bench) -> None:
    bench.core.capacity = {"*/e2-*": 0}
    with pytest.raises(CapacityUnavailable, match="ZONE_RESOURCE_POOL_EXHAUSTED"):
        bench.launch()
    assert bench.listed() == {}


@pytest.mark.parametrize(
    ("kind", "detail", "location", "types"),
    [
        (CPU, "", "gcp/us-central1", "e2-*"),
        (
            L4,
            "Quota 'PREEMPTIBLE_NVIDIA_L4_GPUS' exceeded. Limit: 1.0 in region us-central1.",
            "gcp/us-central1",
            "g2-*",
        ),
        (T4, "Quota 'NVIDIA_T4_GPUS' exceeded.  Limit: 1.0 in region us-central1.", "gcp/us-central1", T4.shape),
        (L4, "Quota 'GPUS_ALL_REGIONS' exceeded.  Limit: 0.0 globally.", "gcp", "g2-*"),
        (CPU, "Quota 'IN_USE_ADDRESSES' exceeded.  Limit: 4.0 in region us-central1.", "gcp/us-central1", None),
    ],
)
def test_how_far_a_quota_reaches(bench: Bench, kind: Offering, detail: str, location: str, types: str | None) -> None:
    bench.core.faults.append(Fault("create", "quota", detail=detail))
    with pytest.raises(QuotaExceeded) as caught:
        bench.launch(offering=kind)
    assert (caught.value.location, caught.value.instance_types) == (location, types)
    assert "demo-project" in (caught.value.hint or "")


def test_a_slow_operation_is_waited_for(bench: Bench) -> None:
    bench.fake.operation_s = 30

    async def scenario() -> Vm:
        launch = asyncio.ensure_future(bench.cloud.create(bench.order()))
        await until(lambda: bench.fake.asked("zoneOperations.wait") != [])
        assert not launch.done()
        bench.hour.at += 31
        return await launch

    assert bench.run(scenario()).state is VmState.BOOTING


@pytest.mark.usefixtures("impatient")
def test_a_launch_that_fails_late_is_listed_until_it_is_deleted(bench: Bench) -> None:
    bench.fake.operation_s = 60
    bench.core.capacity = {"*": 0}
    vm = bench.launch()
    assert bench.listed()[vm.id].state is VmState.BOOTING
    bench.hour.at += 61
    for _ in range(2):
        late = bench.listed()[vm.id]
        assert (late.state, late.token) == (VmState.PREEMPTED, "Chat-u1-1-1")
        assert "ZONE_RESOURCE_POOL_EXHAUSTED" in late.detail
    bench.run(bench.cloud.delete(vm.id))
    assert bench.listed() == {}


@pytest.mark.usefixtures("impatient")
def test_a_slow_launch_that_ends_well_is_just_a_machine(bench: Bench) -> None:
    bench.fake.operation_s = 60
    vm = bench.launch()
    bench.hour.at += 61
    assert bench.listed()[vm.id].state is VmState.RUNNING
    bench.core.vanish(vm.id)
    assert bench.listed() == {}


@pytest.mark.usefixtures("impatient")
def test_a_machine_that_was_deleted_elsewhere_while_its_launch_was_open_is_gone(bench: Bench) -> None:
    bench.fake.operation_s = 60
    vm = bench.launch()
    bench.core.vanish(vm.id)
    bench.hour.at += 61
    assert bench.listed() == {}


# ---- the list


def test_pages_and_other_installations(bench: Bench, tmp_path: Path) -> None:
    bench.fake.page_size = 2
    for number in range(5):
        bench.launch(f"t{number}", offering(zone="us-central1-b" if number % 2 else "us-central1-a"))
    assert len(bench.listed()) == 5
    assert len(bench.fake.asked("instances.aggregatedList")) == 3
    stranger = adapter(bench.fake, Config(home=tmp_path / "other"))
    assert bench.run(stranger.machines()) == []


def test_one_silent_zone_is_no_answer(bench: Bench) -> None:
    bench.launch()
    bench.core.faults.append(Fault("list", "unavailable", where="europe-west4-b"))
    with pytest.raises(ProviderUnavailable, match="europe-west4-b"):
        bench.listed()
    assert len(bench.listed()) == 1


def test_the_start_script_is_not_listed(bench: Bench) -> None:
    bench.launch()
    whole = bench.fake.answer("GET", "projects/demo-project/aggregated/instances", {}, {})
    assert "startup-script" in json.dumps(whole)
    part = bench.fake.answer("GET", "projects/demo-project/aggregated/instances", {"fields": gcp.PAGE_FIELDS}, {})
    assert "startup-script" not in json.dumps(part)


# ---- ends


def test_a_spot_machine_gives_notice_and_is_then_preempted(bench: Bench) -> None:
    vm = bench.launch(offering=SPOT)
    bench.core.interrupt(vm.id, 30)
    seen = bench.listed()[vm.id]
    assert seen.state is VmState.RUNNING
    assert seen.reclaim_at is not None
    assert bench.listed()[vm.id].reclaim_at == seen.reclaim_at
    bench.hour.at += 31
    seen = bench.listed()[vm.id]
    assert (seen.state, seen.detail) == (VmState.PREEMPTED, "Instance was preempted.")
    bench.run(bench.cloud.delete(vm.id))
    assert bench.listed() == {}


def test_the_metadata_server_says_it_as_the_notice_expects(bench: Bench) -> None:
    notice = bench.cloud.notice
    assert notice is not None
    vm = bench.launch(offering=SPOT)
    path = notice.url.removeprefix("http://169.254.169.254")
    assert bench.core.answer(vm.id, "GET", path, notice.headers) == (200, b"FALSE")
    bench.core.interrupt(vm.id, 30)
    assert bench.core.answer(vm.id, "GET", path, notice.headers) == (200, b"TRUE")
    assert bench.core.answer(vm.id, "GET", path, {})[0] == 403


@pytest.mark.parametrize("kind", [CPU, SPOT])
def test_stop_and_start(bench: Bench, kind: Offering) -> None:
    vm = bench.launch(offering=kind)
    bench.core.shutdown_s = 10
    bench.run(bench.cloud.stop(vm.id))
    assert bench.listed()[vm.id].state is VmState.STOPPING
    bench.hour.at += 11
    bench.run(bench.cloud.stop(vm.id))
    assert bench.listed()[vm.id].state is VmState.STOPPED
    assert {one.state for one in bench.run(bench.restarted().machines())} == {VmState.STOPPED}
    bench.run(bench.cloud.start(vm.id))
    assert bench.listed()[vm.id].state is VmState.RUNNING
    bench.core.stop(vm.id)  # and not by us
    bench.hour.at += 11
    expected = VmState.PREEMPTED if kind is SPOT else VmState.STOPPED
    assert bench.listed()[vm.id].state is expected


def test_a_start_without_room_is_refused(bench: Bench) -> None:
    vm = bench.launch()
    bench.run(bench.cloud.stop(vm.id))
    bench.core.capacity = {"*": 0}
    with pytest.raises(CapacityUnavailable):
        bench.run(bench.cloud.start(vm.id))


def test_a_machine_somebody_stopped_says_so(bench: Bench) -> None:
    vm = bench.launch()
    bench.core.stop(vm.id)
    seen = bench.listed()[vm.id]
    assert seen.state is VmState.STOPPED
    assert "not by us" in seen.detail


def test_delete_twice_and_one_that_never_was(bench: Bench) -> None:
    vm = bench.launch()
    bench.core.shutdown_s = 10
    bench.run(bench.cloud.delete(vm.id))
    assert bench.listed()[vm.id].state is VmState.STOPPING
    bench.run(bench.cloud.delete(vm.id))
    bench.hour.at += 11
    bench.run(bench.cloud.delete(vm.id))
    bench.run(bench.cloud.delete("us-central1-a/never"))
    assert bench.listed() == {}
    assert bench.core.leftovers() == []


# ---- the firewall


def rule(bench: Bench) -> dict[str, Any]:
    (found,) = bench.fake.firewalls.values()
    return found


def test_only_the_controller_is_let_in(bench: Bench) -> None:
    vm = bench.launch()
    assert bench.core.machines[vm.id].allowed == {(22, OFFICE), (8080, OFFICE)}
    bench.launch("t2")
    assert len(bench.fake.asked("firewalls.insert")) == 1
    assert bench.fake.asked("firewalls.patch") == []


def test_the_rule_follows_the_controllers_address_and_keeps_the_ports_of_other_versions(bench: Bench) -> None:
    vm = bench.launch()
    bench.launch("t2", ports=(22, 9090), allow_from=("198.51.100.1/32", "2001:db8::1/128"))
    here = "198.51.100.1/32"
    assert bench.core.machines[vm.id].allowed == {(22, here), (8080, here), (9090, here)}


def test_never_a_rule_for_everybody(bench: Bench) -> None:
    with pytest.raises(OrderRejected, match="no IPv4 address"):
        bench.launch(allow_from=("2001:db8::1/128",))
    assert bench.fake.firewalls == {}


def test_release_leaves_nothing_and_can_be_repeated(bench: Bench) -> None:
    bench.launch()
    bench.run(bench.cloud.release("Chat-u1"))
    bench.run(bench.cloud.release("Chat-u1"))
    assert bench.fake.firewalls == {}


def test_launches_at_the_same_time_make_one_rule(bench: Bench) -> None:
    async def scenario() -> None:
        orders = [bench.order(f"t{number}", ports=(22, 8000 + number)) for number in range(4)]
        await asyncio.gather(*(bench.cloud.create(order) for order in orders))

    bench.run(scenario())
    assert rule(bench)["allowed"][0]["ports"] == ["22", "8000", "8001", "8002", "8003"]
    assert len(bench.listed()) == 4


# ---- refusals


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("throttled", Throttled),
        ("unavailable", ProviderUnavailable),
        ("credentials", CredentialsRejected),
        ("rejected", OrderRejected),
    ],
)
def test_refusals_of_every_call(bench: Bench, kind: str, expected: type[ProviderError]) -> None:
    vm = bench.launch()
    calls: dict[str, Callable[[], Coroutine[Any, Any, object]]] = {
        "create": lambda: bench.cloud.create(bench.order("t2")),
        "list": bench.cloud.machines,
        "delete": lambda: bench.cloud.delete(vm.id),
        "stop": lambda: bench.cloud.stop(vm.id),
        "start": lambda: bench.cloud.start(vm.id),
    }
    for operation, call in calls.items():
        bench.core.faults.append(Fault(operation, kind, retry_after_s=7))
        with pytest.raises(expected) as caught:
            bench.run(call())
        if isinstance(caught.value, Throttled):
            assert caught.value.retry_after_s == 7
        bench.core.faults.clear()


def test_what_is_not_sold_in_a_zone_does_not_stop_the_version(bench: Bench) -> None:
    bench.fake.unsold = ["us-central1-a/.*"]
    with pytest.raises(CapacityUnavailable, match="not sold there") as caught:
        bench.launch()
    assert caught.value.retry_after_s > 3600
    assert bench.launch("t2", offering(zone=None)).id.partition("/")[0] != "us-central1-a"


@pytest.mark.parametrize(
    ("status", "reason", "message", "expected", "hint"),
    [
        (403, "rateLimitExceeded", "Rate Limit Exceeded", Throttled, ""),
        (403, "quotaExceeded", "Quota 'CPUS' exceeded.", QuotaExceeded, "quotas"),
        (403, "accessNotConfigured", "Compute Engine API has not been used", CredentialsRejected, "services enable"),
        (403, "forbidden", "Required 'compute.instances.create' permission", CredentialsRejected, "docs/howto/gcp.md"),
        (403, "UREQ_PROJECT_BILLING_NOT_FOUND", "billing is off", CredentialsRejected, "billing projects link"),
        (412, "conditionNotMet", "Constraint constraints/compute.vmExternalIpAccess", OrderRejected, "gcp.md"),
        (412, "conditionNotMet", "Labels fingerprint either invalid or labels have changed", ProviderUnavailable, ""),
        (400, "resourceNotReady", "The resource is not ready", ProviderUnavailable, ""),
        (404, "notFound", "The resource 'projects/p/global/images/x' was not found", OrderRejected, "gcp.md"),
        (0, "INTERNAL_ERROR", "Internal error", ProviderUnavailable, ""),
        (500, "", "HTTP 500", ProviderUnavailable, ""),
    ],
)
def test_refusals_by_code(status: int, reason: str, message: str, expected: type[ProviderError], hint: str) -> None:
    error = gcp.told(gcp_api.Refusal(status, reason, message), "p", CPU)
    assert type(error) is expected
    assert hint in (error.hint or "")


def test_nobody_there(bench: Bench) -> None:
    bench.fake.stop()
    with pytest.raises(ProviderUnavailable, match="does not answer"):
        bench.listed()
    bench.fake.start()


def test_narrow_leaves_out_what_compute_engine_does_not_launch(bench: Bench) -> None:
    tpu = offering("TPU-VM", gpu=Accelerator("tpu-v5p-8", 1))
    odd = offering("n1-standard-8", gpu=Accelerator("MI300X", 1))
    assert bench.run(bench.cloud.narrow([CPU, tpu, T4, odd, L4])) == [CPU, T4, L4]


def test_spot_pools_that_google_says_are_empty_are_left_out(bench: Bench) -> None:
    other = offering(zone="us-central1-b", capacity=CapacityType.SPOT)

    async def narrowed(offerings: list[Offering]) -> list[Offering]:
        await bench.cloud.narrow(offerings)
        if bench.cloud._advisor.round is not None:
            await bench.cloud._advisor.round
        return list(await bench.cloud.narrow(offerings))

    bench.fake.scores = {"us-central1-a/e2-standard-4": 0.02, "us-central1-a/g2-standard-8": 0.5}
    assert bench.run(narrowed([CPU, SPOT, other, L4])) == [CPU, other, L4]
    assert len(bench.fake.asked("advice.capacity")) == 3
    assert bench.run(narrowed([SPOT])) == [SPOT], "something is better than nothing"


def test_without_access_to_advice_nothing_is_left_out_and_it_is_asked_once(bench: Bench) -> None:
    async def scenario() -> None:
        for _ in range(3):
            assert list(await bench.cloud.narrow([SPOT, L4])) == [SPOT, L4]
            assert bench.cloud._advisor.round is not None
            await bench.cloud._advisor.round

    bench.run(scenario())
    assert len(bench.fake.asked("advice.capacity")) == 1


# ---- check


def test_check_names_the_account_and_misses_the_network(bench: Bench) -> None:
    result = bench.run(bench.cloud.check())
    assert result.usable
    assert result.account == "tester@example.com [project demo-project]"
    bench.fake.networks.clear()
    result = bench.run(bench.cloud.check())
    assert not result.usable
    assert "networks create default" in result.hint
    bench.core.faults.append(Fault("check", "credentials"))
    assert not bench.run(bench.cloud.check()).usable


def test_check_of_a_project_that_is_not_there(bench: Bench) -> None:
    bench.fake.project = "another"
    result = bench.run(bench.cloud.check())
    assert not result.usable
    assert "GOOGLE_CLOUD_PROJECT" in result.hint


# ---- the fake is a good one


def test_googles_own_client_works_with_the_fake(bench: Bench) -> None:
    bench.fake.anonymous = True
    options = {"api_endpoint": bench.fake.origin}
    compute = discovery.build(
        "compute", "v1", credentials=AnonymousCredentials(), client_options=options, static_discovery=True
    )
    try:
        at = {"project": "demo-project", "zone": "us-central1-a"}
        vm = bench.launch(offering=T4)
        body = bench.inserted() | {"name": "theirs"}
        operation = compute.instances().insert(**at, body=body).execute()
        done = compute.zoneOperations().wait(**at, operation=operation["name"]).execute()
        assert done["status"] == "DONE"
        listed = compute.instances().aggregatedList(project="demo-project").execute()
        names = [one["name"] for one in listed["items"]["zones/us-central1-a"]["instances"]]
        assert names == [vm.id.partition("/")[2], "theirs"]
        with pytest.raises(HttpError, match="SPOTTY"):
            compute.instances().insert(**at, body=body | {"scheduling": {"provisioningModel": "SPOTTY"}}).execute()
        with pytest.raises(HttpError, match="colour"):
            compute.instances().insert(**at, body=body | {"colour": "red"}).execute()
        bench.core.interrupt(f"us-central1-a/{names[0]}", 0)
        taken = compute.zoneOperations().list(**at, filter="operationType=compute.instances.preempted").execute()
        assert len(taken["items"]) == 1
        compute.instances().delete(**at, instance="theirs").execute()
    finally:
        compute.close()
