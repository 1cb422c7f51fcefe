"""Our own placement policy. (A stand-in until the real one is here.)"""

from __future__ import annotations

from collections.abc import Sequence

from skyserve.model.placement import Forecast, Held, Mix, View


def place(view: View) -> Mix:
    """Cheapest free pools, spread; on-demand for what is not ready."""
    free = [pool for pool in view.pools if pool.cooling_until_at <= view.now]
    missing = view.wanted - len(view.spot)
    launch = tuple(free[i % len(free)].name for i in range(missing)) if free else ()
    ready = sum(one.ready for one in view.spot)
    return Mix(launch, max(0, view.wanted - ready), surplus(view.spot, view.wanted), view.memory)


def surplus(held: Sequence[Held], count: int) -> tuple[int, ...]:
    """The replicas beyond `count`: those that are not ready first, among equals the newest."""
    order = sorted(held, key=lambda one: (one.ready, -one.id))
    return tuple(one.id for one in order[: max(0, len(held) - count)])


def forecast(view: View) -> Forecast:
    """A stand-in."""
    return Forecast(view.wanted * view.pools[0].price_per_hour if view.pools else 0.0, 0.9, 0.95, ())
