"""What a session writes is what sessions read: columns that change, columns that never do, and joins."""

import json
from dataclasses import replace
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest

from orchestrator.engine.decision import Join, JoinForm
from orchestrator.engine.records import Branches, ReplyAddress, StepExecution
from orchestrator.engine.state import RunValues, Wanted
from orchestrator.storage.database import is_transient
from orchestrator.storage.port import Storage
from orchestrator.storage.writes import CancelledStep
from schemas.messages import ErrorInfo
from schemas.references import StepOutcome
from schemas.statuses import RunStatus, StepStatus
from tests.contract.storage.rows import (
    BLOCK,
    TIME,
    add_run,
    block,
    branch,
    changes,
    look,
    queued,
    run,
    seen,
    step,
    write,
)

RUN = UUID(int=1)
ERROR = ErrorInfo(code="agent_error", message="no luck", details={"type": "ValueError"})
LATER = TIME + timedelta(seconds=90)
COMPLETED, FAILED, PENDING, QUEUED = StepStatus.COMPLETED, StepStatus.FAILED, StepStatus.PENDING, StepStatus.QUEUED


async def outcome(storage: Storage, step_id: str) -> StepOutcome | None:
    found = (await seen(storage, RUN, Wanted(outcomes=frozenset({step_id})))).outcomes[step_id]
    return replace(found, output=found.output.value) if found is not None else None


async def values(storage: Storage) -> RunValues | None:
    found = (await seen(storage, RUN, Wanted(run_values=True))).run_values
    return replace(found, output=found.output.value) if found is not None else None


def join(block_id: str = BLOCK, around: str | None = None, form: JoinForm = JoinForm.COMPLETED) -> tuple[UUID, Join]:
    return RUN, Join(block_id, form, around)


async def joined(storage: Storage, *branches: Any, form: JoinForm = JoinForm.COMPLETED) -> Any:
    """Return the output of a block with these branches."""
    await add_run(storage, block(RUN), run_id=RUN)
    await write(storage, RUN, changes(*branches))
    await write(storage, RUN, changes(changed=[block(RUN)._replace(status=COMPLETED)], joins=[join(form=form)]))
    found = await outcome(storage, BLOCK)
    assert found is not None
    return found.output


async def test_a_step_is_read_as_it_was_written(storage: Storage) -> None:
    written = queued(RUN, 3, timeout_seconds=2.5, input={"b": [1.5, None], "a": "ö"})._replace(
        worker_id="w", started_at=TIME, heartbeat_at=LATER, due_at=LATER,
    )  # fmt: skip
    await add_run(storage, block(RUN), written, run_id=RUN)
    state = await seen(storage, RUN, Wanted(steps=frozenset({written.step_id, "none"})))
    assert state.steps == {written.step_id: written, BLOCK: block(RUN), "none": None}


async def test_a_run_is_read_as_it_was_written(storage: Storage) -> None:
    new = run(RUN, reply=ReplyAddress("replies", "c"))
    await add_run(storage, run_id=uuid4())
    await write(storage, RUN, changes(new=new, input={"b": 1, "a": [2]}))
    assert (await seen(storage, RUN)).run == new
    assert await values(storage) == RunValues({"b": 1, "a": [2]}, None, None)


async def test_a_run_that_does_not_exist_is_known_as_absent(storage: Storage) -> None:
    state = await seen(storage, RUN, Wanted(run_values=True, steps=frozenset({"one"}), outcomes=frozenset({"one"})))
    assert (state.run, state.run_values, state.steps, state.outcomes) == (None, None, {"one": None}, {"one": None})


async def test_the_end_of_a_run_is_kept(storage: Storage) -> None:
    new = await add_run(storage, run_id=RUN, input=5)
    ended = replace(
        new, status=RunStatus.COMPLETED, finished_at=LATER, output={"z": 1, "a": None}, reply=ReplyAddress("late", None)
    )
    await write(storage, RUN, changes(ended=ended))
    assert (await seen(storage, RUN)).run == replace(ended, output=None)
    assert await values(storage) == RunValues(5, {"z": 1, "a": None}, None)


