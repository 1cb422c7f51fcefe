"""The bed itself: hosts that boot, die, lose the network and come back, and nothing left of them."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from tests.bed.core import CloudCore, Machine
from tests.bed.hosts import Bed, BedBroken, Host
from tests.bed.network import CONTROLLER
from tests.bed.private import CommandFailed, obstacle, private_network

pytestmark = pytest.mark.bed

ECHO = "#!/bin/bash\ncd /srv && exec python3 -m http.server 80 --bind 0.0.0.0\n"
SSHD = "#!/bin/bash\n/usr/sbin/sshd\necho started\n"


def until(true: Callable[[], object], within_s: float = 20.0) -> None:
    deadline = time.monotonic() + within_s
    while not true():
        assert time.monotonic() < deadline, f"not within {within_s} s"
        time.sleep(0.02)


def call(address: str, port: int, patience_s: float = 0.5) -> str:
    """How a connection attempt ends: open, refused, or silent."""
    try:
        socket.create_connection((address, port), timeout=patience_s).close()
    except ConnectionRefusedError:
        return "refused"
    except TimeoutError:
        return "silent"
    return "open"


def serving(host: Host, port: int) -> None:
    until(lambda: call(host.address, port) == "open")


def rent(core: CloudCore, user_data: str, zone: str = "us-east-1a", machine_id: str = "vm-1") -> Machine:
    order = {"token": None, "zone": zone, "machine_type": "big", "spot": True, "machine_id": machine_id}
    return core.create(user_data=user_data, **order)


def traces() -> tuple[list[str], int, list[str]]:
    """What a bed might leave behind: mounts, open files, processes in other pid namespaces."""
    mounts = Path("/proc/thread-self/mounts").read_text(encoding="utf-8").splitlines()
    ours = os.stat("/proc/self/ns/pid").st_ino
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text(encoding="ascii").split()
    foreign = [pid for pid in children if os.stat(f"/proc/{pid}/ns/pid_for_children").st_ino != ours]
    links = [line.split(":")[0].strip() for line in Path("/proc/thread-self/net/dev").read_text().splitlines()[2:]]
    beds = [link for link in links if link.startswith("bed")]
    return sorted(mounts), len(os.listdir("/proc/self/fd")), foreign + beds


def test_user_data_runs_on_a_machine_of_its_own(bed: Bed) -> None:
    script = (
        "#!/bin/bash\ncommand -v python3\nhostname\necho ~\npwd\nls -A ~ /tmp\ntouch /etc/mine /opt/mine\necho done\n"
    )
    host = bed.launch("worker_1", "eu-west-1b", script)
    until(lambda: host.output.endswith("done\n"))
    assert host.output.split() == ["/usr/bin/python3", "worker-1", "/root", "/root", "/root:", "/tmp:", "done"]
    assert host.path("/etc/mine").exists()
    assert not Path("/etc/mine").exists()
    assert host.run("cat", "/proc/sys/kernel/hostname") == "worker-1\n"
    with pytest.raises(CommandFailed):
        host.run("ip", "route", "get", "8.8.8.8", "oif", "nowhere")


def test_an_ssh_host_lets_its_owner_in(bed: Bed, tmp_path: Path) -> None:
    key = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    owned = bed.ssh_host("home", key.with_suffix(".pub").read_text(encoding="ascii"))
    known = tmp_path / "known_hosts"
    known.write_text(f"{owned.known_hosts}\n", encoding="ascii")
    serving(owned.host, 22)
    options = ["-F", "none", "-i", str(key), "-o", f"UserKnownHostsFile={known}", "-o", "BatchMode=yes"]
    ask = ["ssh", *options, f"{owned.user}@{owned.address}", "hostname; command -v python3; echo $HOME; cat"]
    told = subprocess.run(ask, input="by stdin\n", capture_output=True, text=True, timeout=20, check=True)
    assert told.stdout.split("\n") == ["host-1", "/usr/bin/python3", "/root", "by stdin", ""]


def test_the_metadata_address_answers_each_machine(bed: Bed) -> None:
    ask = "import urllib.request as u; q = u.Request('http://169.254.169.254/who', b'', {'X-Key': 'k'}, method='PUT')"
    user_data = f'#!/bin/bash\npython3 -c "{ask}; print(u.urlopen(q, timeout=5).read().decode())"\n'

    def answer(machine: Machine, method: str, path: str, headers: Mapping[str, str]) -> tuple[int, bytes]:
        return 200, f"{machine.id} {method} {path} {headers['x-key']}".encode()

    with CloudCore(bed) as core:
        core.metadata = answer
        for number in (1, 2):
            rent(core, user_data, machine_id=f"vm-{number}")
        until(lambda: len(bed.hosts) == 2 and all(host.output.endswith("\n") for host in bed.hosts.values()))
        assert [host.output for host in bed.hosts.values()] == ["vm-1 PUT /who k\n", "vm-2 PUT /who k\n"]


def test_hosts_of_two_regions_reach_each_other_and_the_controller(bed: Bed) -> None:
    east, west = bed.launch("east", "us-east-1a", ECHO), bed.launch("west", "us-west-2a", ECHO)
    assert east.region is not west.region
    serving(west, 80)
    fetch = "import sys, urllib.request as u; print(u.urlopen(sys.argv[1], timeout=5).status)"
    assert east.run("python3", "-c", fetch, f"http://{west.address}/") == "200\n"
    with socket.create_server((CONTROLLER, 0)) as server:
        server.settimeout(5)
        port = server.getsockname()[1]
        connect = f"import socket; print(socket.create_connection(('{CONTROLLER}', {port}), 5).recv(9).decode())"
        asking = bed.launch("asking", "us-west-2b", f'#!/bin/sh\npython3 -c "{connect}"\n')
        with server.accept()[0] as connection:
            assert connection.getpeername()[0] == asking.address
            connection.sendall(b"hello")
    until(lambda: asking.output == "hello\n")


def test_a_killed_host_refuses_and_nothing_of_it_runs_on(bed: Bed) -> None:
    host = bed.launch("victim", "us-east-1a", "#!/bin/bash\nsetsid nohup sleep 1000 &\n/usr/sbin/sshd\n")
    serving(host, 22)
    before = host.processes()
    assert len(before) >= 3
    started = time.monotonic()
    host.kill()
    assert call(host.address, 22) == "refused"
    assert time.monotonic() - started < 1
    assert not [pid for pid in before if Path(f"/proc/{pid}").exists()]
    assert not host.alive


def test_a_preemption_kills_at_its_instant_though_nobody_asks(bed: Bed) -> None:
    with CloudCore(bed) as core:
        rent(core, SSHD)
        until(lambda: "vm-1" in bed.hosts)
        host = bed.hosts["vm-1"]
        serving(host, 22)
        core.interrupt("vm-1", notice_s=0.3)
        assert call(host.address, 22) == "open"
        until(lambda: not host.alive, within_s=2)
        assert call(host.address, 22) == "refused"
        assert core.machines["vm-1"].why == "spot"


def test_a_cut_host_is_silent_until_it_is_healed(bed: Bed) -> None:
    host = bed.launch("far", "us-east-1a", SSHD)
    serving(host, 22)
    host.cut()
    assert call(host.address, 22) == "silent"
    host.heal()
    assert call(host.address, 22, 5) == "open"


def test_a_cut_region_is_silent_until_it_is_healed(bed: Bed) -> None:
    host, other = bed.launch("far", "us-east-1a", SSHD), bed.launch("near", "us-west-2a", SSHD)
    serving(host, 22)
    serving(other, 22)
    host.region.cut()
    assert call(host.address, 22) == "silent"
    assert call(other.address, 22) == "open"
    host.region.heal()
    assert call(host.address, 22, 5) == "open"
    host.region.lose(50)
    assert call(host.address, 22, 20) == "open"


def test_a_distant_region_is_slow(bed: Bed) -> None:
    bed.region("asia-east1", delay_s=0.05)
    host = bed.launch("distant", "asia-east1-a", SSHD)
    until(lambda: call(host.address, 22) == "open")
    started = time.monotonic()
    assert call(host.address, 22) == "open"
    assert 0.1 <= time.monotonic() - started < 0.4


def test_the_firewall_keeps_out_what_is_not_allowed(bed: Bed) -> None:
    with CloudCore(bed) as core:
        machine = rent(core, f"{SSHD}cd /srv; python3 -m http.server 80 --bind 0.0.0.0 &\n")
        until(lambda: core.machines["vm-1"].state == "running")
        host = bed.hosts["vm-1"]
        serving(host, 22)
        serving(host, 80)
        machine.allowed = {(22, f"{CONTROLLER}/32"), (80, "10.77.0.0/16")}
        assert (call(host.address, 22), call(host.address, 80)) == ("open", "silent")
        machine.allowed = None
        assert call(host.address, 80) == "open"


def test_a_stopped_machine_keeps_its_files_and_runs_its_boot_hook(bed: Bed) -> None:
    hook = "/var/lib/cloud/scripts/per-boot/hook"
    lines = [
        "#!/bin/bash",
        f"printf '#!/bin/sh\\necho hook\\n' >{hook}",
        f"chmod +x {hook}",
        "echo kept >/opt/file",
        "echo 1st",
    ]
    user_data = "\n".join(lines)
    with CloudCore(bed) as core:
        rent(core, user_data)
        until(lambda: core.machines["vm-1"].state == "running")
        host = bed.hosts["vm-1"]
        until(lambda: host.output == "1st\n")
        before = host.address
        core.stop("vm-1")
        until(lambda: core.machines["vm-1"].state == "stopped")
        assert not host.alive
        core.start("vm-1")
        until(lambda: core.machines["vm-1"].state == "running")
        until(lambda: host.output == "1st\nhook\n")
        assert host.run("cat", "/opt/file") == "kept\n"
        assert core.machines["vm-1"].ip == host.address != before
        core.delete("vm-1")
        until(lambda: not host.directory.exists())
        assert not host.alive


def test_a_container_runs_its_command_at_each_start(bed: Bed) -> None:
    with CloudCore(bed, containers=True) as core:
        rent(core, "#!/bin/sh\necho started\n")
        until(lambda: core.machines["vm-1"].state == "running")
        until(lambda: bed.hosts["vm-1"].output == "started\n")
        core.stop("vm-1")
        until(lambda: core.machines["vm-1"].state == "stopped")
        core.start("vm-1")
        until(lambda: bed.hosts["vm-1"].output == "started\nstarted\n")


def test_two_beds_do_not_clash(bed: Bed) -> None:
    with Bed(["us-east-1", "eu-west-1"]) as other:
        hosts = [each.launch("same-name", "us-east-1a", SSHD) for each in (bed, other)]
        for host in hosts:
            serving(host, 22)
        assert hosts[0].address != hosts[1].address
    assert call(hosts[0].address, 22) == "open"


def test_nothing_is_left_of_a_bed(bed: Bed) -> None:
    before = traces()
    with Bed(["us-east-1"]) as made:
        made.region("far", delay_s=0.01)
        host = made.launch("a", "us-east-1a", SSHD)
        made.launch("b", "far", SSHD)
        made.launch("c", "us-east-1b", SSHD).kill()
        serving(host, 22)
        processes = host.processes()
        directory = host.directory
    assert traces() == before
    assert not [pid for pid in processes if Path(f"/proc/{pid}").exists()]
    assert not directory.parent.exists()


def test_outside_of_a_bed_nothing_has_changed() -> None:
    network = os.readlink("/proc/thread-self/ns/net")
    with private_network():
        assert os.readlink("/proc/thread-self/ns/net") != network
        assert [name for _, name in socket.if_nameindex()] == ["lo"]
        assert obstacle() is None
    assert os.readlink("/proc/thread-self/ns/net") == network


def test_the_machines_own_network_is_no_place_for_a_bed() -> None:
    with pytest.raises(BedBroken, match="private_network"):
        Bed()
