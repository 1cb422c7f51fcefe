"""AWS: EC2 instances as machines, by way of boto3.

Knows which EC2, SSM and STS calls are needed, and in what order; `aws.words` knows their contents, `aws.api` the way
there. It must not know what runs on a machine.

How the listing stays whole without asking every region every time: a machine of ours can stand only in a region that
was written down before it was launched there (`Footprint`, a file of the installation). These regions are asked each
time, and one that fails makes the listing fail. The others are looked at now and then, so that a restored home heals
by itself. As long as the file does not say that such a look was complete, every region counts.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Collection, Iterator, Sequence
from importlib.util import find_spec

from skyserve.clock import Clock
from skyserve.config import Config
from skyserve.errors import OrderRejected, PlaceRefused, ProviderError, ProviderUnavailable
from skyserve.model.offering import Offering
from skyserve.providers.aws import words as words
from skyserve.providers.aws.api import TITLE, Api, AwsError, Told, access, number, rows, text
from skyserve.providers.base import EVERYTHING_BUT_CONTAINERS, Capabilities, CheckResult, Feature, NotConfigured
from skyserve.providers.footprint import Footprint, Lately
from skyserve.providers.identity import installation
from skyserve.providers.vm import VmProvider
from skyserve.providers.vm_cloud import TAG_INSTALLATION, TAG_SERVICE, TAG_TOKEN, Notice, Vm, VmOrder, VmState

_REGIONS_HOLD_S = 3600.0
_IMAGES_HOLD_S = 6 * 3600.0
_SUBNETS_HOLD_S = 600.0
_LOOK_S, _LOOK_AGAIN_S = 900.0, 120.0
_NARROW_PATIENCE_S = 2.0
_RELEASE_PAUSES_S = (0.0, 2.0, 4.0, 6.0, 8.0)  # together well below the time that a call may take
_TRIES = 3
_GROUP_NAME_LIMIT = 255


def provider(config: Config, clock: Clock) -> VmProvider:
    """AWS as a provider. Raises NotConfigured where boto3 or credentials are missing."""
    if find_spec("boto3") is None:
        reason = "its SDK is not installed: there is no Python module boto3"
        raise NotConfigured(TITLE, reason, "pip install 'skyserve[aws]'")
    return VmProvider(AwsCloud(config, clock), config, clock)


class AwsCloud:
    """One AWS account. See `VmCloud`; the id of a machine is `region:instance-id`.

    `api` is the way there, by default the one that the configuration points to. Raises NotConfigured where that holds
    no credentials.
    """

    name = words.NAME
    title = TITLE
    capabilities = Capabilities(
        spot=True,
        stops=True,
        delivers=EVERYTHING_BUT_CONTAINERS,
        cannot={Feature.CONTAINER_IMAGE.value: "machines start from an AMI; `run` may start a container"},
    )
    user_data_limit = 16384
    login = "root"
    notice: Notice | None = Notice(
        url="http://169.254.169.254/latest/meta-data/spot/instance-action",
        pattern=r'"time"\s*:\s*"(?P<at>[^"]+)"',
        warning_s=120.0,
        token_url="http://169.254.169.254/latest/api/token",
        token_headers={"X-aws-ec2-metadata-token-ttl-seconds": "21600"},
        token_header="X-aws-ec2-metadata-token",
    )

    def __init__(self, config: Config, clock: Clock, *, api: Api | None = None) -> None:
        self._api = api or Api(access(config.inherited_env, config.user_home))
        self._clock = clock
        self._installation = installation(config)
        self._footprint = Footprint(config.home / "aws.json")
        self._regions: Lately[frozenset[str]] = Lately(clock, _REGIONS_HOLD_S)
        self._images: Lately[words.Image] = Lately(clock, _IMAGES_HOLD_S)
        self._subnets: Lately[list[Told]] = Lately(clock, _SUBNETS_HOLD_S)
        self._deleted: set[str] = set()
        self._look_at = self._narrow_at = 0.0

    async def check(self) -> CheckResult:
        """Asks STS who we are."""
        try:
            with _translated():
                who = await self._api.ask(None, "get_caller_identity")
        except ProviderError as error:
            return CheckResult(False, error.message, error.hint or "run `sky check` again")
        account = f"{text(who, 'Account')} ({text(who, 'Arn').rpartition(':')[2]})"
        return CheckResult(True, "the credentials work", account=account)

    async def narrow(self, offerings: Sequence[Offering]) -> Sequence[Offering]:
        """Those in regions that the account has enabled; all of them while that is not known."""
        enabled = self._regions.get()
        if enabled is None and self._clock.now() >= self._narrow_at:
            self._narrow_at = self._clock.now() + _LOOK_AGAIN_S
            with contextlib.suppress(ProviderError, TimeoutError):
                enabled = await asyncio.wait_for(self._enabled(), _NARROW_PATIENCE_S)
        if enabled is None:
            return offerings
        return [offering for offering in offerings if offering.location.region in enabled]

    async def create(self, order: VmOrder) -> Vm:
        """RunInstances with a ClientToken made of the order's token. A place that cannot do it is a PlaceRefused."""
        offering = order.order.offering
        region = offering.location.region
        await self._require_enabled(region)
        with _translated(offering):
            try:
                image = await self._image(order)
                subnet = await self._subnet(offering)
                group_id = await self._group(order, text(subnet, "VpcId"))
                await self._footprint.enter(region)
                told = await self._api.ask(region, "run_instances", **words.request(order, image, subnet, group_id))
                found = rows(told, "Instances")
            except AwsError as error:
                if error.code.startswith("Invalid"):  # perhaps what was remembered is no longer so
                    self._images.clear()
                    self._subnets.clear()
                if error.code != "IdempotentParameterMismatch":
                    raise
                found = await self._in_region(region)  # it was asked for before, with an older image or so
        for machine in self._present(region, found):
            if machine.token == order.tags[TAG_TOKEN]:
                return machine
        raise ProviderUnavailable(f"AWS: {order.name} was asked for, but is gone or not listed yet")

    async def machines(self) -> Sequence[Vm]:
        """DescribeInstances in every region where a machine of ours can be; see the module for which these are."""
        complete = self._footprint.complete
        certain = self._footprint.regions if complete else self._footprint.regions | await self._enabled()
        self._refuse_disabled(certain)
        others = await self._others(certain) if complete else frozenset[str]()
        regions = sorted(certain | others)
        answers = await asyncio.gather(*(self._in_region(region) for region in regions), return_exceptions=True)
        found: dict[str, list[Told]] = {}
        for region, answer in zip(regions, answers, strict=True):
            if not isinstance(answer, BaseException):
                found[region] = answer
            elif region in certain or not isinstance(answer, ProviderError):
                raise answer
        if others or not complete:
            self._look_at = self._clock.now() + (_LOOK_S if len(found) == len(regions) else _LOOK_AGAIN_S)
        await self._footprint.enter(*(region for region, some in found.items() if some), complete=True)
        machines = [machine for region, some in found.items() for machine in self._present(region, some)]
        self._deleted &= {words.vm_id(region, instance) for region, some in found.items() for instance in some}
        await self._settle_debts({machine.service for machine in machines})
        return machines

    async def delete(self, vm_id: str) -> None:
        """TerminateInstances; the disk goes with the machine."""
        region, _, instance_id = vm_id.partition(":")
        if not instance_id:
            return  # no machine of AWS
        with _translated():
            try:
                await self._api.ask(region, "terminate_instances", InstanceIds=[instance_id])
            except AwsError as error:
                if error.code != "InvalidInstanceID.NotFound":
                    raise
        self._deleted.add(vm_id)

    async def stop(self, vm_id: str) -> None:
        """StopInstances. AWS does not stop one-time spot machines: OrderRejected."""
        region, _, instance_id = vm_id.partition(":")
        with _translated():
            await self._api.ask(region, "stop_instances", InstanceIds=[instance_id])

    async def start(self, vm_id: str) -> None:
        """StartInstances; there may be no capacity for it."""
        region, _, instance_id = vm_id.partition(":")
        with _translated():
            await self._api.ask(region, "start_instances", InstanceIds=[instance_id])

    async def release(self, service: str) -> None:
        """Delete the service's security groups; raises ProviderUnavailable while machines hold them.

        What could not be deleted is remembered, and tried again with every listing.
        """
        if not self._footprint.regions:
            return
        await self._footprint.owe(service)
        for pause_s in _RELEASE_PAUSES_S:
            await self._clock.sleep(pause_s)
            if await self._drop_groups(service):
                await self._footprint.settle(service)
                return
        raise ProviderUnavailable(
            f"AWS: the security group of {service} is held by machines that are shutting down",
            hint="it is deleted later, while the controller runs",
        )

    # ---- regions and listing

    async def _enabled(self) -> frozenset[str]:
        """The account's regions, of late; older ones while AWS does not tell. Raises when they were never told."""
        known = self._regions.get()
        if known is not None:
            return known
        try:
            with _translated(asking=True):
                told = await self._api.ask(None, "describe_regions", AllRegions=False)
        except ProviderError:
            if (stale := self._regions.get(stale=True)) is None:
                raise
            return stale
        return self._regions.put(frozenset(text(region, "RegionName") for region in rows(told, "Regions")))

    async def _require_enabled(self, region: str) -> None:
        """In a region that is not enabled AWS calls good credentials wrong; better to know beforehand."""
        try:
            enabled = await self._enabled()
        except ProviderUnavailable:
            return  # the region that is asked for may answer all the same
        if region not in enabled:
            hint = f"aws account enable-region --region-name {region}"
            raise words.unfit(f"the region {region} is not enabled in this account", hint, region)

    def _refuse_disabled(self, certain: frozenset[str]) -> None:
        """A region that was disabled since keeps its machines, and they cost money: not knowing is not absence."""
        enabled = self._regions.get()
        if enabled is not None and (lost := sorted(certain - enabled)):
            raise ProviderUnavailable(
                f"AWS: the account has disabled {', '.join(lost)}, where machines of this installation may still run",
                hint=f"enable it again; or, if nothing is left there, remove it from {self._footprint.path}",
            )

    async def _others(self, certain: frozenset[str]) -> frozenset[str]:
        """The regions to look at besides; none most of the time."""
        if self._clock.now() < self._look_at:
            return frozenset()
        try:
            return await self._enabled() - certain
        except ProviderError:
            self._look_at = self._clock.now() + _LOOK_AGAIN_S
            return frozenset()

    async def _in_region(self, region: str) -> list[Told]:
        """Everything there with our tag, what is gone for good included."""
        found: list[Told] = []
        request: dict[str, object] = {"Filters": words.tag_filters(self._tags()), "MaxResults": 1000}
        while True:
            with _translated(asking=True):
                page = await self._api.ask(region, "describe_instances", **request)
            for reservation in rows(page, "Reservations"):
                found += rows(reservation, "Instances")
            request["NextToken"] = text(page, "NextToken")
            if not request["NextToken"]:
                return found

    def _present(self, region: str, found: Sequence[Told]) -> list[Vm]:
        """Machines that are not gone; those taken back count as there until they are deleted."""
        machines = [machine for instance in found if (machine := words.machine(region, instance)) is not None]
        return [one for one in machines if one.state is not VmState.PREEMPTED or one.id not in self._deleted]

    def _tags(self, **more: str) -> dict[str, str]:
        return {TAG_INSTALLATION: self._installation, **more}

    # ---- what a machine needs: image, subnet, security group

    async def _image(self, order: VmOrder) -> words.Image:
        """The AMI to start from. Raises AwsError, OrderRejected and QuotaExceeded: another region may have it."""
        offering, wish = order.order.offering, order.order.image_id
        if wish is not None and not wish.startswith("ami-"):
            raise OrderRejected(f"AWS: image_id {wish!r} is no AMI", hint="give one such as ami-0abc, or leave it out")
        region, source = offering.location.region, wish or words.image_parameter(offering)
        known = self._images.get(region, source)
        if known is not None:
            return known
        try:
            return self._images.put(await self._find_image(region, source), region, source)
        except AwsError as error:
            if error.code not in ("ParameterNotFound", "InvalidAMIID.NotFound", "InvalidAMIID.Unavailable"):
                raise
            hint = "copy it there, or name a region that has it" if wish else "give an AMI of your own as `image_id`"
            text = f"there is no image {source} in {region}, or it is not shared with this account"
            raise words.unfit(text, hint, region, offering.instance_type) from error

    async def _find_image(self, region: str, source: str) -> words.Image:
        """An AMI by its id or SSM parameter. Raises AwsError."""
        image_id = source
        if not source.startswith("ami-"):
            image_id = text(await self._api.ask(region, "get_parameter", Name=source), "Parameter", "Value")
        images = rows(await self._api.ask(region, "describe_images", ImageIds=[image_id]), "Images")
        if not images:
            raise AwsError("InvalidAMIID.NotFound", f"the image {image_id} is not listed")
        root = text(images[0], "RootDeviceName") or "/dev/sda1"
        disks = [disk for disk in rows(images[0], "BlockDeviceMappings") if text(disk, "DeviceName") == root]
        return words.Image(image_id, root, max((number(disk, "Ebs", "VolumeSize") for disk in disks), default=0))

    async def _subnet(self, offering: Offering) -> Told:
        """The default VPC's subnet in the offering's zone; without a zone, the one with the most free addresses."""
        region, zone = offering.location.region, offering.location.zone
        subnets = self._subnets.get(region)
        if subnets is None:
            filters = [{"Name": "default-for-az", "Values": ["true"]}]
            told = await self._api.ask(region, "describe_subnets", Filters=filters)
            subnets = sorted(rows(told, "Subnets"), key=lambda subnet: -number(subnet, "AvailableIpAddressCount"))
            if subnets:
                self._subnets.put(subnets, region)
        if not subnets:
            hint = f"aws ec2 create-default-vpc --region {region}"
            raise words.unfit(f"this account has no default VPC with subnets in {region}", hint, region)
        fitting = [subnet for subnet in subnets if zone in (None, text(subnet, "AvailabilityZone"))]
        if not fitting:
            hint = f"aws ec2 create-default-subnet --region {region} --availability-zone {zone}"
            raise words.unfit(f"the default VPC of this account has no subnet in {zone}", hint, f"{region}/{zone}")
        return fitting[0]

    async def _group(self, order: VmOrder, vpc_id: str) -> str:
        """The id of the service's security group, as the order wants it. Raises AwsError.

        Ports of earlier orders stay admitted, as older versions still run; addresses that are no longer ours go.
        """
        region, sources = order.order.offering.location.region, words.networks(order.allow_from)
        for _ in range(_TRIES):
            try:
                group = await self._find_group(order, region, vpc_id)
                group_id, have = text(group, "GroupId"), words.rules(group)
                want = {(port, source) for port in {*order.ports, *(port for port, _ in have)} for source in sources}
                for operation, rules in (("revoke", have - want), ("authorize", want - have)):
                    if rules:
                        change: dict[str, object] = {"GroupId": group_id, "IpPermissions": words.permissions(rules)}
                        await self._api.ask(region, f"{operation}_security_group_ingress", **change)
            except AwsError as error:
                if error.code not in ("InvalidGroup.Duplicate", "InvalidPermission.Duplicate"):
                    raise  # those two: another launch of this service was at it; look again
            else:
                return group_id
        raise ProviderUnavailable(f"AWS: the security group of {order.order.service} in {region} keeps changing")

    async def _find_group(self, order: VmOrder, region: str, vpc_id: str) -> Told:
        """The service's security group; made if need be, without any rule."""
        service = order.tags[TAG_SERVICE]
        name = f"{self._installation}-{service}"[:_GROUP_NAME_LIMIT]
        filters = [{"Name": "group-name", "Values": [name]}, {"Name": "vpc-id", "Values": [vpc_id]}]
        groups = rows(await self._api.ask(region, "describe_security_groups", Filters=filters), "SecurityGroups")
        if groups:
            return groups[0]
        await self._footprint.enter(region)
        tags = words.tag_list({**self._tags(**{TAG_SERVICE: service}), "Name": name})
        request: dict[str, object] = {
            "GroupName": name,
            "Description": "SkyServe: the machines of one service",
            "VpcId": vpc_id,
            "TagSpecifications": [{"ResourceType": "security-group", "Tags": tags}],
        }
        return await self._api.ask(region, "create_security_group", **request)

    async def _drop_groups(self, service: str) -> bool:
        """Delete the service's groups wherever there may be some; whether none is left."""
        regions = sorted(self._footprint.regions)
        return all(await asyncio.gather(*(self._drop_groups_in(region, service) for region in regions)))

    async def _drop_groups_in(self, region: str, service: str) -> bool:
        filters, left = words.tag_filters(self._tags(**{TAG_SERVICE: service})), False
        with _translated(asking=True):
            told = await self._api.ask(region, "describe_security_groups", Filters=filters)
            for group in rows(told, "SecurityGroups"):
                try:
                    await self._api.ask(region, "delete_security_group", GroupId=text(group, "GroupId"))
                except AwsError as error:
                    if error.code not in ("DependencyViolation", "InvalidGroup.InUse", "InvalidGroup.NotFound"):
                        raise
                    left = left or error.code != "InvalidGroup.NotFound"
        return not left

    async def _settle_debts(self, alive: Collection[str]) -> None:
        """Give back what earlier releases could not, now that the machines may be gone."""
        for service in self._footprint.debts.difference(alive):
            with contextlib.suppress(ProviderError):
                if await self._drop_groups(service):
                    await self._footprint.settle(service)


@contextlib.contextmanager
def _translated(offering: Offering | None = None, *, asking: bool = False) -> Iterator[None]:
    """Turns AWS's errors into ours. With `asking`, all but those about our credentials and our pace are silence."""
    try:
        yield
    except AwsError as error:
        meaning = words.meaning(error, offering)
        if asking and isinstance(meaning, PlaceRefused | OrderRejected):
            meaning = ProviderUnavailable(meaning.message)
        raise meaning from error
