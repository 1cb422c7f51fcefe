"""GCP: machines of Compute Engine, over its REST API (version 1).

Knows which calls make, list and end machines, and in what order. The API itself is in `gcp.api`, its words are in
`gcp.words`. Must not know what runs on the machines.

A launch is an *operation*: the API accepts it, and says seconds later, inside the operation, that there is no capacity.
`create` therefore follows it for a while (`_FOLLOW_S`). An operation that fails later still is not lost: `machines`
looks at those that were left open, and lists the machine that never came as PREEMPTED with the operation's error until
it is deleted. After a restart of the controller, such a machine is simply missing from the listing, and counts as lost.
"""

from __future__ import annotations

import asyncio
import hashlib
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from http import HTTPStatus

from skyserve.clock import Clock
from skyserve.config import Config
from skyserve.errors import (
    CapacityUnavailable,
    CredentialsRejected,
    OrderRejected,
    ProviderError,
    ProviderUnavailable,
)
from skyserve.model.offering import Offering
from skyserve.providers.base import EVERYTHING_BUT_CONTAINERS, Capabilities, CheckResult, Feature, Provider
from skyserve.providers.gcp.advice import Advisor
from skyserve.providers.gcp.api import (
    PROJECT_HINT,
    TITLE,
    Account,
    Compute,
    Json,
    Query,
    Refusal,
    entries,
    failure_of,
    find_account,
    mapping,
    text,
)
from skyserve.providers.gcp.words import (
    FIELDS,
    NETWORK,
    NOT_SOLD_S,
    PAGE_FIELDS,
    STOPPED_RUN,
    being_taken_back,
    instance_body,
    ipv4,
    launchable,
    path_of,
    ports_of,
    run_of,
    shared_name,
    silent_zones,
    tags_of,
    told,
    vm_id_of,
    vm_of,
)
from skyserve.providers.identity import installation
from skyserve.providers.vm import VmProvider
from skyserve.providers.vm_cloud import TAG_INSTALLATION, TAG_SERVICE, TAG_TOKEN, Notice, Vm, VmOrder, VmState

ENDPOINT = "https://compute.googleapis.com/compute/v1"

NOTICE_S = 30.0
"""How long before its end a spot machine is told."""

_FOLLOW_S = 15.0
"""How long a launch is followed, in all zones together: most that find no capacity have said so by then."""
_LEAST_S = 3.0
_RULE_S = 3.0
_REMEMBERED_FAILURES = 1000


def provider(config: Config, clock: Clock) -> Provider:
    """The provider of this name. Raises NotConfigured where SDK, credentials or project are missing."""
    return VmProvider(GcpCloud(find_account(config), installation(config), clock), config, clock)


@dataclass(slots=True)
class _Open:
    """A launch that was accepted and whose operation was not seen to end. `failure` is what it said at last."""

    order: VmOrder
    operation: str
    failure: str = ""


