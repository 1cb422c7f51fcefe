"""The plan while it is being made. A draft lives inside one call of `decide`: the only thing there that changes."""

from __future__ import annotations

from dataclasses import dataclass, field

from skyserve.model.decision import Action, Memory, Note, Observation, Reason
from skyserve.model.health import Cooldown
from skyserve.model.replica import Replica


@dataclass(slots=True)
class Draft:
    """`o` is what was observed; the rest becomes the plan. `health` is what is known of capacity
    pools, with what this step learnt. `wake` collects instants at which to look again, `asked_now` the replicas whose
    launch this plan asks for."""

    o: Observation
    replicas: list[Replica]
    memory: Memory
    health: tuple[Cooldown, ...]
    next_replica_id: int
    target: int = 0
    actions: list[Action] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)
    waiting: list[Reason] = field(default_factory=list)
    learnt: tuple[Cooldown, ...] = ()
    wake: list[float] = field(default_factory=list)
    asked_now: set[int] = field(default_factory=set)

    def put(self, replica: Replica) -> None:
        """Replace the row of the same id."""
        self.replicas = [replica if r.id == replica.id else r for r in self.replicas]

    def drop(self, replica: Replica) -> None:
        """Take a row out."""
        self.replicas = [r for r in self.replicas if r.id != replica.id]
