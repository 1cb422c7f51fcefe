"""`sky ssh up|status|down` on real machines, reached by the real ssh with the user's configuration."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.providers.ssh_pool_rig import PoolRig, all_in, pool_rig, until
from tests.providers.ssh_rig import answering, needs_machines

from skyserve.model.evidence import InstanceState
from skyserve.providers.ssh import SshProvider


@pytest.fixture
def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[PoolRig]:
    """Two hosts, and an ssh that finds them in what stands for the user's ~/.ssh/config."""
    with pool_rig(tmp_path, "gpu-1", "gpu-2") as rig:
        tools = tmp_path / "tools"
        tools.mkdir()
        (tools / "ssh").write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -F {rig.ssh_config} "$@"\n')
        (tools / "ssh").chmod(0o755)
        monkeypatch.setenv("PATH", str(tools), prepend=":")

        async def wait() -> None:
            await asyncio.gather(*(answering(machine) for machine in rig.machines.values()))

        asyncio.run(wait())
        yield rig


@pytest.fixture
def run(rig: PoolRig, sky, home: Path) -> Callable[..., object]:
    """`sky`, in the rig's home."""
    sky.home = rig.config.home
    sky.environ = {"HOME": rig.config.inherited_env["HOME"]}
    return sky


@needs_machines
def test_up_status_down(rig: PoolRig, run) -> None:
    before = run("ssh", "status")
    assert (before.code, before.out.count("not set up")) == (0, 2)
    assert "sky ssh up --infra lab" in before.out

    up = run("ssh", "up")
    assert (up.code, up.err) == (0, "")
    lines = [line.split() for line in up.out.splitlines()]
    assert lines[1] == ["POOL", "HOST", "STATE", "CPUS", "MEMORY", "GPUS", "REPLICAS", "WHY"]
    assert [line[:3] for line in lines[2:]] == [["lab", "gpu-1", "ready"], ["lab", "gpu-2", "ready"]]
    agents = [list(machine.root.rglob("agent.py")) for machine in rig.machines.values()]
    assert all(agents)

    [first, second] = run("ssh", "status", "-o", "json").json["hosts"]
    assert (first["state"], second["state"]) == ("ready", "ready")
    assert first["cpus"] > 0
    assert first["replicas"] == 0

    down = run("ssh", "down")
    assert (down.code, down.out.count("removed")) == (0, 2)
    assert not [path for machine in rig.machines.values() for path in machine.root.rglob("agent.py")]
    assert run("ssh", "status").out.count("not set up") == 2


@needs_machines
def test_down_asks_before_replicas_end(rig: PoolRig, run) -> None:
    async def scenario(provider: SshProvider) -> None:
        await provider.launch(rig.order())
        await until(provider, all_in(InstanceState.RUNNING))

    rig.run(scenario)
    asked = run("ssh", "down")
    assert asked.code == 2
    assert "Terminating 1 replica on 2 hosts" in asked.err
    down = run("ssh", "down", "--yes", "-o", "json")
    assert down.code == 0
    assert sum(row["replicas"] for row in down.json["hosts"]) == 1


@needs_machines
def test_one_host_that_fails_is_told_and_does_not_hinder_the_other(rig: PoolRig, run) -> None:
    rig.machines["gpu-2"].stop()
    up = run("ssh", "up", "-o", "json")
    assert up.code == 1
    states = {row["host"]: row["state"] for row in up.json["hosts"]}
    assert states == {"gpu-1": "ready", "gpu-2": "failed"}
    assert "lab/gpu-2: gpu-2 cannot be reached" in up.err
    status = run("ssh", "status")
    assert status.code == 0
    assert "not set up" in status.out


@needs_machines
def test_a_host_whose_key_is_not_known_is_not_trusted(rig: PoolRig, run) -> None:
    rig.known_hosts.write_text("")
    up = run("ssh", "up", "--infra", "lab")
    assert up.code == 1
    assert "host key" in up.err
    assert "try `ssh gpu-1` by hand" in up.err


def test_without_a_file_it_says_how_to_begin(sky, tmp_path: Path) -> None:
    sky.environ = {"HOME": str(tmp_path)}
    result = sky("ssh", "up")
    assert result.code == 2
    assert "ssh_node_pools.yaml" in result.err
    assert "sky ssh up --help" in result.err


def test_a_pool_that_does_not_exist_and_a_file_that_is_wrong(sky, tmp_path: Path) -> None:
    sky.environ = {"HOME": str(tmp_path)}
    (tmp_path / ".sky").mkdir()
    path = tmp_path / ".sky" / "ssh_node_pools.yaml"
    path.write_text("lab:\n  hosts: [a]\n")
    wrong = sky("ssh", "status", "--infra", "labs")
    assert wrong.code == 2
    assert "did you mean 'lab'?" in wrong.err
    path.write_text("lab:\n  hosts: a\n")
    broken = sky("ssh", "status")
    assert broken.code == 2
    assert f"{path}:2:10" in broken.err
