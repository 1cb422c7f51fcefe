"""Snapshots of the user's files, taken when a version is given, so that every replica of it gets the same ones."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import dataclass
from pathlib import Path

from skyserve.errors import StoreUnavailable, UsageError
from skyserve.model.service import ServiceSpec


@dataclass(frozen=True, slots=True)
class Files:
    """Where the snapshots of one service lie, by version."""

    root: Path

    def workdir(self, version: int) -> Path:
        """The snapshot of `workdir` as it was when this version was given."""
        return self._version(version) / "workdir"

    def mount(self, version: int, target: str) -> Path:
        """The snapshot of what `file_mounts` puts at `target`."""
        return self._version(version) / "mounts" / hashlib.sha256(target.encode()).hexdigest()[:16]

    def _version(self, version: int) -> Path:
        return self.root / "versions" / str(version)

    def take(self, spec: ServiceSpec, version: int) -> None:
        """Copy what the spec names. Raises UsageError for what is not there, StoreUnavailable when it does not fit."""
        for source, target in self._pairs(spec, version):
            if not source.is_absolute() or not source.exists():
                raise UsageError(f"{source} is not there", hint="workdir and file_mounts name files of this machine")
            try:
                _copy(source, target)
            except (OSError, shutil.Error) as error:
                self.drop(version)
                raise StoreUnavailable(
                    f"cannot copy {source}: {error}", hint="free some space and try again"
                ) from error

    def _pairs(self, spec: ServiceSpec, version: int) -> list[tuple[Path, Path]]:
        pairs = [(Path(spec.workdir), self.workdir(version))] if spec.workdir else []
        return pairs + [(Path(source), self.mount(version, target)) for target, source in spec.file_mounts.items()]

    def drop(self, version: int) -> None:
        """Forget the snapshots of a version."""
        shutil.rmtree(self._version(version), ignore_errors=True)


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, symlinks=True, dirs_exist_ok=True, ignore=shutil.ignore_patterns(".git"))
    else:
        shutil.copy2(source, target)
