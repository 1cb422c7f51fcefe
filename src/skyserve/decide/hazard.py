"""What became of launches -> what to expect of capacity pools: losses per second, the chance of a launch, the time to
ready. Knows pools one by one and how they hang together; knows no mix and no price.

The up-times of spot machines are heavy-tailed: the longer a pool has had capacity, the longer it will. Recordings of
six markets (V100 of Wu et al., Can't Be Late, NSDI 2024; H100 of SkyNomad, NSDI 2027; two of CPUs) follow one law well:
a pool that has been up for a seconds loses what we have there at a rate of TAIL / (a + SCALE_S). That is 2.2 times an
hour right after it came back, .6 after an hour, and .05 after seventeen. How far a market departs from it is learnt.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from skyserve.model.placement import Event, EventKind, Held, PlacementMemory, PoolRecord, View

TAIL = 0.9
SCALE_S = 1440.0
FLOOR_PER_S = 0.8 / 86400
"""Even the calmest pools are lost now and then: between once in a fortnight and ten times a day, in the recordings."""
UNSEEN_CALM_S = 3600.0
"""Nobody knows how long a pool has been calm that nobody watches: at most this long counts. Up-times have medians of
0.3 to 1.4 hours."""
SAME_REGION = 0.27
"""When one zone is lost, another of its region is lost with it in so many cases (.26 to .34 in the recordings). Zones
of different regions are lost together no more often than chance has it."""
SAME_LOCATION = 0.5
"""The same for another pool of the same zone. Nothing is published: between that of its region and certainty."""
PRIOR_LOSSES = 10.0
"""The law counts as much as so many losses that were seen."""
HALF_LIFE_S = 3 * 86400.0
"""After this time, what was seen counts half."""
AHEAD_S = 7200.0
"""How far ahead a mix is judged: hazards are means over this time, and a start is written off over it."""
NEW_SHARE = 0.25
"""Weight of a new time to ready in the mean."""
LIKELY = 0.25
"""A mix counts on a pool that was down only if it is at least this likely to be back."""
NO_LIMIT = 10**6


@dataclass(frozen=True, slots=True)
class Learnt:
    """What is known now. `pace` says how much faster than by the law this market loses machines; `losses` and
    `expected` are what it follows from, `ready_s` is the mean time to ready, 0 as long as none was seen."""

    records: Mapping[str, PoolRecord]
    losses: float
    expected: float
    ready_s: float

    @property
    def pace(self) -> float:
        """Losses seen for each that the law led to expect, with a law that counts as some losses itself."""
        return (PRIOR_LOSSES + self.losses) / (PRIOR_LOSSES + self.expected)


def learn(view: View) -> Learnt:
    """The memory, brought up to date with what happened and with what is held."""
    records = _records(view)
    losses, expected = _counted(view)
    ready_s = view.memory.ready_s
    for event in view.events:
        if event.kind is EventKind.READY:
            ready_s += NEW_SHARE * (event.age_s - ready_s) if ready_s else event.age_s
    return Learnt(records, losses, expected, ready_s)


def losses_per_s(record: PoolRecord, now: float) -> float:
    """What to expect by the law, as a mean over the time ahead, of a pool with this record."""
    up_at = _half_way(record, now) if record.down_at else record.up_at
    age_s = max(0.0, now - up_at) + SCALE_S
    return FLOOR_PER_S + TAIL / AHEAD_S * math.log1p(AHEAD_S / age_s)


def chance(record: PoolRecord, now: float) -> float:
    """How likely a launch is accepted. Down-times follow the same law as up-times: what has lasted lasts on."""
    if not record.down_at:
        return 1.0
    waited_s = now - record.bad_at
    return waited_s / (record.bad_at - record.down_at + waited_s + SCALE_S)


def room(record: PoolRecord, now: float, live: int, *, free: bool) -> int:
    """How many replicas may be hoped for there; `free` says that it may be asked. A pool that was full lately is asked
    for one more than it holds."""
    if not free or (record.down_at and chance(record, now) < LIKELY):
        return live
    return live + 1 if is_full(record, now) else NO_LIMIT


def is_full(record: PoolRecord, now: float) -> bool:
    """Whether it refused lately while it held replicas of ours."""
    return bool(record.full_at) and now - record.full_at < AHEAD_S


def is_unproven(record: PoolRecord) -> bool:
    """Whether its last answer was no, so that one replica is asked for before more are."""
    return bool(record.down_at or record.refused_at)


def _records(view: View) -> dict[str, PoolRecord]:
    known = {record.pool: record for record in view.memory.pools}
    calm_at = view.now - UNSEEN_CALM_S
    records = {pool.name: known.get(pool.name) or PoolRecord(pool.name, calm_at) for pool in view.pools}
    live, newest = spot_by_pool(view.held)
    for event in view.events:
        if event.kind is not EventKind.READY and event.pool in records:
            records[event.pool] = _after_bad(records[event.pool], event, live.get(event.pool, 0))
    for name, record in records.items():
        if name not in newest:
            if record.up_at < calm_at:
                records[name] = replace(record, up_at=calm_at)
        elif newest[name] > record.bad_at and is_unproven(record):
            records[name] = _after_good(record, newest[name])
    return records


def spot_by_pool(held: Sequence[Held]) -> tuple[dict[str, int], dict[str, float]]:
    """How many spot replicas each pool holds, and when the newest of them was asked for."""
    live: dict[str, int] = {}
    newest: dict[str, float] = {}
    for one in held:
        if one.spot:
            live[one.pool] = live.get(one.pool, 0) + 1
            newest[one.pool] = max(newest.get(one.pool, 0.0), one.asked_at)
    return live, newest


def _after_bad(record: PoolRecord, event: Event, live: int) -> PoolRecord:
    """A refusal by a pool that holds others of ours means that it is full. All else that is bad ends its up-time."""
    at = event.at
    if event.kind is EventKind.REFUSED:
        if live:
            return replace(record, bad_at=at, refused_at=at, full_at=at)
        return replace(record, up_at=at, bad_at=at, down_at=record.down_at or at, refused_at=at)
    return replace(record, up_at=at, bad_at=at, down_at=0.0 if live else record.down_at or at)


def _after_good(record: PoolRecord, asked_at: float) -> PoolRecord:
    """A launch was accepted, so it came back since the last bad event: half-way, as far as anybody knows."""
    up_at = _half_way(record, asked_at) if record.down_at else record.up_at
    return replace(record, up_at=up_at, down_at=0.0, refused_at=0.0)


def _half_way(record: PoolRecord, at: float) -> float:
    return max((record.bad_at + at) / 2, at - UNSEEN_CALM_S)


def _counted(view: View) -> tuple[float, float]:
    """Losses of pools that were seen, and that the law led to expect where we had replicas; both are forgotten with
    time. A pool that takes several replicas at once is one loss."""
    memory: PlacementMemory = view.memory
    if memory.at is None:
        return 0.0, 0.0
    lost = {event.pool for event in view.events if event.kind is EventKind.LOST}
    watched = lost.union(one.pool for one in view.held if one.spot)
    expected = 0.0
    for record in memory.pools:
        if record.pool in watched and not record.down_at:
            age_s = max(0.0, memory.at - record.up_at) + SCALE_S
            expected += TAIL * math.log1p(max(0.0, view.now - memory.at) / age_s)
    keep = 0.5 ** ((view.now - memory.at) / HALF_LIFE_S)
    return memory.losses * keep + len(lost), memory.expected * keep + expected
