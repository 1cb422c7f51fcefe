"""Which Kubernetes contexts there are, and how each is reached: kubeconfig files, the service account of a pod, and the
contexts that the user allows. Knows these files and credential plugins; sends nothing to any API server."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import ssl
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from skyserve.config import Config
from skyserve.errors import CredentialsRejected, ProviderUnavailable
from skyserve.providers.base import NotConfigured
from skyserve.providers.kubernetes.api import Access
from skyserve.providers.kubernetes.objects import Object, at, instant, listed, part, text

TITLE = "Kubernetes"
IN_CLUSTER = "in-cluster"
"""The name of the context of a controller that runs in a pod and has no kubeconfig."""

_ACCOUNT_DIR = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_PLUGIN_TIMEOUT_S = 20.0
_CACHED_S = 300.0  # token files and certificates are renewed by others
_EARLY_S = 60.0


@dataclass(frozen=True, slots=True)
class _Entry:
    """A named part of a kubeconfig, with the directory from which its paths count."""

    content: Object
    directory: Path


class Contexts:
    """The contexts that may be used, by name. Files are read again when they change.

    The constructor raises NotConfigured when there is none. `account_dir` is where a pod finds its service account.
    """

    def __init__(self, config: Config, *, account_dir: Path = _ACCOUNT_DIR) -> None:
        self._env = config.inherited_env
        self._settings = config.user_home / ".sky/config.yaml"
        self._paths = _paths(config)
        self._account_dir = account_dir
        self._stamp: tuple[object, ...] = ()
        self._parts: dict[str, dict[str, _Entry]] = {}
        self._cached: dict[str, tuple[float, Access]] = {}
        try:
            self._read()
        except ProviderUnavailable as broken:
            raise NotConfigured(TITLE, broken.message, broken.hint or "") from broken
        if not self._parts["contexts"] and not self._in_pod:
            raise self._nothing()

    @property
    def names(self) -> tuple[str, ...]:
        """Contexts on which replicas may run, in the kubeconfig's order."""
        self._read()
        known = tuple(self._parts["contexts"]) or ((IN_CLUSTER,) if self._in_pod else ())
        allowed = at(_yaml(self._settings), "kubernetes", "allowed_contexts")
        return tuple(name for name in known if name in allowed) if isinstance(allowed, list) else known

    async def access(self, context: str) -> Access:
        """How a context is reached. Raises CredentialsRejected when its credentials cannot be read or its plugin
        fails, ProviderUnavailable when it is not in the kubeconfig (any more)."""
        self._read()
        kept = self._cached.get(context)
        if kept and kept[0] > time.time():
            return kept[1]
        if context == IN_CLUSTER and not self._parts["contexts"]:
            until_at, access = time.time() + _CACHED_S, self._own_account()
        else:
            until_at, access = await self._from_files(context)
        self._cached[context] = (until_at, access)
        return access

    def forget(self, context: str) -> None:
        """Its credentials were refused: read them anew next time."""
        self._cached.pop(context, None)

    @property
    def _in_pod(self) -> bool:
        return bool(self._env.get("KUBERNETES_SERVICE_HOST")) and (self._account_dir / "token").is_file()

    def _read(self) -> None:
        stamp = tuple((path, path.stat().st_mtime_ns) for path in self._paths if path.is_file())
        if stamp == self._stamp and self._parts:
            return
        parts: dict[str, dict[str, _Entry]] = {"contexts": {}, "clusters": {}, "users": {}}
        for path, _ in stamp:
            content = _yaml(path)
            for kind, known in parts.items():
                for entry in listed(content, kind):  # the first file that names it wins
                    known.setdefault(text(entry, "name"), _Entry(part(entry, kind[:-1]), path.parent))
        self._stamp, self._parts = stamp, parts
        self._cached.clear()

    def _nothing(self) -> NotConfigured:
        if not self._stamp:
            hint = "export KUBECONFIG=PATH, the file that your cluster's tool wrote"
            return NotConfigured(TITLE, f"there is no {self._paths[0]}", hint)
        reason = (
            f"{self._stamp[0][0]} has no contexts" if isinstance(self._stamp[0], tuple) else "there are no contexts"
        )
        return NotConfigured(TITLE, reason, "let your cluster's tool write the kubeconfig anew")

    def _own_account(self) -> Access:
        host, port = self._env["KUBERNETES_SERVICE_HOST"], self._env.get("KUBERNETES_SERVICE_PORT", "443")
        token = (self._account_dir / "token").read_text().strip()
        tls = ssl.create_default_context(cafile=str(self._account_dir / "ca.crt"))
        namespace = (self._account_dir / "namespace").read_text().strip()
        return Access(f"https://{f'[{host}]' if ':' in host else host}:{port}", namespace, tls, f"Bearer {token}")

    async def _from_files(self, context: str) -> tuple[float, Access]:
        entry = self._part("contexts", context)
        cluster = self._part("clusters", text(entry.content, "cluster"))
        user = self._parts["users"].get(text(entry.content, "user"), _Entry({}, entry.directory))
        until_at = time.time() + _CACHED_S
        if plugin := part(user.content, "exec"):
            status = await _run_plugin(plugin, user.directory, self._env)
            user = _Entry({**user.content, **_as_user(status)}, user.directory)
            expires_at = instant(text(status, "expirationTimestamp"))
            until_at = min(until_at, expires_at - _EARLY_S) if expires_at else until_at
        try:
            access = Access(
                server=text(cluster.content, "server").rstrip("/"),
                namespace=text(entry.content, "namespace") or "default",
                tls=_tls(cluster, user),
                authorization=_authorization(user),
                proxy=text(cluster.content, "proxy-url") or None,
                server_name=text(cluster.content, "tls-server-name") or None,
            )
        except (OSError, ValueError) as error:
            raise CredentialsRejected(f"context {context} cannot be used: {error}") from error
        return until_at, access

    def _part(self, kind: str, name: str) -> _Entry:
        try:
            return self._parts[kind][name]
        except KeyError:
            raise ProviderUnavailable(
                f"the kubeconfig has no {kind[:-1]} named {name!r}", hint="kubectl config get-contexts"
            ) from None


