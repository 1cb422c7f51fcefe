"""The controller's end of the door: keep its process alive, push the routing table, hear the load.

The door is a process of its own that outlives the controller. A new controller finds it by its admin socket, and
restarts it only when nobody answers there.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from skyserve.clock import Clock
from skyserve.load_balancer import wire
from skyserve.model.evidence import LoadReport
from skyserve.model.routing import RoutingTable

RETRY_S = 0.05
"""Pause between two attempts to reach a door that is starting."""
START_DEADLINE_S = 10.0
SILENCE_S = 10.0
"""A door reports every second; one that has not for this long is asked anew, on another connection."""
GREETING_S = 5.0
"""A door that lives greets at once whoever connects; one that has not after this long is killed and replaced."""
QUICK_DEATH_S = 1.0
LINE_LIMIT = 1 << 20
"""Longest report that is read, in bytes."""
EXIT_PORT_IN_USE = 98
STOP_GRACE_S = 10.0

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class DoorPlace:
    """Where a service's door lives and listens."""

    service: str
    directory: Path
    socket: Path
    host: str
    port: int


class Door:
    """One service's door. `load` is its latest report, None while it is not heard; `trouble` says why it is not up.

    `nudge` is called when a report matters at once: among others when `crosses` says that it calls for another number
    of replicas, which may be set later.
    """

    def __init__(
        self, place: DoorPlace, clock: Clock, nudge: Callable[[], None], suspect: Callable[[int], None]
    ) -> None:
        self.crosses: Callable[[LoadReport], bool] = _never
        self._place = place
        self._clock = clock
        self._nudge = nudge
        self._suspect = suspect
        self._table: RoutingTable | None = None
        self._awaited = 0
        self._writer: asyncio.StreamWriter | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._pid: int | None = None
        self._started_at = 0.0
        self._stopping = False
        self.load: LoadReport | None = None
        self.trouble = ""

    def publish(self, table: RoutingTable) -> None:
        """Push a table that is not the one before. Its number alone is news too: the door repeats it, and so tells that
        it obeys all that was decided up to then."""
        if table != self._table:
            if self._table is None or _draining(table) != _draining(self._table):
                self._awaited = table.number
            self._table = table
            self._push()

    def _push(self) -> None:
        if self._writer is not None and self._table is not None:
            self._writer.write(wire.encode_table(self._table))

    async def run(self) -> None:
        """Keep the door up until `stop`."""
        while not self._stopping:
            connection = await self._connect()
            if connection is None:
                await self._restart()
                continue
            self.trouble = ""
            reader, self._writer = connection
            self._push()
            try:
                await self._hear(reader, GREETING_S)
                await self._listen(reader)
            except (OSError, TimeoutError, ValueError) as error:
                log.warning("service %s: the door is not heard: %s", self._place.service, error or "silence")
                self._kill()
            finally:
                await self._disconnect()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        try:
            return await asyncio.open_unix_connection(str(self._place.socket), limit=LINE_LIMIT)
        except OSError:
            return None

    async def _disconnect(self) -> None:
        writer, self._writer = self._writer, None
        self.load = None
        if writer is not None:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        """Take reports until the door closes the connection or falls silent. Silence alone kills no door: it may
        be this process that was stopped for a while."""
        with contextlib.suppress(TimeoutError):
            while await self._hear(reader, SILENCE_S):
                pass
            self._pid = None  # it hung up: its number may soon be another process's

    async def _hear(self, reader: asyncio.StreamReader, patience_s: float) -> bool:
        """Take one line; whether there was one. Raises TimeoutError."""
        async with asyncio.timeout(patience_s):
            line = await reader.readline()
        if not line:
            return False
        message = wire.decode_report(line, at=self._clock.now())
        if isinstance(message, wire.Hello):
            self._pid = message.pid
        else:
            self._take(message)
        return True

    def _take(self, message: wire.DoorReport) -> None:
        before, self.load = self.load, message.load
        for replica_id in message.suspects:
            self._suspect(replica_id)
        if before is None or self._matters(before, message.load) or self.crosses(message.load):
            self._nudge()

    def _matters(self, before: LoadReport, after: LoadReport) -> bool:
        """Whether a report may change a decision at once, rather than at the next look. That a table is obeyed matters
        once for each change of who is draining: were each number news, each look would make for the next one."""
        woke = after.held > 0 and before.held == 0
        drained = any(not after.in_flight.get(replica_id) for replica_id, count in before.in_flight.items() if count)
        return woke or drained or before.table < self._awaited <= after.table

    async def _restart(self) -> None:
        """Start a door process and wait until it answers, or until it has given up."""
        if self._process is None or self._process.poll() is not None:
            await self._mourn()
            if self._stopping:
                return
            self._started_at = self._clock.now()
            try:
                self._process = self._spawn()
            except OSError as error:
                self._complain(f"the endpoint is down: its process cannot be started: {error}")
                await self._clock.sleep(QUICK_DEATH_S)
                return
        deadline = self._clock.now() + START_DEADLINE_S
        while self._clock.now() < deadline and self._process.poll() is None and not self._stopping:
            if self._place.socket.exists() and await self._answers():
                return
            await self._clock.sleep(RETRY_S)

    async def _mourn(self) -> None:
        """Say why the last process ended; one that hardly lived is not followed by another at once."""
        if self._process is None or not self._process.returncode:
            return
        self._explain(self._process.returncode)
        if self._clock.now() - self._started_at < QUICK_DEATH_S:
            await self._clock.sleep(QUICK_DEATH_S)

    async def _answers(self) -> bool:
        connection = await self._connect()
        if connection is None:
            return False
        connection[1].close()
        return True

    def _explain(self, code: int) -> None:
        if code == EXIT_PORT_IN_USE:
            self._complain(f"the endpoint is down: another program listens on port {self._place.port}")
        else:
            self._complain(f"the endpoint is down: its process ended with code {code}")

    def _complain(self, trouble: str) -> None:
        if trouble != self.trouble:
            log.error("service %s: %s", self._place.service, trouble)
        self.trouble = trouble

    def _spawn(self) -> subprocess.Popen[bytes]:
        place = self._place
        place.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        place.socket.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        command = [sys.executable, "-m", "skyserve.load_balancer", "--service", place.service]
        command += ["--dir", str(place.directory), "--host", place.host, "--port", str(place.port)]
        command += ["--socket", str(place.socket)]
        if self._table is not None and self._table.tls is not None:
            command += ["--tls-keyfile", self._table.tls.keyfile, "--tls-certfile", self._table.tls.certfile]
        log.info("service %s: starting the door on port %d", place.service, place.port)
        descriptor = os.open(place.directory / "door.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            return subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=descriptor, stderr=descriptor, start_new_session=True
            )
        finally:
            os.close(descriptor)

    def _kill(self) -> None:
        """End the door's processes at once: one of its workers may hang as well, and would keep the port."""
        if self._process is not None and self._process.poll() is None:
            _kill_group(self._process.pid)
        if self._pid is not None:
            _kill_group(self._pid)
            self._pid = None

    async def stop(self) -> None:
        """End the door for good: it finishes what it has, up to a grace, and is then killed."""
        self._stopping = True
        if self._writer is not None:
            self._writer.write(wire.encode_stop(wire.Stop(STOP_GRACE_S)))
        elif self._process is not None:
            self._process.terminate()  # it is starting, and not to be spoken to yet
        deadline = self._clock.now() + STOP_GRACE_S + 2.0
        while self._clock.now() < deadline and self._is_there():
            await self._clock.sleep(RETRY_S)
        if self._is_there():
            self._kill()
        self._place.socket.unlink(missing_ok=True)
        if self._process is not None:
            await asyncio.to_thread(self._process.wait)

    def _is_there(self) -> bool:
        """Whether the door still lives: our own child, or one that was adopted and is known by its socket."""
        if self._process is not None:
            return self._process.poll() is None
        return self._place.socket.exists()


def _kill_group(pid: int) -> None:
    for kill in (os.killpg, os.kill):  # a door that was started here leads the group of its workers
        with contextlib.suppress(ProcessLookupError):
            kill(pid, signal.SIGKILL)


def _never(load: LoadReport) -> bool:
    return False


def _draining(table: RoutingTable) -> set[int]:
    return {row.replica_id for row in table.endpoints if row.draining}
