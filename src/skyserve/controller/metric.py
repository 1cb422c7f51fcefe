"""The user's own metric: the question that is sent, and the number in the answer. Knows texts, asks nobody."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from skyserve.model.scaling import CustomMetric
from skyserve.spec.json_path import Absent, parse, pick
from skyserve.spec.substitute import names_in, substitute

_QUERY_PATH = "/api/v1/query"
_LONGEST_QUOTE = 120


class NoNumber(ValueError):
    """The answer holds no number that can be used; the text says why, without anything secret."""


@dataclass(frozen=True, slots=True)
class MetricQuestion:
    """What is asked for the user's metric, complete. Secrets may be filled in, so headers are never shown."""

    url: str
    query: str | None
    json_path: str | None
    headers: Mapping[str, str] = field(repr=False)
    interval_s: float

    @property
    def address(self) -> str:
        """What the question is sent to: the URL, or the place in a Prometheus server that answers queries."""
        if self.query is None:
            return self.url
        base, mark, rest = self.url.partition("?")
        base = base.rstrip("/")
        return (base if base.endswith(_QUERY_PATH) else base + _QUERY_PATH) + mark + rest

    @property
    def parameters(self) -> Mapping[str, str]:
        """What is added to the address."""
        return {} if self.query is None else {"query": self.query}

    @property
    def shown(self) -> str:
        """The address as it may stand in messages."""
        return self.address.partition("?")[0]


def metric_question(metric: CustomMetric, values: Mapping[str, str]) -> MetricQuestion:
    """The question for a policy's metric, with envs and secrets filled in."""
    headers = {name: substitute(value, values) for name, value in metric.headers.items()}
    return MetricQuestion(metric.url, metric.query, metric.json_path, headers, metric.interval_seconds)


def needs_values(metric: CustomMetric) -> bool:
    """Whether anything has to be filled in."""
    return any(names_in(value) for value in metric.headers.values())


def number_in(asked: MetricQuestion, status: int, body: bytes) -> float:
    """The number that an answer gives. Raises NoNumber."""
    if asked.query is not None:
        return _number(_query_result(status, body))
    if status != 200:
        raise NoNumber(f"it answered {status}")
    if asked.json_path is None:
        return _number(body.decode("utf-8", "replace").strip())
    steps = parse(asked.json_path)
    if steps is None:
        raise NoNumber(f"{asked.json_path} is no path to a value")
    try:
        return _number(pick(_document(body), steps))
    except Absent:
        raise NoNumber(f"the answer has nothing at {asked.json_path}") from None


def _query_result(status: int, body: bytes) -> object:
    """The one value that a Prometheus server gives for a query: `[instant, "number"]`, alone or of one series."""
    try:
        answer = _document(body)
    except NoNumber:
        raise NoNumber(f"it answered {status}, and not as a Prometheus server does") from None
    if not isinstance(answer, dict) or answer.get("status") != "success":
        why = answer.get("error") if isinstance(answer, dict) else None
        raise NoNumber(f"it answered {status}: {_quoted(why)}" if why else f"it answered {status}")
    data = answer.get("data")
    kind, result = (data.get("resultType"), data.get("result")) if isinstance(data, dict) else (None, None)
    if kind == "vector" and isinstance(result, list):
        result = _only(result)
    elif kind != "scalar":
        raise NoNumber(f"the query gives a {_quoted(kind)}, not a number")
    if not isinstance(result, list) or len(result) != 2:
        raise NoNumber("the server's answer has no value")
    return result[1]


def _only(series: list[object]) -> object:
    if not series:
        raise NoNumber("the query gives no result")
    if len(series) > 1:
        raise NoNumber(f"the query gives {len(series)} series, not one: put sum(...) around it")
    return series[0].get("value") if isinstance(series[0], dict) else None


def _document(body: bytes) -> object:
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        raise NoNumber("the answer is not JSON") from None


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise NoNumber(f"the value is {_quoted(type(value).__name__)}, not a number")
    try:
        number = float(value)
    except (ValueError, OverflowError):
        raise NoNumber(f"the value is {_quoted(value)}, not a number") from None
    if not math.isfinite(number):
        raise NoNumber(f"the value is {number}")
    return number


def _quoted(value: object) -> str:
    text = "".join(char if char.isprintable() else " " for char in str(value)[: 2 * _LONGEST_QUOTE])
    return text if len(text) <= _LONGEST_QUOTE else f"{text[: _LONGEST_QUOTE - 3]}..."