def _paths(config: Config) -> list[Path]:
    named = [Path(one).expanduser() for one in config.inherited_env.get("KUBECONFIG", "").split(os.pathsep) if one]
    return named or [config.user_home / ".kube/config"]


def _yaml(path: Path) -> object:
    from ruamel.yaml import YAML  # users of other infrastructures need not wait for it
    from ruamel.yaml.error import YAMLError

    try:
        loaded: object = YAML(typ="safe", pure=True).load(path.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, YAMLError, ValueError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ProviderUnavailable(f"{path} cannot be read: {first}", hint="kubectl config view") from error
    return loaded


def _bytes(entry: _Entry, key: str) -> bytes | None:
    """A certificate or key: given in place, or as a file."""
    if data := text(entry.content, f"{key}-data"):
        return base64.b64decode(data)
    if name := text(entry.content, key):
        return (entry.directory / name).read_bytes()
    return None


def _tls(cluster: _Entry, user: _Entry) -> ssl.SSLContext:
    authority = _bytes(cluster, "certificate-authority")
    context = ssl.create_default_context(cadata=authority.decode() if authority else None)
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT  # clusters' own authorities leave out what that demands
    if at(cluster.content, "insecure-skip-tls-verify") is True:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    certificate, key = _bytes(user, "client-certificate"), _bytes(user, "client-key")
    if certificate and key:
        with tempfile.NamedTemporaryFile() as file:  # OpenSSL takes a path only; the file is private, and gone at once
            file.write(certificate + b"\n" + key)
            file.flush()
            context.load_cert_chain(file.name)
    return context


def _authorization(user: _Entry) -> str | None:
    content = user.content
    if name := text(content, "tokenFile"):
        return f"Bearer {(user.directory / name).read_text().strip()}"
    if token := text(content, "token"):
        return f"Bearer {token}"
    if text(content, "username"):
        pair = f"{text(content, 'username')}:{text(content, 'password')}"
        return f"Basic {base64.b64encode(pair.encode()).decode()}"
    if part(content, "auth-provider"):
        raise ValueError("its user needs an `auth-provider`, which was replaced by credential plugins (`exec`)")
    return None


def _as_user(status: Object) -> dict[str, object]:
    """A plugin's answer in the words of a kubeconfig's user."""
    answer: dict[str, object] = {}
    if token := text(status, "token"):
        answer["token"] = token
    for key, name in (("clientCertificateData", "client-certificate-data"), ("clientKeyData", "client-key-data")):
        if data := text(status, key):
            answer[name] = base64.b64encode(data.encode()).decode()
    return answer


async def _run_plugin(plugin: Object, directory: Path, env: Mapping[str, str]) -> Object:
    """The `status` that a credential plugin answers with."""
    name = text(plugin, "command")
    command = str(directory / name) if os.sep in name else name
    arguments = at(plugin, "args")
    version = text(plugin, "apiVersion")
    info = {"kind": "ExecCredential", "apiVersion": version, "spec": {"interactive": False}}
    extra = {text(one, "name"): text(one, "value") for one in listed(plugin, "env")}
    try:
        process = await asyncio.create_subprocess_exec(
            command,
            *(str(one) for one in arguments if arguments) if isinstance(arguments, list) else (),
            env={**env, **extra, "KUBERNETES_EXEC_INFO": json.dumps(info)},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
    except OSError as error:
        hint = text(plugin, "installHint").strip() or f"install {name}, or log in anew with your cluster's tool"
        raise CredentialsRejected(f"the credential plugin {name} cannot be run: {error.strerror}", hint=hint) from error
    try:
        out, errors = await asyncio.wait_for(process.communicate(), _PLUGIN_TIMEOUT_S)
    except TimeoutError as error:
        raise CredentialsRejected(f"the credential plugin {name} gave no answer in {_PLUGIN_TIMEOUT_S:g} s") from error
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    try:
        status = part(json.loads(out), "status")
    except ValueError:
        status = {}
    if process.returncode or not status:
        last = errors.decode(errors="replace").strip().splitlines()[-1:] or [f"exit code {process.returncode}"]
        raise CredentialsRejected(f"the credential plugin {name} failed: {last[0]}", hint="log in to the cluster anew")
    return status
