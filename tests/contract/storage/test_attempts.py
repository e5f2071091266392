"""Attempts that somebody should look at: those that are overdue, and those that nobody has heard of for a while."""

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest

from orchestrator.engine.decision import EndedAttempt
from orchestrator.engine.inputs import AttemptOverdue, RetryDue, RunOverdue, TaskMissing
from orchestrator.engine.records import StepExecution
from orchestrator.engine.state import Wanted
from orchestrator.storage.changes import Changes
from orchestrator.storage.due import Due
from orchestrator.storage.port import Storage
from orchestrator.storage.silent import PATIENCE_WITH_WORKERS, Silence
from schemas.messages import ErrorInfo
from schemas.statuses import RunStatus, StepStatus
from tests.contract.storage.backends import Backend
from tests.contract.storage.rows import (
    BLOCK,
    DOCUMENT,
    NOTHING,
    TIME,
    WORKFLOW,
    add_run,
    block,
    branch,
    changes,
    message,
    queued,
    run,
    seen,
    step,
    write,
)

RUN = UUID(int=1)
PATIENCE = 100.0


def attempt(backend: Backend, step_id: str, *, age: float, heard: float | None = None, **fields: Any) -> StepExecution:
    """Return an attempt that was sent *age* seconds ago, and heard of *heard* seconds ago."""
    known: dict[str, Any] = {
        "status": StepStatus.QUEUED if heard is None else StepStatus.RUNNING,
        "attempt": 1,
        "task_id": uuid4(),
        "queued_at": backend.now() - timedelta(seconds=age),
        "heartbeat_at": None if heard is None else backend.now() - timedelta(seconds=heard),
    }
    return step(RUN, step_id, **{**known, **fields})


async def test_attempts_are_overdue_when_their_time_is_up_the_longest_first(backend: Backend, storage: Storage) -> None:
    dues = {"soon": 60.0, "just": -5.0, "long": -500.0, "never": None, "some": -50.0}
    steps = [
        attempt(backend, name, age=0, due_at=None if due is None else backend.now() + timedelta(seconds=due))
        for name, due in dues.items()
    ]
    await add_run(storage, *steps, run_id=RUN)
    tasks = {one.step_id: one.task_id for one in steps}
    expected = [AttemptOverdue(RUN, name, task) for name in ("long", "some", "just") if (task := tasks[name])]
    assert await storage.due_inputs(10) == expected
    assert await storage.due_inputs(2) == expected[:2]


async def test_a_step_without_a_task_is_due_for_its_next_attempt(backend: Backend, storage: Storage) -> None:
    past = backend.now() - timedelta(seconds=3)
    waiting = step(RUN, "one", attempt=1, due_at=past)
    await add_run(storage, waiting, step(RUN, "two", due_at=backend.now() + timedelta(seconds=60)), run_id=RUN)
    assert await storage.due_inputs(10) == [RetryDue(RUN, "one")]
    assert Due.TIMES in await storage.what_is_due("r")


async def test_runs_are_due_among_the_steps_until_they_have_ended(backend: Backend, storage: Storage) -> None:
    def ago(seconds: float) -> datetime:
        return backend.now() - timedelta(seconds=seconds)

    await storage.store_definition(WORKFLOW, DOCUMENT)
    late, later, calm = (
        run(UUID(int=7), due_at=ago(60)),
        run(UUID(int=8), due_at=ago(5)),
        run(UUID(int=9), due_at=ago(-60)),
    )
    for one in (late, later, calm, run(UUID(int=10))):
        await write(storage, one.id, changes(new=one))
    await write(storage, late.id, changes(step(late.id, "one", attempt=1, due_at=ago(30))))
    found = [RunOverdue(late.id), RetryDue(late.id, "one"), RunOverdue(later.id)]
    assert await storage.due_inputs(10) == found
    assert await storage.due_inputs(1) == found[:1]
    assert Due.TIMES in await storage.what_is_due("r")
    assert (await seen(storage, later.id)).run == later
    await write(storage, late.id, changes(ended=replace(late, status=RunStatus.FAILED, due_at=None)))
    assert await storage.due_inputs(10) == found[1:]


async def test_an_attempt_that_is_followed_by_another_is_kept_once(storage: Storage) -> None:
    tried = queued(RUN, 0)
    await add_run(storage, block(RUN), tried, run_id=RUN)
    ended = EndedAttempt(tried._replace(finished_at=TIME), ErrorInfo(code="agent_error", message="no luck"), TIME)
    await write(storage, RUN, Changes(ended_attempts=[ended]))
    with pytest.raises(asyncpg.UniqueViolationError):
        await write(storage, RUN, Changes(ended_attempts=[ended]))


