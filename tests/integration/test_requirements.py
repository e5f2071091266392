"""The requirements of the user's document, one by one, on the whole system."""

import asyncio
from typing import Any

import pytest
from structlog.testing import capture_logs

from orchestrator.storage.queries import get_run
from schemas.statuses import ResultStatus
from tests.conftest import Eventually
from tests.integration.documents import agent, block, one_block, workflow
from tests.integration.system import System

BRANCHES = ("step-a", "step-b", "step-c")


class Together:
    """An agent that ends only when so many of its kind run at the same time."""

    def __init__(self, expected: int) -> None:
        self._expected = expected
        self._all_here = asyncio.Event()
        self.running = 0
        self.most = 0

    async def meet(self, input: Any) -> Any:
        self.running += 1
        self.most = max(self.most, self.running)
        if self.running >= self._expected:
            self._all_here.set()
        await self._all_here.wait()
        self.running -= 1
        return {"result": input}


class Held:
    """Agents that say when they began, and end when they are told to."""

    def __init__(self) -> None:
        self.begun: set[str] = set()
        self._released: dict[str, asyncio.Event] = {}

    def release(self, *names: str) -> None:
        for name in names:
            self._event(name).set()

    async def hold(self, input: dict[str, Any]) -> Any:
        name = input["name"]
        self.begun.add(name)
        await self._event(name).wait()
        if input.get("fail"):
            raise ValueError(f"{name} does not like it")
        return {"result": name}

    def _event(self, name: str) -> asyncio.Event:
        return self._released.setdefault(name, asyncio.Event())


async def last(input: Any) -> Any:
    return input


def held_block(*, failing: str = "", **fields: Any) -> dict[str, Any]:
    steps = {name: agent("hold", input_mapping={"name": name, "fail": name == failing}) for name in BRANCHES}
    return workflow({"block": block(BRANCHES, **fields), **steps})


async def test_1_1_the_steps_of_a_parallel_step_run_concurrently(system: System) -> None:
    together = Together(8)
    await system.start_replica()
    await system.start_worker(together.meet)
    result = await system.run(one_block(8, agent_name="meet"))
    assert result.status is ResultStatus.COMPLETED
    assert together.most == 8


async def test_1_2_all_tasks_of_a_block_are_published_at_the_same_time(system: System, eventually: Eventually) -> None:
    await system.start_replica()
    worker = await system.start_worker(last)  # so that the queue exists; it takes nothing
    await worker.close()
    run_id = await system.submit(one_block(20, agent_name="last"))

    async def waiting() -> int:
        return (await system.broker.check_queue("agent.last")).ready

    await eventually(lambda: _is(waiting(), 20))
    steps = await system.steps(run_id)
    queued = {step["queued_at"] for name, step in steps.items() if name != "block"}
    assert len(queued) == 1
    assert {step["status"] for name, step in steps.items() if name != "block"} == {"QUEUED"}


async def test_1_3_the_run_proceeds_only_when_the_results_of_all_steps_are_there(system: System) -> None:
    held = Held()
    await system.start_replica()
    await system.start_worker(held.hold, last)
    document = held_block(next_step="final")
    document["steps"]["final"] = agent("last", input_mapping={"all": "${block.output}"})
    run_id = await system.submit(document)
    held.release("step-a", "step-c")
    await system.step_is(run_id, "step-a", "COMPLETED")
    await system.step_is(run_id, "step-c", "COMPLETED")
    assert "final" not in await system.statuses(run_id)
    assert (await system.statuses(run_id))["block"] == "RUNNING"
    held.release("step-b")
    assert await system.ended(run_id) == "COMPLETED"
    steps = await system.steps(run_id)
    assert steps["final"]["created_at"] >= max(steps[name]["finished_at"] for name in BRANCHES)
    assert list(steps["final"]["input"]["all"]) == list(BRANCHES)


async def test_1_4_when_one_step_fails_the_others_run_to_their_end_and_then_the_block_fails(system: System) -> None:
    held = Held()
    await system.start_replica()
    await system.start_worker(held.hold)
    run_id = await system.submit(held_block(failing="step-b"))
    held.release("step-b")
    await system.step_is(run_id, "step-b", "FAILED")
    assert (await system.statuses(run_id))["block"] == "RUNNING"
    held.release("step-a", "step-c")
    assert await system.ended(run_id) == "FAILED"
    assert await system.statuses(run_id) == {
        "block": "FAILED",
        "step-a": "COMPLETED",
        "step-b": "FAILED",
        "step-c": "COMPLETED",
    }


async def test_1_5_outputs_are_aggregated_by_step_and_later_steps_use_them(system: System) -> None:
    held = Held()
    held.release(*BRANCHES)
    await system.start_replica()
    await system.start_worker(held.hold, last)
    document = held_block(next_step="final")
    document["steps"]["final"] = agent(
        "last", input_mapping={name: f"${{{name}.output.result}}" for name in BRANCHES} | {"all": "${block.output}"}
    )
    result = await system.run(document)
    one_by_one = {name: name for name in BRANCHES}
    assert result.output == one_by_one | {"all": {name: {"result": name} for name in BRANCHES}}


