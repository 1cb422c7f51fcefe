"""What is sent to a cluster for one replica: its Pod, the Secrets with its order and its files, and its Service.

Pure: an order goes in, manifests come out. Knows what runs in the pod; must not know how manifests are applied, nor how
a replica fares.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import posixpath
import re
import shlex
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from skyserve.errors import OrderRejected
from skyserve.providers import environment
from skyserve.providers.base import LaunchOrder
from skyserve.providers.environment import Site
from skyserve.providers.kubernetes.nodes import GPU, IMAGE_PREFIX, tolerations
from skyserve.providers.kubernetes.objects import label_value, object_name

DEFAULT_IMAGE = "docker.io/library/python:3.12"
"""What a replica runs in that names no image: Debian with Python, pip, git, curl and a compiler. CUDA programs run in
it too, as the node's device plugin brings the driver, and Python packages bring the rest."""

LABEL_INSTALLATION = "skyserve-installation"
LABEL_CONTEXT = "skyserve-context"
LABEL_SERVICE = "skyserve-service"
LABEL_TOKEN = "skyserve-token"
LABEL_FILES = "skyserve-files"
"""Labels of our objects. Their values may be digests; annotations of the same names hold the exact text."""
ANNOTATION_PORT = "skyserve-port"
ANNOTATION_ENDED = "skyserve-ended"
MARKED_ENDED: Mapping[str, object] = {"metadata": {"annotations": {ANNOTATION_ENDED: "true"}}}

CONTAINER = "replica"
FILES_LIMIT_MIB = 24
"""How much workdir and file_mounts may come to, compressed: they pass through the cluster's own database."""
RAN_LINE = re.compile(r"^\[skyserve\] (?P<phase>setup|run) ended with exit code (?P<code>\d+)$")
"""The last line that a replica's supervisor says."""

_GRACE_S = 30
_CHUNK = 900_000  # a Secret holds 1 MiB at most
_ROOT = "/skyserve"
_RUNNING = f"{_ROOT}/state/running"
_FOR_EVER = 2**31 - 1
_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

EXECUTOR = r"""
IFS= read -r -d "" script  # from stdin, as it may hold secrets, and command lines can be seen
set -m
cd ~/sky_workdir && eval "$script" </dev/null &
child=$!
exec 2>/dev/null  # what this shell says of its jobs is no output of the script
{ cat >/dev/null; kill -TERM -- "-$child" 2>/dev/null; } <&0 &  # whoever asked for it has gone
watch=$!
wait "$child"; code=$?
kill -- "-$watch" 2>/dev/null
exit "$code"
"""
"""What runs a script beside the application: it comes on stdin, and ends with a NUL."""

_SUPERVISOR = r"""
# The pod's first process: puts the files in place, then runs setup, then run, and says how each ended.
child= asked=
forward() { asked=1; [ -z "$child" ] || kill -TERM -- "-$child" 2>/dev/null; }
trap forward TERM INT  # at once: a first process without a handler is deaf to signals
set -m  # every command gets a process group of its own, so that a signal reaches all of it
finish() {
  line="[skyserve] $1 ended with exit code $2"
  echo "$line"
  # Of a failure the cluster itself keeps the end of the output.
  [ "$2" -ne 0 ] || echo "$line" 2>/dev/null >/dev/termination-log
  exit "$2"
}
perform() {
  bash "$1" </dev/null &
  child=$!
  while wait "$child"; code=$?; [ "$code" -gt 128 ]; do  # by a signal: to the child, or only to the waiting?
    kill -0 "$child" 2>/dev/null && continue
    wait "$child" 2>/dev/null; last=$?
    [ "$last" -eq 127 ] || code=$last
    break
  done
  child=
  [ -z "$asked" ] || { echo "[skyserve] stopped"; exit "$code"; }
  return "$code"
}
place() {
  mkdir -p "$(dirname "$2")" || return
  if [ -d "$1" ]; then mkdir -p "$2" && cp -a "$1/." "$2"; else cp -a "$1" "$2"; fi
}
mkdir -p ~/sky_workdir && cd ~/sky_workdir || finish setup 1
"""


