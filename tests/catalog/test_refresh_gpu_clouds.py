"""Lambda Cloud and RunPod: what they have in stock, and what it is called."""

from __future__ import annotations

import asyncio
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from aiohttp import web
from tests.catalog.refresh_servers import (
    Asked,
    PriceServer,
    QuickClock,
    known_row,
    setting_for,
    silent_steps,
)

from skyserve.catalog.refresh.checkpoint import Checkpoint
from skyserve.catalog.refresh.credentials import Credentials
from skyserve.catalog.refresh.feed import Feed, Listing, Setting
from skyserve.catalog.refresh.lambda_cloud import LambdaFeed
from skyserve.catalog.refresh.runpod import RunPodFeed
from skyserve.catalog.row import Row
from skyserve.errors import CatalogError, CredentialsRejected, ProviderUnavailable

KEYS = Credentials(lambda_api_key="hush", runpod_api_key="hush")


def listing(
    server: PriceServer, cloud: str, tmp_path: Path, known: tuple[Row, ...] = (), keys: Credentials = KEYS
) -> Listing:
    def feed(setting: Setting) -> Feed:
        return LambdaFeed(setting) if cloud == "lambda" else RunPodFeed(setting)

    async def run() -> Listing:
        async with setting_for(server, cloud, known) as setting:
            checkpoint = Checkpoint(tmp_path / "parts", QuickClock())
            return await feed(replace(setting, credentials=keys)).listing(silent_steps(cloud), checkpoint)

    return asyncio.run(run())


def instance_type(described: str, cents: int, gpus: int, *regions: str) -> dict[str, object]:
    return {
        "instance_type": {
            "description": f"{gpus}x {described}",
            "gpu_description": described,
            "price_cents_per_hour": cents,
            "specs": {"vcpus": 26 * max(gpus, 1), "memory_gib": 200, "storage_gib": 512, "gpus": gpus},
        },
        "regions_with_capacity_available": [{"name": name, "description": "Somewhere"} for name in regions],
    }


def lambda_cloud(asked: Asked) -> object:
    if asked.headers.get("Authorization") != "Bearer hush":
        return web.Response(status=403)
    return {
        "data": {
            "cpu_4x_general": instance_type("N/A", 20, 0, "us-west-1"),
            "gpu_1x_h100_pcie": instance_type("H100 (80 GB PCIe)", 329, 1, "us-west-1", "us-east-3"),
            "gpu_8x_a100_80gb_sxm4": instance_type("A100 (80 GB SXM4)", 1432, 8, "us-west-1"),
            "gpu_8x_a100": instance_type("A100 (40 GB SXM4)", 1032, 8, "us-west-1"),
            "gpu_1x_gh200": instance_type("GH200 (96 GB)", 149, 1, "us-east-3"),
            "gpu_8x_v100": instance_type("Tesla V100 (16 GB)", 440, 8),
        }
    }


def test_lambda_rows(tmp_path: Path) -> None:
    known = (
        known_row("lambda", "gpu_8x_v100", "us-south-1", accelerator="V100", accelerator_count=8),
        known_row("lambda", "gpu_1x_h100_pcie", "us-south-1", accelerator="H100", accelerator_count=1),
    )
    server = PriceServer(lambda_cloud)
    found = listing(server, "lambda", tmp_path, known)
    rows = {(row.instance_type, row.region): row for row in found.rows}
    named = {name: (row.accelerator, row.accelerator_count) for (name, _), row in rows.items()}
    assert named == {
        "cpu_4x_general": (None, 0),
        "gpu_1x_h100_pcie": ("H100", 1),
        "gpu_8x_a100_80gb_sxm4": ("A100-80GB", 8),
        "gpu_8x_a100": ("A100", 8),
        "gpu_1x_gh200": ("GH200", 1),
        "gpu_8x_v100": ("V100", 8),
    }
    assert {region for name, region in rows if name == "gpu_1x_h100_pcie"} == {"us-west-1", "us-east-3"}
    assert rows["gpu_8x_v100", "us-south-1"].price_per_hour == 4.4, "sold out, but to be tried again"
    assert rows["gpu_1x_gh200", "us-east-3"].arch == "arm64"
    assert any("gpu_8x_v100" in note for note in found.notes)
    assert server.paths == ["/api/v1/instance-types"]


