"""RunPod against a fake of its APIs: pods as machines, spot pods that are taken back, stock, and what refusals mean."""

from __future__ import annotations

import asyncio
import json
import shlex
import subprocess
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest
from tests.bed.core import CloudCore, Fault
from tests.bed.json_server import Call, Refuse
from tests.bed.runpod_fake import RunPodFake, adapter
from tests.providers.rest_rig import PassingClock, config_at, offering, order_for

from skyserve.catalog import snapshot
from skyserve.errors import (
    CapacityUnavailable,
    CredentialsRejected,
    OrderRejected,
    ProviderError,
    ProviderUnavailable,
    QuotaExceeded,
    Throttled,
)
from skyserve.model.offering import Offering
from skyserve.model.resources import Accelerator
from skyserve.providers.base import Feature, NotConfigured
from skyserve.providers.identity import installation
from skyserve.providers.runpod import DEFAULT_IMAGE, GPU_IDS, RunPodCloud, account, provider
from skyserve.providers.vm_cloud import VmOrder, VmState

CENTER = "RO/EU-RO-1"


def pod_offering(where: str = CENTER, accelerator: str = "L4", count: float = 1, *, spot: bool = False) -> Offering:
    kind = f"{count:g}x_{accelerator}_SECURE"
    return offering("runpod", kind, where, spot=spot, accelerator=Accelerator(accelerator, count))


class Rig:
    """A fake, and an installation that uses it."""

    def __init__(self, home: Path) -> None:
        self.clock = PassingClock()
        self.core = CloudCore(now=self.clock.now)
        self.fake = RunPodFake(self.core, renumbered=20000)
        self.fake.start()
        self.config = config_at(home)
        self.cloud = self.other_controller()

    def other_controller(self) -> RunPodCloud:
        """The same installation after a restart: nothing is remembered."""
        return adapter(self.fake, self.config, self.clock)

    def order(self, token: str = "chat-1a2b3c4d-1-1", *, spot: bool = False, **more) -> VmOrder:
        wanted = more.pop("offering", None) or pod_offering(spot=spot)
        return order_for(self.config, wanted, token, **more)

    def run(self, call: Awaitable):
        async def go():
            return await call

        return asyncio.run(go())

    def create(self, *args, **more):
        return self.run(self.cloud.create(self.order(*args, **more)))

    def machines(self):
        return self.run(self.cloud.machines())


@pytest.fixture
def rig(tmp_path) -> Iterator[Rig]:
    made = Rig(tmp_path)
    yield made
    made.fake.stop()
    made.core.close()


def test_a_pod_from_launch_to_end(rig):
    rig.core.boot_s = 20
    order = rig.order()
    made = rig.create()
    assert (made.service, made.token, made.state) == ("chat-1a2b3c4d", "chat-1a2b3c4d-1-1", VmState.BOOTING)
    machine = rig.core.machines[made.id]
    assert machine.name == f"{installation(rig.config)}.chat-1a2b3c4d.chat-1a2b3c4d-1-1"
    assert shlex.split(machine.user_data, comments=True)[-1] == order.user_data, "quotes and newlines come through"
    assert [(vm.id, vm.state, vm.host) for vm in rig.machines()] == [(made.id, VmState.BOOTING, None)]
    rig.clock.at += 21
    (running,) = rig.machines()
    assert (running.state, running.host, running.ssh_port) == (VmState.RUNNING, machine.ip, 20022)
    assert running.port_of == {22: 20022, 8080: 28080}
    rig.run(rig.cloud.delete(made.id))
    assert rig.machines() == []
    rig.run(rig.cloud.delete(made.id))
    rig.run(rig.cloud.delete("never/was"))
    rig.run(rig.cloud.release("chat-1a2b3c4d"))


def test_what_is_ordered(rig):
    made = rig.create(ports=(22, 8080, 9000))
    assert rig.fake.orders[made.id] == {
        "name": rig.core.machines[made.id].name,
        "imageName": DEFAULT_IMAGE,
        "dockerArgs": json.dumps(
            {"entrypoint": ["bash", "-c"], "cmd": ['bash -c "$0"; sleep infinity & wait', rig.order().user_data]}
        ),
        "ports": "22/tcp,8080/tcp,9000/tcp",
        "gpuTypeId": "NVIDIA L4",
        "gpuCount": 1,
        "cloudType": "SECURE",
        "supportPublicIp": True,
        "containerDiskInGb": 100,
        "volumeInGb": 0,
        "dataCenterId": "EU-RO-1",
    }


