"""The system's OpenSSH against a real sshd: what commands get and give, and what each failure is called."""

from __future__ import annotations

import asyncio
import contextlib
import os
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import BinaryIO

import pytest
from tests.providers.ssh_rig import Machine, free_port, needs_machines, ssh_to

from skyserve.errors import CredentialsRejected, ProviderUnavailable
from skyserve.providers.openssh import CommandFailed, Login, Ssh, client_key, control_dir, key_pair, sockets_of


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    machine = Machine(tmp_path_factory.mktemp("machine"))
    yield machine
    machine.stop()


@contextlib.asynccontextmanager
async def connection(machine: Machine, home: Path, **rest: object) -> AsyncIterator[Ssh]:
    ssh = await ssh_to(machine, home, **rest)
    try:
        yield ssh
    finally:
        await ssh.close()
        await gone(home)


async def gone(home: Path) -> None:
    """Wait until no client and no shared connection of this home is left."""
    deadline = time.monotonic() + 20
    while left := [one for one in commands() if os.fsencode(sockets_of(home)) in one]:
        assert time.monotonic() < deadline, left
        await asyncio.sleep(0.05)


def masters(home: Path) -> list[bytes]:
    """The shared connections of a home."""
    return [one for one in commands() if b"[mux]" in one and os.fsencode(sockets_of(home)) in one]


def commands() -> Iterator[bytes]:
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit():
                yield (entry / "cmdline").read_bytes()


@needs_machines
def test_commands_get_stdin_and_give_stdout_over_one_connection(machine: Machine, tmp_path: Path) -> None:
    def feed(pipe: BinaryIO) -> None:
        for _ in range(64):
            pipe.write(b"x" * 65536)

    async def scene() -> None:
        async with connection(machine, tmp_path) as ssh:
            outputs = await asyncio.gather(
                ssh.run("echo $HOME; cat", stdin=b"given"),
                ssh.run(["printf", "%s", "a 'quoted' $HOME"]),
                ssh.run("wc -c", stdin=feed),
                ssh.run("true", stdin=feed),  # a command need not read it all
            )
            assert outputs == [b"/root\ngiven", b"a 'quoted' $HOME", b"4194304\n", b""]
            assert len(masters(tmp_path)) == 1

    asyncio.run(scene())


@needs_machines
def test_a_connection_is_closed_by_its_owner_alone(machine: Machine, tmp_path: Path) -> None:
    async def come_and_go() -> None:
        for _ in range(3):
            other = await ssh_to(machine, tmp_path)
            assert await other.run("echo other") == b"other\n"
            await other.close()

    async def scene() -> None:
        async with connection(machine, tmp_path) as ssh:
            await ssh.run("true")
            [ours] = masters(tmp_path)
            await asyncio.gather(*(come_and_go() for _ in range(4)))
            assert await ssh.run("echo ours") == b"ours\n"
            assert ours in masters(tmp_path)

    asyncio.run(scene())


@needs_machines
def test_nothing_is_left_of_what_is_given_up_at_any_moment(machine: Machine, tmp_path: Path) -> None:
    async def scene() -> None:
        async with connection(machine, tmp_path) as ssh:
            await ssh.run("true")
            for turns in range(20):
                running = asyncio.create_task(ssh.run("exec sleep 1000"))
                for _ in range(turns):
                    await asyncio.sleep(0)
                running.cancel()
                await asyncio.wait({running})
                assert not [
                    one for one in commands() if b"sleep 1000" in one and os.fsencode(sockets_of(tmp_path)) in one
                ]

    asyncio.run(scene())


@needs_machines
def test_output_is_streamed_as_it_comes(machine: Machine, tmp_path: Path) -> None:
    async def scene() -> None:
        async with connection(machine, tmp_path) as ssh:
            async with contextlib.aclosing(ssh.lines("echo one; echo two; exec sleep 1000")) as lines:
                assert [await anext(lines), await anext(lines)] == ["one", "two"]
            pieces = [piece async for piece in ssh.stream("printf 'a\\nb'")]
            assert b"".join(pieces) == b"a\nb"
            with pytest.raises(CommandFailed, match="no more"):
                async for _ in ssh.stream("echo some; echo no more >&2; exit 4"):
                    pass

    asyncio.run(scene())


@needs_machines
def test_failures_have_names(machine: Machine, tmp_path: Path) -> None:
    async def scene() -> None:
        async with connection(machine, tmp_path) as ssh:
            with pytest.raises(CommandFailed, match=r"^last words$") as failed:
                await ssh.run("echo first >&2; echo last words >&2; exit 3")
            assert failed.value.status == 3
            with pytest.raises(ProviderUnavailable, match=r"did not finish within 0\.2 s"):
                await ssh.run("sleep 1000", timeout_s=0.2)

            def broken(pipe: BinaryIO) -> None:
                raise PermissionError("not yours")

            with pytest.raises(ProviderUnavailable, match="not yours"):
                await ssh.run("cat", stdin=broken)

    asyncio.run(scene())


