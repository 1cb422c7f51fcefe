"""`--dryrun`: the plan over all clouds, without credentials, controller or trace."""

from __future__ import annotations

import pytest


@pytest.fixture
def write(tmp_path):
    """Writes a Service YAML with these resources, and returns its path."""

    def _write(resources: str, policy: str = "replicas: 2") -> str:
        path = tmp_path / "service.yaml"
        path.write_text(
            f"service:\n  readiness_probe: /\n  {policy}\nresources:\n  ports: 8080\n  {resources}\nrun: x $PORT\n"
        )
        return str(path)

    return _write


def _rows(result) -> list[list[str]]:
    titles = (" AWS", " Azure", " GCP", " Local")
    return [line.split() for line in result.err.splitlines() if line.startswith(titles)]


def test_shows_all_clouds_and_chooses_the_cheapest(sky, prices, write):
    result = sky("serve", "up", write("accelerators: {L4:8, A100-80GB:2}"), "--dryrun")
    assert (result.code, result.out) == (0, "")
    lines = result.err.splitlines()
    table = lines[lines.index("== Optimizer ==") :]
    frame = "-" * 126
    assert [line.rstrip() for line in table] == [
        "== Optimizer ==",
        "Estimated cost: $7.3 / hour",
        "Estimated cost of the service: $14.69 / hour with 2 replicas",
        "",
        "Considered resources (1 node):",
        frame,
        " CLOUD   INSTANCE                   vCPUs   Mem(GB)   ACCELERATORS   REGION/ZONE   COST ($)   CHOSEN   NOTE",
        frame,
        " Azure   Standard_NC48ads_A100_v4   48      440       A100-80GB:2    eastus        7.35          ✔"
        "     +1 pool, not enabled",
        " GCP     g2-standard-96             96      384       L4:8           us-east4-a    7.98"
        "                +1 pool, not enabled",
        " AWS     g6.48xlarge                192     768       L4:8           us-east-1     13.35"
        "               not enabled",
        frame,
        "+N pools: that many more zones, regions and instance types of the cloud would do, at that price or more.",
        "To list them: sky show-gpus A100-80GB:2 --all",
        "warning: Azure cannot be used from here: `sky check azure` says why",
        "Dry run: nothing was changed.",
    ]


def test_leaves_no_trace(sky, prices, home, write):
    sky("serve", "up", write("accelerators: L4:1"), "--dryrun")
    assert [path.name for path in home.iterdir()] == ["catalog"]


def test_spot_is_marked_and_has_a_zone(sky, prices, write):
    path = write("accelerators: L4:8")
    spot, dearer = _rows(sky("serve", "up", path, "--dryrun", "--use-spot", "--infra", "*"))
    assert spot[:8] == ["GCP", "g2-standard-96[Spot]", "96", "384", "L4:8", "us-east4-b", "2.90", "✔"]
    assert dearer[:7] == ["AWS", "g6.48xlarge[Spot]", "192", "768", "L4:8", "us-east-1", "4.00"]


def test_an_ordered_list_stays_in_its_order(sky, prices, write):
    rows = _rows(sky("serve", "up", write("accelerators: [L4:8, A100-80GB:2]"), "--dryrun"))
    assert [(row[0], row[6], "✔" in row) for row in rows] == [
        ("GCP", "7.98", True),
        ("AWS", "13.35", False),
        ("Azure", "7.35", False),
    ]


def test_this_machine_is_a_place_as_well(sky, prices, write):
    first, second = _rows(sky("serve", "up", write("cpus: 1+"), "--dryrun"))
    assert (first[0], first[6:]) == ("Local", ["0.00", "✔"])
    assert second[:2] == ["AWS", "m6i.2xlarge"]


