"""Lambda Cloud as a VmCloud: its REST API v1, and nothing else. Must not know what runs on the machines.

What is ours is known by tags, which the API gives back with every instance. It has no idempotency key: the instances
are looked through for the token before each launch. Firewall rules are a ruleset per service and region; the account's
global rules are the user's, and hold besides.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_network

from skyserve.catalog.refresh.answer import Answer, Json
from skyserve.clock import Clock
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
from skyserve.model.offering import Offering
from skyserve.providers.base import Capabilities, CheckResult, Feature, NotConfigured
from skyserve.providers.identity import installation
from skyserve.providers.rest import Account, Kept, Launches, Refusal, Rest
from skyserve.providers.vm import VmProvider
from skyserve.providers.vm_cloud import TAG_INSTALLATION, TAG_SERVICE, TAG_TOKEN, Notice, Vm, VmOrder, VmState

TITLE = "Lambda"
API_URL = "https://cloud.lambda.ai"

UNGUARDED_REGIONS = frozenset({"us-south-1"})
"""Where the API's firewall rules do not hold: every port of a machine there is open to everybody."""

LAUNCH_EVERY_S = 11.0
"""The API takes one launch in ten seconds."""

_LONGEST_WAIT_S = 15.0  # for a turn to launch: longer ones are the controller's to wait for
_STOCK_FOR_S = 10.0
_RELEASE_TRIES = 4
_RELEASE_PAUSE_S = 5.0
_KEY_HINT = "mkdir -p ~/.lambda_cloud && echo 'api_key = KEY' > ~/.lambda_cloud/lambda_keys"
_KEY_LINE = re.compile(r"^\s*api_key\s*=\s*['\"]?([^\s'\"]+)", re.MULTILINE)
_IMAGE_ID = re.compile(r"[0-9a-f]{8}-?([0-9a-f]{4}-?){3}[0-9a-f]{12}")

_STATES = {
    "booting": VmState.BOOTING,
    "active": VmState.RUNNING,
    "unhealthy": VmState.RUNNING,  # the cloud's own opinion: whether it serves is for the readiness probe to say
    "terminating": VmState.STOPPING,
    "preempted": VmState.PREEMPTED,
}

Stock = Mapping[str, frozenset[str]]
Rules = frozenset[tuple[int, str]]


def provider(config: Config, clock: Clock) -> VmProvider:
    """Lambda Cloud; see `registry`. LAMBDA_CLOUD_BASE_URL names another endpoint of the same API."""
    return VmProvider(LambdaCloud(config, clock, account(config)), config, clock)


def account(config: Config) -> Account:
    """The key from LAMBDA_API_KEY or ~/.lambda_cloud/lambda_keys. Raises NotConfigured."""
    url = (config.inherited_env.get("LAMBDA_CLOUD_BASE_URL") or API_URL).rstrip("/") + "/api/v1"
    if key := config.inherited_env.get("LAMBDA_API_KEY", "").strip():
        return Account(TITLE, url, key, "the key in LAMBDA_API_KEY", _KEY_HINT)
    path = config.user_home / ".lambda_cloud/lambda_keys"
    try:
        found = _KEY_LINE.search(path.read_text(encoding="utf-8", errors="replace"))
    except FileNotFoundError as error:
        raise NotConfigured(TITLE, f"there is no {path}", _KEY_HINT) from error
    except OSError as error:
        raise NotConfigured(TITLE, f"{path} cannot be read: {error.strerror or error}", _KEY_HINT) from error
    if found is None:
        raise NotConfigured(TITLE, f"{path} has no line `api_key = KEY`", _KEY_HINT)
    return Account(TITLE, url, found[1], f"the key in {path}", _KEY_HINT)


@dataclass(frozen=True, slots=True)
class _Ruleset:
    id: str
    name: str
    region: str
    rules: Rules


