"""The schema: migrations make what the tables say, and every other schema is told apart."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, text

from orchestrator.bootstrap import wait_for_schema
from orchestrator.errors import SchemaMismatch, WrongUse
from orchestrator.storage.database import Database
from orchestrator.storage.schema import check_schema, head, migrate
from orchestrator.storage.tables import metadata
from tests.services.postgres import Postgres


@pytest.fixture
async def empty(database_url: str) -> AsyncIterator[Database]:
    """A database without any table."""
    database = Database(database_url)
    yield database
    await database.close()


async def test_a_missing_schema_is_told_with_the_command_that_makes_it(empty: Database) -> None:
    with pytest.raises(SchemaMismatch, match=f"no forkjoin schema .needed: {head()}.: run `forkjoin migrate` first"):
        await check_schema(empty.engine)
    with pytest.raises(SchemaMismatch):
        await wait_for_schema(empty)


async def test_a_migrated_schema_is_right(empty: Database) -> None:
    assert await migrate(empty.engine) == (None, head())
    await check_schema(empty.engine)


async def test_migrating_twice_is_migrating_once(empty: Database) -> None:
    await migrate(empty.engine)
    assert await migrate(empty.engine) == (head(), head())
    await check_schema(empty.engine)


async def test_two_migrations_at_once_take_turns(empty: Database, database_url: str) -> None:
    other = Database(database_url)
    try:
        befores = [before for before, _ in await asyncio.gather(migrate(empty.engine), migrate(other.engine))]
    finally:
        await other.close()
    assert sorted(befores, key=str) == [head(), None]
    await check_schema(empty.engine)


async def test_a_newer_schema_is_refused_by_checks_and_migrations(database: Database) -> None:
    async with database.transaction() as connection:
        await connection.execute("UPDATE alembic_version SET version_num = '9999'")
    for refuse in (check_schema, migrate):
        with pytest.raises(SchemaMismatch, match=f"at 9999, which .* knows up to {head()}.*upgrade forkjoin"):
            await refuse(database.engine)


async def test_migrations_and_tables_are_the_same(database: Database) -> None:
    def compare(connection: Connection) -> list[Any]:
        context = MigrationContext.configure(
            connection, opts={"compare_type": True, "compare_server_default": True, "target_metadata": metadata}
        )
        return list(compare_metadata(context, metadata))

    async with database.engine.connect() as connection:
        assert await connection.run_sync(compare) == []


async def test_migrations_and_tables_have_the_same_checks_indexes_and_storage_options(
    database: Database, postgres: Postgres, database_url: str
) -> None:
    created = Database(database_url)
    try:
        async with created.engine.begin() as connection:
            await connection.run_sync(metadata.create_all)
        assert await _details(created) == await _details(database)
    finally:
        await created.close()


async def test_the_difference_between_tables_and_migrations_would_be_seen(database: Database) -> None:
    before = await _details(database)
    async with database.transaction() as connection:
        await connection.execute("ALTER TABLE runs DROP CONSTRAINT ck_runs_status")
        await connection.execute("DROP INDEX ix_outbox_due_at")
        await connection.execute("ALTER TABLE step_executions RESET (fillfactor)")
    assert len(before - await _details(database)) == 3


async def test_a_downgrade_leaves_no_table_behind(empty: Database) -> None:
    from alembic import command

    from orchestrator.storage import schema

    def downgrade(connection: Connection) -> None:
        config = schema._config()
        config.attributes["connection"] = connection
        command.downgrade(config, "base")

    await migrate(empty.engine)
    async with empty.engine.begin() as connection:
        await connection.run_sync(downgrade)
        left = await connection.execute(text("SELECT tablename FROM pg_tables WHERE schemaname = 'public'"))
        assert [row[0] for row in left] == ["alembic_version"]


async def test_each_test_gets_a_database_of_its_own_in_no_time(postgres: Postgres, template_url: str) -> None:
    urls = [postgres.new_database(template_url) for _ in range(2)]
    for url in urls:
        database = Database(url)
        await check_schema(database.engine)
        await database.close()
        postgres.drop_database(url)
    assert len(set(urls)) == 2


@pytest.mark.parametrize("status", ["DONE", "completed", ""])
async def test_the_database_takes_no_status_that_does_not_exist(database: Database, status: str) -> None:
    async with database.connection() as connection:
        with pytest.raises(asyncpg.CheckViolationError, match="ck_runs_status"):
            await connection.execute(
                "INSERT INTO runs"
                " (id, workflow_id, workflow_version, definition_id, status, request_digest, created_at)"
                " VALUES (gen_random_uuid(), 'w', '1', 'd', $1, 'd', now())",
                status,
            )
        with pytest.raises(asyncpg.CheckViolationError, match="ck_step_executions_status"):
            await connection.execute(
                "INSERT INTO step_executions (run_id, step_id, position, status, attempt, created_at)"
                " VALUES (gen_random_uuid(), 's', 0, $1, 0, now())",
                status,
            )


@pytest.mark.parametrize("url", ["", "not a url", "mysql://localhost/x", "sqlite://"])
def test_a_url_of_anything_but_postgres_is_refused(url: str) -> None:
    with pytest.raises(WrongUse, match=r"postgresql://"):
        Database(url)


async def _details(database: Database) -> set[str]:
    """What compare_metadata does not look at, as text."""
    statement = """
        SELECT conrelid::regclass || ' ' || conname || ' ' || pg_get_constraintdef(oid) FROM pg_constraint
        WHERE connamespace = 'public'::regnamespace AND contype IN ('c', 'f', 'p')
        UNION ALL SELECT indexdef FROM pg_indexes WHERE schemaname = 'public'
        UNION ALL SELECT relname || ' ' || reloptions::text FROM pg_class
        WHERE relnamespace = 'public'::regnamespace AND reloptions IS NOT NULL
    """
    async with database.connection() as connection:
        return {row[0] for row in await connection.fetch(statement) if "alembic" not in row[0]}
