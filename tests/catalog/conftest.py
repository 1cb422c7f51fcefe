"""Where gathered price lists lie, for tests that compare with them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def price_lists() -> Path:
    """The directory of gathered price lists: beside the checkout, or where SKYSERVE_TEST_SHARED says."""
    shared = os.environ.get("SKYSERVE_TEST_SHARED")
    folder = (Path(shared) if shared else REPOSITORY.parent / "shared") / "catalog"
    if not folder.is_dir():
        pytest.skip(f"NOT COMPARED: there are no price lists at {folder}; set SKYSERVE_TEST_SHARED to their parent")
    return folder
