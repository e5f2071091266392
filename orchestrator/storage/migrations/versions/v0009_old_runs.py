"""Runs that ended long ago are found by an index."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Index the end of runs."""
    op.create_index("ix_runs_finished_at", "runs", ["finished_at"], postgresql_where=sa.text("finished_at IS NOT NULL"))


def downgrade() -> None:
    """Drop the index."""
    op.drop_index("ix_runs_finished_at", "runs")
