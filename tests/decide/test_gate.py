"""The sequential test: how often it errs, how soon it finds what is bad, and what it counts."""

from __future__ import annotations

import math
from dataclasses import replace
from random import Random
from statistics import median

import pytest
from tests.decide.builders import load

from skyserve.decide import gate
from skyserve.model.evidence import BOUNDS_S, VersionAnswers
from skyserve.model.rollout import Gate, Rollout, Tally

NOTHING = (0,) * (len(BOUNDS_S) + 1)


def first_alarm(rng: Random, old: float, new: float, *, tolerated: float, alpha: float, share: float) -> int | None:
    """Answers of the new version until it is condemned, looked at after every bad one and often in between; None when
    that does not happen within 2000 requests."""
    seen = {True: [0, 0], False: [0, 0]}
    for number in range(2000):
        canary = rng.random() < share
        bad = rng.random() < (new if canary else old)
        seen[canary][0] += 1
        seen[canary][1] += bad
        if (canary and bad) or number % 40 == 0:
            told = gate.evidence(tuple(seen[False]), tuple(seen[True]), tolerated)  # type: ignore[arg-type]
            if told >= math.log(1 / alpha):
                return seen[True][0]
    return None


@pytest.mark.parametrize(("rate", "tolerated", "share"), [(0.05, 0.0, 0.5), (0.3, 0.0, 0.25), (0.01, 0.01, 0.25)])
def test_versions_that_are_alike_are_seldom_told_apart(rate: float, tolerated: float, share: float) -> None:
    """At the very border of what is tolerated, with looks whenever the verdict is likely to change."""
    alpha, runs, rng = 0.1, 150, Random(20)
    alarms = [
        first_alarm(rng, rate, rate + tolerated, tolerated=tolerated, alpha=alpha, share=share) for _ in range(runs)
    ]
    assert sum(alarm is not None for alarm in alarms) / runs <= alpha


def test_a_fifth_of_failures_is_found_within_few_answers() -> None:
    rng, limit = Random(21), 0.01 / 2
    found = [first_alarm(rng, 0.0, 0.2, tolerated=0.01, alpha=limit, share=0.05) for _ in range(101)]
    assert all(answers is not None for answers in found)
    assert median(answers or 0 for answers in found) <= 25


def test_twice_as_slow_is_found_too() -> None:
    rng, limit = Random(22), 0.01 / 2
    found = [first_alarm(rng, 0.05, 0.6, tolerated=0.1, alpha=limit, share=0.25) for _ in range(51)]
    assert median(answers or 9999 for answers in found) <= 25


def test_better_or_unknown_is_no_evidence() -> None:
    assert gate.evidence((0, 0), (100, 100), 0.01) == -math.inf
    assert gate.evidence((100, 0), (0, 0), 0.01) == -math.inf
    assert gate.evidence((100, 50), (100, 10), 0.01) == -math.inf
    assert gate.evidence((1000, 0), (20, 20), 0.01) > 20
    assert gate.evidence((5, 0), (5, 5), 0.99) < 1


def answers(version: int, good: int, bad: int = 0, slow: int = 0) -> VersionAnswers:
    bins = (0, 0, 0, good - slow, 0, 0, 0, 0, slow, *NOTHING[9:])
    return VersionAnswers(version, good + bad, bad, bins, bins)


def counted(before: Gate, *told: VersionAnswers, boot: str = "b") -> Gate:
    return gate.count(before, load(boot=boot, versions=told), 1, 2)


def test_what_came_before_is_no_evidence_and_a_door_that_begins_anew_loses_none() -> None:
    first = counted(Gate(), answers(1, 500, 30))
    assert first.old == Tally()
    second = counted(first, answers(1, 600, 31), answers(2, 10, 2), answers(3, 99, 99))
    assert (second.old.answers, second.old.errors) == (101, 1)
    assert (second.new.answers, second.new.errors) == (12, 2)
    anew = counted(second, answers(1, 5), boot="c")
    assert (anew.old.answers, anew.new.answers) == (106, 12)
    assert counted(anew, answers(1, 5), boot="c") == anew
    assert gate.count(anew, None, 1, 2) == anew
    told = load(boot="b", versions=(answers(1, 900, 100),))
    assert gate.count(Gate(), told, 1, 2, history=200).old == Tally(200, 20)
    assert counted(anew, answers(1, 7), answers(2, 3), boot="c").new.answers == 15


def test_what_is_slow_is_learnt_from_the_old_version_alone() -> None:
    first = counted(Gate(), answers(1, 1000, slow=10))
    assert first.slow_from == 4, "less than a twentieth took longer than the fourth bin's bound"
    warm = counted(first, answers(1, 1100, slow=11), answers(2, 30, slow=30))
    assert (warm.old.timed, warm.old.slow) == (100, 1)
    assert warm.new.timed == 0, "the first answers of a new version are slow by nature"
    later = counted(warm, answers(1, 1200, slow=12), answers(2, 60, slow=60))
    assert (later.new.timed, later.new.slow) == (30, 30)
    assert "slower than 0.01s" in gate.complaint(later, Rollout())


def test_failures_that_come_before_the_answers_do_not_speak_for_all() -> None:
    early = Gate(old=Tally(300, 0), new=Tally(2, 2))
    assert gate.complaint(early, Rollout())
    assert not gate.complaint(replace(early, pending=100), Rollout())
    assert gate.complaint(Gate(old=Tally(300, 0), new=Tally(40, 12), pending=30), Rollout())


def test_a_complaint_names_the_figures_and_needs_evidence() -> None:
    sound = Gate(old=Tally(1000, 10), new=Tally(100, 1))
    assert gate.complaint(sound, Rollout()) == ""
    failing = replace(sound, new=Tally(40, 8))
    assert (
        gate.complaint(failing, Rollout()) == "8 of 40 (20.0%) of its answers failed, 10 of 1000 (1.0%) of the old ones"
    )
    assert gate.complaint(failing, Rollout(max_error_rate_increase=0.5)) == ""
    assert gate.strongest(failing, Rollout()) > gate.DOUBT
