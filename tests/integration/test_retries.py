"""Attempts that are followed by another, on both brokers and a real Postgres."""

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from agent_worker import AgentContext, AgentFailed, RetryLater
from orchestrator.storage.queries import get_run
from schemas.statuses import ResultStatus
from tests.integration.documents import agent, block, workflow
from tests.integration.system import System

SOON = {"max_attempts": 3, "initial_interval_seconds": 0.01, "jitter": False}


def failing(times: int, error: Callable[[], Exception] = lambda: ValueError("no luck")) -> Any:
    """Return an agent that fails so many times and then says in which attempt it is."""

    async def unsteady(input: Any, context: AgentContext) -> Any:
        if context.attempt <= times:
            raise error()
        return {"attempt": context.attempt, "input": input}

    return unsteady


async def test_a_step_is_tried_again_and_its_history_is_kept(system: System) -> None:
    await system.start_replica()
    await system.start_worker(failing(2))
    result = await system.run(workflow({"one": agent("unsteady", retry=SOON, input_mapping={"x": 1})}))
    assert result.status is ResultStatus.COMPLETED
    assert result.output == {"attempt": 3, "input": {"x": 1}}
    assert result.run_id is not None
    [step] = (await get_run(system.database, result.run_id)).steps
    assert (step.attempt, step.status, step.error) == (3, "COMPLETED", None)
    assert [(earlier.attempt, earlier.error.code, earlier.error.message) for earlier in step.earlier_attempts] == [
        (1, "agent_error", "no luck"),
        (2, "agent_error", "no luck"),
    ]
    first, second = step.earlier_attempts
    assert first.worker_id is not None
    assert first.started_at is not None
    assert first.finished_at <= second.finished_at
    assert second.retry_at > second.finished_at
    await system.quiet()


async def test_the_last_attempt_that_may_be_made_fails_the_step(system: System) -> None:
    await system.start_replica()
    await system.start_worker(failing(9))
    result = await system.run(workflow({"one": agent("unsteady", retry=SOON)}))
    assert result.status is ResultStatus.FAILED
    assert result.run_id is not None
    step = (await system.steps(result.run_id))["one"]
    assert (step["attempt"], step["status"], step["due_at"]) == (3, "FAILED", None)
    assert await system.count("step_attempts") == 2
    await system.quiet()


@pytest.mark.parametrize("brokers", ["memory"], indirect=True)
@pytest.mark.parametrize(
    ("retry", "error"),
    [
        ({"retry": SOON | {"non_retryable": ["ValueError"]}}, lambda: ValueError("no luck")),
        ({"retry": SOON}, lambda: AgentFailed("never", retryable=False)),
        ({"retry_strategy": {"retry_on_errors": ["KeyError"]}}, lambda: ValueError("no luck")),
    ],
)
async def test_some_failures_are_final(system: System, retry: Any, error: Callable[[], Exception]) -> None:
    await system.start_replica()
    await system.start_worker(failing(1, error))
    result = await system.run(workflow({"one": agent("unsteady", **retry)}))
    assert result.status is ResultStatus.FAILED
    assert await system.count("step_attempts") == 0


@pytest.mark.parametrize("brokers", ["memory"], indirect=True)
async def test_the_older_form_works_too(system: System) -> None:
    await system.start_replica()
    await system.start_worker(failing(2))
    strategy = {"type": "fixed_delay", "max_retries": 2, "initial_delay_ms": 10}
    result = await system.run(workflow({"one": agent("unsteady", retry_strategy=strategy)}))
    assert result.output == {"attempt": 3, "input": {}}


async def test_an_agent_that_is_throttled_is_called_later_without_using_up_its_attempts(system: System) -> None:
    await system.start_replica()
    await system.start_worker(failing(4, lambda: RetryLater(0.01, "slow down")))
    result = await system.run(workflow({"one": agent("unsteady")}))
    assert result.output == {"attempt": 5, "input": {}}
    assert result.run_id is not None
    step = (await system.steps(result.run_id))["one"]
    assert (step["attempt"], step["postponed"]) == (5, 4)
    await system.quiet()


async def test_a_branch_that_waits_gives_its_slot_back_and_the_limit_holds(system: System) -> None:
    running: Counter[str] = Counter()
    most, order = 0, []

    async def unsteady(input: Any, context: AgentContext) -> Any:
        nonlocal most
        running["now"] += 1
        most = max(most, running["now"])
        order.append((context.step_id, context.attempt))
        await asyncio.sleep(0)
        running["now"] -= 1
        if context.step_id in {"b0", "b3"} and context.attempt < 3:
            raise ValueError("no luck")
        return context.attempt

    await system.start_replica()
    await system.start_worker(unsteady)
    names = [f"b{number}" for number in range(6)]
    retry = SOON | {"initial_interval_seconds": 0.3}
    document = workflow(
        {"block": block(names, max_parallelism=1, retry=retry), **dict.fromkeys(names, agent("unsteady"))}
    )
    result = await system.run(document)
    assert result.output == {"b0": 3, "b1": 1, "b2": 1, "b3": 3, "b4": 1, "b5": 1}
    assert most == 1
    assert order.index(("b1", 1)) < order.index(("b0", 2)), "its pause did not hold the others up"
    assert Counter(step for step, _ in order) == Counter({"b0": 3, "b1": 1, "b2": 1, "b3": 3, "b4": 1, "b5": 1})
    await system.quiet()


async def test_a_run_that_is_cancelled_while_a_step_waits_makes_no_other_attempt(
    system: System, eventually: Callable[..., Any]
) -> None:
    await system.start_replica()
    await system.start_worker(failing(9))
    run_id = await system.submit(
        workflow(
            {"one": agent("unsteady", retry=SOON | {"initial_interval_seconds": 3_600, "max_interval_seconds": 3_600})}
        )
    )
    await eventually(lambda: _waits(system, run_id))
    await system.cancel(run_id)
    assert await system.ended(run_id) == "CANCELLED"
    step = (await system.steps(run_id))["one"]
    assert (step["status"], step["due_at"], step["attempt"]) == ("CANCELLED", None, 1)
    await system.quiet()


async def test_a_replica_that_starts_later_makes_the_attempt_that_is_due(
    system: System, eventually: Callable[..., Any]
) -> None:
    replica = await system.start_replica()
    await system.start_worker(failing(1))
    run_id = await system.submit(workflow({"one": agent("unsteady", retry=SOON | {"initial_interval_seconds": 1})}))
    await eventually(lambda: _waits(system, run_id))
    await system.end(replica, crash=True)
    await system.start_replica()
    assert await system.ended(run_id) == "COMPLETED"


async def _waits(system: System, run_id: Any) -> bool:
    step = (await system.steps(run_id)).get("one")
    return step is not None and step["status"] == "PENDING" and step["attempt"] == 1
