"""Reading a log that is rotated while it is read: `log` is the newest part, `log.1` the one before it. Knows files
only, not whose output it is."""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import AsyncIterator, Callable
from io import FileIO
from pathlib import Path

from skyserve.providers.bootstrap import OLD_LOGS

_CHUNK = 65536
_GLANCE = 4096
_FOLLOW_INTERVAL_S = 0.1


class LogReader:
    """One stream over all parts of a log, oldest first, that goes on into parts begun later."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._files = deque(_open_parts(path))

    def skip_to_tail(self, lines: int) -> None:
        """Go forward to the last `lines` lines of what is there now."""
        missing = lines + 1  # newlines: the one before the first wanted line counts too
        for index in range(len(self._files) - 1, -1, -1):
            file = self._files[index]
            offset, missing = _seek_back(file, missing, last=index == len(self._files) - 1)
            file.seek(offset)
            if missing == 0:
                for _ in range(index):
                    self._files.popleft().close()
                return

    def read(self) -> bytes:
        """The next piece, or nothing when all there is has been read."""
        while self._files:
            if data := self._files[0].read(_CHUNK):
                return data
            if len(self._files) > 1:
                self._files.popleft().close()
            elif not self._find_newer():
                return b""
        return b""

    def close(self) -> None:
        """Release the files."""
        while self._files:
            self._files.popleft().close()

    def _find_newer(self) -> bool:
        """Open the parts begun since. The current one stays: it may have grown before it was rotated away."""
        current = _identity(self._files[0])
        parts = _open_parts(self._path)
        known = [index for index, part in enumerate(parts) if _identity(part) == current]
        first_newer = known[0] + 1 if known else 0
        for part in parts[:first_newer]:
            part.close()
        self._files.extend(parts[first_newer:])
        return len(parts) > first_newer


async def stream(path: Path, *, tail: int | None, follow: bool, ended: Callable[[], bool]) -> AsyncIterator[bytes]:
    """What the log holds, from its last `tail` lines on; with `follow` until `ended` says that no more will come."""
    reader = await asyncio.to_thread(LogReader, path)
    try:
        if tail is not None:
            await asyncio.to_thread(reader.skip_to_tail, tail)
        while True:
            over = not follow or await asyncio.to_thread(ended)  # asked first, so that the last words are not missed
            while data := await asyncio.to_thread(reader.read):
                yield data
            if over:
                return
            await asyncio.sleep(_FOLLOW_INTERVAL_S)
    finally:
        reader.close()


def last_lines(path: Path, count: int) -> list[str]:
    """The last lines of a log as text, without control characters; none if there is no log. Looks at its end only."""
    end = b""
    for part in reversed(_open_parts(path)):
        with part:
            part.seek(max(0, part.seek(0, os.SEEK_END) - _GLANCE))
            end = part.read(_GLANCE) + end
    text = end.decode(errors="replace")
    return ["".join(char for char in line if char.isprintable()) for line in text.splitlines()][-count:]


def append_log(path: Path, kept: Path, *, heading: str, limit_bytes: int) -> None:
    """Add a whole log to the file `kept`, under a heading if that holds something already; keep the last bytes."""
    reader = LogReader(path)
    try:
        with kept.open("ab") as target:
            if target.tell():
                target.write(f"{heading}\n".encode())
            for data in iter(reader.read, b""):
                target.write(data)
            too_long = target.tell() > limit_bytes
    finally:
        reader.close()
    if too_long:
        _keep_last(kept, limit_bytes)


def _keep_last(path: Path, limit_bytes: int) -> None:
    shorter = path.with_name(f"{path.name}.new")
    with path.open("rb") as source, shorter.open("wb") as target:
        source.seek(-limit_bytes, os.SEEK_END)
        source.readline()  # most likely half a line
        while data := source.read(_CHUNK):
            target.write(data)
    shorter.replace(path)


def _open_parts(path: Path) -> list[FileIO]:
    """All parts, oldest first. Opened newest first: a rotation in between shows a part twice, but hides none."""
    parts: list[FileIO] = []
    for name in (path, *(path.with_name(f"{path.name}.{number}") for number in range(1, OLD_LOGS + 1))):
        try:
            part = FileIO(name)
        except FileNotFoundError:
            continue
        if any(_identity(part) == _identity(other) for other in parts):
            part.close()
        else:
            parts.append(part)
    return parts[::-1]


def _identity(file: FileIO) -> tuple[int, int]:
    stat = os.fstat(file.fileno())
    return stat.st_dev, stat.st_ino


def _seek_back(file: FileIO, newlines: int, *, last: bool) -> tuple[int, int]:
    """Where to begin so that `newlines` newlines lie behind, and how many are missing if there are fewer."""
    end = file.seek(0, os.SEEK_END)
    if last and end:
        file.seek(end - 1)
        newlines -= file.read(1) != b"\n"  # an unfinished line needs no newline to count
        if newlines == 0:
            return end, 0
    while end > 0:
        start = max(0, end - _CHUNK)
        file.seek(start)
        block = file.read(end - start)
        while (found := block.rfind(b"\n")) >= 0:
            newlines -= 1
            if newlines <= 0:
                return start + found + 1, 0
            block = block[:found]
        end = start
    return 0, newlines