async def test_a_run_may_fail_in_the_session_that_creates_it(storage: Storage) -> None:
    await add_run(storage, run_id=uuid4())
    new = run(RUN)
    await write(storage, RUN, changes(new=new, ended=replace(new, status=RunStatus.FAILED, error=ERROR)))
    found = (await seen(storage, RUN)).run
    assert found is not None
    assert found.status is RunStatus.FAILED
    assert await values(storage) == RunValues(None, None, ERROR)


async def test_later_changes_of_a_run_leave_its_output_and_error_as_they_were(storage: Storage) -> None:
    new = await add_run(storage, run_id=RUN)
    ended = replace(new, status=RunStatus.COMPLETED, finished_at=LATER, output=7, error=ERROR)
    await write(storage, RUN, changes(ended=ended))
    told = replace(ended, status=RunStatus.FAILED, reply=ReplyAddress("other", "c"), output=None, error=None)
    await write(storage, RUN, changes(ended=told))
    assert await values(storage) == RunValues(None, 7, ERROR)
    assert (await seen(storage, RUN)).run == told


async def test_an_update_leaves_alone_what_never_changes(storage: Storage) -> None:
    before = queued(RUN, 2, input={"x": 1})._replace(timeout_seconds=3.0)
    await add_run(storage, block(RUN, max_parallelism=None), before, run_id=RUN)
    other: dict[str, Any] = {
        "parent_step_id": "b", "branch_name": "b", "position": 9, "agent_name": "b", "timeout_seconds": 9.0,
    }  # fmt: skip
    changed: dict[str, Any] = {
        "status": StepStatus.RUNNING, "attempt": 2, "task_id": uuid4(), "worker_id": "w", "queued_at": LATER,
        "started_at": LATER, "heartbeat_at": LATER, "finished_at": LATER, "due_at": LATER,
    }  # fmt: skip
    update = before._replace(input=None, created_at=LATER, **other, **changed)
    counters = Branches(total=9, open=1, failed=2, dispatched=3, passed=4, max_parallelism=9)
    await write(storage, RUN, changes(changed=[update, block(RUN)._replace(branches=counters)]))
    state = await seen(storage, RUN, Wanted(steps=frozenset({before.step_id})))
    assert state.steps[before.step_id] == before._replace(**changed)
    found = state.steps[BLOCK]
    assert found is not None
    assert found.branches == counters._replace(max_parallelism=None)


async def test_an_update_of_a_row_that_is_not_there_does_nothing(storage: Storage) -> None:
    await add_run(storage, run_id=RUN)
    await write(storage, RUN, changes(changed=[step(RUN, "one")], ended=run(), joins=[join("two")]))
    assert (await seen(storage, RUN, Wanted(steps=frozenset({"one"})))).steps == {"one": None}


async def test_later_changes_of_a_step_leave_its_output_and_error_as_they_were(storage: Storage) -> None:
    await add_run(storage, step(RUN, "one"), run_id=RUN)
    await write(storage, RUN, changes(changed=[step(RUN, "one", COMPLETED, output=[1], error=ERROR)]))
    await write(storage, RUN, changes(changed=[step(RUN, "one", FAILED)]))
    assert await outcome(storage, "one") == StepOutcome(FAILED, [1], ERROR.model_dump())


async def test_only_what_is_completed_has_an_output(storage: Storage) -> None:
    await add_run(storage, step(RUN, "one", FAILED, output=1), run_id=RUN)
    await write(storage, RUN, changes(changed=[step(RUN, "one", FAILED, output=2)]))
    assert await outcome(storage, "one") == StepOutcome(FAILED, None, None)


async def test_values_are_kept_to_the_letter(storage: Storage) -> None:
    output = {"z": 10**40, "a": {"y": 1.0, "b": '\u2028 \\ " ö'}, "": [[], {}, False]}
    await add_run(storage, step(RUN, "one", COMPLETED, output=output), run_id=RUN)
    found = await outcome(storage, "one")
    assert found is not None
    assert json.dumps(found.output) == json.dumps(output)


async def test_values_are_nobodys_objects(storage: Storage) -> None:
    given = {"list": [1]}
    await add_run(storage, step(RUN, "one", input=given), run_id=RUN, input=given)
    given["list"].append(2)
    for _ in range(2):
        state = await seen(storage, RUN, Wanted(steps=frozenset({"one"}), run_values=True))
        found, run_values = state.steps["one"], state.run_values
        assert found is not None
        assert run_values is not None
        assert found.input == run_values.input == {"list": [1]}
        found.input["list"].append(3)
        run_values.input["list"].append(4)


