"""Who we are to the outside: the id that tells this installation's machines from those of all others in an account.

Knows one file of the installation's home; must not know any infrastructure.
"""

from __future__ import annotations

import contextlib
import os
import uuid

from skyserve.config import Config
from skyserve.errors import StoreUnavailable


def installation(config: Config) -> str:
    """A short id, made once per home: machines with another one are not ours to list, judge or end."""
    path = config.home / "installation"
    try:
        config.home.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not path.exists():
            draft = path.with_name(f"installation.{os.getpid()}.{uuid.uuid4().hex[:8]}")
            descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "w") as file:
                file.write(f"sky-{uuid.uuid4().hex[:12]}\n")
            with contextlib.suppress(FileExistsError):  # another process was first: its id counts
                os.link(draft, path)
            draft.unlink()
        return path.read_text().strip()
    except OSError as error:
        raise StoreUnavailable(f"{path} cannot be used: {error.strerror}") from error
