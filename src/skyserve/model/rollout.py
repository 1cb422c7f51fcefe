"""How one version takes over from another: what the user asked for, and what is remembered while it goes on."""

from __future__ import annotations

import math
from dataclasses import dataclass

from skyserve.model.evidence import VersionAnswers

VERSIONS_KEPT = 10
"""The newest versions that can be gone back to; older ones only while something of them is in use."""


@dataclass(frozen=True, slots=True)
class Rollout:
    """How an update goes on, and what ends it.

    `max_surge` replicas may be there above the target, `max_unavailable` may be missing below it: counts, or parts of
    the target such as `25%`. `canary_steps` are the parts of the requests, of 1, that a canary gets one after the
    other. `step_seconds` is the least time of such a step; in the other modes it is the longest time for which
    old replicas wait for enough answers of the new version. `max_error_rate_increase` and `max_slow_rate_increase` are
    tolerated, `false_rollback_rate` is the probability of taking a version for worse that is not. `failure_budget` is
    how many replicas of a new version may fail in a row.
    """

    max_surge: int | str = "25%"
    max_unavailable: int | str = 0
    canary_steps: tuple[float, ...] = (0.05, 0.25, 0.5)
    step_seconds: float = 30.0
    max_error_rate_increase: float = 0.01
    max_slow_rate_increase: float = 0.1
    false_rollback_rate: float = 0.01
    auto_rollback: bool = True
    failure_budget: int = 3

    def surge(self, target: int) -> int:
        """Replicas above a target; one where neither is any allowed to be missing, or nothing could move."""
        part = _count(self.max_surge, target, up=True)
        return part if part or self.unavailable(target) else 1

    def unavailable(self, target: int) -> int:
        """Replicas that may be missing below a target."""
        return min(target, _count(self.max_unavailable, target, up=False))


def _count(amount: int | str, target: int, *, up: bool) -> int:
    if isinstance(amount, int):
        return amount
    part = target * float(amount.removesuffix("%")) / 100
    return math.ceil(part - 1e-9) if up else math.floor(part + 1e-9)


@dataclass(frozen=True, slots=True)
class Tally:
    """Answers of one version while it was being compared: `errors` of the `answers`, `slow` of the `timed`."""

    answers: int = 0
    errors: int = 0
    timed: int = 0
    slow: int = 0


@dataclass(frozen=True, slots=True)
class Gate:
    """What the comparison of two versions has seen. `seen` are the door's counters as they were last read, in its life
    `boot`. `slow_from` is the first bin of durations that counts as slow, once that is known. `pending` requests are
    under way on the new version.
    """

    boot: str = ""
    seen: tuple[VersionAnswers, ...] = ()
    old: Tally = Tally()
    new: Tally = Tally()
    slow_from: int | None = None
    pending: int = 0


@dataclass(frozen=True, slots=True)
class Rejected:
    """A version that was rolled back, when and why; `detail` are the last log lines, where its replicas failed."""

    version: int
    at: float
    why: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class RolloutMemory:
    """Where the rollout of `version` stands; over when it is `good`, the version that is gone back to.

    `since_at` is when it began, `step` the place in `canary_steps` since `step_at`, when a ready replica of it began to
    get requests; `step_answers` had come until then. `proven` is set when it has passed its gate: from then on it takes
    over the old version's replicas. `stopped` says why it goes no further, where it is not rolled back. `served` are
    the versions that were good, in their order.
    """

    version: int = 0
    good: int | None = None
    since_at: float = 0.0
    step: int = 0
    step_at: float | None = None
    step_answers: int = 0
    proven: bool = False
    stopped: str = ""
    gate: Gate = Gate()
    rejected: tuple[Rejected, ...] = ()
    served: tuple[int, ...] = ()

    def rejection(self, version: int) -> Rejected | None:
        """Why a version was rolled back; None when it was not."""
        return next((one for one in self.rejected if one.version == version), None)

    def aim(self, latest: int) -> int:
        """The version that the service aims for when `latest` is its latest: the good one once that was rejected."""
        return latest if self.good is None or self.rejection(latest) is None else self.good
