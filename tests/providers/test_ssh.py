"""The SSH provider on real machines: sharing hosts out, launching once, and hosts that fall silent."""

from __future__ import annotations

import asyncio
import json
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import pytest
from tests.providers.ssh_pool_rig import PoolRig, all_in, offering_for, pool_rig, until
from tests.providers.ssh_rig import PATIENCE_S, needs_machines

from skyserve.clock import SystemClock
from skyserve.config import Config
from skyserve.errors import CapacityUnavailable, CredentialsRejected, OrderRejected, ProviderUnavailable
from skyserve.model.evidence import InstanceState
from skyserve.model.resources import Quantity, ResourceChoice, Resources
from skyserve.providers import ssh
from skyserve.providers.base import Exit, NotConfigured
from skyserve.providers.environment import Site
from skyserve.providers.machine import Share
from skyserve.providers.remote_agent import Hosted, load_of, order_for
from skyserve.providers.ssh import SshProvider
from skyserve.providers.ssh.host import Note, claim_of, read_note, share_of

pytestmark = needs_machines
RUNNING = InstanceState.RUNNING


@pytest.fixture
def one(tmp_path: Path) -> Iterator[PoolRig]:
    with pool_rig(tmp_path, "gpu-1") as rig:
        yield rig


@pytest.fixture
def two(tmp_path: Path) -> Iterator[PoolRig]:
    with pool_rig(tmp_path, "gpu-1", "gpu-2") as rig:
        yield rig


