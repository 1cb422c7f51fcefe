"""The Kubernetes provider against a real API server and scheduler; pods are processes of this machine."""

from __future__ import annotations

import asyncio
import json
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from tests.bed.control_plane import ADMIN, STRANGER
from tests.providers import kubernetes_rig
from tests.providers.kubernetes_rig import CONTEXT, RUN, SERVES, SMALL, Cluster, KubernetesRig, all_in, gone, output

from skyserve.clock import SystemClock
from skyserve.errors import (
    CapacityUnavailable,
    CredentialsRejected,
    OrderRejected,
    ProviderUnavailable,
    QuotaExceeded,
)
from skyserve.model.evidence import InstanceState
from skyserve.model.offering import CapacityType, Location
from skyserve.model.resources import Accelerator, ResourceChoice, Resources
from skyserve.providers.base import Exit, LaunchOrder

if why_not := kubernetes_rig.missing():
    pytest.skip(why_not, allow_module_level=True)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with kubernetes_rig.cluster(tmp_path_factory.mktemp("cluster")) as cluster:
        yield cluster


@pytest.fixture
def bare(cluster: Cluster, tmp_path: Path) -> Iterator[KubernetesRig]:
    """A cluster without nodes."""
    yield KubernetesRig(cluster, tmp_path)
    cluster.wipe()


@pytest.fixture
def rig(bare: KubernetesRig) -> KubernetesRig:
    """A cluster with one node."""
    bare.kubelet.add_node("plain", cpus=16)
    return bare


def _fetch(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=5) as response:
        body: bytes = response.read()
        return body


async def _no_order(service: str, token: str) -> LaunchOrder | None:
    del service, token
    return None


async def _eventually(true: Callable[[], bool], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)


def test_a_replica_gets_its_files_variables_and_secrets_and_is_reached_from_outside(rig: KubernetesRig) -> None:
    files = rig.home / "files"
    (files / "sub").mkdir(parents=True)
    (files / "sub/hello.txt").write_text("hello")
    (files / "run.sh").write_text("exec python3 -m http.server $PORT --bind 0.0.0.0")
    (files / "run.sh").chmod(0o755)
    order = rig.order(
        'echo "$PLAIN|$TOKEN|$SKYPILOT_NODE_IPS|$SKYSERVE_REPLICA_ID"; cat ~/data/x.txt; ./run.sh',
        setup='echo "$SKYPILOT_SETUP_NODE_RANK" >made-by-setup',
        envs={"PLAIN": "$(HOME) $$ 'x'"},
        secrets={"TOKEN": "top secret"},
        workdir=str(files),
        file_mounts={"~/data/x.txt": str(files / "sub/hello.txt"), "more": str(files / "sub")},
    )

    async def scenario() -> None:
        launched = await rig.provider.launch(order)
        [running] = await rig.until(all_in(InstanceState.RUNNING))
        assert running.address
        url = f"http://{running.address}"
        await _eventually(lambda: _answers(url))
        assert _fetch(f"{url}/sub/hello.txt") == b"hello"
        assert _fetch(f"{url}/more/hello.txt") == b"hello"
        assert _fetch(f"{url}/made-by-setup") == b"0\n"
        told = await output(rig, launched.id)
        assert b"$(HOME) $$ 'x'|top secret|10.244." in told
        assert b"|1\nhello" in told

    asyncio.run(scenario())
    [pod] = rig.objects("pods")
    assert "top secret" not in json.dumps(pod)
    for kind in ("services", "secrets"):
        owned = [one for one in rig.objects(kind) if one["metadata"]["name"] == pod["metadata"]["name"]]
        assert owned[0]["metadata"]["ownerReferences"][0]["uid"] == pod["metadata"]["uid"]


def _answers(url: str) -> bool:
    try:
        return bool(_fetch(url))
    except OSError:
        return False


def test_an_ended_replica_leaves_nothing_but_its_last_words(rig: KubernetesRig) -> None:
    async def scenario() -> None:
        instance = await rig.provider.launch(rig.order("trap 'echo bye; exit 0' TERM; echo up; sleep 1000 & wait"))
        await rig.until(all_in(InstanceState.RUNNING))
        following = asyncio.create_task(output(rig, instance.id, follow=True))
        await _eventually(lambda: b"up" in rig.kubelet.pods[instance.id.rpartition("/")[2]].log.read_bytes())
        await rig.provider.terminate(instance.id)
        await rig.until(gone)
        assert b"bye" in await asyncio.wait_for(following, 5)
        assert b"up" in await output(rig, instance.id)

    asyncio.run(scenario())
    assert not [rig.objects(kind) for kind in ("pods", "services", "secrets") if rig.objects(kind)]


