"""Price lists of others as rows: CSV files in the manner of SkyPilot's catalogs, or with the columns of `Row`.

Knows column names and the quirks of such lists; knows nothing of what is in use. A file with one line that cannot be
read is refused whole.
"""

from __future__ import annotations

import ast
import csv
import gzip
import io
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path

from skyserve.catalog import hosts
from skyserve.catalog.row import ARM64, X86_64, Row
from skyserve.errors import CatalogError
from skyserve.model import accelerators

_COLUMNS: Mapping[str, tuple[str, ...]] = {
    "cloud": ("cloud",),
    "instance_type": ("instancetype",),
    "accelerator": ("accelerator", "acceleratorname"),
    "count": ("acceleratorcount",),
    "memory_each_gib": ("acceleratormemorygib",),
    "memory_each_mib": ("gpumemorymibeach",),
    "gpu_info": ("gpuinfo",),
    "vcpus": ("vcpus",),
    "memory": ("memorygib",),
    "arch": ("arch",),
    "region": ("region",),
    "zones": ("zone", "zones", "availabilityzone", "zones2023"),
    "price": ("price", "priceperhour", "priceusdh", "priceh"),
    "spot": ("spotprice", "spotpriceperhour", "spotpriceusdh", "spotpricehderived"),
    "band": ("interruptionband", "spotinterruptionband"),
    "currency": ("currency",),
    "date": ("pricedate",),
}
"""What is read, and the names it goes by, without case, blanks and underscores."""

_NEEDED = ("instance_type", "region", "price")
_SUFFIXES = (".csv", ".csv.gz")
_SAME_MACHINE = {"Standard_ND96asr_A100_v4": "Standard_ND96asr_v4"}
"""Second names under which Azure's price list has a machine once more, and the name that can be ordered."""


def read(path: Path, source: str) -> dict[str, list[Row]]:
    """The rows of a price list, or of all price lists in a directory, by cloud; `source` is the id they get.

    The cloud is the column `cloud`, or else the name of the file (`aws_vms.csv`) or of its directory (`aws/vms.csv`).
    Lines without a price in dollars, vCPUs or memory are left out. Raises CatalogError.
    """
    files = sorted(one for one in path.rglob("*") if one.name.endswith(_SUFFIXES)) if path.is_dir() else [path]
    clouds: dict[str, list[Row]] = {}
    for file in files:
        lines = _Lines(file)
        if not lines.is_price_list:
            continue
        for row in _rows(lines, source):
            clouds.setdefault(row.cloud, []).append(row)
    if not clouds:
        needed = "InstanceType, Region and Price"
        raise CatalogError(f"{path} has no price list", hint=f"a price list is a .csv or .csv.gz with columns {needed}")
    return clouds


