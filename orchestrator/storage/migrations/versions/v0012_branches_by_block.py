"""The index on branches begins with their block, so that it cannot pass for a way to a single step."""

from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

_OLD = "ix_step_executions_run_id_parent_step_id_position"
_NEW = "ix_step_executions_branches"


def upgrade() -> None:
    """Build the new index and drop the old one."""
    op.create_index(_NEW, "step_executions", ["parent_step_id", "run_id", "position"], if_not_exists=True)
    op.drop_index(_OLD, "step_executions")


def downgrade() -> None:
    """Build the old index and drop the new one."""
    op.create_index(_OLD, "step_executions", ["run_id", "parent_step_id", "position"])
    op.drop_index(_NEW, "step_executions")
