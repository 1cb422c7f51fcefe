"""`resources:` to `ResourceChoice`. Takes a tree that passed the check; knows how its keys depend on each other."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

from skyserve.model.resources import Accelerator, ResourceChoice, Resources
from skyserve.spec import shorthand
from skyserve.spec.document import Entry, YamlList, YamlMap, YamlNode, YamlScalar, plain
from skyserve.spec.problems import Problems, nearest, shown
from skyserve.spec.shorthand import Malformed
from skyserve.spec.substitute import substitute

_T = TypeVar("_T")
_PLACES = ("cloud", "region", "zone")


@dataclass(frozen=True, slots=True)
class ResourcesReader:
    """Reads `resources:` of one file: `envs` fill `$NAME` in image ids, `warnings` takes what is worth a word."""

    problems: Problems
    envs: Mapping[str, str]
    warnings: list[str]

    def choice(self, section: YamlMap) -> ResourceChoice:
        """The alternatives: those of `any_of` or `ordered`, each over the base, times those of `accelerators`."""
        lists = [key for key in ("any_of", "ordered") if section.node(key) is not None]
        if len(lists) == 2:
            self.problems.add(section.place_of("ordered"), "`any_of` and `ordered` exclude each other", "keep one")
        alternatives = [_over(section, item) for key in lists[:1] for item in _maps(section.node(key))]
        if lists and not alternatives:
            self.problems.add(section.place_of(lists[0]), f"`resources.{lists[0]}` has no alternatives")
        found: list[Resources] = []
        ordered = lists[:1] == ["ordered"]
        for merged in alternatives or [section]:
            accelerators = self._accelerators(merged)
            if len(accelerators) > 1 and lists and (ordered or _is_list(merged, "accelerators")):
                hint = "write one accelerator in each alternative"
                message = "several `accelerators` and a list of alternatives leave the order open"
                self.problems.add(merged.place_of("accelerators"), message, hint)
            one = self._resources(merged)
            found += [replace(one, accelerators=accelerator) for accelerator in accelerators]
        self._check_spot(section, found)
        return ResourceChoice(tuple(found), ordered or (not lists and _is_list(section, "accelerators")))

    def _resources(self, section: YamlMap) -> Resources:
        cloud, region, zone = self._place(section)
        tier, network = section.text("disk_tier"), section.text("network_tier")
        cost = section.number("max_hourly_cost", 0)
        return Resources(
            cloud=cloud,
            region=region,
            zone=zone,
            accelerator_args=_texts(section.map("accelerator_args")),
            cpus=self._short(section, "cpus", shorthand.quantity),
            memory=self._short(section, "memory", shorthand.quantity),
            instance_type=section.text("instance_type"),
            use_spot=section.flag("use_spot", False),
            disk_size=self._short(section, "disk_size", shorthand.size_gib),
            disk_tier=tier.lower() if tier else None,
            local_disk=section.text("local_disk"),
            ephemeral_storage=section.text("ephemeral_storage"),
            network_tier=network.lower() if network else None,
            ports=self.ports(section),
            image_id=self._image(section),
            labels=_texts(section.map("labels")),
            max_hourly_cost=cost or None,
            priority=self._priority(section),
            volumes=_volumes(section.node("volumes")),
            autostop=_text_of(section.node("autostop")),
        )

    def ports(self, section: YamlMap) -> tuple[int, ...]:
        """The ports that a section opens, each once, in the order of the file."""
        node = section.node("ports")
        items = node.items if isinstance(node, YamlList) else () if node is None else (node,)
        found: list[int] = []
        for item in items:
            if isinstance(item, YamlScalar):
                found += self._parsed("resources.ports", item, shorthand.ports) or ()
        return tuple(dict.fromkeys(found))

    def _short(self, section: YamlMap, key: str, parse: Callable[[str], _T]) -> _T | None:
        node = section.node(key)
        return self._parsed(f"resources.{key}", node, parse) if isinstance(node, YamlScalar) else None

    def _parsed(self, path: str, node: YamlScalar, parse: Callable[[str], _T]) -> _T | None:
        try:
            return parse(node.text)
        except Malformed as error:
            self.problems.add(node.place, f"`{path}` {error}")
            return None

    def _accelerators(self, section: YamlMap) -> list[Accelerator | None]:
        """What `accelerators` names, one or several; `[None]` where nothing is asked for."""
        node = section.node("accelerators")
        found: list[Accelerator | None] = []
        match node:
            case YamlScalar():
                found.append(self._accelerator(node.text, None, node))
            case YamlList():
                found += [self._accelerator(one.text, None, one) for one in node.items if isinstance(one, YamlScalar)]
            case YamlMap():
                found += [self._counted_accelerator(entry) for entry in node.entries]
        return list(dict.fromkeys(found)) or [None]

    def _counted_accelerator(self, entry: Entry) -> Accelerator | None:
        count = entry.value.value if isinstance(entry.value, YamlScalar) else None
        number = float(count) if isinstance(count, (int, float)) else None
        return self._accelerator(entry.key, number, entry)

    def _accelerator(self, text: str, count: float | None, node: YamlScalar | Entry) -> Accelerator | None:
        try:
            found = shorthand.accelerator(text, count)
        except Malformed as error:
            self.problems.add(node.place, f"`resources.accelerators` {error}")
            return None
        self._warn_unknown("accelerator", found.name, shorthand.KNOWN_ACCELERATORS)
        return found

    def _place(self, section: YamlMap) -> tuple[str | None, str | None, str | None]:
        both = [key for key in _PLACES if section.node(key) is not None]
        if both and section.node("infra") is not None:
            message = f"`resources.{both[0]}` and `resources.infra` both say where"
            self.problems.add(section.place_of(both[0]), message, "keep `infra`")
            return None, None, None
        if section.node("infra") is not None:
            cloud, region, zone = self._short(section, "infra", shorthand.infra) or (None, None, None)
        else:
            cloud, region, zone = (_place_name(section.text(key)) for key in _PLACES)
            cloud = shorthand.cloud(cloud) if cloud else None
        if cloud:
            self._warn_unknown("cloud", cloud, shorthand.KNOWN_CLOUDS)
        return cloud, region, zone

    def _warn_unknown(self, what: str, name: str, known: tuple[str, ...]) -> None:
        if name in known:
            return
        close = nearest(name, known)
        text = f"the {what} {shown(name)} is not one that is known here"
        warning = f"{text}; did you mean {close}?" if close else f"{text}; it is taken as it is written"
        if warning not in self.warnings:
            self.warnings.append(warning)

    def _image(self, section: YamlMap) -> str | None:
        text = section.text("image_id")
        return None if text is None else substitute(text, self.envs)

    def _priority(self, section: YamlMap) -> str | None:
        if section.node("priority") is not None and section.node("priority_class") is not None:
            message = "`resources.priority` and `resources.priority_class` mean the same"
            self.problems.add(section.place_of("priority_class"), message, "keep one")
        return section.text("priority") or section.text("priority_class")

    def _check_spot(self, section: YamlMap, found: list[Resources]) -> None:
        if len({one.use_spot for one in found}) > 1:
            key = "any_of" if section.node("any_of") is not None else "ordered"
            self.problems.add(
                section.place_of(key),
                "the alternatives mix spot and on-demand capacity",
                "set one `use_spot` for all; `dynamic_ondemand_fallback` adds on-demand replicas to spot",
            )


def _over(base: YamlMap, alternative: YamlMap) -> YamlMap:
    """The base with the keys of one alternative put over it; a place in the alternative replaces the base's whole."""
    own = {entry.key for entry in alternative.entries}
    hidden = own | {"any_of", "ordered"}
    if "infra" in own:
        hidden |= set(_PLACES)
    elif own & set(_PLACES):
        hidden |= {"infra"}
    kept = tuple(entry for entry in base.entries if entry.key not in hidden)
    return replace(base, entries=kept + alternative.entries)


def _maps(node: YamlNode | None) -> list[YamlMap]:
    return [item for item in node.items if isinstance(item, YamlMap)] if isinstance(node, YamlList) else []


def _is_list(section: YamlMap, key: str) -> bool:
    node = section.node(key)
    return isinstance(node, YamlList) and len(node.items) > 1


def _place_name(text: str | None) -> str | None:
    return None if text == "*" else text


def _texts(section: YamlMap | None) -> dict[str, str]:
    if section is None:
        return {}
    return {entry.key: entry.value.text for entry in section.given() if isinstance(entry.value, YamlScalar)}


def _text_of(node: YamlNode | None) -> str | None:
    """A setting that is only kept: a single value as written, anything else as JSON."""
    if node is None or isinstance(node, YamlScalar):
        return None if node is None else node.text
    return json.dumps(plain(node))


def _volumes(node: YamlNode | None) -> tuple[str, ...]:
    items = node.items if isinstance(node, YamlList) else ()
    return tuple(text for item in items if (text := _text_of(item)) is not None)
