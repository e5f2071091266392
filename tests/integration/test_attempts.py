"""Attempts that do not go as planned: nobody offers the agent, or nobody ends in time."""

import asyncio
from typing import Any
from uuid import UUID

from structlog.testing import capture_logs

from orchestrator.storage.queries import StepView, get_run
from schemas.messages import AgentResult
from schemas.statuses import ReportStatus, ResultStatus
from tests.conftest import Eventually
from tests.integration.documents import agent, block, one_block, workflow
from tests.integration.system import System, completed

ABSENT = workflow({"one": agent("absent", input_mapping={"x": 1})})


async def view(system: System, run_id: UUID, step_id: str) -> StepView:
    return next(step for step in (await get_run(system.database, run_id)).steps if step.step_id == step_id)


async def waits_visibly(system: System, run_id: UUID, step_id: str = "one") -> bool:
    if step_id not in await system.statuses(run_id):
        return False
    return (await view(system, run_id, step_id)).unroutable_since is not None


async def test_a_task_that_no_worker_has_ever_offered_to_do_waits_where_it_can_be_seen(
    system: System, eventually: Eventually
) -> None:
    await system.start_replica()
    with capture_logs() as lines:
        run_id = await system.submit(ABSENT)
        await eventually(lambda: waits_visibly(system, run_id))
    (line,) = [line for line in lines if line.get("action") == "task_unroutable"]
    assert (line["agent_name"], line["step_id"], line["run_id"]) == ("absent", "one", str(run_id))
    assert (await view(system, run_id, "one")).status == "QUEUED"
    since = (await view(system, run_id, "one")).unroutable_since
    await system.make_due()

    async def tried_again() -> bool:
        return bool(await system.fetch("SELECT 1 FROM outbox WHERE due_at > now()"))

    await eventually(tried_again)
    assert (await view(system, run_id, "one")).unroutable_since == since, "it waits since the first try"


async def test_the_first_worker_that_offers_the_agent_gets_the_task(system: System, eventually: Eventually) -> None:
    async def absent(input: Any) -> Any:
        return input

    await system.start_replica()
    run_id = await system.submit(ABSENT)
    await eventually(lambda: waits_visibly(system, run_id))
    await system.start_worker(absent)
    assert await system.ended(run_id) == "COMPLETED"
    await system.quiet()
    assert (await view(system, run_id, "one")).unroutable_since is None


async def test_a_task_that_nobody_takes_for_long_enough_fails_its_step(system: System) -> None:
    await system.start_replica(unknown_agent_after=1.0)
    steps = {
        "block": block(["here", "gone"], next_step="never", on_failure="told"),
        "here": agent("told"),
        "gone": agent("absent"),
        "never": agent("told"),
        "told": agent("told", input_mapping={"why": "${gone.error.code}"}),
    }

    async def told(input: Any) -> Any:
        return input

    await system.start_worker(told)
    result = await system.run(workflow(steps))
    assert (result.status, result.output) == (ResultStatus.COMPLETED, {"why": "unknown_agent"})
    error = (await system.steps(result.run_id))["gone"]["error"]
    assert error["code"] == "unknown_agent"
    assert '"absent"' in error["message"]
    await system.quiet()


async def test_unknown_agents_in_a_limited_block_free_their_slots(system: System) -> None:
    await system.start_replica(unknown_agent_after=0.1)
    result = await system.run(one_block(2, agent_name="absent", max_parallelism=1))
    assert result.status is ResultStatus.FAILED
    assert result.error is not None
    assert result.error.details is not None
    assert [failure["code"] for failure in result.error.details["failed_steps"]] == ["unknown_agent"] * 2
    await system.quiet()


async def test_a_run_that_is_cancelled_while_its_task_finds_no_queue_leaves_nothing(
    system: System, eventually: Eventually
) -> None:
    await system.start_replica(unknown_agent_after=0.5)
    run_id = await system.submit(ABSENT)
    await eventually(lambda: waits_visibly(system, run_id))
    await system.cancel(run_id)
    assert await system.ended(run_id) == "CANCELLED"
    await system.quiet()
    assert await system.statuses(run_id) == {"one": "CANCELLED"}


async def test_an_agent_that_hangs_is_ended_by_its_worker(system: System) -> None:
    async def hangs(input: Any) -> None:
        await asyncio.Event().wait()

    await system.start_replica()
    await system.start_worker(hangs)
    result = await system.run(workflow({"one": agent("hangs", timeout_seconds=0.2)}))
    assert result.status is ResultStatus.FAILED
    error = (await system.steps(result.run_id))["one"]["error"]
    assert error["code"] == "timeout"
    assert "0.2 s" in error["message"]


async def test_the_timeout_of_a_block_counts_for_its_branches(system: System) -> None:
    async def hangs(input: Any) -> None:
        await asyncio.Event().wait()

    await system.start_replica()
    await system.start_worker(hangs)
    result = await system.run(one_block(3, agent_name="hangs", timeout_seconds=0.2, max_parallelism=2))
    assert result.status is ResultStatus.FAILED
    steps = await system.steps(result.run_id)
    assert [steps[f"b{number}"]["error"]["code"] for number in range(3)] == ["timeout"] * 3
    await system.quiet()


async def test_an_attempt_whose_worker_says_nothing_any_more_is_ended_by_the_orchestrator(
    system: System, eventually: Eventually
) -> None:
    begun = asyncio.Event()

    async def mute(input: Any) -> None:
        begun.set()
        await asyncio.Event().wait()

    await system.start_replica()
    await system.start_worker(mute, worker_id="worker-7", report_started_after=0.0)
    run_id = await system.submit(workflow({"one": agent("mute", timeout_seconds=600)}))
    await system.step_is(run_id, "one", "RUNNING")
    rows = await system.fetch("SELECT due_at - heartbeat_at AS left FROM step_executions")
    assert rows[0]["left"].total_seconds() == 610, "the timeout and a grace for the worker to keep it itself"
    await system.fetch("UPDATE step_executions SET due_at = now() - interval '1 second'")
    assert await system.ended(run_id) == "FAILED"
    step = (await system.steps(run_id))["one"]
    assert step["error"]["code"] == "timeout"
    assert "worker-7" in step["error"]["message"]
    assert step["due_at"] is None
    late = completed(run_id, step["task_id"])
    await system.report(late)
    await eventually(lambda: system.verdicts().get("STALE late_report") == 1)
    assert await system.status(run_id) == "FAILED"


async def test_a_report_at_the_last_moment_wins_over_the_timer(system: System) -> None:
    await system.start_replica()
    await system.start_replica()
    run_id = await system.submit(ABSENT)
    await system.step_is(run_id, "one", "QUEUED")
    task_id = (await system.task_ids(run_id))["one"]
    lives = AgentResult(run_id=run_id, task_id=task_id, status=ReportStatus.STARTED, worker_id="w")
    await system.report(lives, completed(run_id, task_id, "done"))
    await system.fetch("UPDATE step_executions SET due_at = now() WHERE status = 'RUNNING'")
    assert await system.ended(run_id) in {"COMPLETED", "FAILED"}
    assert await system.statuses(run_id) == {"one": await system.status(run_id)}
