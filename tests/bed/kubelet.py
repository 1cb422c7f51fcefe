"""The test's kubelet: nodes of a control plane whose pods are real processes on this machine.

Each pod gets namespaces of its own (mounts, processes, network, host name) and this machine's files below an overlay,
so what it writes is gone with it. Its image is ignored, except that one named `missing` cannot be pulled. Nothing leads
into a pod's network but the ports of NodePort services, which are forwarded from the node's loopback address, as a node
does for real. Logs are served over TLS, so that the API server's own log requests work.
"""

from __future__ import annotations

import asyncio
import base64
import ctypes
import os
import re
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from tests.bed.control_plane import ApiError, ControlPlane, Json
from tests.bed.node_server import NodeServer

_CLONE_NEWNET = 0x40000000
_FOREVER = "2000-01-01T00:00:00Z"

_ENTER = r"""
set -e
base=$1; shift
mount -t tmpfs tmpfs "$base/overlay"
mkdir "$base/overlay/upper" "$base/overlay/work" "$base/overlay/root"
root=$base/overlay/root
mount -t overlay overlay -o "lowerdir=/,upperdir=$base/overlay/upper,workdir=$base/overlay/work" "$root"
mount -t proc proc "$root/proc"
mount -t tmpfs tmpfs "$root/dev"
for name in null zero full random urandom tty; do
  touch "$root/dev/$name"
  mount --bind "/dev/$name" "$root/dev/$name"
done
ln -s /proc/self/fd "$root/dev/fd"
touch "$root/dev/termination-log"
mount --bind "$base/termination-log" "$root/dev/termination-log"
while read -r source target; do
  mkdir -p "$root$target"
  mount --bind "$source" "$root$target"
done <"$base/mounts"
ip link set lo up
ip address add "$POD_IP/32" dev lo
hostname pod
mapfile -d '' -t environment <"$base/environment"
exec chroot "$root" env -i "${environment[@]}" "$@"
"""


def missing() -> str | None:
    """Why pods cannot run here, in a line; None when they can."""
    if os.geteuid() != 0:
        return "pods need root: their namespaces and overlays cannot be made otherwise"
    tools = [name for name in ("unshare", "nsenter", "ip") if shutil.which(name) is None]
    return f"missing tools: {', '.join(tools)} (apt-get install util-linux iproute2)" if tools else None


