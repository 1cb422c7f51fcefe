"""Several logs at once, line by line. Knows streams of bytes and replicas that come and go.

One thread reads each followed log and hands its lines over; only the caller's thread prints.
"""

from __future__ import annotations

import codecs
import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from skyserve.cli.client import ControlClient, LogSource
from skyserve.cli.session import Session
from skyserve.errors import ServiceNotFound, SkyServeError
from skyserve.model.replica import COMING
from skyserve.model.view import ServiceView

_LOOK_S = 1.0
_COMING = frozenset(status.value for status in COMING)


@dataclass(frozen=True, slots=True)
class _Line:
    source: LogSource
    text: str


@dataclass(frozen=True, slots=True)
class _End:
    source: LogSource
    error: SkyServeError | None = None


def replicas_of(view: ServiceView | None) -> list[LogSource]:
    """The logs of all replicas that a service has now."""
    return [LogSource("replica", replica.id) for replica in (view.replicas if view else ())]


def lines_of(pieces: Iterable[bytes]) -> Iterator[str]:
    """Cut a stream of bytes into lines, whole characters only."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    rest = ""
    for piece in pieces:
        *lines, rest = (rest + decoder.decode(piece)).split("\n")
        yield from lines
    rest += decoder.decode(b"", final=True)
    if rest:
        yield rest


class LogStream:
    """Prints logs of one service; `tail` is the number of lines to begin with, None for all."""

    def __init__(self, session: Session, client: ControlClient, name: str, tail: int | None) -> None:
        self._session = session
        self._client = client
        self._name = name
        self._tail = tail
        self._named: set[LogSource] = set()  # told apart by a prefix as soon as there are two
        self._spoke: set[LogSource] = set()
        self._open: set[LogSource] = set()
        self._arrived: queue.Queue[_Line | _End] = queue.Queue()

    def read(self, sources: Sequence[LogSource]) -> None:
        """Print what there is, one log after the other."""
        self._named.update(sources)
        if not sources:
            self._session.screen.say("No existing replicas.")
        for source in sources:
            for line in lines_of(self._client.logs(self._name, source, follow=False, tail=self._tail)):
                self._print(_Line(source, line))

    def follow(self, sources: Sequence[LogSource]) -> None:
        """Print logs as they grow, until their sources are gone.

        Without any `sources`, those of all replicas, of later ones too, until the service is gone.
        """
        while True:
            view = self._look()
            self._start(sources or replicas_of(view))
            self._take(strict=bool(sources))
            if not self._open and (view is None or (sources and not self._may_speak(sources, view))):
                return

    def _look(self) -> ServiceView | None:
        try:
            return self._client.service(self._name)
        except ServiceNotFound:
            return None

    def _may_speak(self, sources: Sequence[LogSource], view: ServiceView) -> bool:
        """Whether a replica that had nothing to say yet is still coming up."""
        coming = {replica.id for replica in view.replicas if replica.status in _COMING}
        return any(source.replica_id in coming and source not in self._spoke for source in sources)

    def _start(self, sources: Iterable[LogSource]) -> None:
        """Read logs that are not being read. One that ended without a word is asked again: it may not have begun."""
        for source in sources:
            if source not in self._open | self._spoke:
                self._named.add(source)
                self._open.add(source)
                threading.Thread(target=self._reader(source), name=source.title, daemon=True).start()

    def _reader(self, source: LogSource) -> Callable[[], None]:
        def read() -> None:
            error: SkyServeError | None = None
            try:
                for line in lines_of(self._client.logs(self._name, source, follow=True, tail=self._tail)):
                    self._arrived.put(_Line(source, line))
            except SkyServeError as caught:
                error = caught
            self._arrived.put(_End(source, error))

        return read

    def _take(self, *, strict: bool) -> None:
        """Print what arrives for about a second; a log that cannot be read is an error only when it was asked for."""
        until = self._session.now() + _LOOK_S
        while True:
            try:
                arrived = self._arrived.get(timeout=max(0.01, until - self._session.now()))
            except queue.Empty:
                return
            if isinstance(arrived, _Line):
                self._print(arrived)
            else:
                self._end(arrived, strict=strict)
            if self._session.now() >= until:
                return

    def _end(self, end: _End, *, strict: bool) -> None:
        self._open.discard(end.source)
        if end.error is None:
            return
        if strict:
            raise end.error
        self._spoke.add(end.source)
        self._session.screen.warn(f"{end.source.title}: {end.error.message}")

    def _print(self, line: _Line) -> None:
        source, screen = line.source, self._session.screen
        self._spoke.add(source)
        if self._session.as_json:
            screen.json({"source": source.kind, "replica_id": source.replica_id, "line": line.text}, line=True)
        elif len(self._named) > 1:
            screen.data(f"({source.title}) {line.text}")
        else:
            screen.data(line.text)
