"""What a simulated run came to, as values: one line per machine, from which all figures and pictures follow.

Must not know how it was simulated, nor how it will be shown.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from skyserve.model.offering import CapacityType, Location


@dataclass(frozen=True, slots=True)
class Machine:
    """One simulated machine, from its launch to its end. Instants are virtual Unix seconds, money is US dollars.

    `ready_at` is None for one that was never ready; `preempted` says that its provider took it back.
    """

    replica_id: int
    location: Location
    instance_type: str
    capacity_type: CapacityType
    launched_at: float
    ready_at: float | None
    ended_at: float
    preempted: bool
    cost: float


@dataclass(frozen=True, slots=True)
class Served:
    """What became of the simulated requests. Durations are seconds from arrival to the last byte, by percentile.

    `waited_within` says how many of the completed ones waited no longer than so many seconds.
    """

    requests: int = 0
    completed: int = 0
    rejected: int = 0
    retried: int = 0
    latency_s: dict[float, float] = field(default_factory=dict)
    waited_s: dict[float, float] = field(default_factory=dict)
    waited_within: dict[float, int] = field(default_factory=dict)

    def attainment(self, limit_s: float) -> float:
        """The share of the requests with an end that waited no longer; rejected ones have failed it."""
        ended = self.completed + self.rejected
        return self.waited_within.get(limit_s, 0) / ended if ended else 1.0


@dataclass(frozen=True, slots=True)
class Run:
    """One policy on one market: the measured part of it, from `begin_at` to `end_at`.

    `wanted` are the instants at which the number of wanted ready replicas changed, with the new number. `ready` is the
    same for ready replicas. `refusals` are launches that a pool refused for want of capacity. `on_demand_cost` is what
    the wanted replicas would have cost on demand all the time, `bound_cost` what an omniscient placement pays at least.
    """

    policy: str
    begin_at: float
    end_at: float
    wanted: tuple[tuple[float, int], ...]
    ready: tuple[tuple[float, int], ...]
    machines: tuple[Machine, ...]
    refusals: tuple[tuple[float, str], ...]
    cost: float
    on_demand_cost: float
    bound_cost: float | None
    availability: float
    steps: int = 0
    served: Served | None = None
