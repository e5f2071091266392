"""Large blocks: what a batch costs does not depend on its size, and memory does not hold the block."""

import asyncio
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
import pytest

from orchestrator.engine.inputs import CancelRequested, RetryRequested, SlotsFree, TaskMissing, TaskReported
from orchestrator.storage.database import Database
from orchestrator.storage.postgres import PostgresStorage
from schemas.messages import AgentResult
from schemas.statuses import ReportStatus, ResultStatus
from tests.integration.by_hand import driver_without_relay, reports, requested
from tests.integration.documents import agent, choice, loop, one_block, workflow
from tests.integration.system import System
from tests.services.postgres import Postgres

BRANCHES = 10_000


class Counter:
    """Counts the statements with arguments that all connections of this process send."""

    def __init__(self) -> None:
        self.statements: list[str] = []

    async def count(self, work: Any) -> int:
        self.statements.clear()
        await work
        return len(self.statements)


@pytest.fixture
def counter(monkeypatch: pytest.MonkeyPatch) -> Counter:
    counter = Counter()
    execute = asyncpg.Connection._execute

    async def counted(self: Any, query: str, *arguments: Any, **options: Any) -> Any:
        counter.statements.append(query)
        return await execute(self, query, *arguments, **options)

    monkeypatch.setattr(asyncpg.Connection, "_execute", counted)
    return counter


@pytest.mark.parametrize("limit", [None, 400], ids=["open", "limited"])
async def test_a_batch_of_results_of_one_block_costs_the_same_statements_whatever_its_size(
    database: Database, counter: Counter, limit: int | None
) -> None:
    driver = driver_without_relay(database)
    fields = {"max_parallelism": limit} if limit else {}
    event = await requested(database, one_block(1_000, **fields))
    await driver.drive([event])
    if limit:
        await driver.drive([SlotsFree(event.run_id, "block")])
    counts = {}
    for size in (1, 10, 300):
        some = await reports(database, event.run_id, size)
        assert len(some) == size
        counts[size] = await counter.count(driver.drive(some))
    assert len(set(counts.values())) == 1, counts
    assert counts[1] <= 6, counter.statements


@pytest.mark.parametrize("limit", [None, 400], ids=["open", "limited"])
async def test_branches_go_on_at_the_same_cost_whatever_their_number(
    database: Database, counter: Counter, limit: int | None
) -> None:
    driver = driver_without_relay(database)
    fields = {"max_parallelism": limit} if limit else {}
    steps = {
        "before": agent("echo", next_step="loop"),
        "loop": loop("x", "choice", execution_mode="parallel", **fields),
        "x": agent("echo", input_mapping={"it": "${loop.item}"}),
        "choice": choice("${loop.item} >= 0 and ${x.output} == null", if_true_step="y"),
        "y": agent("echo", input_mapping={"x": "${x.output}", "it": "${loop.item}", "before": "${before.status}"}),
    }
    event = replace(await requested(database, workflow(steps)), input=list(range(1_000)))
    await driver.drive([event])
    await driver.drive(await reports(database, event.run_id, 1))
    if limit:
        await driver.drive([SlotsFree(event.run_id, "loop")])
    counts = {}
    for size in (1, 10, 100):
        some = await reports(database, event.run_id, size)
        assert len(some) == size
        counts[size] = await counter.count(driver.drive(some))
    assert len(set(counts.values())) == 1, counts
    assert counts[1] <= 10, counter.statements


async def test_steps_that_need_no_worker_are_entered_at_the_same_cost_whatever_their_number(
    database: Database, counter: Counter
) -> None:
    driver = driver_without_relay(database)
    steps = {
        "loop": loop("choice", execution_mode="parallel"),
        "choice": choice("${loop.item} >= 0", if_true_step="x"),
        "x": agent("echo", input_mapping={"it": "${loop.item}"}),
    }
    event = replace(await requested(database, workflow(steps)), input=list(range(1_000)))
    await driver.drive([event])
    counts = {}
    for size in (1, 10, 300):
        some = await PostgresStorage(database).due_inputs(size)
        assert len(some) == size
        counts[size] = await counter.count(driver.drive(some))
    assert len(set(counts.values())) == 1, counts


