"""The schema: migrations make what the tables say, and every other schema is told apart."""

import ast
import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, text
from structlog.testing import capture_logs

from orchestrator.bootstrap import wait_for_schema
from orchestrator.errors import SchemaMismatch, WrongUse
from orchestrator.storage import schema
from orchestrator.storage.database import Database
from orchestrator.storage.migrations import versions
from orchestrator.storage.schema import check_schema, head, migrate, schema_difference
from orchestrator.storage.tables import metadata
from tests.services.postgres import Postgres
from tests.services.waiting import eventually


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


async def newer(database: Database, oldest_code: str) -> None:
    """Make the schema one of a newer version."""
    async with database.transaction() as connection:
        await connection.execute("UPDATE alembic_version SET version_num = '9999'")
        await connection.execute("UPDATE schema_compatibility SET oldest_revision = $1", oldest_code)


async def test_a_newer_schema_that_says_so_goes_with_this_code_and_is_left_as_it_is(database: Database) -> None:
    await newer(database, head())
    with capture_logs() as lines:
        await check_schema(database.engine)
    assert [line["action"] for line in lines] == ["schema_newer"]
    assert await schema_difference(database) is None
    assert await migrate(database.engine) == ("9999", "9999")


async def test_a_newer_schema_that_has_left_this_code_behind_is_refused(database: Database) -> None:
    await newer(database, "9998")
    for refuse in (check_schema, migrate):
        with pytest.raises(SchemaMismatch, match=f"at 9999, which .* knows up to {head()}.*upgrade forkjoin"):
            await refuse(database.engine)
    assert "upgrade forkjoin" in (await schema_difference(database) or "")


async def test_a_migration_lets_others_through_while_it_waits_for_a_long_transaction(
    empty: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schema, "_LOCK_TIMEOUT", "200ms")
    async with empty.engine.begin() as connection:
        await connection.run_sync(up_to, "0002")
    async with empty.connection() as held, empty.connection() as others:
        transaction = held.transaction()
        await transaction.start()
        await held.execute("LOCK TABLE runs IN ACCESS SHARE MODE")
        migrating = asyncio.create_task(migrate(empty.engine))
        waiting = "SELECT 1 FROM pg_locks WHERE relation = 'runs'::regclass AND NOT granted"
        await eventually(lambda: others.fetchval(waiting))
        await asyncio.wait_for(others.fetchval("SELECT count(*) FROM runs"), 10)
        assert not migrating.done()
        await transaction.rollback()
        assert await migrating == ("0002", head())


def up_to(connection: Connection, revision: str) -> None:
    config = schema._config()
    config.attributes["connection"] = connection
    command.upgrade(config, revision)


NARROWING_CALLS = {
    "alter_column", "create_check_constraint", "create_exclude_constraint", "create_foreign_key", "create_primary_key",
    "create_unique_constraint", "drop_column", "drop_constraint", "drop_table", "rename_table",
}  # fmt: skip
NARROWING_SQL = re.compile(r"\b(DROP (TABLE|COLUMN)|RENAME|ADD CONSTRAINT|SET NOT NULL|TYPE)\b", re.IGNORECASE)
LEAVES_BEHIND = "UPDATE schema_compatibility SET oldest_revision"


def narrowing(source: str) -> list[str]:
    """Return the calls in a migration's `upgrade` after which older code may stumble, unless it says so there."""
    functions = [node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)]
    [upgrade] = [function for function in functions if function.name == "upgrade"]
    calls = [node for node in ast.walk(upgrade) if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)]
    if any(LEAVES_BEHIND in ast.unparse(call) for call in calls if named(call) == "execute"):
        return []
    return [named(call) for call in calls if narrows(call)]


def named(call: ast.Call) -> str:
    assert isinstance(call.func, ast.Attribute)
    return call.func.attr


def narrows(call: ast.Call) -> bool:
    written = ast.unparse(call)
    match named(call):
        case "execute":
            return NARROWING_SQL.search(written) is not None
        case "create_index":
            return "unique=True" in written
        case "add_column":
            return "nullable=False" in written and "server_default" not in written
        case name:
            return name in NARROWING_CALLS


MIGRATIONS = sorted(Path(versions.__path__[0]).glob("v*.py"))
WITH_COMPATIBILITY = [path for path in MIGRATIONS if path.name > "v0010"]


@pytest.mark.parametrize("path", WITH_COMPATIBILITY, ids=lambda path: path.name)
def test_a_migration_that_takes_something_from_older_code_says_which_code_still_works(path: Path) -> None:
    assert narrowing(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("call", "is_narrowing"),
    [
        ('op.drop_column("runs", "input")', True),
        ('op.add_column("runs", sa.Column("x", sa.Text(), nullable=False))', True),
        ('op.add_column("runs", sa.Column("x", sa.Text(), nullable=False, server_default="y"))', False),
        ('op.add_column("runs", sa.Column("x", sa.Text()))', False),
        ('op.execute("ALTER TABLE runs DROP COLUMN input")', True),
        ('op.execute("UPDATE runs SET x = 1")', False),
        ('op.create_check_constraint("ck", "runs", "x > 1")', True),
        ('op.create_index("ix", "runs", ["x"], unique=True)', True),
        ('op.create_index("ix", "runs", ["x"])', False),
        ('op.drop_constraint("ck", "runs")', True),
        ('op.create_foreign_key("fk", "runs", "others", ["x"], ["y"])', True),
        ('op.create_table("others", sa.Column("x", sa.Text(), nullable=False))', False),
    ],
)
def test_what_takes_something_from_older_code_is_seen_unless_it_says_so(call: str, is_narrowing: bool) -> None:
    upgrade, downgrade = f"def upgrade():\n    {call}\n", "def downgrade():\n    "
    said = f"op.execute(\"{LEAVES_BEHIND} = '0012'\")\n"
    assert bool(narrowing(upgrade)) is is_narrowing
    assert bool(narrowing(f"{upgrade}{downgrade}{said}")) is is_narrowing
    assert narrowing(f"{upgrade}    {said}") == []


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
