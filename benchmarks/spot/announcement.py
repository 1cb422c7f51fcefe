"""How often a spot machine can be had as zones and regions are added, and what that saves against on-demand.

Recomputes the two figures with which the system was announced, from a recorded market: the share of time in which one
V100 could be had on spot, in one zone and in ever more of them, and the saving when on-demand stands in for the rest.

    python benchmarks/spot/announcement.py [--trace FILE] [--price-ratio 0.417]
"""

from __future__ import annotations

import argparse
import itertools
import os
from collections.abc import Sequence
from pathlib import Path

from skyserve.sim.market import Market, MarketPool
from skyserve.sim.traces import load_trace

SHARED = Path(os.environ.get("SKYSERVE_TEST_SHARED") or Path(__file__).parents[3] / "shared")
TRACE = SHARED / "traces" / "spot" / "aws3_v100_1node_9z_first_half.json.gz"
FIRST_ZONE = "us-east-1f"
"""Where the announcement's graph begins; then come the other zones of its region, then other regions."""


def obtainable(market: Market, pools: Sequence[MarketPool]) -> float:
    """Share of the time in which at least one of these pools has room for one machine."""
    changes = {0.0, market.length_s} | {at for pool in pools if pool.capacity for at in pool.capacity.offsets}
    instants = sorted(at for at in changes if at <= market.length_s)
    there = 0.0
    for at, until in itertools.pairwise(instants):
        there += (until - at) * any(pool.capacity is None or pool.capacity.at(at) >= 1 for pool in pools)
    return there / market.length_s


def cheapest_cost(market: Market, pools: Sequence[MarketPool], on_demand_per_hour: float) -> float:
    """Mean price of the cheapest machine there is, spot or on-demand, as a share of the on-demand price."""
    offsets = {at for pool in pools for line in (pool.capacity, pool.price) if line for at in line.offsets}
    instants = sorted({at for at in offsets if at < market.length_s} | {0.0, market.length_s})
    paid = 0.0
    for at, until in itertools.pairwise(instants):
        prices = [pool.price.at(at) for pool in pools if pool.capacity is None or pool.capacity.at(at) >= 1]
        paid += (until - at) * min([*prices, on_demand_per_hour])
    return paid / market.length_s / on_demand_per_hour


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trace", type=Path, default=TRACE, help="a recorded market")
    parser.add_argument("--price-ratio", type=float, default=0.417, help="spot price / on-demand price that is assumed")
    options = parser.parse_args()
    if not options.trace.is_file():
        print(f"SKIPPED: there is no {options.trace}; give one with --trace")
        return
    market = load_trace(options.trace)
    first = [pool for pool in market.spot if pool.offering.location.zone == FIRST_ZONE] or [market.spot[0]]
    home = first[0].offering.location.region
    rest = sorted(
        (pool for pool in market.spot if pool not in first),
        key=lambda pool: (pool.offering.location.region != home, pool.name),
    )
    print(f"{market.name}: {market.length_s / 86400:.1f} days, {len(market.spot)} zones")
    saved = f"saving at k={options.price_ratio:g}"
    print(f"{'zones':>5}  {'last one added':<16}{'spot obtainable':>16}{saved:>18}")
    pools = [*first, *rest]
    for count in range(1, len(pools) + 1):
        share = obtainable(market, pools[:count])
        saving = 1 / (share * options.price_ratio + 1 - share)
        print(f"{count:>5}  {pools[count - 1].offering.location.zone:<16}{share:>16.1%}{saving:>17.2f}x")
    if market.on_demand is not None:
        real = cheapest_cost(market, pools, market.on_demand.price.values[0])
        print(f"with the recorded prices, the cheapest zone that has one: {1 / real:.2f}x")


if __name__ == "__main__":
    main()