def test_what_the_scheduler_cannot_place_is_refused_with_its_reason_and_cleaned_up(rig: KubernetesRig) -> None:
    rig.fill_up()
    with pytest.raises(CapacityUnavailable, match="Insufficient cpu"):
        asyncio.run(rig.launch("t1"))
    assert not [rig.objects(kind) for kind in ("pods", "services", "secrets") if rig.objects(kind)]
    assert not asyncio.run(rig.provider.instances())


def test_where_nodes_are_added_on_demand_a_pod_waits_for_one(bare: KubernetesRig) -> None:
    bare.kubelet.add_node("pool-1", cpus=2, labels={"karpenter.sh/nodepool": "default"})
    big = replace(SMALL, vcpus=6.0, instance_type="6CPU--0.1GB")

    async def scenario() -> None:
        instance = await bare.provider.launch(bare.order(offering=big))
        assert instance.state is InstanceState.STARTING
        assert "Insufficient cpu" in instance.detail
        bare.kubelet.add_node("pool-2", cpus=8, labels={"karpenter.sh/nodepool": "default"})
        await bare.until(all_in(InstanceState.RUNNING))

    asyncio.run(scenario())


def test_gpus_are_found_by_label_and_shared_out_by_the_scheduler(bare: KubernetesRig) -> None:
    bare.kubelet.add_node("l4", gpus=1, labels={"nvidia.com/gpu.product": "NVIDIA-L4"})
    bare.kubelet.add_node("a100", gpus=1, labels={"cloud.google.com/gke-accelerator": "nvidia-a100-80gb"})
    [l4] = bare.offerings(Resources(accelerators=Accelerator("L4")))
    [a100] = bare.offerings(Resources(accelerators=Accelerator("A100-80GB")))
    refused = asyncio.run(bare.provider.offerings(ResourceChoice((Resources(accelerators=Accelerator("H100")),))))
    assert "A100-80GB:1, L4:1" in refused.refusals[0][1]

    async def scenario() -> None:
        await bare.provider.launch(bare.order(offering=l4))
        await bare.provider.launch(bare.order(replica_id=2, offering=a100))
        with pytest.raises(CapacityUnavailable, match=r"Insufficient nvidia.com/gpu"):
            await bare.provider.launch(bare.order(replica_id=3, offering=l4))

    asyncio.run(scenario())
    on = {pod["metadata"]["labels"]["skyserve-token"]: pod["spec"]["nodeName"] for pod in bare.objects("pods")}
    assert on == {"t1": "l4", "t2": "a100"}


def test_spot_and_on_demand_replicas_get_nodes_of_their_kind(bare: KubernetesRig) -> None:
    bare.kubelet.add_node("cheap", labels={"eks.amazonaws.com/capacityType": "SPOT"})
    [spot] = bare.offerings(Resources(use_spot=True))
    assert spot.capacity_type is CapacityType.SPOT
    assert not bare.offerings(Resources())
    bare.kubelet.add_node("firm")
    [firm] = bare.offerings(Resources())

    async def scenario() -> None:
        for number, offering in enumerate((spot, firm, spot, firm), start=1):
            await bare.provider.launch(bare.order(replica_id=number, offering=replace(offering, vcpus=0.1)))

    asyncio.run(scenario())
    pods = sorted(bare.objects("pods"), key=lambda pod: pod["metadata"]["labels"]["skyserve-token"])
    assert [pod["spec"]["nodeName"] for pod in pods] == ["cheap", "firm", "cheap", "firm"]


def test_a_lost_node_takes_its_replicas_with_it(rig: KubernetesRig) -> None:
    async def scenario() -> None:
        instance = await rig.launch("t1")
        await rig.until(all_in(InstanceState.RUNNING))
        await asyncio.to_thread(rig.kubelet.lose_node, "plain")
        [taken] = await rig.until(all_in(InstanceState.PREEMPTED))
        assert taken.detail == "node plain is gone"
        await rig.provider.terminate(instance.id)
        await rig.until(gone)

    asyncio.run(scenario())


def test_an_eviction_is_a_preemption_with_the_nodes_reason(rig: KubernetesRig) -> None:
    async def scenario() -> None:
        instance = await rig.launch("t1")
        await rig.until(all_in(InstanceState.RUNNING))
        await asyncio.to_thread(rig.kubelet.evict, instance.id.rpartition("/")[2])
        [taken] = await rig.until(all_in(InstanceState.PREEMPTED))
        assert taken.detail == "Evicted: The node was low on resource: memory"
        await rig.provider.terminate(instance.id)
        await rig.until(gone)

    asyncio.run(scenario())


