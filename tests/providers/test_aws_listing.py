"""The AWS adapter after the launch: listing over regions, the life of a machine, credentials."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from tests.bed.aws_fake import AwsFake, pointed, way
from tests.bed.core import CloudCore, Fault
from tests.providers.aws_rig import EAST, EUROPE, WEST, Hands, Rig, configured, machine_id, offer

from skyserve.errors import (
    CapacityUnavailable,
    CredentialsRejected,
    OrderRejected,
    ProviderError,
    ProviderUnavailable,
    Throttled,
)
from skyserve.model.offering import Offering
from skyserve.providers import aws
from skyserve.providers.aws import AwsCloud
from skyserve.providers.aws.api import Api
from skyserve.providers.base import NotConfigured
from skyserve.providers.vm_cloud import VmState


@pytest.fixture(scope="module")
def fake() -> Iterator[AwsFake]:
    server = AwsFake(CloudCore())
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def api(fake: AwsFake) -> Api:
    return way(fake)


@pytest.fixture
def rig(fake: AwsFake, tmp_path: Path, api: Api) -> Rig:
    return Rig(fake, tmp_path, api)


# ---- listing


def test_machines_of_all_regions_and_only_ours(rig: Rig, tmp_path: Path) -> None:
    for index, region in enumerate((EAST, WEST, EUROPE)):
        rig.create(f"t{index}", offer(region=region))
    stranger = rig.another_installation(tmp_path / "elsewhere")
    stranger.create("foreign")
    assert set(rig.machines()) == {"t0", "t1", "t2"}
    assert set(stranger.machines()) == {"foreign"}


def test_a_listing_has_pages(rig: Rig) -> None:
    async def launch_many() -> None:
        await asyncio.gather(*(rig.cloud.create(rig.order(f"t{index}")) for index in range(5)))

    asyncio.run(launch_many())
    rig.fake.page = 2
    assert set(rig.machines()) == {f"t{index}" for index in range(5)}
    assert [call.region for call in rig.fake.asked("DescribeInstances")].count(EAST) == 3


def test_after_the_first_look_only_regions_in_use_are_asked(rig: Rig) -> None:
    assert rig.asked_regions() == {EAST, WEST, EUROPE}
    assert rig.asked_regions() == set()
    rig.create("t1", offer(region=WEST))
    assert rig.asked_regions() == {WEST}
    rig.cloud = rig.another_controller()
    assert rig.asked_regions() == {EAST, WEST, EUROPE}, "a restart looks everywhere"
    assert rig.asked_regions() == {WEST}
    rig.clock.at += 1000
    assert rig.asked_regions() == {EAST, WEST, EUROPE}, "and so it does now and then"


def test_a_silent_region_in_use_silences_all(rig: Rig) -> None:
    rig.machines()
    rig.create("t1", offer(region=WEST))
    rig.create("t2")
    rig.core.faults.append(Fault("list", "unavailable", where=WEST))
    with pytest.raises(ProviderUnavailable):
        rig.machines()
    rig.core.faults.append(Fault("list", "hang", where=WEST))
    rig.cloud = rig.another_controller(way(rig.fake, patience_s=0.3))
    with pytest.raises(ProviderUnavailable, match="ReadTimeoutError"):
        rig.machines()
    assert set(rig.machines()) == {"t1", "t2"}


def test_a_silent_region_that_was_never_used_does_not(rig: Rig) -> None:
    rig.machines()
    rig.create()
    rig.cloud = rig.another_controller()
    rig.core.faults.append(Fault("list", "unavailable", where=EUROPE))
    assert set(rig.machines()) == {"t1"}
    assert rig.asked_regions() == {EAST}
    rig.clock.at += 200
    assert rig.asked_regions() == {EAST, WEST, EUROPE}, "what was missed is made up for soon"


def test_until_every_region_was_seen_once_every_region_counts(rig: Rig) -> None:
    rig.create("t1", offer(region=EUROPE))
    (rig.config.home / "aws.json").write_text("{")
    rig.cloud = rig.another_controller()
    rig.core.faults.append(Fault("list", "unavailable", where=EUROPE))
    with pytest.raises(ProviderUnavailable):
        rig.machines()
    assert set(rig.machines()) == {"t1"}
    assert json.loads((rig.config.home / "aws.json").read_text())["regions"] == [EUROPE]


def test_a_region_is_written_down_before_anything_is_made_there(rig: Rig) -> None:
    rig.core.faults.append(Fault("create", "unavailable", where=f"{WEST}*"))
    with pytest.raises(ProviderUnavailable):
        rig.create(offering=offer(region=WEST))
    assert json.loads((rig.config.home / "aws.json").read_text())["regions"] == [WEST]


def test_a_home_that_cannot_be_written_launches_nothing(rig: Rig) -> None:
    (rig.config.home / "aws.json").mkdir()
    with pytest.raises(ProviderUnavailable, match="cannot be written"):
        rig.create()
    assert not rig.core.machines


def test_a_region_in_use_that_was_disabled_is_not_taken_for_empty(rig: Rig) -> None:
    rig.machines()
    rig.create("t1", offer(region=EUROPE))
    rig.fake.regions.remove(EUROPE)
    rig.clock.at += 7200
    with pytest.raises(ProviderError):
        rig.machines()
    with pytest.raises(ProviderUnavailable, match=r"has disabled eu-west-1") as caught:
        rig.machines()
    assert "aws.json" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("kind", "error"),
    [("throttled", Throttled), ("credentials", CredentialsRejected), ("rejected", ProviderUnavailable)],
)
def test_a_listing_that_fails(rig: Rig, kind: str, error: type[ProviderError]) -> None:
    rig.create()
    rig.core.faults.append(Fault("list", kind, where=EAST))
    with pytest.raises(error):
        rig.machines()
    assert set(rig.machines()) == {"t1"}


# ---- the life of a machine


def test_a_deleted_machine_is_stopping_and_then_absent(rig: Rig) -> None:
    rig.core.shutdown_s = 10
    launched = rig.create()
    for _ in range(2):
        asyncio.run(rig.cloud.delete(launched.id))
    assert rig.machines()["t1"].state is VmState.STOPPING
    rig.clock.at += 10
    assert rig.machines() == {}
    asyncio.run(rig.cloud.delete(launched.id))
    asyncio.run(rig.cloud.delete(f"{EAST}:i-0123456789abcdef0"))


def test_a_delete_that_fails_says_so(rig: Rig) -> None:
    launched = rig.create()
    rig.core.faults.append(Fault("delete", "throttled"))
    with pytest.raises(Throttled):
        asyncio.run(rig.cloud.delete(launched.id))
    assert rig.machines()["t1"].state is VmState.RUNNING


def test_a_spot_machine_that_is_taken_back_stays_listed_until_it_is_deleted(rig: Rig) -> None:
    launched = rig.create(offering=offer(spot=True))
    rig.core.interrupt(machine_id(launched))
    assert rig.machines()["t1"].state is VmState.RUNNING
    rig.clock.at += 120
    for _ in range(2):
        machine = rig.machines()["t1"]
        assert machine.state is VmState.PREEMPTED
        assert "Spot instance termination" in machine.detail
    rig.cloud = rig.another_controller()
    assert rig.machines()["t1"].state is VmState.PREEMPTED
    asyncio.run(rig.cloud.delete(launched.id))
    assert rig.machines() == {}
    assert rig.machines() == {}


def test_a_machine_that_vanished_is_absent(rig: Rig) -> None:
    rig.core.vanish(machine_id(rig.create()))
    assert rig.machines() == {}


def test_stop_and_start(rig: Rig) -> None:
    launched = rig.create()
    before = rig.machines()["t1"].host
    rig.core.shutdown_s = 5
    asyncio.run(rig.cloud.stop(launched.id))
    assert rig.machines()["t1"].state is VmState.STOPPING
    rig.clock.at += 5
    stopped = rig.machines()["t1"]
    assert (stopped.state, stopped.host) == (VmState.STOPPED, None)
    rig.core.capacity = {"*": 0}
    with pytest.raises(CapacityUnavailable):
        asyncio.run(rig.cloud.start(launched.id))
    rig.core.capacity.clear()
    asyncio.run(rig.cloud.start(launched.id))
    running = rig.machines()["t1"]
    assert running.state is VmState.RUNNING
    assert running.host not in (None, before)


def test_a_spot_machine_cannot_be_stopped(rig: Rig) -> None:
    launched = rig.create(offering=offer(spot=True))
    with pytest.raises(OrderRejected, match="UnsupportedOperation"):
        asyncio.run(rig.cloud.stop(launched.id))


def test_the_notice_is_understood(rig: Rig) -> None:
    launched = rig.create(offering=offer(spot=True))
    notice = AwsCloud.notice
    assert notice is not None
    assert notice.token_url is not None

    def ask(method: str, url: str, headers: object) -> tuple[int, bytes]:
        path = url.removeprefix("http://169.254.169.254")
        return rig.core.answer(machine_id(launched), method, path, headers)  # type: ignore[arg-type]

    assert ask("GET", notice.url, {})[0] == 401
    status, token = ask("PUT", notice.token_url, notice.token_headers)
    assert status == 200
    headers = {notice.token_header: token.decode()}
    assert ask("GET", notice.url, headers)[0] == 404
    rig.core.interrupt(machine_id(launched))
    status, body = ask("GET", notice.url, headers)
    assert status == 200
    match = re.search(notice.pattern, body.decode())
    assert match is not None
    assert match["at"] == "2023-11-14T22:15:20Z"
    assert notice.warning_s == 120


# ---- credentials


def test_check_says_who_would_be_charged(rig: Rig) -> None:
    result = asyncio.run(rig.cloud.check())
    assert result.usable
    assert result.account.startswith("123456789012 (")
    assert "secret" not in result.account


@pytest.mark.parametrize("kind", ["credentials", "unavailable", "throttled"])
def test_check_says_why_not(rig: Rig, kind: str) -> None:
    rig.core.faults.append(Fault("check", kind))
    result = asyncio.run(rig.cloud.check())
    assert not result.usable
    assert result.reason.startswith("AWS: ")
    assert result.hint


@pytest.mark.parametrize(
    ("env", "files", "reason"),
    [
        ({}, {}, "no credentials: neither AWS_ACCESS_KEY_ID nor a profile 'default'"),
        ({"AWS_ACCESS_KEY_ID": "AKIA"}, {}, "AWS_SECRET_ACCESS_KEY is not"),
        ({"AWS_PROFILE": "work"}, {".aws/credentials": "[default]\n"}, "a profile 'work'"),
        ({}, {".aws/credentials": "nonsense"}, "is not an INI file"),
    ],
)
def test_without_credentials_it_is_not_configured(
    tmp_path: Path, env: dict[str, str], files: dict[str, str], reason: str
) -> None:
    (tmp_path / ".aws").mkdir()
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(NotConfigured, match=reason) as caught:
        aws.provider(configured(tmp_path, **env), Hands())
    assert (caught.value.title, bool(caught.value.hint)) == ("AWS", True)


def test_without_boto3_it_is_not_configured(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "boto3", None)
    with pytest.raises(NotConfigured, match="no Python module boto3") as caught:
        aws.provider(pointed(rig.fake, rig.config), rig.clock)
    assert caught.value.hint == "pip install 'skyserve[aws]'"


def test_the_factory_makes_a_provider(rig: Rig) -> None:
    provider = aws.provider(pointed(rig.fake, rig.config), rig.clock)
    assert (provider.name, provider.title) == ("aws", "AWS")
    assert provider.capabilities.spot
    assert provider.capabilities.stops


@pytest.mark.parametrize("place", [".aws/credentials", "elsewhere/keys"])
def test_a_profile_is_used_and_its_region_asked_first(rig: Rig, place: str) -> None:
    home = rig.config.home
    keys = home / place
    keys.parent.mkdir(parents=True)
    keys.write_text("[work]\naws_access_key_id = AKIAPROFILE\naws_secret_access_key = secret\n")
    (home / ".aws").mkdir(exist_ok=True)
    (home / ".aws/config").write_text(f"[profile work]\nregion = {EUROPE}\n")
    env = {"AWS_PROFILE": "work", "AWS_SHARED_CREDENTIALS_FILE": str(keys), "AWS_ENDPOINT_URL": rig.fake.url}
    cloud = AwsCloud(configured(home, **env), rig.clock)
    assert asyncio.run(cloud.check()).usable
    [call] = rig.fake.asked("GetCallerIdentity")
    assert call.region == EUROPE


def test_narrowing_keeps_the_order(rig: Rig) -> None:
    offerings: Sequence[Offering] = [offer(region=region) for region in (WEST, EAST, EUROPE)]
    assert asyncio.run(rig.cloud.narrow(offerings)) == list(offerings)
