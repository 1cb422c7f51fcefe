"""Paths to one value of a JSON document."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skyserve.spec.json_path import Absent, parse, pick

DOCUMENT = {"queue": {"length": 3, "max-age": 1}, "list": [{"a b": 5}, {"c": [7, 8]}], "": 9, "0": 10}


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("$.queue.length", 3),
        ("$.queue.max-age", 1),
        ('$["queue"]["length"]', 3),
        ("$['queue'].length", 3),
        ('$.list[0]["a b"]', 5),
        ("$.list[-1].c[1]", 8),
        ('$[""]', 9),
        ('$["0"]', 10),
        ("$", DOCUMENT),
    ],
)
def test_what_is_found(path: str, value: object) -> None:
    steps = parse(path)
    assert steps is not None
    assert pick(DOCUMENT, steps) == value


@pytest.mark.parametrize(
    "path", ["$.other", "$.queue[0]", "$.list.a", "$.list[2]", "$.list[-3]", "$.queue.length.x", "$[0]"]
)
def test_what_is_absent(path: str) -> None:
    steps = parse(path)
    assert steps is not None
    with pytest.raises(Absent):
        pick(DOCUMENT, steps)


@pytest.mark.parametrize(
    "path", ["", "queue", "$queue", "$.", "$..a", "$.a[*]", "$.a[", "$.a[?(@.b)]", '$["a]', "$.a.0", "$.a "]
)
def test_what_is_no_path(path: str) -> None:
    assert parse(path) is None


@given(st.text("$.[]\"'ab01-*", max_size=12))
def test_any_text_is_a_path_or_not(text: str) -> None:
    steps = parse(text)
    assert steps is None or text.startswith("$")
