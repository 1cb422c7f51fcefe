"""What is sent to a cluster and what is read from it, without any cluster: manifests, nodes, pods, kubeconfigs."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import os
import signal
import subprocess
import tarfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skyserve.clock import SystemClock
from skyserve.config import Config
from skyserve.errors import CredentialsRejected, OrderRejected, ProviderError, ProviderUnavailable, Throttled
from skyserve.model.evidence import InstanceState
from skyserve.model.offering import CapacityType, Location, Offering
from skyserve.model.resources import Accelerator, Quantity, Resources
from skyserve.providers.base import LaunchOrder, NotConfigured
from skyserve.providers.kubernetes import manifests as manifests
from skyserve.providers.kubernetes import nodes as supply
from skyserve.providers.kubernetes import objects as objects
from skyserve.providers.kubernetes import pods as pods
from skyserve.providers.kubernetes import provider
from skyserve.providers.kubernetes.api import Access, Api
from skyserve.providers.kubernetes.config import IN_CLUSTER, Contexts
from skyserve.providers.kubernetes.manifests import Names

L4 = Accelerator("L4", 2)
OFFERING = Offering(
    "kubernetes", "4CPU--16GB--L4:2", Location("kubernetes", "prod"), CapacityType.SPOT, L4, 4.0, 16.0, 0.0
)
ORDER = LaunchOrder(
    "chat-u1", "chat", 1, 1, "t1", "v1", OFFERING, "serve", "prepare", 8080, ports=(9090,), disk_size=50
)
SCHEMAS = [f"1.{minor}" for minor in range(30, 38)]


def node(
    name: str = "n1", *, gpus: int = 0, cpus: str = "3920m", memory: str = "15Gi", **labels: str
) -> objects.Object:
    renamed = {key.replace("__", "/").replace("_", "."): value for key, value in labels.items()}
    size = {"cpu": cpus, "memory": memory, **({"nvidia.com/gpu": str(gpus)} if gpus else {})}
    return {"metadata": {"name": name, "uid": f"uid-{name}", "labels": renamed}, "status": {"allocatable": size}}


def labelled(key: str, value: str, *, gpus: int = 1) -> supply.Node:
    return supply.node_of({**node(gpus=gpus), "metadata": {"name": "n1", "labels": {key: value}}})


# -- manifests


@pytest.mark.parametrize("version", SCHEMAS)
def test_manifests_are_valid_for_every_supported_version(version: str, tmp_path: Path) -> None:
    validate = pytest.importorskip("kubernetes_validate").validate
    (tmp_path / "a.py").write_text("print()")
    firm = replace(OFFERING, capacity_type=CapacityType.ON_DEMAND)
    order = replace(
        ORDER, offering=firm, workdir=str(tmp_path), secrets={"TOKEN": "x"}, envs={"A": "1"}, labels={"team": "ml"}
    )
    archive, names = manifests.pack(order), Names.of(order, "sky-1")
    assert archive is not None
    terms = supply.selector_terms([supply.node_of(node(gpus=2, nvidia_com__gpu_product="NVIDIA-L4"))], order.offering)
    assert terms
    made = [
        manifests.pod(order, names, terms, archive),
        manifests.order_secret(order, names, archive),
        manifests.service(order, names),
        *manifests.file_secrets(names, archive),
    ]
    for manifest in made:
        validate(json.loads(json.dumps(manifest)), version, strict=True)


def test_secrets_are_in_the_secret_and_nowhere_else() -> None:
    order, names = replace(ORDER, secrets={"TOKEN": "top-secret"}), Names.of(ORDER, "sky-1")
    assert "top-secret" not in json.dumps(manifests.pod(order, names, [], None))
    data = objects.part(manifests.order_secret(order, names, None), "data")
    assert base64.b64decode(str(data["TOKEN"])) == b"top-secret"


def test_a_pod_asks_for_what_its_offering_promises() -> None:
    pod = manifests.pod(ORDER, Names.of(ORDER, "sky-1"), [], None)
    [container] = objects.listed(pod, "spec", "containers")
    assert container["resources"] == {
        "requests": {"cpu": "4000m", "memory": "16384Mi", "ephemeral-storage": "50Gi", "nvidia.com/gpu": "2"},
        "limits": {"nvidia.com/gpu": "2"},
    }
    assert [port["containerPort"] for port in objects.listed(container, "ports")] == [8080, 9090]
    assert container["image"] == manifests.DEFAULT_IMAGE


def test_images_are_container_images() -> None:
    assert manifests.image(replace(ORDER, image_id="docker:vllm/vllm-openai:v1")) == "vllm/vllm-openai:v1"
    with pytest.raises(OrderRejected, match="ami-1"):
        manifests.image(replace(ORDER, image_id="ami-1"))


def test_users_labels_do_not_replace_ours() -> None:
    order = replace(ORDER, labels={"skyserve-token": "stolen", "team": "ml"})
    labels = objects.strings(manifests.pod(order, Names.of(order, "sky-1"), [], None), "metadata", "labels")
    assert labels["skyserve-token"] == "t1"
    assert labels["team"] == "ml"


@given(st.text(max_size=100), st.integers(0, 10**6), st.text(max_size=80))
def test_names_and_labels_are_always_accepted(service: str, replica_id: int, token: str) -> None:
    order = replace(ORDER, service=f"{service}-u1", service_name=service, replica_id=replica_id, token=token)
    names = Names.of(order, "sky-1")
    assert len(names.pod) <= 63
    assert names.pod.replace("-", "").isalnum()
    assert names.pod == names.pod.lower()
    for value in objects.strings(names.metadata(names.pod), "labels").values():
        assert len(value) <= 63
        assert value[0].isalnum()
        assert value[-1].isalnum()


def test_a_variable_with_an_impossible_name_is_refused() -> None:
    with pytest.raises(OrderRejected, match="A-B"):
        manifests.pod(replace(ORDER, envs={"A-B": "1"}), Names.of(ORDER, "sky-1"), [], None)


# -- files


def test_the_same_files_make_the_same_archive(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "sub").mkdir(parents=True)
    (tree / "sub/a").write_text("a")
    (tree / "link").symlink_to("sub/a")
    order = replace(ORDER, workdir=str(tree), file_mounts={"/data": str(tree / "sub/a")})
    first, again = manifests.pack(order), manifests.pack(order)
    assert first == again
    assert first
    with tarfile.open(fileobj=io.BytesIO(b"".join(first.chunks))) as tar:
        assert tar.getnames() == ["workdir", "workdir/link", "workdir/sub", "workdir/sub/a", "mounts/0"]
    assert manifests.pack(ORDER) is None


def test_big_files_go_in_several_secrets_and_too_big_ones_nowhere(tmp_path: Path) -> None:
    file = tmp_path / "weights"
    file.write_bytes(os.urandom(2_000_000))
    archive = manifests.pack(replace(ORDER, file_mounts={"w": str(file)}))
    assert archive
    assert [len(chunk) <= 2**20 for chunk in archive.chunks] == [True, True, True]
    file.write_bytes(os.urandom((manifests.FILES_LIMIT_MIB + 1) * 2**20))
    with pytest.raises(OrderRejected, match="24 MiB"):
        manifests.pack(replace(ORDER, file_mounts={"w": str(file)}))
    with pytest.raises(OrderRejected, match="cannot be packed"):
        manifests.pack(replace(ORDER, workdir=str(tmp_path / "nowhere")))


# -- what runs in the pod


@contextmanager
def supervised(root: Path, order: LaunchOrder) -> Iterator[subprocess.Popen[str]]:
    """The pod's script as a process of this machine, all its files below `root`."""
    secret = objects.part(manifests.order_secret(order, Names.of(order, "sky-1"), manifests.pack(order)), "data")
    archive = manifests.pack(order)
    for name in ("order", "state", "files", "home"):
        (root / name).mkdir()
    for name, encoded in secret.items():
        script = base64.b64decode(str(encoded)).decode().replace("/skyserve/", f"{root}/")
        (root / "order" / name).write_text(script.replace("/dev/termination-log", f"{root}/termination-log"))
    for index, chunk in enumerate(archive.chunks if archive else ()):
        (root / f"files/part-{index:03}").write_bytes(chunk)
    env = {"PATH": os.environ["PATH"], "HOME": str(root / "home")}
    command = ["bash", str(root / "order/main.sh")]
    with subprocess.Popen(command, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize(
    ("setup", "run", "last", "code"),
    [
        (None, "exit 3", "[skyserve] run ended with exit code 3", 3),
        ("exit 4", "echo never", "[skyserve] setup ended with exit code 4", 4),
        ("echo x >made", "cat made; exit 5", "[skyserve] run ended with exit code 5", 5),
        (None, "kill -9 $$", "[skyserve] run ended with exit code 137", 137),
        (None, "true", "[skyserve] run ended with exit code 0", 0),
    ],
)
def test_the_script_tells_which_phase_ended_and_how(
    tmp_path: Path, setup: str | None, run: str, last: str, code: int
) -> None:
    with supervised(tmp_path, replace(ORDER, setup=setup, run=run)) as process:
        out, _ = process.communicate(timeout=10)
    assert process.returncode == code, out
    assert out.splitlines()[-1] == last
    assert "never" not in out
    assert (tmp_path / "state/running").exists() == (setup != "exit 4")
    assert (tmp_path / "termination-log").exists() == (code == 0)


def test_the_script_puts_files_where_they_belong(tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    (tmp_path / "src/a b").write_text("in workdir")
    order = replace(
        ORDER,
        setup=None,
        run="cat 'a b' ~/'x y/m' deep/er",
        workdir=str(tmp_path / "src"),
        file_mounts={"~/x y/m": str(tmp_path / "src/a b"), "deep/er": str(tmp_path / "src/a b")},
    )
    root = tmp_path / "root"
    root.mkdir()
    with supervised(root, order) as process:
        out, _ = process.communicate(timeout=10)
    assert out.startswith("in workdir" * 3)


def test_the_script_hands_signals_on_to_the_whole_application(tmp_path: Path) -> None:
    run = "trap 'wait; echo ended well; exit 7' TERM; (trap 'echo child too' TERM; sleep 60) & echo up; wait"
    with supervised(tmp_path, replace(ORDER, setup=None, run=run)) as process:
        assert process.stdout
        assert process.stdout.readline() == "up\n"
        time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=10)
    assert "ended well" in out
    assert "child too" in out
    assert out.splitlines()[-1] == "[skyserve] stopped"
    assert process.returncode == 7


# -- nodes


@pytest.mark.parametrize(
    ("label", "value", "name"),
    [
        ("skypilot.co/accelerator", "h100", "H100"),
        ("cloud.google.com/gke-accelerator", "nvidia-tesla-t4", "T4"),
        ("cloud.google.com/gke-accelerator", "nvidia-a100-80gb", "A100-80GB"),
        ("cloud.google.com/gke-accelerator", "nvidia-h100-mega-80gb", "H100-MEGA"),
        ("karpenter.k8s.aws/instance-gpu-name", "a10g", "A10G"),
        ("k8s.amazonaws.com/accelerator", "nvidia-l40s", "L40S"),
        ("gpu.nvidia.com/class", "A100_NVLINK_80GB", "A100-80GB"),
        ("nvidia.com/gpu.product", "NVIDIA-A100-SXM4-80GB", "A100-80GB"),
        ("nvidia.com/gpu.product", "Tesla-T4-SHARED", "T4"),
        ("nvidia.com/gpu.product", "NVIDIA-H100-80GB-HBM3-MIG-1g.10gb", "H100"),
    ],
)
def test_accelerators_are_known_by_the_labels_of_all_kinds_of_clusters(label: str, value: str, name: str) -> None:
    assert labelled(label, value).accelerator == name


def test_a_gpu_without_a_label_is_refused_with_the_command_that_helps() -> None:
    refusal = supply.offering_of("prod", [supply.node_of(node(gpus=1))], Resources(accelerators=Accelerator("L4")))
    assert isinstance(refusal, str)
    assert "kubectl label node n1 skypilot.co/accelerator=" in refusal


@pytest.mark.parametrize(
    ("want", "instance_type"),
    [
        (Resources(), "1.9CPU--7.5GB"),
        (Resources(cpus=Quantity(1)), "1CPU--4GB"),
        (Resources(cpus=Quantity(2, at_least=True), memory=Quantity(3)), "2CPU--3GB"),
        (Resources(cpus=Quantity(2), memory=Quantity(4, per_vcpu=True)), "2CPU--8GB"),
        (Resources(instance_type="1CPU--2GB"), "1CPU--2GB"),
        (Resources(cloud="kubernetes", region="prod"), "1.9CPU--7.5GB"),
    ],
)
def test_an_offering_is_what_is_asked_or_something_modest(want: Resources, instance_type: str) -> None:
    offering = supply.offering_of("prod", [supply.node_of(node())], want)
    assert isinstance(offering, Offering)
    assert (offering.instance_type, offering.price_per_hour) == (instance_type, 0.0)
    assert offering.location == Location("kubernetes", "prod")


@pytest.mark.parametrize(
    ("want", "why"),
    [
        (Resources(cloud="elsewhere"), "asks for cloud elsewhere"),
        (Resources(region="other"), "asks for region other"),
        (Resources(zone="z1"), "has no on-demand nodes in zone z1"),
        (Resources(use_spot=True), "has no spot nodes"),
        (Resources(cpus=Quantity(64)), "can hold 64CPU"),
        (Resources(accelerators=L4), "there are no GPUs"),
        (Resources(accelerators=Accelerator("L4", 0.5)), "whole accelerators"),
        (Resources(instance_type="m5.large"), "write one as"),
        (Resources(image_id="ami-1"), "write docker:ami-1"),
        (Resources(volumes=("v",)), "volumes"),
    ],
)
def test_what_a_context_can_never_give_is_refused_with_the_reason(want: Resources, why: str) -> None:
    refusal = supply.offering_of("prod", [supply.node_of(node())], want)
    assert isinstance(refusal, str)
    assert why in refusal


def test_a_cordoned_node_offers_nothing() -> None:
    cordoned = {**node(), "spec": {"unschedulable": True}}
    assert isinstance(supply.offering_of("prod", [supply.node_of(cordoned)], Resources()), str)


@pytest.mark.parametrize(
    ("written", "value"),
    [("500m", 0.5), ("2", 2), ("16Gi", 16 * 2**30), ("1e3", 1000), ("100k", 1e5), ("", 0), ("Gi", 0), (4, 4)],
)
def test_quantities(written: object, value: float) -> None:
    assert objects.quantity(written) == value


# -- pods

NOW = 1_800_000_000.0


def pod(status: dict[str, object] | None = None, **metadata: object) -> objects.Object:
    made = manifests.pod(ORDER, Names.of(ORDER, "sky-1"), [], None)
    return {
        **made,
        "metadata": {**objects.part(made, "metadata"), "uid": "uid-pod", **metadata},
        "spec": {**objects.part(made, "spec"), "nodeName": "n1"},
        "status": status or {},
    }


def container(**state: object) -> dict[str, object]:
    return {"containerStatuses": [{"name": "replica", **state}]}


def unscheduled(since_at: str) -> dict[str, object]:
    message = "0/2 nodes are available: 2 Insufficient nvidia.com/gpu."
    condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}
    return {"phase": "Pending", "conditions": [{**condition, "lastTransitionTime": since_at}]}


