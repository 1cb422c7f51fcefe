"""The cloud under every fake cloud: machines, capacity, quota, interruptions and faults. A `CloudCore` is one account.

A fake cloud is a thin dialect over it: it turns its own requests into the calls below and machines into its own JSON.
The core must not know any cloud's API. On paper (`hosts=None`) nothing runs and no privilege is needed; with hosts, a
machine is a real host that runs its user data (see `hosts.py`).

    core = CloudCore(boot_s=5, now=clock.now)
    core.capacity = {"us-east-1?/*/spot": 0, "*/H100*/*": 2}
    core.faults.append(Fault("list", "throttled", times=3, where="eu-*"))

Machines advance by the clock whenever the core is asked, so ask the core again (`core.machines[...]`) after time has
passed. With hosts a thread keeps the appointments too, because a host must die at its instant, asked or not.
"""

from __future__ import annotations

import itertools
import math
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from ipaddress import IPv4Address
from typing import Literal, Protocol

State = Literal["pending", "running", "stopping", "stopped", "terminated"]
Metadata = Callable[["Machine", str, str, Mapping[str, str]], tuple[int, bytes]]
Answer = Callable[[str, str, Mapping[str, str]], tuple[int, bytes]]

REMEMBERED_S = 3600.0
"""How long a terminated machine stays listed, as clouds keep them."""


class Refused(Exception):
    """The cloud will not do it. `detail` is a sentence that a fake may put into its own error."""

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail


class OutOfCapacity(Refused):
    """There is no machine of this kind in this zone now."""


class OverQuota(Refused):
    """The account has as many machines as it may have."""


class NameTaken(Refused):
    """A machine with this id exists."""


class WrongState(Refused):
    """Not possible in the state in which the machine is."""


@dataclass
class Fault:
    """Something that goes wrong `times` times (None: until removed) when `operation` is asked for at `where`.

    `operation` is create, list, delete, stop, start, check or * (any); `where` an fnmatch pattern over what the fake
    passes as place, usually a region or zone. `kind` is throttled, unavailable, credentials, hang, capacity, quota or
    rejected: the fake says it in its own words. A fake that hangs waits on `CloudCore.closing`, with a limit.
    """

    operation: str
    kind: str
    times: int | None = 1
    where: str = "*"
    detail: str = ""
    retry_after_s: float = 1.0

    def hits(self, operation: str, where: str) -> bool:
        """Whether it strikes this request (it does not count it)."""
        return self.times != 0 and self.operation in ("*", operation) and fnmatchcase(where, self.where)


class Hosts(Protocol):
    """Where machines really run. All are called with the core's lock held, and must not wait for user data."""

    def address(self, zone: str) -> str:
        """A fresh address in this zone."""
        ...

    def boot(self, machine: Machine, address: str, answer: Answer) -> None:
        """Run the machine. The first time its user data runs; after `halt` its disk is as it was."""
        ...

    def allow(self, machine: Machine) -> None:
        """Enforce `machine.allowed` from now on."""
        ...

    def halt(self, machine_id: str) -> None:
        """End all that runs there at once, and keep the disk. Fine for one that does not run."""
        ...

    def destroy(self, machine_id: str) -> None:
        """End all that runs there at once, and drop the disk. Fine for one that is unknown."""
        ...


@dataclass(eq=False)
class Machine:
    """One rented machine. Read it freely, but after asking the core (`core.machines`): the core makes it advance.

    `tags` belong to the fake. `ip` is None unless it runs; after stop and start it is another one. `deleting` tells a
    machine that is "stopping" because it was deleted from one that will be "stopped". `why` says who ended it: "user"
    or "spot". `reclaim_at` is the instant at which it will be, or was, taken back.
    A `container` runs its user data at each start and not only at the first, because that is its command.
    """

    id: str
    token: str | None
    zone: str
    machine_type: str
    spot: bool
    user_data: str
    name: str
    tags: dict[str, str]
    created_at: float
    private_ip: str
    state: State = "pending"
    why: Literal["", "user", "spot"] = ""
    ip: str | None = None
    reclaim_at: float | None = None
    deleting: bool = False
    container: bool = False
    ended_at: float | None = None
    _due_at: float | None = field(default=None, repr=False)
    _next_ip: str = field(default="", repr=False)
    _allowed: frozenset[tuple[int, str]] | None = field(default=None, repr=False)
    _enforce: Callable[[Machine], None] | None = field(default=None, repr=False)

    @property
    def pool(self) -> str:
        """What capacity patterns are matched against: zone/type/spot or zone/type/on-demand."""
        return f"{self.zone}/{self.machine_type}/{'spot' if self.spot else 'on-demand'}"

    @property
    def alive(self) -> bool:
        """Somebody pays for it: anything but terminated."""
        return self.state != "terminated"

    @property
    def allowed(self) -> frozenset[tuple[int, str]] | None:
        """Which (TCP port, CIDR) may reach it, None: everything. Assign a whole new set to change it."""
        return self._allowed

    @allowed.setter
    def allowed(self, rules: Iterable[tuple[int, str]] | None) -> None:
        self._allowed = None if rules is None else frozenset(rules)
        if self._enforce is not None:
            self._enforce(self)


