"""A run takes over what an earlier one has done: which rows it gets, and how they differ."""

import json
from dataclasses import replace
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest

from orchestrator.engine.codes import REFERENCE_BROKEN
from orchestrator.engine.decision import Join, JoinForm, TakeOver
from orchestrator.engine.records import Branches, ReplyAddress, StepExecution
from orchestrator.engine.state import EarlierRun, Wanted
from orchestrator.storage.changes import KeptItem
from orchestrator.storage.port import Storage
from schemas.messages import ErrorInfo
from schemas.statuses import RunStatus, StepStatus
from tests.contract.storage.rows import (
    BLOCK,
    TIME,
    add_run,
    block,
    branch,
    changes,
    locking,
    look,
    queued,
    run,
    seen,
    step,
    write,
)

OLD, NEW = UUID(int=7), UUID(int=8)
LATER = TIME + timedelta(hours=1)
ERROR = ErrorInfo(code="agent_error", message="no luck")
BROKEN = ErrorInfo(code=REFERENCE_BROKEN, message="it leads nowhere")
COMPLETED, FAILED, CANCELLED = StepStatus.COMPLETED, StepStatus.FAILED, StepStatus.CANCELLED
PENDING, SKIPPED = StepStatus.PENDING, StepStatus.SKIPPED
WORKED: dict[str, Any] = {
    "attempt": 2, "worker_id": "w", "queued_at": TIME, "started_at": TIME, "heartbeat_at": TIME, "finished_at": TIME,
    "branch_timeout_seconds": 9.0, "timeout_seconds": 3.0, "input": {"b": 1, "a": 2},
}  # fmt: skip
NEW_RUN = run(NEW, retry_of=OLD, started_at=LATER, due_at=LATER, request_digest="d", reply=ReplyAddress("q", "c"))


def inner(block_id: str, status: StepStatus, position: int, *, started: bool = True, **counters: Any) -> StepExecution:
    """Return a block that is a branch of the block."""
    known = {"total": 2, "open": 0, "failed": 0, "dispatched": 0, "passed": 2, "max_parallelism": 1}
    return StepExecution(
        run_id=OLD,
        step_id=block_id,
        status=status,
        parent_step_id=BLOCK,
        branch_name=block_id,
        position=position,
        branches=Branches(**{**known, **counters}),
        created_at=TIME,
        started_at=TIME if started else None,
        finished_at=TIME,
        error=ERROR if status is FAILED else None,
    )


def below(block_id: str, step_id: str, status: StepStatus, position: int, **fields: Any) -> StepExecution:
    """Return a branch of a block that is itself a branch."""
    return step(OLD, step_id, status, parent_step_id=block_id, branch_name=step_id, position=position, **fields)


def ended(one: StepExecution, status: StepStatus, **counters: int) -> StepExecution:
    assert one.branches is not None
    return one._replace(status=status, finished_at=TIME, branches=one.branches._replace(**counters))


async def take_over(storage: Storage, stopped_at: str, *steps: StepExecution) -> dict[str, StepExecution]:
    """Store a run with *steps*, take over from it, and return what the new run has got, with inputs and errors."""
    await add_run(storage, *steps, run_id=OLD, input={"b": 1, "a": 2})
    async with locking(storage, OLD, NEW) as session:
        await session.take_over(NEW_RUN, TakeOver(OLD, stopped_at))
    state = await seen(storage, NEW, Wanted(steps=frozenset(one.step_id for one in steps)))
    return {step_id: row for step_id, row in state.steps.items() if row is not None}


async def test_the_new_run_has_the_content_of_the_other_and_the_rest_of_its_own(storage: Storage) -> None:
    await take_over(storage, "one", step(OLD, "one", FAILED, error=ERROR))
    state = await seen(storage, NEW, Wanted(run_values=True))
    assert state.run == NEW_RUN
    assert state.run_values is not None
    assert (list(state.run_values.input.items()), state.run_values.error) == ([("b", 1), ("a", 2)], None)


async def test_steps_are_taken_over_as_they_ended_but_for_their_tasks(storage: Storage) -> None:
    rows = [
        step(OLD, "one", COMPLETED, task_id=uuid4(), output=[1], **WORKED),
        step(OLD, "two", FAILED, task_id=uuid4(), error=ERROR, postponed=0, **WORKED),
        step(OLD, "three", SKIPPED, agent_name=None, finished_at=TIME),
        step(OLD, "four", CANCELLED, task_id=uuid4(), **WORKED),
    ]
    found = await take_over(storage, "four", *rows)
    assert found == {
        row.step_id: row._replace(run_id=NEW, task_id=None, output=None, input=row.input) for row in rows[:3]
    }
    state = await seen(storage, NEW, Wanted(outcomes=frozenset({"one"})))
    found_output = state.outcomes["one"]
    assert found_output is not None
    assert (found_output.status, found_output.output.text) == (COMPLETED, "[1]")


