"""Compile the instance prices that ship with SkyServe: src/skyserve/catalog/data.

    python scripts/compile_catalog.py SOURCE_DIR [OUTPUT_DIR]

SOURCE_DIR holds the gathered price lists: aws/vms.csv.gz, azure/vms.csv.gz, gcp/vms.csv.gz with
gcp/acceleratortyperegion.csv.gz and gcp/acceleratortypezone.csv.gz, lambda/vms.csv.gz, runpod/vms.csv.gz,
fsdl_cloud_gpus_2025-03.csv and, for the prices of that time, 2024-02/gcp_vms.csv.gz. The same lists give the same
bytes. The product never needs them. What is chosen, and why, is in docs/explanation/catalog.md.
"""

from __future__ import annotations

import csv
import gzip
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from skyserve.catalog import hosts, snapshot
from skyserve.catalog.archive import pack, unpack
from skyserve.catalog.row import ARM64, X86_64, Row, Source
from skyserve.model import accelerators

_SPOT_NOTE = "spot: on-demand less the savings of Amazon's Spot Advisor of 2025-06-28, not an observed price"
_GITHUB = "https://github.com"

SOURCES = {
    "aws": {
        "karpenter-aws": Source(
            "aws-2026",
            "Amazon's price list, us-east-1 and GovCloud",
            f"{_GITHUB}/aws/karpenter-provider-aws",
            _SPOT_NOTE,
        ),
        "vantage-via-tsaol": Source(
            "aws-2025", "accelerator types in all regions", f"{_GITHUB}/tsaol/aws-gpu", _SPOT_NOTE
        ),
        "cortex": Source("aws-2022", "CPU types outside us-east-1", f"{_GITHUB}/cortexlabs/cortex", _SPOT_NOTE),
    },
    "azure": {
        "": Source("azure-2026", "Azure retail prices", f"{_GITHUB}/Azure/karpenter-provider-azure", "no spot prices"),
        "skypilot-catalog-v6": Source(
            "azure-2026-spot-2024",
            "Azure retail prices",
            f"{_GITHUB}/skypilot-org/skypilot-catalog",
            "spot prices are of 2024",
        ),
        "azure-calculator-2026-01-26": Source(
            "azure-2026-spot-2026",
            "Azure retail prices",
            f"{_GITHUB}/sstybel/azure-vm-price-importer",
            "spot prices are of 2026-01-26",
        ),
    },
    "gcp": {
        "cyclenerd": Source(
            "gcp-2026", "Google's price list", f"{_GITHUB}/Cyclenerd/google-cloud-pricing-cost-calculator"
        ),
        "n1": Source(
            "gcp-n1",
            "N1 machine of 2026-07-30 and GPU of 2025-03",
            f"{_GITHUB}/the-full-stack/website",
            "the GPU's price is that of us-central1; some regions charge more for it",
        ),
    },
    "lambda": {
        "": Source("lambda-2026", "Lambda's prices", f"{_GITHUB}/skypilot-org/skypilot-catalog", "one for all regions"),
        "inferred": Source(
            "lambda-inferred",
            "Lambda's prices",
            f"{_GITHUB}/skypilot-org/skypilot-catalog",
            "price per GPU of its family",
        ),
    },
    "runpod": {
        "2024 (v6)": Source("runpod-2024", "RunPod secure cloud", f"{_GITHUB}/skypilot-org/skypilot-catalog"),
        "2026 (v8)": Source("runpod-2026", "RunPod secure cloud", f"{_GITHUB}/skypilot-org/skypilot-catalog"),
    },
}

AWS_CPU_FAMILY = re.compile(r"t3a?|t4g|m5a?|m6[agi]|m7[agi]|m7i-flex|c[567]i?|r[567]i?")
AWS_FRACTIONS = {"g6f.large": 0.125, "g6f.xlarge": 0.125, "g6f.2xlarge": 0.25, "g6f.4xlarge": 0.5, "gr6f.4xlarge": 0.5}
"""Types with a part of an L4; the lists give them no accelerator."""

AZURE_CPU = re.compile(r"Standard_(D\d+(s|as|ds|ps)_v5|D\d+(s|as)_v6|E\d+(s|as)_v5|F\d+s_v2|B\d+(l?s|ms)|B\d+a?s_v2)")
AZURE_RETIRED = re.compile(r"Standard_N[CV]\d+r?_Promo")
AZURE_MEMORY_GIB = {
    "Standard_B1ls": 0.5, "Standard_B1s": 1, "Standard_B1ms": 2, "Standard_B2s": 4, "Standard_B2ms": 8,
    "Standard_B4ms": 16, "Standard_B8ms": 32, "Standard_B12ms": 48, "Standard_B16ms": 64, "Standard_B20ms": 80,
    "Standard_ND128isr_NDR_GB200_v6": 900, "Standard_ND96isr_MI300X_v5": 1850, "Standard_NV4as_v4": 14,
    "Standard_NV8as_v4": 28, "Standard_NV16as_v4": 56, "Standard_NV32as_v4": 112,
}  # fmt: skip
"""Memory that the price list leaves out, from Azure's pages of the sizes. A size that is on neither is left out: it can
hardly be ordered."""

