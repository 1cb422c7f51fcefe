"""`service.rollout` to the model. Takes a tree that passed the check."""

from __future__ import annotations

import math
from itertools import pairwise

from skyserve.model.rollout import Rollout
from skyserve.spec.document import YamlList, YamlMap, YamlNode, YamlScalar
from skyserve.spec.problems import Problems, shown

_DEFAULT = Rollout()


def read_rollout(section: YamlMap, problems: Problems) -> Rollout:
    """How an update takes over, from `service:`."""
    node = section.map("rollout")
    if node is None:
        return _DEFAULT
    rollout = Rollout(
        max_surge=_amount(node, "max_surge", _DEFAULT.max_surge),
        max_unavailable=_amount(node, "max_unavailable", _DEFAULT.max_unavailable),
        canary_steps=_steps(node, problems),
        step_seconds=node.number("step_seconds", _DEFAULT.step_seconds),
        max_error_rate_increase=_part(node, "max_error_rate_increase", _DEFAULT.max_error_rate_increase, problems),
        max_slow_rate_increase=_part(node, "max_slow_rate_increase", _DEFAULT.max_slow_rate_increase, problems),
        false_rollback_rate=_part(node, "false_rollback_rate", _DEFAULT.false_rollback_rate, problems),
        auto_rollback=node.flag("auto_rollback", _DEFAULT.auto_rollback),
        failure_budget=node.integer("failure_budget", _DEFAULT.failure_budget),
    )
    if _is_nothing(rollout.max_surge) and _is_nothing(rollout.max_unavailable):
        message = "`max_surge` and `max_unavailable` are both 0, so no replica could ever be replaced"
        problems.add(node.place_of("max_surge"), message, "leave one of them out")
    return rollout


def _amount(node: YamlMap, key: str, default: int | str) -> int | str:
    """A count, or a percentage as it was written."""
    value = node.node(key)
    if not isinstance(value, YamlScalar):
        return default
    return value.value if isinstance(value.value, int) else value.text


def _is_nothing(amount: int | str) -> bool:
    return amount == 0 if isinstance(amount, int) else float(amount.removesuffix("%")) == 0


def _steps(node: YamlMap, problems: Problems) -> tuple[float, ...]:
    steps = node.node("canary_steps")
    if not isinstance(steps, YamlList):
        return _DEFAULT.canary_steps
    found = tuple(round(_number(item) / 100, 6) for item in steps.items)
    rising = all(earlier < later for earlier, later in pairwise(found))
    if not found or not rising or found[-1] > 1 or found[0] <= 0:
        message = "`canary_steps` are percentages of the requests that grow, up to 100"
        problems.add(node.place_of("canary_steps"), message, "write `[5, 25, 50]`")
        return _DEFAULT.canary_steps
    return found


def _part(node: YamlMap, key: str, default: float, problems: Problems) -> float:
    """`1%` or `0.01`."""
    value = node.node(key)
    if value is None:
        return default
    text = node.text(key) or ""
    part = _number(value) / (100 if text.endswith("%") else 1)
    if 0 <= part < 1 and (part or key != "false_rollback_rate"):
        return part
    problems.add(node.place_of(key), f"`{key}` must lie between 0 and 100 %, not {shown(text)}", "write `1%` or `0.01`")
    return default


def _number(node: YamlNode) -> float:
    try:
        return float(node.text.removesuffix("%")) if isinstance(node, YamlScalar) else math.nan
    except ValueError:
        return math.nan
