"""The plan while it is being made. A draft lives inside one call of `decide`: the only thing there that changes."""

from __future__ import annotations

from dataclasses import dataclass, field

from skyserve.decide.rollout import Stage
from skyserve.model.decision import Action, Memory, Note, Observation, Reason
from skyserve.model.health import Cooldown
from skyserve.model.replica import Replica


@dataclass(slots=True)
class Draft:
    """`o` is what was observed; the rest becomes the plan. `health` is what is known of capacity
    pools, with what this step learnt. `wake` collects instants at which to look again, `asked_now` the replicas whose
    launch this plan asks for. `target` is for the latest version, `floor` what older ones carry until it is proven, and
    `stage` what its rollout allows."""

    o: Observation
    replicas: list[Replica]
    memory: Memory
    health: tuple[Cooldown, ...]
    next_replica_id: int
    target: int = 0
    floor: int = 0
    stage: Stage = Stage()
    actions: list[Action] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)
    waiting: list[Reason] = field(default_factory=list)
    learnt: tuple[Cooldown, ...] = ()
    wake: list[float] = field(default_factory=list)
    asked_now: set[int] = field(default_factory=set)
    _places: dict[int, int] = field(default_factory=dict)

    def put(self, replica: Replica) -> None:
        """Replace the row of the same id."""
        place = self._place(replica.id)
        if place is not None:
            self.replicas[place] = replica

    def drop(self, replica: Replica) -> None:
        """Take a row out. Whoever is going through the rows goes on through those that there were."""
        place = self._place(replica.id)
        if place is not None:
            self.replicas = self.replicas[:place] + self.replicas[place + 1 :]

    def _place(self, replica_id: int) -> int | None:
        """Where a row stands. Rows come and go in many ways, so what is remembered of them is looked at again."""
        for _ in range(2):
            place = self._places.get(replica_id, -1)
            if 0 <= place < len(self.replicas) and self.replicas[place].id == replica_id:
                return place
            self._places = {row.id: place for place, row in enumerate(self.replicas)}
        return None
