"""Forgetting runs that ended long ago, in pieces that nobody notices.

A run may have a hundred thousand steps, so its rows go first, so many in each transaction, and then the run itself.
Whoever stops in the middle leaves runs with fewer steps than they had; the next time goes on with them.
"""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Final
from uuid import UUID

from orchestrator.storage.database import Database
from schemas.statuses import RunStatus

RUNS_AT_ONCE: Final = 100
ROWS_AT_ONCE: Final = 5_000

# Others prune as well, or keep a run locked for other reasons: those are left to the next time.
_OLD_RUNS: Final = """
    SELECT id FROM runs
    WHERE finished_at < now() - $1::interval AND ($2::text IS NULL OR status = $2) AND NOT id = ANY($4::uuid[])
    ORDER BY finished_at LIMIT $3
"""
_COUNT: Final = """
    SELECT count(*) FROM runs WHERE finished_at < now() - $1::interval AND ($2::text IS NULL OR status = $2)
"""
# The attempts of a step go with it.
_DELETE_ROWS: Final = """
    DELETE FROM {table} WHERE ctid = ANY(ARRAY(
        SELECT ctid FROM {table} WHERE run_id = ANY($1::uuid[]) LIMIT $2 FOR UPDATE SKIP LOCKED
    ))
"""
_TABLES: Final = ("step_executions", "loop_items")
# A run whose rows somebody else is deleting has some left; they would go with it, however many they are.
_DELETE_RUNS: Final = """
    DELETE FROM runs WHERE id = ANY(ARRAY(SELECT id FROM runs WHERE id = ANY($1::uuid[]) FOR UPDATE SKIP LOCKED))
        AND NOT EXISTS (SELECT FROM step_executions WHERE run_id = runs.id)
        AND NOT EXISTS (SELECT FROM loop_items WHERE run_id = runs.id)
    RETURNING id
"""


@dataclass(frozen=True, slots=True)
class Old:
    """Which runs are meant: those that ended so long ago, perhaps only of one status."""

    age: timedelta
    status: RunStatus | None = None


async def count_old(database: Database, old: Old) -> int:
    """Return how many runs there are to forget."""
    async with database.connection() as connection:
        return int(await connection.fetchval(_COUNT, old.age, old.status))


async def prune(database: Database, old: Old, *, rows: int = ROWS_AT_ONCE) -> AsyncIterator[int]:
    """Forget them, the oldest first; yield after each piece of work how many runs are gone with it.

    Args:
        database: Where they are.
        old: Which ones.
        rows: So many are deleted in one transaction, at most.
    """
    left: set[UUID] = set()  # somebody had them locked
    while True:
        async with database.connection() as connection:
            found = await connection.fetch(_OLD_RUNS, old.age, old.status, RUNS_AT_ONCE, list(left))
        runs = [row["id"] for row in found]
        if not runs:
            return
        for table in _TABLES:
            while await _delete_rows(database, table, runs, rows) == rows:
                yield 0
        async with database.connection() as connection:
            gone = {row["id"] for row in await connection.fetch(_DELETE_RUNS, runs)}
        left.update(set(runs) - gone)
        yield len(gone)


async def _delete_rows(database: Database, table: str, runs: Sequence[UUID], rows: int) -> int:
    async with database.connection() as connection:
        answer = await connection.execute(_DELETE_ROWS.format(table=table), runs, rows)
    return int(answer.rpartition(" ")[2])