class LambdaCloud:
    """See `VmCloud`. Launches are `launch_every_s` seconds apart."""

    name = "lambda"
    title = TITLE
    capabilities = Capabilities(
        spot=False,
        stops=False,
        delivers=frozenset(
            {Feature.WORKDIR, Feature.FILE_MOUNTS, Feature.SECRETS, Feature.IMAGE, Feature.LABELS, Feature.PORTS}
        ),
        cannot={
            "spot": "Lambda rents out on demand only",
            "stop": "Lambda's instances run until they are terminated",
            Feature.DISK_SIZE.value: "the disk comes with the instance type",
            Feature.DISK_TIER.value: "the disk comes with the instance type",
            Feature.CONTAINER_IMAGE.value: "instances start from machine images",
        },
        poll_interval_s=15.0,
        listing_grace_s=120.0,
    )
    user_data_limit = 1_000_000
    notice: Notice | None = None

    def __init__(
        self, config: Config, clock: Clock, account: Account, *, launch_every_s: float = LAUNCH_EVERY_S
    ) -> None:
        self._clock = clock
        self._launch_every_s = launch_every_s
        self._account = account
        self._installation = installation(config)
        self._rest = Rest(account, _explain)
        self._launches = Launches(clock)
        self._stock: Kept[Stock] = Kept(clock, _STOCK_FOR_S)
        self._next_launch_at = 0.0
        self._key_is_known = False
        self._setting_up = asyncio.Lock()

    async def check(self) -> CheckResult:
        """Whether the key is accepted. The API does not tell whose it is."""
        try:
            await self._rest.ask("GET /ssh-keys", _names)
        except CredentialsRejected as error:
            return CheckResult(False, error.message, error.hint or _KEY_HINT)
        return CheckResult(True, "the API key is accepted", account=self._account.origin)

    async def narrow(self, offerings: Sequence[Offering]) -> Sequence[Offering]:
        """Those that have capacity now; all that the account may launch when none has, to be waited for."""
        guarded = [one for one in offerings if one.location.region not in UNGUARDED_REGIONS]
        try:
            stock = await self._stock.get("", lambda: self._rest.ask("GET /instance-types", _in_stock))
        except ProviderError:
            return guarded
        offered = [one for one in guarded if one.instance_type in stock]
        return [one for one in offered if one.location.region in stock[one.instance_type]] or offered

    async def create(self, order: VmOrder) -> Vm:
        """Launch an instance, unless one of that token is there."""
        return await self._launches.once(order.order.token, self.machines, lambda: self._launch(order))

    async def machines(self) -> Sequence[Vm]:
        """All regions in one call."""
        return await self._rest.ask("GET /instances", self._ours)

    async def delete(self, vm_id: str) -> None:
        """Terminate an instance."""
        await self._rest.end("POST /instance-operations/terminate", body={"instance_ids": [vm_id]})

    async def stop(self, vm_id: str) -> None:
        """Raises OrderRejected."""
        raise OrderRejected(self.capabilities.cannot["stop"])

    async def start(self, vm_id: str) -> None:
        """Raises OrderRejected."""
        raise OrderRejected(self.capabilities.cannot["stop"])

    async def release(self, service: str) -> None:
        """Delete the service's rulesets, as soon as its last instance has let go of them."""
        for ruleset in await self._rulesets():
            if ruleset.name == self._ruleset_name(service, ruleset.region):
                await self._delete_ruleset(ruleset.id)

    # -- launch

    async def _launch(self, order: VmOrder) -> Vm:
        wanted = order.order
        region = wanted.offering.location.region
        if region in UNGUARDED_REGIONS:
            raise OrderRejected(
                f"Lambda's firewall does not hold in {region}", hint="name another region in `resources`"
            )
        async with self._setting_up:
            key = await self._ssh_key()
            ruleset = await self._ruleset(order, region)
        await self._take_turn()
        body: dict[str, Json] = {
            "region_name": region,
            "instance_type_name": wanted.offering.instance_type,
            "ssh_key_names": [key],
            "name": order.name,
            "user_data": order.user_data,
            "tags": [{"key": name, "value": value} for name, value in {**wanted.labels, **order.tags}.items()],
            "firewall_rulesets": [{"id": ruleset}],
        }
        if wanted.image_id:
            body["image"] = {"id" if _IMAGE_ID.fullmatch(wanted.image_id) else "family": wanted.image_id}
        try:
            vm_id = await self._rest.ask("POST /instance-operations/launch", _launched, body=body)
        except OrderRejected:
            self._key_is_known = False  # somebody may have removed it
            raise
        return Vm(vm_id, wanted.service, wanted.token, VmState.BOOTING)

    async def _take_turn(self) -> None:
        """Wait until the API takes another launch. Raises Throttled when that would take long."""
        now = self._clock.now()
        wait_s = self._next_launch_at - now
        if wait_s > _LONGEST_WAIT_S:
            every_s = f"{self._launch_every_s:g} s"
            raise Throttled(f"Lambda takes one launch in {every_s}, and others go first", retry_after_s=wait_s)
        self._next_launch_at = max(now, self._next_launch_at) + self._launch_every_s
        if wait_s > 0:
            await self._clock.sleep(wait_s)

    async def _ssh_key(self) -> str:
        """The name of a key to launch with, as the API insists on one. Who may log in is settled by the user data.

        Lambda makes it, and nobody keeps its private half. It must not be the key with which the controller logs in: to
        root, the machine's cloud-init would tie that one to a command that only says to log in as somebody else.
        """
        name = self._installation
        if not self._key_is_known and name not in await self._rest.ask("GET /ssh-keys", _names):
            await self._rest.tell("POST /ssh-keys", body={"name": name})
        self._key_is_known = True
        return name

    # -- firewall

    async def _ruleset(self, order: VmOrder, region: str) -> str:
        """The id of the service's ruleset in that region, made or brought up to date.

        Ports only ever join, as machines of an older version may still need theirs; addresses are always the latest.
        """
        service = order.order.service
        name = self._ruleset_name(service, region)
        sources = [cidr for cidr in order.allow_from if ip_network(cidr, strict=False).version == 4]
        if not sources:
            raise OrderRejected(
                "Lambda's firewall knows IPv4 only, and no such address may reach the machines",
                hint="set SKYSERVE_PUBLIC_ADDRESS to the IPv4 address by which this machine reaches the internet",
            )
        known = next((one for one in await self._rulesets() if one.name == name), None)
        ports = {*order.ports, *(port for port, _ in known.rules)} if known else set(order.ports)
        rules = frozenset((port, cidr) for port in ports for cidr in sources)
        if known is None:
            body: Json = {"name": name, "region": region, "rules": _as_json(rules, service)}
            return await self._rest.ask("POST /firewall-rulesets", _ruleset_id, body=body)
        if rules != known.rules:
            body = {"rules": _as_json(rules, service)}
            await self._rest.tell(f"PATCH /firewall-rulesets/{known.id}", body=body)
        return known.id

    async def _rulesets(self) -> Sequence[_Ruleset]:
        return await self._rest.ask("GET /firewall-rulesets", _read_rulesets)

    async def _delete_ruleset(self, ruleset_id: str) -> None:
        for _ in range(_RELEASE_TRIES):
            with contextlib.suppress(ProviderUnavailable):
                return await self._rest.end(f"DELETE /firewall-rulesets/{ruleset_id}")
            await self._clock.sleep(_RELEASE_PAUSE_S)
        return await self._rest.end(f"DELETE /firewall-rulesets/{ruleset_id}")

    def _ruleset_name(self, service: str, region: str) -> str:
        digest = hashlib.sha256(f"{service}/{region}".encode()).hexdigest()
        return f"{self._installation}-{digest[:16]}"

    # -- listing

    def _ours(self, answer: Answer) -> Sequence[Vm]:
        found = (self._vm(one) for one in answer["data"].elements())
        return [vm for vm in found if vm is not None]

    def _vm(self, instance: Answer) -> Vm | None:
        tags = _tags(instance)
        status = instance["status"].text()
        if tags.get(TAG_INSTALLATION) != self._installation or status == "terminated":
            return None
        return Vm(
            id=instance["id"].text(),
            service=tags.get(TAG_SERVICE, ""),
            token=tags.get(TAG_TOKEN, ""),
            state=_STATES.get(status, VmState.BOOTING),
            host=instance["ip"].text_or("") or None,
            detail=f"Lambda says it is {status}" if status in ("unhealthy", "preempted") else "",
        )