def test_json_has_the_same(sky, prices, write):
    policy = "replica_policy: {min_replicas: 0, max_replicas: 3, target_qps_per_replica: 1, num_overprovision: 1}"
    result = sky("serve", "up", write("accelerators: {L4:1, H100:8}", policy), "--dryrun", "-o", "json")
    cheapest = result.json["candidates"][0]
    assert cheapest == {
        "provider": "gcp",
        "instance_type": "g2-standard-4",
        "infra": "gcp/us-east4/us-east4-a",
        "vcpus": 4.0,
        "memory_gib": 16.0,
        "accelerator": {"name": "L4", "count": 1},
        "price_per_hour": 0.705,
        "capacity_type": "ON_DEMAND",
        "further_pools": 0,
        "enabled": False,
        "chosen": True,
    }
    cost = result.json["cost"]
    assert (cost["min_replicas"], cost["max_replicas"]) == (1, 4)
    assert cost["max_per_hour"] == pytest.approx(2.82)
    assert ["clouds, 1x[H100:8]", "no price of this accelerator"] in [
        [what, why.partition(";")[0]] for what, why in result.json["refusals"]
    ]


@pytest.mark.parametrize(
    ("resources", "line"),
    [
        ("accelerators: L40:1", "  clouds, 1x[L40:1]: no price of this accelerator; did you mean L4?"),
        (
            "accelerators: L4:2",
            "hint: with `accelerators: L4:8` it could run on GCP g2-standard-96 (L4:8) in us-east4,",
        ),
        (
            "{accelerators: L4:1, cpus: 64+}",
            "hint: without `cpus` it could run on GCP g2-standard-4 (L4:1) in us-east4,",
        ),
        (
            "{accelerators: A100-80GB:2, infra: aws}",
            "hint: on any cloud it could run on Azure Standard_NC48ads_A100_v4 (A100-80GB:2) in eastus, $7.35 / hour",
        ),
        (
            "{accelerators: L4:1, max_hourly_cost: 0.5}",
            "hint: with `max_hourly_cost: 0.71` it could run on GCP g2-standard-4 (L4:1) in us-east4, $0.70 / hour",
        ),
    ],
)
def test_nothing_anywhere(sky, prices, tmp_path, resources, line):
    path = tmp_path / "service.yaml"
    resources = resources if resources.startswith("{") else f"{{{resources}}}"
    path.write_text(f"service: {{readiness_probe: /, ports: 8080}}\nresources: {resources}\nrun: x\n")
    result = sky("serve", "up", str(path), "--dryrun")
    assert result.code == 1
    assert "error: neither this machine nor any cloud offers what this service asks for\n" in result.err
    assert any(found.startswith(line) for found in result.err.splitlines()), result.err


def test_a_damaged_catalog_is_named(sky, damaged, write):
    result = sky("serve", "up", write("accelerators: L4:1"), "--dryrun", "-o", "json")
    assert result.code == 1
    assert result.json["error"]["code"] == "CATALOG"
    assert result.json["error"]["hint"].endswith("sky catalog use builtin")


def test_launch_without_a_file(sky, prices):
    result = sky("launch", "--gpus", "L4:1", "--dryrun")
    assert [row[:2] for row in _rows(result)] == [["GCP", "g2-standard-4"], ["AWS", "g6.xlarge"]]
    assert "Estimated cost: $0.70 / hour\n\n" in result.err
    assert "Readiness" not in result.err


@pytest.mark.parametrize("more", ["", "run: nvidia-smi\n", "service:\n  readiness_probe: /\n  ports: 80\nrun: x\n"])
def test_launch_of_a_task(sky, prices, tmp_path, more):
    path = tmp_path / "task.yaml"
    path.write_text(f"resources:\n  accelerators: L4:8\n{more}")
    result = sky("launch", str(path), "--dryrun", "-o", "json")
    assert [row["provider"] for row in result.json["candidates"]] == ["gcp", "aws"]


@pytest.mark.parametrize("content", [b"resources:\n  accelerator: L4\n", b"resources: [\n", b"\xff\xfe"])
def test_launch_of_a_wrong_task(sky, prices, tmp_path, content):
    path = tmp_path / "task.yaml"
    path.write_bytes(content)
    result = sky("launch", str(path), "--dryrun", "-o", "json")
    assert result.code == 2
    assert result.json["error"]["code"] == "SPEC"
    assert result.json["error"]["where"].startswith(str(path))
