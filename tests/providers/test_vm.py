"""A cloud's machines as replicas: real machines reached by real SSH, rented from a cloud on paper."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Coroutine, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from tests.providers.ssh_rig import SERVES, TOKEN, PaperCloud, VmRig, needs_machines, only, until, vm_rig

from skyserve.errors import (
    CapacityUnavailable,
    CredentialsRejected,
    OrderRejected,
    ProviderUnavailable,
    StoreUnavailable,
)
from skyserve.model.evidence import Instance, InstanceState
from skyserve.model.offering import CapacityType
from skyserve.model.resources import Accelerator, ResourceChoice, Resources
from skyserve.providers import boot, vm
from skyserve.providers.base import Candidates, Capabilities, Exit
from skyserve.providers.vm_cloud import TAG_INSTALLATION, TAG_SERVICE, TAG_TOKEN, VmState

TOKEN_ID = f"vm/{TOKEN}"
GPU = Resources(accelerators=Accelerator("A10", 1))


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[VmRig]:
    """Real machines."""
    with vm_rig(tmp_path) as rig:
        yield rig


@pytest.fixture
def paper(tmp_path: Path) -> Iterator[VmRig]:
    """Machines that never come up."""
    with vm_rig(tmp_path, hosts=False) as rig:
        yield rig


def play(rig: VmRig, scene: Coroutine[None, None, None]) -> None:
    async def whole() -> None:
        try:
            await scene
        finally:
            await rig.close()

    asyncio.run(whole())


async def printed(provider: vm.VmProvider, *, tail: int | None = None) -> str:
    return b"".join([data async for data in provider.logs(TOKEN_ID, follow=False, tail=tail)]).decode()


async def printing(provider: vm.VmProvider, text: str) -> str:
    deadline = time.monotonic() + 20
    while text not in (log := await printed(provider)):
        assert time.monotonic() < deadline, log
        await asyncio.sleep(0.1)
    return log


async def heard(provider: vm.VmProvider, rig: VmRig) -> None:
    """Wait until an agent has said anything."""
    await provider.instances()
    await rig.news.wait()


def kept(rig: VmRig) -> list[str]:
    """What is kept of machines on the controller's side."""
    return sorted(str(path.relative_to(rig.config.home)) for path in rig.config.home.glob("machines/*/*"))


# -- on real machines


@needs_machines
def test_a_machine_starts_itself_and_is_heard(rig: VmRig) -> None:
    async def scene() -> None:
        provider = rig.provider()
        order = rig.order("echo hello; exec sleep 1000", setup="echo set up >&2")
        launched = await provider.launch(order)
        assert launched == Instance(TOKEN_ID, "paper", "chat-u1", TOKEN, InstanceState.STARTING)
        [running] = await until(provider, only(InstanceState.RUNNING))
        assert running.address == f"127.0.0.1:{order.port}"
        assert running.setup_started_at is not None
        assert rig.news.is_set()
        assert await printing(provider, "hello") == "set up\nhello\n"
        assert await printed(provider, tail=1) == "hello\n"
        assert kept(rig) == [
            f"machines/{TOKEN}/host_key",
            f"machines/{TOKEN}/host_key.pub",
            f"machines/{TOKEN}/known_hosts",
            f"machines/{TOKEN}/service",
        ]
        await provider.terminate(TOKEN_ID)
        await provider.terminate(TOKEN_ID)
        assert await provider.instances() == ()
        assert await printed(provider, tail=1) == "hello\n"
        assert kept(rig) == []
        await provider.release("chat-u1")
        assert await printed(provider) == ""
        assert rig.cloud.released == ["chat-u1"]

    play(rig, scene())


