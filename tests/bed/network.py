"""Networks of the bed: a router for each region with its hosts behind it, and what can go wrong on the way.

    the test's private network (10.255.0.1, the controller's machine; the "internet" between the regions)
      |- bed1 -- router of region 1 (bridge 10.1.0.1) -- hosts 10.1.1.1, 10.1.1.2, ...
      |- bed2 -- router of region 2 (bridge 10.2.0.1) -- hosts 10.2.1.1, ...

Must not know what runs on hosts.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Final

from tests.bed.private import CommandFailed, Namespace, command
from tests.bed.relay import Relay

CONTROLLER: Final = "10.255.0.1"
"""The address of the test's process as hosts see it. Listen on it to be reached by them."""

METADATA: Final = "169.254.169.254"

_LAST_REGION: Final = 199
_PORT_DISABLED, _PORT_FORWARDING = "0", "3"


def ip(*lines: str) -> None:
    """Run commands of ip(8), all in one go, in the calling thread's namespace."""
    command(["ip", "-batch", "-"], "\n".join(lines))


def nft(rules: str) -> None:
    """Apply an nftables script, all or nothing, in the calling thread's namespace."""
    command(["nft", "-f", "-"], rules)


def beside(namespace: Namespace, address: str) -> Namespace:
    """A namespace next door that is the metadata address for the host at `address`, whatever happens to its network.

    As with clouds it is not on the host itself, whose ports all remain free.
    """
    there = Namespace()
    namespace.run(
        lambda: ip(
            f"link add metadata type veth peer name host netns {there.path}",
            "link set metadata up",
            f"route add {METADATA}/32 dev metadata src {address}",
        )
    )
    there.run(lambda: ip(f"address add {METADATA}/32 dev host", "link set host up", f"route add {address}/32 dev host"))
    return there


@dataclass(frozen=True)
class Port:
    """A host's place in its region: its namespace, address and network card."""

    namespace: Namespace
    address: str
    link: str