class PodProcess:
    """One pod on one node: a process tree, its log, and what the API is told of it."""

    def __init__(self, kubelet: Kubelet, pod: Json, address: str) -> None:
        self.pod = pod
        self.name: str = pod["metadata"]["name"]
        self.node: str = pod["spec"]["nodeName"]
        self.path = f"/api/v1/namespaces/{pod['metadata']['namespace']}/pods/{self.name}"
        self.base = kubelet.home / "pods" / pod["metadata"]["uid"]
        self.log = self.base / "log"
        self.address = address
        self.over = threading.Event()
        self._plane = kubelet.plane
        self._process: subprocess.Popen[bytes] | None = None
        self._silent = False
        self._stopping = False
        self._end = threading.Event()
        self._started_at = ""
        self._thread = threading.Thread(target=self._live, name=f"pod {self.name}")
        self._thread.start()

    @property
    def init(self) -> int | None:
        """The process id, here, of the pod's first process."""
        if self._process is None or self._process.poll() is not None:
            return None
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
        with suppress(OSError):
            found = children.read_text().split()
            return int(found[0]) if found else None
        return None

    def kill(self, *, silently: bool = False) -> None:
        """End it at once. `silently`: as when the node loses power, so nothing is told."""
        self._silent = self._silent or silently
        self._end.set()
        if self._process is not None and self._process.poll() is None:
            self._process.kill()

    def stop(self, grace_s: float) -> None:
        """SIGTERM, and SIGKILL after the grace; then the object is really deleted."""
        if not self._stopping:
            self._stopping = True
            self._end.set()
            threading.Thread(target=self._stop, args=(grace_s,)).start()

    def join(self) -> None:
        self._thread.join(20)

    def socket_inside(self) -> socket.socket:
        """A socket of the pod's network. To be called in a thread of its own choosing: it leaves it where it was."""
        init = self.init
        if init is None:
            raise ConnectionRefusedError
        libc = ctypes.CDLL(None, use_errno=True)
        with open("/proc/thread-self/ns/net") as home, open(f"/proc/{init}/ns/net") as inside:
            if libc.setns(inside.fileno(), _CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "setns")
            try:
                return socket.socket()
            finally:
                libc.setns(home.fileno(), _CLONE_NEWNET)

    # -- life

    def _live(self) -> None:
        with suppress(ApiError, OSError):
            if self._prepare() and not self._end.is_set():
                self._run()
        self.over.set()

    def _prepare(self) -> bool:
        container = self.pod["spec"]["containers"][0]
        if "missing" in container["image"]:
            for reason in ("ErrImagePull", "ImagePullBackOff"):
                self._tell("Pending", {"waiting": {"reason": reason, "message": f"{container['image']}: not found"}})
            return False
        for name in ("overlay", "volumes"):
            (self.base / name).mkdir(parents=True)
        (self.base / "termination-log").touch()
        self._tell("Pending", {"waiting": {"reason": "ContainerCreating"}})
        while not self._end.is_set():
            try:
                self._materialise(container)
            except ApiError:  # a Secret that is not there yet
                self._end.wait(0.1)
            else:
                return True
        return False

    def _run(self) -> None:
        container = self.pod["spec"]["containers"][0]
        command = [*container.get("command", []), *container.get("args", [])]
        namespaces = ["unshare", "-m", "-p", "-n", "-u", "--propagation", "private", "--fork", "--kill-child"]
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [*namespaces, "bash", "-c", _ENTER, "pod", str(self.base), *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={"PATH": os.environ["PATH"], "POD_IP": self.address},
                start_new_session=True,
            )
        threading.Thread(target=self._process.wait, daemon=True).start()  # whatever becomes of the telling below
        self._started_at = _now()
        self._tell("Running", {"running": {"startedAt": self._started_at}}, started=False)
        threading.Thread(target=self._await_startup, args=(container.get("startupProbe"),)).start()
        code = self._process.wait()
        if not self._silent:
            self._tell_end(128 - code if code < 0 else code, container)

    def _await_startup(self, probe: Json | None) -> None:
        command = probe["exec"]["command"] if probe else ["true"]
        while self._process is not None and self._process.poll() is None:
            init = self.init
            root = f"/proc/{init}/root"
            inside = ["nsenter", "-t", str(init), "-m", "-p", "-n", f"--root={root}", "--", *command]
            if init and subprocess.run(inside, capture_output=True, stdin=subprocess.DEVNULL).returncode == 0:
                with suppress(ApiError, OSError):
                    self._tell("Running", {"running": {"startedAt": self._started_at}}, started=True)
                return
            time.sleep(0.1)

    def _stop(self, grace_s: float) -> None:
        self._await_container()
        init = self.init
        if init is not None:
            with suppress(ProcessLookupError):
                os.kill(init, signal.SIGTERM)
        if not self.over.wait(grace_s):
            self.kill()
            self.over.wait(5)
        with suppress(ApiError, OSError):
            uid = self.pod["metadata"]["uid"]
            self._plane.call("DELETE", self.path, {"gracePeriodSeconds": 0, "preconditions": {"uid": uid}})

    def _await_container(self) -> None:
        """Until its own program runs in its own root: while that is being made, nobody would heed a signal."""
        deadline = time.monotonic() + 5
        while not self.over.is_set() and time.monotonic() < deadline:
            with suppress(OSError):
                if self.init is not None and os.readlink(f"/proc/{self.init}/root") != "/":
                    time.sleep(0.1)  # it has yet to install its handlers
                    return
            time.sleep(0.01)

    # -- what it stands on

    def _materialise(self, container: Json) -> None:
        namespace = self.pod["metadata"]["namespace"]
        mounts = []
        for mount in container.get("volumeMounts", []):
            [volume] = [one for one in self.pod["spec"]["volumes"] if one["name"] == mount["name"]]
            directory = self.base / "volumes" / mount["name"]
            directory.mkdir(exist_ok=True)
            for source in volume.get("projected", {}).get("sources", [volume]):
                self._fill(directory, source, namespace)
            mounts.append(f"{directory} {mount['mountPath']}\n")
        (self.base / "mounts").write_text("".join(mounts))
        environment = {"PATH": os.environ["PATH"], "HOME": "/root", "HOSTNAME": self.name}
        for variable in container.get("env", []):
            environment[variable["name"]] = self._value(variable, environment, namespace)
        encoded = b"".join(f"{name}={value}\0".encode() for name, value in environment.items())
        (self.base / "environment").write_bytes(encoded)

    def _fill(self, directory: Path, source: Json, namespace: str) -> None:
        for kind, name_key in (("secret", "secretName"), ("configMap", "name")):
            if kind in source:
                wanted = source[kind]
                name = wanted.get(name_key) or wanted["name"]
                data = self._plane.call("GET", f"/api/v1/namespaces/{namespace}/{kind.lower()}s/{name}").get("data", {})
                for item in wanted.get("items") or [{"key": key, "path": key} for key in data]:
                    value = data[item["key"]]
                    content = base64.b64decode(value) if kind == "secret" else value.encode()
                    (directory / item["path"]).write_bytes(content)

    def _value(self, variable: Json, known: dict[str, str], namespace: str) -> str:
        source = variable.get("valueFrom", {})
        if "fieldRef" in source:
            return {"status.podIP": self.address, "metadata.name": self.name}[source["fieldRef"]["fieldPath"]]
        if "secretKeyRef" in source:
            ref = source["secretKeyRef"]
            secret = self._plane.call("GET", f"/api/v1/namespaces/{namespace}/secrets/{ref['name']}")
            return base64.b64decode(secret["data"][ref["key"]]).decode()
        return _expanded(variable.get("value", ""), known)

    # -- what is told

    def _tell(self, phase: str, state: Json, *, started: bool = False) -> None:
        container = self.pod["spec"]["containers"][0]
        status = {
            "phase": phase,
            "hostIP": "127.0.0.1",
            "containerStatuses": [
                {
                    "name": container["name"],
                    "image": container["image"],
                    "imageID": "",
                    "ready": started,
                    "started": started,
                    "restartCount": 0,
                    "state": state,
                }
            ],
            "conditions": [{"type": "Ready", "status": str(started)}],
        }
        if phase == "Running":
            status |= {"podIP": self.address, "podIPs": [{"ip": self.address}], "startTime": self._started_at}
        self._plane.call("PATCH", f"{self.path}/status", {"status": status})

    def _tell_end(self, code: int, container: Json) -> None:
        message = (self.base / "termination-log").read_text(errors="replace")[:4096]
        fallback = container.get("terminationMessagePolicy") == "FallbackToLogsOnError"
        if not message and code and fallback:
            lines = self.log.read_text(errors="replace").splitlines(keepends=True)
            message = "".join(lines[-80:])[-2048:]
        terminated = {
            "exitCode": code,
            "reason": "Error" if code else "Completed",
            "message": message,
            "startedAt": self._started_at,
            "finishedAt": _now(),
        }
        self._tell("Failed" if code else "Succeeded", {"terminated": terminated, "running": None})