async def test_the_earlier_run_stays_as_it_is(storage: Storage) -> None:
    task_id = uuid4()
    rows = [ended(block(OLD), FAILED, open=0, failed=1), branch(OLD, 0, FAILED, task_id=task_id, error=ERROR)]
    await take_over(storage, BLOCK, *rows)
    state = await seen(storage, OLD, Wanted(steps=frozenset({BLOCK, rows[1].step_id})))
    assert state.steps == {BLOCK: rows[0]._replace(input=None), rows[1].step_id: rows[1]}


async def test_the_branches_of_a_block_that_has_ended_before_are_taken_over_with_it(storage: Storage) -> None:
    rows = [
        ended(block(OLD), FAILED, open=0, failed=1, passed=4)._replace(error=ERROR),
        branch(OLD, 0, COMPLETED, output=1, **WORKED),
        branch(OLD, 1, FAILED, error=ERROR, **WORKED),
        branch(OLD, 2, CANCELLED),
        step(OLD, "after", CANCELLED),
    ]
    found = await take_over(storage, "after", *rows)
    assert found == {row.step_id: row._replace(run_id=NEW, output=None) for row in rows[:4]}


async def test_a_block_at_which_it_stopped_waits_with_the_branches_that_have_not_completed(storage: Storage) -> None:
    done = branch(OLD, 0, COMPLETED, task_id=uuid4(), output=1, branch_due_at=TIME, **WORKED)
    failed = branch(OLD, 1, FAILED, task_id=uuid4(), error=ERROR, postponed=0, branch_due_at=TIME, **WORKED)
    cancelled = branch(OLD, 2, CANCELLED, task_id=uuid4(), **WORKED)
    without_input = branch(OLD, 3, FAILED, error=BROKEN, finished_at=TIME)
    stopped = ended(block(OLD), FAILED, open=0, failed=2, passed=3)._replace(error=ERROR)
    found = await take_over(storage, BLOCK, stopped, done, failed, cancelled, without_input)
    cleared: dict[str, Any] = dict.fromkeys(("worker_id", "queued_at", "started_at", "heartbeat_at", "finished_at"))
    cleared |= {"run_id": NEW, "status": PENDING, "attempt": 0, "task_id": None, "error": None, "created_at": LATER}
    assert found == {
        BLOCK: stopped._replace(
            **{**cleared, "branches": Branches(4, open=3, failed=0, dispatched=0, passed=4, max_parallelism=2)}
        ),
        done.step_id: done._replace(run_id=NEW, task_id=None, output=None),
        failed.step_id: failed._replace(branch_due_at=None, **cleared),
        cancelled.step_id: cancelled._replace(**cleared),
        without_input.step_id: without_input._replace(**{**cleared, "error": BROKEN}),
    }


async def test_a_branch_of_many_steps_waits_at_the_step_that_did_not_complete(storage: Storage) -> None:
    lanes = [
        branch(OLD, 0, COMPLETED)._replace(step_id="a1"),
        branch(OLD, 0, FAILED, ordinal=1, error=ERROR)._replace(step_id="a2"),
        branch(OLD, 1, COMPLETED)._replace(step_id="b1"),
        branch(OLD, 1, COMPLETED, ordinal=1)._replace(step_id="b2"),
    ]
    found = await take_over(storage, BLOCK, ended(block(OLD, total=2), FAILED, open=0, failed=1), *lanes)
    assert found[BLOCK].branches == Branches(2, open=1, failed=0, dispatched=0, passed=2, max_parallelism=2)
    statuses = {step_id: row.status for step_id, row in found.items()}
    assert statuses == {BLOCK: PENDING, "a1": COMPLETED, "a2": PENDING, "b1": COMPLETED, "b2": COMPLETED}


async def test_a_step_that_was_skipped_is_not_where_its_branch_is(storage: Storage) -> None:
    lane = [
        branch(OLD, 0, COMPLETED, agent_name=None)._replace(step_id="choice"),
        branch(OLD, 0, FAILED, ordinal=1, error=ERROR)._replace(step_id="taken"),
        branch(OLD, 0, SKIPPED, ordinal=2)._replace(step_id="other"),
    ]
    found = await take_over(storage, BLOCK, ended(block(OLD, total=1), FAILED, open=0, failed=1), *lane)
    assert found[BLOCK].branches == Branches(1, open=1, failed=0, dispatched=0, passed=1, max_parallelism=2)
    statuses = {step_id: row.status for step_id, row in found.items()}
    assert statuses == {BLOCK: PENDING, "choice": COMPLETED, "taken": PENDING, "other": SKIPPED}


async def test_the_items_of_loops_are_taken_over(storage: Storage) -> None:
    await add_run(storage, ended(block(OLD), FAILED, open=0, failed=1), run_id=OLD)
    kept = changes()
    kept.items += [KeptItem(OLD, BLOCK, number, {"n": number}) for number in range(2)]
    await write(storage, OLD, kept)
    async with locking(storage, OLD, NEW) as session:
        await session.take_over(NEW_RUN, TakeOver(OLD, BLOCK))
    wanted = frozenset({(BLOCK, 0), (BLOCK, 1)})
    state = await seen(storage, NEW, Wanted(items=wanted))
    assert state.items == {(BLOCK, 0): {"n": 0}, (BLOCK, 1): {"n": 1}}


