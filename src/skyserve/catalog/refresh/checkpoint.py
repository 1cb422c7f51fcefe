"""What an interrupted refresh has already fetched, kept until the cloud is complete. Knows files; knows no cloud."""

from __future__ import annotations

import hashlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from skyserve.clock import Clock
from skyserve.errors import CatalogError
from skyserve.model import codec

MAX_AGE_S = 6 * 3600.0
"""Older parts are fetched again, so that one catalog never mixes prices of different days."""

_FORMAT = 1  # raise it when a part's dataclass changes its meaning

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Stamp:
    format: int
    key: str
    saved_at: float


class Checkpoint:
    """Parts (a region, a page) of one cloud's prices, each a file: a stamp line, then the part."""

    def __init__(self, directory: Path, clock: Clock, *, max_age_s: float = MAX_AGE_S) -> None:
        self._directory = directory
        self._clock = clock
        self._max_age_s = max_age_s
        self.reused = 0
        """How many parts were taken from an earlier, interrupted refresh."""

    def load(self, key: str, cls: type[T]) -> T | None:
        """The part saved under `key`, or None when there is none, it is too old, or cannot be read."""
        try:
            head, _, body = self._path(key).read_text("utf-8").partition("\n")
            stamp = codec.loads(_Stamp, head)
            age_s = self._clock.now() - stamp.saved_at
            if (stamp.format, stamp.key) != (_FORMAT, key) or not 0 <= age_s <= self._max_age_s:
                return None
            part = codec.loads(cls, body)
        except (OSError, UnicodeDecodeError, codec.CodecError):
            return None  # a part can always be fetched again
        self.reused += 1
        return part

    def save(self, key: str, part: object) -> None:
        """Keep a part (a dataclass). It is there whole or not at all. Raises CatalogError when it cannot be written."""
        path = self._path(key)
        draft = path.with_suffix(f".{os.getpid()}")
        stamp = _Stamp(_FORMAT, key, self._clock.now())
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            draft.write_text(f"{codec.dumps(stamp)}\n{codec.dumps(part)}", "utf-8")
            os.replace(draft, path)
        except OSError as error:
            hint = "Make room, or make the directory writable, and run `sky catalog refresh` again: it resumes."
            raise CatalogError(f"cannot write to {self._directory}: {error.strerror}", hint=hint) from error

    def clear(self) -> None:
        """Forget everything: the cloud is complete, or its parts do not fit together."""
        shutil.rmtree(self._directory, ignore_errors=True)
        self.reused = 0

    def _path(self, key: str) -> Path:
        digest = hashlib.sha256(key.encode()).hexdigest()[:24]  # keys hold slashes and page tokens
        return self._directory / f"{digest}.json"
