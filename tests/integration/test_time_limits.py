"""What ends a wait that is too long: of a task for a worker, of an attempt for a sign of life, of a run for its end."""

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from messaging import topology
from schemas.messages import AgentResult
from schemas.statuses import ReportStatus, ResultStatus
from tests.conftest import Eventually
from tests.integration.documents import agent, block, workflow
from tests.integration.system import System, completed


async def test_a_task_that_no_worker_takes_in_time_fails_its_step(system: System) -> None:
    async def echo(input: Any) -> Any:
        return input

    await system.start_replica()
    worker = await system.start_worker(echo)
    await worker.drain()  # its queue is there, and nobody takes from it
    result = await system.run(workflow({"one": agent("echo", queue_timeout_seconds=0.2)}))
    assert result.status is ResultStatus.FAILED
    assert result.run_id is not None
    step = (await system.steps(result.run_id))["one"]
    assert (step["error"]["code"], step["started_at"]) == ("queue_timeout", None)


async def test_a_task_that_is_taken_in_time_may_run_for_longer(system: System) -> None:
    async def slow(input: Any) -> Any:
        await asyncio.sleep(0.6)
        return "done"

    await system.start_replica()
    await system.start_worker(slow)
    result = await system.run(workflow({"one": agent("slow", queue_timeout_seconds=0.5)}))
    assert result.output == "done"


async def test_an_attempt_whose_worker_falls_silent_is_made_again_by_another(
    system: System, eventually: Eventually
) -> None:
    await system.start_replica()
    await system.broker.declare([], [topology.agent_queue("echo")])
    retry = {"max_attempts": 2, "initial_interval_seconds": 0}
    run_id = await system.submit(workflow({"one": agent("echo", heartbeat_timeout_seconds=0.3, retry=retry)}))
    await system.step_is(run_id, "one", "QUEUED")
    first = (await system.task_ids(run_id))["one"]
    await system.report(AgentResult(run_id=run_id, task_id=first, status=ReportStatus.STARTED, worker_id="silent"))

    async def made_again() -> bool:
        return (await system.steps(run_id))["one"]["attempt"] == 2

    await eventually(made_again)
    [(error, worker_id)] = await system.fetch("SELECT error->>'code', worker_id FROM step_attempts")
    assert (error, worker_id) == ("heartbeat_timeout", "silent")
    await system.report(completed(run_id, (await system.task_ids(run_id))["one"], output="again"))
    assert await system.ended(run_id) == "COMPLETED"


async def test_a_worker_speaks_often_enough_for_the_patience_of_its_task(
    system: System, eventually: Eventually
) -> None:
    end = asyncio.Event()

    async def slow(input: Any) -> Any:
        await end.wait()
        return "done"

    await system.start_replica()
    await system.start_worker(slow)  # which by itself would speak every 30 seconds
    run_id = await system.submit(workflow({"one": agent("slow", heartbeat_timeout_seconds=3)}))

    async def outlived_its_patience() -> bool:
        step = (await system.steps(run_id)).get("one")
        if step is None or step["heartbeat_at"] is None:
            return False
        return bool(step["heartbeat_at"] - step["queued_at"] > timedelta(seconds=4))

    await eventually(outlived_its_patience)
    end.set()
    assert await system.ended(run_id) == "COMPLETED"


@pytest.mark.parametrize("limit", [None, 1])
async def test_a_run_that_takes_too_long_fails_with_all_that_is_open(system: System, limit: int | None) -> None:
    async def sleepless(input: Any) -> Any:
        await asyncio.Event().wait()

    await system.start_replica()
    await system.start_worker(sleepless)
    fields = {"max_parallelism": limit} if limit is not None else {}
    steps = {"block": block(["a", "b"], **fields), "a": agent("sleepless"), "b": agent("sleepless")}
    result = await system.run(workflow(steps, timeout_seconds=0.5))
    assert result.status is ResultStatus.FAILED
    assert result.error is not None
    assert (result.error.code, result.error.message) == ("run_timeout", "the run took longer than its timeout of 0.5 s")
    assert result.run_id is not None
    assert set((await system.statuses(result.run_id)).values()) == {"CANCELLED"}
    await system.quiet()


async def test_a_run_that_ends_in_time_stays_as_it_is(system: System) -> None:
    async def echo(input: Any) -> Any:
        return input

    await system.start_replica()
    await system.start_worker(echo)
    result = await system.run(workflow({"one": agent("echo")}, timeout_seconds=60))
    assert result.status is ResultStatus.COMPLETED
    assert result.run_id is not None
    assert (await system.run_row(result.run_id))["due_at"] is None