class Kubelet:
    """All nodes of a control plane. `pods` holds what runs, by the pod's name."""

    def __init__(self, plane: ControlPlane, home: Path) -> None:
        self.plane = plane
        self.home = home
        self.pods: dict[str, PodProcess] = {}
        self._addresses: dict[str, str] = {}
        self._lost: set[str] = set()
        self._closing = False
        self._numbers = iter(range(1, 250))
        self._servers_of_nodes: list[NodeServer] = []
        self._forwarder = _Forwarder()
        self._threads = [
            threading.Thread(target=self._watch, args=("/api/v1/pods", self._on_pod), name="pods"),
            threading.Thread(target=self._watch, args=("/api/v1/services", self._on_service), name="services"),
        ]
        self._services: dict[str, Json] = {}

    def start(self) -> None:
        (self.home / "pods").mkdir(parents=True, exist_ok=True)
        self._forwarder.start()
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._closing = True
        for pod in list(self.pods.values()):
            pod.kill(silently=True)
        for pod in list(self.pods.values()):
            pod.join()
        for thread in self._threads:
            thread.join(20)
        self._forwarder.stop()
        for server in self._servers_of_nodes:
            server.stop()

    # -- nodes

    def add_node(
        self, name: str, *, cpus: int = 8, memory: str = "32Gi", gpus: int = 0, labels: dict[str, str] | None = None
    ) -> str:
        """Register a node, and return its address."""
        self._addresses[name] = address = f"127.7.0.{next(self._numbers)}"
        self._lost.discard(name)
        self._servers_of_nodes.append(NodeServer(self.plane.certificates, address, self.pods))
        body = {"metadata": {"name": name, "labels": {"kubernetes.io/hostname": name, **(labels or {})}}}
        self.plane.call("POST", "/api/v1/nodes", body)
        size = {"cpu": str(cpus), "memory": memory, "pods": "110", "ephemeral-storage": "100Gi"}
        size |= {"nvidia.com/gpu": str(gpus)} if gpus else {}
        status = {
            "capacity": size,
            "allocatable": size,
            "addresses": [{"type": "InternalIP", "address": address}],
            "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": _FOREVER}],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": self._servers_of_nodes[-1].port}},
        }
        self.plane.call("PATCH", f"/api/v1/nodes/{name}/status", {"status": status})
        return address

    def lose_node(self, name: str) -> None:
        """The machine is gone: its pods die without a word, and the cluster drops the node."""
        self._lost.add(name)
        for pod in [pod for pod in self.pods.values() if pod.node == name]:
            pod.kill(silently=True)
            pod.join()
        with suppress(ApiError):
            self.plane.call("DELETE", f"/api/v1/nodes/{name}")

    def taint(self, name: str, key: str, effect: str = "NoSchedule") -> None:
        """Put a taint on a node, as those do who will take it down."""
        taint = {"key": key, "effect": effect}
        if effect == "NoExecute":
            taint["timeAdded"] = _now()
        self.plane.call("PATCH", f"/api/v1/nodes/{name}", {"spec": {"taints": [taint]}}, kind="merge")

    def evict(
        self, pod_name: str, reason: str = "Evicted", message: str = "The node was low on resource: memory"
    ) -> None:
        """End a pod as a node under pressure does."""
        pod = self.pods[pod_name]
        pod.kill(silently=True)
        pod.join()
        status = {"phase": "Failed", "reason": reason, "message": message, "containerStatuses": None}
        self.plane.call("PATCH", f"{pod.path}/status", {"status": status}, kind="merge")

    # -- news from the API

    def _watch(self, path: str, act: Callable[[str, Json], None]) -> None:
        while not self._closing:
            with suppress(ApiError, OSError, ValueError):
                collection = self.plane.call("GET", path)
                for item in collection["items"]:
                    act("ADDED", item)
                since = collection["metadata"]["resourceVersion"]
                while not self._closing:
                    for event in self.plane.watch(path, since, seconds=2):
                        since = event["object"]["metadata"].get("resourceVersion", since)
                        act(event["type"], event["object"])
                        if self._closing:
                            return

    def _on_pod(self, event: str, pod: Json) -> None:
        name, node = pod["metadata"]["name"], pod["spec"].get("nodeName")
        if node not in self._addresses or node in self._lost:
            return
        known = self.pods.get(name)
        if event == "DELETED":
            if known is not None and known.pod["metadata"]["uid"] == pod["metadata"]["uid"]:
                known.kill(silently=True)
                del self.pods[name]
        elif pod["metadata"].get("deletionTimestamp"):
            if known is not None:
                known.stop(float(pod["metadata"].get("deletionGracePeriodSeconds", 30)))
        elif known is None and pod.get("status", {}).get("phase", "Pending") == "Pending":
            self.pods[name] = PodProcess(self, pod, f"10.244.0.{len(self.pods) % 250 + 1}")
            self._forward_all()

    def _on_service(self, event: str, service: Json) -> None:
        name = service["metadata"]["name"]
        if event == "DELETED":
            self._services.pop(name, None)
        else:
            self._services[name] = service
        self._forward_all()

    def _forward_all(self) -> None:
        """Which (address, port) leads to which pod's port now."""
        table: dict[tuple[str, int], tuple[PodProcess, int]] = {}
        for service in list(self._services.values()):
            selector = service["spec"].get("selector") or {}
            for pod in list(self.pods.values()):
                labels = pod.pod["metadata"].get("labels", {})
                if selector and selector.items() <= labels.items():
                    for port in service["spec"].get("ports", []):
                        if port.get("nodePort"):
                            target = (pod, int(port["targetPort"]))
                            table[self._addresses[pod.node], port["nodePort"]] = target
        self._forwarder.update(table)


