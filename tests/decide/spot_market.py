"""A toy spot market around `decide`: pools with capacity, machines that are taken back, virtual time. Test code."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from tests.decide.builders import NOW
from tests.decide.market import Machine, World

from skyserve.decide import health
from skyserve.model.decision import Launch, Observation, Plan
from skyserve.model.evidence import InstanceState, Outcome, OutcomeKind
from skyserve.model.health import Cooldown
from skyserve.model.offering import CapacityType, Location, Offering
from skyserve.model.replica import Replica, ReplicaStatus
from skyserve.model.resources import ResourceChoice, Resources
from skyserve.model.service import ReplicaPolicy, ServiceSpec

COLD_START_S = 180.0


def offering(zone: str, price: float, capacity_type: CapacityType = CapacityType.SPOT) -> Offering:
    place = Location("local", zone[:-1], zone)
    return Offering("local", "gpu.large", place, capacity_type, None, 8, 32, price)


ON_DEMAND = offering("east1", 3.0, CapacityType.ON_DEMAND)


def spot_spec(replicas: int = 2, **policy: object) -> ServiceSpec:
    wanted = ResourceChoice((Resources(use_spot=True),))
    policies = replace(ReplicaPolicy(replicas, replicas), **policy)  # type: ignore[arg-type]
    return ServiceSpec(name="chat", run="serve", replica_policy=policies, resources=wanted)


@dataclass
class SpotWorld(World):
    """`capacity` by zone; a replica becomes ready a cold start after its launch."""

    zones: dict[str, float] = field(default_factory=dict)
    capacity: dict[str, int] = field(default_factory=dict)
    known: tuple[Cooldown, ...] = ()
    asked: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    born_at: dict[str, float] = field(default_factory=dict)
    on_demand: bool = True
    refusals_due: list[Outcome] = field(default_factory=list)

    def observe(self) -> Observation:
        self.outcomes += self.refusals_due
        self.refusals_due = []
        offers = tuple(offering(zone, price) for zone, price in self.zones.items())
        if self.on_demand:
            offers += (ON_DEMAND,)
        return replace(super().observe(), offerings=offers, health=self.known)

    def _shown(self, machine: Machine):  # type: ignore[no-untyped-def]
        shown = super()._shown(machine)
        cold = self.now - self.born_at[machine.token] < COLD_START_S and machine.state is InstanceState.RUNNING
        return replace(shown, state=InstanceState.SETUP, address=None) if cold else shown

    def _commit(self, plan: Plan) -> None:
        super()._commit(plan)
        self.known = health.merge(self.known, plan.learnt)

    def _act(self, action: object) -> None:
        if not isinstance(action, Launch):
            super()._act(action)
            return
        replica = action.replica
        assert replica.offering is not None
        zone = replica.offering.location.zone or ""
        spot = replica.offering.capacity_type is CapacityType.SPOT
        self.asked.append(zone if spot else "on-demand")
        if spot and len(self.there(zone)) >= self.capacity.get(zone, 99):
            self.refused.append(zone)
            self.refusals_due.append(Outcome(replica.token, OutcomeKind.CAPACITY, self.now, detail="full"))
            return
        self.born_at.setdefault(replica.token, self.now)
        super()._act(action)

    def there(self, zone: str) -> list[Replica]:
        """Spot replicas that have a machine in a zone."""
        return [r for r in self.spot if r.offering and r.offering.location.zone == zone and self._has_machine(r)]

    def _has_machine(self, replica: Replica) -> bool:
        machine = self.machines.get(replica.token)
        return machine is not None and machine.state is InstanceState.RUNNING

    @property
    def spot(self) -> list[Replica]:
        return [r for r in self.replicas if r.counts and r.offering and r.offering.capacity_type is CapacityType.SPOT]

    @property
    def standing_in(self) -> list[Replica]:
        return [r for r in self.replicas if r.counts and r.offering and r.offering == ON_DEMAND]

    @property
    def ready(self) -> list[Replica]:
        return self.with_status(ReplicaStatus.READY)

    def preempt(self, zone: str) -> None:
        """The zone takes everything back."""
        self.capacity[zone] = 0
        for replica in self.there(zone):
            self.machines[replica.token].state = InstanceState.PREEMPTED

    def live(self, seconds: float, tick_s: float = 20.0) -> None:
        """Let the loop work."""
        until = self.now + seconds
        while self.now < until:
            self.step(tick_s)


def market(spec: ServiceSpec, **zones: float) -> SpotWorld:
    """A world with these zones and their prices."""
    return SpotWorld({1: spec}, now=NOW, zones=zones)