@needs_machines
def test_a_script_runs_beside_the_replica(rig: VmRig) -> None:
    async def scene() -> None:
        provider = rig.provider()
        await provider.launch(rig.order("echo up; exec sleep 1000"))
        await until(provider, only(InstanceState.RUNNING))
        script = 'echo $SKYPILOT_SERVE_REPLICA_ID $MINE; basename "$PWD"; echo odd >&2; exit 7'
        told = [piece async for piece in provider.execute(TOKEN_ID, script, {"MINE": "very secret"})]
        output = b"".join(piece for piece in told if isinstance(piece, bytes))
        assert (output, told[-1]) == (b"1 very secret\nworkdir\nodd\n", Exit(7))
        endless = provider.execute(TOKEN_ID, "echo $$; sleep 1000", {})
        async for piece in endless:
            pid = int(piece) if isinstance(piece, bytes) else 0
            break
        await endless.aclose()
        assert not [command for command in rig.leftovers() if " execute " in command]
        await until_gone(pid)
        with pytest.raises(OrderRejected):
            async for _ in provider.execute("vm/unknown", "true", {}):
                pass

    play(rig, scene())


async def until_gone(pid: int) -> None:
    """Wait until no process has this number in its own namespace, under our test's sleeping script."""
    deadline = time.monotonic() + 10
    while any("sleep 1000" in line and "bash -c echo" in line for line in command_lines()):
        assert time.monotonic() < deadline, f"the script {pid} goes on"
        await asyncio.sleep(0.05)


