"""Postgres restored to an earlier time, while the broker has gone on: what deploy/RUNBOOKS.md says of it."""

import asyncio
import json
from collections import Counter
from typing import Any

import asyncpg

from orchestrator.storage.database import Database
from tests.integration.documents import agent, block, workflow
from tests.integration.system import System
from tests.services.postgres import Postgres

BRANCHES = [f"b{n}" for n in range(6)]
BEFORE = BRANCHES[:2]  # they complete before the backup


async def backed_up(system: System, postgres: Postgres) -> str:
    """Return the URL of a copy of the database; nobody may be connected while it is made."""
    await system.connection.close()
    await system.database.close()
    copy = postgres.new_database(system.database_url)
    await reconnect(system, system.database_url)
    return copy


async def reconnect(system: System, url: str) -> None:
    system.database_url = url
    system.connection = await asyncpg.connect(url)
    system.database = Database(url, pool_size=4)


async def test_a_run_that_had_ended_meanwhile_ends_again_and_only_what_came_after_the_backup_runs_twice(
    system: System, postgres: Postgres
) -> None:
    executed: Counter[str] = Counter()
    go_on = asyncio.Event()

    async def echo(task: dict[str, Any]) -> dict[str, Any]:
        executed[task["n"]] += 1
        if task["n"] not in BEFORE:
            await go_on.wait()
        return task

    steps = {name: agent(input_mapping={"n": name}) for name in (*BRANCHES, "after")}
    document = workflow({"block": block(BRANCHES, max_parallelism=2, next_step="after"), **steps})
    await system.start_worker(echo)
    replica = await system.start_replica(silent_after=0.5)
    run_id = await system.submit(document)
    for name in BEFORE:
        await system.step_is(run_id, name, "COMPLETED")
    await system.end(replica, crash=False)
    backup = await backed_up(system, postgres)
    go_on.set()
    replica = await system.start_replica(silent_after=0.5)
    assert await system.ended(run_id) == "COMPLETED"
    assert set(executed.values()) == {1}
    await system.end(replica, crash=False)

    await system.connection.close()
    await system.database.close()
    await reconnect(system, backup)
    assert await system.status(run_id) == "RUNNING"
    await system.start_replica(silent_after=0.5)

    assert await system.ended(run_id) == "COMPLETED"
    output = await system.connection.fetchval(
        "SELECT output FROM step_executions WHERE run_id = $1 AND step_id = 'block'", run_id
    )
    assert json.loads(output) == {name: {"n": name} for name in BRANCHES}
    assert {executed[name] for name in BEFORE} == {1}
    assert executed["after"] == 2
