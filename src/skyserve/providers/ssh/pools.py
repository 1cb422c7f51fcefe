"""Reads `ssh_node_pools.yaml`: which machines there are, by pool, and how to log in. Knows the file's keys and says
what is wrong with its place; must not know what the machines are used for.

    my-pool:
      hosts:
        - gpu-1                     # a name from ~/.ssh/config, an address, or user@address
        - ip: 10.0.0.2              # or with settings of its own
          user: ubuntu
          identity_file: ~/.ssh/id_rsa
      user: ubuntu                  # for every host of the pool that says nothing else
      identity_file: ~/.ssh/id_rsa
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from skyserve.errors import SpecError

_POOL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_DESTINATION = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:@%-]{0,254}")
_USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@-]{0,63}")
_DEFAULTS = ("user", "identity_file", "password")
_ADDRESSES = ("ip", "hostname")
_NO_PASSWORDS = "put a key on the host (`ssh-copy-id`) and remove the line; the user need not be root, nor use sudo"


@dataclass(frozen=True, slots=True)
class PoolHost:
    """One machine: `name` is what ssh is told, and what people call it. What is None is left to ssh's own settings."""

    pool: str
    name: str
    user: str | None = None
    identity_file: Path | None = None


Pools = Mapping[str, tuple[PoolHost, ...]]


def read(path: Path, home: Path) -> Pools:
    """The pools in the order of the file; `~` is `home`. Raises SpecError with the place of what is wrong."""
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"{path} cannot be read: {error}") from error
    return _Reader(path, text, home).pools()


class _Reader:
    def __init__(self, path: Path, text: str, home: Path) -> None:
        self._path = path
        self._lines = text.splitlines()
        self._text = text
        self._home = home

    def pools(self) -> Pools:
        found: dict[str, tuple[PoolHost, ...]] = {}
        owners: dict[tuple[str, str | None], str] = {}
        for key, node in self._entries(self._root(), "pools"):
            name = self._name(key)
            found[name] = tuple(self._hosts(name, key, node))
            for host in found[name]:
                owner = owners.setdefault((host.name, host.user), name)
                if owner != name or found[name].count(host) > 1:
                    raise self._wrong(key, f"host {host.name} is listed twice: in {owner} and in {name}")
        return found

    def _root(self) -> Node:
        try:
            root: Node | None = YAML(typ="safe", pure=True).compose(self._text)
        except MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            line, column = (mark.line, mark.column) if mark else (0, 0)
            raise self._error(f"not YAML: {error.problem}", line, column) from error
        except YAMLError as error:
            raise self._error(f"not YAML: {error}", 0, 0) from error
        if root is None:
            raise self._error("there are no pools in it", 0, 0, hint="see `sky ssh up --help` for an example")
        return root

    def _hosts(self, pool: str, key: Node, node: Node) -> Iterator[PoolHost]:
        settings = dict(self._settings(node, f"pool {pool}", ("hosts", *_DEFAULTS)))
        hosts = settings.get("hosts")
        if not isinstance(hosts, SequenceNode) or not hosts.value:
            raise self._wrong(hosts or key, f"pool {pool} needs a list of hosts", hint="hosts: [HOST, ...]")
        defaults = {name: value for name, value in settings.items() if name in _DEFAULTS}
        for item in hosts.value:
            yield self._host(pool, item, defaults)

    def _host(self, pool: str, item: Node, defaults: Mapping[str, Node]) -> PoolHost:
        if isinstance(item, ScalarNode):
            own: dict[str, Node] = {}
            address: Node = item
        else:
            own = dict(self._settings(item, "a host", (*_ADDRESSES, *_DEFAULTS)))
            named = [own[name] for name in _ADDRESSES if name in own]
            if len(named) != 1:
                raise self._wrong(item, "a host needs either `ip` or `hostname`")
            address = named[0]
        settings = {**defaults, **own}
        return PoolHost(
            pool=pool,
            name=self._matching(address, _DESTINATION, "the name or address of a host"),
            user=self._matching(settings["user"], _USER, "a user name") if "user" in settings else None,
            identity_file=self._key_file(settings["identity_file"]) if "identity_file" in settings else None,
        )

    def _key_file(self, node: Node) -> Path:
        written = self._scalar(node, "the path of a private key")
        path = self._home / written[2:] if written.startswith("~/") else self._path.parent / written
        if not path.is_file():
            raise self._wrong(node, f"there is no file {path}", hint="identity_file is the private key, not the .pub")
        return path

    def _settings(self, node: Node, what: str, known: tuple[str, ...]) -> Iterator[tuple[str, Node]]:
        for key, value in self._entries(node, what):
            name = self._scalar(key, "a key")
            if name == "password":
                raise self._wrong(key, "passwords are not kept in files: only keys let us in", hint=_NO_PASSWORDS)
            if name not in known:
                shown = ", ".join(word for word in known if word != "password")
                raise self._wrong(
                    key,
                    f"{what} has no setting {name!r}; it has {shown}",
                    hint="ports, jump hosts and all else belong into ~/.ssh/config, under a Host of that name",
                )
            yield name, value

    def _entries(self, node: Node, what: str) -> Iterator[tuple[Node, Node]]:
        if not isinstance(node, MappingNode):
            raise self._wrong(node, f"{what} must be a map")
        seen: set[str] = set()
        for key, value in node.value:
            name = self._scalar(key, "a key")
            if name in seen:
                raise self._wrong(key, f"{name} is there twice")
            seen.add(name)
            yield key, value

    def _name(self, key: Node) -> str:
        return self._matching(key, _POOL_NAME, "the name of a pool (letters, digits, . _ -)")

    def _matching(self, node: Node, form: re.Pattern[str], what: str) -> str:
        text = self._scalar(node, what)
        if not form.fullmatch(text):
            raise self._wrong(node, f"{text[:40]!r} is not {what}")
        return text

    def _scalar(self, node: Node, what: str) -> str:
        if not isinstance(node, ScalarNode) or not str(node.value).strip():
            raise self._wrong(node, f"this should be {what}")
        return str(node.value)

    def _wrong(self, node: Node, message: str, *, hint: str | None = None) -> SpecError:
        return self._error(message, node.start_mark.line, node.start_mark.column, hint=hint)

    def _error(self, message: str, line: int, column: int, *, hint: str | None = None) -> SpecError:
        written = self._lines[line] if line < len(self._lines) else ""
        secret = "password" in written
        excerpt = "" if secret or not written.strip() else f"{written}\n{' ' * column}^"
        return SpecError(message, hint=hint, where=f"{self._path}:{line + 1}:{column + 1}", excerpt=excerpt)
