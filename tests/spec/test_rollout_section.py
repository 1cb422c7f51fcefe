"""`service.rollout`: counts, parts and percentages, and what cannot be meant."""

from __future__ import annotations

import pytest

from skyserve.errors import SpecError
from skyserve.model.rollout import Rollout
from skyserve.spec.load import load_service


def rollout(lines: str) -> Rollout:
    indented = "".join(f"    {line}\n" for line in lines.splitlines())
    text = f"service:\n  replicas: 2\n  rollout:\n{indented}resources:\n  ports: 80\nrun: serve\n"
    return load_service(text, fingerprint_key=b"k", name_suffix="0a1b").spec.rollout


def test_everything_can_be_said() -> None:
    said = rollout(
        "max_surge: 50%\nmax_unavailable: 1\ncanary_steps: [1, 10%, 50]\nstep_seconds: 5\nmax_error_rate_increase: 2%\n"
        "max_slow_rate_increase: 0.2\nfalse_rollback_rate: 0.05\nauto_rollback: false\nfailure_budget: 7"
    )
    assert said == Rollout("50%", 1, (0.01, 0.1, 0.5), 5.0, 0.02, 0.2, 0.05, auto_rollback=False, failure_budget=7)


@pytest.mark.parametrize(
    ("lines", "problem"),
    [
        ("canary_steps: [25, 5]", "percentages of the requests that grow"),
        ("canary_steps: [50, 120]", "percentages of the requests that grow"),
        ("canary_steps: []", "percentages of the requests that grow"),
        ("max_error_rate_increase: 3", "must lie between 0 and 100 %"),
        ("false_rollback_rate: 200%", "must lie between 0 and 100 %"),
        ("max_surge: 0", "no replica could ever be replaced"),
        ("failure_budget: 0", "failure_budget"),
    ],
)
def test_what_cannot_be_meant_is_refused(lines: str, problem: str) -> None:
    with pytest.raises(SpecError, match=problem):
        rollout(lines)


@pytest.mark.parametrize(
    ("amount", "target", "surge", "unavailable"),
    [("25%", 4, 1, 1), ("25%", 5, 2, 1), (3, 2, 3, 2), ("10%", 1, 1, 0), (0, 4, 1, 0)],
)
def test_amounts_of_a_target(amount: int | str, target: int, surge: int, unavailable: int) -> None:
    assert Rollout(max_surge=amount).surge(target) == surge
    assert Rollout(max_unavailable=amount).unavailable(target) == unavailable


def test_without_a_surge_one_may_be_missing() -> None:
    assert Rollout(max_surge=0, max_unavailable=1).surge(4) == 0
    assert Rollout(max_surge=0, max_unavailable="10%").surge(4) == 1, "a tenth of four is none: then nothing could move"
