"""A whole refresh: what is used afterwards, what is left alone, what is resumed, and what the user is told."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path

import pytest
from aiohttp import web
from tests.catalog.refresh_servers import (
    Asked,
    PriceServer,
    QuickClock,
    Watcher,
    known_row,
    rows_in_use,
    serving,
)

from skyserve.catalog import snapshot
from skyserve.catalog.refresh.checkpoint import MAX_AGE_S, Checkpoint
from skyserve.catalog.refresh.credentials import AwsAccess, Credentials
from skyserve.catalog.refresh.feed import Progress
from skyserve.catalog.refresh.gcp_skus import GcpPage, GcpPrice, Part
from skyserve.catalog.refresh.run import CLOUDS, Outcome, askable, refresh
from skyserve.catalog.row import Row, Source
from skyserve.errors import CatalogError, CredentialsRejected, ProviderUnavailable, UsageError

OLD = Source("old", "Prices of old")
SIZES = ("Standard_D2s_v3", "Standard_D4s_v3")
REGIONS = ("eastus", "westeurope", "japaneast")
PRICES = "/api/retail/prices"


def azure(asked: Asked) -> object:
    wanted = asked.query["$filter"]
    regions = [name for name in REGIONS if f"'{name}'" in wanted] or REGIONS
    items = [
        {
            "currencyCode": "USD",
            "retailPrice": 0.25,
            "armRegionName": region,
            "armSkuName": size,
            "meterName": size,
            "productName": "Virtual Machines",
            "skuName": size,
            "unitOfMeasure": "1 Hour",
            "effectiveStartDate": "2025-01-01T00:00:00Z",
        }
        for region in regions
        for size in SIZES
    ]
    return {"Items": items, "NextPageLink": None}


def lambda_cloud(asked: Asked) -> object:
    specs = {"vcpus": 4, "memory_gib": 16, "gpus": 0}
    kind = {"price_cents_per_hour": 20, "gpu_description": "N/A", "specs": specs}
    return {"data": {"cpu_4x": {"instance_type": kind, "regions_with_capacity_available": [{"name": "us-west-1"}]}}}


def both(asked: Asked) -> object:
    return azure(asked) if asked.path == PRICES else lambda_cloud(asked)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    old = [known_row("azure", size, "eastus") for size in SIZES]
    snapshot.write_cloud(tmp_path, "azure", old, OLD)
    return tmp_path


def run(
    home: Path,
    server: PriceServer,
    *clouds: str,
    clock: QuickClock | None = None,
    watcher: Watcher | None = None,
) -> Mapping[str, Outcome]:
    async def main() -> Mapping[str, Outcome]:
        async with serving(server) as url:
            return await refresh(
                home,
                clouds,
                credentials=Credentials(lambda_api_key="hush"),
                base_urls={"azure": f"{url}/", "lambda": url},
                clock=clock or QuickClock(),
                progress=watcher or Watcher(),
            )

    return asyncio.run(main())


def prices(home: Path, cloud: str) -> dict[tuple[str, str], float | None]:
    return {(row.region, row.instance_type): row.price_per_hour for row in rows_in_use(home, cloud)}


def test_new_prices_are_in_use_and_nothing_is_left_behind(home: Path) -> None:
    watcher = Watcher()
    outcomes = run(home, PriceServer(both), "azure", "lambda", watcher=watcher)
    assert {cloud: (outcome.rows, outcome.error) for cloud, outcome in outcomes.items()} == {
        "azure": (6, None),
        "lambda": (1, None),
    }
    assert prices(home, "azure") == {(region, size): 0.25 for region in REGIONS for size in SIZES}
    assert prices(home, "lambda") == {("us-west-1", "cpu_4x"): 0.2}
    assert not list((home / "catalog" / ".refresh").rglob("*.json"))
    seen = [(step.done, step.total) for step in watcher.seen if step.cloud == "azure"]
    assert seen == [(0, None), (0, 3), (1, 3), (2, 3), (3, 3)]


def test_a_cloud_that_fails_keeps_its_prices_and_hinders_no_other(home: Path) -> None:
    before = rows_in_use(home, "azure")
    server = PriceServer(both, {PRICES: ["malformed"]})
    outcomes = run(home, server, "azure", "lambda")
    assert isinstance(outcomes["azure"].error, CatalogError)
    assert outcomes["azure"].error.hint
    assert outcomes["lambda"].error is None
    assert rows_in_use(home, "azure") == before


def test_nothing_shows_before_the_cloud_is_complete_and_the_rest_is_resumed(home: Path) -> None:
    down = True

    def answers(asked: Asked) -> object:
        return web.Response(status=503) if down and "'japaneast'" in asked.query["$filter"] else azure(asked)

    before = rows_in_use(home, "azure")
    server, clock = PriceServer(answers), QuickClock()
    failed = run(home, server, "azure", clock=clock)["azure"]
    assert isinstance(failed.error, ProviderUnavailable)
    assert rows_in_use(home, "azure") == before

    down = False
    server.asked.clear()
    resumed = run(home, server, "azure", clock=clock)["azure"]
    assert (resumed.rows, resumed.resumed, resumed.error) == (6, 2, None)
    assert len(server.asked) == 2, "which regions there are, and the one that was missing"


def test_ctrl_c_loses_nothing_that_was_fetched(home: Path) -> None:
    def answers(asked: Asked) -> object:
        return web.Response(status=503) if "'westeurope'" in asked.query["$filter"] else azure(asked)

    class Patient(QuickClock):
        async def sleep(self, seconds: float) -> None:
            await asyncio.Event().wait()

    async def main() -> None:
        others_done = asyncio.Event()

        def watch(step: Progress) -> None:
            if step.done == 2:
                others_done.set()

        async with serving(PriceServer(answers)) as url:
            urls = {"azure": f"{url}/"}
            work = refresh(home, ["azure"], credentials=Credentials(), base_urls=urls, clock=Patient(), progress=watch)
            task = asyncio.create_task(work)
            await others_done.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(asyncio.wait_for(main(), 20))
    server = PriceServer(both)
    assert run(home, server, "azure")["azure"].resumed == 2
    assert len(server.asked) == 2


def test_what_was_fetched_long_ago_is_fetched_again(home: Path) -> None:
    faults = [web.Response(status=404)]
    server = PriceServer(
        lambda asked: faults[0] if faults and "'japaneast'" in asked.query["$filter"] else azure(asked)
    )
    clock = QuickClock()
    assert run(home, server, "azure", clock=clock)["azure"].error
    faults.clear()
    clock.at += MAX_AGE_S + 1
    assert run(home, server, "azure", clock=clock)["azure"].resumed == 0


def test_a_list_that_lost_most_of_its_machines_is_not_believed(tmp_path: Path) -> None:
    many = [known_row("azure", name, "eastus") for name in (*SIZES, "a", "b", "c")]
    snapshot.write_cloud(tmp_path, "azure", many, OLD)
    outcome = run(tmp_path, PriceServer(both), "azure")["azure"]
    assert isinstance(outcome.error, CatalogError)
    assert len(rows_in_use(tmp_path, "azure")) == 5


def test_prices_behind_a_catalog_of_ones_own_are_fetched_but_said_not_to_be_in_use(home: Path, tmp_path: Path) -> None:
    own = tmp_path / "own.csv"
    own.write_text("cloud,InstanceType,vCPUs,MemoryGiB,Region,Price\nlambda,mine,4,16,here,1.0\n")
    snapshot.use(own, home)
    outcome = run(home, PriceServer(both), "lambda")["lambda"]
    assert outcome.error is None
    assert any("not in use" in note for note in outcome.notes)
    assert prices(home, "lambda") == {("here", "mine"): 1.0}


def test_damaged_prices_are_replaced(home: Path) -> None:
    (archive,) = (home / "catalog" / "refreshed").glob("azure-*.catalog")
    archive.write_bytes(archive.read_bytes()[:-5])
    with pytest.raises(CatalogError):
        snapshot.current(home)
    assert run(home, PriceServer(both), "lambda")["lambda"].error is None
    assert prices(home, "lambda") == {("us-west-1", "cpu_4x"): 0.2}


def test_a_missing_key_is_told_with_the_way_to_get_one(home: Path) -> None:
    outcomes = asyncio.run(refresh(home, ["gcp"], credentials=Credentials(), clock=QuickClock(), progress=Watcher()))
    assert isinstance(outcomes["gcp"].error, CredentialsRejected)
    assert outcomes["gcp"].error.hint


def test_a_cloud_that_nobody_knows(home: Path) -> None:
    with pytest.raises(UsageError, match="nimbus"):
        asyncio.run(refresh(home, ["nimbus"], credentials=Credentials(), clock=QuickClock(), progress=Watcher()))


@pytest.mark.parametrize("address", ["ftp://here", "here", "http://here:port", "https://"])
def test_an_address_that_is_none(home: Path, address: str) -> None:
    work = refresh(
        home,
        ["azure"],
        credentials=Credentials(),
        base_urls={"azure": address},
        clock=QuickClock(),
        progress=Watcher(),
    )
    with pytest.raises(UsageError, match="the address for azure is none"):
        asyncio.run(work)


def test_credentials_come_from_the_variables_that_tools_read() -> None:
    keys = Credentials.from_environ(
        {
            "AWS_ACCESS_KEY_ID": "AKIAHUSH",
            "AWS_SECRET_ACCESS_KEY": "hush",
            "GOOGLE_API_KEY": "hush",
            "RUNPOD_API_KEY": " ",
        }
    )
    assert keys == Credentials(aws=AwsAccess("AKIAHUSH", "hush"), gcp_api_key="hush")
    assert "hush" not in repr(keys).lower()
    assert askable(keys) == ("aws", "azure", "gcp")
    assert Credentials.from_environ({"AWS_ACCESS_KEY_ID": "half"}).aws is None
    assert askable(Credentials(None, "a", "b", "c")) == CLOUDS


def test_a_checkpoint_gives_back_only_what_it_can_vouch_for(tmp_path: Path) -> None:
    clock = QuickClock()
    part = GcpPage((GcpPrice(Part.CORE, "n2", True, ("here",), 0.5),), "next")
    checkpoint = Checkpoint(tmp_path / "parts", clock)
    assert checkpoint.load("a", GcpPage) is None
    checkpoint.save("a", part)
    assert Checkpoint(tmp_path / "parts", clock).load("a", GcpPage) == part
    (file,) = (tmp_path / "parts").iterdir()
    whole = file.read_text()
    for spoiled in (whole[:-4], "", json.dumps([1]), whole.replace('"key":"a"', '"key":"b"')):
        file.write_text(spoiled)
        assert checkpoint.load("a", GcpPage) is None
    file.write_text(whole)
    clock.at -= 60
    assert checkpoint.load("a", GcpPage) is None, "saved in the future: the clock was set back"
    checkpoint.clear()
    assert not (tmp_path / "parts").exists()


def test_a_full_disk_is_told() -> None:
    checkpoint = Checkpoint(Path("/dev/null/parts"), QuickClock())
    with pytest.raises(CatalogError, match="cannot write") as caught:
        checkpoint.save("a", GcpPage((), ""))
    assert caught.value.hint


def test_a_row_that_no_catalog_may_have_changes_nothing(home: Path) -> None:
    def answers(asked: Asked) -> object:
        text = json.dumps(both(asked))
        return text.replace('"memory_gib": 16', '"memory_gib": -1').encode()

    before: list[Row] = rows_in_use(home, "lambda")
    assert isinstance(run(home, PriceServer(answers), "lambda")["lambda"].error, CatalogError)
    assert rows_in_use(home, "lambda") == before
