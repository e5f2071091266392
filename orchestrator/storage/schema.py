"""The schema's version: migrate it, or say how it differs from what this code needs.

A schema that is newer than the code is right too, as long as it says so: `schema_compatibility` names the revision of
the oldest code that works with it. So while a new version is rolled out the old one goes on, and can start again.
"""

from functools import cache
from pathlib import Path
from typing import Final, NamedTuple

import structlog
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, inspect, text
from sqlalchemy.ext.asyncio import AsyncEngine
from tenacity import AsyncRetrying, retry_if_exception, stop_after_attempt, wait_random

from orchestrator.errors import SchemaMismatch
from orchestrator.storage.database import Connection as PooledConnection
from orchestrator.storage.database import Database, is_transient

log = structlog.get_logger(__name__)

# Two `migrate` commands at once take turns; the number is ours alone by convention.
_MIGRATION_LOCK: Final = 7_461_230_915
# A change of a table waits for all transactions on it, and whoever comes later waits behind it. So it waits no longer
# than this, lets the others through, and tries again.
_LOCK_TIMEOUT: Final = "2s"
_TRIES: Final = 30

_OLDEST: Final = "SELECT oldest_revision FROM schema_compatibility"


class Found(NamedTuple):
    """What a database says of its schema."""

    revision: str | None  # None: there is none
    oldest_code: str | None = None  # the revision of the oldest code that works with it, where that is said


async def migrate(engine: AsyncEngine) -> tuple[str | None, str]:
    """Bring the schema to this code's version; return the revisions (before, after).

    A schema that is newer, and that this code works with, is left as it is.

    Raises:
        SchemaMismatch: The schema is newer than this code, and this code does not work with it.
        DBAPIError: Among others: somebody held locks on the tables for a minute and longer.
    """
    again = AsyncRetrying(
        retry=retry_if_exception(is_transient), stop=stop_after_attempt(_TRIES), wait=wait_random(0.5, 2), reraise=True
    )
    return await again(_migrate_once, engine)


async def check_schema(engine: AsyncEngine) -> None:
    """Make sure that the schema is one that this code works with.

    Raises:
        SchemaMismatch: It is missing, older, or newer than this code can do with; says which, and what to do.
    """
    async with engine.connect() as connection:
        found = await connection.run_sync(_found)
    if (difference := _difference(found)) is not None:
        raise SchemaMismatch(difference)
    if found.revision != head():
        log.warning(
            "The database schema is newer than this version of forkjoin, which works with it: finish the upgrade",
            action="schema_newer",
            revision=found.revision,
            known=head(),
        )


async def schema_difference(database: Database) -> str | None:
    """Return how the schema differs from what this code needs, as `check_schema` says it; None where it does not.

    It looks by way of the pool, for whoever asks often.
    """
    async with database.connection() as connection:
        revision = await _asked(connection, "alembic_version", "SELECT version_num FROM alembic_version")
        oldest = await _asked(connection, "schema_compatibility", _OLDEST)
    return _difference(Found(revision, oldest))


async def _asked(connection: PooledConnection, table: str, question: str) -> str | None:
    exists = await connection.fetchval("SELECT to_regclass($1) IS NOT NULL", table)
    answer: str | None = await connection.fetchval(question) if exists else None
    return answer


@cache
def head() -> str:
    """Return the revision that this code needs."""
    revision = ScriptDirectory.from_config(_config()).get_current_head()
    assert revision is not None, "the package ships its migrations"
    return revision


async def _migrate_once(engine: AsyncEngine) -> tuple[str | None, str]:
    async with engine.begin() as connection:
        return await connection.run_sync(_upgrade)


def _upgrade(connection: Connection) -> tuple[str | None, str]:
    connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _MIGRATION_LOCK})
    connection.execute(text(f"SET LOCAL lock_timeout = '{_LOCK_TIMEOUT}'"))
    found = _found(connection)
    before = found.revision
    if before is not None and before not in _known():
        if (difference := _difference(found)) is not None:
            raise SchemaMismatch(difference)
        return before, before
    config = _config()
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
    return before, head()


def _found(connection: Connection) -> Found:
    revision = MigrationContext.configure(connection).get_current_revision()
    if revision is None or not inspect(connection).has_table("schema_compatibility"):
        return Found(revision)
    return Found(revision, connection.execute(text(_OLDEST)).scalar())


def _difference(found: Found) -> str | None:
    needed = head()
    match found:
        case Found(revision=None):
            return f"the database has no forkjoin schema (needed: {needed}): run `forkjoin migrate` first"
        case Found(revision=revision) if revision == needed:
            return None
        case Found(revision=revision) if revision in _known():
            return (
                f"the database schema is at {revision}, older than the {needed} that this version needs: "
                "run `forkjoin migrate`"
            )
        case Found(oldest_code=oldest) if oldest in _known():
            return None  # newer, and made to go with this code
        case Found(revision=revision):
            return (
                f"the database schema is at {revision}, which this version of forkjoin does not know (it knows up to "
                f"{needed}): it was migrated by a newer version; upgrade forkjoin"
            )


@cache
def _known() -> frozenset[str]:
    return frozenset(script.revision for script in ScriptDirectory.from_config(_config()).walk_revisions())


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    return config
