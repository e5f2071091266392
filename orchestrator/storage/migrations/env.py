"""Alembic's entry: `orchestrator.storage.schema` hands it an open connection."""

from alembic import context

from orchestrator.storage.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    compare_server_default=True,
)
with context.begin_transaction():
    context.run_migrations()
