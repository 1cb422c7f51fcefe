"""Which providers there are."""

from __future__ import annotations

import asyncio
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

import pytest

from skyserve.clock import Clock, SystemClock
from skyserve.config import Config
from skyserve.errors import ProviderUnavailable
from skyserve.model.resources import ResourceChoice
from skyserve.providers.base import NotConfigured, Provider
from skyserve.providers.fake import FakeProvider
from skyserve.providers.registry import ENTRY_POINT_GROUP, Roster, title


def make_cumulus(config: Config, clock: Clock) -> Provider:
    return FakeProvider(clock, name="cumulus")


def needs_credentials(config: Config, clock: Clock) -> Provider:
    raise RuntimeError("no credentials file")


def needs_an_account(config: Config, clock: Clock) -> Provider:
    key = config.home / "key"
    if not key.exists():
        raise NotConfigured("Stratus", f"there is no {key}", "stratus login")
    return FakeProvider(clock, name="stratus")


def load(tmp_path: Path, **plugins: str) -> dict[str, Provider]:
    return dict(roster(tmp_path, **plugins).providers)


def roster(tmp_path: Path, **plugins: str) -> Roster:
    """What is known where this machine and these plugins are installed."""
    points = [EntryPoint(name, value, ENTRY_POINT_GROUP) for name, value in plugins.items()]
    [local] = [point for point in entry_points(group=ENTRY_POINT_GROUP) if point.name == "local"]
    return Roster(Config(home=tmp_path), SystemClock(), plugins=[local, *points])


def test_this_machine_is_always_there(tmp_path: Path) -> None:
    assert "local" in Roster(Config(home=tmp_path), SystemClock()).providers


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


def test_one_without_an_account_says_what_it_lacks_and_is_there_once_it_has_it(tmp_path: Path) -> None:
    known = roster(tmp_path, stratus=f"{__name__}:needs_an_account")
    assert known.names == ("local", "stratus")
    assert set(known.providers) == {"local"}
    assert (known.absent["stratus"].title, known.absent["stratus"].hint) == ("Stratus", "stratus login")
    providers = known.providers
    assert known.look_again() == ()
    (tmp_path / "key").touch()
    assert known.look_again() == ("stratus",)
    assert providers["stratus"].title == "Stratus"
    assert not known.absent


def test_a_provider_is_called_what_its_module_says() -> None:
    assert title("local") == "Local"
    assert title("unheard-of") == "unheard-of"
