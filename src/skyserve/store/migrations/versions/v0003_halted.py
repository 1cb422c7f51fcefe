"""Whether the user wants a service's machine stopped."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column; everything that is there goes on."""
    op.add_column("services", sa.Column("halted", sa.Boolean(), nullable=False, server_default=sa.false()))


def downgrade() -> None:
    """Drop it again."""
    with op.batch_alter_table("services") as table:
        table.drop_column("halted")