async def test_a_join_puts_the_outputs_of_completed_branches_together_in_the_order_of_the_definition(
    storage: Storage,
) -> None:
    output = await joined(
        storage,
        branch(RUN, 3, COMPLETED, output={"b": 1, "a": 2}),
        branch(RUN, 1, FAILED, error=ERROR),
        branch(RUN, 2, COMPLETED, output=None),
        branch(RUN, 0, COMPLETED, output="first"),
        step(RUN, "beside", COMPLETED, output="not a branch"),
    )
    assert list(output.items()) == [("z-0", "first"), ("x-2", None), ("w-3", {"b": 1, "a": 2})]
    assert list(output["w-3"]) == ["b", "a"]


@pytest.mark.parametrize("form", [JoinForm.COMPLETED, JoinForm.ALL])
async def test_a_branch_comes_to_what_its_last_step_does(storage: Storage, form: JoinForm) -> None:
    def lane(position: int, *statuses: StepStatus) -> list[StepExecution]:
        return [
            branch(RUN, position, status, ordinal=ordinal, output=f"{position}{ordinal}", error=ERROR)._replace(
                step_id=f"{position}{ordinal}", branch_name=f"lane-{position}"
            )
            for ordinal, status in enumerate(statuses)
        ]

    output = await joined(
        storage,
        *lane(2, COMPLETED, COMPLETED, COMPLETED),
        *lane(1, COMPLETED, FAILED),
        *lane(3, StepStatus.CANCELLED),
        *reversed(lane(0, COMPLETED, COMPLETED)),
        form=form,
    )
    failed = {"lane-1": None, "lane-3": None} if form is JoinForm.ALL else {}
    assert output == {"lane-0": "01", "lane-2": "22", **failed}
    assert list(output) == sorted(output)


async def test_a_join_of_nothing_is_an_empty_object(storage: Storage) -> None:
    assert await joined(storage, branch(RUN, 0, FAILED, error=ERROR)) == {}


async def test_a_join_sees_what_the_same_session_writes(storage: Storage) -> None:
    stored = [branch(RUN, 1, QUEUED), branch(RUN, 3, COMPLETED, output=3), branch(RUN, 4, COMPLETED, output=4)]
    await add_run(storage, block(RUN), *stored, run_id=RUN)
    new = [branch(RUN, 2, COMPLETED, output=2), branch(RUN, 0, COMPLETED, output=0)]
    changed = [branch(RUN, 1, COMPLETED, output=1), branch(RUN, 4, FAILED), block(RUN)._replace(status=COMPLETED)]
    await write(storage, RUN, changes(*new, changed=changed, joins=[join()]))
    found = await outcome(storage, BLOCK)
    assert found is not None
    assert list(found.output.items()) == [("z-0", 0), ("y-1", 1), ("x-2", 2), ("w-3", 3)]


async def test_cancelling_takes_what_is_open_and_leaves_what_is_over(storage: Storage) -> None:
    over = branch(RUN, 0, COMPLETED, output=1, attempt=1, finished_at=TIME, due_at=None)
    open_steps = [queued(RUN, 1, due_at=LATER), branch(RUN, 2)]
    await add_run(storage, block(RUN, dispatched=1, open=3), over, *open_steps, step(RUN, "one", FAILED), run_id=RUN)
    async with storage.session() as session:
        await look(session, RUN)
        await session.write(changes(step(RUN, "new", StepStatus.RUNNING, attempt=4)))
        cancelled = await session.cancel_open_steps(RUN, None, LATER)
    assert sorted(cancelled, key=lambda one: one.step_id) == [
        CancelledStep(BLOCK, None, None, 0),
        CancelledStep("new", None, None, 4),
        CancelledStep("x-2", BLOCK, "x-2", 0),
        CancelledStep("y-1", BLOCK, "y-1", 1),
    ]
    state = await seen(storage, RUN, Wanted(steps=frozenset({"z-0", "y-1", "one", "new"})))
    end: dict[str, Any] = {"status": StepStatus.CANCELLED, "finished_at": LATER}
    assert state.steps["z-0"] == over._replace(output=None)
    assert state.steps["y-1"] == open_steps[0]._replace(due_at=None, **end)
    assert state.steps[BLOCK] == block(RUN, open=0)._replace(**end)
    assert await storage.due_inputs(10) == []


