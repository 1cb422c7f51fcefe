"""What keeps replicas apart: addresses, enclosures in real namespaces, and control groups where they can be had."""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from skyserve.providers import enclosure, isolation
from skyserve.providers.isolation import Controller, Isolation

if TYPE_CHECKING:
    from skyserve.providers.enclosure import NetworkPlan

HERE = isolation.detect(os.environ)
needs_network = pytest.mark.skipif(HERE.no_network is not None, reason=f"no network namespaces: {HERE.no_network}")
needs_memory_group = pytest.mark.skipif(not HERE.limits("memory"), reason="no writable control group for memory")
PATIENCE_S = 20.0


def networks(*texts: str) -> list[ipaddress.IPv4Network]:
    return [ipaddress.IPv4Network(text) for text in texts]


class TestAddresses:
    def test_where_the_search_begins_depends_on_the_name(self) -> None:
        assert isolation.pick_addresses("0", []) == ("198.18.0.1", "198.18.0.2")
        assert isolation.pick_addresses("1", []) == ("198.18.0.5", "198.18.0.6")

    def test_another_pair_is_stepped_over(self) -> None:
        assert isolation.pick_addresses("0", networks("198.18.0.0/30")) == ("198.18.0.5", "198.18.0.6")
        assert isolation.pick_addresses("3fff", networks("198.18.255.254/32")) == ("198.18.0.1", "198.18.0.2")

    @pytest.mark.parametrize("route", ["198.18.0.0/15", "198.18.7.0/24", "198.0.0.0/8"])
    def test_a_range_that_a_route_leads_into_is_left_alone(self, route: str) -> None:
        outer, _ = isolation.pick_addresses("0", networks(route, "10.0.0.0/24"))
        assert ipaddress.IPv4Address(outer) not in networks(route)[0]

    def test_says_when_nothing_is_left(self) -> None:
        with pytest.raises(ValueError, match=r"198\.18\.0\.0/16.* is in use"):
            isolation.pick_addresses("0", networks("0.0.0.0/1", "128.0.0.0/1"))


class TestWithoutPrivileges:
    def test_says_what_is_missing(self, tmp_path: Path) -> None:
        if os.geteuid() != 0:
            assert "root" in (isolation.why_no_network(os.environ) or "")
        else:
            assert "iproute2" in (isolation.why_no_network({"PATH": str(tmp_path)}) or "")

    def test_nothing_to_enclose_leaves_the_command_as_it_is(self) -> None:
        assert isolation.enclosed({"groups": [], "network": None}, ["true"]) == ["true"]

    def test_without_controllers_there_are_no_groups(self) -> None:
        assert Isolation().groups("a", {"memory": 1.0, "cpu": 2.0}) == []


class TestControllers:
    def test_limits_in_the_words_of_each_version(self, tmp_path: Path) -> None:
        assert Controller("memory", 2, tmp_path).limits(1.5) == {"memory.max": str(3 * 2**29)}
        assert Controller("memory", 1, tmp_path).limits(1.0) == {"memory.limit_in_bytes": str(2**30)}
        assert Controller("cpu", 2, tmp_path).limits(0.5) == {"cpu.max": "50000 100000"}
        assert Controller("cpu", 1, tmp_path).limits(2.0)["cpu.cfs_quota_us"] == "200000"

    def test_one_group_takes_both_limits_where_one_hierarchy_has_both(self, tmp_path: Path) -> None:
        both = Isolation(None, (Controller("memory", 2, tmp_path), Controller("cpu", 2, tmp_path)))
        [group] = both.groups("a", {"memory": 1.0, "cpu": 1.0})
        assert set(group["limits"]) == {"memory.max", "cpu.max"}
        assert Path(group["path"]).parent == tmp_path

    def test_version_2_is_used_where_a_group_above_passes_the_controller_on(self, tmp_path: Path) -> None:
        proc, top = unified(tmp_path, "user/scope", passed_on={"user": "memory"})
        assert isolation.find_controllers(proc) == (Controller("memory", 2, top / "user"),)

    def test_nothing_is_limited_where_no_group_passes_a_controller_on(self, tmp_path: Path) -> None:
        proc, _ = unified(tmp_path, "user/scope", passed_on={})
        assert isolation.find_controllers(proc) == ()

    @needs_memory_group
    def test_a_group_is_joined_and_swept_when_it_is_empty(self) -> None:
        name = f"test {os.getpid()}"
        groups = HERE.groups(name, {"memory": 1.0})
        command = isolation.enclosed({"groups": groups, "network": None}, ["cat", "/proc/self/cgroup"])
        told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        [path] = {Path(group["path"]) for group in groups}
        assert path.name in told
        HERE.sweep()
        assert not path.exists()

    @needs_memory_group
    def test_what_takes_more_than_the_limit_is_killed(self) -> None:
        groups = HERE.groups(f"test greedy {os.getpid()}", {"memory": 0.05})
        eat = [sys.executable, "-c", "x = bytearray(400 * 2**20); print(len(x))"]
        done = subprocess.run(
            isolation.enclosed({"groups": groups, "network": None}, eat), capture_output=True, check=False
        )
        HERE.sweep()
        assert done.returncode == -9