@dataclass(frozen=True, slots=True)
class Archive:
    """A version's workdir and file_mounts, packed. The same files give the same `name`."""

    name: str
    chunks: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Names:
    """Who an object belongs to: its pod's name, and the installation, context, service (tag) and token it carries.

    The context counts, as several may lead to the same namespace of the same cluster.
    """

    pod: str
    installation: str
    context: str
    service: str
    token: str

    @classmethod
    def of(cls, order: LaunchOrder, installation: str) -> Names:
        """The same token always gives the same names."""
        context = order.offering.location.region
        pod = object_name(f"{order.service_name}-{order.replica_id}", installation, context, order.token)
        return cls(pod, installation, context, order.service, order.token)

    def metadata(self, name: str, extra: Mapping[str, str] | None = None) -> dict[str, object]:
        """The metadata of an object of this replica. Ours win over `extra` labels."""
        exact = {
            LABEL_INSTALLATION: self.installation,
            LABEL_CONTEXT: self.context,
            LABEL_SERVICE: self.service,
            LABEL_TOKEN: self.token,
        }
        labels = {key: label_value(value) for key, value in exact.items()}
        return {"name": name, "labels": {**(extra or {}), **labels}, "annotations": exact}


def selector(installation: str, context: str, **labels: str) -> str:
    """The label selector of our objects in a context, of those that carry some other labels too."""
    exact = {LABEL_INSTALLATION: installation, LABEL_CONTEXT: context, **labels}
    return ",".join(f"{key}={label_value(value)}" for key, value in exact.items())


def pod(
    order: LaunchOrder, names: Names, terms: Sequence[Mapping[str, object]], archive: Archive | None
) -> dict[str, object]:
    """The Pod. `terms` are the node selector terms of its offering."""
    volumes: list[dict[str, object]] = [
        {"name": "order", "secret": {"secretName": names.pod, "items": _script_items(order)}},
        {"name": "state", "emptyDir": {}},
        {"name": "shm", "emptyDir": {"medium": "Memory"}},
    ]
    if archive:
        volumes.append({"name": "files", "projected": {"sources": [_source(part) for part in _chunk_names(archive)]}})
    metadata = names.metadata(names.pod, order.labels)
    annotations = metadata["annotations"]
    files = {LABEL_FILES: archive.name} if archive else {}
    if isinstance(annotations, dict):
        metadata["annotations"] = {**annotations, ANNOTATION_PORT: str(order.port), **files}
    affinity = {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": list(terms)}}}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": metadata,
        "spec": {
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": _GRACE_S,
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "affinity": affinity,
            "tolerations": tolerations(),
            "containers": [_container(order, names, archive)],
            "volumes": volumes,
        },
    }


def order_secret(order: LaunchOrder, names: Names, archive: Archive | None) -> dict[str, object]:
    """The Secret with what the pod runs, and the values of the service's secrets."""
    scripts = {"main.sh": _main(order, archive), "run.sh": f"{order.run}\n"}
    if order.setup:
        scripts["setup.sh"] = f"{order.setup}\n"
    data = {name: text.encode(errors="surrogateescape") for name, text in {**scripts, **order.secrets}.items()}
    return _secret(names.metadata(names.pod), data)


def file_secrets(names: Names, archive: Archive) -> list[dict[str, object]]:
    """The Secrets with the files: pods of one version share them."""
    shared = replace(names, token="")
    found = []
    for name, chunk in zip(_chunk_names(archive), archive.chunks, strict=True):
        metadata = shared.metadata(name, {LABEL_FILES: archive.name})
        found.append(_secret(metadata, {name: chunk}))
    return found


def service(order: LaunchOrder, names: Names) -> dict[str, object]:
    """The Service through which the door reaches the pod from outside: a port on the pod's own node for each port."""
    ports = [{"name": f"p{port}", "port": port, "targetPort": port, "protocol": "TCP"} for port in _ports(order)]
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": names.metadata(names.pod),
        "spec": {
            "type": "NodePort",
            "externalTrafficPolicy": "Local",  # straight to the pod on that node, and to no other
            "publishNotReadyAddresses": True,  # whether it is ready is the controller's to say
            "selector": {
                LABEL_INSTALLATION: label_value(names.installation),
                LABEL_CONTEXT: label_value(names.context),
                LABEL_TOKEN: label_value(names.token),
            },
            "ports": ports,
        },
    }