AZURE_SAME_MACHINE = "Standard_ND96asr_A100_v4"
"""Listed a second time as Standard_ND96asr_v4, the name that can be ordered."""

GCP_CPU = re.compile(
    r"(e2|n1|n2)-(standard|highmem|highcpu)-\d+|e2-(micro|small|medium)|(n2d|c3|t2d|n4)-(standard|highmem)-\d+"
    r"|(c4a|t2a)-standard-\d+"
)
GCP_ARM = re.compile(r"(c4a|n4a|t2a)-")
GCP_SPOT_ONLY = re.compile(r"a3-highgpu-[124]g")
"""Google sells parts of an A3 machine as spot (and flex-start) only."""

GCP_ACCELERATORS = {
    "nvidia-tesla-t4": "T4",
    "nvidia-tesla-v100": "V100",
    "nvidia-tesla-p100": "P100",
    "nvidia-tesla-p4": "P4",
}
GCP_BUNDLE_REGION = "us-central1"


Line = dict[str, str]


def main(arguments: Sequence[str]) -> int:
    """Compile; the arguments are those of the command line."""
    if not 1 <= len(arguments) <= 2:
        sys.exit(__doc__)
    source = Path(arguments[0])
    output = Path(arguments[1]) if len(arguments) == 2 else snapshot.BUILT_IN
    packed = {}
    for cloud, rows in compile_rows(source).items():
        packed[cloud] = pack(cloud, rows, list(SOURCES[cloud].values()))
        summary = unpack(packed[cloud], cloud).summary
        size = f"{summary.rows} rows, {len(summary.accelerators)} accelerators, {len(summary.regions)} regions"
        print(f"{cloud:<8}{size}, {len(packed[cloud]) // 1024} KiB")
    snapshot.write_folder(output, packed)
    return 0


def compile_rows(source: Path) -> dict[str, list[Row]]:
    """What ships, by cloud."""
    return {
        "aws": list(aws(source)),
        "azure": list(azure(source)),
        "gcp": [*gcp(source), *gcp_n1(source)],
        "lambda": list(lambda_cloud(source)),
        "runpod": list(runpod(source)),
    }


def aws(source: Path) -> Iterator[Row]:
    """Amazon: every accelerator type and common CPU types, each zone a row of its own."""
    for line in lines(source / "aws" / "vms.csv.gz"):
        instance_type = line["instance_type"]
        family = instance_type.partition(".")[0]
        if line["currency"] != "USD" or instance_type.endswith("metal"):
            continue
        fraction = AWS_FRACTIONS.get(instance_type)
        if fraction:
            line |= {"accelerator": "L4", "accelerator_count": str(fraction)}
        if not line["accelerator"] and not AWS_CPU_FAMILY.fullmatch(family):
            continue
        # The savings are of before the price cut of these types, so a spot price made of them would be wrong.
        spot = None if family.startswith("p5") else amount(line["spot_price_h_derived"])
        price = amount(line["price_h"])
        yield from rows_of(
            "aws",
            line,
            zones=line["zones"],
            prices=(price, spot),
            band=int(line["spot_interruption_band"]) if line["spot_interruption_band"] and spot else None,
            origin=(line["price_date"], SOURCES["aws"][line["price_source"]].id),
        )


def azure(source: Path) -> Iterator[Row]:
    """Azure: every accelerator size and common CPU sizes. Zones are not known."""
    for line in lines(source / "azure" / "vms.csv.gz"):
        size = line["instance_type"]
        wanted = bool(line["accelerator"]) or AZURE_CPU.fullmatch(size)
        if not wanted or AZURE_RETIRED.fullmatch(size) or size == AZURE_SAME_MACHINE:
            continue
        line["vcpus"] = line["vcpus"] or "".join(re.findall(r"\d+", size)[:1])
        line["memory_gib"] = line["memory_gib"] or azure_memory(size, line["vcpus"])
        price, spot = amount(line["price_usd_h"]), amount(line["spot_price_usd_h"])
        offered = spot is not None and price is not None and spot < price
        yield from rows_of(
            "azure",
            line,
            prices=(price, spot if offered else None),
            origin=(line["price_date"], SOURCES["azure"][line["spot_source"]].id),
        )


def azure_memory(size: str, vcpus: str) -> str:
    """GiB of a size whose line does not say it."""
    if re.fullmatch(r"Standard_F\d+s_v2", size):
        return str(2 * int(vcpus))
    return str(AZURE_MEMORY_GIB.get(size, ""))


def gcp(source: Path) -> Iterator[Row]:
    """Google: machine types with built-in accelerators, by zone where known; common CPU types by region."""
    for line in lines(source / "gcp" / "vms.csv.gz"):
        name = line["instance_type"]
        if not line["accelerator"] and not GCP_CPU.fullmatch(name):
            continue
        line["arch"] = ARM64 if GCP_ARM.match(name) else X86_64
        price = None if GCP_SPOT_ONLY.fullmatch(name) else amount(line["price_usd_h"])
        yield from rows_of(
            "gcp",
            line,
            zones=line["zones_2023"] if line["accelerator"] else "",
            prices=(price, amount(line["spot_price_usd_h"])),
            origin=(line["price_date"], SOURCES["gcp"][line["price_source"]].id),
        )


