"""A cloud's rows as a file: nothing is lost, and nothing of a damaged file is used."""

from __future__ import annotations

import random

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from tests.catalog.pricing import catalogs, cpu_row, row

from skyserve.catalog.archive import Archive, pack, unpack
from skyserve.catalog.row import Row, Source
from skyserve.catalog.shelf import shelve
from skyserve.errors import CatalogError

SOURCE = Source("test", "made up")
ONE_CLOUD = catalogs.map(lambda rows: [one._replace(cloud="aws") for one in rows])
SAMPLE = pack("aws", [row(zone=zone, region=region) for zone in "abc" for region in "xyz"] + [cpu_row()], [SOURCE])


def rows_in(archive: Archive) -> list[Row]:
    shelves = [archive.shelf(name) for name in archive.accelerators]
    return [one for shelf in shelves if shelf for one in shelf.rows()]


@given(ONE_CLOUD)
def test_rows_come_back(rows: list[Row]) -> None:
    archive = unpack(pack("aws", rows, [SOURCE]), "aws")
    assert rows_in(archive) == [one for shelf in shelve(rows) for one in shelf.rows()]
    assert set(rows_in(archive)) <= set(rows)
    assert archive.summary.rows == len(rows_in(archive))


@given(ONE_CLOUD, st.randoms())
def test_the_same_rows_give_the_same_bytes(rows: list[Row], chance: random.Random) -> None:
    assert pack("aws", chance.sample(rows, len(rows)), [SOURCE]) == pack("aws", rows + rows, [SOURCE])


@given(st.integers(0, len(SAMPLE) - 1), st.integers(1, 255))
def test_a_changed_byte_is_refused(position: int, change: int) -> None:
    damaged = bytearray(SAMPLE)
    damaged[position] ^= change
    with pytest.raises(CatalogError):
        unpack(bytes(damaged), "aws")


@given(st.integers(0, len(SAMPLE) - 1), st.binary(max_size=40))
def test_a_file_cut_short_is_refused_whatever_follows(length: int, rest: bytes) -> None:
    assume(SAMPLE[:length] + rest != SAMPLE)
    with pytest.raises(CatalogError):
        unpack(SAMPLE[:length] + rest, "aws")


def test_a_summary_needs_no_unpacking() -> None:
    summary = unpack(SAMPLE, "aws").summary
    assert (summary.cloud, summary.rows, summary.accelerators) == ("aws", 10, ("L4",))
    assert summary.regions == ("us-east-1", "x", "y", "z")
    assert (summary.first_date, summary.last_date, summary.sources) == ("2026-01-02", "2026-01-02", (SOURCE,))


def test_the_lowest_of_two_prices_for_the_same_stays() -> None:
    archive = unpack(pack("aws", [row(price_per_hour=2.0), row(price_per_hour=1.0, vcpus=8.0)], [SOURCE]), "aws")
    assert [one.price_per_hour for one in rows_in(archive)] == [1.0]


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        (row(cloud="gcp"), "another cloud"),
        (row(region=""), "no instance type, region"),
        (row(price_per_hour=None, spot_price_per_hour=None), "no price"),
        (row(price_per_hour=float("nan")), "no number"),
        (row(spot_price_per_hour=-1.0), "below zero"),
        (row(accelerator_count=0.0), "without a count"),
        (row(accelerator=None), "without an accelerator"),
    ],
)
def test_impossible_rows_are_refused(wrong: Row, why: str) -> None:
    with pytest.raises(CatalogError, match=why):
        pack("aws", [row(), wrong], [SOURCE])


def test_no_rows_are_no_catalog() -> None:
    with pytest.raises(CatalogError, match="not one price"):
        pack("aws", [], [SOURCE])