def test_a_pod_that_somebody_else_deletes_is_announced_and_stays_listed_until_its_end_is_ordered(
    rig: KubernetesRig,
) -> None:
    async def scenario() -> None:
        instance = await rig.provider.launch(rig.order("trap 'sleep 2; exit 0' TERM; sleep 1000 & wait"))
        await rig.until(all_in(InstanceState.RUNNING))
        name = instance.id.rpartition("/")[2]
        await asyncio.to_thread(rig.plane.call, "DELETE", f"/api/v1/namespaces/default/pods/{name}")
        [leaving] = await rig.until(lambda listed: listed[0].reclaim_at is not None)
        assert 20 < (leaving.reclaim_at or 0) - time.time() < 40
        [taken] = await rig.until(all_in(InstanceState.PREEMPTED))
        assert "not by us" in taken.detail or "did not delete" in taken.detail
        await rig.provider.terminate(instance.id)
        await rig.until(gone)

    asyncio.run(scenario())


def test_a_notice_on_the_node_is_news_and_says_when_the_replica_goes(rig: KubernetesRig) -> None:
    async def scenario() -> None:
        news: list[float] = []
        rig.provider.listen(lambda: news.append(time.monotonic()), _no_order)
        await rig.launch("t1")
        [running] = await rig.until(all_in(InstanceState.RUNNING))
        assert running.reclaim_at is None
        await _eventually(lambda: bool(news))
        await asyncio.sleep(0.3)
        news.clear()
        await asyncio.to_thread(rig.kubelet.taint, "plain", "aws-node-termination-handler/spot-itn")
        await _eventually(lambda: bool(news), 5.0)
        [noticed] = await rig.provider.instances()
        assert noticed.state is InstanceState.RUNNING
        assert 110 < (noticed.reclaim_at or 0) - time.time() < 121
        assert await rig.provider.instances() == (noticed,)
        await rig.provider.close()
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(scenario())


def test_an_image_that_cannot_be_pulled_is_told(rig: KubernetesRig) -> None:
    async def scenario() -> None:
        await rig.provider.launch(rig.order(image_id="docker:registry.test/missing:1"))
        [waiting] = await rig.until(lambda listed: bool(listed[0].detail.startswith("ImagePull")))
        assert waiting.state is InstanceState.STARTING
        assert waiting.detail == "ImagePullBackOff: registry.test/missing:1: not found"

    asyncio.run(scenario())


def test_a_clean_exit_is_an_exit_all_the_same(rig: KubernetesRig) -> None:
    async def scenario() -> None:
        await rig.provider.launch(rig.order("echo done"))
        [ended] = await rig.until(all_in(InstanceState.EXITED))
        assert (ended.exit_code, ended.failed_phase) == (0, "run")

    asyncio.run(scenario())


def test_a_quota_that_is_used_up_stops_launches_in_that_context(bare: KubernetesRig) -> None:
    bare.kubelet.add_node("plain")
    quotas = "/api/v1/namespaces/tight/resourcequotas"
    bare.plane.call("POST", quotas, {"metadata": {"name": "none"}, "spec": {"hard": {"pods": "0"}}})
    counted = {"status": {"hard": {"pods": "0"}, "used": {"pods": "0"}}}
    bare.plane.call("PATCH", f"{quotas}/none/status", counted)
    bare.plane.kubeconfig(bare.kubeconfig, {CONTEXT: ADMIN}, namespace="tight")
    provider = bare.another_controller()

    async def scenario() -> QuotaExceeded:
        while True:  # the server may take a moment to see the quota
            try:
                instance = await provider.launch(bare.order())
            except QuotaExceeded as error:
                return error
            await provider.terminate(instance.id)

    error = asyncio.run(asyncio.wait_for(scenario(), 20))
    assert "exceeded quota: none" in error.message
    assert error.location == f"kubernetes/{CONTEXT}"


def test_credentials_that_do_not_count_are_told_apart(cluster: Cluster, rig: KubernetesRig, tmp_path: Path) -> None:
    for token, words in ((STRANGER, "cannot list resource"), ("unknown-token", "does not accept the credentials")):
        home = tmp_path / token
        home.mkdir()
        other = KubernetesRig(cluster, home, {CONTEXT: token})
        with pytest.raises(CredentialsRejected, match=words) as caught:
            asyncio.run(other.launch("t1"))
        assert caught.value.hint
        checked = asyncio.run(other.provider.check())
        assert not checked.usable
        assert token not in checked.reason


def test_an_order_that_is_wrong_names_the_field(rig: KubernetesRig) -> None:
    with pytest.raises(OrderRejected, match=r"metadata\.labels"):
        asyncio.run(rig.provider.launch(rig.order(labels={"not a label": "x"})))


