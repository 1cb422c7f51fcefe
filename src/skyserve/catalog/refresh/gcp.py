"""GCP: the billing catalog, whose parts are added up to machines. It tells what a part costs in a region, not whether a
machine is offered there, so in regions that the last good rows know, only machines that they have there are priced."""

from __future__ import annotations

from collections.abc import Iterator

from skyserve.catalog.refresh import gcp_machines
from skyserve.catalog.refresh.answer import CHANGED
from skyserve.catalog.refresh.checkpoint import Checkpoint
from skyserve.catalog.refresh.feed import Listing, Setting, Steps
from skyserve.catalog.refresh.gcp_skus import GcpPage, PriceSheet, read_page
from skyserve.catalog.refresh.hardware import Hardware, Place, Price, of_row
from skyserve.catalog.refresh.web import Request
from skyserve.catalog.row import Row, Source
from skyserve.errors import CatalogError, CredentialsRejected

BILLING_URL = "https://cloudbilling.googleapis.com"

SOURCE = Source("gcp-billing-catalog", "Cloud Billing Catalog", BILLING_URL, "machines' prices are sums of their parts")

_SKUS = "/v1/services/6F81-5844-456A/skus"
_KEY_HINT = (
    "Make an API key in the Google Cloud console, with the Cloud Billing API enabled in its project, "
    "and set GOOGLE_API_KEY to it."
)
_MOST_PAGES = 100


class GcpFeed:
    """See the module."""

    cloud = "gcp"

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        self._url = setting.base_urls.get("gcp", BILLING_URL) + _SKUS

    async def listing(self, steps: Steps, checkpoint: Checkpoint) -> Listing:
        """Everything on offer now; one step per page, and nobody knows how many there are."""
        key = self._setting.credentials.gcp_api_key
        if key is None:
            raise CredentialsRejected("gcp: the billing catalog wants an API key", hint=_KEY_HINT)
        try:
            pages = await self._pages(key, steps, checkpoint)
        except CatalogError:
            if not checkpoint.reused:
                raise
            checkpoint.clear()  # the token of the page to go on with may have expired
            pages = await self._pages(key, steps, checkpoint)
        sheet = PriceSheet(price for page in pages for price in page.prices)
        notes: list[str] = []
        kept = [source for source in self._setting.known_sources if source.id != SOURCE.id]
        return Listing(tuple(self._rows(sheet, notes)), (SOURCE, *kept), tuple(notes))

    async def _pages(self, key: str, steps: Steps, checkpoint: Checkpoint) -> list[GcpPage]:
        steps.expect(None)
        pages: list[GcpPage] = []
        token = ""
        for number in range(1, _MOST_PAGES + 1):
            page = checkpoint.load(token, GcpPage)
            if page is None:
                params = {"pageSize": "5000", "currencyCode": "USD"} | ({"pageToken": token} if token else {})
                # In a header, not in the address: addresses end up in logs.
                request = Request(self._url, params, {"X-Goog-Api-Key": key}, key_hint=_KEY_HINT)
                page = read_page(await self._setting.web.json(request))
                checkpoint.save(token, page)
            pages.append(page)
            steps.finish(f"page {number}")
            token = page.next_token
            if not token:
                return pages
        raise CatalogError(f"gcp: more than {_MOST_PAGES} pages of prices", hint=CHANGED)

    def _rows(self, sheet: PriceSheet, notes: list[str]) -> Iterator[Row]:
        kept = 0
        for row in self._setting.known:
            if gcp_machines.has_rule(row.instance_type):
                price = self._price(row.instance_type, of_row(row), sheet, row.region)
                if price is not None:
                    yield of_row(row).row("gcp", row.instance_type, Place(row.region, row.zone), price)
            elif row.region in sheet.regions():
                kept += 1
                yield row
        if kept:
            notes.append(f"{kept} prices stay as they were: of TPUs, and of machines with built-in disks or premiums")
        yield from self._in_new_regions(sheet, notes)

    def _in_new_regions(self, sheet: PriceSheet, notes: list[str]) -> Iterator[Row]:
        """Machines in regions that no last good row has: there, what is priced counts as offered."""
        machines = list(dict.fromkeys((row.instance_type, of_row(row)) for row in self._setting.known))
        types = {instance_type for instance_type, _ in machines}
        machines += [shape for shape in gcp_machines.SHAPES.items() if shape[0] not in types]
        known = {row.region for row in self._setting.known}
        found: set[str] = set()
        for region in sorted(sheet.regions() - known - {"global"}):
            for instance_type, hardware in machines:
                priced = gcp_machines.has_rule(instance_type)
                price = self._price(instance_type, hardware, sheet, region) if priced else None
                if price is not None:
                    found.add(region)
                    yield hardware.row("gcp", instance_type, Place(region), price)
        if found:
            listed = ", ".join(sorted(found))
            notes.append(f"regions new to the catalog: {listed}; what has a price there may still not be offered")

    def _price(self, instance_type: str, hardware: Hardware, sheet: PriceSheet, region: str) -> Price | None:
        on_demand = gcp_machines.price(instance_type, hardware, sheet, region, spot=False)
        spot = gcp_machines.price(instance_type, hardware, sheet, region, spot=True)
        if on_demand is None and spot is None:
            return None
        return Price(date=self._setting.today, source=SOURCE.id, on_demand=on_demand, spot=spot)
