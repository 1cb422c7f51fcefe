"""What satisfies a request, what does not and why, and what would if one thing were given up."""

from __future__ import annotations

import pytest
from tests.catalog.pricing import accelerated, choice, cpu_row, row

from skyserve.catalog.query import Constraint, Obstacle, cheapest_per_group, feasible, prices, relax
from skyserve.catalog.row import ARM64
from skyserve.catalog.table import Table
from skyserve.model.offering import CapacityType, Location
from skyserve.model.resources import Accelerator, Quantity, Resources

L4 = Accelerator("L4", 1)
BIG = row(instance_type="g6.48xlarge", accelerator_count=8.0, vcpus=192.0, memory_gib=768.0, price_per_hour=13.0)
HALF = row(cloud="azure", instance_type="half", accelerator="A10", accelerator_count=0.3333, price_per_hour=0.4)


def types(table: Table, *alternatives: Resources, ordered: bool = False) -> list[str]:
    found = feasible(table, choice(*alternatives, ordered=ordered))
    return [offering.instance_type for _, offering in found.offerings]


def obstacles(table: Table, want: Resources, clouds: set[str] | None = None) -> dict[Obstacle, int]:
    found = feasible(table, choice(want), clouds=clouds)
    assert not found.offerings
    return {refusal.obstacle: refusal.count for refusal in found.refusals}


def test_a_pool_becomes_an_offering() -> None:
    table = Table.of([row(zone="us-east-1a")])
    want = choice(accelerated("A100:8"), Resources(accelerators=L4, use_spot=True))
    ((alternative, offering),) = feasible(Table.of([*table.rows(), row(accelerator="A100")]), want).offerings
    assert alternative == 1
    assert (offering.provider, offering.instance_type, offering.accelerator) == ("aws", "g6.xlarge", L4)
    assert offering.location == Location("aws", "us-east-1", "us-east-1a")
    assert (offering.capacity_type, offering.price_per_hour) == (CapacityType.SPOT, 0.3)
    assert (offering.vcpus, offering.memory_gib) == (4, 16)


def test_every_shape_and_place_is_a_pool_of_its_own() -> None:
    table = Table.of(
        [row(zone=zone, instance_type=name) for zone in ("us-east-1a", "us-east-1b") for name in ("g6.xlarge", "gr6")]
    )
    found = feasible(table, choice(accelerated("L4"))).offerings
    assert len({offering.pool for _, offering in found}) == 4


def test_cheapest_first_and_by_name_at_the_same_price() -> None:
    table = Table.of([row(region="b"), row(region="a"), row(region="c", price_per_hour=0.7), row(cloud="gcp")])
    found = [str(offering.location) for _, offering in feasible(table, choice(accelerated("L4"))).offerings]
    assert found == ["aws/c", "aws/a", "aws/b", "gcp/us-east-1"]


def test_alternatives_by_price_or_in_order() -> None:
    table = Table.of([row(), row(accelerator="A100", instance_type="dear", price_per_hour=9.0)])
    wanted = (accelerated("A100"), accelerated("L4"))
    assert types(table, *wanted) == ["g6.xlarge", "dear"]
    assert types(table, *wanted, ordered=True) == ["dear", "g6.xlarge"]


def test_a_pool_that_two_alternatives_want_is_offered_once() -> None:
    found = feasible(Table.of([row()]), choice(accelerated("L4"), Resources(accelerators=L4, cloud="aws")))
    assert [alternative for alternative, _ in found.offerings] == [0]


def test_spot_and_on_demand_are_two_offerings() -> None:
    found = feasible(Table.of([row()]), choice(Resources(accelerators=L4, use_spot=True), accelerated("L4")))
    prices_of = [(offering.capacity_type, offering.price_per_hour) for _, offering in found.offerings]
    assert prices_of == [(CapacityType.SPOT, 0.3), (CapacityType.ON_DEMAND, 0.8)]


