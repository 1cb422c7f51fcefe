"""What the provider contract is tried on: a world with one provider in it, and what a case of the suite sees of it.

A `World` is made once for all cases of a provider, as real as can be had. Cases use services of their own, so that
many can go on at once. Must not know any provider.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Any, ClassVar

from skyserve.model.evidence import Instance, InstanceState
from skyserve.model.offering import Offering
from skyserve.model.resources import Resources
from skyserve.providers.base import Exit, LaunchOrder, Provider

SERVES, EXITS, FAILS_SETUP = "serves", "exits with 3", "setup exits with 4"
PORT = 8080
PATIENCE_S = 30.0
GIVE_UP_S = 5.0

_SERVER = """
import http.server, json, os
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        files = {name: open(name).read() for name in ("data.txt", "assets/model.txt") if os.path.exists(name)}
        body = json.dumps({"pid": os.getpid(), "env": dict(os.environ), "files": files}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_):
        pass
http.server.ThreadingHTTPServer(("", int(os.environ["PORT"])), Handler).serve_forever()
"""
RUN = {
    SERVES: f"echo listening\nexec python3 - <<'END'{_SERVER}END\n",
    EXITS: "echo listening; echo last words; exit 3",
    FAILS_SETUP: "echo never",
}
SETUP = {FAILS_SETUP: "echo setting up; exit 4"}


class Cannot(Exception):
    """The provider cannot do what a case is about; the message says why."""


class Trouble(Enum):
    """What may go wrong with a whole provider."""

    CAPACITY = "capacity"
    QUOTA = "quota"
    THROTTLED = "throttled"
    CREDENTIALS = "credentials"
    SILENT = "silent"


class World:
    """A provider under test, and the handles that cases need on what it stands for. Subclasses fill in the blanks.

    `cannot` says what there cannot be here, beside what the provider's capabilities say, by a case's needs.
    `reports`: its machines report by themselves, so that `listen`'s callback fires. `silence_raises`: a silent
    provider's listing raises; otherwise it tells what was known last. `test_host` is the test's own address as machines
    know it. `at_once` is how many cases may go on at the same time.
    """

    provider: Provider
    offering: Offering
    spot_offering: Offering | None = None
    resources = Resources()
    cannot: ClassVar[Mapping[str, str]] = {}
    last_words = "last words"
    reports = False
    silence_raises = True
    test_host = "127.0.0.1"
    at_once = 10

    def __init__(self, home: Path) -> None:
        self.home = home
        self.orders: dict[tuple[str, str], LaunchOrder] = {}
        self.news = 0
        self._asking = asyncio.Lock()
        self._next: asyncio.Task[Sequence[Instance]] | None = None

    def controller(self) -> Provider:
        """A provider as a controller that starts in this home makes one: the same installation."""
        raise NotImplementedError

    def stranger(self) -> Provider:
        """The provider of another installation, in the same account or on the same machine."""
        raise NotImplementedError

    def trouble(self, kind: Trouble) -> AbstractContextManager[None]:
        """Something goes wrong with every call, as long as this lasts."""
        raise NotImplementedError

    def take_back(self, instance: Instance, notice_s: float) -> None:
        """Let the provider give notice to an instance now, and take it back so many seconds later."""
        raise NotImplementedError

    def leftovers(self) -> list[str]:
        """What is there although every instance was ended."""
        return []

    def gate(self) -> AbstractAsyncContextManager[Gate]:
        """Something to hold a script back, until it is opened or this ends."""
        return _gate(self.test_host)

    async def pass_time(self) -> None:
        """Let a moment pass."""
        await asyncio.sleep(0.1)

    def order(self, life: str, service: str, token: str) -> LaunchOrder:
        """An order for a replica that will lead this life."""
        name = service.rpartition("-")[0]
        return LaunchOrder(service, name, 1, 1, token, "v1", self.offering, RUN[life], SETUP.get(life), PORT)

    async def open(self) -> None:
        """Begin, or begin again as a controller does that was killed."""
        await hang_up(getattr(self, "provider", None))
        self.provider = self.controller()
        self.provider.listen(self._count, self._order_of)

    async def close(self) -> None:
        """The end: hang up."""
        await hang_up(self.provider)

    def now(self) -> float:
        """This world's Unix time."""
        return time.time()

    def troubled(self, kind: Trouble, order: LaunchOrder) -> LaunchOrder:
        """An order that will meet this trouble: the same, unless trouble is a matter of what is ordered."""
        return order

    async def look(self) -> Sequence[Instance]:
        """A listing that was asked for after this call; those who ask meanwhile share it.

        One question at a time, as a controller asks: an answer never comes after that to a later question.
        """
        if self._next is None:
            self._next = asyncio.create_task(self._list_soon())
        return await asyncio.shield(self._next)

    def _count(self) -> None:
        self.news += 1

    async def _list_soon(self) -> Sequence[Instance]:
        await self.pass_time()
        async with self._asking:
            self._next = None
            return await self.provider.instances()

    async def _order_of(self, service: str, token: str) -> LaunchOrder | None:
        return self.orders.get((service, token))


