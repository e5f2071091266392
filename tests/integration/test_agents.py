"""Which agents are known: those with open attempts, and those of recent runs, as far as the look goes."""

from typing import Any
from uuid import UUID

from orchestrator.engine.inputs import CancelRequested, TaskReported
from orchestrator.storage.agents import AgentActivity, BusyWorker, list_agents
from orchestrator.storage.database import Database
from schemas.messages import AgentError
from schemas.statuses import ReportStatus
from tests.integration.by_hand import driver_without_relay, reports, requested
from tests.integration.documents import Document, agent, one_block, workflow

LATER = {"max_attempts": 2, "initial_interval_seconds": 600, "max_interval_seconds": 600}


async def start(database: Database, document: Document) -> UUID:
    """Start a run whose tasks nobody sends."""
    event = await requested(database, document)
    await driver_without_relay(database).drive([event])
    return event.run_id


def one_step(agent_name: str, **fields: Any) -> Document:
    return workflow({"one": agent(agent_name, **fields)})


async def report(database: Database, run_id: UUID, *workers: str, **fields: Any) -> None:
    """Report of as many attempts that were not reported yet, each by its worker."""
    found = await reports(database, run_id, len(workers))
    changed = [
        TaskReported(event.report.model_copy(update={"worker_id": worker, **fields}))
        for event, worker in zip(found, workers, strict=True)
    ]
    await driver_without_relay(database).drive(changed)


async def complete(database: Database, run_id: UUID) -> None:
    await driver_without_relay(database).drive(await reports(database, run_id, 1))


async def requested_before(database: Database, run_id: UUID, hours: int) -> None:
    async with database.connection() as connection:
        statement = "UPDATE runs SET created_at = now() - make_interval(hours => $2) WHERE id = $1"
        await connection.execute(statement, run_id, hours)


async def names(database: Database, **options: Any) -> list[str]:
    return [found.agent_name for found in await list_agents(database, **options)]


async def test_open_attempts_are_counted_over_all_runs_with_the_workers_that_run_them(database: Database) -> None:
    first, second = [await start(database, one_block(4)) for _ in range(2)]
    await report(database, first, "w-1", "w-2", "w-2", status=ReportStatus.STARTED)
    await report(database, second, "w-1", "w-3", "w-1", status=ReportStatus.STARTED)
    await complete(database, first)

    assert await list_agents(database) == [
        AgentActivity(
            agent_name="echo",
            queued=1,
            running=6,
            pending=0,
            workers=[BusyWorker("w-1", 3), BusyWorker("w-2", 2), BusyWorker("w-3", 1)],
        )
    ]


async def test_branches_at_their_gate_and_steps_before_their_next_attempt_are_pending(database: Database) -> None:
    await start(database, one_block(3, agent_name="gated", max_parallelism=2))
    again = await start(database, one_step("again", retry=LATER))
    failure = AgentError(type="ValueError", message="no luck")
    await report(database, again, "w-1", status=ReportStatus.FAILED, error=failure)

    found = await list_agents(database)

    assert [(each.agent_name, each.queued, each.running, each.pending, each.workers) for each in found] == [
        ("again", 0, 0, 1, []),
        ("gated", 0, 0, 3, []),
    ]


async def test_an_agent_is_known_for_a_day_after_its_run_was_requested_and_as_long_as_it_is_open(
    database: Database,
) -> None:
    runs = {name: await start(database, one_step(name)) for name in ("today", "yesterday", "open")}
    for name in ("today", "yesterday"):
        await complete(database, runs[name])
    await requested_before(database, runs["today"], 23)
    for name in ("yesterday", "open"):
        await requested_before(database, runs[name], 25)

    found = await list_agents(database)

    assert found == [
        AgentActivity(agent_name="open", queued=1, running=0, pending=0, workers=[]),
        AgentActivity(agent_name="today", queued=0, running=0, pending=0, workers=[]),
    ]


async def test_an_agent_that_was_never_to_do_anything_is_not_known(database: Database) -> None:
    run_id = await start(database, one_block(3, agent_name="gated", max_parallelism=2))
    assert await names(database) == ["gated"]
    await driver_without_relay(database).drive([CancelRequested(run_id, None)])
    assert await names(database) == []


async def test_of_runs_that_have_ended_only_so_many_steps_are_looked_at_those_of_the_newest_first(
    database: Database,
) -> None:
    for name in ("oldest", "older", "newest"):
        await complete(database, await start(database, one_step(name)))
    going = await start(database, one_step("open"))
    await requested_before(database, going, 1)

    assert await names(database, recent_steps=2) == ["newest", "older", "open"]
    assert await names(database, recent_steps=1) == ["newest", "open"]


async def test_without_runs_there_are_no_agents(database: Database) -> None:
    assert await list_agents(database) == []
