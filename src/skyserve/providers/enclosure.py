"""Puts one command into an enclosure: control groups that limit it, and a network namespace of its own.

One file of standard library, run by its path: `python -I -S -X utf8 enclosure.py PLAN COMMAND...`. It becomes the
command once everything stands. It must not import anything of SkyServe, and knows nothing of replicas.

The namespace has two ways out. Inwards, a veth pair leads to it from this machine, and what arrives for one of the
plan's ports goes to 127.0.0.1 in it, so that an engine is reached whichever of its addresses it listens on. Outwards,
TCP and name look-ups go through a relay process which stands outside: this machine's forwarding, firewall and other
interfaces stay as they are, and a resolver on this machine's loopback is reached too. Nothing has a name that would
outlive it: the kernel takes namespace and veth away with the last process, and the relay goes with the last one that
holds its lifeline.

The plan, as JSON: groups (made, limited and joined) and network (or null); see `Plan`.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import ParamSpec, TypedDict

    P = ParamSpec("P")

    class GroupPlan(TypedDict):
        """A control group: its directory, and what to write into which of its files."""

        path: str
        limits: dict[str, str]

    class NetworkPlan(TypedDict):
        """The two ends of the veth pair: `outer` is this machine's address, `inner` the enclosure's, both in a /30.
        `instance` is the directory that is there for as long as somebody may still connect."""

        instance: str
        interface: str
        outer: str
        inner: str
        ports: list[int]

    class Plan(TypedDict):
        """What the enclosure consists of."""

        groups: list[GroupPlan]
        network: NetworkPlan | None


NOT_ENCLOSED = 6
"""Exit code when the enclosure could not be made; stderr says why, and nothing of it is left."""

_NEW_NETWORK = 0x40000000  # CLONE_NEWNET
_ORIGINAL_DESTINATION = 80  # SO_ORIGINAL_DST
_INSIDE = "eth0"
_JOIN_ATTEMPTS = 3
_COMMAND_TIMEOUT_S = 10.0
_CONNECT_TIMEOUT_S = 60.0
_LOOKUP_TIMEOUT_S = 5.0
_PIPE_BYTES = 1 << 20
_LINGER_S = 3.0  # a controller has noticed the end long before
_DATAGRAM_BYTES = 65535

_NFT_RULES = """
table ip skyserve {{
  chain arriving {{ type nat hook prerouting priority -100;
    iifname "{inside}" tcp dport {{ {ports} }} dnat to 127.0.0.1
  }}
  chain leaving {{ type nat hook output priority -100;
    tcp dport 53 redirect to :{tcp}
    udp dport 53 redirect to :{udp}
    ip daddr {{ 127.0.0.0/8, {inner} }} return
    meta l4proto tcp redirect to :{tcp}
  }}
  chain refused {{ type filter hook output priority 0;
    oifname "{inside}" ip daddr != 127.0.0.0/8 ct state new reject with icmp type admin-prohibited
  }}
}}
"""
_IPTABLES_RULES = """*nat
-A PREROUTING -i {inside} -p tcp -m multiport --dports {ports} -j DNAT --to-destination 127.0.0.1
-A OUTPUT -p tcp --dport 53 -j REDIRECT --to-ports {tcp}
-A OUTPUT -p udp --dport 53 -j REDIRECT --to-ports {udp}
-A OUTPUT -d 127.0.0.0/8 -j RETURN
-A OUTPUT -d {inner} -j RETURN
-A OUTPUT -p tcp -j REDIRECT --to-ports {tcp}
COMMIT
*filter
-A OUTPUT -o {inside} ! -d 127.0.0.0/8 -m conntrack --ctstate NEW -j REJECT --reject-with icmp-admin-prohibited
COMMIT
"""


class Refused(Exception):
    """A step was refused; the text says which and why."""


def main(arguments: Sequence[str]) -> int:
    """Make the enclosure, then become the command. Returns only if that fails."""
    plan: Plan = json.loads(arguments[0])
    try:
        if plan["network"] is not None:
            enter_network(plan["network"])
        for group in plan["groups"]:
            join_group(group)
        os.execvp(arguments[1], list(arguments[1:]))
    except (Refused, OSError) as error:
        os.write(2, f"cannot enclose: {error}\n".encode())
    return NOT_ENCLOSED


def join_group(group: GroupPlan) -> None:
    """Make the control group and move this process into it."""
    for attempt in range(_JOIN_ATTEMPTS):
        try:
            os.makedirs(group["path"], exist_ok=True)
            for name, value in group["limits"].items():
                _write(os.path.join(group["path"], name), value)
            _write(os.path.join(group["path"], "cgroup.procs"), str(os.getpid()))
            return
        except FileNotFoundError:  # swept away as an empty one, between two of these steps
            if attempt == _JOIN_ATTEMPTS - 1:
                raise


def enter_network(network: NetworkPlan) -> None:
    """Leave this process in a network namespace of its own, with a relay outside. Raises Refused or OSError."""
    lifeline, outside = socket.socketpair()
    pid = os.getpid()
    if os.fork() == 0:
        lifeline.close()
        _stand_outside(outside, network, pid)
    outside.close()
    if ctypes.CDLL(None, use_errno=True).unshare(_NEW_NETWORK) != 0:
        raise Refused(f"no network namespace: {os.strerror(ctypes.get_errno())}")
    lifeline.sendall(b"?")
    told = lifeline.recv(4096)
    if told != b"!":
        raise Refused(told.decode(errors="replace") or "the relay ended")
    streams, lookups = _furnish(network)
    socket.send_fds(lifeline, [b"+"], [streams.fileno(), lookups.fileno()])
    if lifeline.recv(1) != b"+":
        raise Refused("the relay ended")
    lifeline.set_inheritable(True)  # whoever descends from the command holds it
    lifeline.detach()


def _furnish(network: NetworkPlan) -> tuple[socket.socket, socket.socket]:
    """Addresses, routes and rules of the namespace; the two sockets in it that its relay serves."""
    _run("ip", "link", "set", "lo", "up")
    _run("ip", "address", "add", f"{network['inner']}/30", "dev", _INSIDE)
    _run("ip", "link", "set", _INSIDE, "up")
    _run("ip", "route", "add", "default", "via", network["outer"])
    _write(f"/proc/sys/net/ipv4/conf/{_INSIDE}/route_localnet", "1")
    streams = socket.create_server(("127.0.0.1", 0), backlog=1024)
    lookups = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    lookups.bind(("127.0.0.1", 0))
    facts = {
        "inside": _INSIDE,
        "inner": network["inner"],
        "ports": ",".join(map(str, network["ports"])),
        "tcp": streams.getsockname()[1],
        "udp": lookups.getsockname()[1],
    }
    if _has("nft"):
        _run("nft", "-f", "-", stdin=_NFT_RULES.format(**facts))
    else:
        _run("iptables-restore", stdin=_IPTABLES_RULES.format(**facts))
    return streams, lookups


# -- outside


def _stand_outside(lifeline: socket.socket, network: NetworkPlan, pid: int) -> None:
    """The relay's process. Never returns."""
    try:
        os.setsid()
        os.chdir("/")
        null = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(null, descriptor)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        if lifeline.recv(1) == b"?":
            _lay_cable(lifeline, network, pid)
            _, descriptors, _, _ = socket.recv_fds(lifeline, 1, 2)
            if len(descriptors) == 2:
                lifeline.sendall(b"+")
                streams, lookups = (socket.socket(fileno=descriptor) for descriptor in descriptors)
                _relay(lifeline, streams, lookups)
                _linger(network["instance"])  # with both sockets open: they keep the namespace
    except OSError:
        pass  # nobody is left to be told
    finally:
        os._exit(0)


