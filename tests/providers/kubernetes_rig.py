"""A Kubernetes provider on a real API server and scheduler, with pods that really run, and handles on its world."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from tests.bed import control_plane, kubelet
from tests.bed.control_plane import ADMIN, ApiError, ControlPlane, Json
from tests.bed.kubelet import Kubelet

from skyserve.clock import Clock, SystemClock
from skyserve.config import Config
from skyserve.model.evidence import Instance, InstanceState
from skyserve.model.offering import CapacityType, Location, Offering
from skyserve.model.resources import ResourceChoice, Resources
from skyserve.providers.base import LaunchOrder
from skyserve.providers.kubernetes import KubernetesProvider
from skyserve.providers.kubernetes.config import Contexts

SERVES, EXITS, FAILS_SETUP = "serves", "exits with 3", "setup exits with 4"
RUN = {SERVES: "echo listening; exec sleep 1000", EXITS: "echo listening; exit 3", FAILS_SETUP: "exit 0"}
CONTEXT = "here"
SMALL = Offering(
    "kubernetes", "0.1CPU--0.1GB", Location("kubernetes", CONTEXT), CapacityType.ON_DEMAND, None, 0.1, 0.1, 0.0
)
PATIENCE_S = 20.0


@dataclass(frozen=True)
class Cluster:
    """What is started once for many tests: a control plane and its nodes' kubelet."""

    plane: ControlPlane
    kubelet: Kubelet

    def wipe(self) -> None:
        """Leave nothing but what every cluster has."""
        for namespace in ("default", "tight"):
            for kind in ("pods", "services", "secrets", "resourcequotas"):
                path = f"/api/v1/namespaces/{namespace}/{kind}"
                for item in self.plane.call("GET", path)["items"]:
                    if item["metadata"]["name"] != "kubernetes":
                        with suppress(ApiError):
                            options = {"gracePeriodSeconds": 0}
                            self.plane.call("DELETE", f"{path}/{item['metadata']['name']}", options)
        for node in self.plane.call("GET", "/api/v1/nodes")["items"]:
            self.kubelet.lose_node(node["metadata"]["name"])


def missing() -> str | None:
    """Why there can be no cluster here; None when there can."""
    return control_plane.missing() or kubelet.missing()


@contextmanager
def cluster(home: Path) -> Iterator[Cluster]:
    """A cluster without nodes."""
    with control_plane.running(home / "plane") as plane, kubelet.running(plane, home / "nodes") as nodes:
        plane.call("POST", "/api/v1/namespaces", {"metadata": {"name": "tight"}})
        yield Cluster(plane, nodes)


class KubernetesRig:
    """The provider under test, on the cluster's one context `here` unless others are given."""

    def __init__(self, cluster: Cluster, home: Path, contexts: Mapping[str, str] | None = None) -> None:
        self.plane = cluster.plane
        self.kubelet = cluster.kubelet
        self.home = home
        self.kubeconfig = home / "kubeconfig"
        self.plane.kubeconfig(self.kubeconfig, contexts or {CONTEXT: ADMIN})
        self.config = Config(home / "state", inherited_env={"KUBECONFIG": str(self.kubeconfig), "HOME": str(home)})
        self.provider = self.another_controller()
        self._offering = SMALL

    def another_controller(self, clock: Clock | None = None, *, inside: bool | None = None) -> KubernetesProvider:
        """A provider of the same installation, as a controller that starts again makes one."""
        return KubernetesProvider(self.config, clock or SystemClock(), Contexts(self.config), inside=inside)

    def order(self, run: str = RUN[SERVES], *, replica_id: int = 1, **rest: object) -> LaunchOrder:
        """An order; its token is `t` and the replica's number unless given."""
        order = LaunchOrder("chat-u1", "chat", replica_id, 1, f"t{replica_id}", "v1", SMALL, run, None, 8080)
        return replace(order, **rest)  # type: ignore[arg-type]

    async def launch(
        self, token: str, life: str = SERVES, *, service: str = "chat-u1", replica_id: int = 1
    ) -> Instance:
        setup = "echo setting up; exit 4" if life == FAILS_SETUP else None
        order = self.order(RUN[life], replica_id=replica_id, token=token, service=service, setup=setup)
        return await self.provider.launch(replace(order, offering=self._offering))

    def fill_up(self) -> None:
        self._offering = replace(SMALL, instance_type="1000CPU--1GB", vcpus=1000)

    def offerings(self, *alternatives: Resources) -> tuple[Offering, ...]:
        return asyncio.run(self.provider.offerings(ResourceChoice(alternatives))).offerings

    async def until(self, true_of: Callable[[Sequence[Instance]], bool]) -> Sequence[Instance]:
        deadline = time.monotonic() + PATIENCE_S
        while not true_of(listed := await self.provider.instances()):
            assert time.monotonic() < deadline, f"still {listed}"
            await asyncio.sleep(0.05)
        return listed

    def objects(self, kind: str) -> list[Json]:
        """What the cluster holds of ours."""
        found: list[Json] = self.plane.call("GET", f"/api/v1/{kind}?labelSelector=skyserve-installation")["items"]
        return found


def gone(instances: Sequence[Instance]) -> bool:
    return not instances


def all_in(state: InstanceState) -> Callable[[Sequence[Instance]], bool]:
    return lambda instances: bool(instances) and all(instance.state is state for instance in instances)


async def output(rig: KubernetesRig, instance_id: str, *, follow: bool = False, tail: int | None = None) -> bytes:
    return b"".join([data async for data in rig.provider.logs(instance_id, follow=follow, tail=tail)])
