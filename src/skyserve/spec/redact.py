"""Keeps values of secrets out of all that is stored and shown. Knows texts and hashing, nothing of services."""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Mapping

from skyserve.spec.document import YamlMap, is_null, read_document
from skyserve.spec.problems import Problems, lines_of

_FINGERPRINT_DIGITS = 16
_SECRETS_LINE = re.compile(r"""\bsecrets["']?\s*:""")
_TOP_LEVEL_LINE = re.compile(r"[^\s#]")


def fingerprints(secrets: Mapping[str, str], key: bytes) -> dict[str, str]:
    """What tells whether a secret changed without telling the secret: the begin of an HMAC under a private key."""
    return {
        name: hmac.new(key, value.encode(), hashlib.sha256).hexdigest()[:_FINGERPRINT_DIGITS]
        for name, value in secrets.items()
    }


def private_lines(text: str) -> frozenset[int]:
    """The lines that may hold secrets, found without reading the YAML: it may be the very thing that is broken."""
    found: set[int] = set()
    private = False
    for number, line in enumerate(lines_of(text)):
        private = bool(_SECRETS_LINE.search(line)) or (private and not _TOP_LEVEL_LINE.match(line))
        if private:
            found.add(number)
    return frozenset(found)


def without_secrets(text: str, root: YamlMap, problems: Problems) -> str:
    """The YAML text with every value under `secrets:` replaced by null, and comments there taken out."""
    entry = root.entry("secrets")
    if entry is None or not isinstance(entry.value, YamlMap):
        return text
    place, names = entry.value.place, [one.key for one in entry.value.entries]
    redacted = text
    if place.start >= entry.place.end:
        redacted = text[: place.start] + _nulls(text, entry.value) + text[place.end :]
    if not _has_nulls(redacted, names):
        message = "anchors, aliases, tags and merge keys cannot be used under `secrets:`"
        problems.add(entry.place, message, "write the values plainly, or leave them empty and use --secret")
    return redacted


def _nulls(text: str, section: YamlMap) -> str:
    place = section.place
    if text[place.start : place.start + 1] == "{":
        return "{" + ", ".join(f"{entry.key}: null" for entry in section.entries) + "}"
    lines = f"\n{' ' * place.column}".join(f"{entry.key}: null" for entry in section.entries)
    rest = text[place.start : place.end]
    return lines + ("\n" if rest != rest.rstrip() else "")


def _has_nulls(text: str, names: list[str]) -> bool:
    """Whether the text can still be read, with the same names and no value under `secrets:`."""
    root = read_document(text, Problems(text, ""))
    entry = None if root is None else next((one for one in root.entries if one.key == "secrets"), None)
    if entry is None or not isinstance(entry.value, YamlMap):
        return False
    return [one.key for one in entry.value.entries] == names and all(is_null(one.value) for one in entry.value.entries)
