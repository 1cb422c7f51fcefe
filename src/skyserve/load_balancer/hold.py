"""The queue of requests that wait while no replica can take them: first come, first served, bounded, with deadlines.

It knows order and deadlines, and nothing of what waits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Generic, Protocol, TypeVar


class Held(Protocol):
    """Something that waits. `hold_until` is its deadline on the caller's monotonic clock, seconds."""

    hold_until: float


H = TypeVar("H", bound=Held)


class Hold(Generic[H]):
    """The queue. `on_first` is called when it stops being empty; `total` have been in it so far. `waiting` are in it
    now, for others only to see whether there are any."""

    def __init__(self, on_first: Callable[[], None]) -> None:
        self._on_first = on_first
        self.waiting: dict[H, None] = {}
        self.total = 0

    def __len__(self) -> int:
        return len(self.waiting)

    def __iter__(self) -> Iterator[H]:
        """Those who wait, in order. Any of them may leave meanwhile, and is then passed over."""
        for held in list(self.waiting):
            if held in self.waiting:
                yield held

    def add(self, held: H) -> None:
        """Queue up at the end."""
        self.waiting[held] = None
        self.total += 1
        if len(self.waiting) == 1:
            self._on_first()

    def remove(self, held: H) -> None:
        """Leave the queue; nothing happens when it was not in it."""
        self.waiting.pop(held, None)

    def expired(self, now: float) -> list[H]:
        """Those whose deadline has passed; they stay until they are removed."""
        return [held for held in self.waiting if held.hold_until <= now]
