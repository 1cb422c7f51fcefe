"""One loop per service: created, adopted after a restart, kept alive whatever happens, ended with the service."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import platform
import shutil
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import aiohttp

from skyserve.clock import Clock
from skyserve.config import Config
from skyserve.controller import admission, history
from skyserve.controller.act import Hands, launch_order
from skyserve.controller.cluster import NoDoor
from skyserve.controller.door import Door, DoorPlace
from skyserve.controller.files import Files
from skyserve.controller.loop import World, run
from skyserve.controller.offers import Offered, Offers, require
from skyserve.controller.probe import Prober
from skyserve.controller.scrape import Scraper
from skyserve.controller.watch import Watch
from skyserve.decide import mixing
from skyserve.decide.optimize import rank, shortlisted
from skyserve.errors import LeaseLost, ProviderError, ServiceNotFound, StoreUnavailable, UsageError
from skyserve.model.evidence import LoadReport, Silent
from skyserve.model.replica import ALIVE, Replica, ReplicaStatus
from skyserve.model.rollout import VERSIONS_KEPT
from skyserve.model.service import Kind, ServiceSpec, UpdateMode
from skyserve.model.view import MixView
from skyserve.providers.base import Exit, LaunchOrder
from skyserve.providers.registry import Roster
from skyserve.store.base import ServiceState, Store, StoredVersion, used_versions
from skyserve.store.secrets import SecretStore

RESTART_PAUSE_S = 1.0
LONGEST_RESTART_PAUSE_S = 30.0
"""Work that fails is begun again after a pause, which doubles up to this while it fails at once every time."""
SWEEP_S = 5.0

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Crew:
    """The senses and hands of one service's loop, which begin and end with it."""

    offers: Offers
    prober: Prober
    scraper: Scraper
    hands: Hands
    door: Door | NoDoor


@dataclass(slots=True)
class _Served:
    """A service that has a loop here."""

    tag: str
    world: World
    crew: _Crew
    task: asyncio.Task[None]


