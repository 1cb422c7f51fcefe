"""What every cloud's module offers to `run`, and what it is given: the contract of this package."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Protocol

from skyserve.catalog.refresh.checkpoint import Checkpoint
from skyserve.catalog.refresh.credentials import Credentials
from skyserve.catalog.refresh.web import Web
from skyserve.catalog.row import Row, Source
from skyserve.clock import Clock


@dataclass(frozen=True, slots=True)
class Progress:
    """How far one cloud is. `total` is None as long as nobody knows it; `step` names what was just done."""

    cloud: str
    done: int
    total: int | None
    step: str = ""


@dataclass(frozen=True, slots=True)
class Listing:
    """One cloud's rows, where they come from, and what the user should know about them.

    `complete` means that what is missing is not sold any more, rather than sold out.
    """

    rows: Sequence[Row]
    sources: Sequence[Source]
    notes: tuple[str, ...] = ()
    complete: bool = True


@dataclass(frozen=True, slots=True)
class Setting:
    """What a feed works with. `known` are the last good rows of its cloud, `known_sources` where these come from.
    `base_urls` replaces APIs' addresses, by cloud (and `aws-spot-advisor`)."""

    web: Web
    clock: Clock
    credentials: Credentials = field(default_factory=Credentials)
    known: Sequence[Row] = ()
    known_sources: Sequence[Source] = ()
    base_urls: Mapping[str, str] = field(default_factory=dict)

    @property
    def today(self) -> str:
        """The date that today's prices get, ISO 8601, in UTC."""
        return datetime.fromtimestamp(self.clock.now(), UTC).date().isoformat()


class Steps:
    """Counts what is done, and tells whoever watches."""

    def __init__(self, cloud: str, report: Callable[[Progress], None]) -> None:
        self._cloud = cloud
        self._report = report
        self._done = 0
        self._total: int | None = None

    def expect(self, total: int | None) -> None:
        """Start anew, with so many steps ahead."""
        self._done, self._total = 0, total
        self._tell("")

    def finish(self, step: str) -> None:
        """One more step is done."""
        self._done += 1
        self._tell(step)

    def _tell(self, step: str) -> None:
        self._report(Progress(self._cloud, self._done, self._total, step))


class Feed(Protocol):
    """One cloud's price API."""

    @property
    def cloud(self) -> str:
        """The cloud, as rows name it."""
        ...

    async def listing(self, steps: Steps, checkpoint: Checkpoint) -> Listing:
        """Everything on offer now. Saves what is fetched in `checkpoint`, and asks only for what is not there yet.

        Raises Throttled, ProviderUnavailable, CredentialsRejected or CatalogError.
        """
        ...


def enumerate_briefly(names: Sequence[str], limit: int = 8) -> str:
    """A list for a note: the first names, and how many more."""
    listed = ", ".join(names[:limit])
    return f"{listed} and {len(names) - limit} more" if len(names) > limit else listed
