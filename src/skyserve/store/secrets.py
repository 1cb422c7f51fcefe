"""Values of the services' secrets, in files that only their owner can read, never in the database.

It knows tags, versions and files. What a secret is for, and that a spec shows a fingerprint in its place, is known
elsewhere. Every file appears whole or not at all, so a crash leaves the old values or the new ones.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from skyserve.errors import StoreUnavailable

_KEY_BYTES = 32
_KEY_FILE = "fingerprint.key"


class SecretStore:
    """The secrets under one directory (0700): `<tag>/<version>.json` (0600), and the key of their fingerprints.

    A tag is a service's `name-uid`. All methods block for a moment and raise StoreUnavailable when the files cannot be
    read or written.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def put(self, tag: str, version: int, values: Mapping[str, str]) -> None:
        """Keep the values of one version's secrets, in place of those it had before."""
        with self._reported():
            self._write_whole(self._folder(tag) / f"{version}.json", json.dumps(dict(values)).encode())

    def get(self, tag: str, version: int) -> dict[str, str]:
        """The values by name; empty when none were put."""
        path = self._folder(tag) / f"{version}.json"
        with self._reported():
            try:
                values: dict[str, str] = json.loads(path.read_bytes())
            except FileNotFoundError:
                return {}
            except ValueError:
                # Not chained: the error would carry the text, and with it the secrets.
                raise StoreUnavailable(
                    f"The secrets in {path} cannot be read: the file is damaged.",
                    hint="Give them again with `sky serve update`.",
                ) from None
        return values

    def drop(self, tag: str, version: int | None) -> None:
        """Forget the secrets of one version, or with None of the whole service. Fine when there are none."""
        folder = self._folder(tag)
        with self._reported(), suppress(FileNotFoundError):
            if version is None:
                shutil.rmtree(folder)
            else:
                (folder / f"{version}.json").unlink()

    def fingerprint_key(self) -> bytes:
        """The 32 random bytes that fingerprints are keyed with: made once, the same ever after for every process."""
        path = self._directory / _KEY_FILE
        with self._reported():
            with suppress(FileNotFoundError):
                return path.read_bytes()
            # The name is given to a file that is already whole, and only one process can give it.
            with self._draft(path.parent, secrets.token_bytes(_KEY_BYTES)) as draft, suppress(FileExistsError):
                os.link(draft, path)
            return path.read_bytes()

    def _folder(self, tag: str) -> Path:
        if not tag or tag.startswith(".") or "/" in tag or "\0" in tag:
            raise ValueError(f"{tag!r} cannot be the tag of a service")
        return self._directory / tag

    def _write_whole(self, path: Path, content: bytes) -> None:
        with self._draft(path.parent, content) as draft:
            draft.replace(path)
            _sync_folder(path.parent)

    @contextmanager
    def _draft(self, folder: Path, content: bytes) -> Iterator[Path]:
        """A temporary file (0600) whose content is already on the disk; gone in the end, unless it got another name."""
        for private in (self._directory, folder):
            private.mkdir(mode=0o700, parents=True, exist_ok=True)
            private.chmod(0o700)
        descriptor, name = tempfile.mkstemp(prefix=".draft-", dir=folder)
        try:
            with open(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            yield Path(name)
        finally:
            with suppress(FileNotFoundError):
                os.unlink(name)

    @contextmanager
    def _reported(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StoreUnavailable(
                f"The secrets under {self._directory} cannot be used: {error.strerror or error}.",
                hint="Check the free space, and the owner and permissions of that folder.",
            ) from error


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