class Supervisor:
    """All services of this installation."""

    def __init__(self, config: Config, store: Store, roster: Roster, clock: Clock, secrets: SecretStore) -> None:
        self.config = config
        self.store = store
        self.providers = roster.providers
        self.clock = clock
        self._roster = roster
        self._secrets = secrets
        self._watches: dict[str, Watch] = {}
        self._served: dict[str, _Served] = {}
        self._background: list[asyncio.Task[None]] = []
        self._writing = asyncio.Lock()
        self._session: aiohttp.ClientSession | None = None
        self._strangers: set[str] = set()
        self.last_service_at = clock.now()

    async def start(self) -> None:
        """Adopt every stored service and begin to watch."""
        connector = aiohttp.TCPConnector(limit=0, force_close=True)
        self._session = aiohttp.ClientSession(connector=connector, auto_decompress=False)
        self._watch(self.providers)
        for name in await self.store.services():
            self._serve(await self.store.load(name))
        self._background.append(asyncio.create_task(self._persist("the sweep", self._sweep_for_ever)))

    def _watch(self, names: Iterable[str]) -> None:
        for name in names:
            watch = self._watches[name] = Watch(self.providers[name], self.clock, self._changed)
            self.providers[name].listen(watch.hurry, self._order_of)
            watching = self._persist(f"the watch of {name}", watch.run)
            self._background.append(asyncio.create_task(watching))

    async def close(self) -> None:
        """Leave: replicas and doors go on, the next controller adopts them."""
        tasks = self._background + [served.task for served in self._served.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(*(provider.close() for provider in self.providers.values()), return_exceptions=True)
        if self._session is not None:
            await self._session.close()
        await self.store.close()

    def names(self) -> list[str]:
        """Services that have a loop here."""
        return sorted(self._served)

    # ---- what users ask for

    async def plan(self, spec: ServiceSpec) -> tuple[Offered, tuple[str, ...]]:
        """What a spec could run on here, and what may surprise. Raises UsageError for what cannot work."""
        admission.refuse_impossible(spec)
        self._watch(self._roster.look_again())  # credentials may have come since
        offered = await Offers(self.providers, self.clock).ask(spec)
        admission.refuse_crowding(spec, offered, self.providers)
        return offered, admission.warnings(spec, offered, self.providers)

    async def preview(self, spec: ServiceSpec, offered: Offered) -> MixView | None:
        """What a spot service would start with, by what is known of its pools; None for any other."""
        if not spec.on_spot or not offered.offerings:
            return None
        known, now = await self.store.health(), self.clock.now()
        return mixing.preview(spec, shortlisted(rank(offered.offerings, spec), known, now), known, now)

    async def create(self, spec: ServiceSpec, secrets: Mapping[str, str]) -> ServiceState:
        """A new service. Raises Infeasible, UsageError, ServiceExists, StoreUnavailable; then nothing is left over."""
        self.last_service_at = self.clock.now()
        offered, _ = await self.plan(spec)
        require(offered)
        async with self._writing:
            uid = uuid.uuid4().hex[:8]
            tag = f"{spec.name}-{uid}"
            port = admission.free_endpoint_port(self.config.endpoint_host, await self._ports())
            try:
                await asyncio.to_thread(self._keep, tag, 1, spec, secrets)
                state = await self.store.create(spec, uid=uid, port=port, now=self.clock.now())
            except BaseException:
                self._forget_files(tag)
                raise
            self._serve(state)
        return state

    async def update(self, spec: ServiceSpec, secrets: Mapping[str, str], mode: UpdateMode) -> int:
        """The next version of a service; its number."""
        offered, _ = await self.plan(spec)
        require(offered)
        async with self._writing:
            state = await self.store.load(spec.name)
            tag, version = f"{state.name}-{state.uid}", state.latest_version + 1
            try:
                await asyncio.to_thread(self._keep, tag, version, spec, secrets)
                version = await self.store.put_version(spec, mode=mode, now=self.clock.now())
            except BaseException:
                self._forget_version(tag, version)
                raise
            await asyncio.to_thread(self._forget_unused, state, version)
        self._nudge(spec.name)
        return version

    async def rollback(self, name: str, to: int | None, mode: UpdateMode) -> int:
        """Give a service the spec, files and secrets of an earlier version anew; the number of the new version.

        Raises UsageError when there is none to go back to.
        """
        async with self._writing:
            state, stored = await self.store.load(name), await self.store.versions(name)
            back = history.target(state, stored, to)
            tag, version = f"{state.name}-{state.uid}", state.latest_version + 1
            try:
                await asyncio.to_thread(self._keep_again, tag, back, version)
                version = await self.store.put_version(back.spec, mode=mode, now=self.clock.now())
            except BaseException:
                self._forget_version(tag, version)
                raise
            await asyncio.to_thread(self._forget_unused, state, version)
        self._nudge(name)
        return version

    async def down(self, name: str, *, purge: bool) -> None:
        """Take a service down: requests under way may finish, then everything of it goes."""
        await self.store.want_down(name, purge=purge)
        self._nudge(name)

    async def evict(self, name: str, replica_id: int) -> None:
        """Remove one replica; the target stays, so another one takes its place."""
        state = await self.store.load(name)
        if not any(replica.id == replica_id for replica in state.replicas):
            known = ", ".join(str(r.id) for r in state.replicas) or "none"
            raise ServiceNotFound(f"service {name!r} has no replica {replica_id}", hint=f"its replicas: {known}")
        await self.store.evict(name, replica_id)
        self._nudge(name)

    async def halt(self, name: str, *, halted: bool) -> None:
        """Stop the machine of a cluster, or let it go on. Raises UsageError where that cannot be."""
        state = await self.store.load(name)
        replica = _only(state)
        if replica.offering is not None and not self.providers[replica.offering.provider].capabilities.stops:
            provider = self.providers[replica.offering.provider]
            why = provider.capabilities.cannot.get("stop", "its machines cannot be stopped")
            raise UsageError(f"{provider.title}: {why}", hint=f"`sky down {name}` ends it, with its disk")
        await self.store.halt(name, halted=halted)
        self._nudge(name)

    async def execute(self, name: str, script: str) -> AsyncIterator[bytes | Exit]:
        """Run a script on the machine of a cluster. Raises UsageError when it does not run."""
        state = await self.store.load(name)
        replica = _only(state)
        if replica.status is not ReplicaStatus.READY or replica.offering is None or replica.instance_id is None:
            raise UsageError(f"cluster {name!r} is not up: it is {replica.display_status}", hint=f"sky start {name}")
        spec = state.specs[replica.launched_version]
        tag = f"{state.name}-{state.uid}"
        secrets = await asyncio.to_thread(self._secrets.get, tag, replica.launched_version) if spec.secrets else {}
        provider = self.providers[replica.offering.provider]
        return provider.execute(replica.instance_id, script, {**spec.envs, **secrets})

    async def forget_health(self, scope: str | None) -> int:
        """Forget what is known of a place, or of all, and look again; how many entries that were."""
        forgotten = await self.store.forget_health(scope)
        for name in self._served:
            self._nudge(name)
        return forgotten

    def condition(self, name: str) -> tuple[LoadReport | None, str]:
        """What the door of a service reports, and what keeps the service's loop or door from working."""
        served = self._served.get(name)
        if served is None:
            return None, ""
        return served.crew.door.load, served.world.trouble or served.crew.door.trouble

    # ---- one loop per service

    def _serve(self, state: ServiceState) -> None:
        tag = f"{state.name}-{state.uid}"
        nudged = asyncio.Event()
        crew = self._crew(state, tag, nudged)
        world = self._world(state, crew, nudged)
        crew.door.crosses = world.crosses
        self._served[state.name] = _Served(tag, world, crew, asyncio.create_task(self._keep_running(world, crew, tag)))
        self.last_service_at = self.clock.now()

    def _crew(self, state: ServiceState, tag: str, nudged: asyncio.Event) -> _Crew:
        if self._session is None:
            raise RuntimeError("the supervisor has not been started")
        prober = Prober(self._session, self.clock, nudged.set)
        serves = state.specs[state.latest_version].kind is Kind.SERVICE
        place = DoorPlace(
            service=state.name,
            directory=self.config.service_dir(tag),
            socket=self.config.door_socket(tag),
            host=self.config.endpoint_host,
            port=state.port,
        )
        return _Crew(
            offers=Offers(self.providers, self.clock),
            prober=prober,
            scraper=Scraper(self._session, self.clock, nudged.set),
            hands=Hands(self.providers, self._secrets, self._files(tag), self.clock, nudged.set, self._hurry),
            door=Door(place, self.clock, nudged.set, prober.hurry) if serves else NoDoor(),
        )

    def _world(self, state: ServiceState, crew: _Crew, nudged: asyncio.Event) -> World:
        return World(
            service=state.name,
            holder=f"{platform.node()}:{self.config.home}",
            store=self.store,
            secrets=self._secrets,
            clock=self.clock,
            watches=self._watches,
            offers=crew.offers,
            prober=crew.prober,
            scraper=crew.scraper,
            hands=crew.hands,
            door=crew.door,
            nudged=nudged,
        )

    async def _keep_running(self, world: World, crew: _Crew, tag: str) -> None:
        async def live_and_be_buried() -> None:
            with contextlib.suppress(ServiceNotFound):  # somebody else has forgotten it: so do we
                await run(world)
            await crew.door.stop()
            await door
            await self._bury(world.service, tag)

        def told(trouble: str) -> None:
            world.trouble = trouble

        door = asyncio.create_task(self._persist(f"service {world.service}: its door", crew.door.run))
        try:
            await self._persist(f"service {world.service}", live_and_be_buried, told)
        finally:
            door.cancel()
            crew.offers.close()
            ending = (crew.prober.close(), crew.scraper.close(), crew.hands.close())
            await asyncio.gather(door, *ending, return_exceptions=True)

    async def _persist(
        self, what: str, work: Callable[[], Awaitable[None]], tell: Callable[[str], None] | None = None
    ) -> None:
        """See the work to its end, begun again however often it fails; `tell` hears why it did."""
        pause_s = RESTART_PAUSE_S
        while True:
            began_at = self.clock.now()
            try:
                await work()
                return
            except (LeaseLost, StoreUnavailable) as error:
                trouble = error.message
                log.warning("%s: %s", what, trouble)
            except Exception as error:  # a defect in one place must not end what goes on elsewhere
                log.exception("%s failed and is begun again", what)
                trouble = f"internal error, tried again every {pause_s:g}s: {type(error).__name__}: {error}"
            if tell is not None:
                tell(trouble)
            if self.clock.now() - began_at > LONGEST_RESTART_PAUSE_S:
                pause_s = RESTART_PAUSE_S
            await self.clock.sleep(pause_s)
            pause_s = min(LONGEST_RESTART_PAUSE_S, pause_s * 2)

    async def _bury(self, name: str, tag: str) -> None:
        """Nothing runs any more: give back what the replicas shared, forget the service."""
        await self._release(tag)
        await asyncio.to_thread(self._forget_files, tag)
        await self.store.delete(name)
        self._served.pop(name, None)
        self.last_service_at = self.clock.now()
        log.info("service %s is gone", name)

    async def _release(self, tag: str) -> None:
        for provider in self.providers.values():
            try:
                await provider.release(tag)
            except ProviderError as error:
                log.warning("%s: what %s shared was not given back: %s", provider.name, tag, error.message)

    # ---- beside the loops

    async def _order_of(self, tag: str, token: str) -> LaunchOrder | None:
        """See `OrderOf`."""
        served = next((served for served in self._served.values() if served.tag == tag), None)
        if served is None:
            return None
        state = await self.store.load(served.world.service)
        replica = next((r for r in state.replicas if r.token == token and r.status in ALIVE), None)
        if replica is None or replica.offering is None:
            return None
        spec = state.specs[replica.launched_version]
        return await asyncio.to_thread(launch_order, tag, spec, replica, self._secrets, self._files(tag))

    def _changed(self, tags: set[str]) -> None:
        for served in self._served.values():
            if served.tag in tags:
                served.world.nudge()

    def _hurry(self, provider: str) -> None:
        if provider in self._watches:
            self._watches[provider].hurry()

    def _nudge(self, name: str) -> None:
        if name in self._served:
            self._served[name].world.nudge()

    async def _sweep_for_ever(self) -> None:
        while True:
            await self.clock.sleep(SWEEP_S)
            await self._sweep()

    async def _sweep(self) -> None:
        """End what carries the tag of a service that does not exist, when it was seen twice."""
        stored = {served.tag for served in self._served.values()}
        strangers: set[str] = set()
        for name, watch in self._watches.items():
            watch.busy = bool(self._served)
            listing = watch.everything()
            if isinstance(listing, Silent):
                continue
            for instance in listing.instances:
                if instance.service in stored:
                    continue
                strangers.add(instance.id)
                if instance.id in self._strangers:
                    await self._end_stranger(name, instance.id, instance.service)
        self._strangers = strangers

    async def _end_stranger(self, provider: str, instance_id: str, tag: str) -> None:
        log.warning("%s: ending %s: it belongs to %s, which does not exist", provider, instance_id, tag)
        try:
            await self.providers[provider].terminate(instance_id)
            await self.providers[provider].release(tag)
        except ProviderError as error:
            log.warning("%s: %s was not ended: %s", provider, instance_id, error.message)

    # ---- files and secrets

    async def _ports(self) -> frozenset[int]:
        states: Sequence[ServiceState] = [await self.store.load(name) for name in await self.store.services()]
        return frozenset(state.port for state in states)

    def _files(self, tag: str) -> Files:
        return Files(self.config.service_dir(tag))

    def _keep(self, tag: str, version: int, spec: ServiceSpec, secrets: Mapping[str, str]) -> None:
        self._files(tag).take(spec, version)
        if spec.secrets:
            self._secrets.put(tag, version, dict(secrets))

    def _keep_again(self, tag: str, back: StoredVersion, version: int) -> None:
        self._files(tag).copy(back.version, version)
        if back.spec.secrets:
            self._secrets.put(tag, version, self._secrets.get(tag, back.version))

    def _forget_unused(self, before: ServiceState, latest: int) -> None:
        """Give back the space of versions that nothing will be launched with again."""
        tag, used = f"{before.name}-{before.uid}", used_versions(latest, before.replicas, before.memory)
        for version in set(range(1, latest - VERSIONS_KEPT + 1)) - used:
            self._forget_version(tag, version)

    def _forget_version(self, tag: str, version: int) -> None:
        self._files(tag).drop(version)
        with contextlib.suppress(StoreUnavailable):  # what is left goes with the service
            self._secrets.drop(tag, version)

    def _forget_files(self, tag: str) -> None:
        self._secrets.drop(tag, None)
        shutil.rmtree(self.config.service_dir(tag), ignore_errors=True)


def _only(state: ServiceState) -> Replica:
    """The machine of a cluster."""
    if state.specs[state.latest_version].kind is not Kind.CLUSTER:
        raise UsageError(f"{state.name!r} is a service, not a cluster", hint="see `sky serve --help`")
    if not state.replicas:
        raise UsageError(f"cluster {state.name!r} has no machine yet", hint="`sky status` says what it waits for")
    return state.replicas[-1]
