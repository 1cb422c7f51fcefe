"""ssh_node_pools.yaml: what it may say, and where it says what is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from skyserve.errors import SpecError
from skyserve.providers.ssh.pools import PoolHost, read


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "ssh_node_pools.yaml"
    path.write_text(text)
    return path


def test_hosts_are_names_or_maps_and_pools_give_defaults(tmp_path: Path) -> None:
    (tmp_path / ".ssh").mkdir()
    key, other = tmp_path / ".ssh" / "id", tmp_path / "other"
    key.touch()
    other.touch()
    path = written(
        tmp_path,
        """
my-pool:
  hosts:
    - gpu-1
    - ubuntu@10.0.0.1
    - ip: 10.0.0.2
      user: root
    - hostname: gpu-2.example
      identity_file: other
  user: ubuntu
  identity_file: ~/.ssh/id
my-box: {hosts: ["2001:db8::1"]}
""",
    )
    assert read(path, tmp_path) == {
        "my-pool": (
            PoolHost("my-pool", "gpu-1", "ubuntu", key),
            PoolHost("my-pool", "ubuntu@10.0.0.1", "ubuntu", key),
            PoolHost("my-pool", "10.0.0.2", "root", key),
            PoolHost("my-pool", "gpu-2.example", "ubuntu", other),
        ),
        "my-box": (PoolHost("my-box", "2001:db8::1"),),
    }


@pytest.mark.parametrize(
    ("text", "where", "message"),
    [
        ("", "1:1", "there are no pools in it"),
        ("- a\n", "1:1", "pools must be a map"),
        ("a: [\n", "2:1", "not YAML"),
        ("a:\n  host: [b]\n", "2:3", "pool a has no setting 'host'; it has hosts, user, identity_file"),
        ("a:\n  hosts: b\n", "2:10", "pool a needs a list of hosts"),
        ("a:\n  user: b\n", "1:1", "pool a needs a list of hosts"),
        ("a:\n  hosts:\n    - {user: b}\n", "3:7", "a host needs either `ip` or `hostname`"),
        ("a:\n  hosts:\n    - {ip: b, port: 22}\n", "3:15", "a host has no setting 'port'"),
        ("a:\n  hosts: ['-oProxyCommand=x']\n", "2:11", "'-oProxyCommand=x' is not the name or address of a host"),
        ("a:\n  hosts: [b]\n  user: -lroot\n", "3:9", "'-lroot' is not a user name"),
        ("a:\n  hosts: [b]\n  identity_file: nowhere\n", "3:18", "there is no file"),
        ("a/b:\n  hosts: [b]\n", "1:1", "'a/b' is not the name of a pool"),
        ("a:\n  hosts: [b]\na:\n  hosts: [c]\n", "3:1", "a is there twice"),
        ("a:\n  hosts: [b]\nc:\n  hosts: [b]\n", "3:1", "host b is listed twice: in a and in c"),
        ("a:\n  hosts: [b, b]\n", "1:1", "host b is listed twice"),
    ],
)
def test_what_is_wrong_is_told_with_its_place(tmp_path: Path, text: str, where: str, message: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(SpecError) as raised:
        read(path, tmp_path)
    assert raised.value.where == f"{path}:{where}"
    assert message in raised.value.message


def test_a_password_is_refused_and_not_repeated(tmp_path: Path) -> None:
    with pytest.raises(SpecError) as raised:
        read(written(tmp_path, "a:\n  hosts: [b]\n  password: hunter2\n"), tmp_path)
    error = raised.value
    assert "only keys let us in" in error.message
    assert "ssh-copy-id" in (error.hint or "")
    assert "hunter2" not in f"{error.message}{error.hint}{error.excerpt}"


def test_an_excerpt_points_at_the_culprit(tmp_path: Path) -> None:
    with pytest.raises(SpecError) as raised:
        read(written(tmp_path, "a:\n  hosts: [b]\n  uesr: x\n"), tmp_path)
    assert raised.value.excerpt == "  uesr: x\n  ^"


def test_a_file_that_cannot_be_read_says_so(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="cannot be read"):
        read(tmp_path / "none", tmp_path)