def test_lambda_wants_a_key_that_it_knows(tmp_path: Path) -> None:
    for key in (None, "wrong"):
        with pytest.raises(CredentialsRejected) as caught:
            listing(PriceServer(lambda_cloud), "lambda", tmp_path, keys=Credentials(lambda_api_key=key))
        assert "LAMBDA_API_KEY" in (caught.value.hint or "")


def lowest(bid: float | None, stock: str | None = "High") -> dict[str, object]:
    return {"minimumBidPrice": bid, "stockStatus": stock, "minVcpu": 16, "minMemory": 125}


def runpod(asked: Asked) -> object:
    query = json.loads(asked.body)["query"]
    if "dataCenters {" in query:
        centers = {"EU-RO-1": True, "US-TX-3": True, "XX-OLD-1": False}
        return {"data": {"dataCenters": [{"id": name, "listed": listed} for name, listed in centers.items()]}}
    (center,) = set(re.findall(r'dataCenterId: "([^"]+)"', query))
    sizes = {f"x{count}": lowest(0.9 if center == "EU-RO-1" else None) for count in (1, 2, 4)}
    sold_out = {f"x{count}": lowest(None, None) for count in (1, 2, 4, 8)}
    gpu = {"id": "a", "secureCloud": True, "securePrice": 2.5, "memoryInGb": 80, "displayName": "H100 SXM", **sizes}
    names = {"RTX 4090": sold_out, "L40S": {**sizes, "secureCloud": False}}
    return {"data": {"gpuTypes": [{**gpu, "x8": None}, *({**gpu, "displayName": n, **o} for n, o in names.items())]}}


def test_runpod_rows(tmp_path: Path) -> None:
    server = PriceServer(runpod)
    found = listing(server, "runpod", tmp_path)
    rows = {(row.instance_type, row.zone): row for row in found.rows}
    counts = (1, 2, 4)
    assert set(rows) == {(f"{count}x_H100-SXM_SECURE", zone) for count in counts for zone in ("EU-RO-1", "US-TX-3")}
    two = rows["2x_H100-SXM_SECURE", "EU-RO-1"]
    assert (two.region, two.price_per_hour, two.spot_price_per_hour) == ("RO", 5.0, 1.8)
    assert (two.accelerator_count, two.accelerator_memory_gib, two.vcpus, two.memory_gib) == (2, 80, 16, 125)
    assert rows["1x_H100-SXM_SECURE", "US-TX-3"].spot_price_per_hour is None
    assert rows["1x_H100-SXM_SECURE", "US-TX-3"].region == "US"
    assert not any("hush" in f"{asked.path}{asked.query}{asked.body}" for asked in server.asked)


@pytest.mark.parametrize(
    ("displayed", "name"),
    [
        ("RTX 4090", "RTX4090"),
        ("RTX A6000", "RTXA6000"),
        ("RTX 6000 Ada", "RTX6000-Ada"),
        ("A100 PCIe", "A100-80GB"),
        ("A100 SXM", "A100-80GB-SXM"),
        ("H100 PCIe", "H100"),
        ("H100 NVL", "H100-NVL"),
        ("MI300X", "MI300X"),
        ("RTX PRO 6000", "RTX-PRO-6000"),
    ],
)
def test_runpod_names(tmp_path: Path, displayed: str, name: str) -> None:
    def answers(asked: Asked) -> object:
        text = json.dumps(runpod(asked))
        return text.replace("H100 SXM", displayed).encode()

    assert {row.accelerator for row in listing(PriceServer(answers), "runpod", tmp_path).rows} == {name}


def test_runpod_only_missing_data_centres_are_asked_after_an_interruption(tmp_path: Path) -> None:
    down = True

    def answers(asked: Asked) -> object:
        return web.Response(status=502) if down and "US-TX-3" in asked.body else runpod(asked)

    server = PriceServer(answers)
    with pytest.raises(ProviderUnavailable):
        listing(server, "runpod", tmp_path)
    down = False
    server.asked.clear()
    assert len(listing(server, "runpod", tmp_path).rows) == 6
    assert not [asked for asked in server.asked if "EU-RO-1" in asked.body]


def test_runpod_says_no_in_graphql(tmp_path: Path) -> None:
    server = PriceServer(lambda asked: {"errors": [{"message": "Cannot query field"}]})
    with pytest.raises(CatalogError, match="Cannot query field"):
        listing(server, "runpod", tmp_path)
    with pytest.raises(CredentialsRejected):
        listing(server, "runpod", tmp_path, keys=Credentials())
