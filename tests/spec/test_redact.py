"""Values of secrets stay out of the spec; the rest of the file stays as it is."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from skyserve.errors import SpecError
from skyserve.spec.load import LoadedService, load_service
from skyserve.spec.overrides import Overrides
from skyserve.spec.redact import fingerprints, private_lines

REST = "run: x\nservice: {}\nresources: {ports: 80}\n"


def load(text: str, secrets: dict[str, str] | None = None) -> LoadedService:
    overrides = Overrides(name="svc", secrets=secrets or {})
    return load_service(text, fingerprint_key=b"key", overrides=overrides)


@pytest.mark.parametrize(
    ("written", "stored"),
    [
        ("secrets:\n  A: hunter22\n  B: 'x'\n", "secrets:\n  A: null\n  B: null\n"),
        ("secrets: {A: hunter22, B: x}\n", "secrets: {A: null, B: null}\n"),
        ('secrets:\n  A: hunter22 # hunter22\n  # hunter22\n  "B": x\n', "secrets:\n  A: null\n  B: null\n"),
        ("secrets:\n    A: |\n      hunter22\n      more\n    B: x\n\n", "secrets:\n    A: null\n    B: null\n"),
        ('secrets:\n  A: >-\n   hunter22\n\n  B: "a\n   b"\n', "secrets:\n  A: null\n  B: null\n"),
        ("secrets: {\n  A: hunter22, # hunter22\n  B: x}\n", "secrets: {A: null, B: null}\n"),
    ],
)
def test_values_are_taken_out_of_the_source(written: str, stored: str) -> None:
    for before, after in ((REST, ""), ("", REST), ("name: n # é\n" + REST, "")):
        loaded = load(before + written + after)
        assert loaded.spec.source == before + stored + after
        assert set(loaded.secrets) == {"A", "B"}
        assert "hunter22" in loaded.secrets["A"]
        assert "hunter22" not in repr(loaded)


def test_a_source_without_secrets_is_kept_as_it_is() -> None:
    for text in (REST, REST + "secrets:\n", REST + "secrets: {}\n", "# secrets: none\n" + REST):
        assert load(text).spec.source == text


def test_the_stored_source_gives_the_same_spec_again() -> None:
    first = load(REST + "secrets:\n  A: hunter22\n  B: x\n")
    again = load(first.spec.source, dict(first.secrets))
    assert again.spec == first.spec
    assert again.secrets == first.secrets


def test_flags_give_values_and_the_source_never_has_them() -> None:
    loaded = load(REST + "secrets:\n  A:\n", {"A": "hunter22", "B": "other"})
    assert loaded.secrets == {"A": "hunter22", "B": "other"}
    assert loaded.spec.source == REST + "secrets:\n  A: null\n"


@pytest.mark.parametrize(
    "text",
    [
        "secrets: &s {A: hunter22}\n",
        "secrets:\n  A: &a hunter22\nenvs:\n  B: *a\n",
        "secrets: !!map\n  A: hunter22\n",
        "config: {x: &all {A: hunter22}}\nsecrets: *all\n",
    ],
)
def test_anchors_cannot_smuggle_values(text: str) -> None:
    with pytest.raises(SpecError, match="cannot be used under `secrets:`") as caught:
        load(REST + text)
    assert "hunter22" not in f"{caught.value}{caught.value.hint}{caught.value.excerpt}"


def test_a_value_that_stands_elsewhere_too_is_told() -> None:
    loaded = load(REST + "secrets: {A: hunter22}\nenvs: {B: hunter22}\n")
    assert loaded.warnings == (
        "the value of the secret A also stands outside of `secrets:`, where it is stored and shown",
    )


def test_fingerprints_tell_values_apart_and_depend_on_the_key() -> None:
    one = fingerprints({"A": "x", "B": "y", "C": "x"}, b"key")
    assert one["A"] == one["C"] != one["B"]
    assert all(len(value) == 16 and int(value, 16) >= 0 for value in one.values())
    assert fingerprints({"A": "x"}, b"other")["A"] != one["A"]


def test_private_lines_are_found_in_broken_yaml() -> None:
    assert private_lines("a: [\nsecrets:\n  A: 1\n# c\n  B: 2\nrun: x\n") == {1, 2, 3, 4}
    assert private_lines("run: x\n") == frozenset()


VALUES = st.text(st.characters(codec="utf-8", categories=("L", "N", "P", "Zs")), min_size=1, max_size=20)


@given(VALUES, st.sampled_from(["'{}'", "|\n    {}", '"{}"']), st.sampled_from(["", "  # note"]))
@example("'", "|\n    {}", "")
def test_no_value_survives(value: str, form: str, comment: str) -> None:
    secret = f"s3cr3t{value}"
    try:
        loaded = load(REST + f"secrets:\n  A: {form.format(secret)}{comment if 'n' not in form else ''}\n")
    except SpecError:
        return
    assert "s3cr3t" not in loaded.spec.source
    assert load(loaded.spec.source, dict(loaded.secrets)).spec == loaded.spec
