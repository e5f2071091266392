"""The census: what it counts, and that finished runs cost it nothing."""

import json
from uuid import UUID

import pytest

from orchestrator.engine.inputs import SlotsFree, TaskReported
from orchestrator.storage import census as module
from orchestrator.storage.census import GateTotals, take_census
from orchestrator.storage.database import Database
from schemas.statuses import ReportStatus, RunStatus, StepStatus
from tests.integration.by_hand import driver_without_relay, reports, requested
from tests.integration.documents import Document, agent, one_block, workflow

FINISHED = 20_000
FEW_PAGES = 100  # of 8 KiB; the finished runs and their steps take a hundred times as many

_FINISHED_RUNS = """
    WITH ended AS (
        INSERT INTO runs (id, workflow_id, workflow_version, definition_id, status, request_digest, created_at)
        SELECT gen_random_uuid(), 'tested', '1.0', (SELECT definition_id FROM workflows LIMIT 1),
            (ARRAY['COMPLETED', 'FAILED', 'CANCELLED'])[1 + n % 3], 'digest', now() - make_interval(secs => n)
        FROM generate_series(1, $1::int) AS n RETURNING id
    )
    INSERT INTO step_executions (run_id, step_id, position, status, agent_name, attempt, created_at)
    SELECT id, 'one', 0, 'COMPLETED', 'old', 1, now() FROM ended
"""


@pytest.fixture
async def crowded(database: Database) -> Database:
    """A database with many finished runs, of which the planner knows."""
    await start(database, one_block(2))
    await execute(database, _FINISHED_RUNS, FINISHED)
    for table in ("runs", "step_executions"):
        await execute(database, f"VACUUM ANALYZE {table}")
    return database


async def execute(database: Database, statement: str, *arguments: object) -> None:
    async with database.connection() as connection:
        await connection.execute(statement, *arguments)


async def start(database: Database, document: Document) -> UUID:
    """Start a run whose tasks nobody sends."""
    event = await requested(database, document)
    await driver_without_relay(database).drive([event])
    return event.run_id


async def complete(database: Database, run_id: UUID, number: int) -> None:
    await driver_without_relay(database).drive(await reports(database, run_id, number))


async def begin(database: Database, run_id: UUID, number: int) -> None:
    """Report the first attempts of a run as started."""
    found = await reports(database, run_id, number)
    started = [TaskReported(event.report.model_copy(update={"status": ReportStatus.STARTED})) for event in found]
    await driver_without_relay(database).drive(started)


async def test_of_an_empty_database_everything_is_zero(database: Database) -> None:
    census = await take_census(database)
    assert census.runs == {RunStatus.PENDING: 0, RunStatus.RUNNING: 0}
    assert census.branches == {StepStatus.PENDING: 0, StepStatus.QUEUED: 0, StepStatus.RUNNING: 0}
    assert (census.attempts, census.dead_letters) == ({}, {})
    assert census.gates == GateTotals(gates=0, slots=0, used=0, waiting=0)
    assert (census.outbox.messages, census.outbox.oldest_seconds) == (0, 0)
    assert census.complete


async def test_branches_and_attempts_are_counted_by_status_over_all_runs(database: Database) -> None:
    block = await start(database, one_block(5))
    await begin(database, block, 2)
    await complete(database, block, 1)  # of those that nobody began
    await start(database, workflow({"one": agent("other", input_mapping={})}))
    ended = await start(database, one_block(3, agent_name="old"))
    await complete(database, ended, 3)

    census = await take_census(database)

    assert census.runs == {RunStatus.PENDING: 0, RunStatus.RUNNING: 2}
    assert census.branches == {StepStatus.PENDING: 0, StepStatus.QUEUED: 2, StepStatus.RUNNING: 2}
    assert census.attempts == {
        ("echo", StepStatus.QUEUED): 2,
        ("echo", StepStatus.RUNNING): 2,
        ("other", StepStatus.QUEUED): 1,
    }


async def test_slots_are_counted_over_all_gates_with_the_branches_that_wait_for_one(database: Database) -> None:
    first = await start(database, one_block(10, max_parallelism=3))
    await start(database, one_block(4, max_parallelism=2))
    await start(database, one_block(4))
    driver = driver_without_relay(database)
    await driver.drive([SlotsFree(first, "block")])

    assert (await take_census(database)).gates == GateTotals(gates=2, slots=5, used=3, waiting=7 + 4)

    await complete(database, first, 3)
    assert (await take_census(database)).gates == GateTotals(gates=2, slots=5, used=3, waiting=4 + 4)


async def test_the_outbox_has_an_age_and_knows_what_is_due_and_what_no_queue_takes(database: Database) -> None:
    await start(database, one_block(3))
    all_of_it = (await take_census(database)).outbox
    await execute(
        database,
        """UPDATE outbox SET created_at = now() - interval '1 minute', due_at = now() - interval '1 second',
            returned_at = now() WHERE message_id = (SELECT message_id FROM outbox WHERE type = 'AgentTask' LIMIT 1)""",
    )
    later = (await take_census(database)).outbox
    assert (all_of_it.messages, all_of_it.due, all_of_it.unroutable) == (later.messages, 0, 0)
    assert all_of_it.messages > 3
    assert all_of_it.oldest_seconds < 30
    assert (later.due, later.unroutable) == (1, 1)
    assert 60 <= later.oldest_seconds < 90


async def test_dead_letters_are_counted_by_their_code(database: Database) -> None:
    await execute(
        database,
        """INSERT INTO dead_letters (key, code, message, headers, body)
        SELECT n::text, CASE WHEN n = 1 THEN 'unknown_reason' ELSE 'internal_error' END, '', '{}', ''
        FROM generate_series(1, 4) AS n""",
    )
    assert (await take_census(database)).dead_letters == {"internal_error": 3, "unknown_reason": 1}


async def test_a_count_that_its_limit_stops_is_no_secret(database: Database) -> None:
    await start(database, one_block(20))
    assert (await take_census(database, most_rows=100)).complete
    stopped = await take_census(database, most_rows=10)
    assert not stopped.complete
    assert 0 < sum(stopped.branches.values()) <= 10


@pytest.mark.parametrize("name", ["_RUNS", "_STEPS", "_GATES", "_OUTBOX"])
async def test_finished_runs_are_not_looked_at(crowded: Database, name: str) -> None:
    async with crowded.connection() as connection:
        statement = f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {getattr(module, name)}"
        [plan] = json.loads(await connection.fetchval(statement, module.MOST_ROWS))
        whole = await connection.fetchval("SELECT pg_relation_size('runs') / 8192")
    assert whole > 2 * FEW_PAGES
    pages = plan["Plan"]["Shared Hit Blocks"] + plan["Plan"]["Shared Read Blocks"]
    assert pages < FEW_PAGES, json.dumps(plan, indent=1)
