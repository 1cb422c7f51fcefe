"""The names under which policies are compared."""

from __future__ import annotations

from dataclasses import replace

import pytest

from skyserve.errors import UsageError
from skyserve.model.resources import ResourceChoice, Resources
from skyserve.model.service import SPOT_PLACERS, ReplicaPolicy, ServiceSpec
from skyserve.sim.compare import NAMES, contenders, name_of

POLICY = ReplicaPolicy(2, 5, num_overprovision=2, base_ondemand_fallback_replicas=1)
SPEC = ServiceSpec("web", "x", replica_policy=POLICY)
SPOT = replace(SPEC, resources=ResourceChoice((Resources(use_spot=True),)))


def test_every_placer_has_a_name():
    specs = contenders(",".join(NAMES), SPOT)
    assert {spec.replica_policy.placer for spec in specs.values()} == set(SPOT_PLACERS)


@pytest.mark.parametrize(
    ("name", "placer", "falls_back", "extras"),
    [
        ("ours", "risk_aware", True, 0),
        ("spothedge", "dynamic_fallback", True, 0),
        ("SpotHedge+2", "dynamic_fallback", True, 2),
        ("round_robin+1", "round_robin", False, 1),
        ("even-spread", "even_spread", False, 0),
        ("on-demand", "on_demand", True, 0),
    ],
)
def test_a_name_stands_for_a_policy_on_spot(name, placer, falls_back, extras):
    [spec] = contenders(name, SPEC).values()
    policy = spec.replica_policy
    assert spec.on_spot
    assert (policy.placer, policy.falls_back, policy.num_overprovision) == (placer, falls_back, extras)
    assert (policy.min_replicas, policy.max_replicas, policy.base_ondemand_fallback_replicas) == (2, 5, 0)


def test_the_yaml_is_a_contender_as_it_is():
    specs = contenders("yaml, yaml+0", SPOT)
    assert specs["yaml"] == SPOT
    assert specs["yaml+0"].replica_policy.num_overprovision == 0


def test_without_names_the_service_is_alone_under_its_own():
    assert contenders(None, SPOT) == {"ours+2": SPOT}
    assert list(contenders(None, SPEC)) == ["on-demand+2"]
    policy = replace(POLICY, spot_placer="dynamic_fallback", dynamic_ondemand_fallback=False, num_overprovision=0)
    assert name_of(replace(SPOT, replica_policy=policy)) == "dynamic_fallback"
    policy = replace(policy, dynamic_ondemand_fallback=True)
    assert name_of(replace(SPOT, replica_policy=policy)) == "spothedge"


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("spothegde+1", "no policy is called 'spothegde+1'; did you mean 'spothedge'?"),
        ("ours,magic", "no policy is called 'magic'"),
        ("ours+", "no policy is called 'ours+'; did you mean 'ours'?"),
        (" , ", "no policy is named"),
    ],
)
def test_other_names_are_refused(asked, message):
    with pytest.raises(UsageError) as caught:
        contenders(asked, SPOT)
    assert caught.value.message == message
    assert "spothedge" in (caught.value.hint or "")
