"""Setup runs once for all replicas of a version on this machine, and files are copied with it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.providers.local_rig import LocalRig, in_state, local_rig

from skyserve.errors import OrderRejected
from skyserve.model.evidence import InstanceState


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[LocalRig]:
    with local_rig(tmp_path / "home", grace_s=1.0) as rig:
        yield rig


def workdir(rig: LocalRig, workspace: str = "v1") -> Path:
    return rig.home / "local" / "workspaces" / "chat-u1" / workspace / "workdir"


def test_setup_runs_once_for_replicas_launched_together(rig: LocalRig) -> None:
    setup = "echo $SKYSERVE_REPLICA_ID >> setups; sleep 0.3; mkdir .venv; echo made > .venv/bin"
    run = "cat .venv/bin; exec sleep 1000"
    orders = [rig.order(run, replica_id=number, setup=setup) for number in (1, 2, 3)]

    async def scenario() -> list[str]:
        await rig.up(*orders)
        return [await rig.logged("made", order.token) for order in orders]

    logs = asyncio.run(scenario())
    maker = (workdir(rig) / "setups").read_text().strip()
    assert maker in ("1", "2", "3")
    others = [log for number, log in enumerate(logs, 1) if str(number) != maker]
    assert all(f"setup already done by replica {maker}" in log for log in others)


def test_a_replica_that_comes_later_finds_setup_done(rig: LocalRig) -> None:
    first, second = (rig.order(replica_id=number, setup="echo x >> setups") for number in (1, 2))

    async def scenario() -> str:
        await rig.up(first)
        await rig.provider.launch(second)
        return await rig.logged("listening", "t2")

    assert asyncio.run(scenario()).startswith("[skyserve] setup already done by replica 1\n")
    assert (workdir(rig) / "setups").read_text() == "x\n"


def test_a_failed_setup_is_not_remembered_as_done(rig: LocalRig) -> None:
    setup = "echo x >> setups; test $(wc -l < setups) = 2 || exit 5"

    async def scenario() -> None:
        failed = await rig.ended(first)
        assert (failed.exit_code, failed.failed_phase) == (5, "setup")
        assert failed.setup_started_at
        await rig.provider.launch(second)
        await rig.logged("listening", "t2")

    first, second = (rig.order(replica_id=number, setup=setup) for number in (1, 2))
    asyncio.run(scenario())


def test_when_the_maker_is_terminated_the_next_one_sets_up(rig: LocalRig) -> None:
    setup = "echo x >> setups; test $(wc -l < setups) = 2 || sleep 1000"
    first, second = (rig.order(replica_id=number, setup=setup) for number in (1, 2))

    async def scenario() -> None:
        await rig.provider.launch(first)
        await rig.until(lambda _: (workdir(rig) / "setups").exists())
        await rig.provider.launch(second)
        await rig.logged("waiting for setup by replica 1", "t2")
        await rig.provider.terminate("t1")
        await rig.logged("listening", "t2")

    asyncio.run(scenario())


def test_a_replica_that_waits_for_setup_can_be_terminated(rig: LocalRig) -> None:
    first, second = (rig.order(replica_id=number, setup="echo at it; sleep 1000") for number in (1, 2))

    async def scenario() -> None:
        await rig.provider.launch(first)
        await rig.logged("at it")
        waiting = await rig.provider.launch(second)
        assert waiting.setup_started_at
        await rig.logged("waiting", "t2")
        await rig.provider.terminate("t2")
        await rig.until(lambda listed: [one.token for one in listed] == ["t1"])
        assert (await rig.provider.instances())[0].state is InstanceState.SETUP

    asyncio.run(scenario())


def test_what_setup_leaves_running_ends_with_setup(rig: LocalRig) -> None:
    order = rig.order("pgrep -f 'sleep 98765' || echo none; exec sleep 1000", setup="setsid sleep 98765 &")
    asyncio.run(rig.up(order))
    assert "none" in asyncio.run(rig.logged("none"))


def test_scripts_may_hold_heredocs_and_quotes(rig: LocalRig) -> None:
    script = "cat <<'EOF'\nit's \"quoted\" $HOME\nEOF\nread line || echo no stdin\nexit 0"
    instance = asyncio.run(rig.ended(rig.order(script)))
    assert instance.exit_code == 0
    assert asyncio.run(rig.logs()).startswith('it\'s "quoted" $HOME\nno stdin\n')


def test_workdir_and_file_mounts_are_copied_for_setup_and_run(rig: LocalRig, tmp_path: Path) -> None:
    source = tmp_path / "snapshot"
    (source / "package").mkdir(parents=True)
    (source / "package" / "server.py").write_text("print('served')\n")
    weights = tmp_path / "weights.bin"
    weights.write_text("w")
    order = rig.order(
        "python3 package/server.py; cat models/a.bin conf/package/server.py; exec sleep 1000",
        setup="test -f package/server.py",
        workdir=str(source),
        file_mounts={"models/a.bin": str(weights), "./conf/": str(source)},
    )

    async def scenario() -> str:
        await rig.up(order)
        return await rig.logged("print")

    assert asyncio.run(scenario()) == "served\nwprint('served')\n"


@pytest.mark.parametrize("destination", ["/data", "~/data", "../data", "a/../../data"])
def test_a_mount_outside_the_working_directory_is_rejected(rig: LocalRig, tmp_path: Path, destination: str) -> None:
    order = rig.order(file_mounts={destination: str(tmp_path)})
    with pytest.raises(OrderRejected, match="outside the working directory") as raised:
        asyncio.run(rig.provider.launch(order))
    assert raised.value.hint


@pytest.mark.parametrize("source", ["s3://bucket/x", "/does/not/exist", "relative"])
def test_a_source_that_is_not_there_is_rejected(rig: LocalRig, source: str) -> None:
    with pytest.raises(OrderRejected, match="not a file or directory of this machine"):
        asyncio.run(rig.provider.launch(rig.order(workdir=source)))


def test_a_copy_that_fails_fails_setup(rig: LocalRig, tmp_path: Path) -> None:
    source = tmp_path / "file"
    source.write_text("x")
    instance = asyncio.run(rig.ended(rig.order(file_mounts={"a": str(source), "a/b": str(source)})))
    assert instance.failed_phase == "setup"


def test_workspaces_of_older_versions_go_when_nobody_uses_them(rig: LocalRig) -> None:
    v1, v2 = rig.order(), rig.order(replica_id=2, version=2, workspace="v2")
    v3 = rig.order(replica_id=3, version=3, workspace="v3")

    async def scenario() -> None:
        await rig.up(v1)
        await rig.provider.launch(v2)
        await rig.until(in_state(InstanceState.RUNNING, count=2))
        assert workdir(rig, "v1").exists(), "still in use"
        await rig.provider.terminate("t1")
        await rig.until(in_state(InstanceState.RUNNING))
        await rig.provider.launch(v3)
        assert not workdir(rig, "v1").exists()
        assert workdir(rig, "v2").exists()

    asyncio.run(scenario())


def test_an_older_version_that_comes_back_leaves_the_newer_workspace(rig: LocalRig) -> None:
    async def scenario() -> None:
        await rig.up(newer)
        await rig.clear()
        await rig.up(older)

    newer, older = rig.order(version=2, workspace="v2"), rig.order(replica_id=2)
    asyncio.run(scenario())
    assert workdir(rig, "v2").exists()
