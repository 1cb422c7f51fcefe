"""GCP: what SKUs mean, how they add up to machines, and where machines count as offered."""

from __future__ import annotations

import asyncio
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

from skyserve.catalog.refresh.answer import Answer
from skyserve.catalog.refresh.checkpoint import Checkpoint
from skyserve.catalog.refresh.credentials import Credentials
from skyserve.catalog.refresh.feed import Listing
from skyserve.catalog.refresh.gcp import GcpFeed
from skyserve.catalog.refresh.gcp_skus import Part, read_page
from skyserve.catalog.row import Row
from skyserve.errors import CatalogError, CredentialsRejected, ProviderUnavailable

L4 = {"accelerator": "L4", "accelerator_count": 1, "accelerator_memory_gib": 24}
A100 = {"accelerator": "A100-80GB", "accelerator_count": 1, "accelerator_memory_gib": 80}


def sku(
    description: str,
    dollars: float,
    *regions: str,
    family: str = "Compute",
    usage: str = "OnDemand",
) -> dict[str, object]:
    units = int(dollars)
    rate = {"currencyCode": "USD", "units": str(units), "nanos": round((dollars - units) * 1e9)}
    free = {"startUsageAmount": 0, "unitPrice": {"currencyCode": "USD", "units": "0", "nanos": 0}}
    return {
        "skuId": "1234-5678",
        "description": description,
        "category": {"resourceFamily": family, "resourceGroup": "CPU", "usageType": usage},
        "serviceRegions": list(regions or ("us-central1",)),
        "pricingInfo": [{"pricingExpression": {"tieredRates": [free, {"startUsageAmount": 1, "unitPrice": rate}]}}],
    }


PAGES = {
    "": [
        sku("G2 Instance Core running in Americas", 0.025, "us-central1", "us-east1", "moon-west1"),
        sku("G2 Instance Ram running in Americas", 0.003, "us-central1", "us-east1", "moon-west1"),
        sku("Nvidia L4 GPU running in Americas", 0.56, "us-central1", "us-east1", "moon-west1"),
        sku("G2 Custom Instance Core running in Americas", 9.0),
    ],
    "two": [
        sku("Spot Preemptible G2 Instance Core running in Americas", 0.01, usage="Preemptible"),
        sku("Spot Preemptible G2 Instance Ram running in Americas", 0.001, usage="Preemptible"),
        sku("Nvidia L4 GPU attached to Spot Preemptible VMs running in Americas", 0.22, usage="Preemptible"),
    ],
    "three": [
        sku("A2 Instance Core running in Americas", 0.03),
        sku("A2 Instance Ram running in Americas", 0.004),
        sku("Nvidia Tesla A100 80GB GPU running in Americas", 3.9),
        sku("SSD backed Local Storage", 0.08, family="Storage"),
        sku("A4 Nvidia B200 (1 gpu slice) running in Americas", 10.0),
        sku("Network Internet Egress", 0.1, family="Network"),
        sku("N2 Instance Core commitment", 0.1, usage="Commit1Yr"),
    ],
}
NEXT = {"": "two", "two": "three", "three": ""}


def gcp(asked: Asked) -> object:
    token = asked.query.get("pageToken", "")
    return {"skus": PAGES[token], "nextPageToken": NEXT[token]}


def listing(server: PriceServer, tmp_path: Path, known: tuple[Row, ...] = (), key: str | None = "hush") -> Listing:
    async def run() -> Listing:
        async with setting_for(server, "gcp", known) as setting:
            checkpoint = Checkpoint(tmp_path / "parts", QuickClock())
            feed = GcpFeed(replace(setting, credentials=Credentials(gcp_api_key=key)))
            return await feed.listing(silent_steps("gcp"), checkpoint)

    return asyncio.run(run())


@pytest.mark.parametrize(
    ("description", "meaning"),
    [
        ("N1 Predefined Instance Core running in Montreal", (Part.CORE, "n1")),
        ("N2D AMD Instance Ram running in Paris", (Part.MEMORY, "n2d")),
        ("C4A Arm Instance Core running in Iowa", (Part.CORE, "c4a")),
        ("Compute optimized Core running in Japan", (Part.CORE, "c2")),
        ("Memory-optimized Instance Ram running in Japan", (Part.MEMORY, "m1")),
        ("M3 Memory-optimized Instance Ram running in Tokyo", (Part.MEMORY, "m3")),
        ("A3Plus Instance Core running in Tokyo", (Part.CORE, "a3-megagpu")),
        ("Nvidia Tesla T4 GPU running in Seoul", (Part.GPU, "T4")),
        ("Nvidia Tesla A100 GPU running in Seoul", (Part.GPU, "A100")),
        ("Nvidia H100 80GB GPU running in Seoul", (Part.GPU, "H100")),
        ("Nvidia H100 80GB Mega GPU running in Seoul", (Part.GPU, "H100-MEGA")),
        ("A4 Nvidia B200 (1 gpu slice) running in Iowa", (Part.SLICE, "B200")),
        ("N2 Instance Core Sole Tenancy running in Iowa", None),
        ("DWS Calendar Mode A4 Nvidia B200 (1 gpu slice) running in Iowa", None),
        ("Micro Instance with burstable CPU running in Iowa", None),
    ],
)
def test_what_skus_mean(description: str, meaning: tuple[Part, str] | None) -> None:
    page = read_page(Answer({"skus": [sku(description, 1.5)], "nextPageToken": ""}, "page"))
    assert [(price.part, price.of) for price in page.prices] == ([meaning] if meaning else [])
    assert all(price.price_per_hour == 1.5 for price in page.prices)


