"""What a spec is told before it becomes a version: replicas that would want one port of one host, above all."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest
from tests.controller.rig import FixedRoster, chat

from skyserve.clock import VirtualClock
from skyserve.config import Config
from skyserve.controller import admission
from skyserve.controller.offers import Offered
from skyserve.controller.supervisor import Supervisor
from skyserve.errors import UsageError
from skyserve.model.offering import Offering
from skyserve.model.resources import ResourceChoice, Resources
from skyserve.model.service import ReplicaPolicy, ServiceSpec, UpdateMode
from skyserve.providers.base import Capabilities, Provider
from skyserve.providers.fake import SMALL, SMALL_SPOT, FakeProvider
from skyserve.store.secrets import SecretStore
from skyserve.store.sql import open_store

CROWDED = Capabilities(shares_host=True, one_host=True)
APART = Capabilities(one_host=True)
POOL = Capabilities(shares_host=True)
CLOUD = Capabilities()
HARD_CODED = "serve --port 8080"
UNCLEAR = "serve"
OBEDIENT = 'serve --port "$PORT"'


def world(**places: Capabilities) -> tuple[dict[str, Provider], Offered]:
    clock = VirtualClock()
    providers: dict[str, Provider] = {
        name: FakeProvider(clock, name=name, capabilities=capabilities) for name, capabilities in places.items()
    }
    return providers, Offered(tuple(replace(SMALL, provider=name) for name in places), ())


def admitted(spec: ServiceSpec, **places: Capabilities) -> tuple[str, ...]:
    providers, offered = world(**places)
    admission.refuse_crowding(spec, offered, providers)
    return admission.warnings(spec, offered, providers)


def test_replicas_that_all_want_one_port_of_one_host_are_refused() -> None:
    with pytest.raises(UsageError, match=r"port 8080.*one of 3 replicas") as caught:
        admitted(chat(3, HARD_CODED), here=CROWDED)
    assert "$SKYSERVE_REPLICA_PORT" in (caught.value.hint or "")


def test_so_are_those_that_autoscaling_may_add() -> None:
    spec = replace(chat(1, HARD_CODED), replica_policy=ReplicaPolicy(1, 2, target_qps_per_replica=1.0))
    with pytest.raises(UsageError, match="one of 2 replicas"):
        admitted(spec, here=CROWDED)


@pytest.mark.parametrize(
    "places",
    [
        {"here": CROWDED, "there": CLOUD},
        {"here": CROWDED, "pool": POOL},
        {"pool": POOL},
    ],
    ids=["a cloud too", "other hosts too", "a pool of hosts"],
)
def test_where_there_may_be_other_hosts_it_is_a_warning(places: dict[str, Capabilities]) -> None:
    [told] = admitted(chat(2, HARD_CODED), **places)
    assert "8080" in told
    assert "$SKYSERVE_REPLICA_PORT" in told
    assert "There" not in told


def test_who_names_no_port_at_all_is_warned() -> None:
    [told] = admitted(chat(2, UNCLEAR), here=CROWDED)
    assert "Here" in told


@pytest.mark.parametrize("run", [HARD_CODED, UNCLEAR, OBEDIENT])
@pytest.mark.parametrize("place", [APART, CLOUD], ids=["a network each", "a machine each"])
def test_nothing_is_said_where_each_has_its_own_ports(run: str, place: Capabilities) -> None:
    assert admitted(chat(2, run), here=place) == ()


def test_nothing_is_said_to_one_replica_nor_to_those_that_ask_for_their_port() -> None:
    assert admitted(chat(1, HARD_CODED), here=CROWDED) == ()
    assert admitted(chat(9, OBEDIENT), here=CROWDED) == ()


def test_nothing_is_said_where_nothing_is_offered() -> None:
    providers, _ = world(here=CROWDED)
    nothing = Offered((), ())
    admission.refuse_crowding(chat(2, HARD_CODED), nothing, providers)
    assert admission.warnings(chat(2, HARD_CODED), nothing, providers) == ()


def test_plan_create_and_update_refuse_them(tmp_path: Path) -> None:
    async def scenario() -> None:
        clock = VirtualClock()
        offering: Offering = replace(SMALL, provider="here")
        here = FakeProvider(clock, name="here", capabilities=CROWDED, offerings=(offering,))
        store = await asyncio.to_thread(open_store, tmp_path / "state.db")
        config = Config(tmp_path, inherited_env={})
        roster, secrets = FixedRoster(here), SecretStore(config.secrets_dir)
        supervisor = Supervisor(config, store, roster, clock, secrets)  # type: ignore[arg-type]
        with pytest.raises(UsageError, match="port 8080"):
            await supervisor.plan(chat(2, HARD_CODED))
        with pytest.raises(UsageError, match="port 8080"):
            await supervisor.create(chat(2, HARD_CODED), {})
        assert await store.services() == ()
        await store.create(chat(1, HARD_CODED), uid="u1", port=30001, now=clock.now())
        with pytest.raises(UsageError, match="port 8080"):
            await supervisor.update(chat(2, HARD_CODED), {}, UpdateMode.ROLLING)
        await supervisor.close()

    asyncio.run(scenario())


def test_a_spot_service_that_nothing_can_stand_in_for_is_warned() -> None:
    on_spot = replace(chat(1, OBEDIENT), resources=ResourceChoice((Resources(use_spot=True),)))
    spot_only = Offered((SMALL_SPOT,), ())
    [told] = admission.warnings(on_spot, spot_only, {"fake": FakeProvider(VirtualClock())})
    assert "nothing stands in" in told
    both = Offered((SMALL_SPOT, SMALL), ())
    assert admission.warnings(on_spot, both, {"fake": FakeProvider(VirtualClock())}) == ()
