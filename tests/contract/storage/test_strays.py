"""Sub-workflows whose step and run do not fit together any more."""

from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest

from orchestrator.engine.inputs import CancelRequested, ChildEnded, TaskMissing
from orchestrator.engine.records import Parent, StepExecution
from orchestrator.engine.state import Wanted
from orchestrator.storage.port import Storage
from schemas.messages import ErrorInfo
from schemas.statuses import ResultStatus, RunStatus, StepStatus
from tests.contract.storage.backends import Backend
from tests.contract.storage.rows import BLOCK, TIME, add_run, block, changes, look, message, run, seen, step, write

RUN, CHILD = UUID(int=1), UUID(int=2)
PARENT = Parent(RUN, "calls", ("small", "other"))
PATIENCE = 100.0


def calls(backend: Backend, status: StepStatus = StepStatus.RUNNING, *, age: float = 0, **fields: Any) -> StepExecution:
    """Return a step whose run was asked for *age* seconds ago."""
    known: dict[str, Any] = {"agent_name": None, "sub_workflow_id": "small", "attempt": 1, "task_id": CHILD}
    sent = {"queued_at": backend.now() - timedelta(seconds=age)}
    return step(RUN, "calls", status, **(known | sent | fields))


async def end(storage: Storage, run_id: UUID, **fields: Any) -> None:
    """Let a run end, however that came to be."""
    await write(storage, run_id, changes(ended=run(run_id, **fields)))


async def strays(storage: Storage) -> list[Any]:
    return [stray.event for stray in await storage.find_strays(PATIENCE, 10)]


async def test_a_run_knows_whose_step_it_carries_out_and_the_step_which_workflow(
    backend: Backend, storage: Storage
) -> None:
    row = calls(backend, sub_workflow_version="2.0")
    await add_run(storage, row, run_id=RUN)
    await add_run(storage, step(CHILD, "works"), run_id=CHILD, parent=PARENT)
    async with storage.session() as session:
        _, states = await session.first_look({RUN: Wanted(tasks=frozenset({CHILD})), CHILD: Wanted()})
    child, above = states[CHILD].run, states[RUN]
    assert child is not None
    assert (child.parent, child.lineage) == (PARENT, ("small", "other", "small"))
    assert above.run is not None
    assert (above.run.parent, above.run.lineage) == (None, ("small",))
    assert above.steps == {"calls": row}


async def test_what_fits_together_is_left_alone(backend: Backend, storage: Storage) -> None:
    await add_run(storage, calls(backend, age=1_000), run_id=RUN)
    await add_run(storage, step(CHILD, "works"), run_id=CHILD, parent=PARENT)
    assert await strays(storage) == []


@pytest.mark.parametrize(("age", "is_missing"), [(PATIENCE / 2, False), (PATIENCE * 2, True)])
async def test_a_run_that_does_not_exist_is_missing_after_a_while(
    backend: Backend, storage: Storage, age: float, is_missing: bool
) -> None:
    row = calls(backend, StepStatus.QUEUED, age=age)
    await add_run(storage, row, run_id=RUN)
    [stray] = await storage.find_strays(PATIENCE, 10) or [None]
    assert (stray is not None) == is_missing
    if stray is not None:
        assert row.queued_at is not None
        assert stray.event == TaskMissing(RUN, "calls", CHILD, row.queued_at)
        assert stray.silent_for >= timedelta(seconds=age)


async def test_a_run_whose_request_is_still_to_be_sent_is_not_missing(backend: Backend, storage: Storage) -> None:
    await add_run(storage, calls(backend, StepStatus.QUEUED, age=1_000), run_id=RUN)
    await write(storage, RUN, changes(outbox=[(message(RUN, task_id=CHILD), 0.0)]))
    assert await strays(storage) == []


@pytest.mark.parametrize(("age", "is_told"), [(PATIENCE / 2, False), (PATIENCE * 2, True)])
async def test_the_end_of_a_run_is_told_after_a_while(
    backend: Backend, storage: Storage, age: float, is_told: bool
) -> None:
    await add_run(storage, calls(backend, age=1_000), run_id=RUN)
    await add_run(storage, run_id=CHILD, parent=PARENT)
    error = ErrorInfo(code="step_failed", message="no luck")
    finished = backend.now() - timedelta(seconds=age)
    await end(storage, CHILD, status=RunStatus.FAILED, error=error, finished_at=finished)
    found = await strays(storage)
    assert len(found) == is_told
    for event in found:
        assert isinstance(event, ChildEnded)
        assert (event.run_id, event.task_id) == (RUN, CHILD)
        assert (event.result.status, event.result.error, event.result.output) == (ResultStatus.FAILED, error, None)


async def test_the_end_of_a_run_is_told_with_its_output(backend: Backend, storage: Storage) -> None:
    await add_run(storage, calls(backend, age=1_000), run_id=RUN)
    await add_run(storage, run_id=CHILD, parent=PARENT)
    await end(storage, CHILD, status=RunStatus.COMPLETED, output={"n": [1]}, finished_at=TIME)
    [event] = await strays(storage)
    assert (event.result.status, event.result.output) == (ResultStatus.COMPLETED, {"n": [1]})


@pytest.mark.parametrize("status", [StepStatus.CANCELLED, StepStatus.FAILED])
async def test_a_run_that_its_step_does_not_wait_for_is_told_to_stop(
    backend: Backend, storage: Storage, status: StepStatus
) -> None:
    await add_run(storage, calls(backend, status), run_id=RUN)
    await add_run(storage, run_id=CHILD, parent=PARENT)
    [event] = await strays(storage)
    assert isinstance(event, CancelRequested)
    assert event.run_id == CHILD


async def test_a_run_whose_step_has_asked_for_another_one_is_told_to_stop(backend: Backend, storage: Storage) -> None:
    await add_run(storage, calls(backend, StepStatus.PENDING, task_id=None), run_id=RUN)
    await add_run(storage, run_id=CHILD, parent=PARENT)
    assert [event.run_id for event in await strays(storage)] == [CHILD]


async def test_runs_of_clients_and_runs_that_have_ended_are_nobodys_strays(backend: Backend, storage: Storage) -> None:
    await add_run(storage, calls(backend, StepStatus.CANCELLED), run_id=RUN)
    await add_run(storage, run_id=CHILD, parent=PARENT)
    await end(storage, CHILD, status=RunStatus.CANCELLED, finished_at=TIME)
    assert await strays(storage) == []


async def test_cancelling_tells_which_runs_carried_steps_out(backend: Backend, storage: Storage) -> None:
    inner = calls(backend, parent_step_id=BLOCK, branch_name="calls")
    waiting = calls(backend, StepStatus.PENDING, task_id=None)._replace(step_id="waits")
    agents = step(RUN, "agents", StepStatus.RUNNING, task_id=UUID(int=9))
    await add_run(storage, block(RUN), inner, waiting, agents, run_id=RUN)
    async with storage.session() as session:
        await look(session, RUN)
        branches = await session.cancel_open_steps(RUN, BLOCK, TIME)
        others = await session.cancel_open_steps(RUN, None, TIME)
    assert {one.step_id: one.child_run_id for one in branches} == {"calls": CHILD}
    assert {one.step_id: one.child_run_id for one in others} == dict.fromkeys((BLOCK, "waits", "agents"))
    assert (await seen(storage, RUN, Wanted(tasks=frozenset({CHILD})))).run is not None
