"""Replicas -> units of throughput: what each kind of machine is worth, and how many replicas a demand takes.

A unit is what the policy's targets are about. Where the policy names rates by accelerator, it is the fastest of these.
Else the replicas there are make one unit each on average, and how they differ is learnt from what they finish.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from skyserve.decide import optimize
from skyserve.model.decision import Observation, ServiceRate
from skyserve.model.offering import Offering
from skyserve.model.replica import Replica, ReplicaStatus
from skyserve.model.service import ServiceSpec

HALF_LIFE_S = 600.0
"""What was seen this long ago counts half."""
ENOUGH = 30.0
"""Finished requests from which on a rate is believed."""
LONGEST_GAP_S = 10.0
"""Of a longer time without a report, only this much is taken to have been like the report."""
STEP = 0.1
"""Learnt weights are told in steps of this ratio: routing tables shall not change with every request."""
_EXACT = 1e-9


def learn(rates: Sequence[ServiceRate], o: Observation, since_s: float, places: float) -> tuple[ServiceRate, ...]:
    """The rates after one more load report, which stands for `since_s` seconds. Of the requests that a replica has,
    at most `places` are worked on at once."""
    if o.load is None or since_s <= 0:
        return tuple(rates)
    fade = 0.5 ** (since_s / HALF_LIFE_S)
    known = {rate.accelerator: replace(rate, done=rate.done * fade, taken_s=rate.taken_s * fade) for rate in rates}
    seconds = min(since_s, LONGEST_GAP_S)
    for replica in o.replicas:
        done, busy = o.load.done_per_s.get(replica.id, 0.0), o.load.busy.get(replica.id, 0.0)
        if replica.offering is None or not (done or busy):
            continue
        kind = kind_of(replica.offering)
        before = known.get(kind) or ServiceRate(kind, 0.0, 0.0)
        taken = min(busy, places)
        known[kind] = ServiceRate(kind, before.done + done * seconds, before.taken_s + taken * seconds)
    return tuple(known[kind] for kind in sorted(known) if known[kind].done > 0.01)


def kind_of(offering: Offering) -> str:
    """What machines have in common that are taken to be equally fast."""
    return str(offering.accelerator) if offering.accelerator is not None else offering.instance_type


def learnt_weights(rates: Sequence[ServiceRate]) -> Mapping[str, float]:
    """What one machine of each kind is worth beside the fastest; empty unless two kinds are known well enough."""
    speeds = {r.accelerator: r.done / r.taken_s for r in rates if r.done >= ENOUGH and r.taken_s > 0}
    if len(speeds) < 2:
        return {}
    fastest = max(speeds.values())
    return {kind: _in_steps(speed / fastest) for kind, speed in speeds.items()}


def _in_steps(weight: float) -> float:
    return round(math.exp(round(math.log(weight) / STEP) * STEP), 3)


def weights(spec: ServiceSpec, rates: Sequence[ServiceRate]) -> Callable[[Offering | None], float]:
    """What replicas are worth beside others of their service, by their offering: as the policy says, or else as was
    learnt. There may be thousands of them, so what was learnt is worked out once."""
    if isinstance(spec.replica_policy.target_qps_per_replica, Mapping):
        return lambda offering: optimize.weight(offering, spec)
    learnt = learnt_weights(rates)
    return lambda offering: learnt.get(kind_of(offering), 1.0) if learnt and offering is not None else 1.0


@dataclass(frozen=True, slots=True)
class Fleet:
    """The replicas of the latest version in units, in the order in which they would be kept; `new` is what the next
    one will be worth, and `ready` what the ready ones of all versions are. `alike`: each is worth what the next will
    be, as a rule."""

    kept: tuple[float, ...]
    new: float
    ready: float
    coming: int
    alike: bool

    def units(self, count: int) -> float:
        """What the first `count` replicas are worth, those still to be launched included."""
        if count <= len(self.kept):
            return sum(self.kept[:count])
        return sum(self.kept) + (count - len(self.kept)) * self.new

    def cover(self, units: float) -> int:
        """The least number of replicas that are worth so much."""
        left = units - _EXACT
        if self.alike:
            return max(0, math.ceil(left / self.new))
        for count, one in enumerate(self.kept):
            if left <= 0:
                return count
            left -= one
        return len(self.kept) + max(0, math.ceil(left / self.new))


def fleet(o: Observation, rates: Sequence[ServiceRate]) -> Fleet:
    """What there is, and what would come next."""
    spec = o.specs[o.latest_version]
    named = spec.replica_policy.target_qps_per_replica
    alive = [r for r in o.replicas if r.counts and r.version == o.latest_version]
    ready = [r for r in o.replicas if r.status is ReplicaStatus.READY]
    weight = weights(spec, rates)
    of: dict[int, float] = {r.id: weight(r.offering) for r in (*alive, *ready)}
    unit = max(named.values()) if isinstance(named, Mapping) else _mean([of[r.id] for r in ready or alive])
    new = weight(o.offerings[0] if o.offerings else None)
    if not o.offerings and isinstance(named, Mapping):
        new = unit
    kept = tuple(of[r.id] / unit for r in reversed(removal_order(alive, spec, rates)))
    return Fleet(
        kept=kept,
        new=new / unit,
        ready=sum(of[r.id] for r in ready) / unit,
        coming=sum(r.status is not ReplicaStatus.READY for r in alive),
        alike=all(one == new / unit for one in kept),
    )


def _mean(weights: Sequence[float]) -> float:
    return sum(weights) / len(weights) if weights else 1.0


REMOVAL_ORDER = (
    ReplicaStatus.PENDING,
    ReplicaStatus.PROVISIONING,
    ReplicaStatus.STARTING,
    ReplicaStatus.STOPPED,
    ReplicaStatus.NOT_READY,
    ReplicaStatus.READY,
)


def removal_order(replicas: Sequence[Replica], spec: ServiceSpec, rates: Sequence[ServiceRate] = ()) -> list[Replica]:
    """Those that serve least first; among equals the one whose throughput is dearest, then the newest."""

    weight = weights(spec, rates)

    def preference(replica: Replica) -> tuple[int, float, int]:
        price = 0.0
        if replica.offering is not None:
            price = replica.offering.price_per_hour / weight(replica.offering)
        return REMOVAL_ORDER.index(replica.status), -price, -replica.id

    return sorted(replicas, key=preference)