def gcp_n1(source: Path) -> Iterator[Row]:
    """Google: N1 machines with the GPUs that can be attached to them, where these are."""
    machines = [row for row in gcp(source) if row.instance_type.startswith("n1-") and row.accelerator is None]
    unit = gcp_unit_prices(source)
    zones: dict[tuple[str, str], list[str]] = {}
    for line in lines(source / "gcp" / "acceleratortypezone.csv.gz"):
        zones.setdefault((line["accelerator_type"], line["zone"].rpartition("-")[0]), []).append(line["zone"])
    attached = []
    for line in lines(source / "gcp" / "acceleratortyperegion.csv.gz"):
        name = GCP_ACCELERATORS.get(line["accelerator_type"])
        for count in [count for known, count in hosts.LARGEST_N1 if known == name]:
            for zone in zones.get((line["accelerator_type"], line["region"]), [None]):
                attached.append(
                    gpu(str(name), count, line["region"], zone)._replace(
                        price_per_hour=round(count * unit[str(name)][0], 6),
                        spot_price_per_hour=round(count * unit[str(name)][1], 6),
                    )
                )
    yield from hosts.with_accelerators(machines, attached)


def gpu(name: str, count: int, region: str, zone: str | None) -> Row:
    """A GPU that is sold by itself, without its price."""
    memory = accelerators.memory_gib(name)
    source = SOURCES["gcp"]["n1"].id
    return Row("gcp", "", region, zone, name, count, memory, 0, 0, X86_64, None, None, None, "2025-03", source)


def gcp_unit_prices(source: Path) -> dict[str, tuple[float, float]]:
    """On-demand and spot price of one GPU: what a machine with one costs more than the machine did at that time."""
    machines = {
        line["instance_type"]: line
        for line in lines(source / "2024-02" / "gcp_vms.csv.gz")
        if line["region"] == GCP_BUNDLE_REGION
    }
    found = {}
    for line in lines(source / "fsdl_cloud_gpus_2025-03.csv"):
        machine = machines.get(line["Name"])
        if line["Cloud"] == "GCP" and line["GPUs"] == "1" and machine and not machine["accelerator"]:
            price = float(line["On-demand"]) - float(machine["price_usd_h"])
            spot = float(line["Spot"]) - float(machine["spot_price_usd_h"])
            found[line["GPU Type"].partition(" ")[0]] = (round(price, 2), round(spot, 2))
    return found


def lambda_cloud(source: Path) -> Iterator[Row]:
    """Lambda: everything; there is no spot capacity."""
    for line in lines(source / "lambda" / "vms.csv.gz"):
        line["arch"] = ARM64 if line["accelerator"] == "GH200" else X86_64
        origin = ("2026", SOURCES["lambda"][line["note"]].id)
        yield from rows_of("lambda", line, prices=(amount(line["price_usd_h"]), None), origin=origin)


def runpod(source: Path) -> Iterator[Row]:
    """RunPod: the secure cloud; its data centers are zones."""
    for line in lines(source / "runpod" / "vms.csv.gz"):
        vintage = line["price_vintage"]
        yield from rows_of(
            "runpod",
            line,
            zones=line["data_center"],
            prices=(amount(line["price_usd_h"]), amount(line["spot_price_usd_h"])),
            origin=(vintage[:4], SOURCES["runpod"][vintage].id),
        )


def rows_of(
    cloud: str,
    line: Line,
    *,
    prices: tuple[float | None, float | None],
    origin: tuple[str, str],
    zones: str = "",
    band: int | None = None,
) -> Iterator[Row]:
    """The rows of one line, one per zone; none when hardware or price is not known."""
    vcpus, memory = amount(line["vcpus"]), amount(line["memory_gib"])
    if not vcpus or not memory or prices == (None, None):
        return
    name = accelerators.canonical(line["accelerator"]) or None
    mib = amount(line.get("gpu_memory_mib_each", ""))
    each = (accelerators.memory_gib(name) or (mib / 1024 if mib else None)) if name else None
    count = float(line["accelerator_count"]) if name else 0.0
    arch = line.get("arch") or X86_64
    for zone in zones.split() or (None,):
        yield Row(
            cloud,
            line["instance_type"],
            line["region"],
            zone,
            name,
            count,
            each,
            vcpus,
            memory,
            arch,
            *prices,
            band,
            *origin,
        )


def amount(text: str) -> float | None:
    """A number; None for an empty cell."""
    return float(text) if text else None


def lines(path: Path) -> Iterator[Line]:
    """The lines of a list, by column name."""
    with gzip.open(path, "rt", newline="") if path.suffix == ".gz" else path.open(newline="") as file:
        yield from csv.DictReader(file)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