async def test_the_open_branches_of_one_block_can_be_cancelled_alone(storage: Storage) -> None:
    over, waits = branch(RUN, 0, COMPLETED, output=1), branch(RUN, 2)
    other = step(RUN, "other", QUEUED, task_id=uuid4(), parent_step_id="another block")
    await add_run(storage, block(RUN), over, queued(RUN, 1), waits, other, step(RUN, "one", QUEUED), run_id=RUN)
    async with storage.session() as session:
        await look(session, RUN)
        cancelled = await session.cancel_open_steps(RUN, BLOCK, LATER)
    assert sorted(one.step_id for one in cancelled) == ["x-2", "y-1"]
    state = await seen(storage, RUN, Wanted(steps=frozenset({BLOCK, "other", "one"})))
    assert [state.steps[name].status for name in (BLOCK, "other", "one")] == [StepStatus.RUNNING, QUEUED, QUEUED]


async def test_cancelling_the_branches_of_a_block_reaches_blocks_within(storage: Storage) -> None:
    def inner(step_id: str, around: str, status: StepStatus = StepStatus.RUNNING) -> StepExecution:
        return block(RUN, open=1)._replace(step_id=step_id, parent_step_id=around, branch_name=step_id, status=status)

    rows = [
        block(RUN),
        inner("one", BLOCK),
        inner("two", "one"),
        step(RUN, "leaf", QUEUED, task_id=uuid4(), parent_step_id="two"),
        inner("over", BLOCK, COMPLETED),
        step(RUN, "done", COMPLETED, parent_step_id="over"),
        step(RUN, "beside", QUEUED, task_id=uuid4()),
    ]
    await add_run(storage, *rows, run_id=RUN)
    async with storage.session() as session:
        await look(session, RUN)
        cancelled = await session.cancel_open_steps(RUN, BLOCK, LATER)
    assert sorted(one.step_id for one in cancelled) == ["leaf", "one", "two"]


async def test_an_inner_block_is_joined_before_the_one_around_it(storage: Storage) -> None:
    inner = block(RUN)._replace(step_id="inner", parent_step_id=BLOCK, branch_name="left", position=0)
    leaf = step(RUN, "leaf", COMPLETED, output=7, parent_step_id="inner", branch_name="leaf")
    await add_run(storage, block(RUN), inner, leaf, branch(RUN, 1, COMPLETED, output=1), run_id=RUN)
    joins = [join("inner", around=BLOCK), join()]
    over = [inner._replace(status=COMPLETED), block(RUN)._replace(status=COMPLETED)]
    await write(storage, RUN, changes(changed=over, joins=joins))
    found = await outcome(storage, BLOCK)
    assert found is not None
    assert found.output == {"left": {"leaf": 7}, "y-1": 1}


@pytest.mark.parametrize("constraint", ["step_executions_pkey", "uq_step_executions_task_id"])
async def test_a_row_that_is_there_already_is_a_bug_and_not_bad_luck(storage: Storage, constraint: str) -> None:
    there = queued(RUN, 0)
    await add_run(storage, block(RUN), there, run_id=RUN)
    same_key = constraint == "step_executions_pkey"
    twin = branch(RUN, 0) if same_key else queued(RUN, 1)._replace(task_id=there.task_id)
    with pytest.raises(asyncpg.UniqueViolationError) as raised:
        await write(storage, RUN, changes(twin))
    assert raised.value.constraint_name == constraint
    assert not is_transient(raised.value)


@pytest.mark.parametrize("missing", ["run", "definition"])
async def test_a_row_that_points_nowhere_is_refused(storage: Storage, missing: str) -> None:
    bad = changes(step(RUN, "one")) if missing == "run" else changes(new=run(RUN, definition_id="none"))
    with pytest.raises(asyncpg.ForeignKeyViolationError):
        await write(storage, RUN, bad)
