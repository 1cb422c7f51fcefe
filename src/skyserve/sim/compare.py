"""The names under which placement policies are compared, and the spec that a service has under each of them. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from difflib import get_close_matches

from skyserve.errors import UsageError
from skyserve.model.service import ReplicaPolicy, ServiceSpec

AS_GIVEN = "yaml"
"""The service as its YAML has it."""

_POLICIES: Mapping[str, tuple[str, bool | None]] = {
    "ours": ("risk_aware", None),
    "spothedge": ("dynamic_fallback", True),
    "round-robin": ("round_robin", False),
    "even-spread": ("even_spread", False),
    "on-demand": ("on_demand", None),
}
"""Name -> `spot_placer` and `dynamic_ondemand_fallback`."""

NAMES = (*_POLICIES, AS_GIVEN)
_FORM = re.compile(r"([a-z_-]+?)(?:\+(\d{1,3}))?")


def contenders(asked: str | None, spec: ServiceSpec) -> dict[str, ServiceSpec]:
    """The spec under each of the names in a list such as `spothedge+1,ours`; under its own when nothing is asked.

    A number behind a name is `num_overprovision`. Raises UsageError for a name that is none.
    """
    if asked is None:
        return {name_of(spec): spec}
    names = [name.strip().lower() for name in asked.split(",") if name.strip()]
    if not names:
        raise UsageError("no policy is named", hint=f"one or several of: {', '.join(NAMES)}")
    return {name: _under(name, spec) for name in names}


def name_of(spec: ServiceSpec) -> str:
    """What the policy of a service is called here."""
    policy = spec.replica_policy
    if not spec.on_spot:
        return _with_extras("on-demand", policy.num_overprovision)
    for name, (placer, falls_back) in _POLICIES.items():
        if policy.placer == placer and falls_back in (None, policy.falls_back):
            return _with_extras(name, policy.num_overprovision)
    return _with_extras(policy.placer, policy.num_overprovision)


def _with_extras(name: str, extras: int) -> str:
    return f"{name}+{extras}" if extras else name


def _under(asked: str, spec: ServiceSpec) -> ServiceSpec:
    matched = _FORM.fullmatch(asked)
    name = matched[1].replace("_", "-") if matched else asked
    if matched is None or name not in NAMES:
        near = get_close_matches(name, NAMES, n=1)
        guess = f"; did you mean '{near[0]}'?" if near else ""
        hint = f"the policies are {', '.join(NAMES)}; +1 behind a name adds a replica for good measure"
        raise UsageError(f"no policy is called '{asked}'{guess}", hint=hint)
    extras = None if matched[2] is None else int(matched[2])
    if name == AS_GIVEN:
        policy = spec.replica_policy
        return replace(spec, replica_policy=policy if extras is None else replace(policy, num_overprovision=extras))
    placer, falls_back = _POLICIES[name]
    return _on_spot(spec, placer, falls_back, extras or 0)


def _on_spot(spec: ServiceSpec, placer: str, falls_back: bool | None, extras: int) -> ServiceSpec:
    policy: ReplicaPolicy = replace(
        spec.replica_policy,
        spot_placer=placer,
        dynamic_ondemand_fallback=falls_back,
        num_overprovision=extras,
        base_ondemand_fallback_replicas=0,
    )
    alternatives = tuple(replace(one, use_spot=True) for one in spec.resources.alternatives)
    return replace(spec, replica_policy=policy, resources=replace(spec.resources, alternatives=alternatives))
