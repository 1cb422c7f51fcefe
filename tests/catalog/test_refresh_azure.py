"""Azure: pages of meters, what is no price of ours among them, and what rows come of the rest."""

from __future__ import annotations

import asyncio
import re
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

from skyserve.catalog.refresh.azure import AzureFeed
from skyserve.catalog.refresh.checkpoint import Checkpoint
from skyserve.catalog.refresh.feed import Listing
from skyserve.catalog.row import Row
from skyserve.errors import CatalogError, ProviderUnavailable

H100 = "Standard_NC40ads_H100_v5"
KNOWN = (
    known_row("azure", "Standard_D2s_v3", "eastus", vcpus=2, memory_gib=8),
    known_row("azure", H100, "eastus", accelerator="H100", accelerator_count=1, accelerator_memory_gib=94),
)
REGIONS = ("eastus", "westeurope")


def meter(size: str, region: str, price: float, **others: object) -> dict[str, object]:
    item: dict[str, object] = {
        "currencyCode": "USD",
        "tierMinimumUnits": 0.0,
        "retailPrice": price,
        "unitPrice": price,
        "armRegionName": region,
        "effectiveStartDate": "2025-01-01T00:00:00Z",
        "meterName": size.removeprefix("Standard_"),
        "productName": "Virtual Machines Series",
        "skuName": size,
        "serviceName": "Virtual Machines",
        "unitOfMeasure": "1 Hour",
        "type": "Consumption",
        "armSkuName": size,
    }
    return item | others


def meters(region: str) -> list[dict[str, object]]:
    return [
        meter("Standard_D2s_v3", region, 0.096),
        meter("Standard_D2s_v3", region, 0.0192, meterName="D2s v3 Spot"),
        meter("Standard_D2s_v3", region, 0.0100, meterName="D2s v3 Low Priority"),
        meter("Standard_D2s_v3", region, 0.188, productName="Virtual Machines Dsv3 Series Windows"),
        meter("Standard_D2s_v3", region, 70.0, unitOfMeasure="1/Month"),
        meter("", region, 1.0),
        meter(H100, region, 6.98),
        meter(H100, region, 6.98, meterName="NC40ads H100 v5 Spot"),
        meter("Standard_NC999_v9", region, 50.0),
        meter("Standard_Z2_v9", region, 0.1),
    ]


class Azure:
    """Regions in pages of `size` meters, linked as the real API links them."""

    def __init__(self, size: int = 4) -> None:
        self.size = size

    def __call__(self, asked: Asked) -> object:
        wanted = asked.query["$filter"]
        region = re.search(r"armRegionName eq '(\w+)'", wanted)
        if region:
            items = meters(region[1])
        else:
            items = [item for name in REGIONS for item in meters(name) if item["armSkuName"] == "Standard_D2s_v3"]
        skip = int(asked.query.get("$skip", 0))
        rest = f"https://prices.azure.com:443/api/retail/prices?$filter={wanted}&$skip={skip + self.size}"
        more = skip + self.size < len(items)
        page = items[skip : skip + self.size]
        return {"BillingCurrency": "USD", "Items": page, "NextPageLink": rest if more else None, "Count": len(page)}


def listing(server: PriceServer, tmp_path: Path, known: tuple[Row, ...] = KNOWN) -> Listing:
    async def run() -> Listing:
        async with setting_for(server, "azure", known) as setting:
            checkpoint = Checkpoint(tmp_path / "parts", QuickClock())
            return await AzureFeed(setting).listing(silent_steps("azure"), checkpoint)

    return asyncio.run(run())


def test_rows_of_all_pages_and_regions(tmp_path: Path) -> None:
    server = PriceServer(Azure())
    found = listing(server, tmp_path)
    prices = {(row.region, row.instance_type): (row.price_per_hour, row.spot_price_per_hour) for row in found.rows}
    expected = {"Standard_D2s_v3": (0.096, 0.0192), H100: (6.98, None)}
    assert prices == {(region, size): price for region in REGIONS for size, price in expected.items()}
    hardware = {row.instance_type: (row.vcpus, row.accelerator, row.accelerator_memory_gib) for row in found.rows}
    assert hardware == {"Standard_D2s_v3": (2, None, None), H100: (4, "H100", 94)}
    assert len(server.asked) == 3 + 3 + 3, "links were followed, to this server and no other"
    assert {asked.query["currencyCode"] for asked in server.asked} == {"USD"}


def test_sizes_of_unknown_hardware_are_told(tmp_path: Path) -> None:
    notes = listing(PriceServer(Azure()), tmp_path).notes
    assert any("Standard_NC999_v9" in note for note in notes)
    assert any("1 sizes without GPU" in note for note in notes)


def test_the_price_in_force_is_the_one_that_began_last(tmp_path: Path) -> None:
    def answers(asked: Asked) -> object:
        new = meter("Standard_D2s_v3", "eastus", 0.09, effectiveStartDate="2026-06-01T00:00:00Z")
        old = meter("Standard_D2s_v3", "eastus", 0.08)
        return {"Items": [new, old], "NextPageLink": ""}

    (row,) = listing(PriceServer(answers), tmp_path).rows
    assert row.price_per_hour == 0.09


def test_only_missing_regions_are_fetched_after_an_interruption(tmp_path: Path) -> None:
    azure = Azure(size=100)
    down = True

    def answers(asked: Asked) -> object:
        if down and "'westeurope'" in asked.query["$filter"]:
            return web.Response(status=503)
        return azure(asked)

    server = PriceServer(answers)
    with pytest.raises(ProviderUnavailable):
        listing(server, tmp_path)
    down = False
    server.asked.clear()
    assert len(listing(server, tmp_path).rows) == 4
    assert not [asked for asked in server.asked if "'eastus'" in asked.query["$filter"]]


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        ({"Items": [meter("Standard_D2s_v3", "eastus", 1.0, currencyCode="EUR")], "NextPageLink": None}, "currency"),
        ({"Items": [], "NextPageLink": None}, "names no region"),
        ({"Items": [meter("Standard_D2s_v3", "eastus", 1.0, retailPrice="free")]}, r"Items\[0\].retailPrice"),
        ({"Error": "?"}, r"Items should be an array, and is null"),
    ],
)
def test_answers_of_another_shape(tmp_path: Path, answer: object, problem: str) -> None:
    with pytest.raises(CatalogError, match=problem):
        listing(PriceServer(lambda asked: answer), tmp_path)