class _Lines:
    """A CSV file, all of it read, with its columns under our names."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            data = path.read_bytes()
            text = (gzip.decompress(data) if path.name.endswith(".gz") else data).decode("utf-8")
        except OSError as error:
            raise CatalogError(f"{path} cannot be read: {error.strerror or 'it is damaged'}") from error
        except (EOFError, zlib.error, UnicodeDecodeError) as error:
            raise CatalogError(f"{path} is damaged or was cut short") from error
        self._reader = csv.reader(io.StringIO(text, newline=""), strict=True)
        header = next(self._reader, [])
        plain = [re.sub(r"[\s_]", "", name).lower() for name in header]
        self._width = len(header)
        self._index = {
            ours: plain.index(theirs) for ours, names in _COLUMNS.items() for theirs in names if theirs in plain
        }

    @property
    def is_price_list(self) -> bool:
        """Whether it has what every price list has."""
        return all(name in self._index for name in _NEEDED)

    def __iter__(self) -> Iterator[_Line]:
        try:
            for values in self._reader:
                if len(values) != self._width:
                    raise self.error(f"{len(values)} columns instead of {self._width}")
                yield _Line({name: values[index].strip() for name, index in self._index.items()}, self.error)
        except csv.Error as error:
            raise self.error(str(error)) from error

    def error(self, problem: str) -> CatalogError:
        """What is wrong with the line that was read last."""
        return CatalogError(f"{self.path}:{self._reader.line_num}: {problem}; nothing of it was used")


class _Line:
    """One line; absent columns are empty."""

    def __init__(self, values: Mapping[str, str], error: Callable[[str], CatalogError]) -> None:
        self._values = values
        self.error = error

    def text(self, name: str) -> str:
        return self._values.get(name, "")

    def amount(self, name: str) -> float | None:
        text = self.text(name)
        if not text:
            return None
        try:
            amount = float(text)
        except ValueError:
            amount = -1.0
        if not 0 <= amount < float("inf"):
            raise self.error(f"the {name} {text[:40]!r} is not an amount")
        return amount


def _rows(lines: _Lines, source: str) -> Iterable[Row]:
    fallback = _cloud_of(lines.path)
    rows: list[Row] = []
    attached: list[Row] = []
    for line in lines:
        if line.text("currency") not in ("", "USD"):
            continue
        found = _line_rows(line, line.text("cloud").lower() or fallback, source)
        (rows if line.text("instance_type") else attached).extend(found)
    return [*filter(hosts.is_whole, rows), *hosts.with_accelerators(rows, attached)] if attached else rows


def _line_rows(line: _Line, cloud: str, source: str) -> Iterator[Row]:
    price, spot = line.amount("price"), line.amount("spot")
    if cloud == "azure" and spot is not None and price is not None and spot >= price:
        spot = None  # Azure lists the full price where it has no spot machines
    vcpus, memory = line.amount("vcpus"), line.amount("memory")
    instance_type = line.text("instance_type")
    instance_type = _SAME_MACHINE.get(instance_type, instance_type)
    bare_accelerator = not instance_type and bool(line.text("accelerator"))
    if (price is None and spot is None) or not (bare_accelerator or (vcpus and memory is not None)):
        return
    name = accelerators.canonical(line.text("accelerator")) or None
    count = (line.amount("count") or 1.0) if name else 0.0
    for zone in line.text("zones").split() or (None,):
        yield Row(
            cloud,
            instance_type,
            line.text("region"),
            zone,
            name,
            count,
            _memory_each(line, name, count) if name else None,
            vcpus or 0.0,
            memory or 0.0,
            ARM64 if line.text("arch").lower() in ("arm64", "aarch64") else X86_64,
            price,
            spot,
            _band(line),
            line.text("date"),
            source,
        )


def _band(line: _Line) -> int | None:
    band = line.amount("band")
    return None if band is None else int(band)


def _memory_each(line: _Line, name: str, count: float) -> float | None:
    gib = line.amount("memory_each_gib")
    mib = line.amount("memory_each_mib") or _mib(line.text("gpu_info"))
    return gib or (round(mib / 1024, 1) if mib else accelerators.memory_gib(name))


@lru_cache(maxsize=1024)
def _mib(gpu_info: str) -> float | None:
    """The memory of one GPU from a description such as `{'Gpus': [{'MemoryInfo': {'SizeInMiB': 16384}}]}`."""
    try:
        size = ast.literal_eval(gpu_info)["Gpus"][0]["MemoryInfo"]["SizeInMiB"] if gpu_info else None
    except (ValueError, SyntaxError, LookupError, TypeError, RecursionError, MemoryError):
        return None
    return float(size) if isinstance(size, int | float) and size > 0 else None


def _cloud_of(path: Path) -> str:
    first = re.split(r"[_.\-]", path.name.lower())[0]
    name = path.parent.name.lower() if first == "vms" else first
    if not re.fullmatch(r"[a-z][a-z0-9]*", name):
        raise CatalogError(f"{path}: the name does not say the cloud", hint="name it like aws_vms.csv or aws/vms.csv")
    return name