class Stage:
    """The world as one case sees it: services `NAME-u1` and `NAME-u2` of its own, and nobody else's instances."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.service = f"{name.replace(' ', '-')}-u1"
        self.other_service = f"{name.replace(' ', '-')}-u2"

    @property
    def provider(self) -> Provider:
        """The provider as it is now: another one after a restart."""
        return self.world.provider

    def need(self, *abilities: str) -> None:
        """Raise Cannot when one of these is not to be had here."""
        for ability in abilities:
            reason = self.world.cannot.get(ability) or self.provider.capabilities.cannot.get(ability)
            if reason is not None:
                raise Cannot(reason)

    def order(self, life: str = SERVES, *, token: str = "", service: str = "", **rest: Any) -> LaunchOrder:
        """An order of this case, with a token of its own unless one is given."""
        service = service or self.service
        return replace(self.world.order(life, service, token or f"{service}-{uuid.uuid4().hex[:6]}"), **rest)

    def spot_order(self) -> LaunchOrder:
        """An order for a machine that may be taken back."""
        assert self.world.spot_offering is not None
        return self.order(offering=self.world.spot_offering)

    async def launch(self, order: LaunchOrder | str = SERVES, *, by: Provider | None = None) -> Instance:
        """Launch an order, or a replica that leads this life; by another provider, if one is given."""
        if isinstance(order, str):
            order = self.order(order)
        if by is None:
            self.world.orders[order.service, order.token] = order
            return await self.provider.launch(order)
        # What one controller gives out another one sees a moment later only, and other cases launch at the same time.
        return await by.launch(replace(order, port=order.port + 1000))

    async def listed(self) -> Sequence[Instance]:
        """This case's instances now."""
        services = (self.service, self.other_service)
        return [one for one in await self.world.look() if one.service in services]

    async def until(self, true_of: Callable[[Sequence[Instance]], bool]) -> Sequence[Instance]:
        """Wait until this holds for this case's instances."""
        listed: Sequence[Instance] = ()
        try:
            async with asyncio.timeout(PATIENCE_S):
                while not true_of(listed := await self.listed()):
                    pass
        except TimeoutError as error:
            raise AssertionError(f"still {listed}") from error
        return listed

    async def only(self, state: InstanceState) -> Instance:
        """Wait until exactly one instance is there, in this state."""
        [instance] = await self.until(lambda listed: [one.state for one in listed] == [state])
        return instance

    async def gone(self) -> None:
        """Wait until none is there."""
        await self.until(lambda listed: not listed)

    async def end(self, *instances: Instance) -> None:
        """Terminate these, or all, and wait until all of the case's are gone."""
        for instance in instances or await self.listed():
            await self.provider.terminate(instance.id)
        await self.gone()

    async def answers(self, instance: Instance) -> Mapping[str, Any]:
        """What the replica's application answers to a GET at its address, once it does.

        Where nothing runs, it is what was ordered.
        """
        assert instance.address, instance
        if "application" in self.world.cannot:
            order = self.world.orders[instance.service, instance.token]
            return {"env": {**order.envs, **order.secrets, "SKYPILOT_TASK_ID": order.token}}
        async with asyncio.timeout(PATIENCE_S):
            while True:
                try:
                    return await asyncio.to_thread(_get, instance.address)
                except (OSError, http.client.HTTPException):
                    await asyncio.sleep(0.05)

    async def output(self, instance: Instance | str, *, follow: bool = False, tail: int | None = None) -> bytes:
        """An instance's logs."""
        instance_id = instance if isinstance(instance, str) else instance.id
        return b"".join([data async for data in self.provider.logs(instance_id, follow=follow, tail=tail)])

    async def logged(self, instance: Instance, line: bytes) -> None:
        """Wait for a line in an instance's logs."""
        async with asyncio.timeout(PATIENCE_S):
            while line not in await self.output(instance):
                await self.world.pass_time()

    async def executed(self, instance_id: str, script: str, env: Mapping[str, str]) -> tuple[bytes, int | None]:
        """What a script beside the replica prints, and how it ends."""
        output, code = b"", None
        async for piece in self.provider.execute(instance_id, script, env):
            if isinstance(piece, Exit):
                code = piece.code
            else:
                output += piece
        return output, code

    async def clear(self) -> None:
        """End what the case left, and forget its services."""
        for service, token in list(self.world.orders):
            if service in (self.service, self.other_service):
                del self.world.orders[service, token]
        if await self.listed():
            await self.end()
        for service in (self.service, self.other_service):
            await self.provider.release(service)


def all_in(state: InstanceState, count: int = 1) -> Callable[[Sequence[Instance]], bool]:
    """Whether exactly so many instances are there, all in this state."""
    return lambda listed: len(listed) == count and all(one.state is state for one in listed)


@dataclass(frozen=True)
class Gate:
    """Holds scripts back: `wait` is a line of bash that ends once `open` was called."""

    wait: str
    open: Callable[[], None]


@asynccontextmanager
async def _gate(test_host: str) -> AsyncIterator[Gate]:
    opened = asyncio.Event()

    async def hold(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await opened.wait()
        writer.write(b"go\n")
        writer.close()

    server = await asyncio.start_server(hold, test_host, 0)
    try:
        port = server.sockets[0].getsockname()[1]
        yield Gate(f"read -r _ </dev/tcp/{test_host}/{port}", opened.set)
    finally:
        opened.set()
        server.close()
        await asyncio.sleep(0)  # whoever is held hears of it


async def answering(host: str, port: int) -> None:
    """Wait until somebody listens there."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            try:
                _, writer = await asyncio.open_connection(host, port)
            except OSError:
                await asyncio.sleep(0.05)
                continue
            writer.close()
            await writer.wait_closed()
            return


async def hang_up(provider: object) -> None:
    """Let a provider drop its connections, as the end of its process would."""
    close: Callable[[], Awaitable[None]] | None = getattr(provider, "close", None)
    if close is not None:
        await close()


def _get(address: str) -> Mapping[str, Any]:
    connection = http.client.HTTPConnection(address, timeout=GIVE_UP_S)
    try:
        connection.request("GET", "/")
        answer = connection.getresponse()
        assert answer.status == 200
        body: Mapping[str, Any] = json.loads(answer.read())
        return body
    finally:
        connection.close()