class TestLaunching:
    def test_replicas_are_spread_over_the_hosts_and_a_token_starts_one(self, two: PoolRig) -> None:
        async def scenario(provider: SshProvider) -> None:
            orders = [two.order(replica_id=number) for number in (1, 2, 3)]
            await asyncio.gather(*(provider.launch(order) for order in (*orders, *orders)))
            listed = await until(provider, all_in(RUNNING, count=3))
            hosts = sorted(instance.id.rpartition("@")[2] for instance in listed)
            assert hosts in (["gpu-1", "gpu-1", "gpu-2"], ["gpu-1", "gpu-2", "gpu-2"])
            assert {instance.address for instance in listed} == {f"127.0.0.1:{order.port}" for order in orders}
            for instance in listed:
                await provider.terminate(instance.id)
            await until(provider, lambda listed: not listed)

        two.run(scenario)

    def test_another_controller_finds_it_and_the_token_on_whatever_host(self, two: PoolRig) -> None:
        async def scenario(provider: SshProvider) -> None:
            order = two.order()
            first = await provider.launch(order)
            await until(provider, all_in(RUNNING))
            await provider.close()
            another = two.provider()
            assert (await another.launch(order)).id == first.id
            assert len(await another.instances()) == 1

        two.run(scenario)

    def test_what_a_host_has_is_never_given_twice(self, one: PoolRig) -> None:
        async def scenario(provider: SshProvider) -> None:
            [host] = [provider.host(spec) for spec in provider.pools()["lab"]]
            assert host.note
            everything = Resources(cpus=Quantity(host.note.machine.vcpus))
            offering = await offering_for(provider, everything)
            await provider.launch(one.order(offering=offering))
            with pytest.raises(CapacityUnavailable, match=r"no host of pool lab has room: gpu-1: .*: chat/1 has "):
                await provider.launch(one.order(replica_id=2, offering=offering))

        one.run(scenario)

    def test_two_replicas_on_one_host_get_two_ports(self, one: PoolRig) -> None:
        async def scenario(provider: SshProvider) -> None:
            first = one.order("echo $PORT; exec sleep 1000")
            second = replace(first, replica_id=2, token="t2")
            await asyncio.gather(provider.launch(first), provider.launch(second))
            listed = await until(provider, all_in(RUNNING, count=2))
            assert len({instance.address for instance in listed}) == 2

        one.run(scenario)

    def test_files_secrets_and_variables_arrive_and_secrets_stay_off_the_disk(
        self, one: PoolRig, tmp_path: Path
    ) -> None:
        (tmp_path / "work").mkdir()
        (tmp_path / "work" / "model.txt").write_text("weights")
        order = one.order(
            'echo "$(cat model.txt) $TOKEN $MODE $SKYSERVE_REPLICA_ID"; exec sleep 1000',
            workdir=str(tmp_path / "work"),
            envs={"MODE": "fast"},
            secrets={"TOKEN": "hf_s3cret"},
        )

        async def scenario(provider: SshProvider) -> None:
            launched = await provider.launch(order)
            await until(provider, all_in(RUNNING))
            seen = b""
            async for data in provider.logs(launched.id, follow=True, tail=None):
                seen += data
                if b"\n" in seen:
                    break
            assert seen == b"weights hf_s3cret fast 1\n"

        one.run(scenario)
        for place in (one.config.home, one.machines["gpu-1"].root):
            files = [path for path in place.rglob("*") if stat.S_ISREG(path.lstat().st_mode) and path.name != "log"]
            assert not [path for path in files if "hf_s3cret" in path.read_text(errors="replace")]

    def test_a_script_runs_beside_a_replica(self, one: PoolRig) -> None:
        async def scenario(provider: SshProvider) -> None:
            launched = await provider.launch(one.order(envs={"MODE": "fast"}))
            await until(provider, all_in(RUNNING))
            pieces = [piece async for piece in provider.execute(launched.id, "echo $MODE $MORE; exit 3", {"MORE": "x"})]
            assert b"".join(piece for piece in pieces if isinstance(piece, bytes)) == b"fast x\n"
            assert pieces[-1] == Exit(3)
            with pytest.raises(OrderRejected):
                async for _ in provider.execute("t9@lab@gpu-1", "true", {}):
                    pass

        one.run(scenario)

    def test_an_application_that_exits_is_told_with_its_last_words(self, one: PoolRig) -> None:
        async def scenario(provider: SshProvider) -> None:
            await provider.launch(one.order("echo out of memory; exit 3"))
            [instance] = await until(provider, all_in(InstanceState.EXITED))
            assert (instance.exit_code, instance.failed_phase) == (3, "run")
            assert "out of memory" in instance.detail
            await provider.terminate(instance.id)
            await until(provider, lambda listed: not listed)
            await provider.terminate(instance.id)
            await provider.terminate("t9@lab@nowhere")
            kept = b"".join([data async for data in provider.logs(instance.id, follow=False, tail=1)])
            assert kept
            await provider.release("chat-u1")
            assert not [data async for data in provider.logs(instance.id, follow=False, tail=1)]

        one.run(scenario)