@needs_network
class TestNetwork:
    def test_an_engine_on_its_loopback_is_reached_and_nothing_is_left_of_it(self, tmp_path: Path) -> None:
        network = isolation.plan_network((8080,), os.environ, "/nowhere")
        (tmp_path / "index.html").write_text("from inside")
        with inside(network, "-m", "http.server", "8080", "--bind", "127.0.0.1", cwd=tmp_path):
            assert fetched(f"http://{network['inner']}:8080/") == b"from inside"
            assert network["interface"] in interfaces()
        until(lambda: network["interface"] not in interfaces())

    def test_two_listen_on_one_port(self, tmp_path: Path) -> None:
        with contextlib.ExitStack() as stack:
            addresses = []
            for name in ("one", "two"):
                (tmp_path / name).mkdir()
                (tmp_path / name / "index.html").write_text(name)
                network = isolation.plan_network((8080,), os.environ, "/nowhere")
                stack.enter_context(inside(network, "-m", "http.server", "8080", cwd=tmp_path / name))
                addresses.append(network["inner"])
            assert [fetched(f"http://{address}:8080/") for address in addresses] == [b"one", b"two"]

    def test_a_port_that_nobody_listens_on_refuses_at_once(self, tmp_path: Path) -> None:
        network = isolation.plan_network((8080,), os.environ, "/nowhere")
        with inside(network, "-c", "import time; open('up', 'w').close(); time.sleep(60)", cwd=tmp_path):
            until((tmp_path / "up").exists)
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection((network["inner"], 8080), timeout=5)

    def test_streams_lead_out_both_ways_to_their_end(self, tmp_path: Path) -> None:
        network = isolation.plan_network((8080,), os.environ, "/nowhere")
        with socket.create_server(("", 0)) as server:
            echo = threading.Thread(target=echo_once, args=(server,))
            echo.start()
            command = isolation.enclosed(
                {"groups": [], "network": network},
                [sys.executable, "-I", "-c", SENDS, network["outer"], str(server.getsockname()[1])],
            )
            done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
            echo.join()
        assert done.stdout.split() == ["3000000", "True", "refused", "datagram"], done.stderr

    def test_a_plan_that_cannot_be_is_refused_with_the_tools_words(self) -> None:
        network: NetworkPlan = {
            "instance": "/nowhere",
            "interface": "sky",
            "outer": "nonsense",
            "inner": "198.18.0.2",
            "ports": [1],
        }
        command = isolation.enclosed({"groups": [], "network": network}, ["true"])
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
        assert done.returncode == enclosure.NOT_ENCLOSED
        assert "nonsense" in done.stderr
        until(lambda: "sky" not in interfaces())


def test_name_servers_are_those_of_the_machine(tmp_path: Path) -> None:
    path = tmp_path / "resolv.conf"
    path.write_text("search example\nnameserver 127.0.0.53\nnameserver ::1\noptions edns0\nnameserver\n")
    assert enclosure.resolvers(str(path)) == ["127.0.0.53", "::1"]
    assert enclosure.resolvers(str(tmp_path / "none")) == []


SENDS = """
import socket, sys
host, port = sys.argv[1], int(sys.argv[2])
with socket.create_connection((host, port), 10) as stream:
    stream.settimeout(10)
    stream.sendall(b"x" * 3_000_000)
    stream.shutdown(socket.SHUT_WR)
    back = b"".join(iter(lambda: stream.recv(65536), b""))
print(len(back), back == b"x" * 3_000_000)
try:
    with socket.create_connection((host, 1), 10) as stream:
        stream.settimeout(10)
        print("refused" if not stream.recv(1) else "?")
except ConnectionError:
    print("refused")
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
    try:
        datagrams.sendto(b"x", (host, 4444))
        print("sent")
    except PermissionError:
        print("datagram")
"""


def echo_once(server: socket.socket) -> None:
    stream, _ = server.accept()
    with stream:
        while data := stream.recv(65536):
            stream.sendall(data)


@contextlib.contextmanager
def inside(network: NetworkPlan, *arguments: str, cwd: Path) -> Iterator[None]:
    """A Python program in an enclosure, killed at the end."""
    command = isolation.enclosed({"groups": [], "network": network}, [sys.executable, "-I", *arguments])
    process = subprocess.Popen(command, cwd=cwd, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.kill()
        process.wait()


def fetched(url: str) -> bytes:
    """The body, as soon as there is an answer."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=5) as answer:
                body: bytes = answer.read()
                return body
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.02)


def interfaces() -> set[str]:
    return {name for _, name in socket.if_nameindex()}


def until(true: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def unified(tmp_path: Path, own: str, *, passed_on: dict[str, str]) -> tuple[Path, Path]:
    """Files that look like /proc/self and a version 2 hierarchy."""
    proc, top = tmp_path / "proc", tmp_path / "cgroup"
    proc.mkdir()
    (top / own).mkdir(parents=True)
    (proc / "mounts").write_text(f"cgroup2 {top} cgroup2 rw 0 0\n")
    (proc / "cgroup").write_text(f"0::/{own}\n")
    for group in (top / own, *(top / own).parents):
        if group.is_relative_to(top):
            words = passed_on.get(str(group.relative_to(top)), "")
            (group / "cgroup.subtree_control").write_text(words)
            (group / "cgroup.procs").touch()
    return proc, top


def test_a_plan_can_be_told_on_a_command_line() -> None:
    network: NetworkPlan = {
        "instance": "/nowhere",
        "interface": "sky1",
        "outer": "198.18.0.1",
        "inner": "198.18.0.2",
        "ports": [80],
    }
    command = isolation.enclosed({"groups": [], "network": network}, ["true", "x"])
    assert json.loads(command[-3])["network"] == network
    assert command[-2:] == ["true", "x"]
