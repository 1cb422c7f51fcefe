"""RunPod: its GraphQL API, asked once per data centre for machines of several sizes. Secure cloud only: machines of the
community cloud belong to strangers."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from skyserve.catalog.refresh.answer import CHANGED, Answer
from skyserve.catalog.refresh.checkpoint import Checkpoint
from skyserve.catalog.refresh.feed import Listing, Setting, Steps
from skyserve.catalog.refresh.hardware import Hardware, Place, Price
from skyserve.catalog.refresh.web import Request, each
from skyserve.catalog.row import Row, Source
from skyserve.errors import CatalogError, CredentialsRejected
from skyserve.model.accelerators import canonical

API_URL = "https://api.runpod.io"

SOURCE = Source("runpod-gpu-types", "RunPod GraphQL API", API_URL, "data centres are those with stock at the refresh")

_KEY_HINT = "Make an API key in RunPod's settings, and set RUNPOD_API_KEY to it."
_COUNTS = (1, 2, 4, 8)
_AT_ONCE = 4
_CONTINENTS = ("EU", "EUR", "AP", "OC", "SEA", "AF", "SA")
_DATA_CENTER = re.compile(r"[A-Za-z0-9-]+")

_DATA_CENTERS = "query { dataCenters { id listed } }"
_SIZE = (
    'x{count}: lowestPrice(input: {{gpuCount: {count}, secureCloud: true, dataCenterId: "{data_center}"}}) '
    "{{ minimumBidPrice stockStatus minVcpu minMemory }}"
)


@dataclass(frozen=True, slots=True)
class RunPodSize:
    """Some GPUs of one type in one data centre: dollars an hour for all of them."""

    gpu: str
    gpu_memory_gib: float
    count: int
    vcpus: float
    memory_gib: float
    price_per_hour: float
    spot_price_per_hour: float | None


@dataclass(frozen=True, slots=True)
class RunPodCenter:
    """What one data centre has in stock."""

    sizes: tuple[RunPodSize, ...]


class RunPodFeed:
    """See the module."""

    cloud = "runpod"

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        self._url = setting.base_urls.get("runpod", API_URL) + "/graphql"

    async def listing(self, steps: Steps, checkpoint: Checkpoint) -> Listing:
        """Everything in stock now; one step per data centre."""
        key = self._setting.credentials.runpod_api_key
        if key is None:
            raise CredentialsRejected("runpod: the price API wants an API key", hint=_KEY_HINT)
        steps.expect(None)
        found = (await self._ask(_DATA_CENTERS, key))["dataCenters"].elements()
        names = sorted(center["id"].text() for center in found if center["listed"].flag())
        if not all(_DATA_CENTER.fullmatch(name) for name in names):
            raise CatalogError("runpod: the price API names data centres in an unknown way", hint=CHANGED)
        steps.expect(len(names))

        async def fetch(name: str) -> RunPodCenter:
            part = checkpoint.load(name, RunPodCenter)
            if part is None:
                part = _center(await self._ask(_prices_in(name), key))
                checkpoint.save(name, part)
            steps.finish(name)
            return part

        centers = dict(zip(names, await each(names, fetch, at_once=_AT_ONCE), strict=True))
        return Listing(tuple(self._rows(centers.items())), (SOURCE,), complete=False)

    async def _ask(self, query: str, key: str) -> Answer:
        headers = {"Authorization": f"Bearer {key}"}
        request = Request(self._url, headers=headers, body={"query": query}, key_hint=_KEY_HINT)
        answer = await self._setting.web.json(request)
        if "errors" in answer:  # GraphQL says 200 to a question that it does not understand
            said = answer["errors"].elements()
            text = said[0]["message"].text_or("") if said else ""
            raise CatalogError(f"runpod: the price API refuses the question: {text[:200]}", hint=CHANGED)
        return answer["data"]

    def _rows(self, centers: Iterable[tuple[str, RunPodCenter]]) -> Iterator[Row]:
        for name, center in centers:
            place = Place(_country(name), name)
            for size in center.sizes:
                hardware = Hardware(size.vcpus, size.memory_gib, size.gpu, size.count, size.gpu_memory_gib)
                price = Price(self._setting.today, SOURCE.id, size.price_per_hour, size.spot_price_per_hour)
                yield hardware.row("runpod", f"{size.count}x_{size.gpu}_SECURE", place, price)


def _prices_in(data_center: str) -> str:
    sizes = " ".join(_SIZE.format(count=count, data_center=data_center) for count in _COUNTS)
    return f"query {{ gpuTypes {{ id displayName memoryInGb secureCloud securePrice {sizes} }} }}"


def _center(answer: Answer) -> RunPodCenter:
    sizes: list[RunPodSize] = []
    for gpu in answer["gpuTypes"].elements():
        each_price = gpu["securePrice"].number_or_none()
        if gpu["secureCloud"].flag() and each_price:
            sizes += _sizes(gpu, each_price)
    return RunPodCenter(tuple(sizes))


def _sizes(gpu: Answer, each_price: float) -> Iterator[RunPodSize]:
    name = _accelerator(gpu["displayName"].text())
    for count in _COUNTS:
        if f"x{count}" not in gpu:
            continue
        lowest = gpu[f"x{count}"]
        vcpus, memory_gib = lowest["minVcpu"].number_or_none(), lowest["minMemory"].number_or_none()
        if "stockStatus" not in lowest or not vcpus or not memory_gib:
            continue  # not in stock there
        bid = lowest["minimumBidPrice"].number_or_none()
        spot = bid * count if bid and bid < each_price else None
        yield RunPodSize(name, gpu["memoryInGb"].number(), count, vcpus, memory_gib, each_price * count, spot)


def _accelerator(displayed: str) -> str:
    """`H100 SXM` is H100-SXM, `RTX 4090` is RTX4090, `RTX 6000 Ada` is RTX6000-Ada, `A100 PCIe` is A100-80GB."""
    words = displayed.removeprefix("NVIDIA ").replace("GeForce ", "").split()
    if words[:1] == ["RTX"] and len(words) > 1 and words[1] != "PRO":
        words = [words[0] + words[1], *words[2:]]
    if words[:1] == ["A100"]:
        words.insert(1, "80GB")
    return canonical("-".join(word for word in words if word != "PCIe"))


def _country(data_center: str) -> str:
    """The region of a data centre: EU-RO-1 is in RO, US-TX-3 in US."""
    first, *others = data_center.split("-")
    return others[0] if first in _CONTINENTS and others else first
