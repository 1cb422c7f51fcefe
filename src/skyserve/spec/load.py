"""Service YAML to `ServiceSpec`: the one way in. Reads the file it is given and nothing else; starts nothing."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from skyserve.errors import SpecError
from skyserve.model.resources import ResourceChoice, Resources
from skyserve.model.service import ServiceSpec
from skyserve.model.source import GitSource
from skyserve.spec import shorthand
from skyserve.spec.check import check, without_effect
from skyserve.spec.document import YamlMap, YamlScalar, check_characters, read_document
from skyserve.spec.fields import SERVICE_NAME, SERVICE_NAME_FORM, SERVICE_YAML
from skyserve.spec.overrides import Overrides, overlay
from skyserve.spec.problems import Place, Problems, shown
from skyserve.spec.redact import fingerprints, private_lines, without_secrets
from skyserve.spec.resources_section import ResourcesReader
from skyserve.spec.rollout_section import read_rollout
from skyserve.spec.service_section import ServiceReader
from skyserve.spec.shorthand import Malformed, ports
from skyserve.spec.substitute import substitute

_MOST_BYTES = 1 << 20
_LONG_ENOUGH_TO_FIND = 6  # shorter secrets stand in a file by chance


@dataclass(frozen=True, slots=True)
class LoadedService:
    """A Service YAML that was understood.

    `spec` holds fingerprints of the secrets, `secrets` their values; `warnings` are sentences for the user.
    """

    spec: ServiceSpec
    secrets: Mapping[str, str] = field(repr=False)
    warnings: tuple[str, ...] = ()


def load_service(
    source: Path | str,
    *,
    fingerprint_key: bytes,
    overrides: Overrides | None = None,
    name_suffix: str | None = None,
    label: str = "service.yaml",
) -> LoadedService:
    """Read a Service YAML from a file (`Path`) or from its text (`str`).

    Where neither `overrides` nor the YAML gives a name it is `sky-service`, with `name_suffix` (four hex digits) if
    given; `label` stands for the path in messages about a text. Raises SpecError for the first problem; its hint lists
    the others.
    """
    text, label = (_read(source), str(source)) if isinstance(source, Path) else (source, label)
    text = text.removeprefix("\ufeff")
    problems = Problems(text, label)
    problems.hide(private_lines(text))
    written = read_document(text, problems)
    problems.raise_if_any()
    if written is None:
        raise SpecError("the Service YAML cannot be read", where=label)
    root = overlay(written, overrides or Overrides())
    check_characters(root, problems)
    check(SERVICE_YAML, root, "", problems)
    problems.raise_if_any()
    reader = _Reader(root, problems)
    spec, secrets = reader.spec(name_suffix, fingerprint_key)
    redacted = without_secrets(text, written, problems)
    problems.raise_if_any()
    return LoadedService(replace(spec, source=redacted), secrets, (*reader.warnings, *_leaks(secrets, redacted)))


def _read(path: Path) -> str:
    try:
        if path.is_dir():
            raise SpecError(f"{path} is a directory", hint="give the path of a Service YAML", where=str(path))
        with path.open("rb") as file:
            content = file.read(_MOST_BYTES + 1)
    except FileNotFoundError:
        raise SpecError(f"there is no file {path}", hint="check the path", where=str(path)) from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise SpecError(f"{path} cannot be read: {reason}", where=str(path)) from error
    if len(content) > _MOST_BYTES:
        raise SpecError(f"{path} is larger than 1 MiB", hint="is it a Service YAML?", where=str(path))
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        message = f"{path} is not UTF-8 text: byte {error.start} cannot be read"
        raise SpecError(message, hint="save it as UTF-8", where=str(path)) from None


def _leaks(secrets: Mapping[str, str], redacted: str) -> list[str]:
    return [
        f"the value of the secret {name} also stands outside of `secrets:`, where it is stored and shown"
        for name, value in secrets.items()
        if len(value) >= _LONG_ENOUGH_TO_FIND and value in redacted
    ]


@dataclass(frozen=True, slots=True)
class _Reader:
    """Builds the spec from a tree that passed the check, noting what does not fit together."""

    root: YamlMap
    problems: Problems
    warnings: list[str] = field(default_factory=list)

    def spec(self, name_suffix: str | None, fingerprint_key: bytes) -> tuple[ServiceSpec, Mapping[str, str]]:
        """The spec without its source, and the values of the secrets."""
        root = self.root
        section = root.map("service") or YamlMap((), root.place, root.title)
        service = ServiceReader(section, self.problems)
        envs, secrets = self._environment("envs", "--env"), self._environment("secrets", "--secret")
        self._check_twice(envs, secrets)
        self._warn_unused()
        resources = self._resources(envs)
        service.check_spot(all(one.use_spot for one in resources.alternatives))
        spec = ServiceSpec(
            name=self._name(name_suffix),
            run=root.text("run") or "",
            setup=root.text("setup"),
            readiness_probe=service.readiness_probe(),
            replica_policy=service.replica_policy(),
            load_balancing_policy=service.load_balancing_policy(),
            load_balancer=service.load_balancer(),
            rollout=read_rollout(section, self.problems),
            tls=service.tls(),
            replica_tls=service.replica_tls(),
            port=self._port(section, resources.alternatives),
            resources=resources,
            envs=envs,
            secrets=fingerprints(secrets, fingerprint_key),
            workdir=self._workdir(envs),
            file_mounts=self._file_mounts(envs),
            num_nodes=root.integer("num_nodes", 1),
        )
        return spec, secrets

    def _name(self, suffix: str | None) -> str:
        given = self.root.text("name")
        name = given or "-".join(part for part in ("sky-service", suffix) if part)
        if not given and not re.fullmatch(SERVICE_NAME, name):
            self.problems.add(self.root.title, f"the name must be {SERVICE_NAME_FORM}, not {shown(name)}")
        return name

    def _environment(self, key: str, flag: str) -> dict[str, str]:
        section = self.root.map(key)
        values: dict[str, str] = {}
        for entry in () if section is None else section.entries:
            if isinstance(entry.value, YamlScalar) and entry.value.value is not None:
                node = entry.value
                values[entry.key] = node.text.lower() if isinstance(node.value, bool) else node.text
            else:
                hint = f"write one, or give {flag} {entry.key}=VALUE"
                self.problems.add(entry.place, f"`{key}.{entry.key}` has no value", hint)
        return values

    def _check_twice(self, envs: Mapping[str, str], secrets: Mapping[str, str]) -> None:
        section = self.root.map("secrets")
        for name in envs.keys() & secrets.keys():
            place = Place() if section is None else section.place_of(name)
            self.problems.add(place, f"{name} is both in `envs` and in `secrets`", "keep the secret")

    def _warn_unused(self) -> None:
        unused = dict.fromkeys(without_effect(SERVICE_YAML, self.root))
        if unused:
            self.warnings.append(f"accepted, but not acted on yet: {', '.join(f'`{key}`' for key in unused)}")
        for key in ("config", "experimental"):
            if self.root.node(key) is not None:
                self.warnings.append(f"`{key}` is accepted and not used")

    def _resources(self, envs: Mapping[str, str]) -> ResourceChoice:
        section = self.root.map("resources") or YamlMap((), self.root.place, self.root.title)
        choice = ResourcesReader(self.problems, envs, self.warnings).choice(section)
        volumes = self.root.map("volumes")
        if volumes is None:
            return choice
        named = tuple(f"{volumes.text(entry.key)}:{entry.key}" for entry in volumes.given())
        return replace(
            choice, alternatives=tuple(replace(one, volumes=(*one.volumes, *named)) for one in choice.alternatives)
        )

    def _port(self, service: YamlMap, alternatives: tuple[Resources, ...]) -> int:
        """The port that serves: the one of `service.ports`, or the only one that the alternatives open."""
        opened = [one.ports for one in alternatives]
        text = service.text("ports")
        return self._only_port(opened) if text is None else self._chosen_port(text, service.place_of("ports"), opened)

    def _chosen_port(self, text: str, place: Place, opened: list[tuple[int, ...]]) -> int:
        try:
            chosen, *others = ports(text)
        except Malformed as error:
            self.problems.add(place, f"`service.ports` {error}")
            return 0
        if others:
            self.problems.add(place, f"`service.ports` must be one port, not {shown(text)}")
        elif any(one and chosen not in one for one in opened):
            message = f"`service.ports` is {chosen}, which `resources.ports` does not open"
            self.problems.add(place, message, "add it there")
        return chosen

    def _only_port(self, opened: list[tuple[int, ...]]) -> int:
        resources = self.root.map("resources")
        place = self.root.title if resources is None else resources.place_of("ports")
        first = opened[0]
        if any(one != first for one in opened):
            self.problems.add(place, "`resources.ports` differs between alternatives", "give all of them the same port")
        elif len(first) > 1:
            message = f"`resources.ports` opens {len(first)} ports, and nothing says which one serves"
            self.problems.add(place, message, f"add `ports: {first[0]}` under `service:`, or another of them")
        elif not first:
            message = "no port is given: replicas must listen on one"
            self.problems.add(place, message, "add `ports: 8080` under `resources:`, with the port of your server")
        return first[0] if first else 0

    def _workdir(self, envs: Mapping[str, str]) -> str | None:
        place = self.root.place_of("workdir")
        section = self.root.map("workdir")
        if section is not None:
            url, ref = section.text("url") or "", section.text("ref")
            return self._source("workdir", str(GitSource(substitute(url, envs), ref and substitute(ref, envs))), place)
        text = self.root.text("workdir")
        return None if text is None else self._source("workdir", substitute(text, envs), place)

    def _file_mounts(self, envs: Mapping[str, str]) -> dict[str, str]:
        section = self.root.map("file_mounts")
        mounts: dict[str, str] = {}
        for entry in () if section is None else section.given():
            if isinstance(entry.value, YamlScalar):
                source = substitute(entry.value.text, envs)
                mounts[substitute(entry.key, envs)] = self._source("file_mounts", source, entry.value.place)
        return mounts

    def _source(self, key: str, text: str, place: Place) -> str:
        """A path as it is, a repository in its one form; anything else from elsewhere is a problem."""
        source = shorthand.git(text)
        if source is not None:
            if shorthand.holds_password(source.url):
                message = f"`{key}`: the URL of the repository holds a password"
                self.problems.add(place, message, "let git find it: a credential helper, or an SSH key")
            return str(source)
        if "://" in text:
            message = f"`{key}` from such a URL is not supported: {shown(text)}"
            hint = "fetch it in `setup:`, give a local path, or the URL of a git repository that ends in .git"
            self.problems.add(place, message, hint)
        return text