class TestSilence:
    def test_all_who_wait_for_a_host_hear_of_it_at_once(self, one: PoolRig) -> None:
        async def scenario(provider: SshProvider) -> None:
            [host] = [provider.host(spec) for spec in provider.pools()["lab"]]
            waiting = [asyncio.create_task(host.heard()) for _ in range(3)]
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            await asyncio.sleep(0)
            assert all(task.done() for task in waiting)

        one.run(scenario)

    def test_a_silent_host_keeps_its_replicas_and_hides_no_others(self, two: PoolRig) -> None:
        async def scenario(provider: SshProvider) -> None:
            await asyncio.gather(*(provider.launch(two.order(replica_id=number)) for number in (1, 2)))
            before = await until(provider, all_in(RUNNING, count=2))
            lost = next(instance for instance in before if instance.id.endswith("gpu-1"))
            two.machines["gpu-1"].stop()
            [host] = [provider.host(spec) for spec in provider.pools()["lab"] if spec.name == "gpu-1"]
            await _until_true(lambda: host.silent is not None)
            assert list(await provider.instances()) == list(before)
            with pytest.raises(ProviderUnavailable):
                await provider.terminate(lost.id)
            other = next(instance for instance in before if instance.id.endswith("gpu-2"))
            await provider.terminate(other.id)
            assert [instance.token for instance in await until(provider, lambda listed: len(listed) == 1)] == [
                lost.token
            ]

        two.run(scenario)

    def test_a_new_controller_remembers_what_a_silent_host_held(self, one: PoolRig) -> None:
        async def scenario(provider: SshProvider) -> None:
            order = one.order()
            await provider.launch(order)
            [before] = await until(provider, all_in(RUNNING))
            await provider.close()
            one.machines["gpu-1"].stop()
            another = one.provider()
            assert list(await another.instances()) == [before]
            assert (await another.launch(order)).id == before.id
            with pytest.raises(CapacityUnavailable, match=r"no host of pool lab has room: gpu-1: .*"):
                await another.launch(one.order(replica_id=2))

        one.run(scenario)

    def test_a_host_that_was_restarted_lost_its_replicas(self, one: PoolRig) -> None:
        async def scenario(provider: SshProvider) -> None:
            await provider.launch(one.order())
            await until(provider, all_in(RUNNING))
            one.machines["gpu-1"].stop()
            [spec] = provider.pools()["lab"]
            await _until_true(lambda: provider.host(spec).silent is not None)
            one.machines["gpu-1"].start()
            gone = (InstanceState.PREEMPTED, InstanceState.STOPPING, InstanceState.EXITED)
            [instance] = await until(provider, lambda listed: all(one.state in gone for one in listed))
            await provider.terminate(instance.id)
            await until(provider, lambda listed: not listed)

        one.run(scenario)

    def test_an_agent_that_was_removed_is_put_back(self, one: PoolRig) -> None:
        async def scenario(provider: SshProvider) -> None:
            await provider.close()
            for path in one.machines["gpu-1"].root.rglob("*.py"):
                path.unlink()
            another = one.provider()
            await _until_true_async(another)
            await another.launch(one.order())

        one.run(scenario)


class TestTrust:
    def test_a_host_with_another_key_is_not_believed(self, one: PoolRig) -> None:
        one.known_hosts.write_text(one.known_hosts.read_text().replace("AAAAC3", "AAAAC4"))

        async def scenario() -> None:
            provider = one.provider()
            [spec] = provider.pools()["lab"]
            with pytest.raises((CredentialsRejected, ProviderUnavailable)):
                await provider.host(spec).set_up()
            assert provider.host(spec).note is None
            await one.close()

        asyncio.run(scenario())

    def test_check_says_which_host_is_silent(self, two: PoolRig) -> None:
        async def scenario(provider: SshProvider) -> None:
            assert (await provider.check()).reason == "2 of 2 hosts answer"
            await provider.close()
            two.machines["gpu-2"].stop()
            told = await two.provider().check()
            assert told.usable
            assert told.reason.startswith("1 of 2 hosts answer (lab/gpu-2: ")

        two.run(scenario)


class TestOfferings:
    def test_pools_are_regions_and_refusals_have_reasons(self, two: PoolRig) -> None:
        two.write_pools({"lab": ["gpu-1"], "attic": ["gpu-2"]})

        async def scenario(provider: SshProvider) -> None:
            wanted = (Resources(), Resources(cloud="ssh", region="attic"), Resources(cpus=Quantity(10**4)))
            refused = (Resources(cloud="aws"), Resources(use_spot=True), Resources(region="cellar"))
            candidates = await provider.offerings(ResourceChoice((*wanted, *refused)))
            assert [offering.location.region for offering in candidates.offerings] == ["lab", "attic"]
            assert {offering.price_per_hour for offering in candidates.offerings} == {0.0}
            reasons = [reason for _, reason in candidates.refusals]
            assert reasons[0].startswith("asks for 10000 vCPUs, and lab/gpu-1 has ")
            assert reasons[1] == "asks for cloud aws, and these are hosts of your own"
            assert "spot" in reasons[2]
            assert reasons[3] == "asks for pool cellar, which has no host that is set up: `sky ssh up`"
            with pytest.raises(OrderRejected):
                await provider.stop("t1@lab@gpu-1")

        two.run(scenario)

    def test_a_pool_that_nobody_set_up_offers_nothing(self, one: PoolRig) -> None:
        async def scenario() -> None:
            provider = one.provider()
            told = await provider.check()
            assert (told.usable, told.hint) == (False, "sky ssh up")
            assert (await provider.offerings(ResourceChoice())).offerings == ()
            assert await provider.instances() == ()

        asyncio.run(scenario())


