"""How clouds name their zones: enough to tell from a name alone whose zone it is, and of which region. Facts only."""

from __future__ import annotations

import re

_FORMS = (
    ("aws", re.compile(r"(?P<region>[a-z]{2}(-[a-z]+)+-\d+)[a-z]")),
    ("gcp", re.compile(r"(?P<region>[a-z]+-[a-z]+\d+)-[a-z]")),
)


def place_of(zone: str, cloud: str | None = None) -> tuple[str, str] | None:
    """Cloud and region of a zone, as in `us-east-1f` or `us-central1-a`; None where the name does not tell, or is not
    one of `cloud`'s, if that is given."""
    for name, form in _FORMS:
        matched = form.fullmatch(zone)
        if matched and cloud in (None, name):
            return name, matched["region"]
    return None
