"""Brings a database to the schema that this SkyServe was written for. The steps lie in `versions/` (Alembic).

It knows revisions, not rows: what the tables mean is told by `store.sql`. Steps run on the caller's connection, inside
the caller's transaction, so a failed step leaves nothing behind.
"""

from __future__ import annotations

import logging
from importlib.resources import as_file, files

import sqlalchemy as sa

from skyserve.errors import StoreUnavailable

HEAD = "0003"
"""The newest revision in `versions/`."""

_VERSION = sa.table("alembic_version", sa.column("version_num"))


def upgrade(connection: sa.Connection) -> None:
    """Run the missing steps. Raises StoreUnavailable when a newer SkyServe has been here."""
    current = revision(connection)
    if current == HEAD:
        return
    if current is not None and current > HEAD:
        raise StoreUnavailable(
            f"The database has schema {current}, but this SkyServe knows schemas up to {HEAD} only.",
            hint="A newer SkyServe has upgraded it: install that version again, or set SKYSERVE_HOME to another place.",
        )
    _run_steps(connection)


def revision(connection: sa.Connection) -> str | None:
    """The schema that the database has now; None when it is empty."""
    if not sa.inspect(connection).has_table(_VERSION.name):
        return None
    found: str | None = connection.execute(sa.select(_VERSION.c.version_num)).scalar()
    return found


def _run_steps(connection: sa.Connection) -> None:
    # Imported here because a start that finds nothing to do, the usual one, should not pay for it.
    from alembic import command
    from alembic.config import Config

    logging.getLogger("alembic").setLevel(logging.WARNING)
    with as_file(files(__name__)) as scripts:
        config = Config()
        config.set_main_option("script_location", str(scripts).replace("%", "%%"))
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