SCENE = pods.Scene(node=node(), service=None, nodes_known=True, ending=False, inside=True, now=NOW)
TERMINATED = {"exitCode": 4, "reason": "Error", "startedAt": "2027-01-15T08:00:00Z"}
LONG_AGO, JUST_NOW = "2027-01-15T07:00:00Z", "2027-01-15T07:59:30Z"


@pytest.mark.parametrize(
    ("status", "state", "detail"),
    [
        ({"phase": "Pending"}, InstanceState.STARTING, ""),
        (unscheduled(JUST_NOW), InstanceState.STARTING, "waits for a node: 0/2"),
        (unscheduled(LONG_AGO), InstanceState.PREEMPTED, "no node after 600 s: 0/2"),
        (container(state={"waiting": {"reason": "InvalidImageName"}}), InstanceState.EXITED, "InvalidImageName"),
        (container(state={"running": {"startedAt": LONG_AGO}}, started=False), InstanceState.SETUP, ""),
        (container(state={"running": {"startedAt": LONG_AGO}}, started=True), InstanceState.RUNNING, ""),
        (container(state={"terminated": TERMINATED}), InstanceState.EXITED, ""),
        ({"phase": "Failed", "reason": "Evicted", "message": "disk"}, InstanceState.PREEMPTED, "Evicted: disk"),
        ({"phase": "Failed", "reason": "NodeShutdown"}, InstanceState.PREEMPTED, "NodeShutdown"),
        ({"phase": "Failed"}, InstanceState.PREEMPTED, "before its container ran"),
        ({"phase": "Unknown", "reason": "NodeLost"}, InstanceState.PREEMPTED, "NodeLost"),
    ],
)
def test_states(status: dict[str, object], state: InstanceState, detail: str) -> None:
    seen = pods.instance_of("prod", pod(status), SCENE)
    assert seen.state is state
    assert detail in seen.detail
    assert (seen.service, seen.token) == ("chat-u1", "t1")


