"""`sky show-gpus`, or `sky gpus list`: which accelerators there are to rent, and what they cost where."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

import click

from skyserve.cli import wording
from skyserve.cli.lazy import LazyGroup
from skyserve.cli.options import output_option
from skyserve.cli.session import Session, pass_session
from skyserve.errors import UsageError

if TYPE_CHECKING:
    from skyserve.catalog.query import Price
    from skyserve.catalog.table import Table

_PRICE_HEADERS = (
    "GPU", "QTY", "CLOUD", "INSTANCE_TYPE", "DEVICE_MEM", "vCPUs", "HOST_MEM", "HOURLY_PRICE", "HOURLY_SPOT_PRICE",
    "REGION",
)  # fmt: skip


class _Gpus(LazyGroup):
    commands_at: ClassVar[Mapping[str, str]] = {"list": "skyserve.cli.gpus:show_gpus"}


@click.group(cls=_Gpus, invoke_without_command=True)
@click.pass_context
def gpus(ctx: click.Context) -> None:
    """Look at accelerators to rent.

    `sky gpus list` and `sky show-gpus` are the same.

    \b
    Example:
      sky gpus list L4
    """
    if ctx.invoked_subcommand is None:
        ctx.ensure_object(Session).screen.data(ctx.get_help())


@click.command("show-gpus")
@click.argument("accelerator", required=False, metavar="[NAME[:COUNT]]")
@click.option("--cloud", metavar="CLOUD", help="Only this cloud.")
@click.option("--region", metavar="REGION", help="Only this region.")
@click.option(
    "--all",
    "--all-regions",
    "-a",
    "all_regions",
    is_flag=True,
    help="Show the price in every region, not only the lowest one.",
)
@output_option
@pass_session
def show_gpus(
    session: Session, accelerator: str | None, cloud: str | None, region: str | None, all_regions: bool
) -> None:
    """Show accelerators and their prices.

    What an accelerator costs on every cloud, cheapest first; without a name, which accelerators there are. Prices are
    list prices of whole machines, on demand and spot. `sky catalog status` says of when they are.

    \b
    Examples:
      sky show-gpus
      sky show-gpus A100-80GB:8
      sky gpus list L4 --cloud gcp --all
    """
    from skyserve.catalog import snapshot

    table = snapshot.current(session.config.home)
    cloud = _cloud(cloud, table)
    if region is not None:
        _refuse_unknown_region(region, cloud, table)
    if accelerator is None:
        _list(session, table, cloud, region)
    else:
        _prices(session, table, accelerator, (cloud, region, all_regions))


def _prices(session: Session, table: Table, accelerator: str, where: tuple[str | None, str | None, bool]) -> None:
    from skyserve.catalog import query
    from skyserve.model.codec import to_json

    name, count = _asked(accelerator)
    if name not in table.accelerators():
        raise _unknown(name, table)
    found = query.prices(table, name, count, *where)
    if session.as_json:
        session.screen.json({"prices": [to_json(price) for price in found]})
    elif found:
        for line in session.screen.table(f"Prices of {name}", _PRICE_HEADERS, [_price_row(price) for price in found]):
            session.screen.data(line)
    else:
        session.screen.data(f"No offer of {accelerator} there.")


def _asked(text: str) -> tuple[str, float | None]:
    from skyserve.spec import shorthand

    try:
        asked = shorthand.accelerator(text)
    except ValueError as error:
        raise UsageError(f"'{text}' is not a name and a count", hint="sky show-gpus NAME, or NAME:COUNT") from error
    return asked.name, asked.count if ":" in text else None


def _price_row(price: Price) -> tuple[str, ...]:
    region = price.region or price.spot_region or ""
    if price.spot_region not in (None, region):
        region = f"{region} (spot: {price.spot_region})"
    return (
        price.accelerator.name,
        f"{price.accelerator.count:g}",
        _title(price.cloud),
        price.instance_type,
        _gib(price.accelerator_memory_gib),
        wording.number(price.vcpus),
        _gib(price.memory_gib),
        _dollars(price.price_per_hour),
        _dollars(price.spot_price_per_hour),
        region,
    )


def _list(session: Session, table: Table, cloud: str | None, region: str | None) -> None:
    counts = _counts(table, cloud, region)
    if session.as_json:
        session.screen.json(
            {
                "accelerators": [
                    {"name": name, "counts": {one: list(found) for one, found in clouds.items()}}
                    for name, clouds in counts.items()
                ]
            }
        )
        return
    shown = [one for one in table.clouds if any(one in clouds for clouds in counts.values())]
    rows = [
        (name, *(", ".join(f"{count:g}" for count in clouds.get(one, ())) for one in shown))
        for name, clouds in counts.items()
    ]
    headers = ("GPU", *(_title(one) for one in shown))
    for line in session.screen.table("Accelerators, and how many of them a machine has", headers, rows):
        session.screen.data(line)
    session.screen.say("To see prices: sky show-gpus NAME[:COUNT]", "dim")


def _counts(table: Table, cloud: str | None, region: str | None) -> dict[str, dict[str, Sequence[float]]]:
    """By accelerator and cloud, how many a machine can have."""
    found: dict[str, dict[str, Sequence[float]]] = {}
    for name, offering in table.accelerators().items():
        for one in offering:
            shelf = table.shelf(one, name) if cloud in (None, one) else None
            if shelf is None:
                continue
            there = {i for i, place in enumerate(shelf.places) if region in (None, place[0])}
            counts = {
                shape.accelerator_count
                for shape, pools in shelf.pools_by_shape()
                if any(shelf.place_of[pool] in there for pool in pools)
            }
            if counts:
                found.setdefault(name, {})[one] = sorted(counts)
    return found


def _cloud(name: str | None, table: Table) -> str | None:
    if name is None or name.lower() in table.clouds:
        return name and name.lower()
    raise UsageError(f"there are no prices of '{name}'", hint=f"there are of: {', '.join(table.clouds)}")


def _refuse_unknown_region(region: str, cloud: str | None, table: Table) -> None:
    known = {
        place[0]
        for one in table.clouds
        if cloud in (None, one)
        for name in table.accelerators_of(one)
        if name is not None and (shelf := table.shelf(one, name))
        for place in shelf.places
    }
    if region not in known:
        near = wording.nearest(region, sorted(known))
        raise UsageError(
            f"no accelerator is offered in a region '{region}'",
            hint=f"did you mean '{near}'?" if near else "sky show-gpus NAME --all shows the regions",
        )


def _unknown(name: str, table: Table) -> UsageError:
    from skyserve.model import accelerators

    near = accelerators.nearest(name, table.accelerators())
    hint = f"did you mean {' or '.join(near)}?" if near else "`sky show-gpus` lists all that have a price"
    return UsageError(f"no cloud has a price of an accelerator '{name}'", hint=hint)


def _title(cloud: str) -> str:
    from skyserve.providers import registry

    return registry.title(cloud)


def _gib(amount: float | None) -> str:
    return "" if amount is None else f"{wording.number(amount)}GB"


def _dollars(amount: float | None) -> str:
    return "" if amount is None else f"$ {amount:.3f}"
