"""The variables that setup and run see, the same wherever a replica stands. Knows their names; must not know how a
replica is started, nor what else is in its environment."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

from skyserve.model.offering import Location, Offering
from skyserve.providers.base import LaunchOrder


@dataclass(frozen=True, slots=True)
class Site:
    """Where a replica stands, and what it was given there.

    `port` is the one that it should listen on. `num_gpus` is how many GPUs it sees; `gpus` are their numbers, where it
    shares a machine with others. `node_ip` is the machine's address, None where only the machine itself will know.
    `user` is who launched it, as people know them.
    """

    location: Location
    port: int
    num_gpus: int = 0
    gpus: Sequence[int] | None = None
    node_ip: str | None = None
    user: str = ""


def variables(order: LaunchOrder, site: Site) -> dict[str, str]:
    """What SkyServe sets for setup and run, the user's `envs` included, as they win; without a single secret."""
    replica_id, place = str(order.replica_id), site.location
    cluster = {"cluster_name": f"{order.service_name}-{replica_id}", "cloud": place.cloud}
    ours = {
        "SKYPILOT_SERVE_REPLICA_ID": replica_id,
        "SKYPILOT_TASK_ID": order.token,
        "SKYPILOT_CLUSTER_INFO": json.dumps({**cluster, "region": place.region, "zone": place.zone}),
        "SKYPILOT_USER": site.user,
        "SKYPILOT_NUM_NODES": "1",
        "SKYPILOT_NODE_RANK": "0",
        "SKYPILOT_NUM_GPUS_PER_NODE": str(site.num_gpus),
        "PORT": str(site.port),
        "SKYSERVE_REPLICA_PORT": str(site.port),
        "SKYSERVE_REPLICA_ID": replica_id,
        "SKYSERVE_SERVICE": order.service_name,
        "SKYSERVE_VERSION": str(order.version),
    }
    if site.node_ip is not None:
        ours["SKYPILOT_NODE_IPS"] = site.node_ip
    if site.gpus is not None:
        ours["CUDA_VISIBLE_DEVICES"] = ",".join(str(index) for index in site.gpus)
    return {**ours, **order.envs}


def setup_variables(site: Site) -> dict[str, str]:
    """What setup sees besides."""
    found = {"SKYPILOT_SETUP_NODE_RANK": "0", "SKYPILOT_SETUP_NUM_GPUS_PER_NODE": str(site.num_gpus)}
    return found if site.node_ip is None else {**found, "SKYPILOT_SETUP_NODE_IPS": site.node_ip}


def gpus_of(offering: Offering) -> int:
    """How many GPUs a machine of this offering has; a part of one is one that others see too."""
    return math.ceil(offering.accelerator.count) if offering.accelerator else 0
