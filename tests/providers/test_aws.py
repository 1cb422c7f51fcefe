"""The AWS adapter launching: every call goes through boto3 and over HTTP to moto, whose machines are the bed's."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from tests.bed.aws_fake import AwsFake, way
from tests.bed.core import CloudCore, Fault
from tests.providers.aws_rig import EAST, EUROPE, HOME, OFFICE, WEST, Rig, machine_id, offer

from skyserve.errors import (
    CapacityUnavailable,
    CredentialsRejected,
    OrderRejected,
    PlaceRefused,
    ProviderError,
    ProviderUnavailable,
    QuotaExceeded,
    Throttled,
)
from skyserve.providers.aws import AwsCloud
from skyserve.providers.aws import words as words
from skyserve.providers.aws.api import Api, AwsError
from skyserve.providers.aws.words import image_parameter
from skyserve.providers.identity import installation
from skyserve.providers.vm_cloud import TAG_INSTALLATION, TAG_SERVICE, TAG_TOKEN, Vm, VmState


@pytest.fixture(scope="module")
def fake() -> Iterator[AwsFake]:
    server = AwsFake(CloudCore())
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def api(fake: AwsFake) -> Api:
    return way(fake)


@pytest.fixture
def rig(fake: AwsFake, tmp_path: Path, api: Api) -> Rig:
    return Rig(fake, tmp_path, api)


# ---- launching


def test_a_machine_boots_and_is_listed_with_its_address(rig: Rig) -> None:
    rig.core.boot_s = 30
    launched = rig.create()
    assert launched == Vm(launched.id, "chat-u1", "t1", VmState.BOOTING)
    assert launched.id.startswith(f"{EAST}:i-")
    assert rig.machines()["t1"].host is None
    rig.clock.at += 30
    assert rig.machines() == {"t1": replace(launched, state=VmState.RUNNING, host="10.200.0.1")}
    [machine] = rig.core.machines.values()
    assert (machine.zone, machine.machine_type, machine.spot) == (f"{EAST}a", "m7i.2xlarge", False)
    assert machine.user_data == "#!/bin/bash\n"
    assert machine.allowed == {(22, HOME), (8080, HOME)}


def test_the_same_token_gives_the_same_machine(rig: Rig) -> None:
    first = rig.create()
    assert rig.create().id == first.id
    assert asyncio.run(rig.another_controller().create(rig.order())).id == first.id
    assert len(rig.core.machines) == 1


def test_a_repeated_launch_that_is_worded_otherwise_finds_the_machine(rig: Rig) -> None:
    first = rig.create()
    assert rig.create(disk_size=300).id == first.id
    assert len(rig.core.machines) == 1


def test_a_launch_whose_answer_was_lost_is_found_again(rig: Rig) -> None:
    rig.fake.refuse("RunInstances", "Unavailable", status=503)
    with pytest.raises(ProviderUnavailable):
        rig.create()
    assert rig.create().token == "t1"


def test_tags_and_labels_are_on_machine_and_disk(rig: Rig) -> None:
    launched = rig.create(labels={"team": "nlp", TAG_TOKEN: "forged"})
    wanted = {
        "Name": "chat-t1",
        "team": "nlp",
        TAG_INSTALLATION: installation(rig.config),
        TAG_SERVICE: "chat-u1",
        TAG_TOKEN: "t1",
    }
    [volume] = rig.fake.volumes(EAST)
    for tagged in (rig.fake.instance(machine_id(launched)), volume):
        assert {tag["key"]: tag["value"] for tag in tagged.get_tags()} == wanted


def test_metadata_wants_a_token_and_reaches_containers(rig: Rig) -> None:
    options = rig.fake.instance(machine_id(rig.create())).metadata_options
    assert (options.http_tokens, options.http_put_response_hop_limit) == ("required", 2)


def test_spot_machines_are_one_time_and_are_not_kept(rig: Rig) -> None:
    rig.create(offering=offer(spot=True))
    [call] = rig.fake.asked("RunInstances")
    asked = {key.rpartition(".")[2]: value for key, value in call.parameters.items() if "InstanceMarketOptions" in key}
    assert asked == {
        "MarketType": "spot",
        "SpotInstanceType": "one-time",
        "InstanceInterruptionBehavior": "terminate",
    }
    [machine] = rig.core.machines.values()
    assert machine.spot


@pytest.mark.parametrize(
    ("wish", "disk"),
    [
        ({}, (256, "gp3", 3000, 250)),
        ({"disk_size": 50, "disk_tier": "low"}, (50, "gp3", 3000, 125)),
        ({"disk_size": 10, "disk_tier": "high"}, (10, "gp3", 5000, 750)),
        ({"disk_tier": "high"}, (256, "gp3", 12000, 750)),
        ({"disk_size": 20, "disk_tier": "ultra"}, (20, "io2", 10000, None)),
        ({"disk_tier": "best"}, (256, "io2", 20000, None)),
    ],
)
def test_disks(rig: Rig, wish: dict[str, object], disk: tuple[str | None, ...]) -> None:
    asked = words.request(rig.order(**wish), words.Image("ami-1", "/dev/sda1", 8), {"SubnetId": "s"}, "sg-1")
    [mapping] = asked["BlockDeviceMappings"]  # type: ignore[misc]
    names = ("VolumeSize", "VolumeType", "Iops", "Throughput")
    assert tuple(mapping["Ebs"].get(name) for name in names) == disk
    assert (mapping["DeviceName"], mapping["Ebs"]["DeleteOnTermination"]) == ("/dev/sda1", True)


def test_a_fast_disk_is_ordered(rig: Rig) -> None:
    rig.create(disk_tier="ultra")
    [call] = rig.fake.asked("RunInstances")
    assert call.parameters["BlockDeviceMapping.1.Ebs.Iops"] == "20000"


def test_a_disk_is_as_large_as_its_image_at_least(rig: Rig) -> None:
    rig.fake.add_image(EAST, "ami-large", gib=400, root="/dev/xvda")
    rig.create(image_id="ami-large")
    [call] = rig.fake.asked("RunInstances")
    assert call.parameters["BlockDeviceMapping.1.Ebs.VolumeSize"] == "400"
    assert call.parameters["BlockDeviceMapping.1.DeviceName"] == "/dev/xvda"
    with pytest.raises(OrderRejected, match="300 GiB is too small") as caught:
        rig.create("t2", image_id="ami-large", disk_size=300)
    assert caught.value.hint == "set `disk_size` to 400 or more"


def test_user_data_that_is_too_long_is_refused(rig: Rig) -> None:
    rig.launch(replace(rig.order(), user_data="x" * AwsCloud.user_data_limit))
    with pytest.raises(OrderRejected, match="16384"):
        rig.launch(replace(rig.order("t2"), user_data="x" * (AwsCloud.user_data_limit + 1)))


# ---- images


@pytest.mark.parametrize(
    ("instance_type", "chip", "image"),
    [
        ("m7i.2xlarge", None, "canonical/ubuntu/server/22.04/stable/current/amd64/hvm/ebs-gp2/ami-id"),
        ("m7g.2xlarge", None, "canonical/ubuntu/server/22.04/stable/current/arm64/hvm/ebs-gp2/ami-id"),
        ("g6.xlarge", "L4", "deeplearning/ami/x86_64/base-oss-nvidia-driver-gpu-ubuntu-22.04/latest/ami-id"),
        ("g5g.xlarge", "T4g", "deeplearning/ami/arm64/base-oss-nvidia-driver-gpu-ubuntu-22.04/latest/ami-id"),
        ("p3.2xlarge", "V100", "deeplearning/ami/x86_64/base-proprietary-nvidia-driver-gpu-ubuntu-22.04/latest/ami-id"),
        ("inf2.xlarge", "Inferentia2", "neuron/dlami/multi-framework/ubuntu-24.04/latest/image_id"),
        ("dl1.24xlarge", "Gaudi", "canonical/ubuntu/server/22.04/stable/current/amd64/hvm/ebs-gp2/ami-id"),
    ],
)
def test_the_image_fits_the_hardware(instance_type: str, chip: str | None, image: str) -> None:
    assert image_parameter(offer(instance_type, chip=chip)) == f"/aws/service/{image}"


def test_architectures_are_told_from_the_names_of_types() -> None:
    arm = "a1.large c7gn.large g5g.xlarge hpc7g.4xlarge i4g.large im4gn.large is4gen.large m8gd.large t4g.small"
    x86 = (
        "c5n.large g4ad.xlarge g4dn.xlarge g6e.xlarge gr6.4xlarge i7ie.large m7i-flex.large p4de.24xlarge u7i-6tb.large"
    )
    assert {image_parameter(offer(name)).split("/")[9] for name in arm.split()} == {"arm64"}
    assert {image_parameter(offer(name)).split("/")[9] for name in x86.split()} == {"amd64"}


def test_an_image_is_looked_up_once(rig: Rig) -> None:
    rig.create("t1")
    rig.create("t2")
    assert len(rig.fake.asked("GetParameter")) == len(rig.fake.asked("DescribeImages")) == 1
    rig.clock.at += 7 * 3600
    rig.create("t3")
    assert len(rig.fake.asked("GetParameter")) == 2


def test_an_image_of_the_users_own(rig: Rig) -> None:
    rig.fake.add_image(EAST, "ami-mine")
    rig.create(image_id="ami-mine")
    assert rig.fake.asked("RunInstances")[0].parameters["ImageId"] == "ami-mine"
    assert not rig.fake.asked("GetParameter")
    with pytest.raises(QuotaExceeded, match="no image ami-mine in us-west-2") as caught:
        rig.create("t2", offer(region=WEST), image_id="ami-mine")
    assert (caught.value.location, caught.value.instance_types) == ("aws/us-west-2", "m7i.2xlarge")
    with pytest.raises(OrderRejected, match="'ubuntu' is no AMI"):
        rig.create("t3", image_id="ubuntu")


def test_an_image_that_aws_does_not_publish_there(rig: Rig) -> None:
    rig.fake.refuse("GetParameter", "ParameterNotFound")
    with pytest.raises(QuotaExceeded, match="canonical") as caught:
        rig.create()
    assert caught.value.hint == "give an AMI of your own as `image_id`"


# ---- where


def test_the_zone_is_that_of_the_offering(rig: Rig) -> None:
    for zone in "abc":
        rig.create(zone, offer(zone=zone))
    assert [machine.zone for machine in rig.core.machines.values()] == [f"{EAST}{zone}" for zone in "abc"]
    assert len(rig.fake.asked("DescribeSubnets")) == 1


def test_without_a_zone_any_will_do(rig: Rig) -> None:
    rig.create(offering=offer(zone=None))
    [machine] = rig.core.machines.values()
    assert machine.zone.startswith(EAST)


def test_a_region_without_default_vpc_is_left_alone(rig: Rig) -> None:
    rig.create("warm")
    rig.fake.drop_default_subnets(WEST)
    with pytest.raises(QuotaExceeded, match="no default VPC") as caught:
        rig.create("t1", offer(region=WEST))
    assert caught.value.hint == "aws ec2 create-default-vpc --region us-west-2"
    assert (caught.value.location, caught.value.instance_types) == ("aws/us-west-2", "*")


def test_a_zone_without_default_subnet_is_left_alone(rig: Rig) -> None:
    with pytest.raises(QuotaExceeded, match="no subnet in us-east-1z") as caught:
        rig.create("t1", offer(zone="z"))
    assert caught.value.location == "aws/us-east-1/us-east-1z"
    assert "create-default-subnet" in (caught.value.hint or "")


def test_a_region_that_is_not_enabled_is_left_alone(rig: Rig) -> None:
    with pytest.raises(QuotaExceeded, match="ap-east-1 is not enabled") as caught:
        rig.create(offering=offer(region="ap-east-1"))
    assert (caught.value.location, caught.value.instance_types) == ("aws/ap-east-1", "*")
    offerings = [offer(), offer(region="ap-east-1"), offer(region=EUROPE)]
    assert asyncio.run(rig.cloud.narrow(offerings)) == [offerings[0], offerings[2]]


def test_nothing_is_left_out_while_the_regions_are_not_known(rig: Rig) -> None:
    rig.fake.refuse("DescribeRegions", "Unavailable", status=503)
    offerings = [offer(), offer(region="ap-east-1")]
    assert asyncio.run(rig.cloud.narrow(offerings)) == offerings
    assert asyncio.run(rig.cloud.narrow(offerings)) == offerings
    assert len(rig.fake.asked("DescribeRegions")) == 1, "asked again at once"
    rig.clock.at += 300
    assert asyncio.run(rig.cloud.narrow(offerings)) == offerings[:1]


# ---- the firewall


def test_launches_of_a_service_share_one_group(rig: Rig) -> None:
    async def all_at_once() -> None:
        await asyncio.gather(*(rig.cloud.create(rig.order(f"t{index}")) for index in range(4)))

    asyncio.run(all_at_once())
    assert rig.fake.group_rules(EAST) == {f"{installation(rig.config)}-chat-u1": {(22, HOME), (8080, HOME)}}


def test_a_group_follows_our_address_and_keeps_older_ports(rig: Rig) -> None:
    rig.create()
    rig.launch(replace(rig.order("t2"), ports=(22, 9090), allow_from=(OFFICE, "2001:db8::/64")))
    [rules] = rig.fake.group_rules(EAST).values()
    assert rules == {(port, source) for port in (22, 8080, 9090) for source in (OFFICE, "2001:db8::/64")}
    assert {machine.allowed for machine in rig.core.machines.values()} == {frozenset(rules)}


def test_networks_are_compared_as_aws_writes_them(rig: Rig) -> None:
    for token in ("t1", "t2"):
        rig.launch(replace(rig.order(token), allow_from=("198.51.100.9/24",)))
    [rules] = rig.fake.group_rules(EAST).values()
    assert rules == {(22, OFFICE), (8080, OFFICE)}
    assert len(rig.fake.asked("AuthorizeSecurityGroupIngress")) == 1
    with pytest.raises(OrderRejected):
        rig.launch(replace(rig.order("t3"), allow_from=("nowhere",)))


def test_a_group_that_another_launch_is_making_is_looked_at_again(rig: Rig) -> None:
    rig.fake.refuse("CreateSecurityGroup", "InvalidGroup.Duplicate")
    rig.fake.refuse("AuthorizeSecurityGroupIngress", "InvalidPermission.Duplicate")
    rig.create()
    rig.fake.refuse("AuthorizeSecurityGroupIngress", "InvalidPermission.Duplicate", times=3)
    with pytest.raises(ProviderUnavailable, match="keeps changing"):
        rig.launch(replace(rig.order("t2"), ports=(22, 9090)))


def test_release_waits_for_machines_to_be_gone(rig: Rig) -> None:
    rig.core.shutdown_s = 5
    launched = rig.create()
    asyncio.run(rig.cloud.delete(launched.id))
    asyncio.run(rig.cloud.release("chat-u1"))
    assert rig.fake.group_rules(EAST) == {}
    asyncio.run(rig.cloud.release("chat-u1"))


def test_what_could_not_be_released_is_released_later_and_after_a_restart(rig: Rig) -> None:
    rig.core.shutdown_s = 60
    launched = rig.create()
    asyncio.run(rig.cloud.delete(launched.id))
    with pytest.raises(ProviderUnavailable, match="shutting down"):
        asyncio.run(rig.cloud.release("chat-u1"))
    rig.cloud = rig.another_controller()
    assert rig.machines()["t1"].state is VmState.STOPPING
    assert rig.fake.group_rules(EAST) != {}
    rig.clock.at += 60
    assert rig.machines() == {}
    assert rig.fake.group_rules(EAST) == {}
    rig.fake.calls.clear()
    rig.machines()
    assert not rig.fake.asked("DescribeSecurityGroups")


def test_release_spares_other_services(rig: Rig) -> None:
    rig.create()
    asyncio.run(rig.cloud.release("other-u2"))
    assert len(rig.fake.group_rules(EAST)) == 1


# ---- refusals


@pytest.mark.parametrize(
    ("code", "error", "location", "types"),
    [
        ("InsufficientInstanceCapacity", CapacityUnavailable, "aws/us-east-1/us-east-1a", "g6.xlarge"),
        ("UnfulfillableCapacity", CapacityUnavailable, "aws/us-east-1/us-east-1a", "g6.xlarge"),
        ("SpotMaxPriceTooLow", CapacityUnavailable, "aws/us-east-1/us-east-1a", "g6.xlarge"),
        ("Unsupported", CapacityUnavailable, "aws/us-east-1/us-east-1a", "g6.xlarge"),
        ("InsufficientFreeAddressesInSubnet", CapacityUnavailable, "aws/us-east-1/us-east-1a", "*"),
        ("MaxSpotInstanceCountExceeded", QuotaExceeded, "aws/us-east-1", "g*"),
        ("InstanceLimitExceeded", QuotaExceeded, "aws/us-east-1", "g*"),
        ("VcpuLimitExceeded", QuotaExceeded, "aws/us-east-1", "g*"),
        ("VolumeLimitExceeded", QuotaExceeded, "aws/us-east-1", "*"),
        ("PendingVerification", QuotaExceeded, "aws/us-east-1", "*"),
        ("OptInRequired", QuotaExceeded, "aws/us-east-1", "*"),
        ("RequestLimitExceeded", Throttled, None, None),
        ("Throttling", Throttled, None, None),
        ("AuthFailure", CredentialsRejected, None, None),
        ("UnauthorizedOperation", CredentialsRejected, None, None),
        ("ExpiredToken", CredentialsRejected, None, None),
        ("RequestExpired", CredentialsRejected, None, None),
        ("InvalidParameterValue", OrderRejected, None, None),
        ("InvalidParameterCombination", OrderRejected, None, None),
        ("InvalidBlockDeviceMapping", OrderRejected, None, None),
        ("MissingParameter", OrderRejected, None, None),
        ("InvalidGroup.NotFound", ProviderUnavailable, None, None),
        ("InternalError", ProviderUnavailable, None, None),
        ("SomethingNew", ProviderUnavailable, None, None),
    ],
)
def test_what_aws_refuses(code: str, error: type[ProviderError], location: str | None, types: str | None) -> None:
    meaning = words.meaning(AwsError(code, "Because."), offer("g6.xlarge", chip="L4", spot=True))
    assert type(meaning) is error
    assert meaning.message.startswith(f"AWS: Because ({code})")
    if isinstance(meaning, PlaceRefused):
        assert (meaning.location, meaning.instance_types) == (location, types)
    if isinstance(meaning, Throttled):
        assert meaning.retry_after_s > 0


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        ("throttled", Throttled),
        ("unavailable", ProviderUnavailable),
        ("credentials", CredentialsRejected),
        ("capacity", CapacityUnavailable),
        ("quota", QuotaExceeded),
        ("rejected", OrderRejected),
    ],
)
def test_a_launch_that_fails_leaves_nothing_and_may_be_repeated(
    rig: Rig, kind: str, error: type[ProviderError]
) -> None:
    rig.core.faults.append(Fault("create", kind, where=f"{EAST}a"))
    with pytest.raises(ProviderError) as caught:
        rig.create()
    assert type(caught.value) is error
    assert not rig.core.machines
    assert rig.create().token == "t1"


@pytest.mark.parametrize(
    ("instance_type", "spot", "quota", "types"),
    [
        ("m7i.2xlarge", False, "Running On-Demand Standard (A, C, D, H, I, M, R, T, Z) instances", "m7i.*"),
        ("g6e.xlarge", False, "Running On-Demand G and VT instances", "g*"),
        ("p5.48xlarge", False, "Running On-Demand P instances", "p*"),
        ("p5.48xlarge", True, "All P5 Spot Instance Requests", "p5*"),
        ("p4d.24xlarge", True, "All P4, P3 and P2 Spot Instance Requests", "p4*"),
        ("trn1.2xlarge", True, "All Trn Spot Instance Requests", "trn*"),
    ],
)
def test_a_quota_is_named_and_says_how_far_it_reaches(
    rig: Rig, instance_type: str, spot: bool, quota: str, types: str
) -> None:
    rig.core.quota = 0
    with pytest.raises(QuotaExceeded) as caught:
        rig.create(offering=offer(instance_type, spot=spot))
    assert f"[us-east-1: {quota}]" in caught.value.message
    assert quota in (caught.value.hint or "")
    assert (caught.value.location, caught.value.instance_types) == ("aws/us-east-1", types)


def test_capacity_is_a_zones(rig: Rig) -> None:
    rig.core.capacity = {"us-east-1a/*/spot": 0}
    with pytest.raises(CapacityUnavailable, match=r"\[aws/us-east-1/us-east-1a\]"):
        rig.create("t1", offer(spot=True))
    assert rig.machines() == {}
    rig.create("t1", offer(zone="b", spot=True))
    rig.create("t2", offer())
    assert len(rig.core.machines) == 2


def test_permissions_that_are_missing_are_told_in_short(rig: Rig) -> None:
    message = "You are not authorized. Encoded authorization failure message: " + "x" * 500
    rig.fake.refuse("RunInstances", "UnauthorizedOperation", message, status=403)
    with pytest.raises(CredentialsRejected) as caught:
        rig.create()
    assert caught.value.message == "AWS: You are not authorized (UnauthorizedOperation)"
    assert "docs/howto/aws.md" in (caught.value.hint or "")


def test_an_order_that_boto3_refuses_is_wrong(rig: Rig) -> None:
    with pytest.raises(OrderRejected, match="ParamValidationError"):
        rig.create(labels={"team": 7})


def test_a_server_that_is_not_there_is_silence(rig: Rig) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    env = {**rig.fake.env, "AWS_ENDPOINT_URL": "http://127.0.0.1:1", "AWS_ENDPOINT_URL_EC2": f"http://127.0.0.1:{port}"}
    cloud = AwsCloud(replace(rig.config, inherited_env=env), rig.clock)
    for call in (cloud.machines, lambda: cloud.create(rig.order()), lambda: cloud.delete(f"{EAST}:i-1")):
        with pytest.raises(ProviderUnavailable, match="EndpointConnectionError"):
            asyncio.run(call())
