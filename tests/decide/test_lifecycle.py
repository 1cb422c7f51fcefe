"""Evidence about one replica -> its next status."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.decide.builders import NOW, instance, listing, observation, replica

from skyserve.decide.lifecycle import LAUNCH_GRACE_S, UNCLEAR_LAUNCH_PATIENCE_S, Sight, advance
from skyserve.model.decision import Observation
from skyserve.model.evidence import (
    InstanceState,
    Listing,
    LoadReport,
    Outcome,
    OutcomeKind,
    ProbeResult,
    Silent,
)
from skyserve.model.replica import Failure, Replica, ReplicaStatus

S = ReplicaStatus


def after(of: Replica, **seen: object) -> Replica | None:
    o: Observation = observation(replicas=(of,), **seen)
    return advance(of, Sight(o).of(of), o.now)[0]


def status_after(of: Replica, **seen: object) -> str:
    result = after(of, **seen)
    return "gone" if result is None else result.display_status


def probe(ok: bool, at: float = NOW - 0.05) -> dict[int, ProbeResult]:
    return {1: ProbeResult(1, at, ok, "GET / answered 500")}


def with_instance(of: Replica, state: InstanceState, **changes: object) -> dict[str, Listing]:
    return {"local": Listing(NOW - 0.1, (instance(of, state, **changes),))}


def outcome(kind: OutcomeKind) -> tuple[Outcome, ...]:
    return (Outcome("chat-u1-1-1", kind, NOW - 0.1, instance_id="i1", detail="because"),)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (OutcomeKind.ACCEPTED, "PROVISIONING"),
        (OutcomeKind.CAPACITY, "PENDING"),
        (OutcomeKind.QUOTA, "PENDING"),
        (OutcomeKind.THROTTLED, "PENDING"),
        (OutcomeKind.UNAVAILABLE, "PENDING"),
        (OutcomeKind.REJECTED, "FAILED_PROVISION"),
    ],
)
def test_outcome_of_a_launch(kind: OutcomeKind, expected: str) -> None:
    assert status_after(replica(1, S.PENDING, accepted_at=None), outcomes=outcome(kind)) == expected


def test_a_refused_launch_gives_up_its_offering_and_counts_the_attempt() -> None:
    result = after(replica(1, S.PENDING), outcomes=outcome(OutcomeKind.CAPACITY))
    assert result is not None
    assert (result.offering, result.attempt) == (None, 2)


def test_an_unclear_answer_keeps_offering_and_token() -> None:
    before = replica(1, S.PENDING, asked_at=NOW - 1)
    result = after(before, outcomes=outcome(OutcomeKind.UNAVAILABLE))
    assert result is not None
    assert (result.offering, result.token, result.attempt) == (before.offering, before.token, 1)
    assert result.retry_at is not None
    assert result.retry_at > NOW


def test_a_launch_without_a_clear_answer_for_long_is_tried_elsewhere() -> None:
    before = replica(1, S.PENDING, accepted_at=None, asked_at=NOW - UNCLEAR_LAUNCH_PATIENCE_S)
    result = after(before, outcomes=outcome(OutcomeKind.UNAVAILABLE))
    assert result is not None
    assert (result.offering, result.attempt) == (None, 2)


def test_a_pending_replica_whose_instance_is_listed_was_launched_before_a_crash() -> None:
    pending = replica(1, S.PENDING, accepted_at=None, instance_id=None)
    assert status_after(pending, providers=with_instance(pending, InstanceState.STARTING)) == "PROVISIONING"


def test_several_steps_of_a_life_can_be_caught_up_at_once() -> None:
    pending = replica(1, S.PENDING)
    o = observation(
        replicas=(pending,), providers=with_instance(pending, InstanceState.RUNNING), probes=probe(True, NOW)
    )
    result, notes = advance(pending, Sight(o).of(pending), o.now)
    assert result is not None
    assert result.status is S.READY
    assert [n.because.text for n in notes] == [
        "PENDING -> PROVISIONING",
        "PROVISIONING -> STARTING",
        "STARTING -> READY",
    ]


@pytest.mark.parametrize("status", [S.PROVISIONING, S.STARTING, S.READY, S.NOT_READY])
@pytest.mark.parametrize(
    ("state", "expected"), [(InstanceState.EXITED, "FAILED"), (InstanceState.PREEMPTED, "PREEMPTED")]
)
def test_an_instance_that_ended_fails_its_replica(status: S, state: InstanceState, expected: str) -> None:
    of = replica(1, status)
    seen = with_instance(of, state, exit_code=3, detail="boom")
    assert status_after(of, providers=seen) == expected


def test_the_last_log_lines_stay_with_a_failed_replica() -> None:
    of = replica(1)
    seen = with_instance(of, InstanceState.EXITED, exit_code=3, detail="line one\nline two", failed_phase="setup")
    result = after(of, providers=seen)
    assert result is not None
    assert result.detail == "setup ended with exit code 3\nline one\nline two"


@pytest.mark.parametrize("status", [S.STARTING, S.READY, S.NOT_READY])
def test_an_instance_missing_from_a_fresh_listing_is_lost(status: S) -> None:
    assert status_after(replica(1, status)) == "LOST"


@pytest.mark.parametrize("status", list(S))
def test_silence_changes_nothing(status: S) -> None:
    of = replica(1, status)
    assert status_after(of, providers={"local": Silent(NOW - 5, "timeout")}) == of.display_status


@pytest.mark.parametrize("status", [S.READY, S.NOT_READY])
def test_a_listing_asked_for_before_the_last_change_proves_nothing(status: S) -> None:
    of = replica(1, status, status_since_at=NOW - 1)
    assert status_after(of, providers={"local": Listing(NOW - 2, ())}) == status.value


def test_an_accepted_launch_may_be_missing_for_a_while() -> None:
    of = replica(1, S.PROVISIONING, accepted_at=NOW - LAUNCH_GRACE_S + 1)
    assert status_after(of) == "PROVISIONING"
    assert status_after(replace(of, accepted_at=NOW - LAUNCH_GRACE_S - 1)) == "LOST"


def test_a_good_probe_makes_ready_and_a_bad_one_unready_and_back() -> None:
    starting = replica(1, S.STARTING)
    assert status_after(starting, providers=listing(starting), probes=probe(True)) == "READY"
    assert status_after(starting, providers=listing(starting), probes=probe(False)) == "STARTING"
    ready, unready = replica(1, S.READY), replica(1, S.NOT_READY)
    assert status_after(ready, providers=listing(ready), probes=probe(False)) == "NOT_READY"
    assert status_after(unready, providers=listing(unready), probes=probe(True)) == "READY"


def test_an_old_probe_says_nothing_about_a_new_status() -> None:
    ready = replica(1, S.READY, status_since_at=NOW - 1)
    assert status_after(ready, providers=listing(ready), probes=probe(False, NOW - 2)) == "READY"


def test_the_initial_delay_counts_from_the_start_of_setup() -> None:
    starting = replica(1, S.STARTING, status_since_at=NOW - 5, setup_started_at=NOW - 1199)
    assert status_after(starting, providers=listing(starting)) == "STARTING"
    late = replace(starting, setup_started_at=NOW - 1200)
    assert status_after(late, providers=listing(late)) == "FAILED_INITIAL_DELAY"


def test_the_failure_threshold_counts_from_the_first_failed_probe() -> None:
    unready = replica(1, S.NOT_READY, status_since_at=NOW - 179)
    assert status_after(unready, providers=listing(unready), probes=probe(False)) == "NOT_READY"
    late = replace(unready, status_since_at=NOW - 180)
    assert status_after(late, providers=listing(late), probes=probe(False)) == "FAILED_PROBING"


def load_report(table: int, in_flight: dict[int, int]) -> LoadReport:
    return LoadReport(NOW, "b", table, in_flight)


def test_draining_ends_when_a_door_that_knows_of_it_has_nothing_left() -> None:
    draining = replica(1, S.DRAINING, drain_until_at=NOW + 60, drain_revision=10, detail="above target")
    seen = listing(draining)
    assert status_after(draining, providers=seen) == "DRAINING"
    assert status_after(draining, providers=seen, load=load_report(10, {})) == "DRAINING"
    assert status_after(draining, providers=seen, load=load_report(11, {1: 2})) == "DRAINING"
    assert status_after(draining, providers=seen, load=load_report(11, {1: 0, 2: 5})) == "SHUTTING_DOWN"
    late = replace(draining, drain_until_at=NOW)
    assert status_after(late, providers=seen, load=load_report(11, {1: 2})) == "SHUTTING_DOWN"


def test_a_row_goes_when_a_fresh_listing_shows_its_instance_gone() -> None:
    leaving = replica(1, S.SHUTTING_DOWN, status_since_at=NOW - 1)
    assert status_after(leaving, providers=listing(leaving)) == "SHUTTING_DOWN"
    assert status_after(leaving, providers={"local": Listing(NOW - 2, ())}) == "SHUTTING_DOWN"
    assert status_after(leaving, in_flight=(leaving.token,)) == "SHUTTING_DOWN"
    assert status_after(leaving) == "gone"


def test_an_instance_that_does_not_go_is_told() -> None:
    leaving = replica(1, S.SHUTTING_DOWN, status_since_at=NOW - 601)
    assert status_after(leaving, providers=listing(leaving)) == "FAILED_CLEANUP"


def test_a_failed_replica_is_cleaned_once_its_instance_is_gone() -> None:
    failed = replica(1, S.FAILED, status_since_at=NOW - 1, failure=Failure.APP_EXIT)
    for seen, cleaned in ((listing(failed), False), ({"local": Listing(NOW - 0.1, ())}, True)):
        result = after(failed, providers=seen)
        assert result is not None
        assert result.cleaned is cleaned


def test_last_words_that_come_after_the_end_are_kept() -> None:
    stopping = replica(1)
    result = after(stopping, providers=with_instance(stopping, InstanceState.STOPPING))
    assert result is not None
    assert result.detail == "run ended"
    seen = with_instance(stopping, InstanceState.EXITED, exit_code=3, detail="boom")
    later = after(replace(result, status_since_at=NOW - 1), providers=seen)
    assert later is not None
    assert later.detail == "run ended with exit code 3\nboom"