def _lay_cable(lifeline: socket.socket, network: NetworkPlan, pid: int) -> None:
    outer = network["interface"]
    try:
        _run("ip", "link", "add", outer, "type", "veth", "peer", "name", _INSIDE, "netns", str(pid))
        _run("ip", "address", "add", f"{network['outer']}/30", "dev", outer)
        _run("ip", "link", "set", outer, "up")
    except (Refused, OSError) as error:
        lifeline.sendall(str(error).encode())
    else:
        lifeline.sendall(b"!")


def _relay(lifeline: socket.socket, streams: socket.socket, lookups: socket.socket) -> None:
    """Serve what comes out of the namespace until nobody holds the lifeline."""
    while True:
        readable, _, _ = select.select([lifeline, streams, lookups], [], [])
        if lifeline in readable and not lifeline.recv(1):
            streams.shutdown(socket.SHUT_RDWR)
            return
        if streams in readable:
            near, _ = streams.accept()
            _in_thread(_carry, near)
        if lookups in readable:
            _in_thread(_look_up, lookups, *lookups.recvfrom(_DATAGRAM_BYTES))


def _linger(instance: str) -> None:
    """Keep the namespace while the instance is still listed, so that whoever connects to it is refused: without it the
    address would lead to wherever this machine's default route does."""
    deadline = time.monotonic() + _LINGER_S
    while os.path.exists(instance) and time.monotonic() < deadline:
        time.sleep(0.02)


