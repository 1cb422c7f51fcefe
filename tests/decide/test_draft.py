"""Rows of a draft are found by id, however they came there."""

from __future__ import annotations

from tests.decide.builders import observation, replica

from skyserve.decide.draft import Draft
from skyserve.model.decision import Memory
from skyserve.model.replica import ReplicaStatus


def a_draft(*ids: int) -> Draft:
    return Draft(observation(), [replica(id_) for id_ in ids], Memory(), (), 100)


def ids(draft: Draft) -> list[int]:
    return [row.id for row in draft.replicas]


def test_a_row_takes_the_place_of_the_one_with_its_id() -> None:
    draft = a_draft(5, 3, 9)
    failed = replica(3, ReplicaStatus.FAILED)
    draft.put(failed)
    assert (ids(draft), draft.replicas[1]) == ([5, 3, 9], failed)


def test_rows_are_found_after_others_came_and_went() -> None:
    draft = a_draft(1, 2, 3)
    draft.put(replica(3, ReplicaStatus.NOT_READY))
    draft.drop(replica(1))
    draft.replicas.append(replica(7))
    draft.put(replica(7, ReplicaStatus.FAILED))
    draft.replicas = [row for row in draft.replicas if row.id != 2]
    draft.put(replica(3, ReplicaStatus.DRAINING))
    assert [(row.id, row.status) for row in draft.replicas] == [
        (3, ReplicaStatus.DRAINING),
        (7, ReplicaStatus.FAILED),
    ]


def test_a_row_that_is_not_there_changes_nothing() -> None:
    draft = a_draft(1, 2)
    draft.put(replica(4))
    draft.drop(replica(4))
    assert ids(draft) == [1, 2]


def test_rows_may_be_dropped_while_they_are_gone_through() -> None:
    draft = a_draft(1, 2, 3, 4)
    for row in draft.replicas:
        draft.drop(row)
    assert ids(draft) == []