async def test_a_cancelled_run_leaves_nothing_ready(backend: Backend, storage: Storage) -> None:
    past = backend.now() - timedelta(seconds=3)
    counted = block(RUN)
    assert counted.branches is not None
    await add_run(storage, counted, branch(RUN, 0), branch(RUN, 1, due_at=past), run_id=RUN)
    ready = branch(RUN, 0, attempt=1)._replace(ready_at=TIME)
    counted = counted._replace(branches=counted.branches._replace(ready=1))
    await write(storage, RUN, changes(changed=[ready, counted]))
    async with storage.session() as session:
        await session.first_look({RUN: NOTHING})
        await session.cancel_open_steps(RUN, None, TIME)
    state = await seen(storage, RUN, Wanted(steps=frozenset({BLOCK, ready.step_id}), ready=frozenset({(BLOCK, 9)})))
    assert state.ready == {BLOCK: (9, ())}
    cancelled = state.steps[BLOCK]
    assert cancelled is not None
    assert cancelled.branches is not None
    assert cancelled.branches.ready == 0
    assert await storage.due_inputs(10) == []


async def test_an_attempt_that_has_ended_is_not_overdue(backend: Backend, storage: Storage) -> None:
    late = attempt(backend, "one", age=9, due_at=backend.now() - timedelta(seconds=3))
    await add_run(storage, late, run_id=RUN)
    await write(storage, RUN, changes(changed=[step(RUN, "one", StepStatus.FAILED)]))
    assert await storage.due_inputs(10) == []


async def test_silent_and_fresh_attempts_are_counted_by_agent(backend: Backend, storage: Storage) -> None:
    await add_run(
        storage,
        attempt(backend, "silent", age=PATIENCE + 1),
        attempt(backend, "fresh", age=PATIENCE / 2),
        attempt(backend, "speaks", age=PATIENCE * 9, heard=PATIENCE * PATIENCE_WITH_WORKERS - 9),
        attempt(backend, "fell silent", age=PATIENCE * 9, heard=PATIENCE * PATIENCE_WITH_WORKERS + 1),
        attempt(backend, "waits", age=PATIENCE * 9, status=StepStatus.PENDING),
        attempt(backend, "over", age=PATIENCE * 9, status=StepStatus.FAILED),
        attempt(backend, "other fresh", age=1, agent_name="alone"),
        attempt(backend, "b silent", age=PATIENCE * 9, agent_name="bravo"),
        attempt(backend, "a silent", age=PATIENCE * 9, agent_name="alpha"),
        block(RUN),
        run_id=RUN,
    )
    expected = [Silence("alpha", 1, 0), Silence("bravo", 1, 0), Silence("echo", 2, 1)]
    assert await storage.count_silent(PATIENCE) == expected


async def test_an_attempt_whose_task_is_in_the_outbox_is_not_silent(backend: Backend, storage: Storage) -> None:
    unsent = attempt(backend, "one", age=PATIENCE * 9)
    await add_run(storage, unsent, run_id=RUN, outbox=[(message(RUN, task_id=unsent.task_id), 0.0)])
    assert await storage.count_silent(PATIENCE) == []
    assert await storage.oldest_silent("echo", PATIENCE, 10) == []
    async with storage.outbox() as outbox:
        await outbox.delete_tasks([task for task in [unsent.task_id] if task is not None])
    assert await storage.count_silent(PATIENCE) == [Silence("echo", 1, 0)]


@pytest.mark.parametrize("status", [status for status in RunStatus if status is not RunStatus.RUNNING])
async def test_only_attempts_of_running_runs_are_silent(backend: Backend, storage: Storage, status: RunStatus) -> None:
    await add_run(storage, attempt(backend, "one", age=PATIENCE * 9), run_id=RUN)
    assert len(await storage.oldest_silent("echo", PATIENCE, 10)) == 1
    await write(storage, RUN, changes(ended=run(RUN, status=status)))
    assert await storage.count_silent(PATIENCE) == []
    assert await storage.oldest_silent("echo", PATIENCE, 10) == []


async def test_of_the_silent_ones_those_that_nobody_has_claimed_come_first_then_the_oldest(
    backend: Backend, storage: Storage
) -> None:
    ages = {"young": 150.0, "old": 900.0, "claimed": 990.0, "middle": 400.0}
    steps = [attempt(backend, name, age=age, heard=950 if name == "claimed" else None) for name, age in ages.items()]
    other = attempt(backend, "other", age=999, agent_name="other")
    await add_run(storage, *steps, other, attempt(backend, "fresh", age=1), run_id=RUN)
    found = await storage.oldest_silent("echo", PATIENCE, 10)
    assert [silent.missing.step_id for silent in found] == ["old", "middle", "young", "claimed"]
    assert [silent.missing for silent in await storage.oldest_silent("echo", PATIENCE, 2)] == [
        TaskMissing(RUN, one.step_id, one.task_id, one.queued_at)
        for one in (steps[1], steps[3])
        if one.task_id is not None and one.queued_at is not None
    ]
    assert found[3].missing.last_sign == steps[2].heartbeat_at
    assert 950 <= found[3].silent_for.total_seconds() < 985


async def test_an_attempt_that_is_sent_again_is_fresh_again(backend: Backend, storage: Storage) -> None:
    first = attempt(backend, "one", age=PATIENCE * 99, heard=PATIENCE * 9)
    await add_run(storage, first, attempt(backend, "two", age=PATIENCE * 9), run_id=RUN)
    again = attempt(backend, "one", age=1, task_id=first.task_id, heartbeat_at=first.heartbeat_at)
    await write(storage, RUN, changes(changed=[again]))
    assert await storage.count_silent(PATIENCE) == [Silence("echo", 1, 1)]
