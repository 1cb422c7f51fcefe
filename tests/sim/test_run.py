"""The production loop in a simulated world: what happens when, what it costs, and that nothing depends on the way in
which time is passed."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.sim.worlds import (
    DAY,
    HOUR,
    MINUTE,
    PLAIN,
    Quiet,
    a_market,
    a_spec,
    on_demand_pool,
    spot_pool,
)

from skyserve.errors import Infeasible, UsageError
from skyserve.model.offering import CapacityType, Location, Offering
from skyserve.model.resources import Accelerator
from skyserve.model.service import Kind, LoadBalancer, ReplicaPolicy, ServiceSpec
from skyserve.sim import synthetic
from skyserve.sim.cloud import Setting
from skyserve.sim.market import Market
from skyserve.sim.result import Run
from skyserve.sim.run import Simulation, repeat, simulate

PLACERS = ("risk_aware", "dynamic_fallback", "round_robin", "even_spread", "on_demand")
TIMELESS = PLACERS
"""Placers whose answer does not change as time goes by until they said that it would."""
ZONES = ("us-east-1a", "us-east-1b", "us-west-2a")
GPU = Accelerator("A10G", 1)


def at(run: Run, seconds: float) -> float:
    return run.begin_at + seconds


def made_up(seed: int, days: float = 1.5) -> Market:
    pools = [Offering("aws", "g5", Location("aws", z[:-1], z), CapacityType.SPOT, GPU, 8, 32, 1.0) for z in ZONES]
    lasting = [Offering("aws", "g5", Location("aws", "us-east-1"), CapacityType.ON_DEMAND, GPU, 8, 32, 3.0)]
    return synthetic.market([*pools, *lasting], days * DAY, seed, replace(synthetic.GPU_SPOT, capacity=4))


def test_a_service_comes_up_after_a_cold_start_and_stays() -> None:
    run = simulate(a_spec(2, "on_demand"), a_market(), PLAIN)
    assert run.ready == ((run.begin_at, 0), (at(run, 3 * MINUTE), 2))
    assert run.wanted == ((run.begin_at, 2),)
    assert run.availability == pytest.approx(1 - 3 / 240)
    assert run.cost == run.on_demand_cost == run.bound_cost == pytest.approx(2 * 4 * 3.0)
    assert [(m.capacity_type, m.ready_at) for m in run.machines] == [
        (CapacityType.ON_DEMAND, at(run, 3 * MINUTE)),
        (CapacityType.ON_DEMAND, at(run, 3 * MINUTE)),
    ]
    assert run.steps < 10, "nothing else happens in four hours"


def test_the_first_hour_may_be_left_out() -> None:
    run = simulate(a_spec(2, "on_demand"), a_market(), replace(PLAIN, leave_out_s=HOUR))
    assert (run.availability, run.end_at - run.begin_at) == (1.0, 3 * HOUR)
    assert run.cost == run.on_demand_cost == pytest.approx(2 * 3 * 3.0)
    assert (run.ready, run.wanted) == (((run.begin_at, 2),), ((run.begin_at, 2),))
    assert run.machines[0].launched_at == run.begin_at - HOUR


def test_what_is_taken_back_is_replaced_at_the_same_tick() -> None:
    market = a_market(spot_pool("us-east-1a", {0: 4, 3600: 0}), spot_pool("us-east-1b", {0: 4}, 1.1))
    run = simulate(a_spec(1, "round_robin"), market, PLAIN)
    first, second = run.machines
    assert (first.location.zone, first.ended_at, first.preempted) == ("us-east-1a", at(run, HOUR), True)
    assert (second.location.zone, second.launched_at, second.preempted) == ("us-east-1b", at(run, HOUR), False)
    assert run.ready[1:] == ((at(run, 180), 1), (at(run, HOUR), 0), (at(run, HOUR + 180), 1))


def test_a_refusal_is_heard_of_at_the_next_tick() -> None:
    market = a_market(spot_pool("us-east-1a", {0: 0}), spot_pool("us-east-1b", {0: 4}, 1.1))
    run = simulate(a_spec(1, "round_robin"), market, PLAIN)
    assert run.refusals == ((run.begin_at, market.pools[0].name),)
    assert [(m.location.zone, m.launched_at) for m in run.machines] == [("us-east-1b", at(run, MINUTE))]


def test_on_demand_stands_in_and_ends_at_the_tick_at_which_spot_is_ready() -> None:
    market = a_market(spot_pool("us-east-1a", {0: 0, 3600: 4}), on_demand_pool())
    run = simulate(a_spec(1, "dynamic_fallback", dynamic_ondemand_fallback=True), market, PLAIN)
    lasting, spot = run.machines
    assert (lasting.capacity_type, spot.capacity_type) == (CapacityType.ON_DEMAND, CapacityType.SPOT)
    assert spot.launched_at == at(run, HOUR)
    assert lasting.ended_at == spot.ready_at == at(run, HOUR + 180)
    assert lasting.cost == pytest.approx(63 / 60 * 3.0)
    assert run.availability == pytest.approx(1 - 3 / 240), "never without a ready one, but in the beginning"


def test_a_notice_is_time_to_replace() -> None:
    market = a_market(spot_pool("us-east-1a", {0: 4, 3600: 0}), spot_pool("us-east-1b", {0: 4}, 1.1))
    run = simulate(a_spec(1, "round_robin"), market, replace(PLAIN, notice_s=300.0))
    first, second = run.machines
    assert second.launched_at == at(run, HOUR)
    assert first.ended_at == second.ready_at == at(run, HOUR + 180)
    assert run.ready[1:] == ((at(run, 180), 1),)


def test_a_price_that_changes_is_paid_from_its_tick_on() -> None:
    pool = spot_pool("us-east-1a", {0: 4})
    market = a_market(replace(pool, price=pool.price.of([(0.0, 1.0), (90.0, 7.0)])), hours=1.0)
    run = simulate(a_spec(1, "round_robin"), market, PLAIN)
    assert run.cost == pytest.approx(2 / 60 * 1.0 + 58 / 60 * 7.0)


def test_with_nothing_to_be_had_nothing_is_ready_and_nothing_paid() -> None:
    run = simulate(a_spec(2, "round_robin"), a_market(spot_pool("us-east-1a", {0: 0})), PLAIN)
    assert (run.availability, run.cost, run.machines, run.bound_cost) == (0.0, 0, (), None)
    assert len(run.refusals) > 10


def test_a_run_is_told_of_as_it_goes() -> None:
    told: list[float] = []
    simulate(a_spec(2, "round_robin"), made_up(1), replace(PLAIN, leave_out_s=HOUR), progress=told.append)
    assert told == sorted(told)
    assert len(told) > 5
    assert told[-1] == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize("placer", PLACERS)
def test_the_same_seed_gives_the_same_run(placer: str) -> None:
    setting = Setting(cold_start_spread=0.4, seed=5)
    first, again = (simulate(a_spec(3, placer), made_up(5, days=0.5), setting) for _ in range(2))
    assert first == again


def test_seeds_are_repeats() -> None:
    runs = repeat(a_spec(3, "round_robin"), made_up, range(3), replace(PLAIN, cold_start_spread=0.4))
    assert len({run.cost for run in runs}) == 3
    assert runs[1] == simulate(a_spec(3, "round_robin"), made_up(1), replace(PLAIN, cold_start_spread=0.4, seed=1))


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(0, 10_000), st.sampled_from(TIMELESS), st.integers(1, 5), st.sampled_from([20.0, 60.0, 97.0]))
def test_passing_over_ticks_changes_nothing(seed: int, placer: str, replicas: int, tick_s: float) -> None:
    setting = Setting(tick_s=tick_s, cold_start_spread=0.3, notice_s=(seed % 3) * 60.0, seed=seed)
    spec, market = a_spec(replicas, placer, target_qps_per_replica=1.0), made_up(seed, days=0.25)
    every_tick = simulate(spec, market, setting, traffic=Quiet())
    passed_over = simulate(spec, market, setting)
    assert replace(every_tick, steps=0, served=None) == replace(passed_over, steps=0)
    assert passed_over.steps <= every_tick.steps


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(0, 10_000), st.sampled_from(PLACERS), st.integers(1, 6))
def test_the_bill_is_that_of_the_machines_and_never_below_the_bound(seed: int, placer: str, replicas: int) -> None:
    market = made_up(seed, days=0.4)
    run = simulate(a_spec(replicas, placer), market, replace(PLAIN, leave_out_s=HOUR))
    assert run.cost == sum(machine.cost for machine in run.machines)
    pools = {(pool.offering.location, pool.offering.capacity_type): pool for pool in market.pools}
    for machine in run.machines:
        pool = pools[machine.location, machine.capacity_type]
        paid_from = max(machine.launched_at, run.begin_at)
        ticks = range(round((machine.ended_at - paid_from) / MINUTE))
        tick_by_tick = sum(market.price(pool, paid_from + tick * MINUTE) / 60 for tick in ticks)
        assert machine.cost == pytest.approx(tick_by_tick)
        assert machine.launched_at < machine.ended_at <= run.end_at
        assert machine.ready_at is None or machine.launched_at + 180 <= machine.ready_at <= machine.ended_at
    assert run.bound_cost is not None
    assert run.bound_cost <= run.on_demand_cost + 1e-6
    if run.availability == 1.0:
        assert run.bound_cost <= run.cost + 1e-6


def test_ready_replicas_are_those_of_the_machines() -> None:
    run = simulate(a_spec(3), made_up(3), replace(PLAIN, leave_out_s=HOUR))
    for instant, ready in run.ready:
        up = [m for m in run.machines if m.ready_at is not None and m.ready_at <= instant < m.ended_at]
        assert len(up) == ready, instant


# ---- with traffic


def test_traffic_moves_on_from_tick_to_tick_with_the_ready_replicas() -> None:
    traffic = Quiet()
    spec = a_spec(1, "on_demand", target_qps_per_replica=1.0)
    run = simulate(spec, a_market(hours=0.2), replace(PLAIN, leave_out_s=120.0), traffic=traffic)
    begin = run.begin_at - 120
    assert [told[:3] for told in traffic.told[:4]] == [
        (begin, begin + 60, ()),
        (begin + 60, begin + 120, ()),
        (begin + 120, begin + 180, ()),
        (begin + 180, begin + 240, (1,)),
    ]
    assert traffic.counted_from == [run.begin_at]
    assert run.served is not None
    assert run.served.requests == 12


def test_load_scales_the_service() -> None:
    policy = {"min_replicas": 1, "max_replicas": 8, "target_qps_per_replica": 2.0}
    spec = a_spec(1, "on_demand", **policy, upscale_delay_seconds=300.0)
    run = simulate(spec, a_market(), PLAIN, traffic=Quiet(arrivals_per_s=7.0))
    assert run.wanted == ((run.begin_at, 1), (at(run, 360), 4))
    assert run.ready[-1] == (at(run, 360 + 180), 4)


def test_a_replica_that_still_works_on_something_is_kept_until_it_is_done() -> None:
    market = a_market(spot_pool("us-east-1a", {0: 0, 1800: 4}), on_demand_pool())
    spec = a_spec(1, "dynamic_fallback", dynamic_ondemand_fallback=True)
    ends = {}
    for busy in (0, 1):
        traffic = Quiet()
        traffic.busy = {id_: busy for id_ in range(1, 9)}
        run = simulate(spec, market, PLAIN, traffic=traffic)
        (lasting,) = [m for m in run.machines if m.capacity_type is CapacityType.ON_DEMAND]
        ends[busy] = lasting.ended_at - run.begin_at
        assert any(leaving for *_, leaving in traffic.told) == bool(busy)
    assert ends == {0: 1800 + 180, 1: 1800 + 180 + 120}, "at the latest when the drain deadline is reached"


def test_a_fixed_number_of_replicas_is_not_looked_at_for_every_tick_of_traffic() -> None:
    traffic = Quiet(arrivals_per_s=5.0)
    run = simulate(a_spec(1, "on_demand"), a_market(), replace(PLAIN, leave_out_s=HOUR), traffic=traffic)
    assert run.steps < 10
    assert traffic.counted_from == [run.begin_at]
    assert traffic.told[0][0] == run.begin_at - HOUR
    assert all(earlier[1] == later[0] for earlier, later in pairwise(traffic.told))
    assert traffic.told[-1][1] == run.end_at


def test_replicas_are_as_fast_as_the_policy_says_of_their_accelerators() -> None:
    slow, fast = spot_pool("us-east-1a", {0: 1}), spot_pool("us-east-1b", {0: 1})
    pools = [
        replace(pool, offering=replace(pool.offering, accelerator=Accelerator(name, 1)))
        for pool, name in ((slow, "L4"), (fast, "H100"))
    ]
    traffic = Quiet()
    rates = {"L4": 2.0, "H100": 8.0}
    spec = a_spec(2, "even_spread", target_qps_per_replica=rates)
    simulate(spec, a_market(*pools), PLAIN, traffic=traffic)
    assert sorted(speed for _, speed in traffic.ready) == [0.25, 1.0]


def test_a_cold_start_may_be_longer_than_the_initial_delay() -> None:
    run = simulate(a_spec(1, "on_demand"), a_market(), replace(PLAIN, cold_start_s=3000.0))
    assert run.ready == ((run.begin_at, 0), (at(run, 3000), 1))


# ---- what cannot be simulated


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        (replace(PLAIN, tick_s=0.0), "a tick must last longer than 0s"),
        (replace(PLAIN, cold_start_s=-1.0), "durations cannot be negative"),
        (replace(PLAIN, leave_out_s=4 * HOUR), "the market lasts 14400s, and the first 14400s are left out"),
    ],
)
def test_a_senseless_setting_is_refused(setting: Setting, told: str) -> None:
    with pytest.raises(UsageError) as caught:
        simulate(a_spec(), a_market(), setting)
    assert caught.value.message == told


def test_a_cluster_is_refused() -> None:
    with pytest.raises(UsageError, match="a cluster cannot be simulated"):
        simulate(replace(a_spec(), kind=Kind.CLUSTER), a_market(), PLAIN)


def test_a_market_without_pools_is_refused() -> None:
    with pytest.raises(Infeasible, match="nothing in the market 'small'"):
        simulate(a_spec(), replace(a_market(), pools=()), PLAIN)


def test_secrets_are_not_needed() -> None:
    keyed = LoadBalancer(api_keys=("A_KEY",))
    spec = replace(a_spec(1, "on_demand"), secrets={"A_KEY": "fingerprint"}, load_balancer=keyed)
    assert simulate(spec, a_market(), PLAIN).availability > 0.9


def test_a_thousand_replicas_are_all_accounted_for() -> None:
    spec = ServiceSpec("chat", "serve", replica_policy=ReplicaPolicy(1000, 1000))
    simulation = Simulation(spec, a_market(hours=0.5), PLAIN)
    run = simulation.run()
    assert (len(run.machines), run.ready[-1][1]) == (1000, 1000)
