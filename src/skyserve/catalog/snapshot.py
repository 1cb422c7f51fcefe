"""Which prices are in use: those that came with SkyServe, refreshed ones of some clouds instead, or a catalog of the
user's own. Knows the folders; knows nothing of price lists' columns or of requests.

    HOME/catalog/refreshed/   newest prices by `sky catalog refresh`, per cloud, in place of the built-in ones
    HOME/catalog/chosen/      a catalog by `sky catalog use`: while it is there, nothing else is looked at

A folder holds one archive per cloud and `manifest.json`, which says which archives count, their checksums and numbers
of rows. Archives are named by their contents and never changed; replacing the manifest is what makes a change, whole
or not at all.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TypedDict, cast

from skyserve.catalog.archive import Archive, Summary, is_archive, pack, unpack
from skyserve.catalog.row import Row, Source
from skyserve.catalog.table import Table
from skyserve.errors import CatalogError

BUILT_IN = Path(__file__).parent / "data"

_MANIFEST = "manifest.json"
_SCHEMA = 1
_GO_BACK = "go back to the built-in prices: sky catalog use builtin"


class Origin(Enum):
    """How a cloud's prices came into use."""

    BUILT_IN = "built-in"
    REFRESHED = "refreshed"
    CHOSEN = "used"


@dataclass(frozen=True, slots=True)
class CloudStatus:
    """What is in use for one cloud."""

    summary: Summary
    origin: Origin


class _Entry(TypedDict):
    file: str
    sha256: str
    rows: int


def current(home: Path) -> Table:
    """The prices in use. Reads and checks the files, but unpacks nothing yet.

    Raises CatalogError when a file is damaged: then none of its prices are used, and no others instead.
    """
    opened = _in_use(home)
    clouds = {cloud: archive for cloud, (archive, _, _) in opened.items()}
    return Table(clouds, _revision(digest for _, _, digest in opened.values()))


def revision(home: Path) -> str:
    """The `revision` that the table in use has, read from the manifests alone: has anything changed?"""
    return _revision(entry["sha256"] for _, (_, entry, _) in sorted(_entries(home).items()))


def status(home: Path) -> tuple[CloudStatus, ...]:
    """What is in use, by cloud. Raises CatalogError as `current` does."""
    return tuple(CloudStatus(archive.summary, origin) for archive, origin, _ in _in_use(home).values())


def use(path: Path, home: Path) -> tuple[CloudStatus, ...]:
    """Use the price lists at `path` and nothing else: CSV files (see `imports`), or a folder of archives.

    They are taken over as they are now. Raises CatalogError, and then what was in use stays in use.
    """
    if not path.exists():
        raise CatalogError(f"there is no {path}", hint="give a file or a directory of price lists")
    try:
        packed = _archives_at(path)
    except OSError as error:
        raise CatalogError(f"{error.filename or path} cannot be read: {error.strerror}") from error
    with _writing(home):
        _put(_folder(home, Origin.CHOSEN), packed)
    return status(home)


def use_built_in(home: Path) -> None:
    """Forget the user's own catalog; the built-in and refreshed prices are in use again.

    Refreshed prices that are damaged are forgotten too, so that this always leads to prices.
    """
    with _writing(home):
        shutil.rmtree(_folder(home, Origin.CHOSEN), ignore_errors=True)
        try:
            _opened(home)
        except (CatalogError, FileNotFoundError):
            shutil.rmtree(_folder(home, Origin.REFRESHED), ignore_errors=True)


def forget_refreshed(home: Path) -> None:
    """Forget refreshed prices; the built-in ones are in use again."""
    with _writing(home):
        shutil.rmtree(_folder(home, Origin.REFRESHED), ignore_errors=True)


def write_cloud(home: Path, cloud: str, rows: Iterable[Row], source: Source | Iterable[Source]) -> None:
    """Use `rows` for a cloud in place of what was known of it. `source` describes what the rows name as theirs.

    Raises CatalogError when there are no rows or one is impossible, and then the last good ones stay.
    """
    sources = [source] if isinstance(source, Source) else list(source)
    data = pack(cloud, rows, sources)
    folder = _folder(home, Origin.REFRESHED)
    with _writing(home):
        kept = {name: (folder / entry["file"]).read_bytes() for name, entry in _readable_manifest(folder).items()}
        _put(folder, {**kept, cloud: data})


def write_folder(folder: Path, packed: Mapping[str, bytes]) -> None:
    """Make `folder` hold these archives, by cloud, and nothing else; the maintainer's script uses it."""
    folder.mkdir(parents=True, exist_ok=True)
    _put(folder, packed)


def _in_use(home: Path) -> dict[str, tuple[Archive, Origin, str]]:
    try:
        return _opened(home)
    except FileNotFoundError:
        pass  # replaced between reading the manifest and reading the file
    try:
        return _opened(home)
    except FileNotFoundError as error:
        raise CatalogError(f"{error.filename} is missing", hint=_GO_BACK) from error


