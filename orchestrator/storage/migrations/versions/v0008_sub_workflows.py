"""Sub-workflows: steps that runs of other workflows carry out, and the runs that do."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Say of a step whose runs carry it out, and of such a run which step it belongs to."""
    op.add_column("runs", sa.Column("parent_run_id", sa.Uuid(), nullable=True))
    op.add_column("runs", sa.Column("parent_step_id", sa.Text(), nullable=True))
    op.add_column("runs", sa.Column("ancestors", postgresql.JSON(), nullable=True))
    op.add_column("step_executions", sa.Column("sub_workflow_id", sa.Text(), nullable=True))
    op.add_column("step_executions", sa.Column("sub_workflow_version", sa.Text(), nullable=True))
    op.create_index(
        "ix_step_executions_sub_workflows",
        "step_executions",
        ["run_id"],
        postgresql_where=sa.text("sub_workflow_id IS NOT NULL"),
    )


def downgrade() -> None:
    """Drop them; a step that waits for another run waits for ever."""
    op.drop_index("ix_step_executions_sub_workflows", table_name="step_executions")
    op.drop_column("step_executions", "sub_workflow_version")
    op.drop_column("step_executions", "sub_workflow_id")
    op.drop_column("runs", "ancestors")
    op.drop_column("runs", "parent_step_id")
    op.drop_column("runs", "parent_run_id")