def test_an_exit_is_told_with_its_phase_code_and_last_lines() -> None:
    message = "loading\nno such model\n[skyserve] setup ended with exit code 4\n"
    seen = pods.instance_of("prod", pod(container(state={"terminated": {**TERMINATED, "message": message}})), SCENE)
    assert (seen.failed_phase, seen.exit_code, seen.detail) == ("setup", 4, "loading\nno such model")
    killed = {**TERMINATED, "exitCode": 137, "reason": "OOMKilled", "message": "loading"}
    seen = pods.instance_of("prod", pod(container(state={"terminated": killed})), SCENE)
    assert (seen.failed_phase, seen.exit_code, seen.detail) == ("run", 137, "loading\nOOMKilled")


def test_a_pod_of_a_node_that_is_gone_is_taken_but_not_where_nodes_may_not_be_seen() -> None:
    running = pod(container(state={"running": {"startedAt": LONG_AGO}}, started=True))
    assert pods.instance_of("prod", running, replace(SCENE, node=None)).state is InstanceState.PREEMPTED
    unseen = replace(SCENE, node=None, nodes_known=False)
    assert pods.instance_of("prod", running, unseen).state is InstanceState.RUNNING


def test_from_outside_the_address_is_a_port_of_the_node() -> None:
    running = pod(container(state={"running": {"startedAt": LONG_AGO}}, started=True))
    addresses = [{"type": "InternalIP", "address": "10.0.0.7"}, {"type": "ExternalIP", "address": "2001:db8::1"}]
    scene = replace(
        SCENE,
        inside=False,
        node={"status": {"addresses": addresses}},
        service={"spec": {"ports": [{"port": 9090, "nodePort": 31000}, {"port": 8080, "nodePort": 31001}]}},
    )
    assert pods.instance_of("prod", running, scene).address == "[2001:db8::1]:31001"


