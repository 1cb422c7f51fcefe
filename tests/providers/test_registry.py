"""Which providers there are."""

from __future__ import annotations

import asyncio
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from skyserve.clock import Clock, SystemClock
from skyserve.config import Config
from skyserve.errors import ProviderUnavailable
from skyserve.model.resources import ResourceChoice
from skyserve.providers.base import Provider
from skyserve.providers.fake import FakeProvider
from skyserve.providers.registry import ENTRY_POINT_GROUP, load_providers


def make_cumulus(config: Config, clock: Clock) -> Provider:
    return FakeProvider(clock, name="cumulus")


def needs_credentials(config: Config, clock: Clock) -> Provider:
    raise RuntimeError("no credentials file")


def load(tmp_path: Path, **plugins: str) -> dict[str, Provider]:
    points = [EntryPoint(name, value, ENTRY_POINT_GROUP) for name, value in plugins.items()]
    return load_providers(Config(home=tmp_path), SystemClock(), plugins=points)


def test_this_machine_is_always_there(tmp_path: Path) -> None:
    assert "local" in load_providers(Config(home=tmp_path), SystemClock())


def test_plugins_add_providers_but_never_replace_this_machine(tmp_path: Path) -> None:
    providers = load(tmp_path, cumulus=f"{__name__}:make_cumulus", local=f"{__name__}:make_cumulus")
    assert {name: provider.name for name, provider in providers.items()} == {"local": "local", "cumulus": "cumulus"}


@pytest.mark.parametrize("target", ["nowhere_to_be_found:make", f"{__name__}:missing", f"{__name__}:needs_credentials"])
def test_a_plugin_that_cannot_be_loaded_says_why_and_stays_silent(tmp_path: Path, target: str) -> None:
    broken = load(tmp_path, broken=target)["broken"]
    result = asyncio.run(broken.check())
    assert not result.usable
    assert target in result.reason
    assert asyncio.run(broken.offerings(ResourceChoice())).offerings == ()
    with pytest.raises(ProviderUnavailable):
        asyncio.run(broken.instances())