class Region:
    """A router with its hosts behind it. `number` makes its names and addresses: 10.<number>.0.0/16.

    `delay_s` is how long a packet takes from this region to any other place, one way.
    """

    def __init__(self, name: str, delay_s: float = 0.0) -> None:
        self.name = name
        self._namespace = Namespace()
        self._hosts = 0
        self._relay: Relay | None = None
        self.number = self._connect(delay_s)

    def address(self) -> str:
        """An address that no host of this region had before."""
        self._hosts += 1
        return str(IPv4Address(f"10.{self.number}.1.0") + self._hosts)

    def join(self, namespace: Namespace, address: str) -> Port:
        """Connect a namespace at this address, once."""
        low = int(IPv4Address(address)) & 0xFFFF
        mac = f"02:00:0a:{self.number:02x}:{low >> 8:02x}:{low & 255:02x}"
        link = f"h{low:x}"
        self._namespace.run(
            lambda: ip(
                f"link add {link} type veth peer name eth0 address {mac} netns {namespace.path}",
                f"link set {link} master lan up",
                # So that a host that is cut off is met with silence, not with "no route to host".
                f"neigh replace {address} lladdr {mac} dev lan nud permanent",
            )
        )
        namespace.run(
            lambda: ip(
                "link set lo up",
                f"address add {address}/16 dev eth0",
                "link set eth0 up",
                f"route add default via 10.{self.number}.0.1",
            )
        )
        return Port(namespace, address, link)

    def leave(self, port: Port) -> None:
        """Take away a port and its namespace: from now on its address is silent."""
        self._namespace.run(lambda: ip(f"link delete {port.link}"))
        port.namespace.close()

    def cut_host(self, port: Port) -> None:
        """Lose everything from and to this host, without a sign that either side could see."""
        self._namespace.run(lambda: command(["bridge", "link", "set", "dev", port.link, "state", _PORT_DISABLED]))

    def heal_host(self, port: Port) -> None:
        """Undo `cut_host`."""
        self._namespace.run(lambda: command(["bridge", "link", "set", "dev", port.link, "state", _PORT_FORWARDING]))

    def cut(self) -> None:
        """Lose everything between this region and the rest of the world; inside, all goes on."""
        self.lose(100)

    def heal(self) -> None:
        """Undo `cut` and `lose`."""
        self.lose(0)

    def lose(self, percent: int) -> None:
        """Lose this share of the packets between this region and the rest of the world, at random."""
        rule = "drop" if percent >= 100 else f"numgen random mod 100 < {percent} drop" if percent else ""
        self._namespace.run(lambda: nft(_table("loss", "forward", rule)))

    def close(self) -> None:
        """Take down the router and its link to the world."""
        if self._relay is not None:
            self._relay.close()
        else:
            ip(f"link delete bed{self.number}")
        self._namespace.close()

    def _connect(self, delay_s: float) -> int:
        """Link the router to the test's private network, under the first number that nobody uses."""
        forward()
        ip(f"address replace {CONTROLLER}/32 dev lo", "link set lo up")
        for number in range(1, _LAST_REGION + 1):
            if self._link(f"bed{number}", delay_s):
                self._route(number)
                return number
        raise CommandFailed(f"all {_LAST_REGION} region numbers are taken")

    def _link(self, name: str, delay_s: float) -> bool:
        """Make the link to the router, `name` here and `wan` there; False when the name is taken."""
        if name in {link for _, link in socket.if_nameindex()}:
            return False
        try:
            if delay_s > 0:
                self._relay = Relay(name, self._namespace.run, delay_s)
            else:
                ip(f"link add {name} type veth peer name wan netns {self._namespace.path}")
        except (CommandFailed, OSError) as error:  # somebody else was quicker
            if "exists" in str(error) or "busy" in str(error):
                return False
            raise
        return True

    def _route(self, number: int) -> None:
        here, there = f"10.255.{number}.1", f"10.255.{number}.2"
        ip(
            f"address add {here} peer {there} dev bed{number}",
            f"link set bed{number} up",
            f"route add 10.{number}.0.0/16 via {there} src {CONTROLLER}",
        )

        def inside() -> None:
            forward()
            ip(
                "link set lo up",
                f"address add {there} peer {here} dev wan",
                "link set wan up",
                f"route add default via {here}",
                "link add lan type bridge forward_delay 0 stp_state 0 mcast_snooping 0",
                f"address add 10.{number}.0.1/16 dev lan",
                "link set lan up",
            )

        self._namespace.run(inside)


def forward() -> None:
    """Let the calling thread's namespace pass packets on."""
    with open("/proc/sys/net/ipv4/ip_forward", "w", encoding="ascii") as switch:
        switch.write("1")


def firewall(allowed: frozenset[tuple[int, str]] | None) -> None:
    """In the calling thread's namespace, let only these (TCP port, CIDR) be called from outside; None: all.

    As with clouds, a caller who is not let in hears nothing.
    """
    if allowed is None:
        nft(_table("firewall", "input", ""))
        return
    rules = ["iif lo accept"]
    rules += [f"{_source(cidr)}tcp dport {port} accept" for port, cidr in sorted(allowed)]
    rules += ["tcp flags & (syn | ack) == syn drop"]
    nft(_table("firewall", "input", "\n".join(rules)))


def _source(cidr: str) -> str:
    if ":" in cidr:
        return f"ip6 saddr {cidr} "
    return "" if cidr == "0.0.0.0/0" else f"ip saddr {cidr} "


def _table(name: str, hook: str, rules: str) -> str:
    """An nftables script that puts these rules in the place of those of the same name."""
    chain = f"chain rules {{ type filter hook {hook} priority 0; policy accept;\n{rules}\n}}" if rules else ""
    return f"table inet {name} {{}}\ndelete table inet {name}\n" + (
        f"table inet {name} {{\n{chain}\n}}\n" if rules else ""
    )
