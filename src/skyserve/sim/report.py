"""What simulated runs mean: figures of one run, means with confidence intervals of several, a document for programs.

Pure: values in, values out. Must not know how runs come about, nor how figures are shown.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import TYPE_CHECKING

from skyserve.model.offering import CapacityType
from skyserve.sim.result import Machine, Run

if TYPE_CHECKING:
    from skyserve.model.codec import JsonValue

_DAY_S = 86400.0
_HOUR_S = 3600.0

# Two-sided 95 % quantiles of Student's distribution, for 1 to 30 degrees of freedom; the normal one beyond.
_STUDENT = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
    *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)
_NORMAL = 1.96


@dataclass(frozen=True, slots=True)
class Figures:
    """One run in numbers; None for what it did not measure. Money is US dollars, shares are between 0 and 1.

    `cost_ratio` is against the wanted replicas on demand, `bound_ratio` against an omniscient placement.
    `on_demand_share` is that of the bill. `wanted` and `ready` are means over the time. `latency_*` are from arrival to
    the last token, `waited_*` to the beginning; `rejected_share` and `retried_share` are of all requests.
    """

    cost: float
    cost_per_day: float
    cost_ratio: float | None
    bound_ratio: float | None
    availability: float
    wanted: float
    ready: float
    preemptions: float
    launches: float
    failed_launches_per_day: float
    on_demand_share: float | None
    replica_hours: float
    requests: float | None = None
    rejected_share: float | None = None
    retried_share: float | None = None
    latency_p50_s: float | None = None
    latency_p90_s: float | None = None
    latency_p99_s: float | None = None
    waited_p99_s: float | None = None


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean over runs, and within what the true mean lies with 95 % confidence; of one run both ends are the mean."""

    mean: float
    low: float
    high: float

    @property
    def half(self) -> float:
        """Half of its width."""
        return (self.high - self.low) / 2


@dataclass(frozen=True, slots=True)
class Summary:
    """One policy over all its runs. `hours` are replica-hours of a run, by location and capacity type."""

    policy: str
    runs: int
    days: float
    figures: Mapping[str, Interval | None]
    hours: Mapping[tuple[str, str], float]

    def mean(self, figure: str) -> float | None:
        """The mean of a figure; None where no run has it."""
        interval = self.figures[figure]
        return None if interval is None else interval.mean


def figures(run: Run) -> Figures:
    """The figures of one run."""
    span_s = run.end_at - run.begin_at
    days = span_s / _DAY_S
    served, latency, waited = run.served, run.served and run.served.latency_s, run.served and run.served.waited_s
    requests = served.requests if served else 0
    return Figures(
        cost=run.cost,
        cost_per_day=_ratio(run.cost, days) or 0.0,
        cost_ratio=_ratio(run.cost, run.on_demand_cost),
        bound_ratio=_ratio(run.cost, run.bound_cost),
        availability=run.availability,
        wanted=mean_over_time(run.wanted, run.begin_at, run.end_at),
        ready=mean_over_time(run.ready, run.begin_at, run.end_at),
        preemptions=sum(one.preempted and run.begin_at <= one.ended_at <= run.end_at for one in run.machines),
        launches=sum(run.begin_at <= one.launched_at <= run.end_at for one in run.machines),
        failed_launches_per_day=_ratio(sum(run.begin_at <= at <= run.end_at for at, _ in run.refusals), days) or 0.0,
        on_demand_share=_on_demand_share(run.machines),
        replica_hours=sum(hours(run).values()),
        requests=float(requests) if served else None,
        rejected_share=_ratio(served.rejected, requests) if served else None,
        retried_share=_ratio(served.retried, requests) if served else None,
        latency_p50_s=latency.get(50.0) if latency else None,
        latency_p90_s=latency.get(90.0) if latency else None,
        latency_p99_s=latency.get(99.0) if latency else None,
        waited_p99_s=waited.get(99.0) if waited else None,
    )


def hours(run: Run) -> dict[tuple[str, str], float]:
    """Replica-hours by location and capacity type, most first: the measured part, from launch to end."""
    found: dict[tuple[str, str], float] = {}
    for one in run.machines:
        lived_s = min(one.ended_at, run.end_at) - max(one.launched_at, run.begin_at)
        if lived_s > 0:
            key = (str(one.location), one.capacity_type.value)
            found[key] = found.get(key, 0.0) + lived_s / _HOUR_S
    return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))


def summarise(runs: Sequence[Run]) -> tuple[Summary, ...]:
    """One summary for each policy, in the order in which the policies first come."""
    by_policy: dict[str, list[Run]] = {}
    for run in runs:
        by_policy.setdefault(run.policy, []).append(run)
    return tuple(_summary(policy, mine) for policy, mine in by_policy.items())


def _summary(policy: str, runs: Sequence[Run]) -> Summary:
    each = [figures(run) for run in runs]
    total: dict[tuple[str, str], float] = {}
    for run in runs:
        for key, amount in hours(run).items():
            total[key] = total.get(key, 0.0) + amount / len(runs)
    return Summary(
        policy=policy,
        runs=len(runs),
        days=sum(run.end_at - run.begin_at for run in runs) / len(runs) / _DAY_S,
        figures={field.name: interval([getattr(one, field.name) for one in each]) for field in fields(Figures)},
        hours=dict(sorted(total.items(), key=lambda item: (-item[1], item[0]))),
    )


def interval(values: Sequence[float | None]) -> Interval | None:
    """Mean and 95 % confidence interval of what was measured, by Student's distribution; None for nothing."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    mean = math.fsum(known) / len(known)
    if len(known) == 1:
        return Interval(mean, mean, mean)
    freedom = len(known) - 1
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in known) / freedom)
    quantile = _STUDENT[freedom - 1] if freedom <= len(_STUDENT) else _NORMAL
    half = quantile * deviation / math.sqrt(len(known))
    return Interval(mean, mean - half, mean + half)


def mean_over_time(steps: Sequence[tuple[float, int]], begin_at: float, end_at: float) -> float:
    """The mean of a number that changes at instants; before the first of them it is 0."""
    if end_at <= begin_at:
        return 0.0
    total = 0.0
    for (at, number), (next_at, _) in pairwise((*steps, (end_at, 0))):
        total += number * max(0.0, min(next_at, end_at) - max(at, begin_at))
    return total / (end_at - begin_at)


def document(summaries: Sequence[Summary]) -> list[JsonValue]:
    """The summaries for programs: an object a policy, with every figure as `{mean, low, high}` or null."""
    return [
        {
            "policy": one.policy,
            "runs": one.runs,
            "days": one.days,
            "figures": {
                name: None if found is None else {"mean": found.mean, "low": found.low, "high": found.high}
                for name, found in one.figures.items()
            },
            "replica_hours": [
                {"location": location, "capacity_type": capacity_type, "hours": amount}
                for (location, capacity_type), amount in one.hours.items()
            ],
        }
        for one in summaries
    ]


def _ratio(part: float, whole: float | None) -> float | None:
    return part / whole if whole else None


def _on_demand_share(machines: Sequence[Machine]) -> float | None:
    paid = math.fsum(one.cost for one in machines)
    dear = math.fsum(one.cost for one in machines if one.capacity_type is not CapacityType.SPOT)
    return dear / paid if paid > 0 else None
