"""`sky show-gpus`: accelerators and their prices."""

from __future__ import annotations

import pytest


def _rows(result) -> list[list[str]]:
    return [line.split() for line in result.out.splitlines()[2:]]


def test_prices_are_cheapest_first_with_spot_beside(sky, prices):
    result = sky("show-gpus", "L4:1")
    assert result.out.splitlines() == [
        "Prices of L4",
        "GPU  QTY  CLOUD  INSTANCE_TYPE  DEVICE_MEM  vCPUs  HOST_MEM  HOURLY_PRICE  HOURLY_SPOT_PRICE  REGION",
        "L4   1    GCP    g2-standard-4  24GB        4      16GB      $ 0.705       $ 0.270            us-east4",
        "L4   1    AWS    g6.xlarge      24GB        4      16GB      $ 0.805       $ 0.190            us-east-1",
    ]


def test_filters(sky, prices):
    assert [row[2:4] for row in _rows(sky("show-gpus", "l4", "--cloud", "AWS"))] == [
        ["AWS", "g6.xlarge"],
        ["AWS", "g6.48xlarge"],
    ]
    assert [row[-1] for row in _rows(sky("show-gpus", "L4:1", "--cloud", "aws", "--all"))] == ["us-east-1", "eu-west-1"]
    assert [row[-1] for row in _rows(sky("gpus", "list", "L4", "--region", "eu-west-1"))] == ["eu-west-1"]
    assert sky("show-gpus", "L4:3").out == "No offer of L4:3 there.\n"


def test_json(sky, prices):
    (price,) = sky("show-gpus", "A100-80GB", "-o", "json").json["prices"]
    assert (price["cloud"], price["accelerator"]) == ("azure", {"name": "A100-80GB", "count": 2})
    assert (price["price_per_hour"], price["spot_price_per_hour"]) == (7.346, 1.5)


def test_spot_that_is_cheapest_elsewhere(sky, home, price_list):
    price_list.write_text(price_list.read_text().replace("0.9,,eu-west-1", "0.9,0.1,eu-west-1"))
    assert sky("catalog", "use", str(price_list)).code == 0
    assert sky("show-gpus", "L4:1", "--cloud", "aws").out.endswith("$ 0.100            us-east-1 (spot: eu-west-1)\n")


def test_the_list_of_accelerators(sky, prices):
    result = sky("show-gpus")
    assert result.out.splitlines() == [
        "Accelerators, and how many of them a machine has",
        "GPU        AWS   Azure  GCP",
        "A100-80GB  -     2      -",
        "L4         1, 8  -      1, 8",
    ]
    assert sky("show-gpus", "--region", "eu-west-1", "-o", "json").json == {
        "accelerators": [{"name": "L4", "counts": {"aws": [1.0]}}]
    }


@pytest.mark.parametrize(
    ("args", "error", "hint"),
    [
        (["L44"], "no cloud has a price of an accelerator 'L44'", "did you mean L4?"),
        (["L4:none"], "'L4:none' is not a name and a count", "sky show-gpus NAME, or NAME:COUNT"),
        (["L4", "--cloud", "acme"], "there are no prices of 'acme'", "there are of: aws, azure, gcp"),
        (["--region", "us-east1"], "no accelerator is offered in a region 'us-east1'", "did you mean 'us-east-1'?"),
    ],
)
def test_what_is_not_known(sky, prices, args, error, hint):
    result = sky("show-gpus", *args, "-o", "json")
    assert result.code == 2
    assert result.json["error"]["message"].startswith(error)
    assert result.json["error"]["hint"] == hint


def test_a_damaged_catalog(sky, damaged):
    result = sky("show-gpus", "L4")
    assert result.code == 1
    assert "does not match" in result.err
