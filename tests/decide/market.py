"""A toy world around `decide`: one provider, virtual time, and every fault that the loop must stand. Test code."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from tests.decide.builders import HERE, NOW

from skyserve.decide.reconcile import decide
from skyserve.model.decision import Launch, Memory, Observation, Plan, Terminate
from skyserve.model.evidence import (
    Instance,
    InstanceState,
    Listing,
    LoadReport,
    Outcome,
    OutcomeKind,
    ProbeResult,
    Silent,
)
from skyserve.model.replica import Replica, ReplicaStatus
from skyserve.model.service import ServiceSpec, UpdateMode


@dataclass
class Machine:
    token: str
    state: InstanceState = InstanceState.RUNNING
    service: str = "chat-u1"

    @property
    def id(self) -> str:
        return f"i-{self.token}"

    @property
    def address(self) -> str:
        return f"127.0.0.1:{20000 + sum(map(ord, self.token)) % 9000}"


@dataclass
class World:
    """What a controller would have around it. `crash_at` names the point of the next step where it dies."""

    specs: dict[int, ServiceSpec]
    mode: UpdateMode = UpdateMode.ROLLING
    now: float = NOW
    wanted: bool = True
    revision: int = 0
    replicas: tuple[Replica, ...] = ()
    memory: Memory = Memory()
    next_replica_id: int = 1
    machines: dict[str, Machine] = field(default_factory=dict)
    outcomes: list[Outcome] = field(default_factory=list)
    silent: bool = False
    refusing: bool = False
    healthy: bool = True
    exits_at_once: bool = False
    crash_at: str | None = None
    launches: list[str] = field(default_factory=list)
    log: list[tuple[Observation, Plan]] = field(default_factory=list)
    committed_tokens: set[str] = field(default_factory=set)
    arrivals_per_s: float = 0.0
    finished: bool = False

    @property
    def latest(self) -> int:
        return max(self.specs)

    def observe(self) -> Observation:
        listed = tuple(self._shown(m) for m in self.machines.values())
        answer = Silent(self.now, "silent") if self.silent else Listing(self.now, listed)
        return Observation(
            service="chat",
            uid="u1",
            wanted=self.wanted,
            purge=False,
            latest_version=self.latest,
            update_mode=self.mode,
            revision=self.revision,
            now=self.now,
            specs=dict(self.specs),
            replicas=self.replicas,
            next_replica_id=self.next_replica_id,
            providers={"local": answer},
            probes=self._probes(),
            outcomes=tuple(self.outcomes),
            load=LoadReport(self.now, "b", self.revision, arrivals_per_s=self.arrivals_per_s),
            offerings=(HERE,),
            memory=self.memory,
        )

    def _shown(self, machine: Machine) -> Instance:
        exited = machine.state is InstanceState.EXITED
        return Instance(
            id=machine.id,
            provider="local",
            service=machine.service,
            token=machine.token,
            state=machine.state,
            address=machine.address,
            setup_started_at=self.now,
            exit_code=1 if exited else None,
        )

    def _probes(self) -> Mapping[int, ProbeResult]:
        probed = {ReplicaStatus.STARTING, ReplicaStatus.READY, ReplicaStatus.NOT_READY}
        return {r.id: ProbeResult(r.id, self.now, self.healthy, "500") for r in self.replicas if r.status in probed}

    def step(self, seconds: float = 1.0) -> Plan | None:
        """One turn of the loop; None when the controller died in it (what it had not committed is lost)."""
        self.now += seconds
        observation = self.observe()
        plan = decide(observation)
        self.log.append((observation, plan))
        if self._dies("before_commit"):
            return None
        self._commit(plan)
        if self._dies("after_commit"):
            return None
        for position, action in enumerate(plan.actions):
            if position == 1 and self._dies("in_act"):
                return None
            self._act(action)
        self.finished = plan.finished
        return plan

    def _dies(self, point: str) -> bool:
        if self.crash_at != point:
            return False
        self.crash_at = None
        self.outcomes = []
        return True

    def _commit(self, plan: Plan) -> None:
        self.replicas, self.memory, self.next_replica_id = plan.replicas, plan.memory, plan.next_replica_id
        self.revision += 1
        self.outcomes = []
        self.committed_tokens |= {r.token for r in plan.replicas}

    def _act(self, action: object) -> None:
        if isinstance(action, Launch):
            self._launch(action.replica.token)
        elif isinstance(action, Terminate):
            self.machines = {t: m for t, m in self.machines.items() if m.id != action.instance_id}

    def _launch(self, token: str) -> None:
        if self.silent:
            self.outcomes.append(Outcome(token, OutcomeKind.UNAVAILABLE, self.now))
        elif self.refusing and token not in self.machines:
            self.outcomes.append(Outcome(token, OutcomeKind.CAPACITY, self.now, detail="full"))
        else:
            if token not in self.machines:
                self.launches.append(token)
                self.machines[token] = Machine(token)
            if self.exits_at_once:
                self.machines[token].state = InstanceState.EXITED
            outcome = Outcome(token, OutcomeKind.ACCEPTED, self.now, instance_id=self.machines[token].id)
            self.outcomes.append(outcome)

    def settle(self, steps: int = 60) -> None:
        """Heal everything and let the loop work."""
        self.silent = self.refusing = self.exits_at_once = False
        self.healthy = True
        self.crash_at = None
        for _ in range(steps):
            self.step(5.0)

    def with_status(self, status: ReplicaStatus) -> list[Replica]:
        return [r for r in self.replicas if r.status is status]

    def update(self, spec: ServiceSpec) -> None:
        self.specs[self.latest + 1] = replace(spec)
        self.revision += 1