def owned_by(pod_name: str, uid: str) -> dict[str, object]:
    """The patch that lets an object go when its pod goes."""
    owner = {"apiVersion": "v1", "kind": "Pod", "name": pod_name, "uid": uid}
    return {"metadata": {"ownerReferences": [owner]}}


def image(order: LaunchOrder) -> str:
    """The container image. Raises OrderRejected for a machine image."""
    asked = order.image_id
    if not asked:
        return DEFAULT_IMAGE
    if not asked.startswith(IMAGE_PREFIX):
        raise OrderRejected(f"image_id: {asked} is no container image", hint=f"write image_id: docker:{asked}")
    return asked.removeprefix(IMAGE_PREFIX)


def pack(order: LaunchOrder) -> Archive | None:
    """Pack workdir and file_mounts; None when there are none. Reads files, so it may take a while.

    Raises OrderRejected when they are not there, or too big.
    """
    sources = ([("workdir", order.workdir)] if order.workdir else []) + [
        (f"mounts/{index}", source) for index, source in enumerate(order.file_mounts.values())
    ]
    if not sources:
        return None
    packed = _Bounded(FILES_LIMIT_MIB * 2**20)
    # Without a time of its own in the header, the same files give the same bytes.
    with gzip.GzipFile(fileobj=packed, mode="wb", mtime=0) as zipped, tarfile.open(fileobj=zipped, mode="w|") as tar:
        for name, source in sources:
            _add(tar, name, Path(source))
    whole = packed.getvalue()
    chunks = tuple(whole[begin : begin + _CHUNK] for begin in range(0, len(whole), _CHUNK))
    owner = f"{order.service}\0{order.offering.location}".encode()
    return Archive(f"sky-files-{hashlib.sha256(owner + whole).hexdigest()[:12]}", chunks)