def _explain(refusal: Refusal) -> ProviderError | None:
    """The API's error codes as reactions."""
    if "error" not in refusal.body or "code" not in refusal.body["error"]:
        return None
    error = refusal.body["error"]
    code = error["code"].text()
    make = _REACTIONS.get(code)
    if make is None:
        return None
    hint = error["suggestion"].text_or("") or None
    return make(f"Lambda: {refusal.said or code}", hint)


_REACTIONS: Mapping[str, Callable[[str, str | None], ProviderError]] = {
    "instance-operations/launch/insufficient-capacity": lambda said, hint: CapacityUnavailable(said, hint=hint),
    "global/quota-exceeded": lambda said, hint: QuotaExceeded(said, hint=hint, location="lambda"),
    "global/invalid-api-key": lambda said, hint: CredentialsRejected(said, hint=_KEY_HINT),
    "global/account-inactive": lambda said, hint: CredentialsRejected(said, hint=hint),
    "global/invalid-address": lambda said, hint: CredentialsRejected(said, hint=hint),
    "global/invalid-parameters": lambda said, hint: OrderRejected(said, hint=hint),
    "global/duplicate": lambda said, hint: ProviderUnavailable(said, hint=hint),  # found by the next look
    "global/object-does-not-exist": lambda said, hint: OrderRejected(said, hint=hint),
    "global/internal-error": lambda said, hint: ProviderUnavailable(said, hint=hint),
    "firewall-rulesets/firewall-ruleset-in-use": lambda said, hint: ProviderUnavailable(said, hint=hint),
}


