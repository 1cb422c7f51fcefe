"""The user's metric: how it is asked for, and which number the answer gives."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skyserve.controller.metric import MetricQuestion, NoNumber, metric_question, needs_values, number_in
from skyserve.model.scaling import CustomMetric

PLAIN = MetricQuestion("http://h/x", None, None, {}, 10.0)
JSON = MetricQuestion("http://h/x", None, "$.a[0].b", {}, 10.0)
QUERY = MetricQuestion("http://h", "up", None, {}, 10.0)


def answer(kind: str, result: object) -> bytes:
    return json.dumps({"status": "success", "data": {"resultType": kind, "result": result}}).encode()


def one(value: str) -> list[object]:
    return [{"metric": {"job": "a"}, "value": [1.7e9, value]}]


@pytest.mark.parametrize(
    ("asked", "body", "number"),
    [
        (PLAIN, b"42", 42.0),
        (PLAIN, b" 4.5e1\n", 45.0),
        (PLAIN, b"-3", -3.0),
        (JSON, b'{"a": [{"b": 7}]}', 7.0),
        (JSON, b'{"a": [{"b": "7.5"}]}', 7.5),
        (QUERY, answer("vector", one("120")), 120.0),
        (QUERY, answer("scalar", [1.7e9, "3"]), 3.0),
    ],
)
def test_numbers(asked: MetricQuestion, body: bytes, number: float) -> None:
    assert number_in(asked, 200, body) == number


@pytest.mark.parametrize(
    ("asked", "status", "body", "why"),
    [
        (PLAIN, 503, b"42", "it answered 503"),
        (PLAIN, 302, b"42", "it answered 302"),
        (PLAIN, 200, b"", "the value is , not a number"),
        (PLAIN, 200, b"many", "the value is many, not a number"),
        (PLAIN, 200, b"NaN", "the value is nan"),
        (PLAIN, 200, b"\xff\xfe", "not a number"),
        (PLAIN, 200, b"x" * 5000, "..., not a number"),
        (JSON, 500, b'{"a": [{"b": 7}]}', "it answered 500"),
        (JSON, 200, b"{", "the answer is not JSON"),
        (JSON, 200, b"[" * 100_000, "the answer is not JSON"),
        (JSON, 200, b'{"a": []}', "the answer has nothing at $.a[0].b"),
        (JSON, 200, b'{"a": [{"b": null}]}', "the value is NoneType, not a number"),
        (JSON, 200, b'{"a": [{"b": true}]}', "the value is bool, not a number"),
        (JSON, 200, b'{"a": [{"b": Infinity}]}', "the value is inf"),
        (JSON, 200, b'{"a": [{"b": 1' + b"0" * 400 + b"}]}", "not a number"),
        (QUERY, 200, b"<html>", "not as a Prometheus server does"),
        (QUERY, 404, b"not found", "it answered 404, and not as a Prometheus server does"),
        (QUERY, 422, b'{"status": "error", "error": "parse error"}', "it answered 422: parse error"),
        (QUERY, 503, b"[]", "it answered 503"),
        (QUERY, 200, answer("vector", []), "the query gives no result"),
        (QUERY, 200, answer("vector", one("1") * 2), "the query gives 2 series, not one: put sum(...) around it"),
        (QUERY, 200, answer("matrix", []), "the query gives a matrix, not a number"),
        (QUERY, 200, answer("vector", one("NaN")), "the value is nan"),
        (QUERY, 200, answer("vector", [5]), "the server's answer has no value"),
        (QUERY, 200, answer("scalar", {}), "the server's answer has no value"),
        (QUERY, 200, b'{"status": "success"}', "not a number"),
    ],
)
def test_what_is_no_number(asked: MetricQuestion, status: int, body: bytes, why: str) -> None:
    with pytest.raises(NoNumber) as caught:
        number_in(asked, status, body)
    assert why in str(caught.value)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("http://h:9090", "http://h:9090/api/v1/query"),
        ("http://h:9090/", "http://h:9090/api/v1/query"),
        ("http://h/prometheus?tenant=a", "http://h/prometheus/api/v1/query?tenant=a"),
        ("http://h/api/v1/query", "http://h/api/v1/query"),
    ],
)
def test_where_a_prometheus_server_is_asked(url: str, address: str) -> None:
    asked = MetricQuestion(url, "sum(a)", None, {}, 10.0)
    assert asked.address == address
    assert asked.parameters == {"query": "sum(a)"}
    assert "?" not in asked.shown


def test_headers_are_filled_in_and_never_shown() -> None:
    metric = CustomMetric("http://h", 1, headers={"Authorization": "Bearer $TOKEN", "X": "${OTHER}"})
    asked = metric_question(metric, {"TOKEN": "hunter2"})
    assert asked.headers == {"Authorization": "Bearer hunter2", "X": "${OTHER}"}
    assert "hunter2" not in repr(asked)
    assert needs_values(metric)
    assert not needs_values(CustomMetric("http://h", 1, headers={"X": "y"}))


KEYS = st.sampled_from(["status", "data", "result", "resultType", "a", "b", "value", "success", "vector", "scalar"])
DOCUMENTS = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5) | KEYS,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=8,
)
ANSWERS = st.binary(max_size=40) | DOCUMENTS.map(lambda value: json.dumps(value).encode())


@given(st.sampled_from([PLAIN, JSON, QUERY]), ANSWERS)
def test_any_answer_is_a_number_or_not(asked: MetricQuestion, body: bytes) -> None:
    try:
        number = number_in(asked, 200, body)
    except NoNumber:
        return
    assert abs(number) < float("inf")