def test_the_command_runs_the_user_data_and_stays(rig, tmp_path):
    made = rig.create()
    stub = tmp_path / "sleep"
    stub.write_text('#!/bin/bash\necho "sleeps $1"\n')
    stub.chmod(0o700)
    env = {"PATH": f"{tmp_path}:/usr/bin:/bin", "HOME": "/nowhere"}
    command = ["bash", "-c", rig.core.machines[made.id].user_data]
    out = subprocess.run(command, env=env, capture_output=True, text=True, check=True, timeout=10)
    assert out.stdout == "hello /nowhere\nsleeps infinity\n"


def test_image_disk_and_country(rig):
    made = rig.create(
        offering=pod_offering("US", "H100-SXM", 2), image_id="docker:vllm/vllm-openai:v0.8", disk_size=300
    )
    order = rig.fake.orders[made.id]
    assert (order["imageName"], order["containerDiskInGb"]) == ("vllm/vllm-openai:v0.8", 300)
    assert (order["gpuTypeId"], order["gpuCount"]) == ("NVIDIA H100 80GB HBM3", 2)
    assert order["countryCode"] == "US"
    assert "dataCenterId" not in order


def test_nothing_of_the_users_goes_into_the_environment(rig):
    made = rig.create(envs={"MODEL": "big"}, secrets={"TOKEN": "private"})
    told = json.dumps([call.body for call in rig.fake.asked])
    assert "private" not in told
    assert "env" not in rig.fake.orders[made.id]


def test_only_what_carries_our_name_is_ours(rig, tmp_path):
    mine = rig.create()
    stranger = adapter(rig.fake, config_at(tmp_path / "other"), rig.clock)
    assert rig.run(stranger.machines()) == []
    for name in ("my-pod", installation(rig.config), f"{installation(rig.config)}x.a.b"):
        made = rig.create(f"chat-1a2b3c4d-{len(name)}-1")
        rig.core.machines[made.id].name = name
    assert [vm.id for vm in rig.machines()] == [mine.id]


def test_the_same_token_launches_once(rig):
    first = rig.create()
    assert rig.create().id == first.id
    rig.cloud = rig.other_controller()
    assert rig.create().id == first.id

    async def at_once():
        orders = [rig.order(f"chat-1a2b3c4d-{number}-1") for number in (2, 2, 2, 3)]
        return await asyncio.gather(*map(rig.cloud.create, orders))

    assert len({vm.id for vm in asyncio.run(at_once())}) == 2
    assert len(rig.core.machines) == 3


def test_an_answer_that_was_lost_costs_no_second_pod(rig):
    answer = rig.fake.answer

    def lose(call: Call) -> tuple[int, object]:
        told = answer(call)
        if call.path == "/graphql":
            rig.fake.answer = answer
            raise Refuse(504, None)
        return told

    rig.fake.answer = lose
    with pytest.raises(ProviderUnavailable):
        rig.create()
    rig.cloud = rig.other_controller()
    assert rig.create().id in rig.core.machines
    assert len(rig.core.machines) == 1


def test_a_spot_pod_is_bid_for_at_the_markets_price(rig):
    rig.fake.lowest_bid = 0.37
    made = rig.create(spot=True)
    assert rig.core.machines[made.id].spot
    assert rig.fake.orders[made.id]["bidPerGpu"] == 0.37
    assert rig.core.machines[made.id].name.endswith(".chat-1a2b3c4d-1-1.spot")
    (vm,) = rig.machines()
    assert (vm.token, vm.service) == ("chat-1a2b3c4d-1-1", "chat-1a2b3c4d")


def test_a_market_that_has_become_much_dearer_is_left_alone(rig):
    rig.fake.lowest_bid = 2.1  # the catalog says 1.0
    with pytest.raises(CapacityUnavailable, match=r"asks \$2.1 .* says \$1$") as caught:
        rig.create(spot=True)
    assert caught.value.hint == "sky catalog refresh"
    assert rig.core.machines == {}


def test_a_spot_pod_that_is_taken_back_is_listed_until_it_is_deleted(rig):
    made = rig.create(spot=True)
    rig.core.interrupt(made.id, notice_s=5)
    rig.clock.at += 6
    (vm,) = rig.machines()
    assert (vm.state, vm.host) == (VmState.PREEMPTED, None)
    assert "took the spot pod back" in vm.detail
    rig.run(rig.cloud.delete(made.id))
    assert rig.machines() == []


@pytest.mark.parametrize(
    ("status", "state"),
    [
        ("PROVISIONING", VmState.BOOTING),
        ("STARTING", VmState.BOOTING),
        ("RUNNING", VmState.RUNNING),
        ("EXITED", VmState.PREEMPTED),
        ("ERROR", VmState.PREEMPTED),
        ("SOMETHING_NEW", VmState.BOOTING),
    ],
)
def test_statuses(rig, status, state):
    made = rig.create()
    rig.core.machines[made.id].tags["status"] = status
    (vm,) = rig.machines()
    assert vm.state is state
    assert bool(vm.detail) == (state is VmState.PREEMPTED)
    assert "spot" not in vm.detail
    rig.core.machines[made.id].tags["status"] = "TERMINATED"
    assert rig.machines() == []


