"""The least that an omniscient placement pays for enough ready replicas, cold starts included: a linear program.

Needs scipy (`pip install 'skyserve[sim]'`). In each row of time, S replicas are launched or kept in each pool and O on
demand, at their prices; R <= S are ready. What is ready in a row was there for a cold start, that is in the rows before
it too. Ready replicas are enough, except in a share of the rows. Fractions of replicas are allowed, so it is a bound
from below.
"""

from __future__ import annotations

import math

import numpy
from scipy import sparse
from scipy.optimize import linprog

from skyserve.sim.market import Market


def least_cost(market: Market, wanted: int, cold_start_s: float, row_s: float, availability: float = 1.0) -> float:
    """US dollars an hour for each wanted replica at the on-demand price, on average: 1.0 is on-demand only."""
    on_demand = market.on_demand
    if on_demand is None:
        raise ValueError("the market has no on-demand pool")
    rows, lag = int(market.length_s // row_s), math.ceil(cold_start_s / row_s)
    pools = [*market.spot, on_demand]
    instants = [market.begin_at + row * row_s for row in range(rows)]
    prices = numpy.array([[market.price(pool, at) for at in instants] for pool in pools])
    room = numpy.array([[min(2.0 * wanted, market.capacity(pool, at)) for at in instants] for pool in pools])
    count = len(pools) * rows
    short = [availability < 1.0] * rows

    # Variables: launched (pool by pool, row by row), then ready in the same order, then by how much each row is short.
    launched = sparse.identity(count, format="csr")
    limits = []
    for back in range(lag + 1):
        shifted = sparse.kron(sparse.identity(len(pools)), sparse.eye(rows, rows, k=-back), format="csr")
        limits.append(sparse.hstack([-shifted, launched, sparse.csr_matrix((count, rows))]))
    total = sparse.kron(numpy.ones((1, len(pools))), sparse.identity(rows), format="csr")
    limits.append(sparse.hstack([sparse.csr_matrix((rows, count)), -total, -wanted * sparse.identity(rows)]))
    limits.append(sparse.csr_matrix(numpy.concatenate([numpy.zeros(2 * count), numpy.ones(rows)])))
    most = numpy.concatenate([numpy.zeros((lag + 1) * count), numpy.full(rows, -wanted), [(1 - availability) * rows]])
    most[-1 - rows : -1][:lag] = 0.0  # nothing can be ready before the first cold start is over

    bounds = [(0.0, room_there) for room_there in room.ravel()] + [(0.0, None)] * count
    bounds += [(0.0, 1.0 if may_be else 0.0) for may_be in short]
    cost = numpy.concatenate([prices.ravel(), numpy.zeros(count + rows)])
    solved = linprog(cost, A_ub=sparse.vstack(limits, format="csr"), b_ub=most, bounds=bounds, method="highs")
    if not solved.success:
        raise RuntimeError(f"the linear program was not solved: {solved.message}")
    full = wanted * prices[-1].sum()
    return float(solved.fun / full)
