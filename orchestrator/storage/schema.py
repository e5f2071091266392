"""The schema's version: migrate it, or say how it differs from what this code needs."""

from functools import cache
from pathlib import Path
from typing import Final

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text
from sqlalchemy.ext.asyncio import AsyncEngine

from orchestrator.errors import SchemaMismatch
from orchestrator.storage.database import Database

# Two `migrate` commands at once take turns; the number is ours alone by convention.
_MIGRATION_LOCK: Final = 7_461_230_915


async def migrate(engine: AsyncEngine) -> tuple[str | None, str]:
    """Bring the schema to this code's version; return the revisions (before, after).

    Raises:
        SchemaMismatch: The schema is newer than this code.
    """
    async with engine.begin() as connection:
        return await connection.run_sync(_upgrade)


async def check_schema(engine: AsyncEngine) -> None:
    """Make sure that the schema is the one this code was written for.

    Raises:
        SchemaMismatch: It is missing, older or newer; the message says which and what to do.
    """
    async with engine.connect() as connection:
        found = await connection.run_sync(_current)
    if (difference := _difference(found)) is not None:
        raise SchemaMismatch(difference)


async def schema_difference(database: Database) -> str | None:
    """Return how the schema differs from what this code needs, as `check_schema` says it; None where it does not.

    It looks by way of the pool, for whoever asks often.
    """
    async with database.connection() as connection:
        exists = await connection.fetchval("SELECT to_regclass('alembic_version') IS NOT NULL")
        found = await connection.fetchval("SELECT version_num FROM alembic_version") if exists else None
    return _difference(found)


@cache
def head() -> str:
    """Return the revision that this code needs."""
    revision = ScriptDirectory.from_config(_config()).get_current_head()
    assert revision is not None, "the package ships its migrations"
    return revision


def _upgrade(connection: Connection) -> tuple[str | None, str]:
    connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _MIGRATION_LOCK})
    before = _current(connection)
    if before is not None and before not in _known():
        raise SchemaMismatch(_difference(before))
    config = _config()
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
    return before, head()


def _current(connection: Connection) -> str | None:
    return MigrationContext.configure(connection).get_current_revision()


def _difference(found: str | None) -> str | None:
    needed = head()
    if found == needed:
        return None
    if found is None:
        return f"the database has no forkjoin schema (needed: {needed}): run `forkjoin migrate` first"
    if found in _known():
        return (
            f"the database schema is at {found}, older than the {needed} that this version needs: "
            "run `forkjoin migrate`"
        )
    return (
        f"the database schema is at {found}, which this version of forkjoin does not know (it knows up to "
        f"{needed}): it was migrated by a newer version; upgrade forkjoin"
    )


@cache
def _known() -> frozenset[str]:
    return frozenset(script.revision for script in ScriptDirectory.from_config(_config()).walk_revisions())


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    return config
