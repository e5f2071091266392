"""Runs that are driven by hand, without broker, worker or relay.

As a program (``python -m tests.integration.by_hand URL BRANCHES``) it takes a block through its whole life, a batch at
a time as a replica does, and prints its resident memory in KiB: with the plan alone, and its peak from there on.
"""

import asyncio
import gc
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

from orchestrator.engine.compilation import compile_plan
from orchestrator.engine.inputs import RunRequested, TaskReported
from orchestrator.service.driver import Driver
from orchestrator.service.plans import PlanCache
from orchestrator.storage.database import Database
from orchestrator.storage.definitions import load_definition, store_definition
from orchestrator.storage.postgres import PostgresStorage
from schemas.validation import parse_workflow
from tests.integration.documents import Document, one_block
from tests.integration.system import completed

_QUEUED = "SELECT step_id, task_id FROM step_executions WHERE run_id = $1 AND status = 'QUEUED' LIMIT $2"


def driver_without_relay(database: Database, name: str = "by-hand", plans: PlanCache | None = None) -> Driver:
    """Return a driver that nobody follows: it commits, and nothing is published."""
    return Driver(PostgresStorage(database), name, plans or PlanCache())


async def requested(database: Database, document: Document) -> RunRequested:
    """Store a definition and return the input that asks for a run of it."""
    workflow = parse_workflow(document)
    return RunRequested(
        run_id=uuid4(),
        definition_id=await store_definition(database, workflow, document),
        workflow_id=workflow.workflow_id,
        workflow_version=workflow.version,
        request_digest="digest",
        input=None,
        labels={},
        reply=None,
    )


async def reports(database: Database, run_id: UUID, limit: int, output: Any = None) -> Sequence[TaskReported]:
    """Return the successful reports of up to *limit* attempts of a run."""
    async with database.connection() as connection:
        rows = await connection.fetch(_QUEUED, run_id, limit)
    return [TaskReported(completed(run_id, row["task_id"], output)) for row in rows]


async def measure(url: str, branches: int) -> tuple[int, int]:
    """Take a block through its life; return the memory with its plan alone, and the peak after that, in KiB."""
    database = Database(url, steady_plans=True)
    plans = PlanCache()
    driver = driver_without_relay(database, plans=plans)
    event = await requested(database, one_block(branches))
    async with database.connection() as connection:
        document = await load_definition(connection, event.definition_id)
    plans.put(event.definition_id, compile_plan(parse_workflow(document)))
    del document
    gc.collect()
    _forget_peak()
    before = _memory("VmRSS")
    await driver.drive([event])
    while some := await reports(database, event.run_id, 500, {"text": "x" * 200}):
        await driver.drive(some)
    await database.close()
    return before, _memory("VmHWM")


def _forget_peak() -> None:
    # Not getrusage: its peak includes even that of our parent before exec (Linux).
    Path("/proc/self/clear_refs").write_text("5")


def _memory(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))


if __name__ == "__main__":
    print(*asyncio.run(measure(sys.argv[1], int(sys.argv[2]))))