async def test_blocks_in_its_branches_wait_likewise_unless_they_have_completed(storage: Storage) -> None:
    rows = [
        ended(block(OLD), CANCELLED, open=0),
        inner("done", COMPLETED, 0, failed=1),
        below("done", "d0", COMPLETED, 0),
        below("done", "d1", FAILED, 1, error=ERROR),
        inner("bad", FAILED, 1, failed=2),
        below("bad", "b0", FAILED, 0, error=ERROR),
        below("bad", "b1", FAILED, 1, error=BROKEN),
        inner("waited", CANCELLED, 2, started=False, open=0, passed=0),
        inner("open", CANCELLED, 3),
        below("open", "o0", COMPLETED, 0),
        below("open", "o1", CANCELLED, 1),
    ]
    found = await take_over(storage, BLOCK, *rows)
    counters = {step_id: row.branches for step_id, row in found.items() if row.branches is not None}
    assert counters == {
        BLOCK: Branches(4, open=3, failed=0, dispatched=0, passed=4, max_parallelism=2),
        "done": Branches(2, open=0, failed=1, dispatched=0, passed=2, max_parallelism=1),
        "bad": Branches(2, open=2, failed=0, dispatched=0, passed=2, max_parallelism=1),
        "waited": Branches(2, open=2, failed=0, dispatched=0, passed=0, max_parallelism=1),
        "open": Branches(2, open=1, failed=0, dispatched=0, passed=2, max_parallelism=1),
    }
    assert {step_id: row.status for step_id, row in found.items()} == {
        BLOCK: PENDING, "done": COMPLETED, "d0": COMPLETED, "d1": FAILED, "bad": PENDING, "b0": PENDING, "b1": PENDING,
        "waited": PENDING, "open": PENDING, "o0": COMPLETED, "o1": PENDING,
    }  # fmt: skip
    assert not [row.step_id for row in found.values() if row.due_at is not None]


async def test_a_join_finds_the_outputs_that_were_taken_over(storage: Storage) -> None:
    lanes = [branch(OLD, 0, COMPLETED, output={"n": 0}), branch(OLD, 1, FAILED, error=ERROR)]
    await take_over(storage, BLOCK, ended(block(OLD, total=2), FAILED, open=0, failed=1), *lanes)
    again = branch(NEW, 1, COMPLETED, output={"n": 1})
    await write(storage, NEW, changes(changed=[again], joins=[(NEW, Join(BLOCK, JoinForm.COMPLETED, None))]))
    state = await seen(storage, NEW, Wanted(outcomes=frozenset({BLOCK})))
    found = state.outcomes[BLOCK]
    assert found is not None
    assert json.loads(found.output.text) == {"z-0": {"n": 0}, "y-1": {"n": 1}}


async def test_a_run_takes_over_once(storage: Storage) -> None:
    await take_over(storage, "one", step(OLD, "one", FAILED, error=ERROR))
    with pytest.raises(asyncpg.UniqueViolationError) as raised:
        async with locking(storage, OLD, NEW) as session:
            await session.take_over(NEW_RUN, TakeOver(OLD, "one"))
    assert raised.value.constraint_name == "runs_pkey"  # is_transient: the second look finds the run


async def test_waiting_branches_of_one_block_are_woken_in_their_order(storage: Storage) -> None:
    rows = [
        block(OLD),
        branch(OLD, 0, COMPLETED),
        branch(OLD, 1),
        queued(OLD, 2),
        branch(OLD, 3),
        below("other", "other", PENDING, 0),
    ]
    await add_run(storage, *rows, run_id=OLD)
    async with locking(storage, OLD) as session:
        await session.wake_branches(OLD, BLOCK, LATER)
    state = await seen(storage, OLD, Wanted(steps=frozenset(row.step_id for row in rows)))
    due = {step_id: row.due_at for step_id, row in state.steps.items() if row is not None and row.due_at is not None}
    assert due == {"y-1": LATER + timedelta(microseconds=1), "w-3": LATER + timedelta(microseconds=3)}


async def test_how_another_run_ended_is_seen_with_its_error_and_the_step_that_was_open(storage: Storage) -> None:
    rows = [
        step(OLD, "one", FAILED, error=ERROR),
        step(OLD, "two", SKIPPED),
        ended(block(OLD), CANCELLED, open=0),
        branch(OLD, 0, CANCELLED),
    ]
    before = await add_run(storage, *rows, run_id=OLD)
    after = replace(before, status=RunStatus.CANCELLED, finished_at=LATER, error=ERROR)
    await write(storage, OLD, changes(ended=after))
    nobody = uuid4()
    async with storage.session() as session:
        state = await look(session, NEW, Wanted(earlier=frozenset({OLD, nobody})))
    assert state.earlier == {OLD: EarlierRun(after, BLOCK), nobody: None}


async def test_a_run_that_goes_on_has_no_step_that_was_open(storage: Storage) -> None:
    before = await add_run(storage, step(OLD, "one", StepStatus.RUNNING), run_id=OLD)
    state = await seen(storage, NEW, Wanted(earlier=frozenset({OLD})))
    assert state.earlier == {OLD: EarlierRun(before, None)}
