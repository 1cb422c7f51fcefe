"""AWS: price files as they stream by, the advisor, spot prices of an account, and what rows come of it."""

from __future__ import annotations

import asyncio
import csv
import io
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from aiohttp import web
from tests.catalog.refresh_servers import (
    NOW,
    TODAY,
    Asked,
    PriceServer,
    QuickClock,
    known_row,
    setting_for,
    silent_steps,
)

from skyserve.catalog.refresh.answer import Json
from skyserve.catalog.refresh.aws import AwsFeed
from skyserve.catalog.refresh.aws_prices import AwsRegion, read_price_file
from skyserve.catalog.refresh.aws_spot import ClientFactory, Ec2Client, SpotRefusedError, boto_clients, read_spot_prices
from skyserve.catalog.refresh.checkpoint import Checkpoint
from skyserve.catalog.refresh.credentials import AwsAccess, Credentials
from skyserve.catalog.refresh.feed import Listing
from skyserve.catalog.refresh.web import BrokenOffError
from skyserve.catalog.row import Row
from skyserve.errors import CatalogError, ProviderUnavailable

PREAMBLE = [
    ["FormatVersion", "v1.0"],
    ["Disclaimer", "This pricing list is for informational purposes only."],
    ["Publication Date", "2026-11-20T18:00:00Z"],
    ["Version", "20261120180000"],
    ["OfferCode", "AmazonEC2"],
]
LINE = {
    "SKU": "ABC",
    "TermType": "OnDemand",
    "Unit": "Hrs",
    "PricePerUnit": "0.1920000000",
    "Currency": "USD",
    "Instance Type": "m5.xlarge",
    "vCPU": "4",
    "Physical Processor": "Intel Xeon Platinum 8175",
    "Memory": "16 GiB",
    "Tenancy": "Shared",
    "Operating System": "Linux",
    "CapacityStatus": "Used",
    "GPU": "",
    "operation": "RunInstances",
    "Pre Installed S/W": "NA",
    "Region Code": "us-east-1",
    "MarketOption": "OnDemand",
}
GPU = {
    "Instance Type": "g6.12xlarge",
    "vCPU": "48",
    "Memory": "192 GiB",
    "GPU": "4",
    "PricePerUnit": "4.6016000000",
}


def price_file(*lines: dict[str, str], columns: list[str] | None = None) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, quoting=csv.QUOTE_ALL, lineterminator="\n")
    names = columns or list(LINE)
    writer.writerows([*PREAMBLE, names])
    writer.writerows([[{**LINE, **line}.get(name, "") for name in names] for line in lines])
    return text.getvalue().encode()


def read(data: bytes, chunk: int = 100) -> AwsRegion:
    async def chunks() -> AsyncIterator[bytes]:
        for start in range(0, len(data), chunk):
            yield data[start : start + chunk]

    return asyncio.run(read_price_file(chunks(), "us-east-1"))


def test_a_price_file_in_any_pieces() -> None:
    data = price_file({}, GPU)
    for chunk in (1, 7, 64, len(data)):
        small, large = sorted(read(data, chunk).offers, key=lambda offer: offer.price_per_hour)
        assert (small.instance_type, small.price_per_hour, small.vcpus, small.memory_gib) == ("m5.xlarge", 0.192, 4, 16)
        assert (large.instance_type, large.gpus) == ("g6.12xlarge", 4)


@pytest.mark.parametrize(
    "other",
    [
        {"Tenancy": "Dedicated"},
        {"Operating System": "Windows"},
        {"Pre Installed S/W": "SQL Std"},
        {"CapacityStatus": "UnusedCapacityReservation"},
        {"TermType": "Reserved"},
        {"MarketOption": "CapacityBlock"},
        {"Region Code": "us-east-1-bos-1"},
        {"Currency": "CNY"},
        {"PricePerUnit": "0.0000000000"},
        {"operation": "RunInstances:0010"},
    ],
)
def test_what_is_not_a_plain_linux_machine_is_passed_over(other: dict[str, str]) -> None:
    data = price_file({**other, "Instance Type": "other.large"}, {})
    assert [offer.instance_type for offer in read(data).offers] == ["m5.xlarge"]