@pytest.mark.parametrize(
    ("want", "fits"),
    [
        (Resources(accelerators=L4, cpus=Quantity(4)), True),
        (Resources(accelerators=L4, cpus=Quantity(2)), False),
        (Resources(accelerators=L4, cpus=Quantity(2, at_least=True)), True),
        (Resources(accelerators=L4, memory=Quantity(16)), True),
        (Resources(accelerators=L4, memory=Quantity(8)), False),
        (Resources(accelerators=L4, memory=Quantity(8, at_least=True)), True),
        (Resources(accelerators=L4, memory=Quantity(4, per_vcpu=True)), True),
        (Resources(accelerators=L4, memory=Quantity(8, per_vcpu=True)), False),
        (Resources(accelerators=L4, cloud="aws", region="us-east-1"), True),
        (Resources(accelerators=L4, cloud="*", region="*", zone="*"), True),
        (Resources(accelerators=L4, region="us-west-2"), False),
        (Resources(accelerators=L4, zone="us-east-1c"), True),  # zones of this row are not known
        (Resources(accelerators=L4, zone="us-west-2a"), False),
        (Resources(accelerators=L4, max_hourly_cost=0.8), True),
        (Resources(accelerators=L4, max_hourly_cost=0.79), False),
        (Resources(accelerators=L4, instance_type="G6.XLARGE"), True),
        (Resources(accelerators=L4, instance_type="g6.2xlarge"), False),
        (Resources(instance_type="g6.xlarge"), True),
        (Resources(accelerators=L4, disk_size=16384), True),
        (Resources(accelerators=L4, disk_size=16385), False),
    ],
)
def test_constraints(want: Resources, fits: bool) -> None:
    assert bool(feasible(Table.of([row()]), choice(want)).offerings) is fits


def test_a_zone_that_was_asked_for_is_in_the_offering() -> None:
    ((_, offering),) = feasible(Table.of([row()]), choice(Resources(accelerators=L4, zone="us-east-1c"))).offerings
    assert offering.location.zone == "us-east-1c"


def test_parts_of_an_accelerator() -> None:
    assert types(Table.of([HALF]), Resources(accelerators=Accelerator("A10", 0.33))) == ["half"]
    assert types(Table.of([HALF]), accelerated("A10:1")) == []


def test_machines_of_which_nothing_is_asked_have_eight_cpus_and_no_accelerator() -> None:
    small = cpu_row(price_per_hour=0.01)._replace(vcpus=2.0, instance_type="small")
    arm = cpu_row(arch=ARM64, price_per_hour=0.1)._replace(instance_type="arm")
    table = Table.of([row(vcpus=8.0), cpu_row(), small, arm])
    assert types(table, Resources()) == ["m6i.2xlarge"]
    assert types(table, Resources(cpus=Quantity(2))) == ["small"]
    assert types(table, Resources(memory=Quantity(8, at_least=True))) == ["small", "m6i.2xlarge"]
    assert types(table, Resources(instance_type="arm")) == ["arm"], "Arm for those who name it"


def test_a_type_that_accelerators_can_be_attached_to_comes_bare_unless_they_are_asked_for() -> None:
    bare = cpu_row()._replace(instance_type="n1-standard-8")
    table = Table.of([bare, row(instance_type="n1-standard-8")])
    ((_, offering),) = feasible(table, choice(Resources(instance_type="n1-standard-8"))).offerings
    assert offering.accelerator is None
    assert types(table, Resources(instance_type="n1-standard-8", accelerators=L4)) == ["n1-standard-8"]


def test_regions_that_need_another_account_must_be_named() -> None:
    table = Table.of([row(region="us-gov-west-1")])
    assert types(table, accelerated("L4")) == []
    assert types(table, Resources(accelerators=L4, region="us-gov-west-1")) == ["g6.xlarge"]
    assert not prices(table, "L4", None, None, None, all_regions=True)


def test_refusals_count_machines_by_the_first_obstacle() -> None:
    table = Table.of([row(), row(region="eu-west-1"), BIG, row(cloud="gcp"), row(cloud="lambda")])
    want = Resources(accelerators=L4, cloud="aws", memory=Quantity(64, at_least=True))
    assert obstacles(table, want) == {Obstacle.CLOUD: 2, Obstacle.COUNT: 1, Obstacle.MEMORY: 2}
    assert obstacles(table, accelerated("L4:3"), {"gcp"}) == {Obstacle.CLOUD: 4, Obstacle.COUNT: 1}
    spot = Resources(accelerators=L4, use_spot=True)
    assert obstacles(Table.of([row(spot_price_per_hour=None)]), spot) == {Obstacle.NOT_SPOT: 1}
    assert obstacles(Table.of([row(price_per_hour=None)]), accelerated("L4")) == {Obstacle.NOT_ON_DEMAND: 1}


