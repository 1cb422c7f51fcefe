"""Machines of the user's own as a provider: the pools of `~/.sky/ssh_node_pools.yaml`, each a region, that were set up
with `sky ssh up`. Several replicas share a host, within what it has. Knows how a host is chosen; must not know how one
is spoken to (`ssh.host`), nor what the file looks like (`ssh.pools`).

Where a host does not answer, nobody else can say what became of it. Its replicas are then listed as they were when it
was last heard of, for as long as it is silent: readiness probes tell whether they still serve, other hosts are not
affected, and no replica counts as gone that may still be there.
"""

from __future__ import annotations

import asyncio
import contextlib
import zlib
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from skyserve.clock import Clock
from skyserve.config import Config
from skyserve.errors import CapacityUnavailable, OrderRejected, ProviderUnavailable, SpecError
from skyserve.model.evidence import Instance
from skyserve.model.offering import Location, Offering
from skyserve.model.resources import ResourceChoice, Resources
from skyserve.providers import openssh
from skyserve.providers.base import (
    Candidates,
    Capabilities,
    CheckResult,
    Exit,
    Feature,
    LaunchOrder,
    NotConfigured,
    OrderOf,
    Provider,
)
from skyserve.providers.environment import Site
from skyserve.providers.host_offers import ask_for, ask_of, described, offering
from skyserve.providers.identity import installation
from skyserve.providers.machine import Ask, Machine, Share
from skyserve.providers.openssh import CommandFailed
from skyserve.providers.remote_agent import load_of, order_for
from skyserve.providers.ssh import pools as ssh_pools
from skyserve.providers.ssh.host import PROVIDER, SshHost, claim_of, note_path
from skyserve.providers.ssh.pools import PoolHost, Pools

TITLE = "SSH"
REPLICA_PORTS = range(20000, 30000)
"""Ports for replicas that do not get the one they declare."""

_ACCEPTED_S = 10.0
"""How long a launch waits for its delivery; what takes longer goes on in the background."""
_PORTS_TRIED = 50
_RETRY_AFTER_S = 2.0
_CANNOT = {
    "spot": "nobody takes these hosts back",
    "stop": "hosts of a pool are never switched off",
    Feature.IMAGE.value: "hosts of a pool have their system already: use `docker run` in `run`",
    Feature.CONTAINER_IMAGE.value: "hosts of a pool have their system already: use `docker run` in `run`",
    Feature.DISK_TIER.value: "the disks of a host are what they are",
}


def pools_file(config: Config) -> Path:
    """Where the pools are described."""
    return config.user_home / ".sky" / "ssh_node_pools.yaml"


def provider(config: Config, clock: Clock) -> Provider:
    """The user's own hosts; see `registry`."""
    if missing := openssh.usable():
        raise NotConfigured(TITLE, missing, "install OpenSSH's client")
    path = pools_file(config)
    if not path.exists():
        raise NotConfigured(TITLE, f"there is no {path}", "list your hosts in it, then run `sky ssh up`")
    return SshProvider(config, clock)


