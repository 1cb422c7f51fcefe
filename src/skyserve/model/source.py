"""Where files of a service come from when not from the user's machine: a git repository, by its URL and a reference.

In a spec it is one text, `git+URL` or `git+URL#REF`, wherever a local path may stand.
"""

from __future__ import annotations

from dataclasses import dataclass

_PREFIX = "git+"


@dataclass(frozen=True, slots=True)
class GitSource:
    """A repository, and the branch, tag or commit to take (None: what the repository calls its default)."""

    url: str
    ref: str | None = None

    def __str__(self) -> str:
        return f"{_PREFIX}{self.url}#{self.ref}" if self.ref else f"{_PREFIX}{self.url}"


def git_source(text: str) -> GitSource | None:
    """The repository that a spec's text names, or None when it is a path."""
    if not text.startswith(_PREFIX):
        return None
    url, _, ref = text.removeprefix(_PREFIX).partition("#")
    return GitSource(url, ref or None)