def command_lines() -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found.append(path.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        except OSError:
            continue
    return found


@needs_machines
def test_secrets_and_files_are_brought_later(rig: VmRig, tmp_path: Path) -> None:
    async def scene() -> None:
        workdir, mount = tmp_path / "workdir", tmp_path / "config.json"
        (workdir / "app").mkdir(parents=True)
        (workdir / "app" / "main.sh").write_text("echo main ${#KEY}\n")
        mount.write_text("{}")
        provider = rig.provider()
        files = {"workdir": str(workdir), "file_mounts": {"~/.config.json": str(mount)}}
        run = "bash app/main.sh; cat ~/.config.json; exec sleep 1000"
        await provider.launch(rig.order(run, secrets={"KEY": "hush-hush"}, **files))
        [order] = rig.cloud.orders
        assert "hush" not in order.user_data
        assert "hush" not in repr(order.order)
        assert not any(b"hush" in path.read_bytes() for path in rig.config.home.rglob("*") if path.is_file())
        await until(provider, only(InstanceState.RUNNING))
        assert "main 9\n{}" in await printing(provider, "{}")
        host = rig.cloud.hosts[TOKEN_ID]
        assert not any(b"hush-hush" in path.read_bytes() for path in host.root.rglob("*") if path.is_file())
        assert (host.directory / "root" / "sky_workdir").is_symlink()

    play(rig, scene())


@needs_machines
def test_another_controller_delivers_what_the_first_could_not(rig: VmRig) -> None:
    async def scene() -> None:
        first = rig.provider()
        await first.launch(rig.order("echo $KEY; exec sleep 1000", secrets={"KEY": "hush"}))
        await first.close()
        rig.trouble = StoreUnavailable("the secrets cannot be read")
        second = rig.provider()
        listed = await until(second, lambda listed: "cannot be read" in listed[0].detail)
        assert listed[0].state is InstanceState.STARTING
        rig.trouble = None
        await until(second, only(InstanceState.RUNNING))
        assert await printing(second, "hush") == "hush\n"

    play(rig, scene())


@needs_machines
def test_a_machine_that_nobody_waits_for_gets_no_order(rig: VmRig) -> None:
    async def scene() -> None:
        provider = rig.provider()
        await provider.launch(rig.order(secrets={"KEY": "hush"}))
        rig.orders.clear()
        await asyncio.wait_for(heard(provider, rig), 20)
        await asyncio.sleep(0.3)
        assert [instance.state for instance in await provider.instances()] == [InstanceState.STARTING]

    play(rig, scene())


@needs_machines
def test_an_order_that_does_not_fit_is_brought_later(rig: VmRig) -> None:
    async def scene() -> None:
        noise = "".join(f"# {number * 7919 % 100003}\n" for number in range(3000))
        provider = rig.provider()
        await provider.launch(rig.order(f"{noise}\n{SERVES}"))
        assert len(rig.cloud.orders[0].user_data.encode()) <= rig.cloud.user_data_limit
        await until(provider, only(InstanceState.RUNNING))

    play(rig, scene())


@needs_machines
def test_an_application_that_ends_is_told_with_its_last_words(rig: VmRig) -> None:
    async def scene() -> None:
        provider = rig.provider()
        await provider.launch(rig.order("true", setup="echo no such package; exit 5"))
        [ended] = await until(provider, only(InstanceState.EXITED))
        assert (ended.exit_code, ended.failed_phase, ended.detail) == (5, "setup", "no such package")

    play(rig, scene())


@needs_machines
def test_a_stopped_machine_goes_on_without_its_setup(rig: VmRig) -> None:
    async def scene() -> None:
        provider = rig.provider()
        order = rig.order("echo run $KEY; exec sleep 1000", setup="echo set up", secrets={"KEY": "hush"})
        await provider.launch(order)
        await until(provider, only(InstanceState.RUNNING))
        await printing(provider, "run hush")
        await provider.stop(TOKEN_ID)
        await until(provider, only(InstanceState.STOPPED))
        await provider.start(TOKEN_ID)
        await until(provider, only(InstanceState.RUNNING))
        log = await printing(provider, "already done")
        assert log.count("set up\n") == 1

    play(rig, scene())


@needs_machines
def test_a_line_that_breaks_changes_nothing(rig: VmRig) -> None:
    async def scene() -> None:
        provider = rig.provider()
        await provider.launch(rig.order())
        before = await until(provider, only(InstanceState.RUNNING))
        rig.cloud.hosts[TOKEN_ID].stop()
        await asyncio.sleep(0.5)
        assert await provider.instances() == before
        rig.cloud.set(TOKEN_ID, VmState.PREEMPTED, detail="taken back")
        [gone] = await provider.instances()
        assert (gone.state, gone.detail) == (InstanceState.PREEMPTED, "taken back")

    play(rig, scene())


@needs_machines
def test_an_agent_of_another_version_is_replaced(rig: VmRig) -> None:
    async def scene() -> None:
        first = rig.provider()
        await first.launch(rig.order())
        await until(first, only(InstanceState.RUNNING))
        await first.close()
        version = rig.cloud.hosts[TOKEN_ID].root / boot.DIGEST_FILE
        version.write_text(json.dumps({"digest": "an older one"}))
        second = rig.provider()
        deadline = time.monotonic() + 20
        while boot.digest() not in version.read_text():
            assert time.monotonic() < deadline
            await until(second, only(InstanceState.RUNNING))

    play(rig, scene())


@needs_machines
def test_ports_may_have_other_numbers_outside(rig: VmRig) -> None:
    async def scene() -> None:
        provider = rig.provider()
        order = rig.order()
        await provider.launch(order)
        rig.cloud.set(TOKEN_ID, VmState.RUNNING, port_of={order.port: 61000}, reclaim_at=12.5)
        [running] = await until(provider, only(InstanceState.RUNNING))
        assert (running.address, running.reclaim_at) == ("127.0.0.1:61000", 12.5)

    play(rig, scene())


@needs_machines
def test_another_machine_at_the_address_is_not_trusted(rig: VmRig) -> None:
    async def scene() -> None:
        first = rig.provider()
        await first.launch(rig.order())
        await until(first, only(InstanceState.RUNNING))
        host = rig.cloud.hosts[TOKEN_ID]
        host.stop()
        host.give_host_key()
        host.start()
        second = rig.provider()
        listed = await until(second, lambda listed: "host key" in listed[0].detail)
        assert listed[0].state is InstanceState.STARTING

    play(rig, scene())


# -- on paper


def test_a_machine_is_ordered_with_all_that_it_needs(paper: VmRig) -> None:
    async def scene() -> None:
        provider = paper.provider()
        order = paper.order(port=8080, ports=(9000, 8080), service_name="My_Chat.Service")
        await provider.launch(order)
        await provider.launch(order)
        first, second = paper.cloud.orders
        assert first == second
        assert first.ports == (22, 8080, 9000)
        assert first.allow_from == ("192.0.2.7/32",)
        assert first.tags.keys() == {TAG_INSTALLATION, TAG_SERVICE, TAG_TOKEN}
        assert (first.tags[TAG_SERVICE], first.tags[TAG_TOKEN]) == ("chat-u1", TOKEN)
        assert first.name.startswith("sky-my-chat-service-1-")
        assert len(await provider.instances()) == 1

    play(paper, scene())


def test_names_are_dns_labels(paper: VmRig) -> None:
    orders = [paper.order(token=token, service_name="x" * 80) for token in ("a", "b")]
    names = [vm.machine_name(order) for order in orders]
    assert len(set(names)) == 2
    assert all(len(name) <= 63 for name in names)


@pytest.mark.parametrize(
    "error", [CapacityUnavailable("none left"), OrderRejected("no such image"), CredentialsRejected("who are you")]
)
def test_nothing_is_kept_of_a_launch_that_was_refused(paper: VmRig, error: OrderRejected) -> None:
    async def scene() -> None:
        paper.cloud.error = error
        with pytest.raises(type(error)):
            await paper.provider().launch(paper.order())
        assert kept(paper) == []

    play(paper, scene())


def test_a_launch_without_an_answer_can_be_repeated(paper: VmRig) -> None:
    async def scene() -> None:
        provider = paper.provider()
        paper.cloud.error = ProviderUnavailable("no answer")
        with pytest.raises(ProviderUnavailable):
            await provider.launch(paper.order())
        with pytest.raises(ProviderUnavailable):
            await provider.instances()
        before = (paper.config.home / f"machines/{TOKEN}/host_key").read_bytes()
        paper.cloud.error = None
        await provider.launch(paper.order())
        assert (paper.config.home / f"machines/{TOKEN}/host_key").read_bytes() == before
        await provider.terminate(TOKEN_ID)
        assert kept(paper) == []

    play(paper, scene())


def test_what_was_never_ended_is_forgotten_with_its_service(paper: VmRig) -> None:
    async def scene() -> None:
        provider = paper.provider()
        await provider.launch(paper.order())
        await provider.launch(paper.order(token="t2", service="other-u2"))
        await provider.release("chat-u1")
        assert {name.split("/")[1] for name in kept(paper)} == {"t2"}

    play(paper, scene())


def test_user_data_that_cannot_fit_is_refused(paper: VmRig) -> None:
    async def scene() -> None:
        paper.cloud.user_data_limit = 1000
        with pytest.raises(OrderRejected, match="at most 1000 are allowed"):
            await paper.provider().launch(paper.order())

    play(paper, scene())


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        (VmState.BOOTING, InstanceState.STARTING),
        (VmState.RUNNING, InstanceState.STARTING),
        (VmState.STOPPING, InstanceState.STOPPING),
        (VmState.STOPPED, InstanceState.STOPPED),
        (VmState.PREEMPTED, InstanceState.PREEMPTED),
    ],
)
def test_the_clouds_word_counts_where_no_agent_is_heard(paper: VmRig, state: VmState, expected: InstanceState) -> None:
    async def scene() -> None:
        provider = paper.provider()
        await provider.launch(paper.order())
        paper.cloud.set(TOKEN_ID, state, detail="says the cloud", reclaim_at=5.0)
        [instance] = await provider.instances()
        assert (instance.state, instance.detail, instance.reclaim_at) == (expected, "says the cloud", 5.0)

    play(paper, scene())