def test_arm_machines_and_thousands() -> None:
    data = price_file({"Physical Processor": "AWS Graviton4 Processor", "Memory": "1,536 GiB"})
    (offer,) = read(data).offers
    assert (offer.arch, offer.memory_gib) == ("arm64", 1536)


def test_a_file_that_ends_in_mid_line_is_not_whole() -> None:
    data = price_file({}, GPU)
    for length in (len(data) - 20, 300):
        with pytest.raises(BrokenOffError):
            read(data[:length])
    assert read(data.removesuffix(b"\n")) == read(data)


def test_a_file_of_another_shape() -> None:
    with pytest.raises(CatalogError, match="lacks the columns GPU"):
        read(price_file({}, columns=[name for name in LINE if name != "GPU"]))
    with pytest.raises(CatalogError, match="no column names"):
        read(b"something, else\n" * 50)
    with pytest.raises(CatalogError, match="no Linux machine"):
        read(price_file({"Tenancy": "Host"}))
    with pytest.raises(CatalogError, match=r"odd at m5\.xlarge"):
        read(price_file({"vCPU": "four"}))


def aws(asked: Asked) -> object:
    """The price list of two regions and a local zone, and the advisor."""
    if asked.path.endswith("region_index.json"):
        names = ("us-east-1", "eu-west-1", "us-west-2-lax-1")
        return {"regions": {name: {"currentVersionUrl": f"/offers/2026/{name}/index.json"} for name in names}}
    if asked.path == "/spot-advisor-data.json":
        return {"ranges": [], "spot_advisor": {"us-east-1": {"Linux": {"m5.xlarge": {"s": 61, "r": 2}}, "Windows": {}}}}
    region = asked.path.split("/")[-2]
    return price_file({"Region Code": region}, {**GPU, "Region Code": region})


def listing(
    server: PriceServer,
    tmp_path: Path,
    known: tuple[Row, ...] = (),
    clients: ClientFactory | None = None,
    credentials: Credentials | None = None,
) -> Listing:
    async def run() -> Listing:
        async with setting_for(server, "aws", known) as setting:
            setting = replace(setting, credentials=credentials or Credentials())
            checkpoint = Checkpoint(tmp_path / "parts", QuickClock())
            return await AwsFeed(setting, clients).listing(silent_steps("aws"), checkpoint)

    return asyncio.run(run())


def test_rows_of_every_region(tmp_path: Path) -> None:
    server = PriceServer(aws)
    found = listing(server, tmp_path)
    rows = {(row.region, row.instance_type): row for row in found.rows}
    assert sorted({region for region, _ in rows}) == ["eu-west-1", "us-east-1"]
    gpu = rows["us-east-1", "g6.12xlarge"]
    assert (gpu.accelerator, gpu.accelerator_count, gpu.accelerator_memory_gib) == ("L4", 4, 24)
    assert (gpu.price_per_hour, gpu.spot_price_per_hour, gpu.zone) == (4.6016, None, None)
    assert (gpu.price_date, gpu.source) == (TODAY, "aws-price-list")
    assert rows["us-east-1", "m5.xlarge"].interruption_band == 2
    assert rows["eu-west-1", "m5.xlarge"].interruption_band is None
    assert any("no AWS credentials" in note for note in found.notes)
    assert "/offers/2026/us-west-2-lax-1/index.csv" not in server.paths


def test_names_of_accelerators_stay_what_they_were(tmp_path: Path) -> None:
    known = known_row("aws", "g6.12xlarge", "us-east-1", accelerator="L4-X", accelerator_count=4, zone="us-east-1a")
    rows = {(row.region, row.instance_type): row for row in listing(PriceServer(aws), tmp_path, (known,)).rows}
    assert rows["us-east-1", "g6.12xlarge"].accelerator == "L4-X"
    assert rows["us-east-1", "g6.12xlarge"].zone == "us-east-1a"
    assert rows["eu-west-1", "g6.12xlarge"].zone is None


def test_accelerators_that_nobody_knows_are_left_out_and_told(tmp_path: Path) -> None:
    def strange(asked: Asked) -> object:
        if not asked.path.endswith(".csv"):
            return aws(asked)
        region = asked.path.split("/")[-2]
        lines = [{}, {**GPU, "Instance Type": "p9.huge"}, {"Instance Type": "inf9.xlarge"}]
        return price_file(*[{**line, "Region Code": region} for line in lines])

    found = listing(PriceServer(strange), tmp_path)
    assert {row.instance_type for row in found.rows} == {"m5.xlarge"}
    assert any("inf9.xlarge, p9.huge" in note for note in found.notes)


