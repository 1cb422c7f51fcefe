"""The local provider's own promises: sharing out the machine, the replica's environment, surviving its controller."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import stat
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from tests.providers.local_rig import SERVES, LocalRig, environment, local_rig

from skyserve.errors import CapacityUnavailable, OrderRejected, ProviderUnavailable
from skyserve.model.resources import Accelerator, Quantity, ResourceChoice, Resources
from skyserve.providers import bootstrap
from skyserve.providers.base import LaunchOrder
from skyserve.providers.machine import Gpu, Machine

TWO_GPUS = Machine(vcpus=2, memory_gib=8, gpus=(Gpu(0, "L4", 23), Gpu(1, "L4", 23)))
ENV = "env; exec sleep 1000"


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[LocalRig]:
    with local_rig(tmp_path, TWO_GPUS, grace_s=1.0) as rig:
        yield rig


def wanting(rig: LocalRig, resources: Resources, *, replica_id: int = 1, run: str = SERVES) -> LaunchOrder:
    return rig.order(run, replica_id=replica_id, offering=rig.offering(resources))


async def refusal(rig: LocalRig, order: LaunchOrder) -> str:
    with pytest.raises(CapacityUnavailable) as raised:
        await rig.provider.launch(order)
    assert raised.value.hint
    return raised.value.message


class TestSharing:
    def test_vcpus_are_never_given_twice(self, rig: LocalRig) -> None:
        first = wanting(rig, Resources(cpus=Quantity(1)))
        second = wanting(rig, Resources(cpus=Quantity(2)), replica_id=2)

        async def scenario() -> None:
            await rig.up(first)
            assert await refusal(rig, second) == "2 vCPUs asked, 1 of 2 free: chat/1 has 1"
            await rig.clear()
            await rig.up(second)

        asyncio.run(scenario())

    def test_memory_is_never_given_twice(self, rig: LocalRig) -> None:
        first = wanting(rig, Resources(memory=Quantity(6, at_least=True)))
        second = wanting(rig, Resources(cpus=Quantity(1), memory=Quantity(3, per_vcpu=True)), replica_id=2)

        async def scenario() -> None:
            await rig.up(first)
            assert await refusal(rig, second) == "3 GiB of memory asked, 2 of 8 free: chat/1 has 6"

        asyncio.run(scenario())

    def test_what_is_not_asked_for_reserves_nothing(self, rig: LocalRig) -> None:
        orders = [rig.order(replica_id=1), rig.order(replica_id=2), wanting(rig, Resources(cpus=Quantity(2)))]
        asyncio.run(rig.up(*orders[:2], replace(orders[2], token="t3", replica_id=3)))

    def test_a_replica_that_exited_holds_nothing(self, rig: LocalRig) -> None:
        all_of_it = Resources(cpus=Quantity(2))
        first, second = wanting(rig, all_of_it, run="exit 1"), wanting(rig, all_of_it, replica_id=2)

        async def scenario() -> None:
            await rig.ended(first)
            await rig.provider.launch(second)

        asyncio.run(scenario())

    def test_gpus_are_shared_out_and_shown(self, rig: LocalRig) -> None:
        one = Resources(accelerators=Accelerator("L4", 1))
        orders = [wanting(rig, one, replica_id=number, run=ENV) for number in (1, 2)]
        third = wanting(rig, one, replica_id=3)

        async def scenario() -> set[str]:
            await rig.up(*orders)
            refused = await refusal(rig, third)
            assert refused in (
                "1 L4 asked, 0 of 2 free: chat/1 has 1, chat/2 has 1",
                "1 L4 asked, 0 of 2 free: chat/2 has 1, chat/1 has 1",
            )
            logs = [await rig.logged("CUDA_VISIBLE_DEVICES", order.token) for order in orders]
            assert all("SKYPILOT_NUM_GPUS_PER_NODE=1\n" in log for log in logs)
            return {line for log in logs for line in log.splitlines() if line.startswith("CUDA_VISIBLE_DEVICES")}

        assert asyncio.run(scenario()) == {"CUDA_VISIBLE_DEVICES=0", "CUDA_VISIBLE_DEVICES=1"}

    def test_who_asks_for_no_gpu_sees_none(self, rig: LocalRig) -> None:
        asyncio.run(rig.up(rig.order(ENV)))
        assert "CUDA_VISIBLE_DEVICES=\n" in asyncio.run(rig.logged("CUDA_VISIBLE_DEVICES"))


class TestPorts:
    def test_the_first_replica_gets_the_declared_port_and_the_second_another(self, rig: LocalRig) -> None:
        declared = free_port()
        orders = [rig.order(replica_id=number, port=declared) for number in (1, 2)]
        listed = asyncio.run(rig.up(*orders))
        given = {int((instance.address or "").rpartition(":")[2]) for instance in listed}
        assert declared in given
        [other] = given - {declared}
        assert other in range(20000, 30000)

    def test_a_port_in_use_is_not_given(self, rig: LocalRig) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            [instance] = asyncio.run(rig.up(rig.order(port=taken.getsockname()[1])))
            assert instance.address != f"127.0.0.1:{taken.getsockname()[1]}"


class TestEnvironment:
    def test_setup_and_run_know_where_and_who_they_are(self, rig: LocalRig) -> None:
        order = rig.order("env > run.env; echo listening; exec sleep 1000", setup="env > setup.env", version=3)
        asyncio.run(rig.up(order))
        asyncio.run(rig.logged("listening"))
        workdir = rig.home / "local" / "workspaces" / "chat-u1" / "v1" / "workdir"
        run = dict(line.split("=", 1) for line in (workdir / "run.env").read_text().splitlines())
        setup = dict(line.split("=", 1) for line in (workdir / "setup.env").read_text().splitlines())
        meta = rig.instance().meta
        assert meta
        port = str(meta.port)
        expected = {
            "SKYPILOT_SERVE_REPLICA_ID": "1",
            "SKYPILOT_NODE_IPS": "127.0.0.1",
            "SKYPILOT_NUM_NODES": "1",
            "SKYPILOT_NODE_RANK": "0",
            "SKYPILOT_NUM_GPUS_PER_NODE": "0",
            "SKYPILOT_USER": "tester",
            "SKYSERVE_REPLICA_ID": "1",
            "SKYSERVE_SERVICE": "chat",
            "SKYSERVE_VERSION": "3",
            "SKYSERVE_INSTANCE": "t1",
            "SKYSERVE_REPLICA_PORT": port,
            "PORT": port,
        }
        assert expected.items() <= run.items()
        assert expected.items() <= setup.items()
        assert json.loads(run["SKYPILOT_CLUSTER_INFO"])["cloud"] == "local"
        assert setup["SKYPILOT_SETUP_NODE_IPS"] == "127.0.0.1"
        assert "SKYPILOT_SETUP_NODE_IPS" not in run

    def test_the_users_variables_win_and_secrets_over_envs(self, rig: LocalRig) -> None:
        envs = {"MODEL": "a", "TOKEN": "from envs", "SKYSERVE_INSTANCE": "forged", "USER": "mine"}
        order = rig.order(ENV, envs=envs, secrets={"TOKEN": "from secrets"})
        asyncio.run(rig.up(order))
        log = asyncio.run(rig.logged("USER="))
        for line in ("MODEL=a", "TOKEN=from secrets", "SKYSERVE_INSTANCE=t1", "USER=mine"):
            assert f"{line}\n" in log

    def test_secrets_reach_the_replica_and_nothing_else(self, rig: LocalRig) -> None:
        secret = "hf_mY-s3cret"
        asyncio.run(rig.up(rig.order(setup="true", secrets={"HF_TOKEN": secret})))
        asyncio.run(rig.logged("listening"))
        report = rig.instance().report
        assert report
        assert environment(report["group"])["HF_TOKEN"] == secret
        files = [path for path in rig.home.rglob("*") if path.is_file()]
        assert files
        assert not [path for path in files if secret in path.read_text(errors="replace")]
        command_lines = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()]
        assert not [line for line in command_lines if secret.encode() in line]

    def test_nobody_else_may_look_into_the_files(self, rig: LocalRig) -> None:
        before = os.umask(0o022)
        try:
            asyncio.run(rig.up(rig.order(setup="true")))
        finally:
            os.umask(before)
        local = rig.home / "local"
        ours = [local, *(path for path in local.rglob("*") if "workdir" not in path.relative_to(local).parts[:-1])]
        open_to_others = [
            path for path in ours if stat.S_IMODE(path.lstat().st_mode) & 0o077 and path.name != "version"
        ]
        assert open_to_others == []


class TestRestart:
    def test_another_controller_finds_everything_as_it_was(self, rig: LocalRig) -> None:
        async def scenario() -> None:
            [before] = await rig.up(order)
            rig.provider = rig.another_controller()
            assert await rig.provider.launch(order) == before
            assert tuple(await rig.provider.instances()) == (before,)

        order = rig.order()
        asyncio.run(scenario())

    def test_a_launch_cut_short_before_the_supervisor_came_up_is_done_again(self, rig: LocalRig) -> None:
        (rig.instance().path).mkdir(parents=True)
        asyncio.run(rig.up(rig.order()))

    def test_a_launch_cut_short_and_never_repeated_leaves_nothing(self, rig: LocalRig) -> None:
        (rig.instance().path).mkdir(parents=True)
        assert asyncio.run(rig.provider.instances()) == ()
        assert not rig.instance().path.exists()

    def test_a_supervisor_that_cannot_start_is_silence(self, rig: LocalRig, monkeypatch: pytest.MonkeyPatch) -> None:
        broken = rig.home / "broken.py"
        broken.write_text("raise SystemExit('no Python today')\n")
        monkeypatch.setattr(bootstrap, "__file__", str(broken))
        with pytest.raises(ProviderUnavailable, match="no Python today"):
            asyncio.run(rig.provider.launch(rig.order()))
        assert asyncio.run(rig.provider.instances()) == ()

    @pytest.mark.parametrize("token", ["../t1", ".hidden", "a/b", ""])
    def test_a_token_that_is_no_name_is_rejected(self, rig: LocalRig, token: str) -> None:
        with pytest.raises(OrderRejected):
            asyncio.run(rig.provider.launch(rig.order(token=token)))
        asyncio.run(rig.provider.terminate(token))


class TestLogs:
    def test_a_second_attempt_is_appended_to_the_kept_log(self, rig: LocalRig) -> None:
        async def scenario() -> str:
            for token in ("first", "second"):
                await rig.ended(replace(order, token=token))
                await rig.clear()
            return await rig.logs("second")

        order = rig.order("echo $SKYSERVE_INSTANCE; exit 1")
        assert asyncio.run(scenario()) == (
            "first\n[skyserve] run ended with exit code 1\n"
            "[skyserve] replica 1 again, launched as second\n"
            "second\n[skyserve] run ended with exit code 1\n"
        )

    def test_release_removes_workspaces_and_logs_of_that_service_only(self, rig: LocalRig) -> None:
        async def scenario() -> None:
            await rig.ended(rig.order("exit 1"))
            await rig.ended(other)
            await rig.clear()
            await rig.provider.release("chat-u1")

        other = rig.order("exit 1", replica_id=2, service="code-u2", service_name="code")
        asyncio.run(scenario())
        local = rig.home / "local"
        assert sorted(path.name for path in (local / "workspaces").iterdir()) == ["code-u2"]
        assert sorted(path.name for path in (local / "logs").iterdir()) == ["code-u2"]
        assert not list((local / "trash").iterdir())


class TestOfferings:
    @pytest.mark.parametrize(
        ("resources", "reason"),
        [
            (Resources(accelerators=Accelerator("A100", 8)), "asks for A100:8, and this machine has L4:2"),
            (Resources(accelerators=Accelerator("L4", 3)), "asks for L4:3, and this machine has L4:2"),
            (Resources(cloud="aws"), "asks for cloud aws, and this is the machine itself"),
            (Resources(region="us-east-1"), "asks for region us-east-1, and this machine is in localhost"),
            (Resources(use_spot=True), "asks for spot capacity, and this machine has none: nobody can take it back"),
            (
                Resources(instance_type="g6.xlarge"),
                "asks for instance type g6.xlarge, and this machine is of type host",
            ),
            (Resources(cpus=Quantity(4)), "asks for 4 vCPUs, and this machine has 2"),
            (Resources(memory=Quantity(8, per_vcpu=True)), "asks for 16 GiB of memory, and this machine has 8"),
            (
                Resources(image_id="docker:x"),
                "asks for image docker:x, and this machine runs no images yet",
            ),
        ],
        ids=str,
    )
    def test_says_why_not(self, rig: LocalRig, resources: Resources, reason: str) -> None:
        candidates = asyncio.run(rig.provider.offerings(ResourceChoice((resources,))))
        assert candidates.offerings == ()
        assert [refused for _, refused in candidates.refusals] == [reason]

    def test_a_bare_host_costs_nothing_and_is_the_whole_machine(self, rig: LocalRig) -> None:
        offering = rig.offering(Resources())
        assert (offering.instance_type, offering.vcpus, offering.memory_gib) == ("host", 2, 8)
        assert offering.price_per_hour == 0.0
        assert offering.pool == "local/localhost/host/ON_DEMAND"

    def test_what_is_asked_for_is_part_of_the_instance_type(self, rig: LocalRig) -> None:
        offering = rig.offering(Resources(cpus=Quantity(1, at_least=True), memory=Quantity(2, per_vcpu=True)))
        assert (offering.instance_type, offering.vcpus, offering.memory_gib) == ("host-1cpu-2gib", 1, 2)

    def test_not_usable_without_bash(self, tmp_path: Path) -> None:
        rig = LocalRig(tmp_path)
        rig.config = replace(rig.config, inherited_env={"PATH": str(tmp_path)})
        result = asyncio.run(rig.another_controller().check())
        assert not result.usable
        assert "bash" in result.reason


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port