async def test_1_6_siblings_that_depend_on_each_other_are_refused_before_anything_runs(system: System) -> None:
    await system.start_replica()
    document = held_block()
    document["steps"]["step-b"]["input_mapping"] = {"name": "${step-a.output.result}"}
    result = await system.run(document)
    assert result.status is ResultStatus.REJECTED
    assert result.error is not None
    assert result.error.code == "invalid_workflow"
    assert result.error.details is not None
    (problem,) = result.error.details["problems"]
    assert (problem["code"], problem["place"]) == ("reference_between_siblings", "steps.step-b.input_mapping.name")
    assert await system.count("runs") == 0


@pytest.mark.parametrize("limit", [1, 2])
async def test_1_7_max_parallelism_limits_how_many_branches_run_at_once(system: System, limit: int) -> None:
    together = Together(limit)
    await system.start_replica()
    await system.start_worker(together.meet)
    result = await system.run(one_block(6, agent_name="meet", max_parallelism=limit))
    assert result.status is ResultStatus.COMPLETED
    assert together.most == limit
    await system.quiet()


async def test_1_8_aggregated_outputs_keep_the_order_of_the_definition(system: System) -> None:
    held = Held()
    await system.start_replica()
    await system.start_worker(held.hold)
    run_id = await system.submit(held_block())
    for name in reversed(BRANCHES):
        held.release(name)
        await system.step_is(run_id, name, "COMPLETED")
    assert await system.ended(run_id) == "COMPLETED"
    assert list((await system.run_row(run_id))["output"]) == list(BRANCHES)


async def test_1_9_a_person_and_a_program_can_follow_the_status_of_each_step(
    system: System, eventually: Eventually
) -> None:
    held = Held()
    await system.start_replica()
    await system.start_worker(held.hold, report_started_after=0.0)
    document = held_block(failing="step-b")
    run_id = await system.submit(document)
    async with system.client.events(run_id) as batches:
        await eventually(lambda: held.begun == set(BRANCHES))
        for name in BRANCHES:
            await system.step_is(run_id, name, "RUNNING")
        seen = {step.step_id: step for step in (await get_run(system.database, run_id)).steps}
        assert {seen[name].status for name in BRANCHES} == {"RUNNING"}
        assert (seen["block"].branches_total, seen["block"].branches_open) == (3, 3)
        held.release("step-b")
        await system.step_is(run_id, "step-b", "FAILED")
        failed = next(s for s in (await get_run(system.database, run_id)).steps if s.step_id == "step-b")
        assert failed.error is not None
        assert failed.error.message == "step-b does not like it"
        held.release("step-a", "step-c")
        told: list[tuple[str | None, str]] = []
        async with asyncio.timeout(30):
            async for batch in batches:
                told += [(change.step_id, change.status.value) for event in batch for change in event.events]
                if (None, "FAILED") in told:
                    break
    assert set(told) >= {
        ("step-a", "COMPLETED"),
        ("step-b", "FAILED"),
        ("step-c", "COMPLETED"),
        ("block", "FAILED"),
        (None, "FAILED"),
    }


async def test_1_10_each_step_execution_is_a_row_with_parent_step_id_branch_name_and_join_policy(
    system: System,
) -> None:
    held = Held()
    held.release(*BRANCHES)
    await system.start_replica()
    await system.start_worker(held.hold, last)
    document = held_block(next_step="final")
    document["steps"]["final"] = agent("last")
    result = await system.run(document)
    rows = await system.fetch(
        "SELECT step_id, parent_step_id, branch_name, join_policy FROM step_executions WHERE run_id = $1 "
        "ORDER BY step_id",
        result.run_id,
    )
    assert [tuple(row) for row in rows] == [
        ("block", None, None, "all"),
        ("final", None, None, None),
        *((name, "block", name, "all") for name in BRANCHES),
    ]


async def test_failed_steps_are_logged_with_the_details_of_their_error(system: System) -> None:
    held = Held()
    held.release(*BRANCHES)
    await system.start_replica()
    await system.start_worker(held.hold, worker_id="worker-7")
    with capture_logs() as lines:
        result = await system.run(held_block(failing="step-b"))
    (line,) = [line for line in lines if line.get("action") == "step_failed" and line["step_id"] == "step-b"]
    assert line["log_level"] == "warning"
    assert line["run_id"] == str(result.run_id)
    assert (line["parent_step_id"], line["worker_id"]) == ("block", "worker-7")
    assert (line["code"], line["error"]) == ("agent_error", "step-b does not like it")


async def _is(number: Any, expected: int) -> bool:
    return bool(await number == expected)