@pytest.mark.parametrize(
    ("spec", "at", "warning_s"),
    [
        ({"taints": [{"key": "cloud.google.com/impending-node-termination", "effect": "NoSchedule"}]}, None, 25.0),
        ({"taints": [{"key": "gone", "effect": "NoExecute", "timeAdded": "2027-01-15T08:00:00Z"}]}, NOW, 0.0),
        ({"taints": [{"key": "dedicated", "effect": "NoSchedule"}]}, 0.0, -1.0),
    ],
)
def test_notices_come_from_taints(spec: dict[str, object], at: float | None, warning_s: float) -> None:
    notice = pods.notice_of(pod(), {**node(), "spec": spec})
    if warning_s < 0:
        assert notice is None
    else:
        assert notice
        assert (notice.at, notice.warning_s) == (at, warning_s)


def test_a_silent_node_is_a_notice_for_when_its_pods_are_driven_out() -> None:
    taint = {"key": "node.kubernetes.io/unreachable", "effect": "NoExecute", "timeAdded": "2027-01-15T08:00:00Z"}
    bearing = {"key": taint["key"], "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300}
    seen = {**pod(), "spec": {"nodeName": "n1", "tolerations": [bearing]}}
    notice = pods.notice_of(seen, {**node(), "spec": {"taints": [taint]}})
    assert notice
    assert notice.at == NOW + 300


# -- kubeconfigs


def _config(home: Path, **env: str) -> Config:
    return Config(home / "state", inherited_env={"HOME": str(home), "PATH": os.environ["PATH"], **env})


def _kubeconfig(home: Path, user: dict[str, object], name: str = "prod") -> Path:
    path = home / ".kube/config"
    path.parent.mkdir(exist_ok=True)
    cluster = {"server": "https://127.0.0.1:6443/"}
    path.write_text(
        json.dumps(
            {
                "clusters": [{"name": "c", "cluster": cluster}],
                "users": [{"name": "u", "user": user}],
                "contexts": [{"name": name, "context": {"cluster": "c", "user": "u", "namespace": "ml"}}],
            }
        )
    )
    return path


def _access(home: Path, context: str = "prod") -> Access:
    return asyncio.run(Contexts(_config(home)).access(context))


def test_without_a_kubeconfig_there_is_no_provider(tmp_path: Path) -> None:
    with pytest.raises(NotConfigured, match=r"\.kube/config") as caught:
        provider(_config(tmp_path), SystemClock())
    assert "KUBECONFIG" in caught.value.hint
    (tmp_path / "empty").write_text("contexts: []")
    with pytest.raises(NotConfigured, match="has no contexts"):
        Contexts(_config(tmp_path, KUBECONFIG=str(tmp_path / "empty")))
    (tmp_path / "broken").write_text("contexts: [")
    with pytest.raises(NotConfigured, match="cannot be read"):
        Contexts(_config(tmp_path, KUBECONFIG=str(tmp_path / "broken")))


def test_a_context_says_how_it_is_reached(tmp_path: Path) -> None:
    _kubeconfig(tmp_path, {"token": "abc"})
    access = _access(tmp_path)
    assert (access.server, access.namespace) == ("https://127.0.0.1:6443", "ml")
    assert access.authorization == "Bearer abc"
    assert "abc" not in repr(access)
    _kubeconfig(tmp_path, {"username": "me", "password": "pw"})
    assert _access(tmp_path).authorization == f"Basic {base64.b64encode(b'me:pw').decode()}"
    (tmp_path / ".kube/token").write_text("from a file\n")
    _kubeconfig(tmp_path, {"tokenFile": "token"})
    assert _access(tmp_path).authorization == "Bearer from a file"
    with pytest.raises(ProviderUnavailable, match="no context named 'other'"):
        _access(tmp_path, "other")
    _kubeconfig(tmp_path, {"auth-provider": {"name": "oidc"}})
    with pytest.raises(CredentialsRejected, match="auth-provider"):
        _access(tmp_path)


def test_a_credential_plugin_is_asked_once_for_as_long_as_its_answer_holds(tmp_path: Path) -> None:
    plugin = tmp_path / "plugin"
    status = {"token": "fresh", "expirationTimestamp": "2999-01-01T00:00:00Z"}
    plugin.write_text(f"#!/bin/sh\necho x >>{tmp_path}/asked\necho '{json.dumps({'status': status})}'\n")
    plugin.chmod(0o755)
    _kubeconfig(tmp_path, {"exec": {"command": str(plugin), "args": None, "apiVersion": "v1"}})
    contexts = Contexts(_config(tmp_path))

    async def scenario() -> None:
        assert (await contexts.access("prod")).authorization == "Bearer fresh"
        assert (await contexts.access("prod")).authorization == "Bearer fresh"
        assert (tmp_path / "asked").read_text() == "x\n"
        contexts.forget("prod")
        await contexts.access("prod")
        assert (tmp_path / "asked").read_text() == "x\nx\n"
        plugin.write_text("#!/bin/sh\necho log in first >&2; exit 1\n")
        contexts.forget("prod")
        with pytest.raises(CredentialsRejected, match="log in first"):
            await contexts.access("prod")
        plugin.unlink()
        with pytest.raises(CredentialsRejected, match="cannot be run"):
            await contexts.access("prod")

    asyncio.run(scenario())


def test_contexts_come_from_all_files_and_can_be_limited(tmp_path: Path) -> None:
    first = _kubeconfig(tmp_path, {}).rename(tmp_path / "a")
    second = _kubeconfig(tmp_path, {}, name="lab").rename(tmp_path / "b")
    config = _config(tmp_path, KUBECONFIG=f"{first}:{second}:{tmp_path}/none")
    contexts = Contexts(config)
    assert contexts.names == ("prod", "lab")
    (tmp_path / ".sky").mkdir()
    (tmp_path / ".sky/config.yaml").write_text("kubernetes:\n  allowed_contexts: [lab, gone]\n")
    assert contexts.names == ("lab",)
    second.write_text("contexts: [")
    with pytest.raises(ProviderUnavailable, match="cannot be read"):
        assert contexts.names


def test_in_a_pod_its_service_account_is_enough(tmp_path: Path) -> None:
    import ssl

    authority = ssl.create_default_context().get_ca_certs(binary_form=True)
    if not authority:
        pytest.skip("no certificate authorities on this machine")
    (tmp_path / "ca.crt").write_text(ssl.DER_cert_to_PEM_cert(authority[0]))
    (tmp_path / "token").write_text("of-the-pod")
    (tmp_path / "namespace").write_text("serving")
    config = _config(tmp_path, KUBERNETES_SERVICE_HOST="10.96.0.1", KUBERNETES_SERVICE_PORT="443")
    contexts = Contexts(config, account_dir=tmp_path)
    assert contexts.names == (IN_CLUSTER,)
    access = asyncio.run(contexts.access(IN_CLUSTER))
    assert (access.server, access.namespace) == ("https://10.96.0.1:443", "serving")
    assert access.authorization == "Bearer of-the-pod"


# -- refusals


@contextmanager
def answering(code: int, body: object, **headers: str) -> Iterator[Access]:
    """An API server that always gives one answer."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(code)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_POST = do_DELETE = do_GET  # noqa: N815

        def log_message(self, format: str, *args: object) -> None:
            del format, args

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield Access(f"http://127.0.0.1:{server.server_address[1]}", "ml", True)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.mark.parametrize(
    ("code", "body", "error", "words"),
    [
        (429, {"message": "slow down"}, Throttled, "slow down"),
        (500, {"message": "etcd is tired"}, ProviderUnavailable, "etcd is tired"),
        (503, b"<html>gateway</html>", ProviderUnavailable, "gateway"),
        (200, b"not json", ProviderUnavailable, "does not answer"),
        (403, {"message": "admission webhook denied the request: no"}, OrderRejected, "webhook"),
        (404, {"message": 'namespaces "ml" not found'}, OrderRejected, "not found"),
    ],
)
def test_refusals_are_told_apart(code: int, body: object, error: type[ProviderError], words: str) -> None:
    async def scenario(access: Access) -> None:
        async with Api("prod", access, "kubernetes/prod") as api:
            await api.create(api.path("pods"), {})

    with answering(code, body, Retry_After="7") as access, pytest.raises(error, match=words) as caught:
        asyncio.run(scenario(access))
    if isinstance(caught.value, Throttled):
        assert caught.value.retry_after_s == 7
