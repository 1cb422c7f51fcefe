"""Files out of a git repository: one commit, as it was when the version was given."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from skyserve.controller.files import Files
from skyserve.errors import UsageError
from skyserve.model.service import ServiceSpec

ME = ("-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false")


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    path = tmp_path / "repo.git"
    git("init", "--quiet", "--initial-branch", "main", str(path))
    git("-C", str(path), "config", "uploadpack.allowAnySHA1InWant", "true")
    commit(path, "one")
    git("-C", str(path), "tag", "v1")
    commit(path, "two")
    return path


def git(*words: str) -> str:
    env = {"PATH": os.environ["PATH"], "HOME": "/nonexistent"}
    return subprocess.run(["git", *ME, *words], check=True, capture_output=True, text=True, env=env).stdout.strip()


def commit(path: Path, text: str) -> None:
    (path / "app.py").write_text(text)
    git("-C", str(path), "add", "app.py")
    git("-C", str(path), "commit", "--quiet", "-m", text)


def taken(repository: Path, tmp_path: Path, ref: str) -> str:
    files = Files(tmp_path / "home")
    files.take(ServiceSpec(name="chat", run="x", workdir=f"git+file://{repository}{ref}"), 1)
    assert not (files.workdir(1) / ".git").exists()
    text = (files.workdir(1) / "app.py").read_text()
    files.drop(1)
    return text


def test_any_reference_will_do(repository: Path, tmp_path: Path) -> None:
    first = git("-C", str(repository), "rev-parse", "v1")
    assert taken(repository, tmp_path, "") == "two"
    assert taken(repository, tmp_path, "#main") == "two"
    assert taken(repository, tmp_path, "#v1") == "one"
    assert taken(repository, tmp_path, f"#{first}") == "one"


def test_a_repository_can_be_mounted(repository: Path, tmp_path: Path) -> None:
    files = Files(tmp_path / "home")
    files.take(ServiceSpec(name="chat", run="x", file_mounts={"code": f"git+file://{repository}#v1"}), 2)
    assert (files.mount(2, "code") / "app.py").read_text() == "one"


@pytest.mark.parametrize("ref", ["#nowhere", "#--upload-pack=touch /tmp/never"])
def test_what_is_not_there_is_said_and_leaves_nothing(repository: Path, tmp_path: Path, ref: str) -> None:
    files = Files(tmp_path / "home")
    spec = ServiceSpec(name="chat", run="x", workdir=f"git+file://{repository}{ref}")
    with pytest.raises(UsageError, match="cannot be fetched"):
        files.take(spec, 1)
    assert not files.workdir(1).exists()
