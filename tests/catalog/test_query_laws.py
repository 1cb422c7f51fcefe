"""What holds for every catalog and every request."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st
from tests.catalog.pricing import catalogs, requests

from skyserve.catalog.query import cheapest_per_group, feasible, relax
from skyserve.catalog.row import Row
from skyserve.catalog.table import Table
from skyserve.model.offering import Offering
from skyserve.model.resources import ResourceChoice


def offered(catalog: list[Row], want: ResourceChoice) -> list[tuple[int, Offering]]:
    return list(feasible(Table.of(catalog), want).offerings)


@given(catalogs, requests)
def test_nothing_cheaper_would_do(catalog: list[Row], want: ResourceChoice) -> None:
    found = offered(catalog, want)
    rank = [(index if want.ordered else 0, offering.price_per_hour) for index, offering in found]
    assert rank == sorted(rank)


@given(catalogs, requests, st.randoms())
def test_the_order_of_rows_does_not_matter(catalog: list[Row], want: ResourceChoice, chance: random.Random) -> None:
    shuffled = chance.sample(catalog, len(catalog))
    assert feasible(Table.of(shuffled), want) == feasible(Table.of(catalog), want)
    assert relax(Table.of(shuffled), want) == relax(Table.of(catalog), want)


@given(catalogs, requests, st.data())
def test_what_is_not_chosen_does_not_matter(catalog: list[Row], want: ResourceChoice, data: st.DataObject) -> None:
    found = offered(catalog, want)
    if len(found) < 2:
        return
    _, dropped = data.draw(st.sampled_from(found[1:]))
    left = [row for row in Table.of(catalog).rows() if _pool(row) != _pool_of(dropped)]
    assert offered(left, want)[0] == found[0]


@given(catalogs, requests)
def test_offerings_are_pools_and_no_pool_comes_twice(catalog: list[Row], want: ResourceChoice) -> None:
    found = offered(catalog, want)
    wanted = {(_pool_of(offering), offering.capacity_type) for _, offering in found}
    assert len(wanted) == len(found)
    groups = cheapest_per_group(found)
    assert sum(1 + group.further_pools for group in groups) == len(found)


def _pool(row: Row) -> tuple[object, ...]:
    return row.cloud, row.instance_type, row.region, row.zone, row.accelerator, row.accelerator_count


def _pool_of(offering: Offering) -> tuple[object, ...]:
    place, accelerator = offering.location, offering.accelerator
    named = (accelerator.name, accelerator.count) if accelerator else (None, 0)
    return place.cloud, offering.instance_type, place.region, place.zone, *named
