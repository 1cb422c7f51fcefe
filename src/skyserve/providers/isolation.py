"""What this machine allows in order to keep replicas apart: network namespaces, and control groups that limit memory
and CPUs. Finds that out, and plans enclosures; `enclosure` makes them. Knows the kernel's files; nothing of orders.

Everything is decided by trying it once. What a plan leads to has no owner's memory behind it: a namespace ends with its
last process, and a control group that is empty is removed by whoever comes along next (`sweep`).
"""

from __future__ import annotations

import contextlib
import hashlib
import ipaddress
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from skyserve.providers import enclosure

if TYPE_CHECKING:
    from skyserve.providers.enclosure import GroupPlan, NetworkPlan, Plan

RANGES = tuple(ipaddress.IPv4Network(text) for text in ("198.18.0.0/16", "198.19.0.0/16", "10.219.0.0/16"))
"""Where addresses are taken from: the first one that no route of this machine leads into."""

_OURS = "skyserve-"
_LINK_BITS = 30
_TRIAL_TIMEOUT_S = 5.0
_CAP_NET_ADMIN, _CAP_SYS_ADMIN = 12, 21
_CPU_PERIOD_US = 100_000
_LEAST_CPU_US = 1_000
_GIB = 1024**3


@dataclass(frozen=True, slots=True)
class Controller:
    """A control group hierarchy with a `resource` (memory or cpu), and the group in it below which we may make ours."""

    resource: str
    version: int
    base: Path

    def limits(self, amount: float) -> dict[str, str]:
        """What to write into a group's files: `amount` is GiB, or CPUs."""
        if self.resource == "memory":
            name = "memory.max" if self.version == 2 else "memory.limit_in_bytes"
            return {name: str(int(amount * _GIB))}
        quota = max(_LEAST_CPU_US, int(amount * _CPU_PERIOD_US))
        if self.version == 2:
            return {"cpu.max": f"{quota} {_CPU_PERIOD_US}"}
        return {"cpu.cfs_period_us": str(_CPU_PERIOD_US), "cpu.cfs_quota_us": str(quota)}


@dataclass(frozen=True, slots=True)
class Isolation:
    """What is allowed. `no_network` says why there are no network namespaces; it is None where there are."""

    no_network: str | None = "it was not looked for"
    controllers: tuple[Controller, ...] = ()

    def limits(self, resource: str) -> bool:
        """Whether `memory`, or `cpu`, can be limited."""
        return any(controller.resource == resource for controller in self.controllers)

    def groups(self, name: str, amounts: Mapping[str, float]) -> list[GroupPlan]:
        """Control groups of this name for `amounts` of `memory` (GiB) and `cpu` (CPUs), where they can be limited."""
        limits: dict[Path, dict[str, str]] = {}
        for controller in self.controllers:
            amount = amounts.get(controller.resource)
            if amount is not None:
                limits.setdefault(controller.base / f"{_OURS}{_digest(name)}", {}).update(controller.limits(amount))
        return [{"path": str(path), "limits": texts} for path, texts in limits.items()]

    def sweep(self) -> None:
        """Remove control groups of ours, or of an installation that is gone, that nothing runs in."""
        for base in {controller.base for controller in self.controllers}:
            for group in base.glob(f"{_OURS}*"):
                with contextlib.suppress(OSError):  # something runs in it, or somebody was quicker
                    group.rmdir()


def detect(env: Mapping[str, str]) -> Isolation:
    """Try what this machine allows, with the tools on `env`'s PATH. Takes about 0.2 seconds, 5 at worst."""
    return Isolation(why_no_network(env), find_controllers())


def enclosed(plan: Plan, command: Sequence[str]) -> list[str]:
    """The command line that runs `command` in the enclosure; `command` itself where there is nothing to it."""
    if plan["network"] is None and not plan["groups"]:
        return list(command)
    return [sys.executable, "-I", "-S", "-X", "utf8", enclosure.__file__, json.dumps(plan), *command]


# -- networks


def why_no_network(env: Mapping[str, str]) -> str | None:
    """Why a process cannot be given a network of its own here; None when it can. Tries it with a short-lived one."""
    if sys.platform != "linux":
        return "network namespaces are a thing of Linux"
    if not _may_administer(Path("/proc/self/status")):
        return "it takes root, or the capabilities NET_ADMIN and SYS_ADMIN"
    path = env.get("PATH", os.defpath)
    if shutil.which("ip", path=path) is None:
        return "the tool ip (package iproute2) is not on the PATH"
    if shutil.which("nft", path=path) is None and shutil.which("iptables-restore", path=path) is None:
        return "neither nft (package nftables) nor iptables-restore (package iptables) is on the PATH"
    try:
        network = plan_network((1,), env, "")
        trial = subprocess.run(
            enclosed({"groups": [], "network": network}, ["true"]),
            env=dict(env),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_TRIAL_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired, ValueError) as error:
        return f"trying it failed: {error}"
    return None if trial.returncode == 0 else trial.stderr.strip() or f"exit code {trial.returncode}"