def no_metadata(machine: Machine, method: str, path: str, headers: Mapping[str, str]) -> tuple[int, bytes]:
    """What the metadata address says until a fake has set its own."""
    return 404, b"no metadata here\n"


class CloudCore:
    """One account of one cloud. Thread-safe, and as deterministic as its clock.

    `boot_s` and `shutdown_s` are how long machines are pending and stopping (0: not at all). `capacity` maps fnmatch
    patterns over `Machine.pool` to the most machines at once; several may match, and all must have room. `quota` is
    the most machines of the account, stopped ones not counted. With `containers`, that is what the account rents out.
    `metadata` answers requests to 169.254.169.254.
    """

    def __init__(
        self,
        hosts: Hosts | None = None,
        *,
        boot_s: float = 0.0,
        shutdown_s: float = 0.0,
        prefix: str = "i-",
        containers: bool = False,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.boot_s = boot_s
        self.shutdown_s = shutdown_s
        self.capacity: dict[str, int] = {}
        self.quota: int | None = None
        self.faults: list[Fault] = []
        self.metadata: Metadata = no_metadata
        self.containers = containers
        self.closing = threading.Event()
        self.now = now
        self._prefix = prefix
        self._hosts = hosts
        self._machines: dict[str, Machine] = {}
        self._tokens: dict[str, str] = {}
        self._ids = itertools.count(1)
        self._addresses = itertools.count(1)
        self._changed = threading.Condition(threading.RLock())
        self._keeper: threading.Thread | None = None
        if hosts is not None:
            self._keeper = threading.Thread(target=self._keep_appointments, name="cloud-core", daemon=True)
            self._keeper.start()

    def __enter__(self) -> CloudCore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def machines(self) -> dict[str, Machine]:
        """All machines by id as of now, oldest first; terminated ones for an hour. A snapshot of live objects."""
        with self._changed:
            self._advance()
            return dict(self._machines)

    def leftovers(self) -> list[Machine]:
        """The machines that somebody would still pay for."""
        return [machine for machine in self.machines.values() if machine.alive]

    def fault(self, operation: str, where: str = "") -> Fault | None:
        """The next fault for this request, counted as used; None if all goes well. For fakes to ask, once a request."""
        with self._changed:
            for fault in self.faults:
                if fault.hits(operation, where):
                    if fault.times is not None:
                        fault.times -= 1
                    return fault
            return None

    def create(
        self,
        *,
        token: str | None,
        zone: str,
        machine_type: str,
        spot: bool,
        user_data: str,
        name: str = "",
        tags: Mapping[str, str] | None = None,
        machine_id: str | None = None,
    ) -> Machine:
        """Rent a machine. The same token (not None) gives the same machine, even when it has ended since.

        Raises OverQuota, OutOfCapacity, or NameTaken for a `machine_id` that is in use.
        """
        with self._changed:
            self._advance()
            known = self._tokens.get(token) if token is not None else None
            if known is not None:
                return self._machines[known]
            if machine_id in self._machines and self._machines[machine_id].alive:
                raise NameTaken(f"A machine {machine_id} exists.")
            machine = Machine(
                id=machine_id or f"{self._prefix}{next(self._ids):08x}",
                token=token,
                zone=zone,
                machine_type=machine_type,
                spot=spot,
                user_data=user_data,
                name=name,
                tags=dict(tags or {}),
                created_at=self.now(),
                private_ip="",
                container=self.containers,
            )
            self._admit(machine)
            machine.private_ip, machine._next_ip = self._new_addresses(zone)
            machine._due_at = self.now() + self.boot_s
            machine._enforce = self._enforce
            self._forget(machine.id)
            self._machines[machine.id] = machine
            if token is not None:
                self._tokens[token] = machine.id
            self._settle()
            return machine

    def delete(self, machine_id: str) -> None:
        """End a machine on the user's wish; nothing happens to one that has ended. KeyError: no such machine."""
        with self._changed:
            machine = self._get(machine_id)
            if not machine.alive or machine.deleting:
                return
            machine.deleting = True
            machine.state = "stopping"
            machine._due_at = self.now() + self.shutdown_s
            self._settle()

    def stop(self, machine_id: str) -> None:
        """Halt a machine and keep its disk. KeyError: no such machine. WrongState: it has ended or is about to."""
        with self._changed:
            machine = self._get(machine_id)
            if not machine.alive or machine.deleting:
                raise WrongState(f"The machine {machine_id} is {machine.state}.")
            if machine.state in ("pending", "running"):
                machine.state = "stopping"
                machine._due_at = self.now() + self.shutdown_s
                self._settle()

    def start(self, machine_id: str) -> None:
        """Let a stopped machine go on, at another address. KeyError, WrongState, and what `create` raises."""
        with self._changed:
            machine = self._get(machine_id)
            if machine.state in ("pending", "running"):
                return
            if machine.state != "stopped":
                raise WrongState(f"The machine {machine_id} is {machine.state}.")
            self._admit(machine)
            _, machine._next_ip = self._new_addresses(machine.zone)
            machine.state = "pending"
            machine._due_at = self.now() + self.boot_s
            self._settle()

    def interrupt(self, machine_id: str, notice_s: float = 120.0) -> None:
        """Give notice now, and take the machine back `notice_s` later. KeyError: no such machine."""
        with self._changed:
            machine = self._get(machine_id)
            if machine.alive:
                machine.reclaim_at = self.now() + notice_s
                self._settle()

    def vanish(self, machine_id: str) -> None:
        """Make a machine disappear without a trace. KeyError: no such machine."""
        with self._changed:
            self._get(machine_id)
            self._forget(machine_id)
            if self._hosts is not None:
                self._hosts.destroy(machine_id)

    def answer(self, machine_id: str, method: str, path: str, headers: Mapping[str, str]) -> tuple[int, bytes]:
        """What the metadata address tells this machine: (HTTP status, body). KeyError: no such machine."""
        return self.metadata(self._get(machine_id), method, path, headers)

    def close(self) -> None:
        """End every machine, and let go of requests that hang. Fine to call again."""
        with self._changed:
            self.closing.set()
            for machine_id, machine in self._machines.items():
                if machine.alive:
                    self._end(machine, "user")
                elif self._hosts is not None:
                    self._hosts.destroy(machine_id)
            self._changed.notify_all()
        if self._keeper is not None and self._keeper is not threading.current_thread():
            self._keeper.join()

    # What follows is called with the lock held.

    def _get(self, machine_id: str) -> Machine:
        with self._changed:
            self._advance()
            return self._machines[machine_id]

    def _admit(self, machine: Machine) -> None:
        working = [m for m in self._machines.values() if m.state in ("pending", "running", "stopping")]
        if self.quota is not None and len(working) >= self.quota:
            raise OverQuota(f"The account may have {self.quota} machines and has {len(working)}.")
        for pattern, most in self.capacity.items():
            if fnmatchcase(machine.pool, pattern) and sum(fnmatchcase(m.pool, pattern) for m in working) >= most:
                raise OutOfCapacity(f"There is no capacity for {machine.pool} now ({most} of {pattern}).")

    def _new_addresses(self, zone: str) -> tuple[str, str]:
        """A private and a public address. Hosts have one that is both."""
        if self._hosts is not None:
            address = self._hosts.address(zone)
            return address, address
        number = next(self._addresses)
        base = int(IPv4Address("10.200.0.0"))
        return str(IPv4Address(base + 0x8000 + number)), str(IPv4Address(base + number))

    def _settle(self) -> None:
        """After a change: do what is due already, and let the appointments be looked through again."""
        if self._hosts is None:
            self._advance()
        self._changed.notify_all()

    def _advance(self) -> None:
        now = self.now()
        for machine in list(self._machines.values()):
            if machine.ended_at is not None:
                if now >= machine.ended_at + REMEMBERED_S:
                    self._forget(machine.id)
                continue
            reclaim_at = math.inf if machine.reclaim_at is None else machine.reclaim_at
            if machine._due_at is not None and machine._due_at <= now and machine._due_at < reclaim_at:
                self._arrive(machine)
            if reclaim_at <= now and machine.alive:
                self._end(machine, "spot")

    def _arrive(self, machine: Machine) -> None:
        """The machine reaches the state to which it was on its way."""
        machine._due_at = None
        if machine.deleting:
            self._end(machine, "user")
        elif machine.state == "stopping":
            machine.state = "stopped"
            machine.ip = None
            if self._hosts is not None:
                self._hosts.halt(machine.id)
        else:
            machine.ip = machine._next_ip
            if self._hosts is not None:
                machine.private_ip = machine.ip
                self._hosts.boot(machine, machine.ip, self._answer_for(machine.id))
            machine.state = "running"

    def _answer_for(self, machine_id: str) -> Answer:
        return lambda method, path, headers: self.answer(machine_id, method, path, headers)

    def _end(self, machine: Machine, why: Literal["user", "spot"]) -> None:
        machine.state = "terminated"
        machine.why = why
        machine.ip = None
        machine._due_at = None
        machine.ended_at = machine.reclaim_at if why == "spot" else self.now()
        if self._hosts is not None:
            self._hosts.destroy(machine.id)

    def _enforce(self, machine: Machine) -> None:
        with self._changed:
            if self._hosts is not None:
                self._hosts.allow(machine)

    def _forget(self, machine_id: str) -> None:
        machine = self._machines.pop(machine_id, None)
        if machine is not None and machine.token is not None:
            self._tokens.pop(machine.token, None)

    def _keep_appointments(self) -> None:
        """The thread that makes machines advance on time although nobody asks."""
        with self._changed:
            while not self.closing.is_set():
                self._advance()
                instants = [
                    at for m in self._machines.values() if m.alive for at in (m._due_at, m.reclaim_at) if at is not None
                ]
                self._changed.wait(max(0.0, min(instants) - self.now()) if instants else None)
