"""The schema says which code still works with it, so that versions can run side by side."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the table, with its one row."""
    table = op.create_table("schema_compatibility", sa.Column("oldest_revision", sa.Text(), nullable=False))
    op.bulk_insert(table, [{"oldest_revision": revision}])


def downgrade() -> None:
    """Drop it."""
    op.drop_table("schema_compatibility")
