"""`$NAME` and `${NAME}` in texts and in JSON."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skyserve.spec.substitute import names_in, substitute, substitute_json


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("$A", "1"),
        ("${A}b", "1b"),
        ("$A$B/$A", "1$A/1"),
        ("$Ab ${C} $ $$ $1 ${} ${A", "$Ab ${C} $ $$ $1 ${} ${A"),
        ("", ""),
    ],
)
def test_substitute(text: str, expected: str) -> None:
    assert substitute(text, {"A": "1", "B": "$A"}) == expected


def test_names() -> None:
    assert names_in('{"a": $A, "b": "${B_2} $A $1"}') == {"A", "B_2"}


def test_numbers_can_be_filled_in() -> None:
    assert json.loads(substitute_json('{"n": $N}', {"N": "3"})) == {"n": 3}


@given(st.text())
def test_no_value_ends_the_json_string_it_stands_in(value: str) -> None:
    assert json.loads(substitute_json('{"a": "<$A>"}', {"A": value})) == {"a": f"<{value}>"}
