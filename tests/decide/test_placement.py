"""`risk_aware`, one decision at a time: what it learns, and what it makes of it."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from skyserve.decide import forecast, hazard, placement
from skyserve.model.codec import dumps, loads
from skyserve.model.placement import Event, EventKind, Held, Mix, PlacementMemory, Pool, PoolRecord, View

NOW = 1_700_000_000.0
HOUR = 3600.0


def pool(zone: str, price: float = 1.0, cooling_s: float = 0.0) -> Pool:
    return Pool(f"{zone}/gpu", zone, zone[:-1], price, NOW + cooling_s if cooling_s else 0.0)


def held(id_: int, zone: str, *, ready: bool = True, spot: bool = True, age_s: float = HOUR) -> Held:
    return Held(id_, f"{zone}/gpu" if spot else "on-demand", zone, spot, ready, NOW - age_s, 1.0 if spot else 3.0)


def view(wanted: int, *replicas: Held, **more: object) -> View:
    pools = (pool("east1"), pool("west1", 1.1), pool("west2", 1.2))
    base = View(NOW, wanted, 0, 0.995, pools, 3.0, replicas)
    return replace(base, **more)  # type: ignore[arg-type]


def calm(*zones: str, hours: float = 24.0) -> PlacementMemory:
    return PlacementMemory(NOW - 60, tuple(PoolRecord(f"{zone}/gpu", NOW - hours * HOUR) for zone in zones))


def test_the_longer_a_pool_is_up_the_longer_it_will_be() -> None:
    rates = [hazard.losses_per_s(PoolRecord("p", NOW - hours * HOUR), NOW) * HOUR for hours in (0, 1, 6, 48)]
    assert rates == sorted(rates, reverse=True)
    assert 0.5 < rates[0] < 2.5
    assert rates[-1] < 0.06


def test_what_has_been_down_for_long_is_not_likely_to_be_back_soon() -> None:
    brief = PoolRecord("p", NOW, NOW - 600, NOW - 900)
    lasting = PoolRecord("p", NOW, NOW - 600, NOW - 20 * HOUR)
    assert hazard.chance(brief, NOW) > hazard.chance(lasting, NOW)
    assert hazard.chance(PoolRecord("p", NOW), NOW) == 1.0


def test_a_loss_is_remembered_and_a_refusal_of_a_pool_that_holds_others_means_it_is_full() -> None:
    lost = Event(EventKind.LOST, "east1/gpu", "east1", NOW, HOUR)
    learnt = hazard.learn(view(2, events=(lost,)))
    assert learnt.records["east1/gpu"].down_at == NOW
    refused = Event(EventKind.REFUSED, "east1/gpu", "east1", NOW, 0.0)
    full = hazard.learn(view(3, held(1, "east1"), held(2, "east1"), events=(refused,), memory=calm("east1")))
    record = full.records["east1/gpu"]
    assert (record.full_at, record.down_at) == (NOW, 0.0)
    assert hazard.room(record, NOW, 2, free=True) == 3


def test_the_time_to_ready_is_learnt() -> None:
    ready = Event(EventKind.READY, "east1/gpu", "east1", NOW, 400.0)
    first = placement.place(view(1, held(1, "east1"), events=(ready,)))
    assert first.memory.ready_s == 400.0
    later = replace(ready, age_s=200.0)
    assert placement.place(view(1, held(1, "east1"), events=(later,), memory=first.memory)).memory.ready_s == 350.0


def test_a_market_that_loses_more_than_others_is_trusted_less() -> None:
    lost = tuple(Event(EventKind.LOST, f"{zone}/gpu", zone, NOW, HOUR) for zone in ("east1", "west1", "west2"))
    assert hazard.learn(view(2, events=lost, memory=calm("east1", "west1", "west2"))).pace > 1.0
    quiet = PlacementMemory(NOW - 10 * HOUR, (PoolRecord("east1/gpu", NOW - 11 * HOUR),))
    assert hazard.learn(view(1, held(1, "east1"), memory=quiet)).pace < 1.0


def test_at_the_start_spot_and_stand_ins_are_asked_for_together() -> None:
    mix = placement.place(view(2))
    assert len(mix.launch) >= 2
    assert mix.on_demand == 2
    assert mix.facts["plan_spot"]


def test_calm_pools_need_no_cover_and_one_that_just_came_back_does() -> None:
    replicas = [held(1, "east1", age_s=24 * HOUR), held(2, "east1", age_s=24 * HOUR)]
    quiet = placement.place(view(2, *replicas, memory=calm("east1", hours=48)))
    assert (quiet.launch, quiet.on_demand, quiet.let_go) == ((), 0, ())
    lost = Event(EventKind.LOST, "east1/gpu", "east1", NOW, HOUR)
    alarmed = placement.place(view(2, events=(lost,), memory=calm("east1", hours=48)))
    assert alarmed.on_demand == 2
    assert alarmed.launch


def test_a_dearer_target_never_costs_less() -> None:
    shares = []
    for availability in (0.95, 0.99, 0.995, 0.999, 0.9999):
        wanted = view(4, availability=availability)
        plan = placement.best_plan(placement.sites_of(wanted, hazard.learn(wanted)), wanted, 4, 180.0)
        shares.append(plan.cost)
    assert shares == sorted(shares)


def test_where_nothing_stands_in_nothing_is_counted_on_but_spot() -> None:
    mix = placement.place(view(3, on_demand_per_hour=None))
    assert mix.on_demand == 0
    assert len(mix.launch) >= 3


def test_a_ready_replica_goes_only_when_as_many_others_are_ready() -> None:
    dear = replace(view(1), pools=(pool("east1", 2.8), pool("west1", 0.5)))
    alone = placement.place(replace(dear, held=(held(1, "east1"),)))
    assert alone.let_go == ()
    assert "west1/gpu" in alone.launch
    both = (held(1, "east1"), held(2, "west1", age_s=600.0))
    settled = placement.place(replace(dear, held=both, memory=calm("east1", "west1")))
    assert settled.let_go == (1,)


def test_nothing_new_costs_nothing_and_changes_nothing() -> None:
    first = placement.place(view(2, held(1, "east1"), held(2, "east1"), memory=calm("east1", hours=48)))
    again = placement.place(view(2, held(1, "east1"), held(2, "east1"), memory=first.memory, now=NOW + 20))
    assert again.memory is first.memory
    assert again.launch == ()


def test_the_memory_survives_being_written_down() -> None:
    lost = Event(EventKind.LOST, "east1/gpu", "east1", NOW, HOUR)
    memory = placement.place(view(2, events=(lost,))).memory
    assert loads(PlacementMemory, dumps(memory)) == memory


def test_a_forecast_says_what_it_rests_on() -> None:
    told = forecast.forecast(view(4))
    assert 0.98 < told.availability < 0.99
    assert 4.0 <= told.cost_per_hour < 12.0
    assert any("on-demand machines" in line for line in told.assumptions)
    assert forecast.forecast(view(4, on_demand_per_hour=None)).availability == 0.0
    strict = forecast.forecast(view(4, availability=0.999))
    assert strict.availability > told.availability


zones = st.sampled_from(("east1", "east2", "west1", "west2", "north1"))
replicas = st.lists(
    st.builds(
        held,
        st.integers(1, 1000),
        zones,
        ready=st.booleans(),
        spot=st.booleans(),
        age_s=st.floats(0, 1e6),
    ),
    max_size=12,
    unique_by=lambda one: one.id,
)
events = st.lists(
    st.builds(
        lambda kind, zone, age_s: Event(kind, f"{zone}/gpu", zone, NOW, age_s),
        st.sampled_from(EventKind),
        zones,
        st.floats(0, 1e5),
    ),
    max_size=8,
)
pools = st.lists(
    st.builds(pool, zones, st.sampled_from((0.0, 0.2, 1.0, 2.9, 7.0)), st.sampled_from((0.0, 60.0, 1900.0))),
    max_size=5,
    unique_by=lambda one: one.name,
)


@settings(max_examples=300, deadline=None)
@given(
    wanted=st.integers(1, 12),
    spare=st.integers(0, 2),
    held_=replicas,
    events_=events,
    pools_=pools,
    on_demand=st.sampled_from((None, 0.0, 3.0)),
    availability=st.sampled_from((0.5, 0.95, 0.995, 0.9999)),
    steps=st.integers(1, 3),
)
def test_whatever_is_seen_the_answer_makes_sense(
    wanted: int,
    spare: int,
    held_: list[Held],
    events_: list[Event],
    pools_: list[Pool],
    on_demand: float | None,
    availability: float,
    steps: int,
) -> None:
    seen = View(NOW, wanted, spare, availability, tuple(pools_), on_demand, tuple(held_), tuple(events_))
    for step in range(steps):
        mix: Mix = placement.place(seen)
        assert mix == placement.place(seen), "law 4: same view, same mix"
        assert set(mix.launch) <= {one.name for one in pools_ if one.cooling_until_at <= seen.now}
        assert 0 <= mix.on_demand <= wanted + spare
        assert len(mix.launch) <= 2 * (wanted + spare) + 1
        spot = {one.id: one for one in held_ if one.spot}
        assert set(mix.let_go) <= set(spot)
        ready = sum(one.ready for one in held_)
        gone = sum(spot[id_].ready for id_ in mix.let_go)
        assert not gone or ready - gone >= wanted + spare
        assert mix.wake_at is None or mix.wake_at > seen.now
        if on_demand is None:
            assert mix.on_demand == 0
        seen = replace(seen, now=seen.now + 400.0 * (step + 1), events=(), memory=mix.memory)
