"""The placement policies by name. Each is one pure function from a `View` to a `Mix`.

`risk_aware` is our own and stands in `placement`; the others are here to be chosen, and to be compared with.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from skyserve.decide import placement
from skyserve.model.placement import EventKind, Mix, Pool, View

Placer = Callable[[View], Mix]


def on_demand(view: View) -> Mix:
    """No spot at all: as if `use_spot` were false. The yardstick of every other policy."""
    text = f"{view.wanted + view.spare} on-demand replicas"
    return Mix((), view.wanted + view.spare, tuple(one.id for one in view.spot), view.memory, text=text)


def even_spread(view: View) -> Mix:
    """A fixed share of the replicas in every location, whether it has capacity or not: a static spread, as spot node
    pools do it."""
    cheapest = _cheapest_by_location(view)
    count = view.wanted + view.spare
    launch: list[str] = []
    let_go: list[int] = []
    for place, location in enumerate(sorted(cheapest)):
        share = count // len(cheapest) + (place < count % len(cheapest))
        here = [one for one in view.spot if one.location == location]
        launch += [cheapest[location].name] * (share - len(here))
        let_go += placement.surplus(here, share)
    return Mix(tuple(launch), 0, tuple(let_go), view.memory, text=f"an even share of {count} in each location")


def round_robin(view: View) -> Mix:
    """One location after the other, whatever became of the last launch."""
    cheapest = _cheapest_by_location(view)
    locations, last = sorted(cheapest), view.memory.last
    missing = view.wanted + view.spare - len(view.spot)
    launch: list[str] = []
    for _ in range(missing if locations else 0):
        last = next((one for one in locations if one > last), locations[0])
        launch.append(cheapest[last].name)
    memory = replace(view.memory, last=last)
    let_go = placement.surplus(view.spot, view.wanted + view.spare)
    return Mix(tuple(launch), 0, let_go, memory, text="the next location in turn")


def dynamic_fallback(view: View) -> Mix:
    """SpotHedge as published (Mao et al., SkyServe, EuroSys 2025, Algorithm 1), and what made it known.

    Locations in which a replica was lost or refused are avoided until a launch there becomes ready; when fewer than two
    are left, all are tried again. A missing replica goes to the cheapest location that has none yet, or else to the
    cheapest. On-demand replicas stand in for spot replicas that are not ready, those launched on top included.
    """
    cheapest = _cheapest_by_location(view)
    avoided = _avoided(view, set(cheapest))
    available = [pool for location, pool in cheapest.items() if location not in avoided]
    used = {one.location for one in view.spot}
    count = view.wanted + view.spare
    launch: list[str] = []
    for _ in range(count - len(view.spot) if available else 0):
        free = [pool for pool in available if pool.location not in used] or available
        chosen = min(free, key=lambda pool: (pool.price_per_hour, pool.name))
        launch.append(chosen.name)
        used.add(chosen.location)
    ready = sum(one.ready for one in view.spot)
    stand_in = min(view.wanted, max(0, count - ready)) if view.on_demand_per_hour is not None else 0
    facts: dict[str, float | int | str] = {"ready_spot": ready, "avoided_locations": len(avoided)}
    text = f"{ready} of {count} spot replicas are ready, {len(avoided)} of {len(cheapest)} locations are avoided"
    memory = replace(view.memory, avoided=tuple(sorted(avoided)))
    return Mix(tuple(launch), stand_in, placement.surplus(view.spot, count), memory, text=text, facts=facts)


PLACERS: Mapping[str, Placer] = {
    "risk_aware": placement.place,
    "dynamic_fallback": dynamic_fallback,
    "even_spread": even_spread,
    "round_robin": round_robin,
    "on_demand": on_demand,
}
"""What `spot_placer` may name, see `model.service.SPOT_PLACERS`."""

AS_PUBLISHED = frozenset({"dynamic_fallback", "even_spread", "round_robin"})
"""Policies that know no cool-down after a refusal: they would not be themselves with one."""


def _avoided(view: View, locations: set[str]) -> set[str]:
    avoided = set(view.memory.avoided) & locations
    for event in view.events:
        if event.kind is EventKind.READY:
            avoided.discard(event.location)
        elif event.location in locations:
            avoided.add(event.location)
            if len(locations) - len(avoided) < 2:
                avoided.clear()
    return avoided


def _cheapest_by_location(view: View) -> dict[str, Pool]:
    cheapest: dict[str, Pool] = {}
    for pool in view.pools:
        cheapest.setdefault(pool.location, pool)
    return cheapest
