"""The named placement policies, one decision at a time."""

from __future__ import annotations

from dataclasses import replace

import pytest

from skyserve.decide import placers
from skyserve.model.placement import Event, EventKind, Held, Mix, PlacementMemory, Pool, View

PRICES = {"a": 1.0, "b": 1.2, "c": 1.5}


def pool(zone: str, price: float) -> Pool:
    return Pool(f"{zone}/gpu", zone, zone[0], price)


def held(id_: int, zone: str, *, ready: bool = True, spot: bool = True) -> Held:
    return Held(id_, f"{zone}/gpu", zone, spot, ready, 0.0, PRICES.get(zone, 3.0))


def view(wanted: int, *replicas: Held, spare: int = 0, **more: object) -> View:
    pools = tuple(pool(zone, price) for zone, price in PRICES.items())
    base = View(1000.0, wanted, spare, 0.995, pools, 3.0, replicas)
    return replace(base, **more)  # type: ignore[arg-type]


def event(kind: EventKind, zone: str) -> Event:
    return Event(kind, f"{zone}/gpu", zone, 1000.0, 60.0)


def zones(mix: Mix) -> list[str]:
    return [name.partition("/")[0] for name in mix.launch]


def test_an_even_spread_gives_each_location_its_share_and_insists_on_it() -> None:
    assert zones(placers.even_spread(view(4))) == ["a", "a", "b", "c"]
    some = view(4, held(1, "a"), held(2, "a"), held(3, "c"))
    assert zones(placers.even_spread(some)) == ["b"]
    assert placers.even_spread(some).on_demand == 0


def test_a_round_robin_goes_on_where_it_stood() -> None:
    first = placers.round_robin(view(4))
    assert zones(first) == ["a", "b", "c", "a"]
    later = view(2, held(1, "a"), memory=first.memory, events=(event(EventKind.REFUSED, "a"),))
    assert zones(placers.round_robin(later)) == ["b"]


def test_on_demand_only_wants_no_spot() -> None:
    mix = placers.on_demand(view(3, held(1, "a"), spare=1))
    assert (mix.launch, mix.on_demand, mix.let_go) == ((), 4, (1,))


def test_spothedge_takes_unused_locations_first_and_then_the_cheapest() -> None:
    assert zones(placers.dynamic_fallback(view(4, spare=1))) == ["a", "b", "c", "a", "a"]
    assert zones(placers.dynamic_fallback(view(2, held(1, "a")))) == ["b"]


def test_spothedge_avoids_where_it_lost_until_a_launch_there_is_ready() -> None:
    lost = placers.dynamic_fallback(view(2, held(1, "b"), events=(event(EventKind.LOST, "a"),)))
    assert lost.memory.avoided == ("a",)
    assert zones(lost) == ["c"]
    again = view(2, held(1, "b"), memory=lost.memory, events=(event(EventKind.READY, "a"),))
    assert placers.dynamic_fallback(again).memory.avoided == ()


def test_spothedge_begins_again_when_fewer_than_two_locations_are_left() -> None:
    events = (event(EventKind.LOST, "a"), event(EventKind.REFUSED, "b"))
    assert placers.dynamic_fallback(view(2, events=events)).memory.avoided == ()


@pytest.mark.parametrize(
    ("ready", "spare", "stand_in"), [(0, 1, 4), (1, 1, 4), (4, 1, 1), (5, 1, 0), (3, 0, 1), (4, 0, 0)]
)
def test_spothedge_stands_in_for_all_that_is_not_ready_extras_included(ready: int, spare: int, stand_in: int) -> None:
    replicas = [held(id_, "a", ready=id_ <= ready) for id_ in range(1, 5 + spare)]
    assert placers.dynamic_fallback(view(4, *replicas, spare=spare)).on_demand == stand_in


def test_spothedge_without_fallback_stands_in_for_nothing() -> None:
    assert placers.dynamic_fallback(view(4, on_demand_per_hour=None)).on_demand == 0


@pytest.mark.parametrize("name", sorted(placers.AS_PUBLISHED))
def test_what_is_too_many_goes_unready_and_newest_first(name: str) -> None:
    replicas = [held(1, "a"), held(2, "a", ready=False), held(3, "a"), held(4, "a")]
    mix = placers.PLACERS[name](view(3, *replicas, memory=PlacementMemory()))
    assert mix.let_go[0] == 2
    assert (len(mix.let_go) == 1) or name == "even_spread"


@pytest.mark.parametrize("name", sorted(placers.PLACERS))
def test_no_policy_fails_where_there_is_nothing_at_all(name: str) -> None:
    nothing = view(2, pools=(), on_demand_per_hour=None)
    assert placers.PLACERS[name](nothing).launch == ()


@pytest.mark.parametrize("name", sorted(placers.PLACERS))
def test_the_same_view_gives_the_same_mix(name: str) -> None:
    some = view(3, held(1, "a"), held(2, "b", ready=False), events=(event(EventKind.LOST, "c"),))
    assert placers.PLACERS[name](some) == placers.PLACERS[name](some)
