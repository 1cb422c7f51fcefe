"""One spelling for every accelerator."""

from __future__ import annotations

import pytest

from skyserve.model import accelerators


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("A10g", "A10G"),
        ("l4", "L4"),
        (" h100 ", "H100"),
        ("T4G", "T4g"),
        ("A100-40GB", "A100"),
        ("H100-80GB", "H100"),
        ("A6000", "RTXA6000"),
        ("RTXPRO6000", "RTX-PRO-6000"),
        ("Cerebras", "Cerebras"),
    ],
)
def test_spellings(written: str, name: str) -> None:
    assert accelerators.canonical(written) == name


def test_canonical_names_stay_and_have_a_memory() -> None:
    for name in accelerators.NAMES:
        assert accelerators.canonical(name) == accelerators.canonical(name.lower()) == name
        assert accelerators.memory_gib(name) or name.startswith("tpu-")
    assert accelerators.memory_gib("Cerebras") is None


@pytest.mark.parametrize(
    ("written", "first"), [("A100-80", "A100-80GB"), ("H10", "H100"), ("L40X", "L40"), ("a10gg", "A10G")]
)
def test_nearest_names(written: str, first: str) -> None:
    assert accelerators.nearest(written)[0] == first


def test_nothing_is_near_to_nonsense() -> None:
    assert accelerators.nearest("?") == ()
    assert accelerators.nearest("H10", ["H100", "T4"]) == ("H100",)
