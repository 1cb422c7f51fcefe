"""`service.load_balancer.api_keys`: which secrets are keys, and whether a request could carry them. Knows their values,
and never quotes one."""

from __future__ import annotations

import re
from collections.abc import Mapping

from skyserve.spec.document import YamlList, YamlMap, YamlScalar
from skyserve.spec.problems import Place, Problems, nearest, shown

LONG_ENOUGH = 16
"""Characters of a key. The digest of a shorter one could be found by trying."""

_KEY = "`service.load_balancer.api_keys`"
_SENDABLE = re.compile(r"[!-~]+")


def read_api_keys(
    root: YamlMap, envs: Mapping[str, str], secrets: Mapping[str, str], problems: Problems
) -> tuple[tuple[str, ...], list[str]]:
    """The names, each of a secret that a request can carry, and warnings."""
    service = root.map("service")
    balancer = None if service is None else service.map("load_balancer")
    node = None if balancer is None else balancer.node("api_keys")
    if not isinstance(node, YamlList):
        return (), []
    if not node.items:
        problems.add(
            node.place, f"{_KEY} is empty: nobody could ask", "name a secret, or remove it to let everybody in"
        )
    names: list[str] = []
    section = root.map("secrets")
    named = {entry.key for entry in section.entries} if section else set()
    for item in node.items:
        if not isinstance(item, YamlScalar):
            continue
        if item.text in names:
            problems.add(item.place, f"{_KEY} names {shown(item.text)} twice", "keep one")
        if item.text in secrets or item.text not in named:  # what was named without a value is told already
            _check(item.text, item.place, envs, secrets, problems)
        names.append(item.text)
    short = [name for name in names if 0 < len(secrets.get(name, "")) < LONG_ENOUGH]
    return tuple(names), [
        f"the API key {name} has less than {LONG_ENOUGH} characters and could be guessed; "
        "`openssl rand -hex 32` makes a good one"
        for name in short
    ]


def _check(name: str, place: Place, envs: Mapping[str, str], secrets: Mapping[str, str], problems: Problems) -> None:
    if name in envs and name not in secrets:
        message = f"{_KEY} names {shown(name)}, which is in `envs`, where it is stored and shown"
        problems.add(place, message, f"move {name} to `secrets:`")
    elif name not in secrets:
        close = nearest(name, secrets)
        hint = f"did you mean {close}?" if close else f"add {name} under `secrets:`, without a value, and give --secret"
        problems.add(place, f"{_KEY} names {shown(name)}, which is no secret of this service", hint)
    elif not _SENDABLE.fullmatch(secrets[name]):
        message = f"{_KEY}: the value of {shown(name)} is empty, or holds spaces, line breaks or letters beyond ASCII"
        problems.add(place, message, "a header cannot carry it: use letters and digits")
