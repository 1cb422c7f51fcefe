"""Whatever the text, reading it ends in a service or in a SpecError."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skyserve.errors import SpecError
from skyserve.spec.fields import SECTIONS
from skyserve.spec.load import load_service
from skyserve.spec.overrides import Overrides

EXAMPLES = sorted((Path(__file__).parents[2] / "examples" / "announcement").glob("*.yaml"))
WORDS = sorted({field.name for section in SECTIONS for field in section.fields})


def load(text: str) -> None:
    try:
        loaded = load_service(text, fingerprint_key=b"key", overrides=Overrides(name="svc"))
    except SpecError as error:
        refused = error
    else:
        repr(loaded).encode()
        return
    assert refused.message
    assert refused.where
    assert all(char.isprintable() or char in "\n\t" for char in refused.excerpt)
    f"{refused.message}{refused.hint}{refused.excerpt}".encode()


@given(st.text())
def test_any_text(text: str) -> None:
    load(text)


SIGNS = [
    ":",
    "-",
    ",",
    "[",
    "]",
    "{",
    "}",
    "?",
    "&a ",
    "*a",
    "!",
    "|",
    ">",
    "'",
    '"',
    "%",
    "@",
    "`",
    "#",
    "~",
    "<<",
    "$",
]
LAYOUT = [
    "\n",
    "\n  ",
    "\n    ",
    ": ",
    "- ",
    "\t",
    " ",
    "---\n",
    "...\n",
    "\r",
    "\x85",
    "\u2028",
    "\ufeff",
    "%YAML 1.1\n---\n",
]
ODD = [".nan", "-.inf", "0x", "1e999", "9" * 30, "8+", "true", "null", "L4:8", "!!int ", "!!binary ", "!x ", "<<: *a"]
BYTES = ['"\\ud800"', '"\\UFFFFFFFF"', '"\\0"', "\x07", "\ud800", "é", "\U0001f600"]
PIECES = st.sampled_from([*WORDS, *SIGNS, *LAYOUT, *ODD, *BYTES])


@given(st.lists(PIECES, max_size=40).map("".join))
def test_yaml_like_text(text: str) -> None:
    load(text)


SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["8+", "4x", "L4:1", "8080-8082", "aws/us-east-1", "/path", "$A", "s3://b", "least_load", "none"])
    | st.sampled_from(["0 8 * * MON-FRI", "Europe/Berlin", "$.a[0]", "80%", "http://[", "http://a@b", "* * 30 2 *"])
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(WORDS) | st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=4,
)
KEYS = [(section.name, field.name) for section in SECTIONS for field in section.fields]


def tree(settings: list[tuple[tuple[str, str], object]]) -> dict[str, object]:
    """A service that is right but for these settings."""
    probe: dict[str, object] = {}
    metric: dict[str, object] = {"url": "http://host", "target_per_replica": 1}
    schedule: dict[str, object] = {"cron": "@daily", "min_replicas": 1}
    policy: dict[str, object] = {"min_replicas": 1, "custom_metric": metric, "schedules": [schedule]}
    balancer: dict[str, object] = {}
    rollout: dict[str, object] = {}
    tls: dict[str, object] = {"keyfile": "k", "certfile": "c"}
    replica_tls: dict[str, object] = {}
    service: dict[str, object] = {
        "readiness_probe": probe,
        "replica_policy": policy,
        "load_balancer": balancer,
        "rollout": rollout,
        "tls": tls,
        "replica_tls": replica_tls,
    }
    resources: dict[str, object] = {"ports": 80}
    workdir: dict[str, object] = {"url": "git@host:repo"}
    root: dict[str, object] = {"run": "x", "service": service, "resources": resources, "workdir": workdir}
    sections = {
        "": root, "service": service, "readiness_probe": probe, "replica_policy": policy, "load_balancer": balancer,
        "custom_metric": metric, "schedules": schedule, "rollout": rollout, "tls": tls, "replica_tls": replica_tls,
        "resources": resources,
        "workdir": workdir,
    }  # fmt: skip
    for (section, key), value in settings:
        sections[section][key] = value
    return root


def flow(value: object) -> str:
    """A value as YAML on one line."""
    match value:
        case dict():
            return "{" + ", ".join(f"{flow(key)}: {flow(one)}" for key, one in value.items()) + "}"
        case list():
            return "[" + ", ".join(map(flow, value)) + "]"
        case str():
            return '"' + "".join(f"\\U{ord(char):08x}" for char in value) + '"'
        case bool() | None:
            return {True: "true", False: "false", None: "null"}[value]
        case _:
            return str(value).replace("inf", ".inf").replace("nan", ".nan")


@given(st.lists(st.tuples(st.sampled_from(KEYS), VALUES), max_size=4).map(tree).map(flow))
def test_any_values_under_the_right_keys(text: str) -> None:
    load(text)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
@given(data=st.data())
@settings(max_examples=25)
def test_damaged_examples(path: Path, data: st.DataObject) -> None:
    lines = path.read_text().splitlines(keepends=True)
    at = data.draw(st.integers(0, len(lines) - 1))
    lines[at] = data.draw(st.sampled_from(["", lines[at].lstrip(), lines[at] * 2]) | PIECES)
    load("".join(lines))
