"""The prices that ship: what they hold, what they must not hold, and that they are what the script makes."""

from __future__ import annotations

import runpy
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.catalog.pricing import accelerated, choice

from skyserve.catalog import snapshot
from skyserve.catalog.query import Constraint, feasible, prices, relax
from skyserve.catalog.row import Row
from skyserve.catalog.table import Table
from skyserve.model import accelerators
from skyserve.model.resources import Resources

SCRIPT = Path(__file__).parents[2] / "scripts" / "compile_catalog.py"
LARGEST_KIB = 1500


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Table:
    return snapshot.current(tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="module")
def rows(table: Table) -> list[Row]:
    return list(table.rows())


def of(rows: list[Row], cloud: str, instance_type: str) -> Iterator[Row]:
    return (row for row in rows if (row.cloud, row.instance_type) == (cloud, instance_type))


def test_it_is_small() -> None:
    assert sum(path.stat().st_size for path in snapshot.BUILT_IN.iterdir()) < LARGEST_KIB * 1024


def test_every_cloud_says_how_old_its_prices_are_and_whence(tmp_path: Path) -> None:
    for status in snapshot.status(tmp_path):
        summary = status.summary
        assert "2020" < summary.first_date <= summary.last_date < "2100", summary.cloud
        assert all(source.title and source.url.startswith("https://") for source in summary.sources)
        assert summary.rows > 300
        assert len(summary.accelerators) >= 9
        assert len(summary.regions) >= 14


def test_accelerators_have_their_canonical_names(table: Table) -> None:
    assert {name for name in table.accelerators() if accelerators.canonical(name) != name} == set()
    assert set(table.accelerators()) <= set(accelerators.NAMES)


def test_rows_are_plausible(rows: list[Row]) -> None:
    for row in rows:
        assert 0 < row.vcpus <= 1000
        assert 0 < row.memory_gib <= 32768
        assert row.price_per_hour is None or 0 < row.price_per_hour < 500
        if row.price_per_hour and row.spot_price_per_hour:
            assert row.spot_price_per_hour <= row.price_per_hour, row
        assert (row.accelerator_memory_gib is None) == (row.accelerator is None)


def test_what_is_no_offer_is_no_row(rows: list[Row]) -> None:
    assert not [row for row in rows if row.cloud == "aws" and row.region.startswith("cn-")], "no dollars"
    assert not list(of(rows, "azure", "Standard_ND96asr_A100_v4")), "a second name"
    assert all(row.price_per_hour is None for row in of(rows, "gcp", "a3-highgpu-1g")), "spot only"
    assert all(row.spot_price_per_hour is None for row in of(rows, "aws", "p5.48xlarge")), "known to be wrong"
    assert all(row.spot_price_per_hour is None for row in rows if row.cloud == "lambda"), "Lambda has no spot"
    azure_h100 = of(rows, "azure", "Standard_ND96isr_H100_v5")
    assert all((row.spot_price_per_hour or 0) < (row.price_per_hour or 0) for row in azure_h100)


def test_google_attaches_gpus_to_n1(rows: list[Row]) -> None:
    t4 = [row for row in of(rows, "gcp", "n1-standard-4") if row.accelerator == "T4"]
    assert {row.accelerator_count for row in t4} == {1.0}
    assert {row.zone for row in t4 if row.region == "us-central1"} >= {"us-central1-a", "us-central1-b"}
    central = next(row for row in t4 if row.region == "us-central1")
    assert central.price_per_hour == pytest.approx(0.54, abs=0.01)
    carried = {(row.accelerator, row.accelerator_count) for row in rows if row.instance_type == "n1-standard-96"}
    assert carried == {(None, 0.0), ("T4", 4.0), ("P4", 4.0), ("V100", 8.0)}


@pytest.mark.parametrize(
    "asked", ["L4", "L4:8", "A10G:1", "A100:8", "A100-80GB:8", "H100:8", "H200:8", "T4:4", "V100:8"]
)
def test_common_requests_have_answers(table: Table, asked: str) -> None:
    assert feasible(table, choice(accelerated(asked))).offerings
    assert prices(table, *asked.split(":")[:1], None, None, None, all_regions=False)


def test_small_machines_for_controllers_on_every_large_cloud(table: Table) -> None:
    found = feasible(table, choice(Resources())).offerings
    assert {offering.provider for _, offering in found} == {"aws", "azure", "gcp"}
    assert found[0][1].price_per_hour < 0.5


def test_what_is_in_the_way(table: Table) -> None:
    found = relax(table, choice(Resources(accelerators=accelerated("H100:8").accelerators, max_hourly_cost=1.0)))
    assert found is not None
    assert found.constraint is Constraint.MAX_HOURLY_COST


def test_it_is_what_the_script_makes(price_lists: Path, rows: list[Row], tmp_path: Path) -> None:
    script = runpy.run_path(str(SCRIPT))
    for folder in ("once", "again"):
        assert script["main"]([str(price_lists), str(tmp_path / folder)]) == 0
    made = {path.name: path.read_bytes() for path in (tmp_path / "once").iterdir()}
    assert made == {path.name: path.read_bytes() for path in (tmp_path / "again").iterdir()}
    compiled = [row for found in script["compile_rows"](price_lists).values() for row in found]
    assert list(Table.of(compiled).rows()) == rows, "run: python scripts/compile_catalog.py SOURCE_DIR"
