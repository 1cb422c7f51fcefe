"""Azure: the public retail price API, region by region. It tells names and prices only, so a size's hardware is that of
the last good rows."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from urllib.parse import parse_qsl, urlsplit

from skyserve.catalog.refresh.answer import CHANGED, Answer
from skyserve.catalog.refresh.checkpoint import Checkpoint
from skyserve.catalog.refresh.feed import Listing, Setting, Steps, enumerate_briefly
from skyserve.catalog.refresh.hardware import Place, Price, by_instance_type
from skyserve.catalog.refresh.web import Request, each
from skyserve.catalog.row import Row, Source
from skyserve.errors import CatalogError

PRICES_URL = "https://prices.azure.com"

SOURCE = Source("azure-retail-prices", "Azure retail prices", PRICES_URL, "list prices as of the refresh")

_PATH = "/api/retail/prices"
_VERSION = "2023-01-01-preview"
_FILTER = "serviceName eq 'Virtual Machines' and priceType eq 'Consumption'"
_EVERYWHERE = "Standard_D2s_v3"
"""A size that every region sells: its prices tell which regions there are."""

_NOT_OURS = ("Windows", "Low Priority", "Dedicated", "CloudServices", "Cloud Services")
_ACCELERATED = re.compile(r"Standard_N[A-Z]*\d")
_AT_ONCE = 4
_MOST_PAGES = 200


@dataclass(frozen=True, slots=True)
class AzurePrice:
    """One meter: what a size costs an hour, and since when (ISO 8601)."""

    size: str
    region: str
    spot: bool
    price_per_hour: float
    since: str


@dataclass(frozen=True, slots=True)
class AzurePrices:
    """All meters of interest of one region."""

    prices: tuple[AzurePrice, ...]


class AzureFeed:
    """See the module."""

    cloud = "azure"

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        self._url = setting.base_urls.get("azure", PRICES_URL) + _PATH

    async def listing(self, steps: Steps, checkpoint: Checkpoint) -> Listing:
        """Everything on offer now; one step per region."""
        steps.expect(None)
        regions = sorted({price.region for price in await self._ask(f"{_FILTER} and armSkuName eq '{_EVERYWHERE}'")})
        if not regions:
            raise CatalogError(f"azure: the price API names no region that has {_EVERYWHERE}", hint=CHANGED)
        steps.expect(len(regions))

        async def fetch(region: str) -> AzurePrices:
            part = checkpoint.load(region, AzurePrices)
            if part is None:
                part = AzurePrices(tuple(await self._ask(f"{_FILTER} and armRegionName eq '{region}'")))
                checkpoint.save(region, part)
            steps.finish(region)
            return part

        parts = await each(regions, fetch, at_once=_AT_ONCE)
        notes: list[str] = []
        return Listing(tuple(self._rows(parts, notes)), (SOURCE,), tuple(notes))

    async def _ask(self, wanted: str) -> list[AzurePrice]:
        """All pages of one question."""
        found: list[AzurePrice] = []
        params = {"api-version": _VERSION, "currencyCode": "USD", "$filter": wanted}
        for _ in range(_MOST_PAGES):
            page = await self._setting.web.json(Request(self._url, params))
            found += _prices(page)
            link = page["NextPageLink"].text_or("")
            if not link:
                return found
            params |= _query(link)  # our address with their query: a link leads nowhere else
        raise CatalogError(f"azure: more than {_MOST_PAGES} pages for one region", hint=CHANGED)

    def _rows(self, parts: Iterable[AzurePrices], notes: list[str]) -> Iterator[Row]:
        known = by_instance_type(self._setting.known)
        unknown: set[str] = set()
        for part in parts:
            newest = _newest(part.prices)
            for size, region in sorted({key[:2] for key in newest}):
                hardware = known.get(size)
                if hardware is None:
                    unknown.add(size)
                    continue
                price = _price(newest.get((size, region, False)), newest.get((size, region, True)), self._setting.today)
                yield hardware.row("azure", size, Place(region), price)
        accelerated = sorted(size for size in unknown if _ACCELERATED.match(size))
        if accelerated:
            notes.append(f"left out, hardware of these GPU sizes is not known: {enumerate_briefly(accelerated)}")
        if len(unknown) > len(accelerated):
            notes.append(f"left out, hardware of {len(unknown) - len(accelerated)} sizes without GPU is not known")


def _prices(page: Answer) -> Iterator[AzurePrice]:
    for item in page["Items"].elements():
        size, region = item["armSkuName"].text_or(""), item["armRegionName"].text_or("")
        meter = f"{item['productName'].text()} {item['skuName'].text_or('')} {item['meterName'].text()}"
        if item["currencyCode"].text() != "USD":
            raise CatalogError("azure: the price API answered in another currency than US dollars", hint=CHANGED)
        amount = item["retailPrice"].number()
        hourly = item["unitOfMeasure"].text() == "1 Hour"
        if size and region and hourly and amount > 0 and not any(word in meter for word in _NOT_OURS):
            yield AzurePrice(size, region, "Spot" in meter, amount, item["effectiveStartDate"].text_or(""))


def _newest(prices: Iterable[AzurePrice]) -> dict[tuple[str, str, bool], AzurePrice]:
    """The price in force of every meter; of two that began together, the lower."""
    found: dict[tuple[str, str, bool], AzurePrice] = {}
    for price in sorted(prices, key=lambda price: (price.since, -price.price_per_hour)):
        found[price.size, price.region, price.spot] = price
    return found


def _price(on_demand: AzurePrice | None, spot: AzurePrice | None, today: str) -> Price:
    """Both prices of a size. A spot price as high as the other one means that there is no spot: Azure lists it so."""
    full = on_demand.price_per_hour if on_demand else None
    reduced = spot.price_per_hour if spot else None
    if full is not None and reduced is not None and reduced >= full:
        reduced = None
    return Price(today, SOURCE.id, full, reduced)


def _query(link: str) -> dict[str, str]:
    return dict(parse_qsl(urlsplit(link).query))
