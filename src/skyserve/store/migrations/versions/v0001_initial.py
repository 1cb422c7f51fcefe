"""The first schema: services, their versions, replicas and evictions, and the decision log.

A released step is never edited; a change of the schema is a new file here.
"""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the tables in an empty database."""
    op.create_table(
        "services",
        sa.Column("name", sa.Text(), primary_key=True),
        sa.Column("uid", sa.Text(), nullable=False),
        sa.Column("wanted", sa.Boolean(), nullable=False),
        sa.Column("purge", sa.Boolean(), nullable=False),
        sa.Column("port", sa.Integer(), nullable=False),
        sa.Column("latest_version", sa.BigInteger(), nullable=False),
        sa.Column("update_mode", sa.Text(), nullable=False),
        sa.Column("revision", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("next_replica_id", sa.BigInteger(), nullable=False),
        sa.Column("memory", sa.Text(), nullable=False),
        sa.Column("target", sa.BigInteger(), nullable=False),
        sa.Column("note", sa.Text(), nullable=False),
        sa.Column("first_ready_at", sa.Double(), nullable=True),
        sa.Column("lease_holder", sa.Text(), nullable=True),
        sa.Column("lease_fence", sa.BigInteger(), nullable=False),
        sa.Column("lease_expires_at", sa.Double(), nullable=False),
    )
    op.create_table(
        "versions",
        _service(),
        sa.Column("version", sa.BigInteger(), primary_key=True),
        sa.Column("spec", sa.Text(), nullable=False),
        sa.Column("mode", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
    )
    op.create_table(
        "replicas",
        _service(),
        sa.Column("id", sa.BigInteger(), primary_key=True),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
    )
    op.create_table(
        "evictions",
        _service(),
        sa.Column("replica_id", sa.BigInteger(), primary_key=True),
    )
    op.create_table(
        "decisions",
        _service(),
        sa.Column("seq", sa.BigInteger(), primary_key=True),
        sa.Column("at", sa.Double(), nullable=False),
        sa.Column("observation", sa.Text(), nullable=False),
        sa.Column("plan", sa.Text(), nullable=False),
        sa.Column("policy", sa.Text(), nullable=False),
    )


def downgrade() -> None:
    """Drop the tables again, children first."""
    for table in ("decisions", "evictions", "replicas", "versions", "services"):
        op.drop_table(table)


def _service() -> sa.Column[str]:
    return sa.Column("service", sa.Text(), sa.ForeignKey("services.name", ondelete="CASCADE"), primary_key=True)
