"""The codec: every model type survives the way to JSON text and back, and what is wrong is refused by its path."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, is_dataclass
from enum import Enum, IntEnum
from functools import cache
from types import UnionType
from typing import Union, get_args, get_origin, get_type_hints

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from skyserve.model.codec import CodecError, dumps, from_json, loads, to_json
from skyserve.model.decision import Action, Decision, Memory, Observation, Plan, Reason, ReasonCode, Terminate
from skyserve.model.replica import Replica, ReplicaStatus
from skyserve.model.routing import RoutingTable
from skyserve.model.service import ServiceSpec
from skyserve.model.view import DecisionView, ProviderView, ServiceView

SCALARS = {
    type(None): st.none(),
    bool: st.booleans(),
    int: st.integers(),
    float: st.floats(allow_nan=False, allow_infinity=False),
    str: st.text(max_size=8),
}
ROUND_TRIPS = (Observation, Plan, Decision, ServiceSpec, RoutingTable, ServiceView, DecisionView, ProviderView)


@cache
def values_of(declared: object) -> st.SearchStrategy[object]:
    """Values of a type with every field drawn, those with a default too; containers stay small."""
    origin, arguments = get_origin(declared), get_args(declared)
    if origin in (Union, UnionType):
        return st.one_of(*map(values_of, arguments))
    if origin is tuple and Ellipsis in arguments:
        return st.lists(values_of(arguments[0]), max_size=2).map(tuple)
    if origin is tuple:
        return st.tuples(*map(values_of, arguments))
    if origin is Mapping:
        return st.dictionaries(*map(values_of, arguments), max_size=2)
    if declared in SCALARS:
        return SCALARS[declared]
    if is_dataclass(declared):
        return st.builds(declared, **{name: values_of(hint) for name, hint in get_type_hints(declared).items()})
    return st.sampled_from(list(declared))


@pytest.mark.parametrize("cls", ROUND_TRIPS, ids=lambda cls: cls.__name__)
@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example],
)
@given(data=st.data())
def test_model_types_round_trip_through_json_text(cls: type, data: st.DataObject) -> None:
    value = data.draw(values_of(cls))
    assert from_json(cls, json.loads(json.dumps(to_json(value)))) == value
    text = dumps(value)
    assert text.isascii()
    assert dumps(loads(cls, text)) == text


def a_replica() -> Replica:
    return Replica(
        id=7,
        token="svc-7-1",
        version=1,
        launched_version=1,
        status=ReplicaStatus.READY,
        status_since_at=1.5,
        created_at=1.0,
    )


class Level(IntEnum):
    LOW = 1
    HIGH = 2


class Shape(Enum):
    ROUND = "round"


@dataclass(frozen=True)
class Circle:
    radius: float


@dataclass(frozen=True)
class Square:
    side: int = 1


@dataclass(frozen=True)
class Everything:
    level: Level = Level.LOW
    shape: Shape | None = None
    pair: tuple[int, str] = (0, "")
    figure: Circle | Square | None = None
    scalar: float | int | str = 0
    rate: float | Mapping[str, float] | None = None
    flag: bool = False
    counts: Mapping[int, int] = field(default_factory=dict)
    figures: tuple[Circle | Square, ...] = ()


@pytest.mark.parametrize(
    "value",
    [
        Everything(level=Level.HIGH, shape=Shape.ROUND, pair=(3, "x")),
        Everything(figure=Circle(0.1 + 0.2)),
        Everything(figures=(Square(3), Circle(-0.0))),
        Everything(scalar=1),
        Everything(scalar=1.0),
        Everything(scalar="1", rate=2),
        Everything(rate={"a": 5e-324}, counts={-1: 2**70, 10: 0, 2: 1}),
    ],
)
def test_every_supported_shape_comes_back_as_it_was(value: Everything) -> None:
    back = loads(Everything, dumps(value))
    assert back == value
    assert repr(back) == repr(value), "1 and 1.0 are told apart, and mappings keep their order"


def test_unions_of_dataclasses_are_tagged_by_class_name_and_others_are_not() -> None:
    assert to_json(Everything(figure=Square(2)))["figure"] == {"kind": "Square", "side": 2}
    assert to_json(Circle(1.5)) == {"radius": 1.5}


def test_a_union_at_the_top_is_tagged_when_it_is_declared() -> None:
    for value in (None, Circle(2.0)):
        data = to_json(value, Circle | Square | None)
        assert from_json(Circle | Square | None, data) == value


def test_plain_containers_at_the_top_are_encoded_by_what_they_hold() -> None:
    assert to_json((Circle(1.0), Square(2))) == [{"radius": 1.0}, {"side": 2}]
    assert to_json({3: Shape.ROUND, "x": None}) == {"3": "round", "x": None}
    assert from_json(tuple[Circle, ...], [{"radius": 1.0}]) == (Circle(1.0),)


def test_unknown_keys_are_ignored_and_missing_ones_take_their_default() -> None:
    assert from_json(Square, {"colour": "red"}) == Square(1)
    assert from_json(Everything, {"figure": {"kind": "Circle", "radius": 1, "later": []}}).figure == Circle(1)


@pytest.mark.parametrize(
    ("cls", "data", "path", "says"),
    [
        (Circle, {}, "value", "Circle lacks 'radius'"),
        (Circle, {"radius": "1"}, ".radius", "expected a number, got str"),
        (Circle, {"radius": True}, ".radius", "expected a number, got bool"),
        (Circle, {"radius": None}, ".radius", "got null"),
        (Circle, [], "value", "expected an object (Circle), got list"),
        (Square, {"side": 1.0}, ".side", "expected a whole number, got float"),
        (Square, {"side": True}, ".side", "expected a whole number, got bool"),
        (Everything, {"flag": 1}, ".flag", "expected a boolean, got int"),
        (Everything, {"shape": "oval"}, ".shape", "expected one of round, got 'oval'"),
        (Everything, {"shape": 3}, ".shape", "got int"),
        (Everything, {"level": True}, ".level", "expected one of 1, 2, got True"),
        (Everything, {"level": []}, ".level", "got []"),
        (Everything, {"pair": [1]}, ".pair", "expected 2 items, got 1"),
        (Everything, {"pair": [1, 2]}, ".pair[1]", "expected a string, got int"),
        (Everything, {"pair": {}}, ".pair", "expected an array, got dict"),
        (Everything, {"counts": {"1": 1, "x": 2}}, ".counts['x']", "whole number as the key"),
        (Everything, {"counts": {"01": 2}}, ".counts['01']", "whole number as the key"),
        (Everything, {"counts": []}, ".counts", "expected an object, got list"),
        (Everything, {"scalar": True}, ".scalar", "expected float or int or str, got bool"),
        (Everything, {"rate": {"a": "b"}}, ".rate['a']", "expected a number, got str"),
        (Everything, {"figures": [{"kind": "Square"}, {"kind": "Blob"}]}, ".figures[1]", "Circle, Square, got 'Blob'"),
        (Everything, {"figures": [{"side": 1}]}, ".figures[0]", "got None"),
        (Everything, {"figures": [{"kind": []}]}, ".figures[0]", "got []"),
        (Everything, {"figures": 3}, ".figures", "expected an array, got int"),
    ],
)
def test_a_wrong_type_is_refused_by_its_path(cls: type, data: object, path: str, says: str) -> None:
    with pytest.raises(CodecError) as caught:
        from_json(cls, data)
    assert str(caught.value).startswith(f"{path}: ")
    assert says in str(caught.value)


def test_the_path_leads_through_nested_rows() -> None:
    data = to_json(Plan((a_replica(),), (), (), Memory(), 8, 2.0))
    data["replicas"][0]["status"] = "HAPPY"
    with pytest.raises(CodecError, match=r"^\.replicas\[0\]\.status: expected one of PENDING, .* got 'HAPPY'$"):
        from_json(Plan, data)


@pytest.mark.parametrize("number", [math.inf, -math.inf, math.nan])
def test_numbers_that_json_has_no_word_for_are_refused_both_ways(number: float) -> None:
    with pytest.raises(CodecError, match=r"\.radius: expected a finite number"):
        to_json(Circle(number))
    with pytest.raises(CodecError, match=r"\.radius: expected a finite number"):
        loads(Circle, json.dumps({"radius": number}))


@pytest.mark.parametrize(
    ("value", "path"),
    [
        (Circle("1"), ".radius"),
        (Square(1.5), ".side"),
        (Everything(level=1), ".level"),
        (Everything(pair=[0, ""]), ".pair"),
        (Everything(scalar=True), ".scalar"),
        (Everything(counts={"1": 1}), ".counts['1']"),
        (Everything(counts=((1, 1),)), ".counts"),
        (Everything(figure=Everything()), ".figure"),
        (Everything(figures=[Square()]), ".figures"),
        (Everything(flag=None), ".flag"),
    ],
)
def test_a_value_that_could_not_be_read_again_is_not_written(value: object, path: str) -> None:
    with pytest.raises(CodecError) as caught:
        to_json(value)
    assert caught.value.path == path


def test_text_that_is_not_json_is_a_codec_error() -> None:
    with pytest.raises(CodecError, match="not JSON"):
        loads(Circle, "{")


def test_strings_that_have_no_utf8_form_survive() -> None:
    orphan = Terminate("local", "i-\ud800\x00", None, Reason(ReasonCode.ORPHAN, "t"))
    assert from_json(Action, json.loads(dumps(orphan, Action))) == orphan


@dataclass(frozen=True)
class Kinded:
    kind: str


@pytest.mark.parametrize(
    "declared",
    [
        bytes,
        set[int],
        tuple[complex, ...],
        Mapping[float, int],
        Kinded | Square,
        Circle | Mapping[str, int],
        Shape | str,
    ],
)
def test_types_that_json_could_not_tell_are_refused_at_once(declared: type | UnionType) -> None:
    with pytest.raises(TypeError, match="the codec cannot"):
        from_json(declared, None)