class _Bounded(io.BytesIO):
    """Takes so many bytes and no more: a directory may hold far more than anyone wants to compress."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self._limit = limit

    def write(self, data: object, /) -> int:
        written = super().write(data)  # type: ignore[arg-type]
        if self.tell() > self._limit:
            raise OrderRejected(
                f"workdir and file_mounts come to more than {FILES_LIMIT_MIB} MiB compressed, which is the most that "
                "can go through a cluster's API server",
                hint="put big files into the image, or let setup fetch them",
            )
        return written


def _add(tar: tarfile.TarFile, name: str, source: Path) -> None:
    """A file or tree, in an order that is always the same, owned by nobody in particular."""
    try:
        info = tar.gettarinfo(source, name)
        info.uid = info.gid = 0
        info.uname = info.gname = ""
        if info.isreg():
            with source.open("rb") as file:
                tar.addfile(info, file)
        else:
            tar.addfile(info)
        children = sorted(source.iterdir()) if info.isdir() else []
    except (OSError, ValueError) as error:
        raise OrderRejected(f"{source} cannot be packed: {error}") from error
    for child in children:
        _add(tar, f"{name}/{child.name}", child)


def _main(order: LaunchOrder, archive: Archive | None) -> str:
    """The script that the pod runs."""
    lines = [_SUPERVISOR]
    if archive:
        unpacked = f"{_ROOT}/state/files"
        placing = [f"mkdir {unpacked}", f"cat {_ROOT}/files/part-* | tar -xzf - --no-same-owner -C {unpacked}"]
        if order.workdir:
            placing.append(f"place {unpacked}/workdir .")
        placing += [
            f"place {unpacked}/mounts/{index} {_target(target)}" for index, target in enumerate(order.file_mounts)
        ]
        lines += [f"{step} || finish setup $?" for step in [*placing, f"rm -rf {unpacked}"]]
    if order.setup:
        extra = environment.setup_variables(_site(order))
        exports = [f"export {name}={shlex.quote(value)}" for name, value in extra.items()]
        lines += exports
        lines.append('export SKYPILOT_SETUP_NODE_IPS="$SKYPILOT_NODE_IPS"')
        lines.append(f"perform {_ROOT}/order/setup.sh || finish setup $?")
        lines.append(f"unset SKYPILOT_SETUP_NODE_IPS {' '.join(extra)}")
    lines += [f": >{_RUNNING}", f"perform {_ROOT}/order/run.sh", "finish run $?", ""]
    return "\n".join(lines)


def _target(target: str) -> str:
    """Where a mount goes, as a word of the shell."""
    if target == "~" or target.startswith("~/"):
        return f'"$HOME"{shlex.quote(target[1:])}' if target != "~" else '"$HOME"'
    return shlex.quote(posixpath.normpath(target))


def _site(order: LaunchOrder) -> Site:
    return Site(location=order.offering.location, port=order.port, num_gpus=environment.gpus_of(order.offering))


def _container(order: LaunchOrder, names: Names, archive: Archive | None) -> dict[str, object]:
    mounts: list[dict[str, object]] = [
        {"name": "order", "mountPath": f"{_ROOT}/order", "readOnly": True},
        {"name": "state", "mountPath": f"{_ROOT}/state"},
        {"name": "shm", "mountPath": "/dev/shm"},
    ]
    if archive:
        mounts.append({"name": "files", "mountPath": f"{_ROOT}/files", "readOnly": True})
    return {
        "name": CONTAINER,
        "image": image(order),
        "command": ["bash", f"{_ROOT}/order/main.sh"],
        "env": _env(order, names),
        "ports": [{"containerPort": port, "protocol": "TCP"} for port in _ports(order)],
        "resources": _resources(order),
        "volumeMounts": mounts,
        # Asked until setup is over, and never again: then the container counts as started.
        "startupProbe": {
            "exec": {"command": ["test", "-e", _RUNNING]},
            "periodSeconds": 1,
            "timeoutSeconds": 5,
            "failureThreshold": _FOR_EVER,
        },
        "terminationMessagePolicy": "FallbackToLogsOnError",
    }


def _env(order: LaunchOrder, names: Names) -> list[dict[str, object]]:
    """Variables in the clear, and references to those that are secret, or known only once the pod stands."""
    for name in (*order.envs, *order.secrets):
        if not _ENV_NAME.fullmatch(name):
            raise OrderRejected(f"{name!r} cannot be the name of an environment variable")
    plain = environment.variables(order, _site(order))
    from_elsewhere: dict[str, dict[str, object]] = {}
    if "SKYPILOT_NODE_IPS" not in plain:
        from_elsewhere["SKYPILOT_NODE_IPS"] = {"fieldRef": {"fieldPath": "status.podIP"}}
    for name in order.secrets:
        from_elsewhere[name] = {"secretKeyRef": {"name": names.pod, "key": name}}
    # A dollar sign is doubled, or else `$(NAME)` would be replaced.
    clear: list[dict[str, object]] = [
        {"name": name, "value": value.replace("$", "$$")} for name, value in plain.items() if name not in from_elsewhere
    ]
    return clear + [{"name": name, "valueFrom": source} for name, source in from_elsewhere.items()]


def _resources(order: LaunchOrder) -> dict[str, object]:
    offering = order.offering
    requests = {"cpu": f"{round(offering.vcpus * 1000)}m", "memory": f"{round(offering.memory_gib * 1024)}Mi"}
    if order.disk_size:
        requests["ephemeral-storage"] = f"{order.disk_size}Gi"
    gpus = {GPU: str(environment.gpus_of(offering))} if offering.accelerator else {}
    return {"requests": {**requests, **gpus}, **({"limits": gpus} if gpus else {})}


def _ports(order: LaunchOrder) -> tuple[int, ...]:
    return tuple(dict.fromkeys((order.port, *order.ports)))


def _script_items(order: LaunchOrder) -> list[dict[str, str]]:
    names = ["main.sh", "run.sh", *(["setup.sh"] if order.setup else [])]
    return [{"key": name, "path": name} for name in names]


def _chunk_names(archive: Archive) -> list[str]:
    return [f"{archive.name}-{index:03}" for index in range(len(archive.chunks))]


def _source(name: str) -> dict[str, object]:
    return {"secret": {"name": name, "items": [{"key": name, "path": f"part-{name[-3:]}"}]}}


def _secret(metadata: Mapping[str, object], data: Mapping[str, bytes]) -> dict[str, object]:
    encoded = {name: base64.b64encode(value).decode() for name, value in data.items()}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "type": "Opaque", "data": encoded}