class TestNotes:
    INVENTORY: ClassVar = {
        "cpus": 64,
        "memory_gib": 503.6,
        "gpus": [{"index": 0, "name": "NVIDIA L40S", "memory_gib": 45.0}],
        "free_disk_gib": 100.0,
    }

    def test_a_note_tells_the_hardware(self) -> None:
        note = Note("10.0.0.1", self.INVENTORY)
        assert str(note.machine) == "64 vCPUs, 503.6 GiB of memory, L40S:1"
        assert note.free_disk_gib == 100.0

    def test_a_share_survives_the_way_to_the_agent_and_back(self) -> None:
        share = Share("chat/1", 2.0, 8.0, {0: 1.0, 3: 0.5})
        told = json.loads(json.dumps(claim_of(share)))
        hosted = Hosted("t1", "chat-u1", 1, 1, 8080, "run", needs_secrets=False, claim=told)
        assert share_of(hosted) == share

    def test_a_damaged_note_is_silence(self, tmp_path: Path) -> None:
        path = tmp_path / "note.json"
        assert read_note(path) is None
        path.write_text("{")
        with pytest.raises(ProviderUnavailable, match="cannot be understood"):
            read_note(path)

    def test_the_watch_of_a_host_ends_when_another_process_takes_it_down(self, one: PoolRig) -> None:
        async def scenario(provider: SshProvider) -> None:
            await provider.launch(one.order())
            await until(provider, all_in(RUNNING))
            another = one.provider()
            [spec] = another.pools()["lab"]
            assert await another.host(spec).take_down() == 1
            assert await provider.instances() == ()
            await _until_true(lambda: provider.host(spec).note is None)
            assert not list(one.machines["gpu-1"].root.rglob("agent.py"))
            await another.host(spec).set_up()
            assert (await provider.check()).usable

        one.run(scenario)


def test_a_long_delivery_goes_on_behind_the_launch(one: PoolRig) -> None:
    async def scenario(provider: SshProvider) -> None:
        [host] = [provider.host(spec) for spec in provider.pools()["lab"]]
        await host.heard()
        order = one.order()
        site = Site(order.offering.location, order.port)
        task = host.deliver(order_for(order, site, {}, own_machine=False), load_of(order))
        assert [instance.state for instance in await provider.instances()] == [InstanceState.STARTING]
        await task
        await until(provider, all_in(RUNNING))

    one.run(scenario)


def test_without_a_file_nothing_is_configured(tmp_path: Path) -> None:
    config = Config(home=tmp_path / "home", inherited_env={"HOME": str(tmp_path)})
    with pytest.raises(NotConfigured) as raised:
        ssh.provider(config, SystemClock())
    assert "ssh_node_pools.yaml" in raised.value.reason


def test_a_file_that_is_wrong_is_silence_and_says_where(one: PoolRig) -> None:
    ssh.pools_file(one.config).write_text("lab:\n  hosts: []\n")
    with pytest.raises(ProviderUnavailable, match=r"ssh_node_pools.yaml:2:10: pool lab needs a list of hosts"):
        asyncio.run(one.provider().instances())


async def _until_true(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)


async def _until_true_async(provider: SshProvider) -> None:
    [spec] = provider.pools()["lab"]
    await provider.instances()
    await _until_true(lambda: provider.host(spec).silent is None)
