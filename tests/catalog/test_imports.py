"""Price lists of others, with their quirks."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from skyserve.catalog import imports
from skyserve.catalog.row import ARM64, Row
from skyserve.errors import CatalogError

AWS = """\
InstanceType,AcceleratorName,AcceleratorCount,vCPUs,MemoryGiB,GpuInfo,Price,SpotPrice,Region,AvailabilityZone,Arch
g6.xlarge,L4,1.0,4.0,16.0,"{'Gpus': [{'MemoryInfo': {'SizeInMiB': 22888}}]}",0.8,0.3,us-east-1,use1-az1,x86_64
g5g.xlarge,T4G,1.0,4.0,8.0,,0.42,,us-east-1,use1-az2,arm64
m6i.large,,,2.0,8.0,,0.096,0.04,us-east-1,use1-az1,x86_64
"""
GCP = """InstanceType,vCPUs,MemoryGiB,AcceleratorName,AcceleratorCount,GpuInfo,Region,AvailabilityZone,Price,SpotPrice
n1-standard-4,4,15,,,,us-central1,us-central1-a,0.19,0.08
n1-standard-64,64,240,,,,us-central1,us-central1-a,3.04,1.3
a2-highgpu-1g,12,85,,,,us-central1,us-central1-a,0.74,0.3
g2-standard-8,8,32,,,,us-central1,us-central1-a,0.29,0.1
,,,T4,1,,us-central1,us-central1-a,0.35,0.12
,,,A100,1,,us-central1,us-central1-a,2.93,1.2
,,,L4,1,,us-central1,us-central1-a,0.56,0.2
,,,T4,1,,us-central1,us-central1-b,0.35,0.12
TPU-VM,,,tpu-v2-8,1,,us-central1,us-central1-b,4.5,1.35
"""
AZURE = """InstanceType,AcceleratorName,AcceleratorCount,vCPUs,MemoryGiB,Price,SpotPrice,Region,Generation
Standard_ND96asr_v4,A100,8,96,900,27.197,,eastus,V2
Standard_ND96asr_A100_v4,A100,8,96,900,27.197,,eastus,V2
Standard_NC40ads_H100_v5,H100,1,40,320,6.98,6.98,eastus,V2
Standard_A0,,,,,0.02,,eastus,V1
"""


def read(folder: Path, name: str, text: str) -> dict[str, list[Row]]:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    return imports.read(path, "test")


def test_a_list_of_amazon(tmp_path: Path) -> None:
    l4, t4g, cpu = read(tmp_path, "aws_vms_us-east-1.csv.gz", AWS)["aws"]
    assert l4[:6] == ("aws", "g6.xlarge", "us-east-1", "use1-az1", "L4", 1)
    assert (l4.accelerator_memory_gib, l4.price_per_hour, l4.spot_price_per_hour) == (22.4, 0.8, 0.3)
    assert (t4g.accelerator, t4g.accelerator_memory_gib, t4g.arch, t4g.spot_price_per_hour) == ("T4g", 16, ARM64, None)
    assert (cpu.accelerator, cpu.accelerator_count, cpu.source) == (None, 0, "test")


def test_google_sells_accelerators_apart(tmp_path: Path) -> None:
    rows = {(row.instance_type, row.accelerator): row for row in read(tmp_path, "gcp/vms.csv", GCP)["gcp"]}
    assert set(rows) == {
        ("n1-standard-4", None),
        ("n1-standard-4", "T4"),
        ("n1-standard-64", None),
        ("a2-highgpu-1g", "A100"),
        ("g2-standard-8", "L4"),
    }, "too big a machine for one T4, and machines without what is built into them, are left out"
    t4 = rows["n1-standard-4", "T4"]
    assert (t4.zone, t4.price_per_hour, t4.spot_price_per_hour) == ("us-central1-a", 0.54, 0.2)


def test_azure_has_second_names_and_spot_prices_that_are_none(tmp_path: Path) -> None:
    rows = read(tmp_path, "azure_vms.csv", AZURE)["azure"]
    assert [row.instance_type for row in rows] == ["Standard_ND96asr_v4"] * 2 + ["Standard_NC40ads_H100_v5"]
    assert [row.spot_price_per_hour for row in rows] == [None] * 3


def test_columns_named_like_ours(tmp_path: Path) -> None:
    text = (
        "cloud,instance_type,region,zones,vcpus,memory_gib,price_per_hour,currency,interruption_band,price_date\n"
        "aws,m6i,us-east-1,us-east-1a us-east-1b,2,8,0.1,USD,3,2026-01-01\n"
        "aws,m6i,cn-north-1,,2,8,0.7,CNY,,2026-01-01\n"
    )
    rows = read(tmp_path, "anything.csv", text)["aws"]
    assert [(row.zone, row.interruption_band, row.price_date) for row in rows] == [
        ("us-east-1a", 3, "2026-01-01"),
        ("us-east-1b", 3, "2026-01-01"),
    ]


def test_a_directory_of_lists_and_other_files(tmp_path: Path) -> None:
    read(tmp_path, "aws/vms.csv", AWS)
    read(tmp_path, "azure/vms.csv.gz", AZURE)
    (tmp_path / "aws" / "images.csv").write_text("Tag,Region,ImageId\nskypilot:gpu,us-east-1,ami-1\n")
    (tmp_path / "README.md").write_text("prices")
    assert set(imports.read(tmp_path, "test")) == {"aws", "azure"}


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("g6,L4,1,4,16,,free,,us-east-1,,\n", r"vms\.csv:5: the price 'free' is not an amount"),
        ("g6,L4,1,4,16,,-1,,us-east-1,,\n", "not an amount"),
        ("g6,L4,1,4,16,,nan,,us-east-1,,\n", "not an amount"),
        ("g6,L4,1,4\n", "4 columns instead of 11"),
        ('g6,"L4', "unexpected end of data"),
    ],
)
def test_a_line_that_cannot_be_read(tmp_path: Path, line: str, why: str) -> None:
    with pytest.raises(CatalogError, match=why):
        read(tmp_path, "aws/vms.csv", AWS + line)


def test_files_that_are_damaged(tmp_path: Path) -> None:
    whole = gzip.compress(AWS.encode())
    path = tmp_path / "aws_vms.csv.gz"
    for bad in (whole[:-9], b"plain", whole[:30] + b"\0" + whole[31:]):
        path.write_bytes(bad)
        with pytest.raises(CatalogError):
            imports.read(path, "test")
    plain = tmp_path / "aws_vms.csv"
    plain.write_bytes(b"\xff" + AWS.encode())
    with pytest.raises(CatalogError, match="damaged"):
        imports.read(plain, "test")


def test_names_that_say_no_cloud(tmp_path: Path) -> None:
    with pytest.raises(CatalogError, match="does not say the cloud"):
        read(tmp_path, "2024/vms.csv", AWS)
