"""AWS: on-demand prices of every region from the public price files, interruption bands from the Spot Instance Advisor,
and, where boto3 and an account are at hand, current spot prices. A spot price that nobody told is left out: it is not
derived from savings, which go wrong whenever an on-demand price is cut."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from skyserve.catalog.refresh.answer import CHANGED
from skyserve.catalog.refresh.aws_prices import AwsOffer, AwsRegion, read_price_file
from skyserve.catalog.refresh.aws_spot import (
    Advice,
    ClientFactory,
    SpotRefusedError,
    SpotRegion,
    boto_clients,
    read_advice,
    read_spot_prices,
)
from skyserve.catalog.refresh.checkpoint import Checkpoint
from skyserve.catalog.refresh.feed import Listing, Setting, Steps, enumerate_briefly
from skyserve.catalog.refresh.hardware import Hardware, Place, Price, by_instance_type
from skyserve.catalog.refresh.web import Request, each
from skyserve.catalog.row import Row, Source
from skyserve.errors import CatalogError, ProviderError
from skyserve.model.accelerators import memory_gib

PRICES_URL = "https://pricing.us-east-1.amazonaws.com"
ADVISOR_URL = "https://spot-bid-advisor.s3.amazonaws.com"

SOURCE = Source("aws-price-list", "AWS price list", PRICES_URL, "list prices; spot prices as of the refresh")

_INDEX = "/offers/v1.0/aws/AmazonEC2/current/region_index.json"
_REGION = re.compile(r"[a-z]{2}(-gov)?-[a-z]+-\d+")
"""Regions proper; the index lists local and wavelength zones too."""

_AT_ONCE = 4

_ACCELERATORS: Mapping[str, str] = MappingProxyType({
    "dl1": "Gaudi", "dl2q": "Qualcomm-AI100", "g3": "M60", "g3s": "M60", "g4ad": "V520", "g4dn": "T4", "g5": "A10G",
    "g5g": "T4g", "g6": "L4", "g6e": "L40S", "g6f": "L4", "g7": "RTX-PRO-4500", "g7e": "RTX-PRO-6000", "gr6": "L4",
    "gr6f": "L4", "p2": "K80", "p3": "V100", "p3dn": "V100-32GB", "p4d": "A100", "p4de": "A100-80GB", "p5": "H100",
    "p5e": "H200", "p5en": "H200", "p6-b200": "B200", "p6-b300": "B300", "p6e-gb200": "GB200",
})  # fmt: skip
"""What the GPUs of a family are; the price files only count them."""

_UNCOUNTED = re.compile(r"(inf|trn|dl|f)\d")
"""Families with accelerators that the price files do not count."""


@dataclass(frozen=True, slots=True)
class _Heard:
    """Everything AWS said, before it is made into rows."""

    regions: Mapping[str, AwsRegion]
    bands: Mapping[str, Mapping[str, int]]
    spot: Mapping[str, SpotRegion]


class AwsFeed:
    """See the module. `clients` stands in for boto3."""

    cloud = "aws"

    def __init__(self, setting: Setting, clients: ClientFactory | None = None) -> None:
        self._setting = setting
        self._clients = clients
        self._prices_url = setting.base_urls.get("aws", PRICES_URL)
        self._advisor_url = setting.base_urls.get("aws-spot-advisor", ADVISOR_URL)

    async def listing(self, steps: Steps, checkpoint: Checkpoint) -> Listing:
        """Everything on offer now; one step per region's price file, and one per region's spot prices."""
        notes: list[str] = []
        steps.expect(None)
        files = await self._price_files()
        clients = self._spot_clients(notes)
        steps.expect(1 + len(files) * (1 if clients is None else 2))

        async def fetch(region: str) -> AwsRegion:
            return await self._region(region, files[region], steps, checkpoint)

        bands = await self._bands(steps, checkpoint, notes)
        names = sorted(files)
        regions = dict(zip(names, await each(names, fetch, at_once=_AT_ONCE), strict=True))
        spot = {} if clients is None else await self._spot(names, clients, steps, checkpoint, notes)
        heard = _Heard(regions, bands, spot)
        return Listing(tuple(self._rows(heard, notes)), (SOURCE,), tuple(notes))

    async def _price_files(self) -> dict[str, str]:
        """Paths of the price files by region."""
        index = await self._setting.web.json(Request(self._prices_url + _INDEX))
        files = {
            name: region["currentVersionUrl"].text().removesuffix(".json") + ".csv"
            for name, region in index["regions"].members()
            if _REGION.fullmatch(name)
        }
        if not files:
            raise CatalogError("aws: the price list names no region", hint=CHANGED)
        return files

    async def _region(self, region: str, path: str, steps: Steps, checkpoint: Checkpoint) -> AwsRegion:
        async def consume(chunks: AsyncIterator[bytes]) -> AwsRegion:
            return await read_price_file(chunks, region)

        key = f"prices {path}"  # which holds the list's version
        part = checkpoint.load(key, AwsRegion)
        if part is None:
            part = await self._setting.web.read(Request(self._prices_url + path), consume)
            checkpoint.save(key, part)
        steps.finish(region)
        return part

    async def _bands(self, steps: Steps, checkpoint: Checkpoint, notes: list[str]) -> Mapping[str, Mapping[str, int]]:
        """Interruption bands by region and type. They are worth having, but not worth failing for."""
        advice = checkpoint.load("advisor", Advice)
        try:
            if advice is None:
                url = f"{self._advisor_url}/spot-advisor-data.json"
                advice = read_advice(await self._setting.web.json(Request(url)))
                checkpoint.save("advisor", advice)
        except (ProviderError, CatalogError) as error:
            notes.append(f"interruption bands are those of the last refresh: {error.message}")
            advice = Advice({})
            for row in self._setting.known:
                if row.interruption_band is not None:
                    advice.bands.setdefault(row.region, {})[row.instance_type] = row.interruption_band
        steps.finish("spot advisor")
        return advice.bands

    def _spot_clients(self, notes: list[str]) -> ClientFactory | None:
        if self._clients is not None:
            return self._clients
        access = self._setting.credentials.aws
        if access is None:
            notes.append("no spot prices: they are told to AWS accounts only, and no AWS credentials were given")
            return None
        clients = boto_clients(access)
        if clients is None:
            notes.append("no spot prices: boto3 is not installed (pip install boto3)")
        return clients

    async def _spot(
        self, regions: list[str], clients: ClientFactory, steps: Steps, checkpoint: Checkpoint, notes: list[str]
    ) -> dict[str, SpotRegion]:
        """Spot prices by region. A region that is not enabled for the account is left out."""
        refused: dict[str, str] = {}

        async def fetch(region: str) -> SpotRegion:
            key = f"spot {region}"
            part = checkpoint.load(key, SpotRegion)
            try:
                if part is None:
                    client = await asyncio.to_thread(clients, region)  # boto3 reads files to make one
                    part = await read_spot_prices(client, self._setting.clock.now())
                    checkpoint.save(key, part)
            except SpotRefusedError as error:
                refused[region] = str(error)
                part = SpotRegion(())
            steps.finish(f"{region} spot")
            return part

        found = dict(zip(regions, await each(regions, fetch, at_once=_AT_ONCE), strict=True))
        if refused:
            told = enumerate_briefly([f"{region} ({refused[region]})" for region in sorted(refused)])
            notes.append(f"no spot prices from regions that refuse this account: {told}")
        return found

    def _rows(self, heard: _Heard, notes: list[str]) -> Iterator[Row]:
        known = by_instance_type(self._setting.known)
        zones = self._known_zones()
        unknown: set[str] = set()
        for region, part in heard.regions.items():
            spot = _by_type_and_zone(heard.spot.get(region))
            bands = heard.bands.get(region, {})
            for offer in part.offers:
                name = offer.instance_type
                hardware = _hardware(offer, known.get(name))
                if hardware is None:
                    unknown.add(name)
                    continue
                price = Price(
                    date=self._setting.today,
                    source=SOURCE.id,
                    on_demand=offer.price_per_hour,
                    interruption_band=bands.get(name),
                )
                prices = spot.get(name) or dict.fromkeys(zones.get((region, name), [None]))
                for zone, spot_price in prices.items():
                    yield hardware.row("aws", name, Place(region, zone), replace(price, spot=spot_price))
        if unknown:
            notes.append(f"left out, accelerators not known: {enumerate_briefly(sorted(unknown))}")

    def _known_zones(self) -> dict[tuple[str, str], list[str | None]]:
        zones: dict[tuple[str, str], list[str | None]] = {}
        for row in self._setting.known:
            zones.setdefault((row.region, row.instance_type), []).append(row.zone)
        return zones


def _by_type_and_zone(part: SpotRegion | None) -> dict[str, dict[str | None, float | None]]:
    found: dict[str, dict[str | None, float | None]] = {}
    for price in part.prices if part else ():
        found.setdefault(price.instance_type, {})[price.zone] = price.price_per_hour
    return found


def _hardware(offer: AwsOffer, known: Hardware | None) -> Hardware | None:
    """The offer's machine; None when it has accelerators of which nothing is known."""
    plain = Hardware(vcpus=offer.vcpus, memory_gib=offer.memory_gib, arch=offer.arch)
    if known is not None and known.accelerator is not None:
        return replace(known, vcpus=offer.vcpus, memory_gib=offer.memory_gib, arch=offer.arch)
    family = offer.instance_type.partition(".")[0]
    accelerator = _ACCELERATORS.get(family)
    if offer.gpus and accelerator:
        return replace(
            plain,
            accelerator=accelerator,
            accelerator_count=offer.gpus,
            accelerator_memory_gib=memory_gib(accelerator),
        )
    if offer.gpus or _UNCOUNTED.match(family):
        return None
    return plain