def test_a_pod_runs_once_its_address_is_known(rig):
    rig.core.boot_s = 20
    made = rig.create()
    rig.core.machines[made.id].tags["status"] = "RUNNING"
    (vm,) = rig.machines()
    assert (vm.state, vm.host, vm.port_of) == (VmState.BOOTING, None, {})


@pytest.mark.parametrize("bid", [None, 0.5])
def test_nothing_to_bid_for_is_no_capacity(rig, bid):
    rig.fake.lowest_bid = bid
    if bid is not None:
        rig.core.capacity = {"*/spot": 0}
    with pytest.raises(CapacityUnavailable):
        rig.create(spot=True)
    rig.create("chat-1a2b3c4d-2-1")


@pytest.mark.parametrize(
    ("message", "error"),
    [
        ("There are no longer any instances available with enough disk space.", CapacityUnavailable),
        ("This machine does not have the resources to deploy your pod.", CapacityUnavailable),
        ("There are no instances currently available", CapacityUnavailable),
        ("Your bid is lower than the minimum", CapacityUnavailable),
        ("Insufficient funds", QuotaExceeded),
        ("You have reached your spend limit", QuotaExceeded),
        ("Unauthorized", CredentialsRejected),
        ("Something went wrong. Please try again later or contact support.", ProviderUnavailable),
        ("a sentence that nobody has seen before", ProviderUnavailable),
    ],
)  # fmt: skip
def test_what_a_refused_launch_means(rig, message, error):
    rig.core.faults.append(Fault("create", "capacity", detail=message))
    with pytest.raises(error) as caught:
        rig.create()
    assert type(caught.value) is error
    assert message in caught.value.message
    assert rig.core.machines == {}


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        ("capacity", CapacityUnavailable),
        ("quota", QuotaExceeded),
        ("rejected", OrderRejected),
        ("credentials", CredentialsRejected),
        ("unavailable", ProviderUnavailable),
        ("throttled", Throttled),
    ],
)
def test_each_refusal_has_its_reaction(rig, kind, error):
    rig.core.faults.append(Fault("create", kind))
    with pytest.raises(error):
        rig.create()
    rig.create()


def test_a_used_up_balance_is_the_accounts(rig):
    rig.core.quota = 0
    with pytest.raises(QuotaExceeded) as caught:
        rig.create()
    assert caught.value.location == "runpod"
    assert "balance" in (caught.value.hint or "")


def test_a_field_that_is_not_known_is_our_fault(rig):
    rig.fake.stock["NVIDIA L4"] = ("EU-RO-1",)
    with pytest.raises(OrderRejected):
        rig.create(disk_size=1.5)


@pytest.mark.parametrize(
    "body", [{"error": "no capacity left"}, {"detail": "no capacity there"}, {"message": "out of stock"}]
)
def test_no_capacity_may_come_as_a_status_too(rig, body):
    answer = rig.fake.answer

    def refuse(call: Call) -> tuple[int, object]:
        if call.path == "/graphql":
            raise Refuse(400, body)
        return answer(call)

    rig.fake.answer = refuse
    with pytest.raises(CapacityUnavailable):
        rig.create()


@pytest.mark.parametrize(
    "wanted",
    [
        offering("runpod", "cpu3c-2-4", CENTER),
        pod_offering(accelerator="T4"),
        pod_offering(count=0.5),
        pod_offering('X" } } }'),
    ],
)
def test_what_is_no_pod_is_not_ordered(rig, wanted):
    with pytest.raises(OrderRejected):
        rig.create(offering=wanted)
    assert all(call.path != "/graphql" for call in rig.fake.asked)


@pytest.mark.parametrize("kind", ["unavailable", "throttled", "credentials"])
def test_a_listing_is_whole_or_none(rig, kind):
    rig.create()
    rig.core.faults.append(Fault("list", kind))
    with pytest.raises(ProviderError):
        rig.machines()
    assert len(rig.machines()) == 1


def test_a_refused_end_is_told(rig):
    made = rig.create()
    rig.core.faults.append(Fault("delete", "unavailable"))
    with pytest.raises(ProviderUnavailable):
        rig.run(rig.cloud.delete(made.id))
    assert len(rig.machines()) == 1


ALL = [
    pod_offering("RO/EU-RO-1"),
    pod_offering("US/US-TX-3"),
    pod_offering("US/US-TX-3", spot=True),
    pod_offering("US/US-TX-3", "H100-SXM", 2),
]


