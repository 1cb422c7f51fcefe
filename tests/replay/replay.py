"""Law 4, on what really happened: the same observation gives the same plan."""

from __future__ import annotations

from collections.abc import Iterable

from skyserve.decide.reconcile import decide
from skyserve.model.codec import loads
from skyserve.model.decision import Observation, Plan


def differences(decisions: Iterable[tuple[str, str]]) -> list[int]:
    """Positions of the decisions, as stored (observation, plan), that are decided otherwise today."""
    return [
        position
        for position, (observation, plan) in enumerate(decisions)
        if decide(loads(Observation, observation)) != loads(Plan, plan)
    ]
