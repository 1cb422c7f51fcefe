"""The provider contract's world of a Kubernetes cluster: a real API server and scheduler, pods that really run."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

from tests.bed.control_plane import ADMIN, STRANGER
from tests.contract.world import Gate, Trouble, World
from tests.providers.kubernetes_rig import SMALL, Cluster, KubernetesRig, cluster

from skyserve.model.evidence import Instance
from skyserve.model.offering import CapacityType
from skyserve.providers.base import LaunchOrder, Provider

NODES: Mapping[str, dict[str, str]] = {"firm": {}, "cheap": {"eks.amazonaws.com/capacityType": "SPOT"}}
NOTICE_TAINT = "aws-node-termination-handler/spot-itn"
QUOTAS = "/api/v1/namespaces/default/resourcequotas"


class KubernetesWorld(World):
    """One cluster with a node of each kind."""

    offering = SMALL
    spot_offering = replace(SMALL, capacity_type=CapacityType.SPOT)
    reports = True
    cannot: ClassVar[Mapping[str, str]] = {
        Trouble.THROTTLED.value: "an API server makes those who ask too often wait, and the client waits",
    }

    def __init__(self, home: Path, cluster: Cluster) -> None:
        super().__init__(home)
        self._cluster = cluster
        (home / "ours").mkdir()
        (home / "theirs").mkdir()
        self._rig = KubernetesRig(cluster, home / "ours")
        for name, labels in NODES.items():
            cluster.kubelet.add_node(name, cpus=16, labels=labels)

    def controller(self) -> Provider:
        return self._rig.another_controller()

    def stranger(self) -> Provider:
        return KubernetesRig(self._cluster, self.home / "theirs").provider

    def take_back(self, instance: Instance, notice_s: float) -> None:
        name = instance.id.rpartition("/")[2]
        kubelet = self._cluster.kubelet
        if notice_s:
            kubelet.taint(kubelet.pods[name].node, NOTICE_TAINT)
        else:
            kubelet.evict(name)

    @asynccontextmanager
    async def gate(self) -> AsyncIterator[Gate]:
        """A file: pods have no way out of their network here."""
        path = f"/tmp/gate-{os.urandom(8).hex()}"
        here = os.stat("/")

        def open_it() -> None:
            for pod in list(self._cluster.kubelet.pods.values()):
                root = Path(f"/proc/{pod.init}/root")
                with suppress(OSError):
                    if not os.path.samestat(root.stat(), here):  # it has not begun yet, or is over
                        (root / path[1:]).touch()

        yield Gate(f"until [ -e {path} ]; do sleep 0.05; done", open_it)

    def troubled(self, kind: Trouble, order: LaunchOrder) -> LaunchOrder:
        if kind is not Trouble.CAPACITY:
            return order
        return replace(order, offering=replace(SMALL, instance_type="1000CPU--1GB", vcpus=1000))

    @contextmanager
    def trouble(self, kind: Trouble) -> Iterator[None]:
        plane, kubeconfig = self._rig.plane, self._rig.kubeconfig
        before = kubeconfig.read_text()
        if kind is Trouble.QUOTA:
            plane.call("POST", QUOTAS, {"metadata": {"name": "none"}, "spec": {"hard": {"pods": "0"}}})
            counted = {"status": {"hard": {"pods": "0"}, "used": {"pods": "0"}}}
            plane.call("PATCH", f"{QUOTAS}/none/status", counted)
        elif kind is Trouble.CREDENTIALS:
            kubeconfig.write_text(before.replace(ADMIN, STRANGER))
        elif kind is Trouble.SILENT:
            config = json.loads(before)
            config["clusters"][0]["cluster"]["server"] = "https://127.0.0.1:1"
            kubeconfig.write_text(json.dumps(config))
        try:
            yield
        finally:
            kubeconfig.write_text(before)
            if kind is Trouble.QUOTA:
                plane.call("DELETE", f"{QUOTAS}/none")

    def leftovers(self) -> list[str]:
        kinds = ("pods", "services", "secrets")
        return [one["metadata"]["name"] for kind in kinds for one in self._rig.objects(kind)]


@contextmanager
def kubernetes_world(home: Path) -> Iterator[World]:
    """A cluster with two nodes, one of them on spot."""
    with cluster(home) as made:
        yield KubernetesWorld(home, made)