def places(offerings) -> list[str]:
    return [one.pool for one in offerings]


def test_what_is_in_stock_now_is_offered(rig):
    extra = [pod_offering(accelerator="T4"), pod_offering("US/US-GA-1"), pod_offering("US/US-TX-3", "H100-SXM", 8)]
    rig.core.capacity = {"EU-RO-1/*": 0, "*/8x *": 0}
    assert places(rig.run(rig.cloud.narrow([*ALL, *extra]))) == places(ALL[1:])
    assert rig.fake.count("GET /v2/catalog/gpus") == 3, "once for each number of GPUs"
    rig.core.capacity = {}
    assert len(rig.run(rig.cloud.narrow(ALL))) == 3, "known for a few seconds"
    rig.clock.at += 11
    assert len(rig.run(rig.cloud.narrow(ALL))) == 4


def test_a_country_has_what_its_data_centres_have(rig):
    rig.fake.stock["NVIDIA L4"] = ("EU-RO-1", "US-CA-2")
    found = rig.run(rig.cloud.narrow([pod_offering("RO"), pod_offering("US"), pod_offering("CA")]))
    assert [one.location.region for one in found] == ["RO", "US"]


def test_what_is_sold_out_everywhere_is_waited_for(rig):
    rig.core.capacity = {"*": 0}
    assert places(rig.run(rig.cloud.narrow([*ALL, pod_offering(accelerator="T4")]))) == places(ALL)


@pytest.mark.parametrize("kind", ["unavailable", "throttled", "credentials"])
def test_without_an_answer_the_catalog_counts(rig, kind):
    rig.core.faults.append(Fault("stock", kind))
    assert places(rig.run(rig.cloud.narrow(ALL))) == places(ALL)


def test_check(rig):
    found = rig.run(rig.cloud.check())
    assert (found.usable, found.account) == (True, "me@example.com")
    rig.core.faults.append(Fault("check", "credentials"))
    assert not rig.run(rig.cloud.check()).usable
    rig.fake.key = "another"
    found = rig.run(rig.cloud.check())
    assert not found.usable
    assert found.hint


def test_what_it_cannot_do_is_said(rig):
    can = rig.cloud.capabilities
    assert can.spot
    assert not can.stops
    assert Feature.CONTAINER_IMAGE in can.delivers
    for lacking in set(Feature) - can.delivers:
        assert can.cannot[lacking.value]
    for call in (rig.cloud.stop, rig.cloud.start):
        with pytest.raises(OrderRejected, match="GPU"):
            rig.run(call("pod-1"))


def write(home: Path, content: str) -> Path:
    path = home / ".runpod/config.toml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return path


@pytest.mark.parametrize("content", ['api_key = "private"\n', '[default]\napikey = "private"\n'])
def test_the_key_is_found(tmp_path, content):
    found = account(config_at(tmp_path, RUNPOD_API_KEY="private0", RUNPOD_API_BASE_URL="http://127.0.0.1:9/"))
    assert (found.key, found.url, found.origin) == ("private0", "http://127.0.0.1:9", "the key in RUNPOD_API_KEY")
    path = write(tmp_path, content)
    found = account(config_at(tmp_path))
    assert (found.key, found.url, found.origin) == ("private", "https://api.runpod.io", f"the key in {path}")


@pytest.mark.parametrize(
    ("prepare", "reason"),
    [
        (lambda home: None, "there is no"),
        (lambda home: write(home, "[default]\nother = 1\n"), "has no `api_key`"),
        (lambda home: write(home, "api_key = \n"), "is not TOML"),
        (lambda home: (home / ".runpod/config.toml").mkdir(parents=True), "cannot be read"),
    ],
)
def test_without_a_key_it_is_not_configured(tmp_path, prepare: Callable[[Path], object], reason):
    prepare(tmp_path)
    with pytest.raises(NotConfigured, match=reason) as caught:
        provider(config_at(tmp_path), PassingClock())
    assert caught.value.title == "RunPod"
    assert "RUNPOD_API_KEY" in caught.value.hint


def test_the_provider(tmp_path):
    made = provider(config_at(tmp_path, RUNPOD_API_KEY="private"), PassingClock())
    assert (made.name, made.title) == ("runpod", "RunPod")


def test_everything_in_the_built_in_catalog_can_be_ordered(tmp_path):
    rows = [row for row in snapshot.current(tmp_path).rows() if row.cloud == "runpod"]
    assert rows
    assert {row.accelerator for row in rows} <= set(GPU_IDS)
    assert all(row.accelerator_count == int(row.accelerator_count) for row in rows)
