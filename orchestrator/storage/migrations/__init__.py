"""Alembic migrations; `orchestrator.storage.schema` runs them."""