class GcpCloud:
    """See `VmCloud`. A machine's id is `zone/name`."""

    name = "gcp"
    title = TITLE
    capabilities = Capabilities(
        spot=True,
        stops=True,
        delivers=EVERYTHING_BUT_CONTAINERS,
        cannot={Feature.CONTAINER_IMAGE.value: "machines start from machine images; run the container in `run`"},
    )
    user_data_limit = 256 * 1024 - 1024
    notice: Notice | None = Notice(
        url="http://169.254.169.254/computeMetadata/v1/instance/preempted",
        pattern=r"^TRUE",
        headers={"Metadata-Flavor": "Google"},
        warning_s=NOTICE_S,
    )

    def __init__(self, account: Account, installation: str, clock: Clock, endpoint: str = ENDPOINT) -> None:
        self._account = account
        self._installation = installation
        self._clock = clock
        self._api = Compute(account, endpoint, clock)
        self._advisor = Advisor(self._api, clock)
        self._rules = asyncio.Lock()
        self._zones: dict[str, list[str]] = {}
        self._open: dict[str, _Open] = {}
        self._failures: dict[str, int] = {}
        self._deleting: set[str] = set()
        self._leaving: dict[str, float] = {}

    async def check(self) -> CheckResult:
        """See `VmCloud.check`. Also whether there is the network that machines are put in."""
        account = f"{self._account.who} [project {self._account.project}]"
        try:
            await self._call("GET", "")
            await self._api.call("GET", NETWORK, params={"fields": "name"})
        except CredentialsRejected as error:
            return CheckResult(False, error.message, error.hint or "", account)
        except Refusal as refusal:
            if refusal.status == HTTPStatus.NOT_FOUND:
                hint = f"gcloud compute networks create default --project {self._account.project}"
                return CheckResult(False, "the project has no network named default", hint, account)
            raise self._told(refusal) from refusal
        except OrderRejected as error:  # no such project
            return CheckResult(False, error.message, PROJECT_HINT, account)
        return CheckResult(True, account, account=account)

    async def narrow(self, offerings: Sequence[Offering]) -> Sequence[Offering]:
        """See `VmCloud.narrow`: what Compute Engine can launch, without spot pools that it says are empty."""
        possible = [offering for offering in offerings if launchable(offering)]
        self._advisor.wonder(possible)
        hopeful = [offering for offering in possible if not self._advisor.hopeless(offering)]
        return hopeful or possible

    async def create(self, order: VmOrder) -> Vm:
        """See `VmCloud.create`. An offering of a whole region is asked for zone by zone."""
        rule = await self._admit(order)
        place = order.order.offering.location
        vm = await (self._insert(order, place.zone, _FOLLOW_S) if place.zone else self._anywhere(order, place.region))
        if rule is not None:
            await self._follow("global", rule, _RULE_S)
        return vm

    async def machines(self) -> Sequence[Vm]:
        """See `VmCloud.machines`."""
        listed = {vm.id: vm for vm in await self._listed(f"labels.{TAG_INSTALLATION}={self._installation}")}
        self._deleting &= listed.keys()
        self._leaving = {vm_id: at for vm_id, at in self._leaving.items() if vm_id in listed}
        for vm_id, launch in list(self._open.items()):
            if vm_id not in listed:
                missing = await self._missing(vm_id, launch)
                if missing is not None:
                    listed[vm_id] = missing
            elif listed[vm_id].state is not VmState.BOOTING:
                self._open.pop(vm_id, None)
        return list(listed.values())

    async def delete(self, vm_id: str) -> None:
        """See `VmCloud.delete`."""
        self._open.pop(vm_id, None)
        try:
            await self._api.call("DELETE", path_of(vm_id))
        except Refusal as refusal:
            if refusal.status != HTTPStatus.NOT_FOUND:
                raise self._told(refusal) from refusal
        self._deleting.add(vm_id)

    async def stop(self, vm_id: str) -> None:
        """See `VmCloud.stop`. The machine is marked first, so that its end is never taken for a preemption."""
        path, zone = path_of(vm_id), vm_id.partition("/")[0]
        instance = await self._call("GET", path, params={"fields": FIELDS})
        labels = {key: str(value) for key, value in mapping(instance, "labels").items()}
        if labels.get(STOPPED_RUN) != run_of(instance):
            marked = {**labels, STOPPED_RUN: run_of(instance)}
            body = {"labels": marked, "labelFingerprint": text(instance, "labelFingerprint")}
            await self._follow(f"zones/{zone}", await self._call("POST", f"{path}/setLabels", body), _FOLLOW_S)
        await self._call("POST", f"{path}/stop", params={"discardLocalSsd": "true"})

    async def start(self, vm_id: str) -> None:
        """See `VmCloud.start`. Raises CapacityUnavailable when there is no room for it now."""
        zone = vm_id.partition("/")[0]
        await self._follow(f"zones/{zone}", await self._call("POST", f"{path_of(vm_id)}/start"), _FOLLOW_S)

    async def release(self, service: str) -> None:
        """See `VmCloud.release`: the service's firewall rule."""
        name = shared_name({TAG_INSTALLATION: self._installation, TAG_SERVICE: service})
        try:
            await self._api.follow("global", await self._api.call("DELETE", f"global/firewalls/{name}"), _FOLLOW_S)
        except Refusal as refusal:
            if refusal.status != HTTPStatus.NOT_FOUND:
                raise self._told(refusal) from refusal

    # ---- launching

    async def _anywhere(self, order: VmOrder, region: str) -> Vm:
        """In the first zone that has room. A machine of an earlier try may stand in any of them."""
        for vm in await self._listed(f"name={order.name}"):
            return self._own(order, vm)
        zones = await self._zones_of(region)
        turn = int(hashlib.sha256(order.order.token.encode()).hexdigest(), 16) % max(1, len(zones))
        refused: CapacityUnavailable | None = None
        give_up_at = self._clock.now() + _FOLLOW_S
        for zone in zones[turn:] + zones[:turn]:
            left_s = give_up_at - self._clock.now()
            if left_s <= 0:
                break
            try:
                return await self._insert(order, zone, max(_LEAST_S, left_s))
            except CapacityUnavailable as error:
                refused = error
        raise refused or OrderRejected(f"{region} has no zones", hint="sky catalog refresh")

    async def _zones_of(self, region: str) -> list[str]:
        if region not in self._zones:
            try:
                answer = await self._api.call("GET", f"regions/{region}", None, {"fields": "zones"})
            except Refusal as refusal:
                if refusal.status != HTTPStatus.NOT_FOUND:
                    raise self._told(refusal) from refusal
                # Prices know more regions than a project may have: the next place will do, and the version goes on.
                where, again_s = f"{self.name}/{region}", NOT_SOLD_S
                raise CapacityUnavailable(
                    f"not there: {refusal.message}", location=where, retry_after_s=again_s
                ) from refusal
            self._zones[region] = sorted(str(zone).rpartition("/")[2] for zone in entries(answer, "zones"))
        return self._zones[region]

    async def _insert(self, order: VmOrder, zone: str, limit_s: float) -> Vm:
        vm_id, token = f"{zone}/{order.name}", order.order.token
        # The same id within the hour gives the same operation again, also one that failed: so each failure changes it.
        key = f"{self._installation}/{token}/{vm_id}/{order.order.offering.pool}/{self._failures.get(vm_id, 0)}"
        request_id = str(uuid.uuid5(uuid.NAMESPACE_OID, key))
        try:
            body = instance_body(order, zone, self._account.project)
            accepted = await self._api.call("POST", f"zones/{zone}/instances", body, {"requestId": request_id})
            last = await self._api.follow(f"zones/{zone}", accepted, limit_s)
        except Refusal as refusal:
            if refusal.status == HTTPStatus.CONFLICT:
                return self._own(order, vm_of(await self._call("GET", path_of(vm_id), params={"fields": FIELDS})))
            self._count_failure(vm_id)
            raise told(refusal, self._account.project, order.order.offering) from refusal
        if text(last, "status") != "DONE":
            self._open[vm_id] = _Open(order, text(accepted, "name"))
        return Vm(vm_id, order.tags[TAG_SERVICE], token, VmState.BOOTING)

    def _count_failure(self, vm_id: str) -> None:
        self._failures[vm_id] = self._failures.pop(vm_id, 0) + 1
        if len(self._failures) > _REMEMBERED_FAILURES:
            del self._failures[next(iter(self._failures))]

    def _own(self, order: VmOrder, vm: Vm) -> Vm:
        """The machine that is there already, if it is the order's."""
        if vm.token != order.order.token:
            raise OrderRejected(f"the name {vm.id} belongs to another machine", hint="delete or rename that machine")
        return vm

    async def _missing(self, vm_id: str, launch: _Open) -> Vm | None:
        """What to say of an accepted launch whose machine is not listed; None when it has been there, and is gone."""
        if not launch.failure:
            zone = vm_id.partition("/")[0]
            try:
                operation = await self._api.call("GET", f"zones/{zone}/operations/{launch.operation}")
            except Refusal as refusal:
                if refusal.status != HTTPStatus.NOT_FOUND:
                    raise self._told(refusal) from refusal
                operation = {"status": "DONE"}
            failure = failure_of(operation)
            if failure is None and text(operation, "status") == "DONE":
                self._open.pop(vm_id, None)  # it was there, and has been deleted
                return None
            if failure is not None:
                launch.failure = f"{failure.reason}: {failure.message}"
        state = VmState.PREEMPTED if launch.failure else VmState.BOOTING
        tags = launch.order.tags
        return Vm(vm_id, tags[TAG_SERVICE], tags[TAG_TOKEN], state, detail=launch.failure)

    async def _listed(self, which: str) -> list[Vm]:
        """Our machines that pass a filter, of all zones. Raises ProviderUnavailable when a zone did not answer."""
        found: list[Vm] = []
        params = {"filter": which, "maxResults": "500", "fields": PAGE_FIELDS}
        while True:
            answer = await self._call("GET", "aggregated/instances", params=params)
            silent = silent_zones(answer)
            if silent:
                raise ProviderUnavailable(f"GCP did not reach {', '.join(silent)}")
            for scope in mapping(answer, "items").values():
                found += [self._seen(one) for one in map(mapping, entries(scope, "instances")) if self._is_ours(one)]
            if not text(answer, "nextPageToken"):
                return found
            params["pageToken"] = text(answer, "nextPageToken")

    def _is_ours(self, instance: Json) -> bool:
        return tags_of(instance).get(TAG_INSTALLATION) == self._installation

    def _seen(self, instance: Json) -> Vm:
        vm = vm_of(instance, vm_id_of(instance) in self._deleting)
        if not being_taken_back(instance, vm):
            return vm
        # The API does not say since when: it is told sooner by the machine itself, if its agent runs.
        return replace(vm, reclaim_at=self._leaving.setdefault(vm.id, self._clock.now() + NOTICE_S))

    # ---- the firewall

    async def _admit(self, order: VmOrder) -> Json | None:
        """See to the service's firewall rule; the operation that changes it, None if it is as it should be.

        Ports are only ever added while the service lives: replicas of its other versions may listen on those that are
        there. One at a time, as the rule is read, changed and written.
        """
        sources = ipv4(order.allow_from)
        if not sources:  # a rule without sources would admit everybody
            raise OrderRejected(
                "the controller has no IPv4 address from which it could reach machines",
                hint="export SKYSERVE_PUBLIC_ADDRESS=ADDRESS",
            )
        name = shared_name(order.tags)
        async with self._rules:
            present = await self._rule(name)
            ports = set(order.ports) | ports_of(present)
            rule: dict[str, object] = {
                "name": name,
                "description": f"{self._installation}: from the controller to {order.tags[TAG_SERVICE]}",
                "network": NETWORK,
                "direction": "INGRESS",
                "sourceRanges": sources,
                "targetTags": [name],
                "allowed": [{"IPProtocol": "tcp", "ports": [str(port) for port in sorted(ports)]}],
            }
            if present is None:
                return await self._insert_rule(rule)
            if ports_of(present) == ports and sorted(map(str, entries(present, "sourceRanges"))) == sources:
                return None
            return await self._call("PATCH", f"global/firewalls/{name}", rule)

    async def _rule(self, name: str) -> Json | None:
        try:
            return await self._api.call("GET", f"global/firewalls/{name}")
        except Refusal as refusal:
            if refusal.status == HTTPStatus.NOT_FOUND:
                return None
            raise self._told(refusal) from refusal

    async def _insert_rule(self, rule: Json) -> Json | None:
        try:
            return await self._api.call("POST", "global/firewalls", rule)
        except Refusal as refusal:
            if refusal.status == HTTPStatus.CONFLICT:  # on its way already: the next launch compares it
                return None
            raise self._told(refusal) from refusal

    # ---- calls that raise nothing but the contract's errors

    async def _call(self, method: str, path: str, body: Json | None = None, params: Query | None = None) -> Json:
        try:
            return await self._api.call(method, path, body, params)
        except Refusal as refusal:
            raise self._told(refusal) from refusal

    async def _follow(self, scope: str, operation: Json, limit_s: float) -> None:
        try:
            await self._api.follow(scope, operation, limit_s)
        except Refusal as refusal:
            raise self._told(refusal) from refusal

    def _told(self, refusal: Refusal) -> ProviderError:
        return told(refusal, self._account.project)
