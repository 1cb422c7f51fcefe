"""Simulated machines: launched where there is room, up after a cold start, taken back when capacity falls, paid for."""

from __future__ import annotations

import statistics
from dataclasses import replace

import pytest
from tests.decide.builders import replica
from tests.sim.worlds import PLAIN, a_market, on_demand_pool, spot_pool

from skyserve.model.evidence import InstanceState
from skyserve.model.replica import Replica, ReplicaStatus
from skyserve.sim.cloud import Cloud, Setting
from skyserve.sim.market import Market, MarketPool

POOL = spot_pool("us-east-1a", {0: 3, 600: 1, 1200: 4})


def cloud(*pools: MarketPool, setting: Setting = PLAIN) -> Cloud:
    made = Cloud(a_market(*(pools or (POOL,))), setting, "chat-u1")
    made.turn(0)
    return made


def row(id_: int) -> Replica:
    return replica(id_, ReplicaStatus.PENDING, token=f"t{id_}")


def launch(made: Cloud, *ids: int, pool: MarketPool = POOL) -> list[str | None]:
    return [made.launch(row(id_), pool.offering) for id_ in ids]


def turn(made: Cloud, until: int) -> bool:
    """Every tick up to `until`; whether anything was seen at the last of them."""
    return [made.turn(tick) for tick in range(made.tick + 1, until + 1)][-1]


def states(made: Cloud) -> dict[str, InstanceState]:
    return {instance.token: instance.state for instance in made.listing("aws")}


def test_a_launch_succeeds_where_there_is_room() -> None:
    made = cloud()
    assert launch(made, 1, 2, 3, 4) == ["i-t1", "i-t2", "i-t3", None]
    (first, *_) = made.listing("aws")
    assert (first.service, first.token, first.state) == ("chat-u1", "t1", InstanceState.RUNNING)
    assert first.address is not None
    assert made.listing("gcp") == ()


def test_the_same_token_is_the_same_machine() -> None:
    made = cloud()
    assert launch(made, 1, 1) == ["i-t1", "i-t1"]
    assert len(made.listing("aws")) == 1


def test_there_is_always_room_on_demand() -> None:
    pool = on_demand_pool()
    assert None not in launch(cloud(pool), *range(1, 200), pool=pool)


def test_a_machine_answers_after_its_cold_start() -> None:
    made = cloud()
    launch(made, 1)
    assert made.next_event == 3
    assert [made.turn(tick) for tick in (1, 2, 3)] == [False, False, True]
    assert made.warm == {1: 3}


def test_a_cold_start_lasts_whole_ticks() -> None:
    made = cloud(setting=Setting(tick_s=20.0, cold_start_s=183.0))
    launch(made, 1)
    assert made.next_event == 10


def test_cold_starts_may_differ_and_do_not_by_seed() -> None:
    def starts(seed: int) -> list[int]:
        pool = on_demand_pool()
        made = cloud(pool, setting=replace(PLAIN, tick_s=1.0, cold_start_spread=0.5, seed=seed))
        launch(made, *range(1, 300), pool=pool)
        turn(made, 3000)
        return [made.warm[id_] for id_ in sorted(made.warm)]

    assert starts(1) == starts(1) != starts(2)
    assert statistics.median(starts(1)) == pytest.approx(180, rel=0.2)


def test_the_youngest_go_when_capacity_falls() -> None:
    made = cloud()
    launch(made, 1)
    turn(made, 5)
    launch(made, 2, 3)
    assert turn(made, 10)
    preempted, running = InstanceState.PREEMPTED, InstanceState.RUNNING
    assert states(made) == {"t1": running, "t2": preempted, "t3": preempted}
    assert made.warm == {1: 3}
    assert launch(made, 4) == [None]


def test_what_was_taken_back_is_shown_until_it_is_terminated() -> None:
    made = cloud()
    launch(made, 1, 2)
    turn(made, 10)
    made.terminate("i-t2")
    made.terminate("i-t2")
    assert states(made) == {"t1": InstanceState.RUNNING}
    assert [(m.replica_id, m.preempted) for m in made.machines(0, 20)] == [(1, False), (2, True)]


def test_capacity_that_comes_back_is_nothing_to_be_seen() -> None:
    made = cloud()
    launch(made, 1)
    turn(made, 10)
    assert made.next_event == 20
    assert not turn(made, 20)
    assert launch(made, 2, 3, 4, 5) == ["i-t2", "i-t3", "i-t4", None]


def test_a_notice_comes_before_the_machine_goes() -> None:
    made = cloud(setting=replace(PLAIN, notice_s=120.0))
    launch(made, 1, 2)
    assert turn(made, 10)
    assert {i.token: i.reclaim_at for i in made.listing("aws")} == {"t1": None, "t2": made.instant(12)}
    assert (launch(made, 3), made.warm) == ([None], {1: 3, 2: 3})
    assert not turn(made, 11)
    assert turn(made, 12)
    assert states(made)["t2"] is InstanceState.PREEMPTED
    assert [m.ended_at for m in made.machines(0, 20)] == [made.instant(20), made.instant(12)]


def test_a_machine_that_was_given_notice_may_be_ended_before() -> None:
    made = cloud(setting=replace(PLAIN, notice_s=120.0))
    launch(made, 1, 2)
    turn(made, 10)
    made.terminate("i-t2")
    assert not turn(made, 12)
    assert [(m.replica_id, m.preempted) for m in made.machines(0, 20)] == [(1, False), (2, False)]


def test_machines_are_paid_for_from_launch_to_end() -> None:
    market = Market("m", (spot_pool("us-east-1a", {0: 3}, 6.0),), 3600.0)
    made = Cloud(market, PLAIN, "chat-u1")
    made.turn(0)
    launch(made, 1, pool=market.pools[0])
    turn(made, 10)
    launch(made, 2, pool=market.pools[0])
    turn(made, 30)
    made.terminate("i-t1")
    first, second = made.machines(20, 60)
    assert (first.cost, second.cost) == (pytest.approx(1.0), pytest.approx(4.0))
    assert (first.launched_at, first.ready_at, first.ended_at) == (market.begin_at, made.instant(3), made.instant(30))
    assert [m.replica_id for m in made.machines(40, 60)] == [2]


def test_one_that_never_came_up_was_never_ready() -> None:
    made = cloud()
    launch(made, 1)
    turn(made, 1)
    made.terminate("i-t1")
    turn(made, 3)
    (machine,) = made.machines(0, 10)
    assert (machine.ready_at, machine.ended_at, made.warm) == (None, made.instant(1), {})
