"""Runs that take over what an earlier one has completed."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Say of a run which one it retries; those that retry a run are found by that."""
    op.add_column("runs", sa.Column("retry_of", sa.Uuid(), nullable=True))
    op.create_foreign_key("runs_retry_of_fkey", "runs", "runs", ["retry_of"], ["id"], ondelete="SET NULL")
    op.create_index("ix_runs_retry_of", "runs", ["retry_of"], postgresql_where=sa.text("retry_of IS NOT NULL"))


def downgrade() -> None:
    """Drop it; the runs stay, and go on."""
    op.drop_index("ix_runs_retry_of", table_name="runs")
    op.drop_column("runs", "retry_of")
