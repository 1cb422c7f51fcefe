"""Lambda Cloud: one call tells every instance type, its price (the same in all regions), and where there is one now."""

from __future__ import annotations

import re
from collections.abc import Iterator

from skyserve.catalog.refresh.answer import Answer
from skyserve.catalog.refresh.checkpoint import Checkpoint
from skyserve.catalog.refresh.feed import Listing, Setting, Steps, enumerate_briefly
from skyserve.catalog.refresh.hardware import Hardware, Place, Price, by_instance_type
from skyserve.catalog.refresh.web import Request
from skyserve.catalog.row import ARM64, X86_64, Row, Source
from skyserve.errors import CredentialsRejected
from skyserve.model.accelerators import canonical, memory_gib

API_URL = "https://cloud.lambda.ai"

SOURCE = Source("lambda-instance-types", "Lambda Cloud API", API_URL, "regions are those with capacity at the refresh")

_KEY_HINT = "Make an API key in the Lambda Cloud dashboard, and set LAMBDA_API_KEY to it."
_GPU = re.compile(r"(?P<name>[\w-]+(?: [A-Z]?\d+)?)(?: Tensor Core)? \((?P<gib>\d+) GB(?: (?P<form>\w+))?\)")


class LambdaFeed:
    """See the module."""

    cloud = "lambda"

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        self._url = setting.base_urls.get("lambda", API_URL) + "/api/v1/instance-types"

    async def listing(self, steps: Steps, checkpoint: Checkpoint) -> Listing:
        """Everything on offer now, in one step: there is nothing to go on with after an interruption."""
        key = self._setting.credentials.lambda_api_key
        if key is None:
            raise CredentialsRejected("lambda: the price API wants an API key", hint=_KEY_HINT)
        steps.expect(1)
        request = Request(self._url, headers={"Authorization": f"Bearer {key}"}, key_hint=_KEY_HINT)
        answer = await self._setting.web.json(request)
        notes: list[str] = []
        rows = tuple(self._rows(answer, notes))
        steps.finish("instance types")
        return Listing(rows, (SOURCE,), tuple(notes), complete=False)

    def _rows(self, answer: Answer, notes: list[str]) -> Iterator[Row]:
        known = by_instance_type(self._setting.known)
        sold_out: list[str] = []
        for name, entry in answer["data"].members():
            kind = entry["instance_type"]
            hardware = _hardware(kind, known.get(name))
            price = Price(self._setting.today, SOURCE.id, kind["price_cents_per_hour"].number() / 100)
            regions = [region["name"].text() for region in entry["regions_with_capacity_available"].elements()]
            if not regions:
                # Sold out is not withdrawn: it keeps its places, so that it can be tried again.
                regions = sorted({row.region for row in self._setting.known if row.instance_type == name})
                sold_out.append(name)
            for region in regions:
                yield hardware.row("lambda", name, Place(region), price)
        if sold_out:
            notes.append(f"no capacity anywhere now: {enumerate_briefly(sold_out)}")


def _hardware(kind: Answer, known: Hardware | None) -> Hardware:
    specs = kind["specs"]
    vcpus, gib = specs["vcpus"].number(), specs["memory_gib"].number()
    count = specs["gpus"].number()
    if count == 0:
        return Hardware(vcpus, gib)
    if known is not None and known.accelerator is not None:
        accelerator, each_gib = known.accelerator, known.accelerator_memory_gib
    else:
        accelerator, each_gib = _accelerator(kind["gpu_description"].text())
    arch = ARM64 if accelerator.startswith("GH") else X86_64  # Grace is an Arm processor
    return Hardware(vcpus, gib, accelerator, count, each_gib, arch)


def _accelerator(described: str) -> tuple[str, float | None]:
    """Name and GiB of an accelerator described as in `A100 (80 GB SXM4)`."""
    found = _GPU.search(described)
    if found is None:
        name = canonical(described)
        return name, memory_gib(name)
    gib = float(found["gib"])
    plain = found["name"].replace(" ", "")
    sized = canonical(f"{plain}-{found['gib']}GB")
    # A size is part of the name only where there are two: A100-80GB, V100-32GB.
    name = sized if memory_gib(sized) is not None else canonical(plain)
    return name, gib