def test_unknown_names() -> None:
    table = Table.of([row(), row(accelerator="H100"), row(accelerator="H100-SXM")])
    (refusal,) = feasible(table, choice(accelerated("H10"))).refusals
    assert refusal.nearest[0] == "H100"
    assert str(refusal).endswith("did you mean H100 or H100-SXM?")
    assert obstacles(table, Resources(accelerators=L4, cloud="kubernetes")) == {Obstacle.UNKNOWN_CLOUD: 0}
    assert obstacles(table, Resources(instance_type="g66.xlarge")) == {Obstacle.UNKNOWN_TYPE: 0}


@pytest.mark.parametrize(
    ("want", "constraint"),
    [
        (Resources(accelerators=L4, memory=Quantity(64, at_least=True)), Constraint.MEMORY),
        (Resources(accelerators=L4, cpus=Quantity(64)), Constraint.CPUS),
        (Resources(accelerators=L4, region="us-west-2"), Constraint.REGION),
        (Resources(accelerators=L4, cloud="gcp"), Constraint.CLOUD),
        (Resources(accelerators=L4, use_spot=True), Constraint.USE_SPOT),
        (Resources(accelerators=L4, max_hourly_cost=0.1), Constraint.MAX_HOURLY_COST),
        (Resources(accelerators=L4, instance_type="g5.xlarge"), Constraint.INSTANCE_TYPE),
        (accelerated("L4:2"), Constraint.ACCELERATOR_COUNT),
    ],
)
def test_one_constraint_too_many(want: Resources, constraint: Constraint) -> None:
    other = row(cloud="gcp", accelerator="T4", spot_price_per_hour=None)
    found = relax(
        Table.of([row(spot_price_per_hour=None), BIG._replace(spot_price_per_hour=None), other]), choice(want)
    )
    assert found is not None
    assert found.constraint is constraint
    assert found.offering.instance_type == ("g6.48xlarge" if want.accelerators == Accelerator("L4", 2) else "g6.xlarge")


def test_a_cloud_that_is_not_enabled_is_a_constraint_too() -> None:
    found = relax(Table.of([row(), row(cloud="gcp", accelerator="T4")]), choice(accelerated("L4")), clouds={"gcp"})
    assert found is not None
    assert (found.constraint, found.offering.location.cloud) == (Constraint.CLOUD, "aws")


def test_two_constraints_too_many() -> None:
    want = Resources(accelerators=L4, memory=Quantity(64, at_least=True), region="us-west-2")
    assert relax(Table.of([row()]), choice(want)) is None


def test_plans_show_a_cloud_once_per_alternative() -> None:
    table = Table.of([row(region="a"), row(region="b"), row(cloud="gcp", price_per_hour=0.1), BIG])
    groups = cheapest_per_group(feasible(table, choice(accelerated("L4"), accelerated("L4:8"))).offerings)
    shown = [(group.alternative, str(group.offering.location), group.further_pools) for group in groups]
    assert shown == [(0, "gcp/us-east-1", 0), (0, "aws/a", 1), (1, "aws/us-east-1", 0)]


def test_prices_put_spot_beside_on_demand() -> None:
    cheaper = row(region="eu", price_per_hour=0.9, spot_price_per_hour=0.2)
    table = Table.of([row(), cheaper, BIG, row(cloud="gcp", instance_type="g2", price_per_hour=0.7, zone="us-east-1a")])
    first, second = prices(table, "l4", 1, None, None, all_regions=False)
    assert (first.instance_type, first.price_per_hour) == ("g2", 0.7)
    assert (second.region, second.price_per_hour) == ("us-east-1", 0.8)
    assert (second.spot_region, second.spot_price_per_hour) == ("eu", 0.2)
    everywhere = prices(table, "L4", 1, "aws", None, all_regions=True)
    assert [(price.region, price.spot_price_per_hour) for price in everywhere] == [("us-east-1", 0.3), ("eu", 0.2)]
    assert [price.region for price in prices(table, "L4", None, None, "eu", all_regions=False)] == ["eu"]
    assert len(prices(table, "L4", None, None, None, all_regions=False)) == 3
    assert not prices(table, "L4", None, "azure", None, all_regions=False)
