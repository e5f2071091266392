"""Loops: the items that steps of their bodies ask for."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make room for items."""
    op.create_table(
        "loop_items",
        sa.Column("run_id", sa.Uuid(), sa.ForeignKey("runs.id", ondelete="CASCADE"), nullable=False),
        sa.Column("loop_id", sa.Text(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("item", postgresql.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("run_id", "loop_id", "position"),
    )


def downgrade() -> None:
    """Drop them; a run within a loop cannot go on."""
    op.drop_table("loop_items")
