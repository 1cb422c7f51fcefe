"""Rows and requests for tests, made of the few things that a test is about."""

from __future__ import annotations

from hypothesis import strategies as st

from skyserve.catalog.row import X86_64, Row
from skyserve.model.resources import Accelerator, Quantity, ResourceChoice, Resources

BASE = Row(
    cloud="aws",
    instance_type="g6.xlarge",
    region="us-east-1",
    zone=None,
    accelerator="L4",
    accelerator_count=1.0,
    accelerator_memory_gib=24.0,
    vcpus=4.0,
    memory_gib=16.0,
    arch=X86_64,
    price_per_hour=0.8,
    spot_price_per_hour=0.3,
    interruption_band=1,
    price_date="2026-01-02",
    source="test",
)


def row(**changes: object) -> Row:
    """`BASE` with changes."""
    return BASE._replace(**changes)  # type: ignore[arg-type]


def cpu_row(**changes: object) -> Row:
    """A machine without accelerators."""
    none = {"accelerator": None, "accelerator_count": 0.0, "accelerator_memory_gib": None}
    return row(instance_type="m6i.2xlarge", vcpus=8.0, memory_gib=32.0, **none, **changes)


def choice(*alternatives: Resources, ordered: bool = False) -> ResourceChoice:
    """The alternatives of a request."""
    return ResourceChoice(alternatives, ordered)


def accelerated(text: str) -> Resources:
    """`L4:8` as a request."""
    name, _, count = text.partition(":")
    return Resources(accelerators=Accelerator(name, float(count or 1)))


prices = st.one_of(st.none(), st.sampled_from([0.5, 1.0, 1.25, 2.0, 7.98, 32.77]))

rows = st.builds(
    BASE._replace,
    cloud=st.sampled_from(["aws", "azure", "gcp"]),
    instance_type=st.sampled_from(["small", "big", "wide"]),
    region=st.sampled_from(["us-east-1", "eu-west-1", "us-gov-west-1"]),
    zone=st.sampled_from([None, "a", "b"]),
    accelerator=st.sampled_from(["L4", "A100"]),
    accelerator_count=st.sampled_from([0.5, 1.0, 8.0]),
    vcpus=st.sampled_from([4.0, 8.0, 96.0]),
    memory_gib=st.sampled_from([16.0, 32.0, 1900.0]),
    price_per_hour=prices,
    spot_price_per_hour=prices,
).filter(lambda one: one.price_per_hour is not None or one.spot_price_per_hour is not None)

catalogs = st.lists(rows, min_size=1, max_size=40)

_quantities = st.sampled_from([None, Quantity(8), Quantity(8, at_least=True), Quantity(32, at_least=True)])

requests = st.builds(
    ResourceChoice,
    st.lists(
        st.builds(
            Resources,
            cloud=st.sampled_from([None, "aws", "gcp"]),
            region=st.sampled_from([None, None, "us-east-1"]),
            accelerators=st.builds(Accelerator, st.sampled_from(["L4", "A100"]), st.sampled_from([0.5, 1, 8])),
            cpus=_quantities,
            memory=st.one_of(_quantities, st.just(Quantity(4, per_vcpu=True))),
            use_spot=st.booleans(),
            max_hourly_cost=st.sampled_from([None, 1.5]),
        ),
        min_size=1,
        max_size=3,
    ).map(tuple),
    st.booleans(),
)
