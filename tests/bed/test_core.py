"""The core of all fake clouds, on paper: states by the clock, capacity, quota, tokens, interruptions, faults."""

from __future__ import annotations

import threading
from collections.abc import Mapping

import pytest
from tests.bed.core import (
    REMEMBERED_S,
    CloudCore,
    Fault,
    Machine,
    NameTaken,
    OutOfCapacity,
    OverQuota,
    WrongState,
)


class Hand:
    """A clock that moves when told to."""

    def __init__(self) -> None:
        self.at = 1000.0

    def now(self) -> float:
        return self.at


def rent(core: CloudCore, token: str | None = None, *, zone: str = "east-1a", spot: bool = True) -> Machine:
    return core.create(token=token, zone=zone, machine_type="big", spot=spot, user_data="#!/bin/sh\n")


def state(core: CloudCore, machine: Machine) -> str:
    return core.machines[machine.id].state


def test_boots_and_stops_and_starts_by_the_clock() -> None:
    hand = Hand()
    core = CloudCore(boot_s=5, shutdown_s=3, now=hand.now)
    machine = rent(core)
    assert (state(core, machine), machine.ip) == ("pending", None)
    assert machine.private_ip.startswith("10.200.")
    hand.at += 5
    assert state(core, machine) == "running"
    first = machine.ip
    core.stop(machine.id)
    assert state(core, machine) == "stopping"
    with pytest.raises(WrongState):
        core.start(machine.id)
    hand.at += 3
    assert (state(core, machine), machine.ip) == ("stopped", None)
    core.start(machine.id)
    assert state(core, machine) == "pending"
    hand.at += 5
    assert state(core, machine) == "running"
    assert machine.ip not in (None, first)
    core.close()


def test_runs_at_once_where_booting_takes_no_time() -> None:
    core = CloudCore()
    assert rent(core).state == "running"


def test_a_deleted_machine_stays_listed_for_an_hour() -> None:
    hand = Hand()
    core = CloudCore(shutdown_s=2, now=hand.now)
    machine = rent(core, "t")
    core.delete(machine.id)
    assert (state(core, machine), machine.deleting) == ("stopping", True)
    core.delete(machine.id)
    hand.at += 2
    assert (state(core, machine), machine.why, machine.ip) == ("terminated", "user", None)
    core.delete(machine.id)
    assert core.leftovers() == []
    assert rent(core, "t") is machine
    hand.at += REMEMBERED_S
    assert core.machines == {}
    assert rent(core, "t") is not machine
    with pytest.raises(KeyError):
        core.delete(machine.id)


def test_the_same_token_gives_the_same_machine() -> None:
    core = CloudCore()
    assert rent(core, "a") is rent(core, "a")
    assert rent(core, "b") is not rent(core, "a")
    assert rent(core) is not rent(core)
    assert len(core.machines) == 4


def test_ids_are_the_fakes_to_choose() -> None:
    core = CloudCore(prefix="vm-")
    assert rent(core).id == "vm-00000001"
    order = {"token": None, "zone": "z", "machine_type": "t", "spot": False, "user_data": "", "machine_id": "mine"}
    assert core.create(**order).id == "mine"
    with pytest.raises(NameTaken):
        core.create(**order)
    core.delete("mine")
    assert core.create(**order).alive


def test_capacity_counts_by_pattern() -> None:
    core = CloudCore()
    core.capacity = {"east-1?/*/spot": 1, "west-*": 0}
    first = rent(core)
    with pytest.raises(OutOfCapacity) as refusal:
        rent(core, zone="east-1b")
    assert "east-1b/big/spot" in refusal.value.detail
    rent(core, spot=False)
    rent(core, zone="north-1a")
    with pytest.raises(OutOfCapacity):
        rent(core, zone="west-1a", spot=False)
    core.stop(first.id)
    rent(core, zone="east-1b")
    with pytest.raises(OutOfCapacity):
        core.start(first.id)


def test_quota_counts_what_works() -> None:
    core = CloudCore()
    core.quota = 1
    machine = rent(core, "t")
    with pytest.raises(OverQuota):
        rent(core)
    assert rent(core, "t") is machine
    core.delete(machine.id)
    rent(core)


def test_an_interruption_is_announced_and_then_happens() -> None:
    hand = Hand()
    core = CloudCore(now=hand.now)
    machine = rent(core)
    core.interrupt(machine.id, notice_s=120)
    assert (state(core, machine), machine.reclaim_at) == ("running", hand.at + 120)
    hand.at += 200
    assert (state(core, machine), machine.why, machine.ended_at) == ("terminated", "spot", hand.at - 80)
    core.interrupt(machine.id)
    assert machine.reclaim_at == hand.at - 80


def test_an_interruption_may_come_before_the_boot_is_over() -> None:
    hand = Hand()
    core = CloudCore(boot_s=60, now=hand.now)
    machine = rent(core)
    core.interrupt(machine.id, notice_s=30)
    hand.at += 100
    assert (state(core, machine), machine.why) == ("terminated", "spot")


def test_a_machine_can_vanish() -> None:
    core = CloudCore()
    machine = rent(core, "t")
    core.vanish(machine.id)
    assert core.machines == {}
    for act in (core.delete, core.stop, core.start, core.interrupt, core.vanish):
        with pytest.raises(KeyError):
            act(machine.id)


def test_faults_are_used_up_in_order() -> None:
    core = CloudCore()
    core.faults = [
        Fault("list", "throttled", times=2, where="eu-*", retry_after_s=7),
        Fault("*", "unavailable", times=None, where="us-*"),
    ]
    assert core.fault("list", "asia-1") is None
    kinds = [fault.kind if (fault := core.fault("list", "eu-1")) else None for _ in range(3)]
    assert kinds == ["throttled", "throttled", None]
    assert [bool(core.fault(operation, "us-1")) for operation in ("list", "create", "check")] == [True] * 3


def test_a_firewall_is_assigned_as_a_whole() -> None:
    machine = rent(CloudCore())
    assert machine.allowed is None
    machine.allowed = {(22, "10.0.0.0/8")}
    assert machine.allowed == {(22, "10.0.0.0/8")}


def test_metadata_is_the_fakes() -> None:
    core = CloudCore()
    machine = rent(core)
    assert core.answer(machine.id, "GET", "/", {})[0] == 404

    def answer(asking: Machine, method: str, path: str, headers: Mapping[str, str]) -> tuple[int, bytes]:
        return 200, f"{asking.id} {method} {path} {headers['x']}".encode()

    core.metadata = answer
    assert core.answer(machine.id, "PUT", "/token", {"x": "y"}) == (200, f"{machine.id} PUT /token y".encode())


def test_many_threads_get_no_more_than_there_is() -> None:
    core = CloudCore()
    core.capacity = {"*": 10}
    refused: list[OutOfCapacity] = []

    def greedy() -> None:
        for _ in range(5):
            try:
                rent(core)
            except OutOfCapacity as refusal:
                refused.append(refusal)

    threads = [threading.Thread(target=greedy) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(core.leftovers()), len(refused)) == (10, 10)


def test_closing_ends_everything_and_lets_go_of_what_hangs() -> None:
    with CloudCore() as core:
        rent(core)
        assert not core.closing.is_set()
    assert core.leftovers() == []
    assert core.closing.is_set()
    core.close()