class _Forwarder:
    """What kube-proxy does: connections to a node's ports go on to pods."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="forwarder")
        self._servers: dict[tuple[str, int], asyncio.Server] = {}
        self._table: dict[tuple[str, int], tuple[PodProcess, int]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        self._thread.start()

    def update(self, table: dict[tuple[str, int], tuple[PodProcess, int]]) -> None:
        """Take over a new table."""
        if self._thread.is_alive():
            asyncio.run_coroutine_threadsafe(self._update(table), self._loop).result(10)

    def stop(self) -> None:
        self.update({})
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    async def _update(self, table: dict[tuple[str, int], tuple[PodProcess, int]]) -> None:
        self._table = table
        for key in self._servers.keys() - table.keys():
            self._servers.pop(key).close()
        for key in table.keys() - self._servers.keys():
            self._servers[key] = await asyncio.start_server(self._serve(key), *key)

    async def _end(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._loop.shutdown_default_executor()

    def _serve(self, key: tuple[str, int]) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], None]:
        def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.ensure_future(self._relay(key, reader, writer))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

        return accept

    async def _relay(self, key: tuple[str, int], reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            pod, port = self._table[key]
            inside = await asyncio.to_thread(pod.socket_inside)
            inside.setblocking(False)
            try:
                await self._loop.sock_connect(inside, (pod.address, port))
            except OSError:
                inside.close()
                raise
            pod_reader, pod_writer = await asyncio.open_connection(sock=inside)
            try:
                await asyncio.gather(_pump(reader, pod_writer), _pump(pod_reader, writer))
            finally:
                pod_writer.close()
        except (OSError, KeyError):
            writer.transport.abort()
        finally:
            writer.close()


async def _pump(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    while data := await source.read(65536):
        target.write(data)
        await target.drain()
    with suppress(OSError, RuntimeError):
        target.write_eof()


@contextmanager
def running(plane: ControlPlane, home: Path) -> Iterator[Kubelet]:
    """A kubelet for a while, at first without nodes."""
    kubelet = Kubelet(plane, home)
    kubelet.start()
    try:
        yield kubelet
    finally:
        kubelet.stop()


def _expanded(value: str, known: dict[str, str]) -> str:
    """`$(NAME)` as Kubernetes replaces it; `$$` stands for a dollar sign."""

    def replaced(match: re.Match[str]) -> str:
        return "$" if match[0] == "$$" else known.get(match[1], match[0])

    return re.sub(r"\$\$|\$\(([A-Za-z0-9_.-]+)\)", replaced, value)


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
