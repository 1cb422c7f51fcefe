"""The toy world with versions that differ in their manners, requests by version, and a store that knows only JSON."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from random import Random

from tests.decide.market import World

from skyserve.decide.rollout import on_trial
from skyserve.model.codec import from_json, to_json
from skyserve.model.decision import Memory, Observation, Plan
from skyserve.model.evidence import BOUNDS_S, InstanceState, LoadReport, ProbeResult, VersionAnswers
from skyserve.model.replica import ReplicaStatus

FINE, CRASHES, NEVER_READY, FAILS_A_FIFTH = "fine", "crashes", "never ready", "fails a fifth"
WRONG_PATH = "/wrong"
_BINS = len(BOUNDS_S) + 1


@dataclass
class RolloutWorld(World):
    """`manners` are those of each version, `rate` is requests a second."""

    manners: dict[int, str] = field(default_factory=dict)
    rate: int = 0
    boot: int = 0
    answers: Counter[int] = field(default_factory=Counter)
    failed: Counter[int] = field(default_factory=Counter)
    all_failed: int = 0
    all_answers: int = 0
    plan: Plan | None = None
    rng: Random = field(default_factory=lambda: Random(5))

    def manner(self, version: int) -> str:
        return self.manners.get(version, FINE)

    def observe(self) -> Observation:
        seen = super().observe()
        told = tuple(
            VersionAnswers(v, n, self.failed[v], (n - self.failed[v], *(0,) * (_BINS - 1)))
            for v, n in sorted(self.answers.items())
        )
        load = LoadReport(self.now, f"b{self.boot}", self.revision, arrivals_per_s=float(self.rate), versions=told)
        tried = on_trial(self.specs, self.replicas, self.aim)
        ok = self.healthy and self.specs[self.aim].readiness_probe.path != WRONG_PATH
        trials = {r.id: ProbeResult(r.id, self.now, ok, "GET /wrong answered 404") for r in tried}
        return replace(seen, load=load, trials=trials)

    def _probes(self) -> Mapping[int, ProbeResult]:
        told = super()._probes()
        version = {r.id: r.launched_version for r in self.replicas}
        asked = {r.id: self.specs[r.version].readiness_probe.path for r in self.replicas}
        sick = {id_ for id_ in told if self.manner(version[id_]) == NEVER_READY or asked[id_] == WRONG_PATH}
        return {id_: replace(one, ok=one.ok and id_ not in sick) for id_, one in told.items()}

    def _launch(self, token: str) -> None:
        super()._launch(token)
        row = next((r for r in self.replicas if r.token == token), None)
        if row is not None and self.manner(row.launched_version) == CRASHES and token in self.machines:
            self.machines[token].state = InstanceState.EXITED

    def _commit(self, plan: Plan) -> None:
        super()._commit(plan)
        self.memory = from_json(Memory, json.loads(json.dumps(to_json(self.memory))))

    def step(self, seconds: float = 1.0) -> Plan | None:
        self._serve(round(self.rate * seconds))
        plan = super().step(seconds)
        self.plan = plan or self.plan
        return plan

    def _serve(self, requests: int) -> None:
        rows = [e for e in self.plan.endpoints if not e.draining] if self.plan else []
        if not rows or not requests:
            return
        told = self.plan.shares if self.plan else {}
        there = Counter(e.version for e in rows)
        shares = {version: told.get(version, 0.0) for version in there}
        weights = shares if sum(shares.values()) > 0 else there
        taken = Counter(self.rng.choices(list(weights), list(weights.values()), k=requests))
        launched = {r.version: r.launched_version for r in self.replicas}
        for version, answers in taken.items():
            before = self.answers[version]
            self.answers[version] += answers
            self.all_answers += answers
            if self.manner(launched.get(version, version)) == FAILS_A_FIFTH:
                bad = self.answers[version] // 5 - before // 5
                self.failed[version] += bad
                self.all_failed += bad

    def reboot_door(self) -> None:
        self.boot += 1
        self.answers.clear()
        self.failed.clear()

    @property
    def serving(self) -> int:
        return len([e for e in self.plan.endpoints if not e.draining]) if self.plan else 0

    @property
    def aim(self) -> int:
        return self.memory.rollout.aim(self.latest)

    @property
    def ready_versions(self) -> set[int]:
        return {r.version for r in self.replicas if r.status is ReplicaStatus.READY}
