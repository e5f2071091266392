"""Runs that take over what an earlier one has completed."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


READY = "ix_step_executions_ready"


def upgrade() -> None:
    """Say of a run which one it retries; find the first of many ready branches without looking at all of them."""
    op.add_column("runs", sa.Column("retry_of", sa.Uuid(), nullable=True))
    op.create_foreign_key("runs_retry_of_fkey", "runs", "runs", ["retry_of"], ["id"], ondelete="SET NULL")
    op.create_index("ix_runs_retry_of", "runs", ["retry_of"], postgresql_where=sa.text("retry_of IS NOT NULL"))
    op.drop_index(READY, table_name="step_executions")
    _index_ready(["run_id", "parent_step_id", "ready_at", "position"])


def downgrade() -> None:
    """Drop it; the runs stay, and go on."""
    op.drop_index(READY, table_name="step_executions")
    _index_ready(["run_id", "parent_step_id"])
    op.drop_index("ix_runs_retry_of", table_name="runs")
    op.drop_column("runs", "retry_of")


def _index_ready(columns: list[str]) -> None:
    op.create_index(READY, "step_executions", columns, postgresql_where=sa.text("ready_at IS NOT NULL"))