def _opened(home: Path) -> dict[str, tuple[Archive, Origin, str]]:
    return {
        cloud: (_open(folder, cloud, entry), origin, entry["sha256"])
        for cloud, (folder, entry, origin) in sorted(_entries(home).items())
    }


def _entries(home: Path) -> dict[str, tuple[Path, _Entry, Origin]]:
    chosen = _folder(home, Origin.CHOSEN)
    layers = [(BUILT_IN, Origin.BUILT_IN), (_folder(home, Origin.REFRESHED), Origin.REFRESHED)]
    if (chosen / _MANIFEST).exists():
        layers = [(chosen, Origin.CHOSEN)]
    return {cloud: (folder, entry, origin) for folder, origin in layers for cloud, entry in _manifest(folder).items()}


def _folder(home: Path, origin: Origin) -> Path:
    return home / "catalog" / ("chosen" if origin is Origin.CHOSEN else "refreshed")


def _manifest(folder: Path) -> dict[str, _Entry]:
    """The archives that count, by cloud. Nothing when there is no manifest."""
    path = folder / _MANIFEST
    try:
        whole = json.loads(path.read_bytes())
        clouds = cast("dict[str, _Entry]", whole["clouds"])
        intact = whole["schema"] == _SCHEMA and whole["sha256"] == _digest_of(clouds)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CatalogError(f"{path} cannot be read: {error}", hint=_GO_BACK) from error
    if not intact:
        raise CatalogError(f"{path} is damaged, or of another version of SkyServe", hint=_GO_BACK)
    return clouds


def _readable_manifest(folder: Path) -> dict[str, _Entry]:
    """The manifest's sound entries: a refresh replaces what is damaged."""
    try:
        entries = _manifest(folder)
    except CatalogError:
        return {}
    sound = {}
    for cloud, entry in entries.items():
        try:
            _open(folder, cloud, entry)
        except (CatalogError, FileNotFoundError):
            continue
        sound[cloud] = entry
    return sound


def _digest_of(clouds: Mapping[str, _Entry]) -> str:
    return hashlib.sha256(json.dumps(clouds, sort_keys=True).encode()).hexdigest()


def _open(folder: Path, cloud: str, entry: _Entry) -> Archive:
    path = folder / entry["file"]
    try:
        data = path.read_bytes()
        if hashlib.sha256(data).hexdigest() != entry["sha256"]:
            raise CatalogError(f"{path} is damaged or was cut short: its checksum does not match")
        archive = unpack(data, str(path))
    except CatalogError as error:
        error.hint = _GO_BACK
        raise
    except OSError as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise CatalogError(f"{path} cannot be read: {error.strerror}", hint=_GO_BACK) from error
    if (archive.summary.cloud, archive.summary.rows) != (cloud, entry["rows"]):
        raise CatalogError(f"{path} does not have the rows that the manifest says", hint=_GO_BACK)
    return archive


def _archives_at(path: Path) -> dict[str, bytes]:
    """What `path` holds, as archives by cloud."""
    if path.is_dir() and (path / _MANIFEST).exists():
        entries = _manifest(path)
        for cloud, entry in entries.items():
            _open(path, cloud, entry)
        return {cloud: (path / entry["file"]).read_bytes() for cloud, entry in entries.items()}
    if path.is_file() and is_archive(data := path.read_bytes()):
        return {unpack(data, str(path)).summary.cloud: data}
    from skyserve.catalog import imports

    source = Source("used", f"taken over from {path.resolve()}")
    return {cloud: pack(cloud, rows, [source]) for cloud, rows in imports.read(path, source.id).items()}


def _put(folder: Path, packed: Mapping[str, bytes]) -> None:
    """Write the archives, then switch to them by replacing the manifest, then drop what no longer counts."""
    clouds: dict[str, _Entry] = {}
    for cloud, data in sorted(packed.items()):
        digest = hashlib.sha256(data).hexdigest()
        rows = unpack(data, cloud).summary.rows
        clouds[cloud] = {"file": f"{cloud}-{digest[:12]}.catalog", "sha256": digest, "rows": rows}
        _write(folder / clouds[cloud]["file"], data)
    whole = {"schema": _SCHEMA, "clouds": clouds, "sha256": _digest_of(clouds)}
    _write(folder / _MANIFEST, json.dumps(whole, indent=1, sort_keys=True).encode() + b"\n")
    files = {entry["file"] for entry in clouds.values()}
    for old in folder.glob("*.catalog"):
        if old.name not in files:
            old.unlink(missing_ok=True)


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise CatalogError(
            f"{path} cannot be written: {error.strerror}", hint="what was in use stays in use"
        ) from error


@contextmanager
def _writing(home: Path) -> Iterator[None]:
    """One writer at a time, over all processes."""
    folder = home / "catalog"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("w")
    except OSError as error:
        raise CatalogError(f"{folder} cannot be written: {error.strerror}") from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _revision(digests: Iterable[str]) -> str:
    return hashlib.sha256("".join(digests).encode()).hexdigest()[:16]
