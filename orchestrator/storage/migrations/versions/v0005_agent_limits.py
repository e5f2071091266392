"""Limits of agents, the slots that their attempts take, and tasks that are held back."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create what limits an agent over all runs."""
    op.create_table(
        "agent_limits",
        sa.Column("agent_name", sa.Text(), nullable=False),
        sa.Column("max_concurrency", sa.Integer(), nullable=True),
        sa.Column("rate_per_second", sa.Double(), nullable=True),
        sa.Column("tokens", sa.Double(), nullable=False),
        sa.Column("refilled_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("changed_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("counted_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("agent_name"),
    )
    op.create_table(
        "agent_slots",
        sa.Column("task_id", sa.Uuid(), nullable=False),
        sa.Column("agent_name", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("task_id"),
    )
    op.create_index("ix_agent_slots_agent_name", "agent_slots", ["agent_name"])
    op.add_column("outbox", sa.Column("held_at", sa.DateTime(timezone=True), nullable=True))
    op.create_index(
        "ix_outbox_routing_key_held_at",
        "outbox",
        ["routing_key", "held_at"],
        postgresql_where=sa.text("held_at IS NOT NULL"),
    )


def downgrade() -> None:
    """Drop the limits; the tasks that they hold back go out."""
    op.execute("UPDATE outbox SET due_at = now() WHERE held_at IS NOT NULL")
    op.drop_index("ix_outbox_routing_key_held_at", table_name="outbox")
    op.drop_column("outbox", "held_at")
    op.drop_table("agent_slots")
    op.drop_table("agent_limits")
