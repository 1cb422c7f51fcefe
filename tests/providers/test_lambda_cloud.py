"""Lambda Cloud against a fake of its API: tags, launches that happen once, the firewall, what each refusal means."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest
from tests.bed.core import CloudCore, Fault
from tests.bed.json_server import Call, Refuse
from tests.bed.lambda_fake import LambdaFake, adapter
from tests.providers.rest_rig import PassingClock, config_at, offering, order_for

from skyserve.catalog import snapshot
from skyserve.errors import (
    CapacityUnavailable,
    CredentialsRejected,
    OrderRejected,
    ProviderUnavailable,
    QuotaExceeded,
    Throttled,
)
from skyserve.model.offering import Offering
from skyserve.providers.base import Feature, NotConfigured
from skyserve.providers.lambda_cloud import LambdaCloud, account, provider
from skyserve.providers.rest import Account
from skyserve.providers.vm_cloud import VmOrder, VmState

LAUNCH = "POST /api/v1/instance-operations/launch"
RULESETS = "/api/v1/firewall-rulesets"


class Rig:
    """A fake, and an installation that uses it."""

    def __init__(self, home: Path) -> None:
        self.clock = PassingClock()
        self.core = CloudCore(now=self.clock.now)
        self.fake = LambdaFake(self.core, launch_every_s=10.0)
        self.fake.start()
        self.config = config_at(home)
        self.cloud = self.other_controller()

    def other_controller(self) -> LambdaCloud:
        """The same installation after a restart: nothing is remembered."""
        return adapter(self.fake, self.config, self.clock)

    def order(self, token: str = "chat-1a2b3c4d-1-1", where: str = "us-west-1", **more) -> VmOrder:
        kind = more.pop("instance_type", "gpu_1x_a10")
        return order_for(self.config, offering("lambda", kind, where), token, **more)

    def run(self, call: Awaitable):
        async def go():
            return await call

        return asyncio.run(go())

    def create(self, *args, **more):
        return self.run(self.cloud.create(self.order(*args, **more)))

    def rules(self) -> list[set[tuple[int, str]]]:
        """The rules of each ruleset there is."""
        return [
            {(rule["port_range"][0], rule["source_network"]) for rule in ruleset["rules"]}
            for ruleset in self.fake.rulesets.values()
        ]


@pytest.fixture
def rig(tmp_path) -> Iterator[Rig]:
    made = Rig(tmp_path)
    yield made
    made.fake.stop()
    made.core.close()


def test_a_machine_from_launch_to_end(rig):
    rig.core.boot_s = 60
    rig.core.shutdown_s = 30
    order = rig.order()
    made = rig.create()
    assert (made.service, made.token, made.state, made.host) == (
        "chat-1a2b3c4d",
        "chat-1a2b3c4d-1-1",
        VmState.BOOTING,
        None,
    )
    machine = rig.core.machines[made.id]
    assert (machine.zone, machine.machine_type, machine.name) == ("us-west-1", "gpu_1x_a10", order.name)
    assert machine.user_data == order.user_data
    assert rig.run(rig.cloud.machines()) == [made]
    rig.clock.at += 61
    (running,) = rig.run(rig.cloud.machines())
    assert (running.state, running.host, running.ssh_port) == (VmState.RUNNING, machine.ip, 22)
    rig.run(rig.cloud.delete(made.id))
    assert [vm.state for vm in rig.run(rig.cloud.machines())] == [VmState.STOPPING]
    rig.clock.at += 31
    assert rig.run(rig.cloud.machines()) == []
    rig.run(rig.cloud.delete(made.id))
    rig.run(rig.cloud.delete("never-was"))


def test_only_what_carries_our_tag_is_ours(rig, tmp_path):
    mine = rig.create()
    stranger = adapter(rig.fake, config_at(tmp_path / "other"), rig.clock)
    assert rig.run(stranger.machines()) == []
    rig.core.create(token=None, zone="us-east-1", machine_type="x", spot=False, user_data="", tags={
        "-key": "theirs", "-rulesets": "", "skyserve-installation": "sky-other", "skyserve-token": mine.token,
    })  # fmt: skip
    rig.core.create(
        token=None, zone="us-east-1", machine_type="x", spot=False, user_data="", tags={"-key": "k", "-rulesets": ""}
    )
    assert [vm.id for vm in rig.run(rig.cloud.machines())] == [mine.id]


def test_the_same_token_launches_once(rig):
    first = rig.create()
    assert rig.create().id == first.id
    rig.cloud = rig.other_controller()
    assert rig.create().id == first.id
    assert rig.fake.count(LAUNCH) == 1
    rig.clock.at += 11

    async def at_once():
        order = rig.order("chat-1a2b3c4d-2-1")
        return await asyncio.gather(*(rig.cloud.create(order) for _ in range(3)))

    assert len({vm.id for vm in asyncio.run(at_once())}) == 1
    assert len(rig.core.machines) == 2


def test_an_answer_that_was_lost_costs_no_second_machine(rig):
    answer = rig.fake.answer

    def lose(call: Call) -> tuple[int, object]:
        told = answer(call)
        if str(call) == LAUNCH:
            rig.fake.answer = answer
            raise Refuse(504, None)
        return told

    rig.fake.answer = lose
    with pytest.raises(ProviderUnavailable):
        rig.create()
    rig.cloud = rig.other_controller()
    assert rig.create().id in rig.core.machines
    assert len(rig.core.machines) == 1


class StandingClock(PassingClock):
    """Sleeping takes no time, so that launches come all at once."""

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)


def test_launches_keep_their_distance(rig):
    rig.create()
    rig.create("chat-1a2b3c4d-2-1")
    assert rig.clock.slept == [10.0]
    assert len(rig.core.machines) == 2


def test_who_would_wait_long_for_a_turn_is_told_when(rig):
    rig.clock = StandingClock()
    rig.fake.launch_every_s = 0.0
    account = Account("Lambda", f"{rig.fake.url}/api/v1", rig.fake.key, "", "")
    cloud = LambdaCloud(rig.config, rig.clock, account)

    async def at_once():
        orders = [rig.order(f"chat-1a2b3c4d-{number}-1") for number in (1, 2, 3)]
        return await asyncio.gather(*map(cloud.create, orders), return_exceptions=True)

    (late,) = (one for one in asyncio.run(at_once()) if isinstance(one, Throttled))
    assert late.retry_after_s == 22.0
    assert rig.clock.slept == [11.0]


def test_the_api_itself_says_that_it_is_too_much(rig):
    rig.core.faults.append(Fault("create", "throttled", retry_after_s=9))
    with pytest.raises(Throttled) as caught:
        rig.create()
    assert caught.value.retry_after_s == 9


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        ("capacity", CapacityUnavailable),
        ("quota", QuotaExceeded),
        ("credentials", CredentialsRejected),
        ("inactive", CredentialsRejected),
        ("rejected", OrderRejected),
        ("missing", OrderRejected),
        ("unavailable", ProviderUnavailable),
    ],
)
def test_each_refusal_has_its_reaction(rig, kind, error):
    rig.core.faults.append(Fault("create", kind, detail="so there"))
    with pytest.raises(error, match="so there") as caught:
        rig.create()
    assert type(caught.value) is error
    assert caught.value.hint
    assert rig.core.machines == {}
    rig.create()


def test_a_quota_is_the_accounts(rig):
    rig.core.quota = 0
    with pytest.raises(QuotaExceeded) as caught:
        rig.create()
    assert caught.value.location == "lambda"


def test_no_capacity_is_this_pools_alone(rig):
    rig.core.capacity = {"us-west-1/gpu_1x_a10/*": 0}
    with pytest.raises(CapacityUnavailable) as caught:
        rig.create()
    assert caught.value.location is None
    rig.create("chat-1a2b3c4d-2-1", "us-east-1")


@pytest.mark.parametrize("kind", ["unavailable", "throttled", "credentials"])
def test_a_listing_is_whole_or_none(rig, kind):
    rig.create()
    rig.core.faults.append(Fault("list", kind))
    with pytest.raises((ProviderUnavailable, Throttled, CredentialsRejected)):
        rig.run(rig.cloud.machines())
    assert len(rig.run(rig.cloud.machines())) == 1


@pytest.mark.parametrize(
    ("status", "state", "detail"),
    [
        ("booting", VmState.BOOTING, ""),
        ("active", VmState.RUNNING, ""),
        ("unhealthy", VmState.RUNNING, "Lambda says it is unhealthy"),
        ("terminating", VmState.STOPPING, ""),
        ("preempted", VmState.PREEMPTED, "Lambda says it is preempted"),
        ("migrating", VmState.BOOTING, ""),
    ],
)
def test_statuses(rig, status, state, detail):
    made = rig.create()
    rig.core.machines[made.id].tags["-status"] = status
    (vm,) = rig.run(rig.cloud.machines())
    assert (vm.state, vm.detail) == (state, detail)


def test_a_machine_without_a_trace(rig):
    made = rig.create()
    rig.core.vanish(made.id)
    assert rig.run(rig.cloud.machines()) == []


def test_labels_and_images(rig):
    made = rig.create(labels={"team": "search", "skyserve-token": "mine"}, image_id="lambda-stack-24-04")
    tags = rig.core.machines[made.id].tags
    assert tags["team"] == "search"
    assert tags["skyserve-token"] == "chat-1a2b3c4d-1-1", "ours win"
    assert bodies(rig)[0]["image"] == {"family": "lambda-stack-24-04"}
    rig.create("chat-1a2b3c4d-2-1", image_id="1c3b4a5d-0000-4000-8000-0123456789ab")
    assert bodies(rig)[1]["image"] == {"id": "1c3b4a5d-0000-4000-8000-0123456789ab"}
    rig.create("chat-1a2b3c4d-3-1")
    assert "image" not in bodies(rig)[2]
    with pytest.raises(OrderRejected):
        rig.create("chat-1a2b3c4d-4-1", labels={"Not A Tag": "x"})


def bodies(rig: Rig) -> list[dict]:
    return [call.body for call in rig.fake.asked if str(call) == LAUNCH]


def test_the_ssh_key_is_made_once_and_is_not_ours(rig):
    rig.create()
    rig.create("chat-1a2b3c4d-2-1")
    rig.clock.at += 11
    rig.cloud = rig.other_controller()
    rig.create("chat-1a2b3c4d-3-1")
    (name,) = rig.fake.ssh_keys
    assert name.startswith("sky-")
    assert [call.body for call in rig.fake.asked if str(call) == "POST /api/v1/ssh-keys"] == [{"name": name}]
    rig.fake.ssh_keys.clear()
    with pytest.raises(OrderRejected):
        rig.create("chat-1a2b3c4d-4-1")
    rig.create("chat-1a2b3c4d-4-1")


def test_ports_are_open_to_us_alone(rig):
    made = rig.create(ports=(22, 8080), allow_from=("203.0.113.7/32", "198.51.100.0/24", "2001:db8::/32"))
    sources = ("203.0.113.7/32", "198.51.100.0/24")
    assert rig.rules() == [{(port, source) for port in (22, 8080) for source in sources}]
    assert rig.core.machines[made.id].allowed >= {(8080, source) for source in sources}
    assert (8080, "0.0.0.0/0") not in rig.core.machines[made.id].allowed


def test_a_ruleset_serves_a_service_in_a_region(rig):
    rig.create()
    rig.create("chat-1a2b3c4d-2-1")
    rig.create("chat-1a2b3c4d-3-1", "us-east-1")
    rig.create("other-9-1-1", service="other-9")
    regions = sorted(ruleset["region"]["name"] for ruleset in rig.fake.rulesets.values())
    assert regions == ["us-east-1", "us-west-1", "us-west-1"]
    assert rig.fake.count(f"POST {RULESETS}") == 3


def test_other_ports_join_and_addresses_are_the_latest(rig):
    made = rig.create()
    rig.create("chat-1a2b3c4d-2-1", ports=(22, 9090), allow_from=("192.0.2.1/32",))
    assert rig.rules() == [{(port, "192.0.2.1/32") for port in (22, 8080, 9090)}]
    assert (8080, "192.0.2.1/32") in rig.core.machines[made.id].allowed
    rig.create("chat-1a2b3c4d-3-1", ports=(22, 8080), allow_from=("192.0.2.1/32",))
    assert sum(call.method == "PATCH" for call in rig.fake.asked) == 1


def test_without_an_ipv4_address_nothing_is_launched(rig):
    with pytest.raises(OrderRejected, match="IPv4") as caught:
        rig.create(allow_from=("2001:db8::/32",))
    assert "SKYSERVE_PUBLIC_ADDRESS" in (caught.value.hint or "")
    assert rig.core.machines == {}


def test_nothing_is_launched_where_the_firewall_does_not_hold(rig):
    with pytest.raises(OrderRejected, match="us-south-1"):
        rig.create(where="us-south-1")
    assert rig.fake.count(LAUNCH) == 0


def test_release_deletes_the_services_rulesets_and_no_others(rig):
    for number, region in ((1, "us-west-1"), (2, "us-east-1")):
        rig.run(rig.cloud.delete(rig.create(f"chat-1a2b3c4d-{number}-1", region).id))
    rig.create("other-9-1-1", service="other-9")
    rig.run(rig.cloud.release("chat-1a2b3c4d"))
    rig.run(rig.cloud.release("chat-1a2b3c4d"))
    assert len(rig.fake.rulesets) == 1


def test_release_waits_for_the_last_instance_to_let_go(rig):
    rig.core.shutdown_s = 12
    rig.run(rig.cloud.delete(rig.create().id))
    rig.run(rig.cloud.release("chat-1a2b3c4d"))
    assert rig.fake.rulesets == {}
    rig.create("chat-1a2b3c4d-2-1")
    with pytest.raises(ProviderUnavailable, match="in use"):
        rig.run(rig.cloud.release("chat-1a2b3c4d"))


def kinds(offerings) -> list[tuple[str, str]]:
    return [(one.instance_type, one.location.region) for one in offerings]


def offered(*places: tuple[str, str]) -> list[Offering]:
    return [offering("lambda", kind, region) for kind, region in places]


ALL = offered(("gpu_1x_a10", "us-east-1"), ("gpu_1x_a10", "us-west-1"), ("gpu_8x_h100_sxm5", "us-west-1"))


def test_what_is_in_stock_now_is_offered(rig):
    extra = offered(("gpu_1x_a10", "us-south-1"), ("gpu_1x_gone", "us-east-1"))
    rig.core.capacity = {"us-east-1/*": 0}
    found = rig.run(rig.cloud.narrow([*ALL, *extra]))
    assert kinds(found) == [("gpu_1x_a10", "us-west-1"), ("gpu_8x_h100_sxm5", "us-west-1")]
    rig.core.capacity = {}
    assert len(rig.run(rig.cloud.narrow(ALL))) == 2, "known for a few seconds"
    rig.clock.at += 11
    assert len(rig.run(rig.cloud.narrow(ALL))) == 3
    assert rig.fake.count("GET /api/v1/instance-types") == 2


def test_what_is_sold_out_everywhere_is_waited_for(rig):
    rig.core.capacity = {"*": 0}
    extra = offered(("gpu_1x_gone", "us-east-1"))
    assert kinds(rig.run(rig.cloud.narrow([*ALL, *extra]))) == kinds(ALL)


@pytest.mark.parametrize("kind", ["unavailable", "throttled", "credentials"])
def test_without_an_answer_the_catalog_counts(rig, kind):
    rig.core.faults.append(Fault("stock", kind))
    assert kinds(rig.run(rig.cloud.narrow(ALL))) == kinds(ALL)


def test_check(rig):
    found = rig.run(rig.cloud.check())
    assert (found.usable, found.account) == (True, "the fake's key")
    rig.fake.key = "another"
    found = rig.run(rig.cloud.check())
    assert not found.usable
    assert "invalid" in found.reason
    assert found.hint


def test_what_it_cannot_do_is_said(rig):
    can = rig.cloud.capabilities
    assert not can.spot
    assert not can.stops
    for lacking in set(Feature) - can.delivers:
        assert can.cannot[lacking.value]
    assert can.cannot["spot"]
    for call in (rig.cloud.stop, rig.cloud.start):
        with pytest.raises(OrderRejected, match="terminated"):
            rig.run(call("i-1"))


KEY_FILE = ".lambda_cloud/lambda_keys"


def write(home: Path, content: str) -> Path:
    path = home / KEY_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return path


def test_the_key_is_found(tmp_path):
    found = account(config_at(tmp_path, LAMBDA_API_KEY="private", LAMBDA_CLOUD_BASE_URL="http://127.0.0.1:9/"))
    assert (found.key, found.url, found.origin) == ("private", "http://127.0.0.1:9/api/v1", "the key in LAMBDA_API_KEY")
    assert "private" not in repr(found)
    path = write(tmp_path, "# keys\napi_key = private2\n")
    found = account(config_at(tmp_path))
    assert (found.key, found.url) == ("private2", "https://cloud.lambda.ai/api/v1")
    assert found.origin == f"the key in {path}"


@pytest.mark.parametrize(
    ("prepare", "reason"),
    [
        (lambda home: None, "there is no"),
        (lambda home: write(home, "key: x\n"), "has no line `api_key = KEY`"),
        (lambda home: (home / KEY_FILE).mkdir(parents=True), "cannot be read"),
    ],
)
def test_without_a_key_it_is_not_configured(tmp_path, prepare: Callable[[Path], object], reason):
    prepare(tmp_path)
    with pytest.raises(NotConfigured, match=reason) as caught:
        provider(config_at(tmp_path), PassingClock())
    assert caught.value.title == "Lambda"
    assert "lambda_keys" in caught.value.hint


def test_the_provider(tmp_path):
    made = provider(config_at(tmp_path, LAMBDA_API_KEY="private"), PassingClock())
    assert (made.name, made.title) == ("lambda", "Lambda")


def test_the_catalog_speaks_of_regions_and_types_as_the_api_does(tmp_path):
    table = snapshot.current(tmp_path)
    rows = [row for row in table.rows() if row.cloud == "lambda"]
    assert rows
    assert all(row.zone is None and row.spot_price_per_hour is None for row in rows)
