"""Snapshots of the user's files, taken when a version is given, so that every replica of it gets the same ones."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from skyserve.errors import StoreUnavailable, UsageError
from skyserve.model.service import ServiceSpec
from skyserve.model.source import GitSource, git_source

GIT_PATIENCE_S = 300.0
"""How long fetching a repository may take."""


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
            try:
                _take(source, target)
            except (OSError, shutil.Error) as error:
                self.drop(version)
                raise StoreUnavailable(
                    f"cannot copy {source}: {error}", hint="free some space and try again"
                ) from error
            except UsageError:
                self.drop(version)
                raise

    def copy(self, version: int, as_version: int) -> None:
        """Keep the snapshots of a version under another number too. Raises StoreUnavailable when it does not fit."""
        source, target = self._version(version), self._version(as_version)
        if not source.exists():
            return
        try:
            shutil.copytree(source, target, symlinks=True)
        except (OSError, shutil.Error) as error:
            self.drop(as_version)
            raise StoreUnavailable(f"cannot copy {source}: {error}", hint="free some space and try again") from error

    def _pairs(self, spec: ServiceSpec, version: int) -> list[tuple[str, Path]]:
        pairs = [(spec.workdir, self.workdir(version))] if spec.workdir else []
        return pairs + [(source, self.mount(version, target)) for target, source in spec.file_mounts.items()]

    def drop(self, version: int) -> None:
        """Forget the snapshots of a version."""
        shutil.rmtree(self._version(version), ignore_errors=True)


def _take(source: str, target: Path) -> None:
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    repository = git_source(source)
    if repository is not None:
        _fetch(repository, target)
        return
    path = Path(source)
    if not path.is_absolute() or not path.exists():
        raise UsageError(f"{path} is not there", hint="workdir and file_mounts name files of this machine")
    _copy(path, target)


def _fetch(source: GitSource, target: Path) -> None:
    """The files of one commit, without its history. Any reference will do, which `clone --branch` does not take."""
    git = ["git", "-C", str(target), "-c", "advice.detachedHead=false"]
    target.mkdir(mode=0o700)
    for command in (
        ["init", "--quiet"],
        ["fetch", "--quiet", "--depth", "1", "--", source.url, source.ref or "HEAD"],
        ["checkout", "--quiet", "FETCH_HEAD"],
    ):
        _run([*git, *command], source)
    shutil.rmtree(target / ".git")


def _run(command: list[str], source: GitSource) -> None:
    hint = "try it by hand: git ls-remote URL REF; it must work without a question"
    quiet = {"GIT_TERMINAL_PROMPT": "0", "GIT_SSH_COMMAND": "ssh -o BatchMode=yes"}
    try:
        done = subprocess.run(
            ["env", *(f"{name}={value}" for name, value in quiet.items()), *command],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=GIT_PATIENCE_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise UsageError(f"{source} was not fetched within {GIT_PATIENCE_S:g}s", hint=hint) from error
    except FileNotFoundError as error:
        raise UsageError(f"{source} needs git, which is not on the PATH", hint="install git") from error
    if done.returncode in (126, 127):
        raise UsageError(f"{source} needs git, which is not on the PATH", hint="install git")
    if done.returncode != 0:
        told = done.stderr.decode(errors="replace").strip().splitlines() or ["no reason given"]
        raise UsageError(f"{source} cannot be fetched: {told[-1]}", hint=hint)


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, symlinks=True, dirs_exist_ok=True, ignore=shutil.ignore_patterns(".git"))
    else:
        shutil.copy2(source, target)
