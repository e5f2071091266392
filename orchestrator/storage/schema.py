"""The schema's version: migrate it, or say how it differs from what this code needs."""

from pathlib import Path
from typing import Final

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text
from sqlalchemy.ext.asyncio import AsyncEngine

from orchestrator.errors import SchemaMismatch

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
    needed = head()
    if found == needed:
        return
    if found is None:
        raise SchemaMismatch(f"the database has no forkjoin schema (needed: {needed}): run `forkjoin migrate` first")
    _refuse_newer(found)
    raise SchemaMismatch(
        f"the database schema is at {found}, older than the {needed} that this version needs: run `forkjoin migrate`"
    )


def head() -> str:
    """Return the revision that this code needs."""
    revision = ScriptDirectory.from_config(_config()).get_current_head()
    assert revision is not None, "the package ships its migrations"
    return revision


def _upgrade(connection: Connection) -> tuple[str | None, str]:
    connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _MIGRATION_LOCK})
    before = _current(connection)
    if before is not None:
        _refuse_newer(before)
    config = _config()
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
    return before, head()


def _current(connection: Connection) -> str | None:
    return MigrationContext.configure(connection).get_current_revision()


def _refuse_newer(found: str) -> None:
    known = {script.revision for script in ScriptDirectory.from_config(_config()).walk_revisions()}
    if found not in known:
        raise SchemaMismatch(
            f"the database schema is at {found}, which this version of forkjoin does not know (it knows up to "
            f"{head()}): it was migrated by a newer version; upgrade forkjoin"
        )


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    return config