def test_a_silent_context_hides_nothing_of_others_but_no_listing_is_whole_without_it(
    cluster: Cluster, rig: KubernetesRig, tmp_path: Path
) -> None:
    both = KubernetesRig(cluster, tmp_path, {CONTEXT: ADMIN, "dead": ADMIN})
    config = json.loads(both.kubeconfig.read_text())
    config["clusters"].append({"name": "dead", "cluster": {"server": "https://127.0.0.1:1"}})
    config["contexts"][1]["context"]["cluster"] = "dead"
    both.kubeconfig.write_text(json.dumps(config))
    both.provider = both.another_controller()
    candidates = asyncio.run(both.provider.offerings(ResourceChoice((Resources(),))))
    assert [offering.location.region for offering in candidates.offerings] == [CONTEXT]
    assert "does not answer" in candidates.refusals[0][1]
    assert not asyncio.run(both.provider.instances()), "a context that was never used need not answer"
    with pytest.raises(ProviderUnavailable):
        asyncio.run(both.provider.launch(both.order(offering=replace(SMALL, location=Location("kubernetes", "dead")))))
    with pytest.raises(ProviderUnavailable, match="context dead") as caught:
        asyncio.run(both.provider.instances())
    assert "rm " in (caught.value.hint or "")


def test_a_controller_that_starts_again_finds_its_replicas_and_nobody_elses(
    cluster: Cluster, rig: KubernetesRig, tmp_path: Path
) -> None:
    (tmp_path / "other").mkdir()
    stranger = KubernetesRig(cluster, tmp_path / "other")

    async def scenario() -> None:
        mine = await rig.launch("t1")
        theirs = await stranger.launch("t1")
        assert mine.id != theirs.id
        again = rig.another_controller()
        assert [instance.id for instance in await again.instances()] == [mine.id]
        assert (await again.launch(rig.order(RUN[SERVES]))).id == mine.id
        assert [instance.id for instance in await stranger.provider.instances()] == [theirs.id]

    asyncio.run(scenario())


def test_files_of_versions_that_nobody_runs_are_swept_away(rig: KubernetesRig) -> None:
    class Later(SystemClock):
        def now(self) -> float:
            return super().now() + 7200

    async def scenario() -> None:
        first, second = rig.home / "v1", rig.home / "v2"
        for number, directory in enumerate((first, second)):
            directory.mkdir()
            (directory / "code.py").write_text(f"print({number})")
        instance = await rig.provider.launch(rig.order(workdir=str(first)))
        await rig.provider.launch(rig.order(replica_id=2, workdir=str(first)))
        await rig.until(all_in(InstanceState.RUNNING))
        assert len(_file_secrets(rig)) == 1, "replicas of one version share them"
        later = rig.another_controller(Later())
        await later.launch(rig.order(replica_id=3, workdir=str(second)))
        assert len(_file_secrets(rig)) == 2, "the first version still runs"
        for name in (instance.id, instance.id.replace("chat-1", "chat-2")):
            await later.terminate(name)
        await rig.provider.release("chat-u1")

    asyncio.run(scenario())
    assert not _file_secrets(rig)


def _file_secrets(rig: KubernetesRig) -> list[str]:
    names: list[str] = [secret["metadata"]["name"] for secret in rig.objects("secrets")]
    return [name for name in names if name.startswith("sky-files-")]


def test_a_script_can_be_run_beside_the_application(rig: KubernetesRig) -> None:
    async def scenario() -> None:
        instance = await rig.provider.launch(rig.order("echo 1 >made; sleep 1000", envs={"PLAIN": "p"}))
        await rig.until(all_in(InstanceState.RUNNING))
        script = 'echo "$PLAIN $TOKEN"; cat made; ps -ef | grep -c "top[ ]secret"; echo wrong >&2; exit 5'
        told = [piece async for piece in rig.provider.execute(instance.id, script, {"TOKEN": "top secret"})]
        assert told[-1] == Exit(5)
        said = b"".join(piece for piece in told if isinstance(piece, bytes))
        assert sorted(said.split(b"\n")) == sorted(b"p top secret\n1\n0\nwrong\n".split(b"\n"))
        with pytest.raises(OrderRejected):
            _ = [piece async for piece in rig.provider.execute(f"{CONTEXT}/never-launched", "true", {})]
        waiting = rig.provider.execute(instance.id, "echo up; exec sleep 4321", {})
        assert await anext(waiting) == b"up\n"
        await waiting.aclose()  # type: ignore[attr-defined]
        await _eventually(lambda: not _runs("sleep 4321"))

    asyncio.run(scenario())


def _runs(command: str) -> bool:
    return subprocess.run(["pgrep", "-xf", command], capture_output=True).returncode == 0


def test_from_inside_the_cluster_the_pod_itself_is_the_address(rig: KubernetesRig) -> None:
    async def scenario() -> None:
        rig.provider = rig.another_controller(inside=True)
        await rig.launch("t1")
        [running] = await rig.until(all_in(InstanceState.RUNNING))
        assert (running.address or "").startswith("10.244.")

    asyncio.run(scenario())
    assert not rig.objects("services")
