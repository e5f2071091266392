"""Attempts that are followed by another, more limits of time, and an index to find runs by labels."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the history of attempts; let steps wait for their next one."""
    op.create_table(
        "step_attempts",
        sa.Column("run_id", sa.Uuid(), nullable=False),
        sa.Column("step_id", sa.Text(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("task_id", sa.Uuid(), nullable=True),
        sa.Column("worker_id", sa.Text(), nullable=True),
        sa.Column("error", postgresql.JSON(), nullable=False),
        sa.Column("queued_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("retry_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["run_id", "step_id"], ["step_executions.run_id", "step_executions.step_id"], ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("run_id", "step_id", "attempt"),
    )
    op.add_column("step_executions", sa.Column("ready_at", sa.DateTime(timezone=True), nullable=True))
    op.add_column("step_executions", sa.Column("postponed", sa.Integer(), server_default=sa.text("0"), nullable=False))
    op.add_column("step_executions", sa.Column("branches_ready", sa.Integer(), nullable=True))
    op.add_column("step_executions", sa.Column("queue_timeout_seconds", sa.Double(), nullable=True))
    op.add_column("step_executions", sa.Column("heartbeat_timeout_seconds", sa.Double(), nullable=True))
    op.add_column("runs", sa.Column("due_at", sa.DateTime(timezone=True), nullable=True))
    op.create_index("ix_runs_due_at", "runs", ["due_at"], postgresql_where=sa.text("due_at IS NOT NULL"))
    op.create_index(
        "ix_step_executions_ready",
        "step_executions",
        ["run_id", "parent_step_id"],
        postgresql_where=sa.text("ready_at IS NOT NULL"),
    )
    op.create_index(
        "ix_runs_labels", "runs", ["labels"], postgresql_using="gin", postgresql_ops={"labels": "jsonb_path_ops"}
    )


def downgrade() -> None:
    """Drop the history; steps that wait for another attempt wait for ever."""
    op.drop_index("ix_runs_labels", table_name="runs")
    op.drop_index("ix_step_executions_ready", table_name="step_executions")
    op.drop_index("ix_runs_due_at", table_name="runs")
    op.drop_column("runs", "due_at")
    op.drop_column("step_executions", "heartbeat_timeout_seconds")
    op.drop_column("step_executions", "queue_timeout_seconds")
    op.drop_column("step_executions", "branches_ready")
    op.drop_column("step_executions", "postponed")
    op.drop_column("step_executions", "ready_at")
    op.drop_table("step_attempts")
