"""The other workers of a door, as its first process sees them: started, told, heard, summed up, replaced.

It knows processes and the words of `wire.py`. It must not know requests.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import socket
import subprocess
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import cast

from skyserve.load_balancer import recent, wire
from skyserve.load_balancer.board import MOST_WORKERS, Board
from skyserve.model.routing import RoutingTable

PATIENCE_S = 2.0
"""How long a worker may take to end when its grace is over."""

SILENCE = 5
"""Looks at a worker that has been heard before, without a word of it since, after which it is taken for hanging."""

RESPAWN_S = 1.0
"""Pause before a worker that ended by itself is followed by another."""

logger = logging.getLogger("skyserve.load_balancer")


class Crew:
    """All workers but the first. `command` starts one; `on_news` is called when one has said something. There are as
    many workers as the table says, or as `usual` when it does not."""

    def __init__(self, command: list[str], board: Board, on_news: Callable[[], None], usual: int = 1) -> None:
        self._command = command
        self._board = board
        self._on_news = on_news
        self._usual = usual
        self._members: dict[int, Member] = {}
        self._wanted = 0
        self._table: RoutingTable | None = None
        self._past = wire.Totals()
        self._loop = asyncio.get_running_loop()
        self._stopping = False
        self._stop_at = float("inf")
        self._all_gone = asyncio.Event()
        board.columns = 1

    @property
    def board(self) -> Board | None:
        """Where the workers see each other's requests; None while there is one worker."""
        return self._board if self._members else None

    def share(self, table: RoutingTable) -> RoutingTable:
        """The table as each worker gets it: all of them together hold as many requests as the service may."""
        workers = self._workers(table)
        size = math.ceil(table.settings.queue_size / workers)
        return replace(table, settings=replace(table.settings, queue_size=size, workers=workers))

    def follow(self, table: RoutingTable) -> None:
        """Have as many workers as the table says, and tell it to them."""
        if self._stopping:
            return
        self._table = table
        self._wanted = self._workers(table) - 1
        for index in range(1, self._wanted + 1):
            if index not in self._members:
                self._start(index)
        for index, member in self._members.items():
            member.say(wire.encode_table(self.share(table)) if index <= self._wanted else wire.encode_stop(wire.Stop()))
        self._count_columns()

    def stop(self, grace_s: float) -> None:
        """End them all; `gone` tells when."""
        self._stopping = True
        self._wanted = 0
        self._stop_at = min(self._stop_at, self._loop.time() + grace_s + PATIENCE_S)
        for member in self._members.values():
            member.say(wire.encode_stop(wire.Stop(grace_s)))

    async def gone(self) -> None:
        """Wait until they have ended; those that do not are killed."""
        if self._members:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._all_gone.wait(), self._stop_at - self._loop.time())
        for member in list(self._members.values()):
            member.process.kill()
            member.process.wait()

    def merged(self, own: wire.DoorReport) -> wire.DoorReport:
        """What all of them have seen. The table is the oldest that one of them obeys."""
        reports = [own, *(member.report for member in self._members.values() if member.report is not None)]
        if len(reports) == 1 and not self._past.requests_total:
            return own
        load = replace(
            own.load,
            table=min(report.load.table for report in reports),
            in_flight=dict(_sum(report.load.in_flight for report in reports)),
            held=sum(report.load.held for report in reports),
            requests_total=self._past.requests_total + sum(report.load.requests_total for report in reports),
            arrivals_per_s=sum(report.load.arrivals_per_s for report in reports),
        )
        load = recent.merged(load, own.load, [report.load for report in reports[1:]], self._past.versions)
        return wire.DoorReport(
            load,
            tuple(sorted({replica_id for report in reports for replica_id in report.suspects})),
            dict(_sum([self._past.responses, *(report.responses for report in reports)])),
            self._past.retries + sum(report.retries for report in reports),
        )

    def samples(self) -> list[list[wire.Sample]]:
        """The numbers for operators, of each."""
        return [member.samples for member in self._members.values()]

    def look(self) -> None:
        """To be called as often as they report. One that hangs is killed: the kernel goes on giving it connections."""
        for member in self._members.values():
            member.looks += member.report is not None
            if member.looks > SILENCE:
                logger.error("worker %d hangs and is killed", member.index)
                member.process.kill()

    def heard(self, member: Member, line: bytes) -> None:
        """One of them said something. Raises wire.BadWord."""
        member.looks = 0
        if wire.is_samples(line):
            member.samples = wire.decode_samples(line)
            return
        word = wire.decode_report(line, at=0.0)
        if isinstance(word, wire.DoorReport):
            member.report = word
            self._on_news()

    def lost(self, member: Member) -> None:
        """One of them has ended. What it counted stays counted."""
        self._members.pop(member.index, None)
        if not self._members:
            self._all_gone.set()
        self._loop.run_in_executor(None, member.process.wait)
        self._board.clear(member.index)
        if member.report is not None:
            self._past = self._past.plus(member.report)
        self._count_columns()
        if member.index <= self._wanted:
            logger.warning("worker %d ended and is replaced", member.index)
            self._loop.call_later(RESPAWN_S, self._again)
        self._on_news()

    def _workers(self, table: RoutingTable) -> int:
        return max(1, min(table.settings.workers or self._usual, MOST_WORKERS))

    def _again(self) -> None:
        if self._table is not None:
            self.follow(self._table)

    def _count_columns(self) -> None:
        self._board.columns = 1 + max(self._members, default=0)

    def _start(self, index: int) -> None:
        ours, theirs = socket.socketpair()
        descriptors = (theirs.fileno(), self._board.file)
        more = ["--worker", str(index), "--channel", str(descriptors[0]), "--board", str(descriptors[1])]
        try:
            process = subprocess.Popen([*self._command, *more], stdin=subprocess.DEVNULL, pass_fds=descriptors)
        except OSError as error:
            logger.error("worker %d cannot be started: %s", index, error)
            ours.close()
            return
        finally:
            theirs.close()
        ours.setblocking(False)
        member = self._members[index] = Member(self, index, process)
        member.joining = self._loop.create_task(self._join(member, ours))

    async def _join(self, member: Member, ours: socket.socket) -> None:
        await self._loop.create_unix_connection(lambda: member, sock=ours)


class Member(asyncio.Protocol):
    """One worker, at the first one's end of its channel. `looks`: those at it since it was last heard."""

    def __init__(self, crew: Crew, index: int, process: subprocess.Popen[bytes]) -> None:
        self.index = index
        self.process = process
        self.report: wire.DoorReport | None = None
        self.looks = 0
        self.samples: list[wire.Sample] = []
        self.joining: asyncio.Task[None] | None = None
        self._crew = crew
        self._transport: asyncio.Transport | None = None
        self._unsaid: list[bytes] = []
        self._lines = wire.Lines()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio."""
        self._transport = cast(asyncio.Transport, transport)
        self._transport.writelines(self._unsaid)
        self._unsaid = []

    def data_received(self, data: bytes) -> None:
        """See asyncio."""
        try:
            for line in self._lines.feed(data):
                self._crew.heard(self, line)
        except wire.BadWord as error:
            logger.error("worker %d is not understood: %s", self.index, error)
            self.process.kill()

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio."""
        self._crew.lost(self)

    def say(self, line: bytes) -> None:
        """Send one line."""
        if self._transport is None:
            self._unsaid.append(line)
        else:
            self._transport.write(line)


def _sum(counts: Iterable[object]) -> Counter[int]:
    total: Counter[int] = Counter()
    for one in counts:
        total.update(cast(dict[int, int], one))
    return total
