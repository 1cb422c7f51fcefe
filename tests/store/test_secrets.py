"""The secret store: private files, whole or not at all, and one key however many ask for it first."""

from __future__ import annotations

import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from skyserve.errors import StoreUnavailable
from skyserve.store.secrets import SecretStore


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "home" / "secrets"


@pytest.fixture
def store(directory: Path) -> SecretStore:
    return SecretStore(directory)


def files_under(directory: Path) -> list[str]:
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file())


def test_values_come_back_as_they_were_put(store: SecretStore) -> None:
    values = {"TOKEN": "hunter2", "EMPTY": "", "ODD": 'é\n"\x00\ud800'}
    store.put("chat-u1", 1, values)
    store.put("chat-u1", 2, {"TOKEN": "newer"})
    assert store.get("chat-u1", 1) == values
    assert store.get("chat-u1", 2) == {"TOKEN": "newer"}


def test_putting_again_replaces_all(store: SecretStore, directory: Path) -> None:
    store.put("chat-u1", 1, {"A": "1", "B": "2"})
    store.put("chat-u1", 1, {"B": "3"})
    assert store.get("chat-u1", 1) == {"B": "3"}
    assert files_under(directory) == ["chat-u1/1.json"]


def test_a_version_without_secrets_has_none(store: SecretStore) -> None:
    assert store.get("chat-u1", 1) == {}


def test_dropping_takes_one_version_or_the_whole_service(store: SecretStore, directory: Path) -> None:
    for tag in ("chat-u1", "chat-u11"):
        for version in (1, 2, 11):
            store.put(tag, version, {"TOKEN": tag})
    store.drop("chat-u1", 1)
    assert store.get("chat-u1", 1) == {}
    assert store.get("chat-u1", 11) == {"TOKEN": "chat-u1"}
    store.drop("chat-u1", None)
    assert files_under(directory) == ["chat-u11/1.json", "chat-u11/11.json", "chat-u11/2.json"]
    store.drop("chat-u1", 1)
    store.drop("chat-u1", None)


def test_only_the_owner_can_read(store: SecretStore, directory: Path) -> None:
    directory.mkdir(parents=True, mode=0o755)
    store.put("chat-u1", 1, {"TOKEN": "x"})
    store.fingerprint_key()
    for path in (directory, *directory.rglob("*")):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path


def test_the_key_is_made_once_even_by_many_at_once(directory: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        keys = set(pool.map(lambda _: SecretStore(directory).fingerprint_key(), range(32)))
    assert len(keys) == 1
    assert len(keys.pop()) == 32
    assert files_under(directory) == ["fingerprint.key"]


def test_a_failed_write_leaves_the_old_values(store: SecretStore, directory: Path) -> None:
    store.put("chat-u1", 1, {"TOKEN": "old"})
    (directory / "chat-u1" / "2.json").mkdir()
    with pytest.raises(StoreUnavailable, match="secrets cannot be used: Is a directory") as caught:
        store.put("chat-u1", 2, {"TOKEN": "hunter2"})
    assert caught.value.hint
    assert store.get("chat-u1", 1) == {"TOKEN": "old"}
    assert files_under(directory) == ["chat-u1/1.json"]


def test_a_damaged_file_is_told_without_its_content(store: SecretStore, directory: Path) -> None:
    store.put("chat-u1", 1, {"TOKEN": "x"})
    (directory / "chat-u1" / "1.json").write_text('{"TOKEN": "hunter2')
    with pytest.raises(StoreUnavailable, match="the file is damaged") as caught:
        store.get("chat-u1", 1)
    assert "hunter2" not in str(caught.value)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize("tag", ["", ".", "..", "../chat", "a/b", "a\0b"])
def test_a_tag_cannot_lead_out_of_the_directory(store: SecretStore, tag: str) -> None:
    with pytest.raises(ValueError, match="cannot be the tag"):
        store.put(tag, 1, {})