@needs_machines
def test_another_host_key_is_not_trusted(machine: Machine, tmp_path: Path) -> None:
    async def scene() -> None:
        other = await key_pair(tmp_path / "other")
        async with connection(machine, tmp_path, host_key=other.public) as ssh:
            with pytest.raises(CredentialsRejected, match="does not have the host key"):
                await ssh.run("true")

    asyncio.run(scene())


@needs_machines
def test_a_key_that_is_not_let_in(machine: Machine, tmp_path: Path) -> None:
    async def scene() -> None:
        other = await key_pair(tmp_path / "other")
        async with connection(machine, tmp_path, identity=other.private_file) as ssh:
            with pytest.raises(CredentialsRejected, match=r"does not let us in: .*Permission denied"):
                await ssh.run("true")

    asyncio.run(scene())


@needs_machines
def test_the_users_own_configuration_is_honoured(machine: Machine, tmp_path: Path) -> None:
    async def scene() -> None:
        key = await client_key(tmp_path)
        settings = (
            f"Host box\n HostName 127.0.0.1\n Port {machine.port}\n User root\n IdentityFile {key.private_file}\n"
        )
        (tmp_path / "config").write_text(settings)
        given = {"host": "box", "port": None, "user": None, "identity": None, "config": tmp_path / "config"}
        async with connection(machine, tmp_path, **given, options=(("Compression", "yes"),)) as ssh:
            assert await ssh.run("id -u") == b"0\n"

    asyncio.run(scene())


@needs_machines
def test_a_machine_that_dies_ends_its_streams(tmp_path: Path) -> None:
    async def scene() -> None:
        machine = Machine(tmp_path / "mortal")
        try:
            async with connection(machine, tmp_path) as ssh:
                lines = ssh.lines("echo up; exec sleep 1000")
                assert await anext(lines) == "up"
                machine.stop()
                with pytest.raises(ProviderUnavailable):
                    await anext(lines)
                machine.start()
                for _ in range(100):
                    with contextlib.suppress(ProviderUnavailable):
                        assert await ssh.run("echo back") == b"back\n"
                        break
                    await asyncio.sleep(0.05)
        finally:
            machine.stop()

    asyncio.run(scene())


def test_nobody_there(tmp_path: Path) -> None:
    async def scene() -> None:
        ssh = Ssh(Login("127.0.0.1", port=free_port(), config=Path("none")), tmp_path)
        with pytest.raises(ProviderUnavailable, match="Connection refused"):
            await ssh.run("true")
        with pytest.raises(ProviderUnavailable, match="Connection refused"):
            await anext(ssh.lines("true"))
        await ssh.close()

    asyncio.run(scene())


def test_a_host_is_never_taken_for_an_option(tmp_path: Path) -> None:
    async def scene() -> None:
        ssh = Ssh(Login(f"-oProxyCommand=touch {tmp_path}/owned", config=Path("none")), tmp_path)
        with pytest.raises(ProviderUnavailable):
            await ssh.run("true")

    asyncio.run(scene())
    assert not (tmp_path / "owned").exists()


def test_a_long_home_gets_short_sockets(tmp_path: Path) -> None:
    assert control_dir(Path("/home/me/.local")) == Path("/home/me/.local/ssh/c")
    longer = [sockets_of(tmp_path / ("x" * 100) / name) for name in "ab"]
    assert longer[0] != longer[1]
    assert all(len(os.fsencode(path)) < 65 for path in longer)


def test_a_key_is_made_once(tmp_path: Path) -> None:
    async def scene() -> None:
        made = await asyncio.gather(*(client_key(tmp_path) for _ in range(4)))
        assert len({key.public for key in made}) == 1
        [key] = {key.private_file for key in made}
        assert key.stat().st_mode & 0o777 == 0o600
        assert made[0].public.startswith("ssh-ed25519 AAAA")
        assert made[0].private.startswith("-----BEGIN OPENSSH PRIVATE KEY-----\n")
        assert sorted(path.name for path in key.parent.iterdir()) == ["id_ed25519", "id_ed25519.pub"]
        key.with_name("id_ed25519.pub").unlink()
        assert (await client_key(tmp_path)).public == made[0].public

    asyncio.run(scene())


def test_a_directory_of_somebody_else_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # a home with a long path has its sockets there
    control_dir(tmp_path).mkdir(parents=True)
    control_dir(tmp_path).chmod(0o777)

    async def scene() -> None:
        with pytest.raises(ProviderUnavailable, match="not a directory of ours alone"):
            await Ssh(Login("127.0.0.1", port=1), tmp_path).run("true")

    asyncio.run(scene())


def test_without_openssh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))

    async def scene() -> None:
        with pytest.raises(ProviderUnavailable, match="ssh cannot be run"):
            await Ssh(Login("127.0.0.1"), tmp_path).run("true")
        with pytest.raises(ProviderUnavailable, match="ssh-keygen cannot be run"):
            await client_key(tmp_path)

    asyncio.run(scene())
