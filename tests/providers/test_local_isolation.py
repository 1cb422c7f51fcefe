"""Replicas of this machine that want one port, or no more than they asked for: with and without the privileges."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from tests.providers.local_rig import LocalRig, in_state, local_rig, wait_until

from skyserve.errors import CapacityUnavailable, OrderRejected
from skyserve.model.evidence import Instance, InstanceState
from skyserve.model.resources import Quantity, ResourceChoice, Resources
from skyserve.providers import isolation
from skyserve.providers.base import Exit, Feature, LaunchOrder
from skyserve.providers.isolation import Isolation

HERE = isolation.detect(os.environ)
needs_network = pytest.mark.skipif(HERE.no_network is not None, reason=f"no network namespaces: {HERE.no_network}")
needs_memory_group = pytest.mark.skipif(not HERE.limits("memory"), reason="no writable control group for memory")


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[LocalRig]:
    with local_rig(tmp_path, isolation=HERE, grace_s=1.0) as rig:
        yield rig


@pytest.fixture
def poor(tmp_path: Path) -> Iterator[LocalRig]:
    with local_rig(tmp_path, isolation=Isolation("it takes root"), grace_s=1.0) as rig:
        yield rig


@pytest.fixture
def port() -> int:
    with socket.create_server(("", 0)) as server:
        number: int = server.getsockname()[1]
        return number


def serving(rig: LocalRig, port: int, *, count: int = 2) -> list[LaunchOrder]:
    """Orders whose run has its port in the text."""
    run = f"mkdir $SKYSERVE_REPLICA_ID; cd $SKYSERVE_REPLICA_ID; echo $SKYSERVE_REPLICA_ID > index.html; \
exec python3 -m http.server {port} --bind 127.0.0.1"
    return [rig.order(run, replica_id=number, port=port) for number in range(1, count + 1)]


def answers(listed: Sequence[Instance]) -> list[str]:
    """What each serves, by its address."""
    found: dict[str, str] = {}

    def all_answer() -> bool:
        for instance in listed:
            try:
                found[instance.token] = fetched(f"http://{instance.address}/")
            except OSError:
                return False
        return True

    wait_until(all_answer)
    return [found.get(instance.token, "nothing") for instance in listed]


def fetched(url: str) -> str:
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with direct.open(url, timeout=5) as answer:
        body: bytes = answer.read()
        return body.decode().strip()


def links() -> set[str]:
    return {name for _, name in socket.if_nameindex() if name.startswith("sky")}


@needs_network
class TestOnePort:
    def test_replicas_with_a_hard_coded_port_run_side_by_side(self, rig: LocalRig, port: int) -> None:
        listed = asyncio.run(rig.up(*serving(rig, port, count=3)))
        assert answers(listed) == ["1", "2", "3"]
        addresses = [instance.address or "" for instance in listed]
        assert len(set(addresses)) == 3
        assert {address.rpartition(":")[2] for address in addresses} == {str(port)}
        assert len([address for address in addresses if address == f"127.0.0.1:{port}"]) == 1

    def test_the_namespace_goes_with_the_instance(self, rig: LocalRig, port: int) -> None:
        before = links()

        async def scenario() -> None:
            await rig.up(*serving(rig, port))
            assert len(links() - before) == 1
            await rig.clear()

        asyncio.run(scenario())
        wait_until(lambda: not links() - before)
        assert not links() - before

    def test_the_namespace_goes_when_the_supervisor_is_killed(self, rig: LocalRig, port: int) -> None:
        before = links()

        async def scenario() -> None:
            await rig.up(*serving(rig, port))
            for token in ("t1", "t2"):
                report = rig.instance(token).report
                assert report
                os.kill(report["pid"], signal.SIGKILL)
            await rig.until(in_state(InstanceState.EXITED, count=2))

        asyncio.run(scenario())
        wait_until(lambda: not links() - before)
        assert not links() - before

    def test_another_controller_finds_the_address(self, rig: LocalRig, port: int) -> None:
        async def scenario() -> None:
            before = await rig.up(*serving(rig, port))
            rig.provider = rig.another_controller()
            assert list(await rig.provider.instances()) == list(before)

        asyncio.run(scenario())

    def test_who_asks_for_its_port_shares_the_network(self, rig: LocalRig, port: int) -> None:
        orders = [replace(order, run=f"PORT={port}; exec sleep 1000") for order in serving(rig, port)]
        listed = asyncio.run(rig.up(*orders))
        assert all((instance.address or "").startswith("127.0.0.1:") for instance in listed)

    def test_a_port_that_another_program_has_is_had_again(self, rig: LocalRig, port: int) -> None:
        with socket.create_server(("127.0.0.1", port)):
            [listed] = asyncio.run(rig.up(*serving(rig, port, count=1)))
            assert answers([listed]) == ["1"]

    def test_replicas_do_not_share_a_host_then(self, rig: LocalRig) -> None:
        assert not rig.provider.capabilities.shares_host


async def beside(rig: LocalRig, token: str, script: str, env: Mapping[str, str]) -> tuple[str, int]:
    """Output and exit code of a script that was run beside an instance."""
    output, code = b"", -1
    async for piece in rig.provider.execute(token, script, env):
        if isinstance(piece, Exit):
            code = piece.code
        else:
            output += piece
    return output.decode(), code


class TestBeside:
    def test_a_script_sees_what_the_replica_sees(self, poor: LocalRig) -> None:
        async def scenario() -> tuple[str, int]:
            await poor.up(poor.order("touch made; exec sleep 1000", envs={"MODEL": "a"}, secrets={"TOKEN": "b"}))
            wait_until((poor.home / "local/workspaces/chat-u1/v1/workdir/made").exists)
            return await beside(poor, "t1", "ls; echo $MODEL $TOKEN $MORE; exit 3", {"MORE": "c"})

        output, code = asyncio.run(scenario())
        assert output.split() == ["made", "a", "b", "c"]
        assert code == 3

    @needs_network
    def test_a_script_is_in_the_replicas_network(self, rig: LocalRig, port: int) -> None:
        async def scenario() -> list[str]:
            listed = await rig.up(*serving(rig, port))
            assert answers(listed) == ["1", "2"]
            ask = f"exec 3<>/dev/tcp/127.0.0.1/{port}; printf 'GET / HTTP/1.0\\r\\n\\r\\n' >&3; tail -n 1 <&3"
            return [(await beside(rig, token, ask, {}))[0].strip() for token in ("t1", "t2")]

        assert asyncio.run(scenario()) == ["1", "2"]

    def test_a_script_ends_with_whoever_listens(self, poor: LocalRig) -> None:
        async def scenario() -> None:
            await poor.up(poor.order())
            pieces = poor.provider.execute("t1", "echo on; sleep 1000 & wait", {})
            assert await anext(pieces) == b"on\n"
            await pieces.aclose()  # type: ignore[attr-defined]

        asyncio.run(scenario())  # the rig finds what is left behind

    def test_where_nothing_runs_nothing_can_be_run(self, poor: LocalRig) -> None:
        with pytest.raises(OrderRejected, match="nothing runs in t1 now"):
            asyncio.run(beside(poor, "t1", "true", {}))


class TestWithoutPrivileges:
    def test_the_second_is_refused_and_told_of_the_variable(self, poor: LocalRig, port: int) -> None:
        first, second = serving(poor, port)

        async def scenario() -> None:
            await poor.up(first)
            with pytest.raises(CapacityUnavailable, match=f"port {port}, and chat/1 has it.*it takes root") as raised:
                await poor.provider.launch(second)
            assert "$SKYSERVE_REPLICA_PORT" in (raised.value.hint or "")
            await poor.clear()
            await poor.up(second)

        asyncio.run(scenario())
        assert poor.provider.capabilities.shares_host

    def test_who_asks_for_its_port_gets_another(self, poor: LocalRig, port: int) -> None:
        orders = [replace(order, run="echo $PORT; exec sleep 1000") for order in serving(poor, port)]
        assert len({instance.address for instance in asyncio.run(poor.up(*orders))}) == 2


class TestLimits:
    @needs_memory_group
    def test_an_exact_size_is_a_limit_that_goes_with_the_instance(self, rig: LocalRig) -> None:
        offering = rig.offering(Resources(memory=Quantity(1)))
        assert offering.instance_type == "host-max1gib"
        groups = {Path(group["path"]) for group in HERE.groups(f"{rig.home}/local/t1", {"memory": 1.0})}

        async def scenario() -> str:
            await rig.up(rig.order("cat /proc/self/cgroup; exec sleep 1000", offering=offering))
            log = await rig.logged("memory" if groups else "")
            assert all(group.is_dir() for group in groups)
            await rig.clear()
            return log

        log = asyncio.run(scenario())
        assert all(group.name in log for group in groups)
        assert not [group for group in groups if group.exists()]

    @pytest.mark.parametrize("quantity", [Quantity(1, at_least=True), Quantity(1, per_vcpu=True)], ids=str)
    def test_a_minimum_is_no_limit(self, rig: LocalRig, quantity: Quantity) -> None:
        assert "max" not in rig.offering(Resources(cpus=Quantity(1, at_least=True), memory=quantity)).instance_type

    def test_where_nothing_can_be_limited_nothing_is_said_to_be(self, poor: LocalRig) -> None:
        offering = poor.offering(Resources(cpus=Quantity(2), memory=Quantity(4)))
        assert offering.instance_type == "host-2cpu-4gib"


class TestWhatItCannot:
    def test_a_disk_beyond_what_is_free_is_refused_with_the_numbers(self, poor: LocalRig) -> None:
        candidates = asyncio.run(poor.provider.offerings(ResourceChoice((Resources(disk_size=10**9),))))
        [(_, reason)] = candidates.refusals
        assert reason.startswith("asks for 1000000000 GiB of disk, and ")
        with pytest.raises(CapacityUnavailable, match="are free"):
            asyncio.run(poor.provider.launch(poor.order(disk_size=10**9)))

    def test_a_disk_tier_is_refused(self, poor: LocalRig) -> None:
        candidates = asyncio.run(poor.provider.offerings(ResourceChoice((Resources(disk_tier="high"),))))
        [(_, reason)] = candidates.refusals
        assert reason == "asks for disk tier high, and the disk of this machine is what it is"

    def test_what_it_does_not_deliver_has_a_reason(self, poor: LocalRig) -> None:
        capabilities = poor.provider.capabilities
        refused = set(Feature) - capabilities.delivers
        assert refused == {Feature.IMAGE, Feature.CONTAINER_IMAGE, Feature.DISK_TIER}
        assert all(capabilities.cannot[feature.value] for feature in refused)

    def test_labels_are_kept_with_the_instance(self, poor: LocalRig) -> None:
        asyncio.run(poor.up(poor.order(labels={"team": "search"})))
        meta = poor.instance().meta
        assert meta
        assert meta.labels == {"team": "search"}
