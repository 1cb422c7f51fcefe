"""The variables that setup and run see."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from skyserve.model.offering import CapacityType, Location, Offering
from skyserve.model.resources import Accelerator
from skyserve.providers.base import LaunchOrder
from skyserve.providers.environment import Site, gpus_of, setup_variables, variables

PLACE = Location("paper", "here", "here-a")
OFFERING = Offering("paper", "p1", PLACE, CapacityType.SPOT, Accelerator("L4", 2), 8, 32, 0.1)
ORDER = LaunchOrder("chat-u1", "chat", 7, 3, "t7", "v3", OFFERING, "serve", None, 8080)
SITE = Site(PLACE, 8080, num_gpus=2, user="ada")


def test_a_replica_learns_who_and_where_it_is() -> None:
    found = variables(ORDER, SITE)
    cluster = json.loads(found.pop("SKYPILOT_CLUSTER_INFO"))
    assert cluster == {"cluster_name": "chat-7", "cloud": "paper", "region": "here", "zone": "here-a"}
    assert found == {
        "SKYPILOT_SERVE_REPLICA_ID": "7",
        "SKYPILOT_TASK_ID": "t7",
        "SKYPILOT_USER": "ada",
        "SKYPILOT_NUM_NODES": "1",
        "SKYPILOT_NODE_RANK": "0",
        "SKYPILOT_NUM_GPUS_PER_NODE": "2",
        "PORT": "8080",
        "SKYSERVE_REPLICA_PORT": "8080",
        "SKYSERVE_REPLICA_ID": "7",
        "SKYSERVE_SERVICE": "chat",
        "SKYSERVE_VERSION": "3",
    }
    assert setup_variables(SITE) == {"SKYPILOT_SETUP_NODE_RANK": "0", "SKYPILOT_SETUP_NUM_GPUS_PER_NODE": "2"}


def test_addresses_and_shared_gpus_are_told_where_they_are_known() -> None:
    site = replace(SITE, node_ip="10.0.0.7", gpus=(0, 3))
    found = variables(ORDER, site)
    assert (found["SKYPILOT_NODE_IPS"], found["CUDA_VISIBLE_DEVICES"]) == ("10.0.0.7", "0,3")
    assert setup_variables(site)["SKYPILOT_SETUP_NODE_IPS"] == "10.0.0.7"
    assert variables(ORDER, replace(SITE, gpus=()))["CUDA_VISIBLE_DEVICES"] == ""


def test_the_users_variables_win_and_secrets_are_not_among_them() -> None:
    found = variables(replace(ORDER, envs={"PORT": "99", "MODEL": "m"}, secrets={"KEY": "hush"}), SITE)
    assert (found["PORT"], found["MODEL"]) == ("99", "m")
    assert "KEY" not in found


@pytest.mark.parametrize(("count", "expected"), [(8, 8), (0.5, 1), (None, 0)])
def test_a_part_of_a_gpu_is_one_gpu(count: float | None, expected: int) -> None:
    accelerator = None if count is None else Accelerator("L4", count)
    assert gpus_of(replace(OFFERING, accelerator=accelerator)) == expected
