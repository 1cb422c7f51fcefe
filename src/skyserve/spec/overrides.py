"""What the command line says over the Service YAML: the flags' values, put into the tree before it is checked.

A flag thus passes through the very checks that its key does. Knows which flag means which key, nothing of the values.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from skyserve.spec.document import Entry, YamlList, YamlMap, YamlNode, YamlScalar
from skyserve.spec.problems import Place


@dataclass(frozen=True, slots=True)
class Overrides:
    """Values of command line flags; None means that the flag was not given.

    `gpus` and the other constraints of `resources:` go over every alternative; the word `none` takes one away.
    """

    name: str | None = None
    envs: Mapping[str, str] = field(default_factory=dict)
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)
    workdir: str | None = None
    git_url: str | None = None
    git_ref: str | None = None
    num_nodes: int | None = None
    infra: str | None = None
    cloud: str | None = None
    region: str | None = None
    zone: str | None = None
    cpus: str | None = None
    memory: str | None = None
    gpus: str | None = None
    instance_type: str | None = None
    ports: tuple[str, ...] = ()
    disk_size: int | str | None = None
    disk_tier: str | None = None
    image_id: str | None = None
    use_spot: bool | None = None
    network_tier: str | None = None
    local_disk: str | None = None


_CONSTRAINTS = (
    "infra", "cloud", "region", "zone", "cpus", "memory", "instance_type", "disk_size", "disk_tier", "image_id",
    "use_spot", "network_tier", "local_disk",
)  # fmt: skip
_PLACES = frozenset({"cloud", "region", "zone"})


def overlay(root: YamlMap, overrides: Overrides) -> YamlMap:
    """The tree as if the file had said what the flags say."""
    root = _with_environment(root, "envs", overrides.envs, "--env")
    root = _with_environment(root, "secrets", overrides.secrets, "--secret")
    if overrides.name is not None:
        root = _with(root, "name", _scalar(overrides.name, "--service-name"))
    if overrides.workdir is not None:
        root = _with(root, "workdir", _scalar(overrides.workdir, "--workdir"))
    if overrides.git_url is not None:
        root = _with(root, "workdir", _git(overrides.git_url, overrides.git_ref))
    if overrides.num_nodes is not None:
        root = _with(root, "num_nodes", _scalar(overrides.num_nodes, "--num-nodes"))
    constraints = _constraints(overrides)
    return _with_constraints(root, constraints) if constraints else root


def _git(url: str, ref: str | None) -> YamlMap:
    given = {"url": (url, "--git-url")} | ({"ref": (ref, "--git-ref")} if ref else {})
    entries = tuple(Entry(key, Place(flag=flag), _scalar(value, flag)) for key, (value, flag) in given.items())
    return YamlMap(entries, Place(flag="--git-url"), Place(flag="--git-url"))


def _constraints(overrides: Overrides) -> dict[str, YamlNode | None]:
    """The keys of `resources:` that flags set, with their values; None takes the key away."""
    found: dict[str, YamlNode | None] = {}
    for name in _CONSTRAINTS:
        value: str | int | bool | None = getattr(overrides, name)
        if value is not None:
            found[name] = _constraint(value, f"--{name.replace('_', '-')}")
    if overrides.gpus is not None:
        found["accelerators"] = _constraint(overrides.gpus, "--gpus")
    if overrides.ports:
        place = Place(flag="--ports")
        found["ports"] = YamlList(tuple(_scalar(port, "--ports") for port in overrides.ports), place)
    if "infra" in found:
        found = dict.fromkeys(_PLACES) | found
    return found


def _constraint(value: str | int | bool, flag: str) -> YamlScalar | None:
    return None if isinstance(value, str) and value.lower() == "none" else _scalar(value, flag)


def _with_constraints(root: YamlMap, constraints: Mapping[str, YamlNode | None]) -> YamlMap:
    resources = root.node("resources")
    if resources is None:
        resources = YamlMap((), root.place, root.title)
    if not isinstance(resources, YamlMap):
        return root  # the check will tell
    for name in ("any_of", "ordered"):
        alternatives = resources.node(name)
        if isinstance(alternatives, YamlList):
            items = tuple(_without(item, constraints) for item in alternatives.items)
            resources = _with(resources, name, YamlList(items, alternatives.place))
    resources = _without(resources, constraints)
    for name, node in constraints.items():
        if node is not None and isinstance(resources, YamlMap):
            resources = _with(resources, name, node)
    return _with(root, "resources", resources)


def _with_environment(root: YamlMap, key: str, values: Mapping[str, str], flag: str) -> YamlMap:
    if not values:
        return root
    section = root.node(key)
    if section is None:
        section = YamlMap((), root.place, root.title)
    if not isinstance(section, YamlMap):
        return root  # the check will tell
    for name, value in values.items():
        section = _with(section, name, _scalar(value, f"{flag} {name}"))
    return _with(root, key, section)


def _with(node: YamlMap, key: str, value: YamlNode) -> YamlMap:
    """The map with one key set; the key keeps its place in the file if it has one."""
    before = next((entry for entry in node.entries if entry.key == key), Entry(key, value.place, value))
    others = tuple(entry for entry in node.entries if entry.key != key)
    return replace(node, entries=(*others, replace(before, value=value)))


def _without(node: YamlNode, keys: Mapping[str, YamlNode | None]) -> YamlNode:
    if not isinstance(node, YamlMap):
        return node
    return replace(node, entries=tuple(entry for entry in node.entries if entry.key not in keys))


def _scalar(value: str | int | bool, flag: str) -> YamlScalar:
    return YamlScalar(value, str(value), Place(flag=flag))
