"""`service.load_balancer.api_keys` and the secrets that it names."""

from __future__ import annotations

import pytest

from skyserve.errors import SpecError
from skyserve.spec.load import LoadedService, load_service
from skyserve.spec.overrides import Overrides

GOOD = "0123456789abcdef"


def load(keys: str, more: str = "", **secrets: str) -> LoadedService:
    text = f"service:\n  load_balancer:\n    api_keys: {keys}\nresources: {{ports: 80}}\nrun: serve\n{more}"
    return load_service(text, fingerprint_key=b"k", overrides=Overrides(name="s", secrets=secrets))


def test_names_of_secrets_are_kept_and_values_are_not() -> None:
    loaded = load("[ONE, TWO]", "secrets: {ONE: null, TWO: null, HF: x}\n", ONE=GOOD, TWO="z" * 16)
    assert loaded.spec.load_balancer.api_keys == ("ONE", "TWO")
    assert loaded.warnings == ()
    assert GOOD not in repr(loaded)


def test_none_need_be_given() -> None:
    assert load("null").spec.load_balancer.api_keys == ()


def test_the_launch_does_not_depend_on_which_secrets_are_keys() -> None:
    one, both = load("[ONE]", ONE=GOOD, TWO=GOOD), load("[ONE, TWO]", ONE=GOOD, TWO=GOOD)
    assert one.spec.shares_launch_with(both.spec)


def test_a_short_key_is_warned_of_by_its_name() -> None:
    (warning,) = load("[ONE, TWO]", ONE=GOOD[:-1], TWO=GOOD).warnings
    assert "the API key ONE has less than 16 characters" in warning
    assert GOOD[:-1] not in warning


@pytest.mark.parametrize(
    ("keys", "more", "where", "message", "hint"),
    [
        ("[ONE, TWI]", "", "3:21", "'TWI', which is no secret", "did you mean TWO?"),
        ("[OTHER]", "", "3:16", "'OTHER', which is no secret", "add OTHER under `secrets:`"),
        ("[PLAIN]", "envs: {PLAIN: x}\n", "3:16", "'PLAIN', which is in `envs`", "move PLAIN to `secrets:`"),
        ("[ONE, ONE]", "", "3:21", "names 'ONE' twice", "keep one"),
        ("[]", "", "3:15", "is empty: nobody could ask", "let everybody in"),
        ("ONE", "", "3:15", "must be a list", ""),
        ("[null]", "", "3:16", "must be a name of letters", ""),
        ("[{ONE: TWO}]", "", "3:16", "must be a name of letters", ""),
        ("[BLANK]", "", "3:16", "is empty, or holds spaces", "a header cannot carry it"),
        ("[SPACED]", "", "3:16", "is empty, or holds spaces", "a header cannot carry it"),
        ("[FOREIGN]", "", "3:16", "is empty, or holds spaces", "a header cannot carry it"),
    ],
)
def test_what_cannot_be_a_key_is_told_at_its_place(keys: str, more: str, where: str, message: str, hint: str) -> None:
    values = {"ONE": GOOD, "TWO": GOOD, "BLANK": "", "SPACED": f"{GOOD} {GOOD}\n", "FOREIGN": f"{GOOD}é"}
    with pytest.raises(SpecError) as caught:
        load(keys, more, **values)
    assert caught.value.where == f"service.yaml:{where}"
    assert message in caught.value.message
    assert hint in (caught.value.hint or "")
    assert GOOD not in str(caught.value) + (caught.value.hint or "") + (caught.value.excerpt or "")


def test_a_key_without_a_value_is_told_once() -> None:
    with pytest.raises(SpecError) as caught:
        load("[ONE]", "secrets:\n  ONE:\n")
    assert "has no value" in caught.value.message
    assert "also" not in (caught.value.hint or "")
