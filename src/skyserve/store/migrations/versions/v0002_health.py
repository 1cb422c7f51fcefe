"""What all services together know of capacity pools: one row for each place that refused."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the table."""
    op.create_table(
        "health",
        sa.Column("scope", sa.Text(), primary_key=True),
        sa.Column("body", sa.Text(), nullable=False),
    )


def downgrade() -> None:
    """Drop it again: what is known of capacity pools is learnt anew."""
    op.drop_table("health")