def _in_stock(answer: Answer) -> Stock:
    """Which regions have capacity, by instance type."""
    return {
        name: frozenset(region["name"].text() for region in entry["regions_with_capacity_available"].elements())
        for name, entry in answer["data"].members()
    }


def _launched(answer: Answer) -> str:
    return answer["data"]["instance_ids"].elements()[0].text()


def _names(answer: Answer) -> frozenset[str]:
    return frozenset(one["name"].text() for one in answer["data"].elements())


def _ruleset_id(answer: Answer) -> str:
    return answer["data"]["id"].text()


def _read_rulesets(answer: Answer) -> Sequence[_Ruleset]:
    return [
        _Ruleset(
            one["id"].text(),
            one["name"].text(),
            one["region"]["name"].text_or(""),
            frozenset(rule for entry in one["rules"].elements() for rule in _rules(entry)),
        )
        for one in answer["data"].elements()
    ]


def _rules(entry: Answer) -> Sequence[tuple[int, str]]:
    if "port_range" not in entry:
        return []
    first, last = (int(port.number()) for port in entry["port_range"].elements())
    return [(port, entry["source_network"].text()) for port in {first, last}]


def _as_json(rules: Rules, service: str) -> list[Json]:
    return [
        {"protocol": "tcp", "source_network": cidr, "port_range": [port, port], "description": f"SkyServe {service}"}
        for port, cidr in sorted(rules)
    ]


def _tags(instance: Answer) -> Mapping[str, str]:
    entries = instance["tags"].elements() if "tags" in instance else []
    return {entry["key"].text(): entry["value"].text() for entry in entries}