async def test_a_batch_of_results_of_many_runs_costs_the_same_statements_whatever_their_number(
    database: Database, counter: Counter
) -> None:
    driver = driver_without_relay(database)
    document = workflow({"one": agent("echo", next_step="two"), "two": agent("echo")})
    await driver.drive([await requested(database, document)])  # the plan is cached from here on
    counts = {}
    for number in (1, 10, 100):
        events = [await requested(database, document) for _ in range(number)]
        requests = await counter.count(driver.drive(events))
        some = [report for event in events for report in await reports(database, event.run_id, 1)]
        counts[number] = (requests, await counter.count(driver.drive(some)))
    assert len(set(counts.values())) == 1, counts


async def test_a_join_costs_the_same_statements_whatever_the_number_of_branches(
    database: Database, counter: Counter
) -> None:
    driver = driver_without_relay(database)
    counts = {}
    for branches in (1, 10, 200):
        event = await requested(database, one_block(branches))
        await driver.drive([event])
        counts[branches] = await counter.count(driver.drive(await reports(database, event.run_id, branches)))
    assert len(set(counts.values())) == 1, counts


async def test_a_retry_costs_the_same_statements_whatever_the_number_of_branches(
    database: Database, counter: Counter
) -> None:
    driver = driver_without_relay(database)
    counts = {}
    for branches in (2, 20, 2_000):
        event = await requested(database, one_block(branches))
        await driver.drive([event])
        await driver.drive(await reports(database, event.run_id, 1))
        await driver.drive([CancelRequested(event.run_id, None)])
        retry = RetryRequested(uuid4(), event.run_id, "digest", None)
        counts[branches] = await counter.count(driver.drive([retry]))
        async with database.connection() as connection:
            rows = await connection.fetch(
                "SELECT status, count(*) FROM step_executions WHERE run_id = $1 GROUP BY status", retry.run_id
            )
        assert {tuple(row) for row in rows} == {("RUNNING", 1), ("COMPLETED", 1), ("PENDING", branches - 1)}
    assert len(set(counts.values())) == 1, counts
    assert counts[2] <= 12, counter.statements


async def test_a_block_of_ten_thousand_branches_completes(system: System) -> None:
    async def echo(input: Any) -> Any:
        return input

    await system.start_replica()
    await system.start_worker(echo, concurrency=500, report_started_after=60)
    result = await system.run(one_block(BRANCHES), seconds=60)
    assert result.status is ResultStatus.COMPLETED
    assert list(result.output) == [f"b{number}" for number in range(BRANCHES)]
    rows = await system.fetch("SELECT status, count(*) FROM step_executions GROUP BY status")
    assert [tuple(row) for row in rows] == [("COMPLETED", BRANCHES + 1)]
    await system.quiet()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
async def test_the_memory_of_a_replica_grows_with_the_plan_and_not_with_the_results(
    postgres: Postgres, template_url: str
) -> None:
    peaks = {}
    for branches in (1_000, 10_000):
        url = postgres.new_database(template_url)
        before, after = await _measured(url, branches)
        peaks[branches] = after - before
        postgres.drop_database(url)
    print("peak growth above the plan, KiB:", peaks)
    assert peaks[10_000] < peaks[1_000] + 20_000, "nine thousand branches more are 20 MB at most"


async def _measured(url: str, branches: int) -> tuple[int, int]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.integration.by_hand",
        url,
        str(branches),
        cwd=Path(__file__).parents[2],
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await process.communicate()
    assert process.returncode == 0
    before, after = map(int, out.split())
    return before, after


async def test_a_task_that_seems_missing_is_not_sent_without_its_input_when_a_report_comes_with_it(
    database: Database,
) -> None:
    driver = driver_without_relay(database)
    request = await requested(database, workflow({"one": agent("echo", input_mapping={"n": 1})}))
    await driver.drive([request])
    async with database.connection() as connection:
        [row] = await connection.fetch("SELECT task_id, queued_at FROM step_executions")
        started = AgentResult(
            run_id=request.run_id, task_id=row["task_id"], status=ReportStatus.STARTED, worker_id="worker"
        )
        missing = TaskMissing(request.run_id, "one", row["task_id"], row["queued_at"])
        await driver.drive([missing, TaskReported(started)])
        sent = await connection.fetch("SELECT body FROM outbox WHERE type = 'AgentTask'")
    assert [json.loads(message["body"])["input"] for message in sent] == [{"n": 1}]
