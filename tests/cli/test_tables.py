"""The plan table on narrow terminals, and prices below a cent."""

from __future__ import annotations

import pytest

from skyserve.cli import tables, wording
from skyserve.cli.estimate import Cost, Estimate, PlanRow

HOST = PlanRow("local", "host", "local/localhost", 2, 8, None, 0.0, chosen=True)
CHEAP = PlanRow("aws", "t3.nano", "aws/us-east-1/us-east-1a", 2, 0.5, None, 0.0014, chosen=True)


@pytest.mark.parametrize(("room", "width"), [(None, 87), (120, 87), (87, 87), (80, 79), (40, 79)])
def test_columns_move_together_where_room_is_short(room: int | None, width: int) -> None:
    lines = tables.plan_lines(Estimate((HOST,)), 1, room)
    assert {len(line) for line in lines if line.startswith("---")} == {width}


def test_a_cheap_machine_is_not_shown_as_free() -> None:
    lines = tables.plan_lines(Estimate((CHEAP,), Cost(0.0014, 1, 0.0014, 10, 0.014)), 1)
    assert lines[1:3] == [
        "Estimated cost: $0.0014 / hour",
        "Estimated cost of the service: $0.0014 / hour with 1 replica, $0.01 / hour with 10 replicas",
    ]
    assert any(" 0.0014 " in line for line in lines)


@pytest.mark.parametrize(("amount", "text"), [(0, "0.00"), (0.01, "0.01"), (0.00049, "0.0005"), (7.346, "7.35")])
def test_dollars(amount: float, text: str) -> None:
    assert wording.dollars(amount) == text
