"""What every provider must do, whatever it stands for. A test module subclasses Contract and provides a world."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import tests.contract.provider_cases  # noqa: F401 - registers the cases
from tests.contract.playing import CASES, Case, Outcome
from tests.contract.world import Cannot, World


@pytest.mark.timeout(300)
class Contract:
    """Every case of `provider_cases` on the world of one provider. `title` heads its column in the table."""

    title: str

    @staticmethod
    def world(home: Path) -> AbstractContextManager[World]:
        """A world in an empty directory."""
        raise NotImplementedError

    @pytest.mark.parametrize("case", CASES, ids=str)
    def test_case(self, case: Case, outcomes: Mapping[str, Outcome]) -> None:
        outcome = outcomes[case.name]
        if isinstance(outcome, Cannot):
            pytest.skip(f"cannot: {outcome}")
        if outcome is not None:
            raise outcome
