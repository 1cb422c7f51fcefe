"""What all tests share: the bed of real hosts, for tests that are marked with it, and SIGINT as a terminal has it."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest
from hypothesis import settings
from tests.bed.hosts import Bed
from tests.bed.private import obstacle, private_network

# How long an example takes says nothing on a machine that has other things to do.
settings.register_profile("patient", parent=settings(), deadline=None)
settings.load_profile("patient")


def pytest_configure() -> None:
    """What a shell starts in the background ignores SIGINT, and so would every command that a test interrupts."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs the bed where there can be none."""
    needy = [item for item in items if item.get_closest_marker("bed") is not None]
    reason = obstacle() if needy else None
    if reason is not None:
        for item in needy:
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture
def bed() -> Iterator[Bed]:
    """An empty bed, whose regions appear when they are first asked for. Mark the test with `bed` too.

    The test runs in a network of its own: whatever it starts can reach the hosts and itself, and nothing else.
    """
    with private_network(), Bed() as made:
        yield made
