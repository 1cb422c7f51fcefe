"""`refresh`: ask clouds for today's prices and use them, cloud by cloud, whole or not at all. Knows no cloud's API."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from urllib.parse import urlsplit

from skyserve.catalog import snapshot
from skyserve.catalog.refresh.answer import CHANGED
from skyserve.catalog.refresh.aws import AwsFeed
from skyserve.catalog.refresh.azure import AzureFeed
from skyserve.catalog.refresh.checkpoint import Checkpoint
from skyserve.catalog.refresh.credentials import Credentials
from skyserve.catalog.refresh.feed import Feed, Listing, Progress, Setting, Steps
from skyserve.catalog.refresh.gcp import GcpFeed
from skyserve.catalog.refresh.lambda_cloud import LambdaFeed
from skyserve.catalog.refresh.runpod import RunPodFeed
from skyserve.catalog.refresh.web import each, open_web
from skyserve.catalog.row import Row, Source
from skyserve.clock import Clock
from skyserve.errors import CatalogError, SkyServeError, UsageError

_FEEDS: Mapping[str, Callable[[Setting], Feed]] = MappingProxyType({
    "aws": AwsFeed, "azure": AzureFeed, "gcp": GcpFeed, "lambda": LambdaFeed, "runpod": RunPodFeed,
})  # fmt: skip

CLOUDS = tuple(_FEEDS)
"""Clouds that can be asked, as rows name them."""

_ADDRESSES = (*CLOUDS, "aws-spot-advisor")
_NOT_IN_USE = "these prices are not in use, as a catalog of your own is; to go back: sky catalog use builtin"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one cloud. With an `error`, nothing was changed and what was fetched is kept for the next try.

    `resumed` parts (pages, regions) were left by an interrupted refresh and not asked for again.
    """

    cloud: str
    rows: int = 0
    resumed: int = 0
    notes: tuple[str, ...] = ()
    error: SkyServeError | None = None


def askable(credentials: Credentials) -> tuple[str, ...]:
    """Clouds that need no key, or whose key was given."""
    keys = {
        "gcp": credentials.gcp_api_key,
        "lambda": credentials.lambda_api_key,
        "runpod": credentials.runpod_api_key,
    }
    return tuple(cloud for cloud in CLOUDS if cloud not in keys or keys[cloud])


async def refresh(
    home: Path,
    clouds: Sequence[str],
    *,
    credentials: Credentials,
    base_urls: Mapping[str, str] | None = None,
    clock: Clock,
    progress: Callable[[Progress], None],
) -> Mapping[str, Outcome]:
    """Fetch the prices of some of `CLOUDS`, at the same time; how each ended, by cloud.

    A cloud that fails says so in its outcome, keeps its last good prices, and hinders no other. `base_urls` replaces
    addresses of APIs, by cloud (and `aws-spot-advisor`). Interrupted (cancelled), it can be called again and goes on
    where it stopped. Raises UsageError for a cloud that cannot be asked, or an address that is none.
    """
    unknown = [cloud for cloud in clouds if cloud not in _FEEDS]
    if unknown:
        raise UsageError(f"no prices can be fetched of {', '.join(unknown)}", hint=f"choose from {', '.join(CLOUDS)}")
    urls = {name: _checked(name, url) for name, url in (base_urls or {}).items()}
    last_good = await asyncio.to_thread(_LastGood.read, home)

    async with open_web(clock) as web:

        async def one(cloud: str) -> Outcome:
            known, sources = last_good.rows.get(cloud, ()), last_good.sources.get(cloud, ())
            setting = Setting(web, clock, credentials, known, sources, urls)
            checkpoint = Checkpoint(home / "catalog" / ".refresh" / cloud, clock)
            outcome = await _refresh_one(home, _FEEDS[cloud](setting), known, Steps(cloud, progress), checkpoint)
            return outcome if last_good.in_use else replace(outcome, notes=(*outcome.notes, _NOT_IN_USE))

        outcomes = await each(list(dict.fromkeys(clouds)), one, at_once=len(CLOUDS))
    return {outcome.cloud: outcome for outcome in outcomes}


def _checked(name: str, url: str) -> str:
    """The address of an API, without the slash that paths begin with."""
    if name not in _ADDRESSES:
        raise UsageError(f"no prices come from {name}", hint=f"choose from {', '.join(_ADDRESSES)}")
    try:
        parts = urlsplit(url)
        sound = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        sound = False
    if not sound:
        raise UsageError(f"the address for {name} is none: {url}", hint=f"{name}=https://prices.example.com")
    return url.rstrip("/")


async def _refresh_one(home: Path, feed: Feed, known: Sequence[Row], steps: Steps, checkpoint: Checkpoint) -> Outcome:
    try:
        listing = await feed.listing(steps, checkpoint)
        if _is_shrunk(listing, known):
            checkpoint.clear()
            text = f"{feed.cloud}: the price API tells of less than half of the machines that were known"
            raise CatalogError(text, hint=CHANGED)
        await asyncio.to_thread(snapshot.write_cloud, home, feed.cloud, listing.rows, listing.sources)
    except SkyServeError as error:
        return Outcome(feed.cloud, resumed=checkpoint.reused, error=error)
    resumed = checkpoint.reused
    checkpoint.clear()
    return Outcome(feed.cloud, rows=len(listing.rows), resumed=resumed, notes=listing.notes)


def _is_shrunk(listing: Listing, known: Sequence[Row]) -> bool:
    """A price list that lost half of its machines did not: it was worded anew, and is being misread."""
    before = {row.instance_type for row in known}
    after = {row.instance_type for row in listing.rows}
    return listing.complete and 2 * len(before & after) < len(before)


@dataclass(frozen=True, slots=True)
class _LastGood:
    """Built-in and refreshed prices. Nothing is taken from a catalog of the user's own, for which `in_use` is False."""

    in_use: bool
    rows: Mapping[str, Sequence[Row]]
    sources: Mapping[str, Sequence[Source]]

    @classmethod
    def read(cls, home: Path) -> _LastGood:
        """Refreshed prices, or the built-in ones where those are damaged: a refresh is there to replace them."""
        in_use = True
        try:
            in_use = all(status.origin is not snapshot.Origin.CHOSEN for status in snapshot.status(home))
            if in_use:
                return cls._of(home, in_use)
        except CatalogError:
            pass
        return cls._of(home / "catalog" / ".none", in_use)  # a home that holds nothing has what is built in

    @classmethod
    def _of(cls, home: Path, in_use: bool) -> _LastGood:
        table = snapshot.current(home)
        rows: dict[str, list[Row]] = {cloud: [] for cloud in table.clouds}
        for row in table.rows():
            rows[row.cloud].append(row)
        return cls(in_use, rows, {status.summary.cloud: status.summary.sources for status in snapshot.status(home)})
