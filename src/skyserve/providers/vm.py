"""A Provider out of any VmCloud: rented machines whose agents report by themselves over SSH.

Knows the agent, SSH and the VmCloud contract; must not know any cloud. Nothing that matters is remembered here alone:
machines are found by their tags, their keys in `keepsakes`, and the controller knows the order that one waits for.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import ipaddress
import re
import urllib.request
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from skyserve.clock import Clock
from skyserve.config import Config
from skyserve.errors import CredentialsRejected, OrderRejected, PlaceRefused, ProviderError, ProviderUnavailable
from skyserve.model.evidence import Instance, InstanceState
from skyserve.model.resources import ResourceChoice
from skyserve.providers import agent, boot, openssh
from skyserve.providers.base import Candidates, CheckResult, Exit, LaunchOrder, OrderOf
from skyserve.providers.contact import Contact
from skyserve.providers.environment import Site, gpus_of
from skyserve.providers.identity import installation
from skyserve.providers.keepsakes import Keepsakes
from skyserve.providers.openssh import CommandFailed, Login, Ssh
from skyserve.providers.priced import PriceList
from skyserve.providers.remote_agent import Load, load_of, order_for
from skyserve.providers.vm_cloud import TAG_INSTALLATION, TAG_SERVICE, TAG_TOKEN, Vm, VmCloud, VmOrder, VmState

SSH_PORT = 22
ADDRESS_SERVICE = "https://api.ipify.org"
"""Answers with the address that a question comes from."""

_ADDRESS_TIMEOUT_S = 10.0
_LAST_WORDS_S = 5.0
_LAST_LINES = 2000
_STATES = {
    VmState.BOOTING: InstanceState.STARTING,
    VmState.RUNNING: InstanceState.STARTING,
    VmState.STOPPING: InstanceState.STOPPING,
    VmState.STOPPED: InstanceState.STOPPED,
    VmState.PREEMPTED: InstanceState.PREEMPTED,
}


class VmProvider:
    """Replicas on machines of a cloud, one machine each.

    `address_service` is asked once for this side's public address, where the configuration does not say it.
    """

    def __init__(
        self,
        cloud: VmCloud,
        config: Config,
        clock: Clock,
        *,
        address_service: str = ADDRESS_SERVICE,
    ) -> None:
        self.name = cloud.name
        self.title = cloud.title
        self.capabilities = cloud.capabilities
        self._cloud = cloud
        self._config = config
        self._clock = clock
        self._address_service = address_service
        self._prices = PriceList(config.home)
        self._keepsakes = Keepsakes(config.home)
        self._machines: dict[str, Vm] = {}
        self._contacts: dict[str, tuple[Login, Contact]] = {}
        self._deleted: set[str] = set()
        self._allowed: tuple[str, ...] = config.public_addresses
        self._changed: Callable[[], None] = lambda: None
        self._order_of: OrderOf | None = None

    def listen(self, changed: Callable[[], None], order_of: OrderOf) -> None:
        """Agents report by themselves: `changed` is called when one says something new."""
        self._changed, self._order_of = changed, order_of

    async def check(self) -> CheckResult:
        """The cloud's own check; OpenSSH is needed too."""
        missing = openssh.usable()
        if missing is not None:
            return CheckResult(False, missing, "install OpenSSH's client")
        return await self._cloud.check()

    async def offerings(self, want: ResourceChoice) -> Candidates:
        """What the price catalog has of this cloud, as far as this account may have it."""
        found = await self._prices.offerings(self.name, self.title, want)
        if not found.offerings:
            return found
        narrowed = tuple(await self._cloud.narrow(found.offerings))
        refused = () if narrowed else ((self.title, "this account can launch none of the machines that would do"),)
        return replace(found, offerings=narrowed, refusals=(*found.refusals, *refused))

    async def launch(self, order: LaunchOrder) -> Instance:
        """Rent a machine that starts itself, unless the order has secrets or files: then it is sent later."""
        host_key = await self._keepsakes.host_key(order.token)
        client_key = await openssh.client_key(self._config.home)
        self._keepsakes.expect(order.token, order.service)
        made = boot.Boot(client_key.public, host_key.private, host_key.public, self._cloud.notice)
        user_data, _ = boot.script(made, self._for_agent(order), self._cloud.user_data_limit)
        vm_order = VmOrder(
            order=replace(order, secrets={}),
            name=machine_name(order),
            tags={
                TAG_INSTALLATION: installation(self._config),
                TAG_SERVICE: order.service,
                TAG_TOKEN: order.token,
            },
            user_data=user_data,
            ports=tuple(dict.fromkeys((SSH_PORT, order.port, *order.ports))),
            allow_from=await self._allow_from(),
        )
        try:
            vm = await self._cloud.create(vm_order)
        except (PlaceRefused, OrderRejected, CredentialsRejected):
            self._keepsakes.forget(order.token)
            raise
        self._machines[vm.id] = vm
        return self._instance(vm)

    async def instances(self) -> Sequence[Instance]:
        """The cloud's machines, each with what its agent told last."""
        machines = {vm.id: vm for vm in await self._cloud.machines()}
        self._machines = machines.copy()  # launches add to it meanwhile
        self._deleted &= machines.keys()
        for vm_id in self._contacts.keys() - {vm.id for vm in machines.values() if _reachable(vm)}:
            await self._hang_up(vm_id)
        for vm in machines.values():
            if _reachable(vm) and vm.id not in self._deleted:
                await self._call(vm)
        return tuple(self._instance(vm) for vm in machines.values())

    async def terminate(self, instance_id: str) -> None:
        """Delete the machine. The end of its output is kept, if it can be had quickly."""
        vm = self._machines.get(instance_id)
        if vm is not None:
            await self._keep_last_words(vm)
        await self._cloud.delete(instance_id)
        self._deleted.add(instance_id)
        await self._hang_up(instance_id)
        if vm is not None:
            self._keepsakes.forget(vm.token)

    async def stop(self, instance_id: str) -> None:
        """Halt the machine and keep its disk."""
        self._must_stop()
        await self._cloud.stop(instance_id)
        await self._hang_up(instance_id)

    async def start(self, instance_id: str) -> None:
        """Let a stopped machine go on; what ran on it is started again without its setup."""
        self._must_stop()
        await self._cloud.start(instance_id)

    async def execute(self, instance_id: str, script: str, env: Mapping[str, str]) -> AsyncIterator[bytes | Exit]:
        """Run a script beside what the machine runs."""
        vm, known = self._machines.get(instance_id), self._contacts.get(instance_id)
        if vm is None or known is None:
            raise OrderRejected(f"there is no machine {instance_id} that could be reached now")
        try:
            async with contextlib.aclosing(known[1].agent.execute(vm.token, script, env)) as pieces:
                async for piece in pieces:
                    yield piece
        except CommandFailed as error:
            raise OrderRejected(error.message) from error

    async def logs(self, instance_id: str, *, follow: bool, tail: int | None) -> AsyncIterator[bytes]:
        """What the replica printed; of a machine that is gone, what was kept of it."""
        vm = self._machines.get(instance_id)
        known = self._contacts.get(instance_id)
        if vm is not None and known is not None:
            try:
                async with contextlib.aclosing(known[1].agent.logs(vm.token, follow=follow, tail=tail)) as pieces:
                    async for data in pieces:
                        yield data
            except ProviderUnavailable:
                if not follow or (instance_id in self._machines and instance_id not in self._deleted):
                    raise  # else the machine has ended, and the line with it
            return
        kept = await asyncio.to_thread(self._keepsakes.log, instance_id)
        if kept is None and vm is not None:
            raise ProviderUnavailable(f"machine {instance_id} cannot be reached for its output now", hint="try again")
        lines = (kept or b"").splitlines(keepends=True)
        yield b"".join(lines if tail is None else lines[len(lines) - min(tail, len(lines)) :])

    async def release(self, service: str) -> None:
        """Drop the service's kept output, and what the cloud holds for it."""
        self._keepsakes.release(service)
        await self._cloud.release(service)

    async def close(self) -> None:
        """Hang up on every machine; they go on by themselves."""
        for vm_id in list(self._contacts):
            await self._hang_up(vm_id)

    # -- machines and their agents

    def _instance(self, vm: Vm) -> Instance:
        contact = self._contacts[vm.id][1] if vm.id in self._contacts else None
        hosted = contact.hosted if contact is not None else None
        if hosted is not None and contact is not None and contact.state is not None and vm.state is VmState.RUNNING:
            address = _join(vm.host, vm.port_of.get(hosted.port, hosted.port))
            reclaim_at = contact.state.reclaim_at if vm.reclaim_at is None else vm.reclaim_at
            return hosted.instance(vm.id, self.name, address, reclaim_at)
        why = vm.detail or (contact.trouble if contact is not None else "")
        state = _STATES[vm.state]
        return Instance(vm.id, self.name, vm.service, vm.token, state, detail=why, reclaim_at=vm.reclaim_at)

    async def _call(self, vm: Vm) -> None:
        """See to it that there is a line to the machine where it is now."""
        try:
            known_hosts = await self._keepsakes.known_hosts(vm.token)
        except (ProviderUnavailable, FileNotFoundError):
            if vm.id in self._deleted:  # its key has gone with it meanwhile
                return
            raise
        client_key = await openssh.client_key(self._config.home)
        login = Login(
            host=vm.host or "",
            port=vm.ssh_port,
            user="root",
            identity=client_key.private_file,
            known_hosts=known_hosts,
            alias=vm.token,
            config=Path("none"),
        )
        known = self._contacts.get(vm.id)
        if (known is not None and known[0] == login) or vm.id in self._deleted:
            return
        await self._hang_up(vm.id)
        contact = Contact(
            Ssh(login, self._config.home),
            vm.token,
            clock=self._clock,
            wanted=lambda: self._wanted(vm),
            changed=lambda: self._changed(),
        )
        self._contacts[vm.id] = login, contact

    async def _hang_up(self, vm_id: str) -> None:
        _, contact = self._contacts.pop(vm_id, (None, None))
        if contact is not None:
            await contact.close()

    async def _keep_last_words(self, vm: Vm) -> None:
        known = self._contacts.get(vm.id)
        if known is None or not known[1].heard:
            return
        log = b""
        with contextlib.suppress(ProviderError, TimeoutError, OSError):
            async with asyncio.timeout(_LAST_WORDS_S):
                async for data in known[1].agent.logs(vm.token, follow=False, tail=_LAST_LINES):
                    log += data
        if log:
            await asyncio.to_thread(self._keepsakes.keep_log, vm.service, vm.id, log)

    def _for_agent(self, order: LaunchOrder) -> agent.Order:
        user = self._config.inherited_env.get("USER", "")
        site = Site(order.offering.location, order.port, gpus_of(order.offering), user=user)
        return order_for(order, site, {}, own_machine=True)

    async def _wanted(self, vm: Vm) -> tuple[agent.Order, Load] | None:
        order = None if self._order_of is None else await self._order_of(vm.service, vm.token)
        return None if order is None else (self._for_agent(order), load_of(order))

    def _must_stop(self) -> None:
        if not self.capabilities.stops:
            why = self.capabilities.cannot.get("stop", "its machines cannot be stopped")
            raise OrderRejected(f"{self.title}: {why}; they can only be ended")

    async def _allow_from(self) -> tuple[str, ...]:
        if not self._allowed:
            self._allowed = (await asyncio.to_thread(public_address, self._address_service),)
        return self._allowed


def public_address(service: str) -> str:
    """This side's address as the internet sees it, as a CIDR range of one. Raises ProviderUnavailable."""
    try:
        with urllib.request.urlopen(service, timeout=_ADDRESS_TIMEOUT_S) as answer:
            address = ipaddress.ip_address(answer.read(100).decode().strip())
    except (OSError, ValueError) as error:
        raise ProviderUnavailable(
            f"the address from which machines must let this controller in is not known: {service} did not say: {error}",
            hint="export SKYSERVE_PUBLIC_ADDRESS=ADDRESS, this machine's or network's address on the internet",
        ) from error
    return f"{address}/{address.max_prefixlen}"


def machine_name(order: LaunchOrder) -> str:
    """What people see in the cloud's console: a DNS label, unique to the token."""
    readable = re.sub(r"[^a-z0-9]+", "-", f"sky-{order.service_name}-{order.replica_id}".lower()).strip("-")
    return f"{readable[:50].rstrip('-')}-{hashlib.sha256(order.token.encode()).hexdigest()[:10]}"


def _reachable(vm: Vm) -> bool:
    return vm.state is VmState.RUNNING and bool(vm.host)


def _join(host: str | None, port: int) -> str | None:
    if host is None:
        return None
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
