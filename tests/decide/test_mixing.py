"""Spot services: the placer's mix as launches and removals, and what no mix can do."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.decide.builders import NOW
from tests.decide.spot_market import SpotWorld, market, spot_spec

from skyserve.decide import placers
from skyserve.model.decision import Launch, Plan, ReasonCode
from skyserve.model.placement import Mix, PlacementMemory, View
from skyserve.model.replica import ReplicaStatus
from skyserve.model.service import SPOT_PLACERS

HOUR = 3600.0


def hedged(replicas: int = 2, extra: int = 1, **policy: object) -> SpotWorld:
    spec = spot_spec(
        replicas,
        num_overprovision=extra,
        dynamic_ondemand_fallback=True,
        spot_placer="dynamic_fallback",
        **policy,
    )
    return market(spec, easta=1.0, eastb=1.1, westa=1.2)


def launches(plan: Plan | None) -> list[Launch]:
    assert plan is not None
    return [action for action in plan.actions if isinstance(action, Launch)]


def codes(plan: Plan | None) -> list[ReasonCode]:
    return [launch.because.code for launch in launches(plan)]


def test_every_policy_has_a_name_that_a_yaml_may_use() -> None:
    assert set(placers.PLACERS) == set(SPOT_PLACERS)


def test_a_hedged_service_starts_with_spot_and_stand_ins_and_ends_on_spot_alone() -> None:
    world = hedged()
    plan = world.step()
    assert sorted(world.asked) == ["easta", "eastb", "on-demand", "on-demand", "westa"]
    assert codes(plan)[:2] == [ReasonCode.BELOW_TARGET, ReasonCode.BELOW_TARGET]
    assert codes(plan)[2:] == [ReasonCode.SPOT_COVER, ReasonCode.ON_DEMAND_FALLBACK, ReasonCode.ON_DEMAND_FALLBACK]
    world.live(HOUR)
    assert len(world.spot) == len(world.ready) == 3
    assert not world.standing_in


def test_what_is_lost_is_replaced_and_stood_in_for_at_once() -> None:
    world = hedged()
    world.live(HOUR)
    world.preempt("easta")
    plan = world.step()
    assert {launch.replica.offering.capacity_type.value for launch in launches(plan) if launch.replica.offering} == {
        "SPOT",
        "ON_DEMAND",
    }
    world.live(HOUR)
    assert len(world.spot) == 3
    assert not world.there("easta")
    assert not world.standing_in


def test_capacity_that_refuses_is_asked_again_under_the_same_replica() -> None:
    world = hedged(replicas=1, extra=0)
    world.capacity = {"easta": 0}
    world.step()
    first = world.spot[0]
    world.step()
    assert world.refused == ["easta"]
    (again,) = world.spot
    assert again.id == first.id
    assert again.attempt == 2
    assert again.offering is not None
    assert again.offering.location.zone == "eastb"


def test_base_on_demand_replicas_stay() -> None:
    world = hedged(replicas=2, extra=0, base_ondemand_fallback_replicas=1)
    world.live(HOUR)
    assert (len(world.spot), len(world.standing_in)) == (1, 1)
    world.preempt(str(world.spot[0].offering.location.zone) if world.spot[0].offering else "")
    world.step()
    assert len(world.standing_in) == 2
    world.live(HOUR)
    assert (len(world.spot), len(world.standing_in)) == (1, 1)


def test_without_a_fallback_there_is_no_on_demand() -> None:
    spec = spot_spec(2, spot_placer="dynamic_fallback")
    world = market(spec, easta=1.0)
    world.capacity = {"easta": 1}
    world.live(HOUR)
    assert not world.standing_in
    assert len(world.ready) == 1
    assert "on-demand" not in world.asked


def test_on_demand_only() -> None:
    world = market(spot_spec(3, spot_placer="on_demand"), easta=1.0)
    world.live(HOUR)
    assert world.asked == ["on-demand"] * 3
    assert len(world.ready) == 3


def test_nothing_to_be_had_is_waited_for_and_said() -> None:
    world = market(spot_spec(2, dynamic_ondemand_fallback=False), easta=1.0)
    world.capacity = {"easta": 0}
    world.live(120)
    waiting = world.with_status(ReplicaStatus.PENDING)
    assert len(waiting) == 2
    plan = world.log[-1][1]
    assert ReasonCode.NO_CAPACITY in {reason.code for reason in plan.waiting} or launches(plan)


def test_a_service_of_no_replicas_lets_its_spot_replicas_go() -> None:
    world = hedged()
    world.live(HOUR)
    world.update(spot_spec(0, dynamic_ondemand_fallback=True, spot_placer="dynamic_fallback"))
    world.live(HOUR)
    assert not world.machines


def test_fewer_wanted_lets_the_surplus_go() -> None:
    for name in ("dynamic_fallback", "round_robin", "even_spread", "risk_aware", "on_demand"):
        world = market(spot_spec(4, spot_placer=name), easta=1.0, westa=1.0)
        world.live(HOUR)
        assert len(world.ready) >= 4, name
        world.update(spot_spec(1, spot_placer=name))
        world.live(2 * HOUR)
        assert 1 <= len(world.ready) <= 3, name


def test_an_update_replaces_replica_after_replica_without_a_gap() -> None:
    world = hedged(replicas=3, extra=0)
    world.live(HOUR)
    newer = spot_spec(3, dynamic_ondemand_fallback=True, spot_placer="dynamic_fallback")
    world.update(type(newer)(**{**_fields(newer), "run": "serve better"}))
    until = world.now + 2 * HOUR
    while world.now < until:
        world.step(20)
        assert len(world.ready) >= 3
    assert {r.version for r in world.ready} == {2}
    assert not world.standing_in


def _fields(spec: object) -> dict[str, object]:
    return {name: getattr(spec, name) for name in spec.__dataclass_fields__}  # type: ignore[attr-defined]


# ---- a policy that is wrong


def broken(view: View) -> Mix:
    raise ZeroDivisionError("a defect")


def absurd(view: View) -> Mix:
    return Mix(launch=("nowhere",) * 1000, on_demand=-7, let_go=tuple(one.id for one in view.held))


def ruthless(view: View) -> Mix:
    return Mix(let_go=tuple(one.id for one in view.held))


def nothing(view: View) -> Mix:
    return None  # type: ignore[return-value]


@pytest.mark.parametrize("wrong", [broken, absurd, ruthless, nothing])
def test_a_policy_that_fails_takes_no_ready_replica_away(
    wrong: placers.Placer, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = market(spot_spec(2), easta=1.0, westa=1.1)
    world.live(HOUR)
    before = {r.id for r in world.ready}
    assert len(before) >= 2
    monkeypatch.setitem(placers.PLACERS, "risk_aware", wrong)  # type: ignore[arg-type]
    world.live(HOUR)
    assert len({r.id for r in world.ready} & before) >= 2
    if wrong is not ruthless:
        assert ReasonCode.PLACEMENT_FAULT in {reason.code for reason in world.log[-1][1].waiting}


@pytest.mark.parametrize("wrong", [broken, absurd, nothing])
def test_with_a_policy_that_fails_losses_are_replaced_all_the_same(
    wrong: placers.Placer, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = market(spot_spec(2), easta=1.0, westa=1.1)
    world.live(HOUR)
    monkeypatch.setitem(placers.PLACERS, "risk_aware", wrong)  # type: ignore[arg-type]
    for zone in ("easta", "westa"):
        world.preempt(zone)
    world.live(HOUR)
    assert len(world.ready) == 2


mixes = st.builds(
    Mix,
    launch=st.lists(st.sampled_from(("local/east/easta/gpu.large/SPOT", "nowhere", "")), max_size=30).map(tuple),
    on_demand=st.integers(-3, 40) | st.none() | st.floats(),
    let_go=st.lists(st.integers(-1, 60), max_size=60).map(tuple),
    memory=st.just(PlacementMemory()) | st.none(),
    wake_at=st.none() | st.floats(),
)


@settings(max_examples=60, deadline=None)
@given(answers=st.lists(mixes, min_size=1, max_size=8))
def test_no_answer_whatsoever_takes_ready_replicas_below_the_wanted_number(answers: list[Mix]) -> None:
    world = market(spot_spec(3), easta=1.0, westa=1.1)
    world.live(400)
    honest = placers.PLACERS["risk_aware"]
    try:
        for answer in answers:
            placers.PLACERS["risk_aware"] = lambda view, answer=answer: answer  # type: ignore[index]
            plan = world.step(60)
            assert plan is not None
            assert plan.wake_at > world.now
            assert len(world.ready) >= 3
            assert len(world.replicas) < 60
    finally:
        placers.PLACERS["risk_aware"] = honest  # type: ignore[index]
    assert world.now > NOW