def _carry(near: socket.socket) -> None:
    """Connect a stream to where it was meant to go, and carry it both ways."""
    with near:
        address, port = _meant_for(near)
        try:
            far = socket.create_connection((address, port), timeout=_CONNECT_TIMEOUT_S)
        except OSError:
            near.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # closes with a reset
            return
        with far:
            far.settimeout(None)
            back = _in_thread(_pump, far, near)
            _pump(near, far)
            back.join()


def _meant_for(near: socket.socket) -> tuple[str, int]:
    answer = near.getsockopt(socket.SOL_IP, _ORIGINAL_DESTINATION, 16)
    port, address = struct.unpack("!2xH4s8x", answer)
    return socket.inet_ntoa(address), port


def _pump(source: socket.socket, sink: socket.socket) -> None:
    """Move bytes until the source ends; the data never enters this process."""
    read, write = os.pipe()
    try:
        while moved := os.splice(source.fileno(), write, _PIPE_BYTES):
            while moved:
                moved -= os.splice(read, sink.fileno(), moved)
        sink.shutdown(socket.SHUT_WR)
    except OSError:
        for end in (source, sink):
            _shut(end)
    finally:
        os.close(read)
        os.close(write)


def _shut(end: socket.socket) -> None:
    try:
        end.shutdown(socket.SHUT_RDWR)
    except OSError:
        return  # it was shut already


def _look_up(lookups: socket.socket, question: bytes, asker: tuple[str, int]) -> None:
    """Ask this machine's resolvers, one after the other; the first answer is handed in."""
    for resolver in resolvers():
        with socket.socket(socket.AF_INET6 if ":" in resolver else socket.AF_INET, socket.SOCK_DGRAM) as outward:
            outward.settimeout(_LOOKUP_TIMEOUT_S)
            try:
                outward.connect((resolver, 53))
                outward.send(question)
                lookups.sendto(outward.recv(_DATAGRAM_BYTES), asker)
            except OSError:
                continue
            return


def resolvers(path: str = "/etc/resolv.conf") -> list[str]:
    """The name servers of this machine, as they are configured now."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            words = [line.split() for line in file]
    except OSError:
        return []
    return [word[1] for word in words if len(word) > 1 and word[0] == "nameserver"]


# -- small things


def _in_thread(work: Callable[P, None], *arguments: P.args, **named: P.kwargs) -> threading.Thread:
    thread = threading.Thread(target=work, args=arguments, kwargs=named, daemon=True)
    thread.start()
    return thread


def _run(*command: str, stdin: str = "") -> None:
    """Run a command to its end. Raises Refused with what it says."""
    try:
        done = subprocess.run(
            command, input=stdin, capture_output=True, text=True, timeout=_COMMAND_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise Refused(f"{command[0]} does not end") from error
    if done.returncode != 0:
        said = done.stderr.strip().splitlines()
        raise Refused(f"{' '.join(command)}: {said[0] if said else f'exit code {done.returncode}'}")


def _has(tool: str) -> bool:
    return any(os.access(os.path.join(place, tool), os.X_OK) for place in os.get_exec_path())


def _write(path: str, value: str) -> None:
    with open(path, "w", encoding="ascii") as file:
        file.write(value)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