def test_a_price_file_that_breaks_off_is_fetched_again(tmp_path: Path) -> None:
    path = "/offers/2026/eu-west-1/index.csv"
    server = PriceServer(aws, {path: ["truncated", web.Response(status=429)]})
    assert len(listing(server, tmp_path).rows) == 4
    assert server.paths.count(path) == 3


def test_only_missing_regions_are_fetched_after_an_interruption(tmp_path: Path) -> None:
    path = "/offers/2026/us-east-1/index.csv"
    server = PriceServer(aws, {path: [web.Response(status=500) for _ in range(5)]})
    with pytest.raises(ProviderUnavailable):
        listing(server, tmp_path)
    server.asked.clear()
    assert len(listing(server, tmp_path).rows) == 4
    assert [name for name in server.paths if not name.endswith("region_index.json")] == [path]


def test_without_the_advisor_bands_stay_what_they_were(tmp_path: Path) -> None:
    known = known_row("aws", "m5.xlarge", "us-east-1", interruption_band=4)
    server = PriceServer(aws, {"/spot-advisor-data.json": [web.Response(status=403)]})
    found = listing(server, tmp_path, (known,))
    bands = {(row.region, row.instance_type): row.interruption_band for row in found.rows}
    assert bands["us-east-1", "m5.xlarge"] == 4
    assert any("interruption bands are those of the last refresh" in note for note in found.notes)


class FakeEc2:
    """Answers as boto3's client does: two pages, newest prices first."""

    def __init__(self) -> None:
        self.asked: list[dict[str, object]] = []

    def describe_spot_price_history(self, **request: object) -> Json:
        self.asked.append(request)
        if "NextToken" not in request:
            return {"NextToken": "more", "SpotPriceHistory": [self.entry("us-east-1b", "0.0700")]}
        old = self.entry("us-east-1b", "0.0900")
        return {"NextToken": "", "SpotPriceHistory": [self.entry("us-east-1a", "0.0650"), old]}

    def entry(self, zone: str, price: str) -> dict[str, Json]:
        return {
            "AvailabilityZone": zone,
            "InstanceType": "m5.xlarge",
            "ProductDescription": "Linux/UNIX",
            "SpotPrice": price,
        }


def test_spot_prices_are_read_page_by_page() -> None:
    client = FakeEc2()
    found = asyncio.run(read_spot_prices(client, NOW))
    assert [(price.zone, price.price_per_hour) for price in found.prices] == [
        ("us-east-1a", 0.065),
        ("us-east-1b", 0.07),
    ]
    assert client.asked[0]["StartTime"] == datetime(2026, 11, 22, 12, tzinfo=UTC)
    assert client.asked[1]["NextToken"] == "more"


def test_spot_prices_are_those_of_zones(tmp_path: Path) -> None:
    def make(region: str) -> Ec2Client:
        if region != "us-east-1":
            raise SpotRefusedError("AuthFailure")
        return FakeEc2()

    found = listing(PriceServer(aws), tmp_path, clients=make)
    rows = [row for row in found.rows if row.instance_type == "m5.xlarge"]
    prices = {(row.region, row.zone): (row.price_per_hour, row.spot_price_per_hour) for row in rows}
    assert prices == {
        ("us-east-1", "us-east-1a"): (0.192, 0.065),
        ("us-east-1", "us-east-1b"): (0.192, 0.07),
        ("eu-west-1", None): (0.192, None),
    }
    assert any("eu-west-1 (AuthFailure)" in note for note in found.notes)


def test_without_boto3_there_are_no_spot_prices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "boto3", None)
    access = AwsAccess(access_key_id="AKIAHUSH", secret_access_key="hush")
    assert boto_clients(access) is None
    found = listing(PriceServer(aws), tmp_path, credentials=Credentials(aws=access))
    assert all(row.spot_price_per_hour is None for row in found.rows)
    assert any("boto3 is not installed" in note for note in found.notes)
    assert "hush" not in repr(access).lower()