def plan_network(ports: Iterable[int], env: Mapping[str, str], instance: str) -> NetworkPlan:
    """Two free addresses and a name for the pair, by chance, as an earlier pair may not be quite gone. `instance` is
    the directory of whoever gets them.

    Raises ValueError when there are none.
    """
    routes = list(_routes(env))
    digest = os.urandom(8).hex()
    outer, inner = pick_addresses(digest, routes)
    return {
        "instance": instance,
        "interface": f"sky{digest[:10]}",
        "outer": outer,
        "inner": inner,
        "ports": sorted(set(ports)),
    }


def pick_addresses(digest: str, routes: Sequence[ipaddress.IPv4Network]) -> tuple[str, str]:
    """The two addresses of a free /30: this machine's end first. Raises ValueError when every range is in use.

    `routes` are where this machine's routes lead. Those of our own pairs lie within a range and do not spoil it.
    """
    for whole in RANGES:
        inside = {route for route in routes if route.subnet_of(whole) and route.prefixlen >= _LINK_BITS}
        if any(route.overlaps(whole) for route in routes if route not in inside):
            continue
        count = 1 << (_LINK_BITS - whole.prefixlen)
        first = int(digest, 16) % count
        for number in (*range(first, count), *range(first)):
            link = ipaddress.IPv4Network((int(whole.network_address) + 4 * number, _LINK_BITS))
            if not any(route.overlaps(link) for route in inside):
                return str(link[1]), str(link[2])
    raise ValueError(f"all of {', '.join(map(str, RANGES))} is in use")


def _routes(env: Mapping[str, str]) -> Iterator[ipaddress.IPv4Network]:
    command = ["ip", "-4", "-json", "route", "show", "table", "all"]
    done = subprocess.run(command, env=dict(env), capture_output=True, timeout=_TRIAL_TIMEOUT_S, check=True)
    for route in json.loads(done.stdout or b"[]"):
        if route.get("dst") not in (None, "default"):
            yield ipaddress.IPv4Network(route["dst"], strict=False)


def _may_administer(status: Path) -> bool:
    try:
        lines = status.read_text().splitlines()
    except OSError:
        return False
    held = next((int(line.split()[1], 16) for line in lines if line.startswith("CapEff:")), 0)
    return all(held >> bit & 1 for bit in (_CAP_NET_ADMIN, _CAP_SYS_ADMIN))


# -- control groups


def find_controllers(proc: Path = Path("/proc/self")) -> tuple[Controller, ...]:
    """Where memory and CPUs can be limited, of version 2 or 1, tried by making a group and taking it away."""
    try:
        mounts = [line.split() for line in (proc / "mounts").read_text().splitlines()]
        memberships = [line.split(":", 2) for line in (proc / "cgroup").read_text().splitlines()]
    except OSError:
        return ()
    found = (_find_controller(resource, mounts, memberships) for resource in ("memory", "cpu"))
    return tuple(controller for controller in found if controller is not None)


def _find_controller(resource: str, mounts: list[list[str]], memberships: list[list[str]]) -> Controller | None:
    for version, kind in ((2, "cgroup2"), (1, "cgroup")):
        for _, directory, filesystem, options, *_ in mounts:
            if filesystem != kind or (version == 1 and resource not in options.split(",")):
                continue
            for base in _upwards(Path(directory), _member_of(resource, version, memberships)):
                controller = Controller(resource, version, base)
                if _works(controller):
                    return controller
    return None


def _member_of(resource: str, version: int, memberships: list[list[str]]) -> str:
    """The group that this process is in, as a path below the mount."""
    for number, controllers, path in memberships:
        if (version == 2 and number == "0") or (version == 1 and resource in controllers.split(",")):
            return path.strip("/")
    return ""


def _upwards(top: Path, below: str) -> Iterator[Path]:
    """Our own group first: its limits hold for those made in it."""
    group = top / below
    while group != top:
        yield group
        group = group.parent
    yield top


def _works(controller: Controller) -> bool:
    if controller.version == 2:
        try:
            passed_on = (controller.base / "cgroup.subtree_control").read_text().split()
        except OSError:
            return False
        if controller.resource not in passed_on or not os.access(controller.base / "cgroup.procs", os.W_OK):
            return False
    trial = controller.base / f"skyserve.trial-{controller.resource}-{os.getpid()}"  # not for `sweep`
    try:
        trial.mkdir(exist_ok=True)
    except OSError:
        return False
    try:
        for name, text in controller.limits(1.0).items():
            (trial / name).write_text(text)
    except OSError:
        return False
    finally:
        with contextlib.suppress(OSError):  # another thread was quicker
            trial.rmdir()
    return True


def _digest(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()[:16]
