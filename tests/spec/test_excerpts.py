"""How a refusal looks: place, line, caret, hint, and the other problems after the first."""

from __future__ import annotations

import pytest

from skyserve.errors import SpecError
from skyserve.spec.load import load_service


def told(text: str) -> str:
    """All that a SpecError says, as one text."""
    with pytest.raises(SpecError) as caught:
        load_service(text, fingerprint_key=b"key", name_suffix="0a1b", label="s.yaml")
    error = caught.value
    return "\n".join(part for part in (f"{error.where}: {error.message}", error.excerpt, error.hint) if part)


def test_an_unknown_key() -> None:
    assert (
        told("service:\n  replcas: 2\nrun: x\nresources: {ports: 80}\n")
        == """\
s.yaml:2:3: unknown key 'replcas' in `service`
  replcas: 2
  ^^^^^^^
did you mean `replicas`?"""
    )


def test_a_wrong_value_in_a_flow_map() -> None:
    assert (
        told("service:\n  readiness_probe: {path: /, timeout_seconds: -15}\nrun: x\nresources: {ports: 80}\n")
        == """\
s.yaml:2:47: `service.readiness_probe.timeout_seconds` must be a number above 0, not -15
  readiness_probe: {path: /, timeout_seconds: -15}
                                              ^^^"""
    )


def test_all_problems_in_the_order_of_the_file() -> None:
    text = "service: {replicas: two}\nresources:\n  ports: 0\n  use_spot: yes\nrun: x\n"
    assert (
        told(text)
        == """\
s.yaml:1:21: `service.replicas` must be a whole number of 0 or more, not the text 'two'
service: {replicas: two}
                    ^^^
also s.yaml:3:10: `resources.ports` must be a whole number from 1 to 65535 or a port such as 8080 or 8080-8082 \
or a list, not 0
also s.yaml:4:13: `resources.use_spot` must be true or false, not the text 'yes'"""
    )


def test_what_does_not_fit_together() -> None:
    text = "service:\n  replicas: 1\n  replica_policy: {min_replicas: 1}\nrun: x\nresources: {ports: 80}\n"
    assert (
        told(text)
        == """\
s.yaml:2:13: `service.replicas` and `service.replica_policy` exclude each other
  replicas: 1
            ^
keep one; `replicas` is a fixed number"""
    )


def test_a_missing_port() -> None:
    assert (
        told("service: {}\nrun: x\nresources:\n  cpus: 2\n")
        == """\
s.yaml:3:1: no port is given: replicas must listen on one
resources:
^^^^^^^^^
add `ports: 8080` under `resources:`, with the port of your server"""
    )


def test_broken_yaml() -> None:
    assert (
        told("run: x\nservice:\n  a: 'b\n")
        == """\
s.yaml:4:1: not valid YAML: found unexpected end of stream
while scanning a quoted scalar that starts in line 3"""
    )


def test_tabs_keep_the_caret_under_the_culprit() -> None:
    assert told("service: {replicas:\t-1}\nrun: x\nresources: {ports: 80}\n").splitlines()[1:] == [
        "service: {replicas:\t-1}",
        "                   \t^^",
    ]


def test_long_lines_are_cut_around_the_culprit() -> None:
    text = f"service: {{readiness_probe: /{'a' * 300}, zzz: 1}}\nrun: x\nresources: {{ports: 80}}\n"
    _, line, caret, *_ = told(text).splitlines()
    assert len(line) <= 120
    assert line[caret.index("^") :].startswith("zzz")


def test_many_problems_are_counted() -> None:
    text = "run: x\n" + "".join(f"z{number}: 1\n" for number in range(30))
    assert told(text).endswith("\nand 10 more")


@pytest.mark.parametrize(
    "text",
    [
        "secrets:\n  TOKEN: hunter22\n  TOKEN: hunter22\n",
        "secrets:\n  TOKEN: [hunter22]\n",
        "secrets: {TOKEN: {hunter22: 1}}\n",
        "secrets:\n  TOKEN: 'hunter22\n",
        "secrets:\n  TOKEN: !x hunter22\n",
        "secrets:\n  TO KEN: hunter22\n",
        "secrets: hunter22\n",
        "secrets:\n  TOKEN: hunter22 # once hunter22\n  b: c: d\n",
    ],
)
def test_no_refusal_shows_a_secret(text: str) -> None:
    assert "hunter22" not in told(f"run: x\nservice: {{}}\nresources: {{ports: 80}}\n{text}")
