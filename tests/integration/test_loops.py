"""Loops on real queues and rows: their order and limits, what a failed iteration means, what lies in their bodies."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from agent_worker import AgentContext
from orchestrator.engine.inputs import BranchArrived
from orchestrator.service.batch import Committed
from orchestrator.storage.database import Database
from schemas.statuses import ResultStatus
from tests.conftest import Eventually
from tests.integration.by_hand import driver_without_relay, requested
from tests.integration.documents import Document, agent, block, choice, loop, workflow
from tests.integration.system import System

ITEM = {"item": "${loop.item}"}


def one_loop(**config: Any) -> Document:
    """Return a workflow of a loop with the body x, y; y gets what x gave."""
    return workflow(
        {
            "loop": loop("x", "y", **config),
            "x": agent("work", input_mapping=ITEM),
            "y": agent("work", input_mapping={"item": "${x.output.item}"}),
        }
    )


class Working:
    """An agent that notes in which order it was called, and how many iterations were under way at once."""

    def __init__(self, *broken: Any) -> None:
        self.calls: list[str] = []
        self.most = 0
        self._broken = broken
        self._under_way: set[str] = set()

    def named(self) -> Any:
        async def work(input: Any, context: AgentContext) -> Any:
            self.calls.append(context.step_id)
            iteration = str(context.branch_name)
            self._under_way.add(iteration)
            self.most = max(self.most, len(self._under_way))
            for _ in range(20):
                await asyncio.sleep(0)
            fails = input["item"] in self._broken
            if fails or context.step_id.startswith("y"):
                self._under_way.discard(iteration)
            if fails:
                raise ValueError(f"no luck with {input['item']}")
            return {"item": input["item"], "step": context.step_id}

        return work


def entry(index: int, item: Any) -> Document:
    return {"index": index, "status": "COMPLETED", "output": {"item": item, "step": f"y[{index}]"}, "error": None}


@pytest.mark.parametrize("replicas", [1, 2])
async def test_a_sequential_loop_runs_one_iteration_after_the_other(system: System, replicas: int) -> None:
    working = Working()
    for _ in range(replicas):
        await system.start_replica()
    await system.start_worker(working.named())
    result = await system.run(one_loop(max_parallelism=3), list("abcdefghijkl"))
    assert result.status is ResultStatus.COMPLETED, result.error
    assert working.calls == [f"{step}[{index}]" for index in range(12) for step in "xy"]
    assert working.most == 1
    iterations = [entry(index, item) for index, item in enumerate("abcdefghijkl")]
    assert result.output == {
        "iterations": iterations, "total_count": 12, "completed_count": 12, "failed_count": 0,
    }  # fmt: skip
    await system.quiet()


async def test_a_parallel_loop_comes_up_to_its_limit_and_not_above_it(system: System) -> None:
    most, under_way, full = 0, 0, asyncio.Event()

    async def work(input: Any) -> Any:
        nonlocal most, under_way
        under_way += 1
        most = max(most, under_way)
        if under_way == 3:
            full.set()
        await full.wait()
        await asyncio.sleep(0)
        under_way -= 1
        return input

    await system.start_replica()
    await system.start_replica()
    await system.start_worker(work, concurrency=20)
    steps = {"loop": loop("x", execution_mode="parallel", max_parallelism=3), "x": agent("work", input_mapping=ITEM)}
    result = await system.run(workflow(steps), list(range(25)))
    assert result.status is ResultStatus.COMPLETED, result.error
    assert most == 3
    assert [one["output"]["item"] for one in result.output["iterations"]] == list(range(25))
    await system.quiet()


@pytest.mark.parametrize("mode", ["sequential", "parallel"])
@pytest.mark.parametrize("on_error", ["continue", "collect"])
async def test_all_iterations_run_and_their_failures_are_listed(system: System, on_error: str, mode: str) -> None:
    working = Working("b", "d")
    await system.start_replica()
    await system.start_worker(working.named())
    document = one_loop(on_error=on_error, execution_mode=mode)
    document["steps"]["loop"]["next_step"] = "after"
    document["steps"]["after"] = agent("says", input_mapping={"loop": "${loop.output}"})
    document["steps"]["loop"]["on_failure"] = "after"

    async def says(input: Any) -> Any:
        return input

    await system.start_worker(says)
    result = await system.run(document, list("abcde"))
    assert result.status is ResultStatus.COMPLETED, result.error
    seen = result.output["loop"]
    assert [seen[name] for name in ("total_count", "completed_count", "failed_count")] == [5, 3, 2]
    assert [one["status"] for one in seen["iterations"]] == ["COMPLETED", "FAILED", "COMPLETED", "FAILED", "COMPLETED"]
    assert [one["index"] for one in seen["iterations"]] == [0, 1, 2, 3, 4]
    failed = seen["iterations"][3]
    assert (failed["output"], failed["error"]["message"]) == (None, "no luck with d")
    assert result.run_id is not None
    row = (await system.steps(result.run_id))["loop"]
    assert row["status"] == {"continue": "COMPLETED", "collect": "FAILED"}[on_error]
    if on_error == "collect":
        assert row["error"]["code"] == "iterations_failed"
        assert row["error"]["message"] == "2 of 5 iterations failed: x[1]: no luck with b; x[3]: no luck with d"
    await system.quiet()


async def test_after_a_failure_a_loop_that_stops_starts_no_further_iteration(system: System) -> None:
    working = Working("c")
    await system.start_replica()
    await system.start_worker(working.named())
    result = await system.run(one_loop(), list("abcdefgh"))
    assert result.status is ResultStatus.FAILED
    assert result.error is not None
    assert result.error.message == 'step "loop" failed: 1 of 8 iterations failed: x[2]: no luck with c'
    assert working.calls == ["x[0]", "y[0]", "x[1]", "y[1]", "x[2]"]
    assert result.run_id is not None
    rows = await system.steps(result.run_id)
    statuses = [one["status"] for one in rows["loop"]["output"]["iterations"]]
    assert statuses == ["COMPLETED", "COMPLETED", "FAILED", *["CANCELLED"] * 5]
    assert [rows["loop"]["output"][name] for name in ("total_count", "completed_count", "failed_count")] == [8, 2, 1]
    await system.quiet()


async def test_what_has_begun_when_a_loop_stops_runs_to_its_end(system: System, eventually: Eventually) -> None:
    begun: list[int] = []
    go_on = asyncio.Event()

    async def work(input: Any) -> Any:
        begun.append(input["item"])
        if input["item"] == 0:
            raise ValueError("no luck")
        await go_on.wait()
        return input["item"]

    await system.start_replica()
    await system.start_worker(work)
    config = {"execution_mode": "parallel", "max_parallelism": 2}
    run_id = await system.submit(
        workflow({"loop": loop("x", **config), "x": agent("work", input_mapping=ITEM)}), list(range(9))
    )
    await system.step_is(run_id, "x[8]", "CANCELLED")
    await eventually(lambda: begun == [0, 1])
    assert (await system.statuses(run_id))["loop"] == "RUNNING"
    go_on.set()
    assert await system.ended(run_id) == "FAILED"
    rows = await system.steps(run_id)
    statuses = [one["status"] for one in rows["loop"]["output"]["iterations"]]
    assert statuses == ["FAILED", "COMPLETED", *["CANCELLED"] * 7]
    assert begun == [0, 1]
    await system.quiet()


async def test_an_iteration_that_is_tried_again_counts_once(system: System) -> None:
    calls: list[tuple[int, int]] = []

    async def work(input: Any, context: AgentContext) -> Any:
        calls.append((input["item"], context.attempt))
        if input["item"] == 1 and context.attempt == 1:
            raise ValueError("no luck")
        return input["item"]

    retry = {"max_attempts": 2, "initial_interval_seconds": 0.1, "jitter": False}
    await system.start_replica()
    await system.start_worker(work)
    steps = {"loop": loop("x"), "x": agent("work", input_mapping=ITEM, retry=retry)}
    result = await system.run(workflow(steps), list(range(6)))
    assert result.status is ResultStatus.COMPLETED, result.error
    assert [one["output"] for one in result.output["iterations"]] == list(range(6))
    assert sorted(calls) == [(0, 1), (1, 1), (1, 2), (2, 1), (3, 1), (4, 1), (5, 1)]
    await system.quiet()


async def test_the_time_limit_of_a_branch_ends_the_loop_in_it(system: System, eventually: Eventually) -> None:
    begun: list[str] = []
    cancelled: list[str] = []

    async def hangs(input: Any, context: AgentContext) -> Any:
        begun.append(context.step_id)
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(context.step_id)
            raise

    async def says(input: Any) -> Any:
        return input

    branches = {"slow": {"steps": ["loop"], "timeout_seconds": 0.5}, "quick": {"steps": ["a"]}}
    steps = {
        "fork": {"type": "fork_join", "fork_join_config": {"branches": branches, "join_policy": "any"}},
        "loop": loop("x", collection=[1, 2, 3]),
        "x": agent("hangs"),
        "a": agent("says"),
    }
    await system.start_replica()
    await system.start_worker(hangs, says)
    result = await system.run(workflow(steps))
    assert result.status is ResultStatus.COMPLETED, result.error
    assert result.output == {"slow": None, "quick": {}}
    assert result.run_id is not None
    rows = await system.steps(result.run_id)
    assert (rows["loop"]["status"], rows["loop"]["error"]["code"]) == ("FAILED", "branch_timeout")
    assert [one["status"] for one in rows["loop"]["output"]["iterations"]] == ["CANCELLED"] * 3
    await eventually(lambda: cancelled == begun)
    await system.quiet()


async def test_an_input_that_cannot_be_made_stops_a_loop_when_its_turn_comes(system: System) -> None:
    working = Working()
    await system.start_replica()
    await system.start_worker(working.named())
    document = one_loop()
    document["steps"]["x"]["input_mapping"] = {"item": "${loop.item.name}"}
    result = await system.run(document, [{"name": "a"}, {"name": "b"}, {}, {"name": "d"}])
    assert result.status is ResultStatus.FAILED
    assert result.error is not None
    assert "${loop.item.name} leads nowhere" in result.error.message
    assert working.calls == ["x[0]", "y[0]", "x[1]", "y[1]"]
    await system.quiet()


async def test_an_empty_collection_is_done_at_once(system: System) -> None:
    await system.start_replica()
    result = await system.run(one_loop(), [])
    assert result.output == {"iterations": [], "total_count": 0, "completed_count": 0, "failed_count": 0}
    await system.quiet()


@pytest.mark.parametrize("outer", [{}, {"execution_mode": "parallel"}], ids=["sequential", "parallel"])
async def test_bodies_hold_loops_blocks_and_choices(system: System, outer: Document) -> None:
    async def says(input: Any, context: AgentContext) -> Any:
        return {"step": context.step_id, "input": input}

    steps = {
        "outer": loop("inner", "pair", "big", "last", **outer),
        "inner": loop("x", execution_mode="parallel", max_parallelism=2, collection="${loop.item.parts}"),
        "x": agent("says", input_mapping={"part": "${loop.item}", "at": "${loop.index} of ${loop.total}"}),
        "pair": block(["p", "q"], max_parallelism=1),
        "p": agent("says", input_mapping={"inner": "${inner.output.completed_count}", "name": "${loop.item.name}"}),
        "q": agent("says", input_mapping={"is_last": "${loop.is_last}"}),
        "big": choice("${inner.output.total_count} > 2", if_true_step="yes"),
        "yes": agent("says", input_mapping={"name": "${loop.item.name}"}),
        "last": agent(
            "says", input_mapping={"yes": "${yes.status}", "p": "${p.output.input}", "name": "${loop.item.name}"}
        ),
    }
    items = [{"name": name, "parts": list(range(size))} for name, size in (("a", 3), ("b", 0), ("c", 1), ("d", 4))]
    await system.start_replica()
    await system.start_replica()
    await system.start_worker(says)
    result = await system.run(workflow(steps), items)
    assert result.status is ResultStatus.COMPLETED, result.error
    found = [one["output"]["input"] for one in result.output["iterations"]]
    assert found == [
        {
            "yes": "COMPLETED" if len(item["parts"]) > 2 else "SKIPPED",
            "p": {"inner": len(item["parts"]), "name": item["name"]},
            "name": item["name"],
        }
        for item in items
    ]  # fmt: skip
    assert result.run_id is not None
    rows = await system.steps(result.run_id)
    assert rows["x[3][2]"]["input"] == {"part": 2, "at": "2 of 4"}
    assert [rows[f"q[{index}]"]["input"]["is_last"] for index in range(4)] == [False, False, False, True]
    assert {row["status"] for row in rows.values()} == {"COMPLETED", "SKIPPED"}
    await system.quiet()


async def test_a_large_loop_without_a_limit_comes_back_whole_and_in_order(system: System) -> None:
    async def work(input: Any) -> Any:
        return input["item"]

    await system.start_replica()
    await system.start_worker(work, concurrency=50)
    steps = {"loop": loop("x", execution_mode="parallel"), "x": agent("work", input_mapping=ITEM)}
    result = await system.run(workflow(steps), list(range(3_000)))
    assert result.status is ResultStatus.COMPLETED, result.error
    assert [one["output"] for one in result.output["iterations"]] == list(range(3_000))
    assert result.output["completed_count"] == 3_000
    await system.quiet()


async def test_a_large_loop_without_a_limit_may_begin_with_a_step_that_needs_no_worker(system: System) -> None:
    async def work(input: Any) -> Any:
        return input["item"]

    steps = {
        "loop": loop("most", execution_mode="parallel"),
        "most": choice("${loop.item} not in [0, 700, 2999]", if_true_step="x"),
        "x": agent("work", input_mapping=ITEM),
    }
    await system.start_replica()
    await system.start_replica()
    await system.start_worker(work, concurrency=50)
    result = await system.run(workflow(steps), list(range(3_000)))
    assert result.status is ResultStatus.COMPLETED, result.error
    assert result.output["completed_count"] == 3_000
    assert result.run_id is not None
    counted = "SELECT status, count(*) FROM step_executions WHERE run_id = $1 AND step_id LIKE 'x[%' GROUP BY status"
    assert {tuple(row) for row in await system.fetch(counted, result.run_id)} == {("COMPLETED", 2_997), ("SKIPPED", 3)}
    await system.quiet()


async def test_iterations_that_need_no_worker_follow_each_other_at_once(system: System) -> None:
    async def work(input: Any) -> Any:
        return input["item"]

    steps = {
        "loop": loop("rare", "end"),
        "rare": choice("${loop.item} in [0, 1000, 1999]", if_true_step="x"),
        "x": agent("work", input_mapping=ITEM),
        "end": choice("true", if_false_step="never"),
        "never": agent("work"),
    }
    await system.start_replica()
    await system.start_worker(work)
    result = await system.run(workflow(steps), list(range(2_000)))
    assert result.status is ResultStatus.COMPLETED, result.error
    assert result.output["completed_count"] == 2_000
    assert result.run_id is not None
    rows = await system.fetch(
        "SELECT step_id, status FROM step_executions WHERE run_id = $1 AND step_id LIKE 'x[%'", result.run_id
    )
    assert len(rows) == 2_000
    assert {row["step_id"] for row in rows if row["status"] == "COMPLETED"} == {"x[0]", "x[1000]", "x[1999]"}
    await system.quiet()


async def test_of_iterations_that_need_no_worker_only_so_many_pass_in_one_transaction(database: Database) -> None:
    steps = {
        "loop": loop("never"),
        "never": choice("${loop.index} < 0", if_true_step="x"),
        "x": agent("work"),
    }
    driver = driver_without_relay(database)
    event = replace(await requested(database, workflow(steps)), input=list(range(2_500)))
    await driver.drive([event])
    passed: list[int] = []

    async def count(committed: Committed) -> None:
        async with database.connection() as connection:
            passed.append(
                await connection.fetchval("SELECT branches_passed FROM step_executions WHERE step_id = 'loop'")
            )

    driver.follow(count)
    await driver.drive([BranchArrived(event.run_id, "loop", "never[0]")])
    assert passed == [1_000, 2_001, 2_500]
    async with database.connection() as connection:
        assert await connection.fetchval("SELECT status FROM runs") == "COMPLETED"


@pytest.mark.parametrize("config", [{}, {"execution_mode": "parallel"}], ids=["sequential", "parallel"])
async def test_a_run_is_cancelled_in_the_middle_of_a_loop(
    system: System, eventually: Eventually, config: Document
) -> None:
    begun: list[str] = []
    cancelled: list[str] = []

    async def work(input: Any, context: AgentContext) -> Any:
        if input["item"] == 0:
            return input
        begun.append(context.step_id)
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(context.step_id)
            raise

    steps = {
        "outer": loop("inner", collection=[0, 1, 2]),
        "inner": loop("x", collection=[0, 1, 2], **config),
        "x": agent("work", input_mapping=ITEM),
    }
    await system.start_replica()
    await system.start_worker(work)
    run_id = await system.submit(workflow(steps))
    await eventually(lambda: len(begun) == (2 if config else 1))
    await system.cancel(run_id)
    assert await system.ended(run_id) == "CANCELLED"
    await eventually(lambda: sorted(cancelled) == sorted(begun))
    statuses = await system.statuses(run_id)
    assert statuses["x[0][0]"] in {"COMPLETED", "CANCELLED"}
    assert {status for step_id, status in statuses.items() if step_id != "x[0][0]"} == {"CANCELLED"}
    await system.quiet()


async def test_a_loop_goes_on_when_the_replica_that_holds_its_gate_is_killed(
    system: System, eventually: Eventually
) -> None:
    working = Working()
    first = await system.start_replica()
    await system.start_worker(working.named())
    run_id = await system.submit(one_loop(), list(range(20)))
    await eventually(lambda: len(working.calls) > 5)
    await system.start_replica()
    await system.end(first, crash=True)
    assert await system.ended(run_id) == "COMPLETED"
    expected = [f"{step}[{index}]" for index in range(20) for step in "xy"]
    assert list(dict.fromkeys(working.calls)) == expected
    assert working.most == 1
    output = (await system.run_row(run_id))["output"]
    assert output["iterations"] == [entry(index, index) for index in range(20)]
    await system.quiet()
