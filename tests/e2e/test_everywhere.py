"""One Service YAML, unchanged, on everything that can run it: from up to an answer to down, with nothing left over."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
from pathlib import Path

import pytest
from tests.bed.control_plane import ADMIN
from tests.bed.hosts import Bed, SshHost
from tests.e2e.cloud_sky import FAKES, MOTTO, clouds, providers, service_yaml
from tests.e2e.conftest import Sky, wait_for
from tests.e2e.test_service_life import get
from tests.providers import kubernetes_rig

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400)]

ANYTHING = """
  - cpus: 1+
  - accelerators: {L4: 1, A10: 1, T4: 1}
"""
"""The second is for those who rent out nothing without an accelerator."""

WHERE = {"gcp": "gcp/us-central1"}
"""Where the fake has not all the regions that the price catalog knows."""

SECRET = "a-word-for-nobody"
POOL = "lab"


def serve_on(sky: Sky, infra: str) -> None:
    """Up, READY, an answer through the endpoint that has everything from the YAML in it, logs, down."""
    yaml = service_yaml(sky, ANYTHING, 1)
    secret = ("--secret", f"GREETING={SECRET}")
    sky("serve", "up", str(yaml), "-n", "chat", "-y", "--infra", infra, *secret, timeout=180)
    assert len(sky.ready()) == 1
    answer = get(sky.endpoint())
    assert answer == {"replica": "1", "cloud": infra.partition("/")[0], "greeting": SECRET, "motto": MOTTO}
    logs = sky("serve", "logs", "chat", "1", "--no-follow")
    assert "setting up" in logs
    assert "serving" in logs
    sky("serve", "down", "chat", "-y", timeout=120)
    assert "No existing services" in sky("serve", "status")


@pytest.mark.bed
@pytest.mark.parametrize("cloud", FAKES)
def test_on_a_machine_of_a_cloud(bed: Bed, sky: Sky, cloud: str) -> None:
    with clouds(sky, bed, cloud) as world:
        serve_on(sky, WHERE.get(cloud, cloud))
        world.all_gone()
        core = world.cores[cloud]
        assert core.machines, "nothing was rented"
        assert not any(SECRET in machine.user_data for machine in core.machines.values())


@pytest.mark.skipif(bool(no_cluster := kubernetes_rig.missing()), reason=no_cluster or "")
def test_on_a_pod_of_a_cluster(sky: Sky, tmp_path: Path) -> None:
    with kubernetes_rig.cluster(tmp_path) as cluster:
        cluster.kubelet.add_node("node")
        kubeconfig = cluster.plane.kubeconfig(tmp_path / "kubeconfig", {"here": ADMIN})
        sky.env["KUBECONFIG"] = str(kubeconfig)
        with providers(sky, {"kubernetes": {"module": "skyserve.providers.kubernetes"}}):
            serve_on(sky, "kubernetes")
        ours = "labelSelector=skyserve-installation"
        for kind in ("pods", "services", "secrets"):
            assert cluster.plane.call("GET", f"/api/v1/{kind}?{ours}")["items"] == []


@pytest.mark.bed
def test_on_a_host_of_ones_own(bed: Bed, sky: Sky) -> None:
    host = _host_that_ssh_knows(bed, sky)
    with providers(sky, {"ssh": {"module": "skyserve.providers.ssh"}}):
        wait_for(lambda: _listens(host.address, 22), why="the host's SSH server is up")
        assert "ready" in sky("ssh", "up")
        serve_on(sky, "ssh")
        (row,) = json.loads(sky("ssh", "status", "-o", "json"))["hosts"]
        assert row["replicas"] == 0
        sky("ssh", "down", "-y")
    assert list(host.host.path("/root").glob("[!.]*")) == []


def test_on_this_machine(sky: Sky) -> None:
    with providers(sky, {"local": {"module": "skyserve.providers.local"}}):
        serve_on(sky, "local")
        assert list((sky.home / "local/instances").iterdir()) == []


def _listens(address: str, port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((address, port)) == 0


def _host_that_ssh_knows(bed: Bed, sky: Sky) -> SshHost:
    """The only host of a pool. Only its user's configuration of ssh says how to log in."""
    user = sky.home.parent
    (user / ".ssh").mkdir(mode=0o700)
    (user / ".sky").mkdir()
    key = user / ".ssh/id_ed25519"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True, timeout=10)
    host = bed.ssh_host(POOL, key.with_suffix(".pub").read_text())
    (user / ".ssh/known_hosts").write_text(f"{host.known_hosts}\n")
    config = user / ".ssh/config"
    config.write_text(
        f"Host mine\n  HostName {host.address}\n  User root\n  IdentityFile {key}\n"
        f"  UserKnownHostsFile {user}/.ssh/known_hosts\n"
    )
    (user / ".sky/ssh_node_pools.yaml").write_text(f"{POOL}:\n  hosts: [mine]\n")
    # The system's ssh asks the accounts for its user's home, and not the environment: it has to be told.
    program = user / "bin/ssh"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -F {config} "$@"\n')
    program.chmod(0o755)
    sky.env["PATH"] = f"{program.parent}:{sky.env['PATH']}"
    return host