def test_output_of_a_machine_that_is_not_up(paper: VmRig) -> None:
    async def scene() -> None:
        provider = paper.provider()
        await provider.launch(paper.order())
        with pytest.raises(ProviderUnavailable, match="cannot be reached for its output"):
            await printed(provider)

    play(paper, scene())


def test_machines_that_cannot_be_stopped(paper: VmRig) -> None:
    async def scene() -> None:
        paper.cloud.capabilities = Capabilities(cannot={"stop": "they have no disks"})
        provider = paper.provider()
        with pytest.raises(OrderRejected, match="Paper: they have no disks"):
            await provider.stop(TOKEN_ID)
        with pytest.raises(OrderRejected):
            await provider.start(TOKEN_ID)

    play(paper, scene())


def test_openssh_is_needed(paper: VmRig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert asyncio.run(paper.provider().check()).usable
    monkeypatch.setenv("PATH", str(tmp_path))
    result = asyncio.run(paper.provider().check())
    assert not result.usable
    assert result.reason == "ssh and ssh-keygen not on the PATH"


# -- the address that machines let in


class _Address(BaseHTTPRequestHandler):
    body = b"198.51.100.9\n"

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(self.body)

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.mark.parametrize(
    ("body", "expected"), [(b"198.51.100.9\n", "198.51.100.9/32"), (b"2001:db8::9", "2001:db8::9/128")]
)
def test_the_own_address_is_found_out_once(tmp_path: Path, body: bytes, expected: str) -> None:
    handler = type("Handler", (_Address,), {"body": body})
    with HTTPServer(("127.0.0.1", 0), handler) as server, vm_rig(tmp_path, hosts=False) as rig:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        config = type(rig.config)(home=rig.config.home)
        rig.config = config

        async def scene() -> None:
            provider = rig.provider(address_service=f"http://127.0.0.1:{server.server_address[1]}")
            await provider.launch(rig.order())
            await provider.launch(rig.order(token="t2"))
            assert [order.allow_from for order in rig.cloud.orders] == [(expected,), (expected,)]

        play(rig, scene())
        thread.join()


def test_an_address_that_cannot_be_found_out_is_said(tmp_path: Path) -> None:
    with HTTPServer(("127.0.0.1", 0), type("Handler", (_Address,), {"body": b"<html>"})) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        with pytest.raises(ProviderUnavailable, match="did not say") as said:
            vm.public_address(f"http://127.0.0.1:{server.server_address[1]}")
        assert "SKYSERVE_PUBLIC_ADDRESS" in str(said.value.hint)
        thread.join()


# -- offerings


class Narrow(PaperCloud):
    """A cloud that the price catalog knows, and an account that may have little of it."""

    name = "lambda"
    allowed = 3

    async def narrow(self, offerings: object) -> object:  # type: ignore[override]
        assert isinstance(offerings, tuple)
        return offerings[: self.allowed]


def offered(rig: VmRig, tmp_path: Path, allowed: int, *alternatives: Resources) -> Candidates:
    cloud = Narrow(tmp_path, hosts=False)
    cloud.allowed = allowed
    rig.cloud = cloud
    return asyncio.run(rig.provider().offerings(ResourceChoice(alternatives)))


def test_offerings_come_from_the_price_catalog(paper: VmRig, tmp_path: Path) -> None:
    found = offered(paper, tmp_path, 1, GPU, replace(GPU, use_spot=True), replace(GPU, cloud="elsewhere"))
    assert len(found.offerings) == 1
    assert {(one.provider, one.capacity_type) for one in found.offerings} == {("lambda", CapacityType.ON_DEMAND)}
    assert found.refusals == (("Paper", found.refusals[0][1]),)
    assert "no spot price" in found.refusals[0][1]


def test_an_account_that_may_have_nothing_says_so(paper: VmRig, tmp_path: Path) -> None:
    found = offered(paper, tmp_path, 0, GPU)
    assert found.offerings == ()
    assert found.refusals == (("Paper", "this account can launch none of the machines that would do"),)
