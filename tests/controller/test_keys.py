"""API keys on their way to the door: as digests only, at once, and never as the absence of a key."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest
from tests.controller.rig import FixedRoster, Rig, chat, rig

from skyserve.clock import VirtualClock
from skyserve.config import Config
from skyserve.controller import admission
from skyserve.controller.supervisor import Supervisor
from skyserve.errors import StoreUnavailable, UsageError
from skyserve.model.decision import Launch
from skyserve.model.routing import RoutingTable
from skyserve.model.service import Kind, LoadBalancer, ReplicaPolicy, ServiceSpec, UpdateMode
from skyserve.providers.fake import FakeProvider
from skyserve.store.secrets import SecretStore
from skyserve.store.sql import open_store

TAG = "chat-u1"
ONE = ReplicaPolicy(1, 1)


def keyed(*names: str, prints: str = "1", run: str = "serve") -> ServiceSpec:
    """A service with these keys, its secrets being two."""
    balancer = LoadBalancer(api_keys=names)
    return replace(chat(2, run), load_balancer=balancer, secrets={"OLD": f"o{prints}", "NEW": f"n{prints}"})


def digest(value: str) -> str:
    return sha256(value.encode()).hexdigest()


def put(r: Rig, version: int, **values: str) -> None:
    SecretStore(r.home / "secrets").put(TAG, version, values)


def damage(r: Rig, version: int) -> None:
    (r.home / "secrets" / TAG / f"{version}.json").write_text("{")


def table(r: Rig) -> RoutingTable:
    last: RoutingTable = r.world.door.tables[-1]  # type: ignore[attr-defined]
    return last


def run(tmp_path: Path, spec: ServiceSpec, scenario: Callable[[Rig], Awaitable[None]]) -> None:
    async def whole() -> None:
        clock = VirtualClock()
        r = await rig(tmp_path, FakeProvider(clock), clock, spec)
        put(r, 1, OLD="old-value", NEW="new-value")
        try:
            await scenario(r)
        finally:
            await r.close()

    asyncio.run(whole())


def test_the_door_gets_digests(tmp_path: Path) -> None:
    async def scenario(r: Rig) -> None:
        await r.until_ready(2)
        assert table(r).api_keys == tuple(sorted((digest("old-value"), digest("new-value"))))
        assert not table(r).keys_unread

    run(tmp_path, keyed("OLD", "NEW"), scenario)
    assert not [file for file in tmp_path.glob("state.db*") if b"old-value" in file.read_bytes()]


def test_secrets_that_are_no_keys_are_none(tmp_path: Path) -> None:
    async def scenario(r: Rig) -> None:
        await r.step()
        assert table(r).api_keys is None
        assert not table(r).keys_unread

    run(tmp_path, keyed(), scenario)


def test_a_key_is_taken_away_at_once_and_without_touching_replicas(tmp_path: Path) -> None:
    async def scenario(r: Rig) -> None:
        before = await r.until_ready(2)
        put(r, 2, OLD="old-value", NEW="new-value")
        await r.store.put_version(keyed("NEW"), mode=UpdateMode.ROLLING, now=r.clock.now())
        plan = await r.step()
        assert table(r).api_keys == (digest("new-value"),)
        assert [one.id for one in plan.replicas] == [one.id for one in before]
        assert not [action for action in plan.actions if isinstance(action, Launch)]

    run(tmp_path, keyed("OLD", "NEW"), scenario)


@pytest.mark.parametrize("mode", list(UpdateMode))
def test_another_value_counts_before_the_new_replicas_are_there(tmp_path: Path, mode: UpdateMode) -> None:
    async def scenario(r: Rig) -> None:
        await r.until_ready(2)
        put(r, 2, OLD="rotated", NEW="new-value")
        await r.store.put_version(keyed("OLD", prints="2"), mode=mode, now=r.clock.now())
        await r.step()
        assert table(r).api_keys == (digest("rotated"),)
        assert len(table(r).endpoints) == 2, "the old replicas serve on"

    run(tmp_path, keyed("OLD"), scenario)


@pytest.mark.parametrize("values", [None, {"NEW": "new-value"}, {"OLD": "", "NEW": "new-value"}])
def test_keys_that_cannot_be_read_are_not_taken_for_none(tmp_path: Path, values: dict[str, str] | None) -> None:
    async def scenario(r: Rig) -> None:
        await r.until_ready(2)
        if values is None:
            damage(r, 1)
        else:
            put(r, 1, **values)
        asked = len(r.world.door.tables)  # type: ignore[attr-defined]
        with pytest.raises(StoreUnavailable) as caught:
            await r.step()
        assert "value" not in caught.value.message
        assert len(r.world.door.tables) == asked + 1, "all else goes on"  # type: ignore[attr-defined]
        assert len(table(r).endpoints) == 2
        assert table(r).api_keys is None
        assert table(r).keys_unread
        put(r, 1, OLD="old-value", NEW="new-value")
        await r.step()
        assert (table(r).api_keys, table(r).keys_unread) == ((digest("old-value"),), False)

    run(tmp_path, keyed("OLD"), scenario)


def test_a_new_controller_that_cannot_read_them_says_so(tmp_path: Path) -> None:
    async def scenario(r: Rig) -> None:
        damage(r, 1)
        with pytest.raises(StoreUnavailable):
            await r.step()
        assert (table(r).api_keys, table(r).keys_unread) == (None, True)

    run(tmp_path, keyed("OLD"), scenario)


def test_a_service_with_unreadable_keys_can_be_taken_down(tmp_path: Path) -> None:
    async def scenario(r: Rig) -> None:
        await r.until_ready(2)
        damage(r, 1)
        await r.store.want_down("chat", purge=False)
        for _ in range(30):
            try:
                plan = await r.step()
            except StoreUnavailable:  # a probe of a replica that is still there
                continue
            assert table(r).keys_unread
            if plan.finished:
                return
        raise AssertionError("it does not end")

    run(tmp_path, keyed("OLD"), scenario)


def test_a_spec_whose_keys_are_no_secrets_is_refused() -> None:
    with pytest.raises(UsageError, match="'THIRD' is no secret"):
        admission.refuse_impossible(keyed("OLD", "THIRD"))
    admission.refuse_impossible(keyed("OLD"))


@pytest.mark.parametrize(
    ("host", "said"),
    [
        ("127.0.0.1", 0),
        ("127.3.2.1", 0),
        ("::1", 0),
        ("localhost", 0),
        ("0.0.0.0", 1),
        ("::", 1),
        ("10.1.2.3", 1),
        ("", 1),
    ],
)
def test_an_endpoint_that_is_open_to_all_is_told_of(host: str, said: int) -> None:
    told = admission.about_endpoint(chat(), host)
    assert len(told) == said
    assert all("`service.load_balancer.api_keys`" in one for one in told)
    assert admission.about_endpoint(keyed("OLD"), host) == ()
    assert admission.about_endpoint(replace(chat(), kind=Kind.CLUSTER), host) == ()


def test_the_plan_tells_of_it_once(tmp_path: Path) -> None:
    async def scenario() -> list[tuple[str, ...]]:
        clock, config = VirtualClock(), Config(tmp_path, endpoint_host="0.0.0.0", inherited_env={})
        store = await asyncio.to_thread(open_store, config.database)
        roster = FixedRoster(FakeProvider(clock))
        supervisor = Supervisor(config, store, roster, clock, SecretStore(config.secrets_dir))  # type: ignore[arg-type]
        told = [(await supervisor.plan(spec))[1] for spec in (chat(1), replace(keyed("OLD"), replica_policy=ONE))]
        await supervisor.close()
        return told

    (warning,), none = asyncio.run(scenario())
    assert "asks nobody for an API key" in warning
    assert none == ()
