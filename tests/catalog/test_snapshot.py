"""Which prices are in use, and that the last good ones stay when something goes wrong."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from tests.catalog.pricing import row

from skyserve.catalog import snapshot
from skyserve.catalog.archive import pack
from skyserve.catalog.row import Source
from skyserve.catalog.snapshot import Origin
from skyserve.errors import CatalogError

SOURCE = Source("test", "made up")
LIST = "InstanceType,AcceleratorName,AcceleratorCount,vCPUs,MemoryGiB,Price,SpotPrice,Region\n"
G6 = "g6.xlarge,L4,1,4,16,0.8,,us-east-1\n"


def origins(home: Path) -> dict[str, Origin]:
    return {one.summary.cloud: one.origin for one in snapshot.status(home)}


def one_list(folder: Path, text: str = LIST + G6) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "aws_vms.csv"
    path.write_text(text)
    return path


def files(home: Path) -> dict[str, bytes]:
    whole = (home / "catalog").rglob("*")
    return {path.name: path.read_bytes() for path in whole if path.is_file() and path.name != ".lock"}


def test_the_built_in_prices_are_there(tmp_path: Path) -> None:
    assert set(origins(tmp_path).values()) == {Origin.BUILT_IN}
    assert snapshot.current(tmp_path).clouds == ("aws", "azure", "gcp", "lambda", "runpod")
    assert not list(tmp_path.iterdir()), "reading writes nothing"


def test_a_refreshed_cloud_takes_the_place_of_the_built_in_one(tmp_path: Path) -> None:
    before = snapshot.revision(tmp_path)
    snapshot.write_cloud(tmp_path, "aws", [row()], SOURCE)
    snapshot.write_cloud(tmp_path, "vast", [row(cloud="vast")], SOURCE)
    assert origins(tmp_path)["aws"] is origins(tmp_path)["vast"] is Origin.REFRESHED
    assert origins(tmp_path)["gcp"] is Origin.BUILT_IN
    table = snapshot.current(tmp_path)
    assert table.rows_with("aws", "L4") == 1
    assert before != table.revision == snapshot.revision(tmp_path)
    snapshot.forget_refreshed(tmp_path)
    assert snapshot.revision(tmp_path) == before


def test_a_chosen_catalog_is_the_only_one(tmp_path: Path) -> None:
    home = tmp_path / "home"
    snapshot.write_cloud(home, "gcp", [row(cloud="gcp")], SOURCE)
    used = snapshot.use(one_list(tmp_path), home)
    assert [(one.summary.cloud, one.summary.rows, one.origin) for one in used] == [("aws", 1, Origin.CHOSEN)]
    assert next(snapshot.current(home).rows()).instance_type == "g6.xlarge"
    snapshot.use_built_in(home)
    assert origins(home)["gcp"] is Origin.REFRESHED


def test_what_is_chosen_is_taken_over_as_it_is_now(tmp_path: Path) -> None:
    path = one_list(tmp_path)
    snapshot.use(path, tmp_path)
    path.unlink()
    assert snapshot.current(tmp_path).clouds == ("aws",)


def test_catalogs_of_this_kind_can_be_handed_on(tmp_path: Path) -> None:
    snapshot.use(one_list(tmp_path), tmp_path)
    folder = tmp_path / "catalog" / "chosen"
    (archive,) = folder.glob("*.catalog")
    for number, path in enumerate((folder, archive)):
        home = tmp_path / str(number)
        snapshot.use(path, home)
        assert snapshot.revision(home) == snapshot.revision(tmp_path)


@pytest.mark.parametrize("text", [LIST + G6 + "g5,L4,one,4,16,1,,x\n", LIST + G6 + "g5.xl", LIST, "a,b\n1,2\n"])
def test_what_cannot_be_read_is_refused_whole(tmp_path: Path, text: str) -> None:
    home = tmp_path / "home"
    snapshot.use(one_list(tmp_path / "good"), home)
    before = files(home)
    with pytest.raises(CatalogError):
        snapshot.use(one_list(tmp_path / "bad", text), home)
    assert files(home) == before


def test_a_refresh_that_is_wrong_leaves_the_last_good_prices(tmp_path: Path) -> None:
    snapshot.write_cloud(tmp_path, "aws", [row()], SOURCE)
    before = files(tmp_path)
    for rows in ([], [row(), row(region="")]):
        with pytest.raises(CatalogError):
            snapshot.write_cloud(tmp_path, "aws", rows, SOURCE)
    assert files(tmp_path) == before


def test_old_archives_are_dropped(tmp_path: Path) -> None:
    for price in (1.0, 2.0, 3.0):
        snapshot.write_cloud(tmp_path, "aws", [row(price_per_hour=price)], SOURCE)
    assert len(files(tmp_path)) == 2


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_damage_anywhere_is_found_before_any_price_is_used(tmp_path: Path, share: float) -> None:
    snapshot.write_cloud(tmp_path, "aws", [row()], SOURCE)
    for path in sorted((tmp_path / "catalog" / "refreshed").iterdir()):
        good = path.read_bytes()
        place = int(share * len(good))
        for bad in (good[:place], good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :]):
            path.write_bytes(bad)
            with pytest.raises(CatalogError) as caught:
                snapshot.current(tmp_path)
            assert caught.value.hint
        path.write_bytes(good)
    assert snapshot.current(tmp_path).rows_with("aws", "L4") == 1


def test_an_archive_that_is_missing_is_found(tmp_path: Path) -> None:
    snapshot.write_cloud(tmp_path, "aws", [row()], SOURCE)
    for path in (tmp_path / "catalog" / "refreshed").glob("*.catalog"):
        path.unlink()
    with pytest.raises(CatalogError, match="missing"):
        snapshot.current(tmp_path)


def test_a_refresh_mends_what_is_damaged(tmp_path: Path) -> None:
    snapshot.write_cloud(tmp_path, "aws", [row()], SOURCE)
    snapshot.write_cloud(tmp_path, "gcp", [row(cloud="gcp")], SOURCE)
    (damaged,) = (tmp_path / "catalog" / "refreshed").glob("aws-*")
    damaged.write_bytes(b"?")
    snapshot.write_cloud(tmp_path, "gcp", [row(cloud="gcp", price_per_hour=1.0)], SOURCE)
    assert origins(tmp_path)["gcp"] is Origin.REFRESHED
    assert origins(tmp_path)["aws"] is Origin.BUILT_IN


def test_there_is_always_a_way_back_to_prices(tmp_path: Path) -> None:
    before = snapshot.revision(tmp_path)
    snapshot.write_cloud(tmp_path, "aws", [row()], SOURCE)
    snapshot.use_built_in(tmp_path)
    assert origins(tmp_path)["aws"] is Origin.REFRESHED, "sound ones stay"
    for name in ("aws-*", "manifest.json"):
        snapshot.write_cloud(tmp_path, "aws", [row()], SOURCE)
        for path in (tmp_path / "catalog" / "refreshed").glob(name):
            path.write_bytes(b"?")
        snapshot.use_built_in(tmp_path)
        assert snapshot.current(tmp_path).revision == before


def test_an_archive_may_not_stand_in_for_another_cloud(tmp_path: Path) -> None:
    folder = tmp_path / "catalog" / "refreshed"
    snapshot.write_folder(folder, {"gcp": pack("aws", [row()], [SOURCE])})
    with pytest.raises(CatalogError, match="manifest"):
        snapshot.current(tmp_path)
    shutil.rmtree(folder)


def test_a_folder_of_archives_that_lacks_one(tmp_path: Path) -> None:
    folder = tmp_path / "handed-on"
    snapshot.write_folder(folder, {"aws": pack("aws", [row()], [SOURCE])})
    next(folder.glob("*.catalog")).unlink()
    with pytest.raises(CatalogError, match="cannot be read"):
        snapshot.use(folder, tmp_path)


def test_a_path_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(CatalogError, match="there is no"):
        snapshot.use(tmp_path / "nothing", tmp_path)