def test_machines_are_sums_of_their_parts(tmp_path: Path) -> None:
    known = (
        known_row("gcp", "g2-standard-8", "us-central1", zone="us-central1-a", vcpus=8, memory_gib=32, **L4),
        known_row("gcp", "g2-standard-8", "us-east1", vcpus=8, memory_gib=32, **L4),
        known_row(
            "gcp",
            "a2-ultragpu-1g",
            "us-central1",
            vcpus=12,
            memory_gib=170,
            accelerator="A100-80GB",
            accelerator_count=1,
        ),
        known_row("gcp", "a4-highgpu-8g", "us-central1", vcpus=224, accelerator="B200", accelerator_count=8),
    )
    server = PriceServer(gcp)
    found = {(row.instance_type, row.region): row for row in listing(server, tmp_path, known).rows}
    here, there = found["g2-standard-8", "us-central1"], found["g2-standard-8", "us-east1"]
    assert here.price_per_hour == pytest.approx(8 * 0.025 + 32 * 0.003 + 0.56)
    assert here.spot_price_per_hour == pytest.approx(8 * 0.01 + 32 * 0.001 + 0.22)
    assert here.zone == "us-central1-a"
    assert there.spot_price_per_hour is None
    disk = 375 * 0.08 / 730
    expected = 12 * 0.03 + 170 * 0.004 + 3.9 + disk
    assert found["a2-ultragpu-1g", "us-central1"].price_per_hour == pytest.approx(expected, abs=1e-6)
    assert found["a4-highgpu-8g", "us-central1"].price_per_hour == 80
    assert all(asked.headers["X-Goog-Api-Key"] == "hush" for asked in server.asked)
    assert not any("hush" in str(asked.query) for asked in server.asked)


def test_only_what_was_offered_somewhere_is_offered_there(tmp_path: Path) -> None:
    known = (
        known_row("gcp", "g2-standard-8", "us-central1", vcpus=8, memory_gib=32, **L4),
        known_row("gcp", "n4-standard-2", "us-east1"),
    )
    found = listing(PriceServer(gcp), tmp_path, known)
    assert {row.region for row in found.rows} == {"us-central1", "moon-west1"}
    assert any("moon-west1" in note for note in found.notes)


def test_what_no_sum_gives_stays_as_it_was(tmp_path: Path) -> None:
    known = (
        known_row("gcp", "c3-standard-4-lssd", "us-central1"),
        known_row("gcp", "f1-micro", "atlantis-south1"),
        known_row("gcp", "g2-standard-8", "us-central1", vcpus=8, memory_gib=32, **L4),
    )
    found = listing(PriceServer(gcp), tmp_path, known)
    kept = [row for row in found.rows if row.source == "old"]
    assert kept == [known[0]]
    assert any(note.startswith("1 prices stay as they were") for note in found.notes)


def test_without_any_known_row_common_machines_are_looked_for(tmp_path: Path) -> None:
    rows = {(row.instance_type, row.region) for row in listing(PriceServer(gcp), tmp_path).rows}
    assert {("g2-standard-96", "us-east1"), ("a2-ultragpu-8g", "us-central1"), ("a4-highgpu-8g", "us-central1")} <= rows


def test_a_key_is_needed(tmp_path: Path) -> None:
    with pytest.raises(CredentialsRejected) as caught:
        listing(PriceServer(gcp), tmp_path, key=None)
    assert "GOOGLE_API_KEY" in (caught.value.hint or "")


def test_only_missing_pages_are_fetched_after_an_interruption(tmp_path: Path) -> None:
    down = True

    def answers(asked: Asked) -> object:
        if down and asked.query.get("pageToken") == "three":
            return web.Response(status=500)
        return gcp(asked)

    server = PriceServer(answers)
    with pytest.raises(ProviderUnavailable):
        listing(server, tmp_path)
    down = False
    server.asked.clear()
    assert listing(server, tmp_path).rows
    assert [asked.query.get("pageToken", "") for asked in server.asked] == ["three"]


def test_when_a_page_token_has_expired_all_pages_are_fetched_anew(tmp_path: Path) -> None:
    path = "/v1/services/6F81-5844-456A/skus"
    fine = {"skus": PAGES[""], "nextPageToken": "stale"}
    with pytest.raises(CatalogError):
        listing(PriceServer(lambda asked: web.Response(status=400) if asked.query.get("pageToken") else fine), tmp_path)
    server = PriceServer(gcp, {path: [web.Response(status=400, text="page token expired")]})
    assert listing(server, tmp_path).rows
    assert [asked.query.get("pageToken", "") for asked in server.asked] == ["stale", "", "two", "three"]
