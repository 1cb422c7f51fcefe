"""RunPod as a VmCloud: a pod is a container whose command is the user data. Must not know what runs in it.

Pods are listed, judged by stock and ended by the REST API v2. They are created by GraphQL, as only that API has spot
pods, and lets a command replace the image's entrypoint. Version 1 of the REST API is being retired, and is not used.

What is ours is known by its name, `INSTALLATION.SERVICE.TOKEN`, and `.spot` behind it where RunPod may take it back:
a name comes back with every listing. There is no idempotency key: pods are looked through for the token first.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar
from urllib.parse import quote

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
)
from skyserve.model.offering import CapacityType, Offering
from skyserve.providers.base import Capabilities, CheckResult, Feature, NotConfigured
from skyserve.providers.identity import installation
from skyserve.providers.rest import Account, Kept, Launches, Refusal, Rest
from skyserve.providers.vm import VmProvider
from skyserve.providers.vm_cloud import Notice, Vm, VmOrder, VmState

_T = TypeVar("_T")

TITLE = "RunPod"
API_URL = "https://api.runpod.io"

DEFAULT_IMAGE = "runpod/pytorch:2.4.0-py3.11-cuda12.4.1-devel-ubuntu22.04"
DEFAULT_DISK_GIB = 100

GPU_IDS: Mapping[str, str] = {
    "A30": "NVIDIA A30",
    "A40": "NVIDIA A40",
    "A100-80GB": "NVIDIA A100 80GB PCIe",
    "A100-80GB-SXM": "NVIDIA A100-SXM4-80GB",
    "B200": "NVIDIA B200",
    "H100": "NVIDIA H100 PCIe",
    "H100-NVL": "NVIDIA H100 NVL",
    "H100-SXM": "NVIDIA H100 80GB HBM3",
    "H200-SXM": "NVIDIA H200",
    "L4": "NVIDIA L4",
    "L40": "NVIDIA L40",
    "L40S": "NVIDIA L40S",
    "MI300X": "AMD Instinct MI300X OAM",
    "RTX3070": "NVIDIA GeForce RTX 3070",
    "RTX3080": "NVIDIA GeForce RTX 3080",
    "RTX3090": "NVIDIA GeForce RTX 3090",
    "RTX4080": "NVIDIA GeForce RTX 4080",
    "RTX4090": "NVIDIA GeForce RTX 4090",
    "RTX5080": "NVIDIA GeForce RTX 5080",
    "RTX5090": "NVIDIA GeForce RTX 5090",
    "RTX4000-Ada": "NVIDIA RTX 4000 Ada Generation",
    "RTX6000-Ada": "NVIDIA RTX 6000 Ada Generation",
    "RTXA4000": "NVIDIA RTX A4000",
    "RTXA4500": "NVIDIA RTX A4500",
    "RTXA5000": "NVIDIA RTX A5000",
    "RTXA6000": "NVIDIA RTX A6000",
}
"""What RunPod calls the accelerators. Of others nothing is offered."""

_COMMAND = 'bash -c "$0"; sleep infinity & wait'
"""Runs the user data, and stays: a pod lives as long as this. The shell also buries the orphans that come to it."""

_CONTAINER = "docker:"
_SPOT = "spot"
_SSH_PORT = 22
_STOCK_FOR_S = 10.0
_MUCH_DEARER = 2.0
_KEY_HINT = "export RUNPOD_API_KEY=KEY"
_PLACE = re.compile(r"[A-Za-z0-9-]+")
_CONTINENTS = frozenset({"EU", "EUR", "AP", "OC", "SEA", "AF", "SA"})

_ON_DEMAND_CALL = "podFindAndDeployOnDemand"
_SPOT_CALL = "podRentInterruptable"
_CREATE = "mutation create($input: {type}!) {{ {call}(input: $input) {{ id }} }}"
_TYPES = {_ON_DEMAND_CALL: "PodFindAndDeployOnDemandInput", _SPOT_CALL: "PodRentInterruptableInput"}
_LOWEST_BID = (
    'query {{ gpuTypes(input: {{id: "{gpu}"}}) {{ '
    "lowestPrice(input: {{gpuCount: {count}, secureCloud: true, {place}}}) {{ minimumBidPrice }} }} }}"
)
_WHO = "query { myself { id email } }"

_STATES = {
    "PROVISIONING": VmState.BOOTING,
    "STARTING": VmState.BOOTING,
    "RUNNING": VmState.RUNNING,
    "EXITED": VmState.PREEMPTED,
    "ERROR": VmState.PREEMPTED,
}
_ENDED = {
    "EXITED": "the pod has ended: somebody stopped it, its machine failed, or the balance is used up",
    "ERROR": "RunPod says that the pod cannot be run",
}
_TAKEN_BACK = "RunPod took the spot pod back"

_NO_CAPACITY = re.compile(
    r"no longer any instances|does not have the resources|no instances (are )?(currently )?available|"
    r"unable to find a machine|not enough free gpu|out of stock|no .*capacity|\bbid\b",
    re.IGNORECASE,
)
_NO_MONEY = re.compile(r"balance|insufficient funds|spend(ing)? limit|quota|maximum number", re.IGNORECASE)
_NO_ACCESS = re.compile(r"unauthori[sz]ed|unauthenticated|forbidden|not authori[sz]ed|api key", re.IGNORECASE)
_WRONG_CODES = frozenset({"GRAPHQL_VALIDATION_FAILED", "BAD_USER_INPUT", "GRAPHQL_PARSE_FAILED"})

Stock = Mapping[str, frozenset[str]]


def provider(config: Config, clock: Clock) -> VmProvider:
    """RunPod; see `registry`. RUNPOD_API_BASE_URL names another endpoint of the same APIs."""
    return VmProvider(RunPodCloud(config, clock, account(config)), config, clock)


def account(config: Config) -> Account:
    """The key from RUNPOD_API_KEY or ~/.runpod/config.toml. Raises NotConfigured."""
    url = (config.inherited_env.get("RUNPOD_API_BASE_URL") or API_URL).rstrip("/")
    if key := config.inherited_env.get("RUNPOD_API_KEY", "").strip():
        return Account(TITLE, url, key, "the key in RUNPOD_API_KEY", _KEY_HINT)
    path = config.user_home / ".runpod/config.toml"
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8", errors="replace"))
    except FileNotFoundError as error:
        raise NotConfigured(TITLE, f"there is no {path}", _KEY_HINT) from error
    except OSError as error:
        raise NotConfigured(TITLE, f"{path} cannot be read: {error.strerror or error}", _KEY_HINT) from error
    except tomllib.TOMLDecodeError as error:
        raise NotConfigured(TITLE, f"{path} is not TOML: {error}", _KEY_HINT) from error
    profiles = [found, *(part for part in found.values() if isinstance(part, dict))]
    keys = [part.get("api_key") or part.get("apikey") for part in profiles]
    given = next((key for key in keys if isinstance(key, str)), None)
    if given is None:
        raise NotConfigured(TITLE, f"{path} has no `api_key`", _KEY_HINT)
    return Account(TITLE, url, given, f"the key in {path}", _KEY_HINT)


@dataclass(frozen=True, slots=True)
class _Gpu:
    id: str
    count: int


class RunPodCloud:
    """See `VmCloud`."""

    name = "runpod"
    title = TITLE
    capabilities = Capabilities(
        spot=True,
        stops=False,
        delivers=frozenset(Feature) - {Feature.IMAGE, Feature.DISK_TIER, Feature.LABELS},
        cannot={
            "stop": "a stopped pod loses its GPU and its container disk",
            Feature.IMAGE.value: "a pod is a container: write `image_id: docker:IMAGE`",
            Feature.DISK_TIER.value: "RunPod has one kind of container disk",
            Feature.LABELS.value: "pods carry a name and no labels",
        },
        poll_interval_s=10.0,
        listing_grace_s=90.0,
    )
    user_data_limit = 100_000  # one argument of a command: Linux takes 128 KiB
    notice: Notice | None = None  # five seconds and a SIGTERM is all that RunPod gives

    def __init__(self, config: Config, clock: Clock, account: Account) -> None:
        self._account = account
        self._installation = installation(config)
        self._rest = Rest(account, _explain)
        self._launches = Launches(clock)
        self._stock: Kept[Stock] = Kept(clock, _STOCK_FOR_S)

    async def check(self) -> CheckResult:
        """Whose key it is, and whether it may see pods and create them."""
        try:
            await self._rest.ask("GET /v2/pods", self._ours)
            who = await self._graphql(_WHO, lambda data: data["myself"]["email"].text_or(""))
        except CredentialsRejected as error:
            return CheckResult(False, error.message, error.hint or _KEY_HINT)
        return CheckResult(True, "the API key is accepted", account=who or self._account.origin)

    async def narrow(self, offerings: Sequence[Offering]) -> Sequence[Offering]:
        """Those in stock now; all that the account may launch when nothing is, to be waited for."""
        known = [one for one in offerings if _gpu(one) is not None]
        try:
            kept = [one for one in known if await self._in_stock(one)]
        except ProviderError:
            return known
        return kept or known

    async def create(self, order: VmOrder) -> Vm:
        """Create a pod, unless one of that token is there."""
        return await self._launches.once(order.order.token, self.machines, lambda: self._launch(order))

    async def machines(self) -> Sequence[Vm]:
        """All data centres in one call."""
        return await self._rest.ask("GET /v2/pods", self._ours)

    async def delete(self, vm_id: str) -> None:
        """Terminate a pod, in whatever state it is."""
        await self._rest.end(f"DELETE /v2/pods/{quote(vm_id, safe='')}")

    async def stop(self, vm_id: str) -> None:
        """Raises OrderRejected."""
        raise OrderRejected(self.capabilities.cannot["stop"])

    async def start(self, vm_id: str) -> None:
        """Raises OrderRejected."""
        raise OrderRejected(self.capabilities.cannot["stop"])

    async def release(self, service: str) -> None:
        """Nothing: pods share nothing."""

    # -- launch

    async def _launch(self, order: VmOrder) -> Vm:
        wanted = order.order
        offering = wanted.offering
        gpu, place = _gpu(offering), _place(offering)
        if gpu is None:
            raise OrderRejected(f"RunPod: {offering.instance_type} is no pod with whole GPUs of a kind that is known")
        image = (wanted.image_id or "").removeprefix(_CONTAINER) or DEFAULT_IMAGE
        body: dict[str, Json] = {
            "name": self._name(order),
            "imageName": image,
            "dockerArgs": json.dumps({"entrypoint": ["bash", "-c"], "cmd": [_COMMAND, order.user_data]}),
            "ports": ",".join(f"{port}/tcp" for port in sorted({_SSH_PORT, *order.ports})),
            "gpuTypeId": gpu.id,
            "gpuCount": gpu.count,
            "cloudType": "SECURE",
            "supportPublicIp": True,
            "containerDiskInGb": wanted.disk_size or DEFAULT_DISK_GIB,
            "volumeInGb": 0,
            **place,
        }
        call = _ON_DEMAND_CALL
        if offering.capacity_type is CapacityType.SPOT:
            call = _SPOT_CALL
            body["bidPerGpu"] = await self._bid(gpu, place, offering.price_per_hour / gpu.count)
        query = _CREATE.format(type=_TYPES[call], call=call)
        vm_id = await self._graphql(query, lambda data: _created(data[call]), {"input": body})
        return Vm(vm_id, wanted.service, wanted.token, VmState.BOOTING)

    async def _bid(self, gpu: _Gpu, place: Mapping[str, Json], expected: float) -> float:
        """What a GPU costs an hour on the spot market now: less is not accepted.

        It was chosen for a price (`expected`): when it has become much dearer, another offering is the better choice.
        """
        where = ", ".join(f'{key}: "{value}"' for key, value in place.items())
        query = _LOWEST_BID.format(gpu=gpu.id, count=gpu.count, place=where)
        price = await self._graphql(query, _lowest_bid)
        if price is None:
            raise CapacityUnavailable(f"RunPod: no {gpu.id} is for bidding there now")
        if price > expected * _MUCH_DEARER:
            said = f"its spot market asks ${price:g} an hour for a {gpu.id}, and the catalog says ${expected:g}"
            raise CapacityUnavailable(f"RunPod: {said}", hint="sky catalog refresh")
        return price

    def _name(self, order: VmOrder) -> str:
        spot = [_SPOT] if order.order.offering.capacity_type is CapacityType.SPOT else []
        return ".".join([self._installation, order.order.service, order.order.token, *spot])

    # -- stock

    async def _in_stock(self, offering: Offering) -> bool:
        gpu = _gpu(offering)
        if gpu is None:
            return False
        params = {"include": "AVAILABILITY", "product": "POD", "cloud": "SECURE", "count": str(gpu.count)}
        stock = await self._stock.get(
            str(gpu.count), lambda: self._rest.ask("GET /v2/catalog/gpus", _read_stock, params=params)
        )
        place = offering.location
        centers = stock.get(gpu.id, frozenset())
        if place.zone is not None:
            return place.zone in centers
        return any(place.region == _country(center) for center in centers)

    # -- listing

    def _ours(self, answer: Answer) -> Sequence[Vm]:
        found = (self._vm(one) for one in answer["pods"].elements())
        return [vm for vm in found if vm is not None]

    def _vm(self, pod: Answer) -> Vm | None:
        name = pod["name"].text_or("").split(".")
        status = pod["status"].text()
        if len(name) < 3 or name[0] != self._installation or status == "TERMINATED":
            return None
        state = _STATES.get(status, VmState.BOOTING)
        host, ports = _reached_by(pod)
        taken_back = status == "EXITED" and name[3:] == [_SPOT]
        return Vm(
            id=pod["id"].text(),
            service=name[1],
            token=name[2],
            state=state if host or state is not VmState.RUNNING else VmState.BOOTING,
            host=host,
            ssh_port=ports.get(_SSH_PORT, _SSH_PORT),
            port_of=ports,
            detail=_TAKEN_BACK if taken_back else _ENDED.get(status, ""),
        )

    async def _graphql(
        self, query: str, read: Callable[[Answer], _T], variables: Mapping[str, Json] | None = None
    ) -> _T:
        body: dict[str, Json] = {"query": query}
        if variables is not None:
            body["variables"] = dict(variables)

        def checked(answer: Answer) -> _T:
            if error := _graphql_error(answer):  # it says 200 to what it refuses
                raise error
            return read(answer["data"])

        return await self._rest.ask("POST /graphql", checked, body=body)


def _gpu(offering: Offering) -> _Gpu | None:
    """What to ask RunPod for; None for a machine that is none of its GPU pods."""
    wanted = offering.accelerator
    if wanted is None or wanted.name not in GPU_IDS or wanted.count != int(wanted.count):
        return None
    return _Gpu(GPU_IDS[wanted.name], int(wanted.count))


def _place(offering: Offering) -> dict[str, Json]:
    """A data centre is a zone, a country is a region."""
    key, value = "dataCenterId", offering.location.zone
    if value is None:
        key, value = "countryCode", offering.location.region
    if not _PLACE.fullmatch(value):
        raise OrderRejected(f"RunPod has no place called {value}")
    return {key: value}


def _country(center: str) -> str:
    """EU-RO-1 is in RO, US-TX-3 in US."""
    first, *others = center.split("-")
    return others[0] if first in _CONTINENTS and others else first


def _read_stock(answer: Answer) -> Stock:
    """In which data centres there is some, by GPU id."""
    return {
        gpu["id"].text(): frozenset(
            center["id"].text()
            for center in (gpu["dataCenters"].elements() if "dataCenters" in gpu else [])
            if center["availability"].text() != "NONE"
        )
        for gpu in answer["gpus"].elements()
    }


def _lowest_bid(data: Answer) -> float | None:
    for gpu in data["gpuTypes"].elements():
        if "lowestPrice" in gpu:
            return gpu["lowestPrice"]["minimumBidPrice"].number_or_none()
    return None


def _created(pod: Answer) -> str:
    if "id" not in pod:
        raise CapacityUnavailable("RunPod created no pod, and did not say why")
    return pod["id"].text()


def _reached_by(pod: Answer) -> tuple[str | None, dict[int, int]]:
    """The public address, once SSH is reached by it, and the public port of each TCP port of the pod."""
    if "runtime" not in pod or "ports" not in pod["runtime"]:
        return None, {}
    host, ports = None, {}
    for port in pod["runtime"]["ports"].elements():
        if port["type"].text_or("") != "tcp" or "public" not in port or "ip" not in port:
            continue
        private = int(port["private"].number())
        ports[private] = int(port["public"].number())
        if private == _SSH_PORT:
            host = port["ip"].text()
    return host, ports


def _explain(refusal: Refusal) -> ProviderError | None:
    """What status codes leave open: no capacity comes as 400, or as whatever GraphQL answers with."""
    if "errors" in refusal.body and "detail" not in refusal.body:
        return _graphql_error(refusal.body)
    if refusal.status in (400, 409, 500) and _NO_CAPACITY.search(refusal.said):
        return CapacityUnavailable(f"RunPod: {refusal.said}")
    return None


def _graphql_error(answer: Answer) -> ProviderError | None:
    """The first error of a GraphQL answer as a reaction; None when there is none."""
    errors = answer["errors"].elements() if "errors" in answer else []
    if not errors:
        return None
    message = errors[0]["message"].text_or("")[:300]
    code = errors[0]["extensions"]["code"].text_or("") if "extensions" in errors[0] else ""
    said = f"RunPod: {message}"
    if _NO_CAPACITY.search(message):
        return CapacityUnavailable(said)
    if code in ("UNAUTHENTICATED", "FORBIDDEN") or _NO_ACCESS.search(message):
        return CredentialsRejected(said, hint=_KEY_HINT)
    if _NO_MONEY.search(message):
        return QuotaExceeded(
            said, hint="look at the balance and the spend limit in RunPod's console", location="runpod"
        )
    if code in _WRONG_CODES:
        return OrderRejected(said)
    return ProviderUnavailable(said)
