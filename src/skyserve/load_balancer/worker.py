"""A further worker of a door: the same data plane on the same port, told by the first process and reporting to it.

It knows its channel and the words of `wire.py`; it keeps no files and has no admin socket.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import socket
from random import Random
from typing import cast

from skyserve.load_balancer import metrics, wire
from skyserve.load_balancer.board import Board
from skyserve.load_balancer.door import Door
from skyserve.load_balancer.server import Server, open_listener
from skyserve.load_balancer.sync import REPORT_S

GRACE_S = 10.0
"""How long requests under way may go on when the first process is gone."""

logger = logging.getLogger("skyserve.load_balancer")


class Channel(asyncio.Protocol):
    """The way to the first process. `table` is set when the first table has come."""

    def __init__(self, door: Door, server: Server, board: Board) -> None:
        self._door = door
        self._server = server
        self._board = board
        self._loop = asyncio.get_running_loop()
        self._lines = wire.Lines()
        self._transport: asyncio.Transport | None = None
        self._soon: asyncio.Handle | None = None
        self._timer: asyncio.TimerHandle | None = None
        self.begun: asyncio.Future[bool] = self._loop.create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio."""
        self._transport = cast(asyncio.Transport, transport)
        self._door.on_news = self._report_soon
        self._tick()

    def data_received(self, data: bytes) -> None:
        """See asyncio."""
        for line in self._lines.feed(data):
            order = wire.decode_order(line)
            if isinstance(order, wire.Stop):
                self._end(order.grace_s)
            else:
                self._door.apply(order)
                self._board.columns = max(order.settings.workers or 1, self._board.column + 1)
                if not self.begun.done():
                    self.begun.set_result(True)

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio. Without the first process nobody would tell of a change: no new clients."""
        self._transport = None
        self._end(GRACE_S)

    def close(self) -> None:
        """Say the last report and hang up."""
        for handle in (self._timer, self._soon):
            if handle is not None:
                handle.cancel()
        self._report()
        if self._transport is not None:
            self._transport.close()

    def _end(self, grace_s: float) -> None:
        if self.begun.done():
            self._server.stop(grace_s)
        else:
            self.begun.set_result(False)

    def _report_soon(self) -> None:
        if self._soon is None:
            self._soon = self._loop.call_soon(self._report)

    def _report(self) -> None:
        self._soon = None
        if self._transport is not None and self._door.table.number:  # before that nobody is served, and all is zero
            self._transport.write(wire.encode_report(self._door.report()))

    def _tick(self) -> None:
        self._timer = self._loop.call_later(REPORT_S, self._tick)
        self._report()
        if self._transport is not None and self._door.table.number:
            self._transport.write(wire.encode_samples(metrics.samples(self._door)))


async def serve(address: tuple[str, int], channel_file: int, board: Board, most_clients: int) -> int:
    """Serve until told to stop, or until the first process is gone; the exit code."""
    loop = asyncio.get_running_loop()
    door = Door(os.urandom(8).hex(), loop.time, Random())
    door.pool.share(board)
    server = Server(door, most_clients)
    channel = Channel(door, server, board)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, lambda: None)  # the first process gets them too, and says what to do
    ours = socket.socket(fileno=channel_file)
    ours.setblocking(False)
    await loop.create_unix_connection(lambda: channel, sock=ours)
    if await channel.begun:
        await server.start(open_listener(*address, alone=False))
        gc.collect()
        gc.freeze()
        await server.stopped
    channel.close()
    await asyncio.sleep(0)
    return 0
