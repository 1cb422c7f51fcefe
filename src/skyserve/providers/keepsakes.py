"""What must be known of a rented machine even after the controller has started again, or the machine is gone.

Knows files under HOME; must not know any cloud, nor what a machine is for. No secret of the user's is ever among them.

    machines/<token>/                host_key, host_key.pub (0600): the key by which the machine is known;
                                     known_hosts: the same for ssh; service: whose machine it is
    logs/<service>/<instance>.log    the end of the output of machines that are gone
"""

from __future__ import annotations

import re
import shutil
import uuid
from pathlib import Path
from urllib.parse import quote

from skyserve.errors import OrderRejected
from skyserve.providers.openssh import KeyPair, key_pair

_SAFE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,199}")
_KEPT_LOGS = 50


class Keepsakes:
    """The files of one installation's machines. Blocks for milliseconds. OSError means that the disk is not usable."""

    def __init__(self, home: Path) -> None:
        self._machines = home / "machines"
        self._logs = home / "logs"

    async def host_key(self, token: str) -> KeyPair:
        """The key by which the machine of a launch is known: the same for as long as it is not forgotten."""
        return await key_pair(self._folder(token) / "host_key")

    async def known_hosts(self, token: str) -> Path:
        """What ssh reads to know that machine by the name of its token. FileNotFoundError if it is forgotten meanwhile.

        As it stays until then, no line to the machine that is hung up takes it away from another one.
        """
        path = self._folder(token) / "known_hosts"
        if not path.exists():
            _replace(path, f"{token} {(await self.host_key(token)).public}\n".encode())
        return path

    def expect(self, token: str, service: str) -> None:
        """A machine is about to be rented for a service: `release` will forget it, if nothing does before."""
        _write(self._folder(token) / "service", service.encode())

    def forget(self, token: str) -> None:
        """Nothing of a machine matters any more, but for its log."""
        shutil.rmtree(self._folder(token), ignore_errors=True)

    def keep_log(self, service: str, instance_id: str, log: bytes) -> None:
        """Keep the output of a machine that is about to go."""
        folder = self._logs / _safe(service)
        _write(folder / f"{quote(instance_id, safe='')}.log", log)
        for old in sorted(folder.glob("*.log"), key=lambda path: path.stat().st_mtime)[:-_KEPT_LOGS]:
            old.unlink(missing_ok=True)

    def log(self, instance_id: str) -> bytes | None:
        """The output of a machine that is gone."""
        name = f"{quote(instance_id, safe='')}.log"
        path = next((path for path in self._logs.glob("*/*.log") if path.name == name), None)
        return None if path is None else path.read_bytes()

    def release(self, service: str) -> None:
        """Nothing of a service matters any more."""
        shutil.rmtree(self._logs / _safe(service), ignore_errors=True)
        for named in self._machines.glob("*/service"):
            if named.read_text() == service:
                self.forget(named.parent.name)

    def _folder(self, token: str) -> Path:
        return self._machines / _safe(token)


def _safe(name: str) -> str:
    """Names become directories; one that could leave its place is not ours."""
    if not _SAFE_NAME.fullmatch(name):
        raise OrderRejected(f"{name!r} cannot be the name of a directory")
    return name


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    _replace(path, content)


def _replace(path: Path, content: bytes) -> None:
    """Only its owner may read it, and sees the old or the new content, never half of it."""
    draft = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    draft.touch(mode=0o600)
    draft.write_bytes(content)
    draft.replace(path)
