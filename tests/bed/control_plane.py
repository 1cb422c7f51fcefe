"""A real Kubernetes control plane on loopback: etcd, the API server and the scheduler, without any node.

`scripts/build_control_plane` makes the binaries; `missing()` says in one line what to do where they are not there.
There is no controller manager: nothing collects garbage, fills in quotas' status or taints silent nodes but the test.
"""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

VERSION = "1.20.2"
ADMIN, STRANGER = "admin-token", "stranger-token"
"""Tokens of one who may do anything, and of one who may do nothing."""

_START_PATIENCE_S = 90.0
Json = dict[str, Any]


def binaries() -> Path:
    """Where the control plane's programs are kept."""
    cache = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(cache) / "skyserve" / f"control-plane-{VERSION}"


def missing() -> str | None:
    """Why there can be no control plane here, and what helps; None when there can."""
    if not (binaries() / "kube-apiserver").exists() or shutil.which("etcd") is None:
        return "no Kubernetes control plane is built here: run scripts/build_control_plane as root"
    if shutil.which("openssl") is None:
        return "openssl is missing: apt-get install openssl"
    return None


class ApiError(Exception):
    """A refusal of the API server."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code


class ControlPlane:
    """The running programs, and an administrator's plain access to the API."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.certificates = home / "certificates"
        self.port = _free_port()
        self._etcd_port = _free_port()
        self._processes: list[subprocess.Popen[bytes]] = []

    @property
    def server(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    def start(self) -> None:
        self.home.mkdir(parents=True, exist_ok=True)
        key = self.home / "accounts.key"
        subprocess.run(["openssl", "genrsa", "-out", key, "2048"], check=True, capture_output=True)
        tokens = self.home / "tokens.csv"
        tokens.write_text(f'{ADMIN},admin,1,"system:masters"\n{STRANGER},stranger,2\n')
        self._run_etcd()
        self._run_api_server(key, tokens)
        self._wait_until_ready()
        admin = self.kubeconfig(self.home / "admin.kubeconfig", {"test": ADMIN})
        self._run("kube-scheduler", f"--kubeconfig={admin}", "--leader-elect=false", "--port=0", "--secure-port=0")

    def stop(self) -> None:
        for process in reversed(self._processes):
            process.kill()  # nothing of it is to be kept
            process.wait()
        self._processes.clear()

    def freeze(self) -> None:
        """Let the API server fall silent."""
        self._processes[1].send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._processes[1].send_signal(signal.SIGCONT)

    def kubeconfig(self, path: Path, contexts: Mapping[str, str], namespace: str = "default") -> Path:
        """Write a kubeconfig whose contexts (name -> token) all lead here; the first one is the current one."""
        authority = str(self.certificates / "apiserver.crt")
        path.write_text(
            json.dumps(
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "current-context": next(iter(contexts)),
                    "clusters": [
                        {"name": "here", "cluster": {"server": self.server, "certificate-authority": authority}}
                    ],
                    "users": [{"name": f"user-{name}", "user": {"token": token}} for name, token in contexts.items()],
                    "contexts": [
                        {"name": name, "context": {"cluster": "here", "user": f"user-{name}", "namespace": namespace}}
                        for name in contexts
                    ],
                }
            )
        )
        return path

    def call(self, method: str, path: str, body: Json | None = None, *, kind: str = "") -> Json:
        """One request as the administrator. `kind` of a patch: merge, or the default strategic."""
        with self._open(method, path, body, kind) as response:
            answer: Json = json.loads(response.read())
            return answer

    def watch(self, path: str, since: str, seconds: int = 5) -> Iterator[Json]:
        """Events of a collection."""
        mark = "&" if "?" in path else "?"
        with self._open("GET", f"{path}{mark}watch=1&resourceVersion={since}&timeoutSeconds={seconds}") as response:
            while line := response.readline():
                yield json.loads(line)

    @contextmanager
    def _open(
        self, method: str, path: str, body: Json | None = None, kind: str = ""
    ) -> Iterator[http.client.HTTPResponse]:
        tls = ssl.create_default_context(cafile=str(self.certificates / "apiserver.crt"))
        tls.verify_flags &= ~ssl.VERIFY_X509_STRICT
        connection = http.client.HTTPSConnection("127.0.0.1", self.port, context=tls, timeout=30)
        content = "application/json"
        if method == "PATCH":
            content = f"application/{kind or 'strategic-merge'}-patch+json"
        try:
            connection.request(
                method,
                path,
                body=None if body is None else json.dumps(body),
                headers={"Authorization": f"Bearer {ADMIN}", "Content-Type": content},
            )
            response = connection.getresponse()
            if response.status >= 400:
                raise ApiError(response.status, response.read().decode())
            yield response
        finally:
            connection.close()

    def _run_etcd(self) -> None:
        peers = f"http://127.0.0.1:{_free_port()}"
        clients = f"http://127.0.0.1:{self._etcd_port}"
        self._run(
            shutil.which("etcd") or "etcd",
            f"--data-dir={self.home / 'etcd'}",
            f"--listen-client-urls={clients}",
            f"--advertise-client-urls={clients}",
            f"--listen-peer-urls={peers}",
            f"--initial-advertise-peer-urls={peers}",
            f"--initial-cluster=default={peers}",
            "--unsafe-no-fsync",
            "--log-level=error",
        )

    def _run_api_server(self, key: Path, tokens: Path) -> None:
        self._run(
            "kube-apiserver",
            f"--etcd-servers=http://127.0.0.1:{self._etcd_port}",
            "--bind-address=127.0.0.1",
            "--advertise-address=127.0.0.1",
            f"--secure-port={self.port}",
            f"--cert-dir={self.certificates}",
            f"--token-auth-file={tokens}",
            f"--service-account-key-file={key}",
            f"--service-account-signing-key-file={key}",
            "--service-account-issuer=https://test.invalid",
            "--authorization-mode=RBAC",
            "--disable-admission-plugins=ServiceAccount,TaintNodesByCondition",
            "--service-cluster-ip-range=10.96.0.0/20",
            "--service-node-port-range=31000-32767",
            "--kubelet-preferred-address-types=InternalIP",
            "--allow-privileged=true",
        )

    def _run(self, program: str, *options: str) -> None:
        path = program if program.startswith("/") else str(binaries() / program)
        with (self.home / f"{Path(program).name}.log").open("wb") as log:
            self._processes.append(
                subprocess.Popen([path, *options], stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.home)
            )

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + _START_PATIENCE_S
        while time.monotonic() < deadline:
            with suppress(OSError, ApiError, ssl.SSLError, json.JSONDecodeError):
                self.call("GET", "/api/v1/namespaces/default")
                return
            if any(process.poll() is not None for process in self._processes):
                break
            time.sleep(0.1)
        told = (self.home / "kube-apiserver.log").read_text(errors="replace")[-2000:]
        self.stop()
        raise AssertionError(f"the API server did not come up: {told}")


@contextmanager
def running(home: Path) -> Iterator[ControlPlane]:
    """A control plane for a while. All its files are below `home`."""
    plane = ControlPlane(home)
    try:
        plane.start()
        yield plane
    finally:
        plane.stop()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