class SshProvider:
    """Replicas on hosts of the user's own. `ssh_config` is read in place of the user's ssh configuration."""

    name = PROVIDER
    title = TITLE
    capabilities = Capabilities(
        shares_host=True,
        delivers=frozenset(feature for feature in Feature if feature.value not in _CANNOT),
        cannot=_CANNOT,
        poll_interval_s=1.0,
        listing_grace_s=30.0,
    )

    def __init__(self, config: Config, clock: Clock, *, ssh_config: Path | None = None) -> None:
        self._config = config
        self._clock = clock
        self._ssh_config = ssh_config
        self._hosts: dict[PoolHost, SshHost] = {}
        self._changed: Callable[[], None] = lambda: None
        self._choosing = asyncio.Lock()
        self._reserved: dict[str, tuple[SshHost, Share, int]] = {}

    def listen(self, changed: Callable[[], None], order_of: OrderOf) -> None:
        """Hosts tell by themselves when something has changed on them."""
        self._changed = changed

    async def check(self) -> CheckResult:
        """Usable when one host of a pool is set up and answers."""
        try:
            pools = self.pools()
        except SpecError as error:
            return CheckResult(False, f"{error.where}: {error.message}", error.hint or "")
        hosts = self._up(pools)
        if not hosts:
            return CheckResult(False, f"no host of {', '.join(pools)} is set up", "sky ssh up")
        await _heard(hosts)
        silent = {str(host): host.silent for host in hosts if host.silent}
        told = f"{len(hosts) - len(silent)} of {len(hosts)} hosts answer"
        whys = "; ".join(f"{name}: {why}" for name, why in silent.items())
        return CheckResult(len(silent) < len(hosts), f"{told}{f' ({whys})' if whys else ''}", "sky ssh status")

    async def offerings(self, want: ResourceChoice) -> Candidates:
        """A place in each pool that has a host which could satisfy the alternative if nothing else ran on it."""
        found: dict[Offering, None] = {}
        refusals: list[tuple[str, str]] = []
        hosts = await self._current()
        for resources in want.alternatives:
            try:
                found.update(dict.fromkeys(_places(resources, hosts)))
            except CapacityUnavailable as refusal:
                refusals.append((described(resources), refusal.message))
        return Candidates(tuple(found), tuple(refusals))

    async def launch(self, order: LaunchOrder) -> Instance:
        """Choose a host, deliver the order, and return once it runs, or while a long delivery goes on."""
        ask_of(order.offering)  # before anything is asked over the network
        async with self._choosing:
            hosts = await self._current()
            await _heard(hosts)
            if seen := _find(hosts, order.token):
                return seen
            host, share, port = await self._choose(order, hosts)
            self._reserved[order.token] = host, share, port
            site = _site(host, order, share, port, self._config)
            task = host.deliver(order_for(order, site, claim_of(share), own_machine=False), load_of(order))
            task.add_done_callback(lambda _: self._reserved.pop(order.token, None))
        done, _ = await asyncio.wait({task}, timeout=_ACCEPTED_S)
        if done and not task.cancelled():
            task.result()
        instance = host.instance(order.token)
        if instance is None:
            raise ProviderUnavailable(f"{host} took the order and does not list it", hint="ask again")
        return instance

    async def instances(self) -> Sequence[Instance]:
        """What is on all hosts; on a silent one, what was there when it was last heard of."""
        hosts = await self._current()
        await _heard(hosts)
        return tuple(instance for host in hosts for instance in host.instances())

    async def terminate(self, instance_id: str) -> None:
        """Tell its supervisor to stop. Raises ProviderUnavailable while its host is silent."""
        token, host = self._located(instance_id)
        if host is not None:
            await host.end(token)

    async def stop(self, instance_id: str) -> None:
        """Raises OrderRejected."""
        raise OrderRejected(f"instances cannot be stopped, only ended: {_CANNOT['stop']}")

    async def start(self, instance_id: str) -> None:
        """Raises OrderRejected."""
        raise OrderRejected(f"instances cannot be started again: {_CANNOT['stop']}")

    async def execute(self, instance_id: str, script: str, env: Mapping[str, str]) -> AsyncIterator[bytes | Exit]:
        """Run a script beside an instance."""
        token, host = self._located(instance_id)
        if host is None:
            raise OrderRejected(f"there is no instance {instance_id}")
        try:
            async with contextlib.aclosing(host.agent.execute(token, script, env)) as pieces:
                async for piece in pieces:
                    yield piece
        except CommandFailed as error:
            raise OrderRejected(error.message) from error

    async def logs(self, instance_id: str, *, follow: bool, tail: int | None) -> AsyncIterator[bytes]:
        """Output of setup and run; the host keeps it until the service is released."""
        token, host = self._located(instance_id)
        if host is not None:
            async with contextlib.aclosing(host.logs(token, follow=follow, tail=tail)) as pieces:
                async for data in pieces:
                    yield data

    async def release(self, service: str) -> None:
        """Drop workspaces and kept output on every host. Raises what the first silent one raises, after all others."""
        hosts = await self._current()
        outcomes = await asyncio.gather(*(host.release(service) for host in hosts), return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome

    async def close(self) -> None:
        """Hang up everywhere. What runs on the hosts goes on."""
        await asyncio.gather(*(host.close() for host in self._hosts.values()))

    # -- the hosts

    def pools(self) -> Pools:
        """What the file says now. Raises SpecError."""
        return ssh_pools.read(pools_file(self._config), self._config.user_home)

    def host(self, spec: PoolHost) -> SshHost:
        """The host of a pool, set up or not."""
        if spec not in self._hosts:
            root = f"~/.skyserve/{installation(self._config)}"
            self._hosts[spec] = SshHost(
                spec, self._config.home, root, self._clock, ssh_config=self._ssh_config, changed=self._tell
            )
        return self._hosts[spec]

    def _tell(self) -> None:
        self._changed()

    def _pools(self) -> Pools:
        try:
            return self.pools()
        except SpecError as error:
            raise ProviderUnavailable(f"{error.where}: {error.message}", hint=error.hint) from error

    async def _current(self) -> list[SshHost]:
        """Those that are set up; what the file does not name any more is hung up on."""
        pools = self._pools()
        named = {spec for specs in pools.values() for spec in specs}
        for spec in [spec for spec in self._hosts if spec not in named]:
            await self._hosts.pop(spec).close()
        return self._up(pools)

    def _up(self, pools: Pools) -> list[SshHost]:
        """Those that are set up, by this process or another."""
        specs = [spec for hosts in pools.values() for spec in hosts]
        found = []
        for spec in specs:
            if note_path(self._config.home, spec).exists():
                if spec in self._hosts and self._hosts[spec].note is None:
                    del self._hosts[spec]  # it was set up by somebody else since
                found.append(self.host(spec))
        return found

    def _located(self, instance_id: str) -> tuple[str, SshHost | None]:
        token, _, place = instance_id.partition("@")
        hosts = (host for host in self._up(self._pools()) if f"{host.spec.pool}@{host.spec.name}" == place)
        return token, next(hosts, None)

    # -- choosing one

    async def _choose(self, order: LaunchOrder, hosts: Sequence[SshHost]) -> tuple[SshHost, Share, int]:
        """The host with the fewest replicas of the service that has room, then the one with the fewest at all."""
        pool = order.offering.location.region
        inside = [host for host in hosts if host.spec.pool == pool]
        reasons = [f"{host.spec.name}: {host.silent}" for host in inside if host.silent]
        answering = sorted((host for host in inside if not host.silent), key=lambda host: _load(host, order.service))
        for host in answering:
            try:
                share = self._share(host, order)
                return host, share, await self._port(host, order)
            except CapacityUnavailable as refusal:
                reasons.append(f"{host.spec.name}: {refusal.message}")
            except ProviderUnavailable as silence:
                reasons.append(silence.message)
        raise CapacityUnavailable(
            f"no host of pool {pool} has room: {'; '.join(reasons) or 'none is set up'}",
            hint="ask for less in `resources`, add a host, or see `sky ssh status`",
            retry_after_s=_RETRY_AFTER_S,
        )

    def _share(self, host: SshHost, order: LaunchOrder) -> Share:
        note = host.note
        if note is None:
            raise CapacityUnavailable("it is not set up")
        if order.disk_size is not None and order.disk_size > note.free_disk_gib:
            raise CapacityUnavailable(f"{order.disk_size} GiB of disk asked, {note.free_disk_gib:g} are free")
        reserved = [share for other, share, _ in self._reserved.values() if other is host]
        known = {share.holder for share in reserved}
        held = [*reserved, *(share for share in host.shares() if share.holder not in known)]
        return note.machine.share(_holder(order), ask_of(order.offering), held)

    async def _port(self, host: SshHost, order: LaunchOrder) -> int:
        """The declared port if it is free there, or another one."""
        taken = {hosted.port for hosted in host.hosted() if hosted.phase != "exited"}
        taken |= {port for other, _, port in self._reserved.values() if other is host}
        begin = zlib.crc32(order.token.encode()) % len(REPLICA_PORTS)
        others = (*REPLICA_PORTS[begin:], *REPLICA_PORTS[:begin])
        candidates = [port for port in (order.port, *others) if port not in taken][:_PORTS_TRIED]
        port = await host.free_port(candidates)
        if port is None:
            raise CapacityUnavailable(f"none of {_PORTS_TRIED} ports is free")
        return port


async def _heard(hosts: Sequence[SshHost]) -> None:
    await asyncio.gather(*(host.heard() for host in hosts))


def _find(hosts: Sequence[SshHost], token: str) -> Instance | None:
    return next((instance for host in hosts if (instance := host.instance(token))), None)


def _holder(order: LaunchOrder) -> str:
    return f"{order.service_name}/{order.replica_id}"


def _load(host: SshHost, service: str) -> tuple[int, int]:
    instances = host.instances()
    return sum(instance.service == service for instance in instances), len(instances)


def _site(host: SshHost, order: LaunchOrder, share: Share, port: int, config: Config) -> Site:
    note, env = host.note, config.inherited_env
    return Site(
        location=order.offering.location,
        port=port,
        num_gpus=len(share.gpus),
        gpus=tuple(share.gpus) if note and note.machine.gpus else None,
        user=env.get("USER") or env.get("LOGNAME") or "",
    )


def _places(resources: Resources, hosts: Sequence[SshHost]) -> Iterator[Offering]:
    """One for each pool. Raises CapacityUnavailable with the reasons when there is none."""
    if why_not := _foreign(resources):
        raise CapacityUnavailable(why_not)
    reasons: dict[str, None] = {}
    pools: set[str] = set()
    for host in hosts:
        pool = host.spec.pool
        if pool in pools or resources.region not in (None, pool):
            continue
        machine, free_gib = _hardware(host)
        ask = ask_for(resources, machine)
        if why_never := machine.why_never(ask) or _no_disk(resources, free_gib):
            reasons[why_never.replace("this machine", str(host))] = None
            continue
        pools.add(pool)
        yield offering(PROVIDER, Location(PROVIDER, pool), _without_limits(ask), machine)
    if not pools:
        raise CapacityUnavailable("; ".join(reasons) or _nowhere(resources, hosts))


def _foreign(resources: Resources) -> str | None:
    """What is asked that no host of a pool can be."""
    reasons = (
        (resources.cloud not in (None, PROVIDER), f"asks for cloud {resources.cloud}, and these are hosts of your own"),
        (resources.zone is not None, f"asks for zone {resources.zone}, and pools have none"),
        (resources.use_spot, f"asks for spot capacity, and {_CANNOT['spot']}"),
        (
            resources.instance_type not in (None, "host"),
            f"asks for instance type {resources.instance_type}, and hosts of pools are of type host",
        ),
        (resources.image_id is not None, f"asks for image {resources.image_id}: {_CANNOT[Feature.IMAGE.value]}"),
        (
            resources.disk_tier is not None,
            f"asks for disk tier {resources.disk_tier}, and {_CANNOT[Feature.DISK_TIER.value]}",
        ),
        (bool(resources.volumes), f"asks for volumes ({', '.join(resources.volumes)}), and hosts have none to attach"),
    )
    return next((text for applies, text in reasons if applies), None)


def _hardware(host: SshHost) -> tuple[Machine, float]:
    note = host.note
    return (note.machine, note.free_disk_gib) if note else (Machine(0, 0), 0.0)


def _no_disk(resources: Resources, free_gib: float) -> str | None:
    wanted_gib = resources.disk_size
    if wanted_gib is None or wanted_gib <= free_gib:
        return None
    return f"asks for {wanted_gib} GiB of disk, and this machine has {free_gib:g} free"


def _without_limits(ask: Ask) -> Ask:
    """What is asked is set apart on a host of a pool, and never enforced."""
    return replace(ask, only_vcpus=False, only_memory=False)


def _nowhere(resources: Resources, hosts: Sequence[SshHost]) -> str:
    if resources.region is not None and all(host.spec.pool != resources.region for host in hosts):
        return f"asks for pool {resources.region}, which has no host that is set up: `sky ssh up`"
    return "no host is set up: `sky ssh up`"
