"""Branches of more than one step, with a time limit of their own."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Say which place in its branch a step has, and when the branch is overdue."""
    op.add_column("step_executions", sa.Column("ordinal", sa.Integer(), server_default=sa.text("0"), nullable=False))
    op.add_column("step_executions", sa.Column("branch_timeout_seconds", sa.Double(), nullable=True))
    op.add_column("step_executions", sa.Column("branch_due_at", sa.DateTime(timezone=True), nullable=True))


def downgrade() -> None:
    """Drop them; a run with a branch of more than one step cannot go on."""
    op.drop_column("step_executions", "branch_due_at")
    op.drop_column("step_executions", "branch_timeout_seconds")
    op.drop_column("step_executions", "ordinal")
