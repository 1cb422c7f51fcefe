"""What the placement of spot replicas rests on, and what it answers: the two values between which a placer is pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum


class EventKind(Enum):
    """What happened to a spot replica that a placer may learn from."""

    READY = "READY"
    LOST = "LOST"
    REFUSED = "REFUSED"


@dataclass(frozen=True, slots=True)
class Event:
    """One of these things, seen since the last decision.

    `age_s` counts from the launch: the time to ready, or the life of one that was lost. `location` is
    `cloud/region/zone`, `at` is in Unix seconds.
    """

    kind: EventKind
    pool: str
    location: str
    at: float
    age_s: float


@dataclass(frozen=True, slots=True)
class Pool:
    """A spot capacity pool that could be asked.

    `location` is `cloud/region/zone`: replicas of one location may be lost together. `region` is `cloud/region`. With
    target rates by accelerator, `price_per_hour` is that of a unit of throughput. Until `cooling_until_at` (Unix
    seconds) the knowledge that all services share advises against it, as it refused lately.
    """

    name: str
    location: str
    region: str
    price_per_hour: float
    cooling_until_at: float = 0.0


@dataclass(frozen=True, slots=True)
class Held:
    """A replica that counts: launching, starting or serving, and not about to be taken back."""

    id: int
    pool: str
    location: str
    spot: bool
    ready: bool
    asked_at: float
    price_per_hour: float


@dataclass(frozen=True, slots=True)
class PoolRecord:
    """What is remembered of one pool: instants, whose age is what counts. All are Unix seconds, 0 for never.

    `up_at`: it has had capacity since then, as far as is known. `bad_at`: last loss or refusal. `down_at`: start of the
    spell without a success; 0 when the last that was seen of it was good. `refused_at`: last refusal that no accepted
    launch has followed. `full_at`: last refusal while it held replicas of ours.
    """

    pool: str
    up_at: float
    bad_at: float = 0.0
    down_at: float = 0.0
    refused_at: float = 0.0
    full_at: float = 0.0


@dataclass(frozen=True, slots=True)
class PlacementMemory:
    """What a placer remembers from step to step; persisted with every commit.

    `at` is when it last decided, Unix seconds. `ready_s` is the mean time to ready; `losses` and `expected` are how
    many losses were seen and should have been seen, both fading. The others say what the last decision was made for and
    what it was; it stands until `wake_at` if nothing happens. `planned` of its `on_demand` replicas are part of the
    plan, the rest of them fill a gap.

    `avoided` are locations that SpotHedge takes for preempting; `last` is where the round of the round robin stands.
    """

    at: float | None = None
    pools: tuple[PoolRecord, ...] = ()
    ready_s: float = 0.0
    losses: float = 0.0
    expected: float = 0.0
    wake_at: float = 0.0
    wanted: int = 0
    availability: float = 0.0
    alive: int = 0
    on_demand: int = 0
    planned: int = 0
    text: str = ""
    avoided: tuple[str, ...] = ()
    last: str = ""


@dataclass(frozen=True, slots=True)
class View:
    """What a placer sees of a service. It never sees capacity, only what became of its own launches.

    `wanted` replicas shall be ready for `availability` of the time; `spare` are launched on top where the policy says
    so (`num_overprovision`). `pools` are cheapest first. `on_demand_per_hour` is the price of what stands in for spot,
    None where nothing may. `cold_start_s` is what a start takes as long as nothing is known.
    """

    now: float
    wanted: int
    spare: int
    availability: float
    pools: tuple[Pool, ...]
    on_demand_per_hour: float | None
    held: tuple[Held, ...]
    events: tuple[Event, ...] = ()
    memory: PlacementMemory = PlacementMemory()
    cold_start_s: float = 180.0

    @property
    def spot(self) -> tuple[Held, ...]:
        """The spot replicas among those held."""
        return tuple(one for one in self.held if one.spot)


@dataclass(frozen=True, slots=True)
class Mix:
    """What shall be done: one spot launch in each pool named, so many on-demand replicas alive (launching ones count),
    and spot replicas to let go. `wake_at` is when to ask again if nothing happens; `text` and `facts` say why.
    """

    launch: tuple[str, ...] = ()
    on_demand: int = 0
    let_go: tuple[int, ...] = ()
    memory: PlacementMemory = PlacementMemory()
    wake_at: float | None = None
    text: str = ""
    facts: Mapping[str, float | int | str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Forecast:
    """What a placer expects of a service in the long run, before it has seen anything of its pools.

    `cost_per_hour` is the mean bill of all replicas. With probability `confidence`, all wanted replicas are ready for
    at least the share `availability` of a week, under the `assumptions`.
    """

    cost_per_hour: float
    availability: float
    confidence: float
    assumptions: tuple[str, ...]
