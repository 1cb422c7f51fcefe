"""Azure: virtual machines as machines, by way of Azure's management SDKs, which are an optional extra.

Knows in which order Azure wants things done, and what must be remembered between calls. The words are in
`azure.words`, the way there in `azure.api`. It must not know what runs on a machine.

All of a service's machines of one region stand in one resource group that holds nothing else, and everything of one
machine is made by one request, to go when the machine goes. So nothing can be left behind: a machine takes its disk,
interface and address along, and the group its network and firewalls.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Protocol, TypeVar

from skyserve.clock import Clock
from skyserve.config import Config
from skyserve.errors import CredentialsRejected, OrderRejected, PlaceRefused, ProviderError, ProviderUnavailable
from skyserve.model.offering import Offering
from skyserve.providers.azure import api as api
from skyserve.providers.azure import words as words
from skyserve.providers.azure.words import Ground
from skyserve.providers.base import EVERYTHING_BUT_CONTAINERS, Capabilities, CheckResult, Feature
from skyserve.providers.identity import installation
from skyserve.providers.vm import VmProvider
from skyserve.providers.vm_cloud import TAG_INSTALLATION, TAG_SERVICE, TAG_TOKEN, Notice, Vm, VmOrder, VmState

T = TypeVar("T")

_GROUND_S = 10.0  # for a network and a firewall; with the next it stays below what a call may take
_REFUSAL_S = 12.0  # most refusals for want of capacity come this soon after acceptance
_TAGS_S = 15.0
_LOOK_S = 0.05
_START_S = 300.0  # how long a stopped machine may take until it is seen to start

_MACHINE_ID = re.compile(
    r"/subscriptions/(?P<subscription>[^/]+)/resourcegroups/(?P<group>[^/]+)"
    r"/providers/microsoft\.compute/virtualmachines/(?P<name>[^/]+)"
)


TITLE = api.TITLE


class _Operation(Protocol):
    """Something that Azure has accepted and is still about."""

    def done(self) -> bool: ...

    def result(self) -> object: ...


def provider(config: Config, clock: Clock) -> VmProvider:
    """Azure as a provider. Raises NotConfigured where the SDK, credentials or a subscription are missing."""
    account = api.account(config.inherited_env, config.user_home)
    return VmProvider(AzureCloud(account, installation(config), clock), config, clock)


class AzureCloud:
    """One subscription of Azure. See `VmCloud`; ids of machines are resource ids in lower case.

    `clients` reach Azure's own API, unless others are handed in.
    """

    name = "azure"
    title = TITLE
    capabilities = Capabilities(
        spot=True,
        stops=True,
        delivers=EVERYTHING_BUT_CONTAINERS,
        cannot={Feature.CONTAINER_IMAGE.value: "machines start from machine images; let `run` start the container"},
        listing_grace_s=180.0,  # a subscription's list lags behind the machines themselves
    )
    user_data_limit = words.USER_DATA_LIMIT
    login = "root"
    notice: Notice | None = Notice(
        url="http://169.254.169.254/metadata/scheduledevents?api-version=2020-07-01",
        headers={"Metadata": "true"},
        # An event is an object whose fields come in any order, and its instant is empty once it has begun.
        pattern=r'\{(?=[^{}]*"EventType"\s*:\s*"Preempt")(?:[^{}]*?"NotBefore"\s*:\s*"(?P<at>[^"]+)")?',
        warning_s=30.0,
    )

    def __init__(
        self, account: api.Account, installation: str, clock: Clock, clients: api.Clients | None = None
    ) -> None:
        self._account = account
        self._installation = installation
        self._clock = clock
        self._clients = clients or api.Clients(account)
        self._ready: set[Ground] = set()
        self._making: dict[str, asyncio.Lock] = {}

    async def check(self) -> CheckResult:
        """Asks for the subscription's own description."""
        try:
            found = await _ask(self._clients.subscription)
        except CredentialsRejected as error:
            return CheckResult(False, error.message, error.hint or api.LOGIN_HINT, self._account.who)
        state = words.text(found, "state")
        account = f"{self._account.who} [{words.text(found, 'displayName') or self._account.subscription}]"
        if state not in ("Enabled", "PastDue"):
            reason = f"the subscription is {state or 'in no known state'}"
            return CheckResult(False, reason, "choose another one: az account set --subscription NAME", account)
        return CheckResult(True, "credentials accepted", account=account)

    async def narrow(self, offerings: Sequence[Offering]) -> Sequence[Offering]:
        """Leaves out GPUs whose driver is on no free image, and regions with an API of their own."""
        return [offering for offering in offerings if words.can_launch(offering)]

    async def create(self, order: VmOrder) -> Vm:
        """Makes the ground once, then the machine with all that is its own, and waits a little for a refusal.

        One that comes later is seen in the listing: the machine is PREEMPTED then, and says why.
        """
        offering = order.order.offering
        place = words.ground(self._account.subscription, self._installation, order)
        with self._doubting(place):
            await self._make_ground(place, order)
            body = words.machine_body(order, place, await asyncio.to_thread(_key_of_nobody))
            operation = await _ask(lambda: self._begin(place.group, order.name, body), offering)
        if operation is None:
            return await self._known(place.group, order.name)
        begun = Vm(_id(place, order.name), order.tags[TAG_SERVICE], order.tags[TAG_TOKEN], VmState.BOOTING)
        try:
            await self._finish(operation, _REFUSAL_S, offering)
        except (PlaceRefused, OrderRejected):
            with contextlib.suppress(ProviderError):  # what is left after this is listed, and deleted then
                await self.delete(begun.id)
            raise
        except ProviderError:
            return begun  # only the question how it goes was not answered: the listing will tell
        return begun

    async def machines(self) -> Sequence[Vm]:
        """Four lists of the whole subscription, all regions at once; only one where nothing is ours."""
        return await _ask(self._list)

    async def delete(self, vm_id: str) -> None:
        """Deletes the machine; its disk, interface and address go with it."""
        if _MACHINE_ID.fullmatch(vm_id.lower()) is None:
            return  # no machine of Azure
        group, name = self._place(vm_id)

        def ask() -> None:
            from azure.core.exceptions import ResourceNotFoundError

            with contextlib.suppress(ResourceNotFoundError):
                self._clients.compute.virtual_machines.begin_delete(group, name, polling=False)

        await _ask(ask)

    async def stop(self, vm_id: str) -> None:
        """Deallocates the machine: it costs its disk and address only. A tag tells this from an eviction."""
        group, name = self._place(vm_id)
        await self._mark(group, name, words.STOPPED)
        await _ask(lambda: self._clients.compute.virtual_machines.begin_deallocate(group, name, polling=False))

    async def start(self, vm_id: str) -> None:
        """Starts it again. The tag holds for a while longer, or else it would look evicted until it starts."""
        group, name = self._place(vm_id)
        await self._mark(group, name, str(int(self._clock.now() + _START_S)))
        await _ask(lambda: self._clients.compute.virtual_machines.begin_start(group, name, polling=False))

    async def release(self, service: str) -> None:
        """Deletes the service's resource groups, with all that is in them."""
        for group in await _ask(lambda: self._clients.groups(TAG_SERVICE, service)):
            if words.tag(group, TAG_INSTALLATION) != self._installation:
                continue
            path = words.text(group, "id")
            self._ready = {place for place in self._ready if place.path.lower() != path.lower()}
            await _ask(partial(self._clients.delete_group, path))

    @contextlib.contextmanager
    def _doubting(self, place: Ground) -> Iterator[None]:
        """When this fails for want of the ground, somebody has removed it: it is made again the next time."""
        try:
            yield
        except (ProviderUnavailable, OrderRejected):
            self._ready.discard(place)
            raise

    async def _make_ground(self, place: Ground, order: VmOrder) -> None:
        async with self._making.setdefault(place.group, asyncio.Lock()):
            if place in self._ready:
                return
            tags = {TAG_INSTALLATION: self._installation, TAG_SERVICE: order.tags[TAG_SERVICE]}
            group, offering = {"location": place.region, "tags": tags}, order.order.offering
            await _ask(lambda: self._clients.put_group(place.path, group), offering)
            operations = await _ask(lambda: self._begin_ground(place, order, tags), offering)
            if not all(await asyncio.gather(*(self._finish(one, _GROUND_S, offering) for one in operations))):
                raise ProviderUnavailable(f"Azure has not finished the network of {place.group} yet")
            self._ready.add(place)

    def _begin_ground(self, place: Ground, order: VmOrder, tags: Mapping[str, str]) -> tuple[_Operation, _Operation]:
        network = self._clients.network
        firewall = _json(words.firewall_body(order, tags))
        subnet = _json(words.network_body(place.region, tags))
        return (
            network.network_security_groups.begin_create_or_update(place.group, place.firewall, firewall),
            network.virtual_networks.begin_create_or_update(place.group, words.NETWORK, subnet),
        )

    def _begin(self, group: str, name: str, body: Mapping[str, object]) -> _Operation | None:
        """The machine's making; None when there is one of that name already."""
        from azure.core.exceptions import HttpResponseError

        only_if_new = {"If-None-Match": "*"}
        try:
            return self._clients.compute.virtual_machines.begin_create_or_update(
                group, name, _json(body), headers=only_if_new
            )
        except HttpResponseError as error:
            if error.status_code == 412:
                return None
            raise

    async def _known(self, group: str, name: str) -> Vm:
        found = await _ask(lambda: self._clients.compute.virtual_machines.get(group, name, expand="instanceView"))
        return words.vm(found, found, None, self._clock.now())

    def _list(self) -> Sequence[Vm]:
        machines, network = self._clients.compute.virtual_machines, self._clients.network
        every = ((words.text(machine, "id").lower(), machine) for machine in machines.list_all())
        ours = {key: machine for key, machine in every if words.tag(machine, TAG_INSTALLATION) == self._installation}
        if not ours:
            return ()
        statuses = {words.text(machine, "id").lower(): machine for machine in machines.list_all(status_only="true")}
        hosts = words.address_of([*network.network_interfaces.list_all()], [*network.public_ip_addresses.list_all()])
        now = self._clock.now()
        return tuple(words.vm(machine, statuses.get(key), hosts.get(key), now) for key, machine in ours.items())

    async def _mark(self, group: str, name: str, halted: str) -> None:
        """Write down on the machine that we are about to stop or start it."""
        machines = self._clients.compute.virtual_machines
        found = await _ask(lambda: machines.get(group, name))
        tags = {**(found.tags or {}), words.TAG_HALTED: halted}
        operation = await _ask(lambda: machines.begin_update(group, name, _json({"tags": tags})))
        if not await self._finish(operation, _TAGS_S):
            raise ProviderUnavailable(f"Azure has not finished tagging {name} yet")

    async def _finish(self, operation: _Operation, limit_s: float, offering: Offering | None = None) -> bool:
        """Whether it came to its end in time. Raises what it failed with."""
        until = self._clock.now() + limit_s
        while not operation.done():
            if self._clock.now() >= until:
                return False
            await self._clock.sleep(_LOOK_S)
        await _ask(operation.result, offering)
        return True

    def _place(self, vm_id: str) -> tuple[str, str]:
        """Resource group and name."""
        match = _MACHINE_ID.fullmatch(vm_id.lower())
        if match is None:
            raise OrderRejected(f"{vm_id!r} is not the id of a machine of Azure")
        if match["subscription"] != self._account.subscription.lower():
            hint = f"export AZURE_SUBSCRIPTION_ID={match['subscription']}, and restart the controller"
            raise CredentialsRejected(f"{match['name']} belongs to another subscription than the one in use", hint=hint)
        return match["group"], match["name"]


async def _ask(question: Callable[[], T], offering: Offering | None = None) -> T:
    """The answer of a call that blocks. `offering` is what was asked for, where something was."""

    def ask() -> T:
        with api.in_our_words(offering):
            return question()

    return await asyncio.to_thread(ask)


def _json(body: Mapping[str, object]) -> io.BytesIO:
    return io.BytesIO(json.dumps(body).encode())


def _id(place: Ground, name: str) -> str:
    return f"{place.path}/providers/Microsoft.Compute/virtualMachines/{name}".lower()


def _key_of_nobody() -> str:
    """A fresh public SSH key whose private half is gone at once.

    Azure insists on a first account with a key or a password. Nobody shall have either: ours is the root account, whose
    key the user data installs.
    """
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    key = Ed25519PrivateKey.generate().public_key()
    return key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
