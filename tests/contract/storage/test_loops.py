"""Loops in storage: the items that are kept, the line that is closed, and what iterations come to together."""

import json
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest

from orchestrator.engine.decision import Join, JoinForm
from orchestrator.engine.records import Branches, StepExecution
from orchestrator.engine.state import Wanted
from orchestrator.storage.changes import Changes, KeptItem
from orchestrator.storage.port import Storage
from orchestrator.storage.writes import CancelledStep
from schemas.messages import ErrorInfo
from schemas.statuses import StepStatus
from tests.contract.storage.rows import TIME, add_run, changes, look, seen, step, write

RUN, OTHER = UUID(int=1), UUID(int=2)
LOOP = "loop"
ERROR = ErrorInfo(code="agent_error", message="no luck", details={"type": "ValueError"})
FAILURE = {"code": "agent_error", "message": "no luck", "details": {"type": "ValueError"}}
LATER = TIME + timedelta(seconds=90)
PENDING, QUEUED, RUNNING = StepStatus.PENDING, StepStatus.QUEUED, StepStatus.RUNNING
COMPLETED, FAILED, CANCELLED, SKIPPED = (
    StepStatus.COMPLETED, StepStatus.FAILED, StepStatus.CANCELLED, StepStatus.SKIPPED,
)  # fmt: skip


def loop(total: int, *, step_id: str = LOOP, around: str | None = None, **fields: Any) -> StepExecution:
    """Return a loop that runs, over so many items."""
    counters = Branches(total, open=total, failed=0, dispatched=0, passed=0, max_parallelism=fields.pop("limit", 1))
    known: dict[str, Any] = {"status": RUNNING, "created_at": TIME, "started_at": TIME, "parent_step_id": around}
    return StepExecution(**{"run_id": RUN, "step_id": step_id, "branches": counters, **known, **fields})


def iteration(
    index: int, status: StepStatus = PENDING, name: str = "x", *, around: str = LOOP, **fields: Any
) -> StepExecution:
    """Return a step of an iteration."""
    known = {"parent_step_id": around, "branch_name": str(index), "position": index}
    return step(RUN, f"{name}[{index}]", status, **{**known, **fields})


async def joined(storage: Storage, total: int, *rows: StepExecution) -> Any:
    """Return the output of a loop with these rows in it."""
    await add_run(storage, loop(total), *rows, run_id=RUN)
    over = loop(total)._replace(status=COMPLETED)
    await write(storage, RUN, changes(changed=[over], joins=[(RUN, Join(LOOP, JoinForm.ITERATIONS, None))]))
    return await output(storage)


async def output(storage: Storage, step_id: str = LOOP) -> Any:
    found = (await seen(storage, RUN, Wanted(outcomes=frozenset({step_id})))).outcomes[step_id]
    assert found is not None
    return found.output.value


def entry(index: int, status: StepStatus = COMPLETED, output: Any = None, error: Any = None) -> dict[str, Any]:
    return {"index": index, "status": status, "output": output, "error": error}


# Entering


async def test_a_loop_that_waited_learns_how_many_iterations_it_has_when_it_is_entered(storage: Storage) -> None:
    waits = loop(0, status=PENDING, started_at=None)
    await add_run(storage, waits, run_id=RUN)
    await write(storage, RUN, changes(changed=[loop(7)]))
    assert (await seen(storage, RUN, Wanted(steps=frozenset({LOOP})))).steps[LOOP] == loop(7)


# Items


async def test_items_are_read_as_they_were_kept(storage: Storage) -> None:
    items = [{"b": 1, "a": [None]}, None, "${x}", 1.5, False, [], 10**30]
    await add_run(storage, loop(len(items)), run_id=RUN)
    kept = [KeptItem(RUN, LOOP, index, item) for index, item in enumerate(items)]
    await write(storage, RUN, Changes(items=kept))
    wanted = Wanted(items=frozenset((LOOP, index) for index in range(len(items))))
    found = (await seen(storage, RUN, wanted)).items
    assert [found[LOOP, index] for index in range(len(items))] == items
    assert list(found[LOOP, 0]) == ["b", "a"]


async def test_only_the_items_that_are_wanted_are_read(storage: Storage) -> None:
    await add_run(storage, loop(3), run_id=RUN)
    await write(storage, RUN, Changes(items=[KeptItem(RUN, LOOP, index, index) for index in range(3)]))
    assert (await seen(storage, RUN, Wanted(items=frozenset({(LOOP, 1)})))).items == {(LOOP, 1): 1}
    assert (await seen(storage, RUN)).items == {}


async def test_items_belong_to_one_execution_of_a_loop_of_one_run(storage: Storage) -> None:
    await add_run(storage, run_id=OTHER)
    await add_run(storage, run_id=RUN)
    loops = [(RUN, "in[0]"), (RUN, "in[1]"), (OTHER, "in[0]")]
    for run_id, loop_id in loops:
        await write(storage, run_id, Changes(items=[KeptItem(run_id, loop_id, 0, f"{run_id.int} {loop_id}")]))
    async with storage.session() as session:
        wanted = {run_id: Wanted(items=frozenset({("in[0]", 0), ("in[1]", 0)})) for run_id in (RUN,)}
        wanted[OTHER] = Wanted(items=frozenset({("in[0]", 0)}))
        _, states = await session.first_look(wanted)
        await session.load(states, wanted)
    assert states[RUN].items == {("in[0]", 0): "1 in[0]", ("in[1]", 0): "1 in[1]"}
    assert states[OTHER].items == {("in[0]", 0): "2 in[0]"}


async def test_a_session_reads_the_items_that_it_has_written(storage: Storage) -> None:
    await add_run(storage, loop(1), run_id=RUN)
    async with storage.session() as session:
        state = await look(session, RUN)
        await session.write(Changes(items=[KeptItem(RUN, LOOP, 0, "a")]))
        await session.load({RUN: state}, {RUN: Wanted(items=frozenset({(LOOP, 0)}))})
    assert state.items == {(LOOP, 0): "a"}


# A line that is closed


async def test_closing_a_line_cancels_those_who_wait_from_a_position_on(storage: Storage) -> None:
    rows = [
        iteration(0, COMPLETED),
        iteration(1, PENDING, attempt=1, due_at=LATER),  # it waits for its next attempt
        iteration(2, QUEUED, attempt=1, task_id=uuid4()),
        iteration(3, PENDING),
        iteration(4, PENDING, error=ERROR),
        iteration(12, PENDING),
        iteration(3, PENDING, around="another"),
    ]
    rows[-1] = rows[-1]._replace(step_id="z[3]")
    await add_run(storage, loop(13), *rows, step(RUN, "beside"), run_id=RUN)
    async with storage.session() as session:
        await look(session, RUN)
        closed = await session.close_line(RUN, LOOP, 3, LATER)
    assert sorted(closed, key=lambda one: one.step_id) == [
        CancelledStep("x[12]", LOOP, "12", 0),
        CancelledStep("x[3]", LOOP, "3", 0),
        CancelledStep("x[4]", LOOP, "4", 0),
    ]
    names = [row.step_id for row in rows] + [LOOP, "beside"]
    state = await seen(storage, RUN, Wanted(steps=frozenset(names)))
    statuses = {name: row.status for name, row in state.steps.items() if row is not None}
    assert statuses == {
        "x[0]": COMPLETED, "x[1]": PENDING, "x[2]": QUEUED, "x[3]": CANCELLED, "x[4]": CANCELLED, "x[12]": CANCELLED,
        "z[3]": PENDING, LOOP: RUNNING, "beside": PENDING,
    }  # fmt: skip
    cancelled = state.steps["x[3]"]
    assert cancelled is not None
    assert (cancelled.finished_at, cancelled.due_at) == (LATER, None)


async def test_closing_a_line_sees_what_the_same_session_writes(storage: Storage) -> None:
    await add_run(storage, loop(2), iteration(0, PENDING), run_id=RUN)
    async with storage.session() as session:
        await look(session, RUN)
        await session.write(changes(iteration(1, PENDING), changed=[iteration(0, QUEUED, task_id=uuid4())]))
        assert [one.step_id for one in await session.close_line(RUN, LOOP, 0, LATER)] == ["x[1]"]
        assert await session.close_line(RUN, LOOP, 0, LATER) == []


async def test_nobody_is_next_in_a_line_that_was_closed(storage: Storage) -> None:
    await add_run(storage, loop(3), *(iteration(index) for index in range(3)), run_id=RUN)
    async with storage.session() as session:
        await look(session, RUN)
        await session.close_line(RUN, LOOP, 1, LATER)
    wanted = Wanted(waiting=frozenset({(LOOP, 0, 3)}))
    line = (await seen(storage, RUN, wanted)).waiting[LOOP]
    assert [row.step_id for row in line.steps] == ["x[0]"]


async def test_who_waits_with_an_input_that_could_not_be_made_brings_its_error_along(storage: Storage) -> None:
    await add_run(storage, loop(1), iteration(0, PENDING, error=ERROR), run_id=RUN)
    line = (await seen(storage, RUN, Wanted(waiting=frozenset({(LOOP, 0, 1)})))).waiting[LOOP]
    assert [row.error for row in line.steps] == [ERROR]


# What iterations come to


async def test_a_loop_without_iterations_comes_to_an_empty_list(storage: Storage) -> None:
    assert await joined(storage, 0) == {"iterations": [], "total_count": 0, "completed_count": 0, "failed_count": 0}


async def test_iterations_are_joined_with_their_statuses_outputs_and_errors(storage: Storage) -> None:
    found = await joined(
        storage,
        4,
        iteration(3, CANCELLED),
        iteration(1, FAILED, error=ERROR),
        iteration(0, COMPLETED, output={"b": 1, "a": 'ö " \\'}),
        iteration(2, COMPLETED, output=None),
    )
    assert found == {
        "iterations": [
            entry(0, output={"b": 1, "a": 'ö " \\'}), entry(1, FAILED, error=FAILURE), entry(2), entry(3, CANCELLED),
        ],
        "total_count": 4,
        "completed_count": 2,
        "failed_count": 1,
    }  # fmt: skip
    assert list(found) == ["iterations", "total_count", "completed_count", "failed_count"]
    assert list(found["iterations"][0]) == ["index", "status", "output", "error"]
    assert list(found["iterations"][0]["output"]) == ["b", "a"]


async def test_iterations_stand_in_the_order_of_their_numbers_and_not_of_their_names(storage: Storage) -> None:
    found = await joined(storage, 120, *(iteration(index, COMPLETED, output=index) for index in reversed(range(120))))
    assert [one["index"] for one in found["iterations"]] == list(range(120))
    assert [one["output"] for one in found["iterations"]] == list(range(120))


async def test_an_iteration_comes_to_what_its_last_step_does(storage: Storage) -> None:
    def lane(index: int, *statuses: StepStatus) -> list[StepExecution]:
        return [
            iteration(index, status, name, ordinal=ordinal, output=f"{name}{index}", error=ERROR)
            for (ordinal, name), status in zip(enumerate("xyz"), statuses, strict=False)
        ]

    found = await joined(
        storage,
        5,
        *lane(0, COMPLETED, COMPLETED, COMPLETED),
        *lane(1, COMPLETED, SKIPPED, COMPLETED),
        *lane(2, COMPLETED, COMPLETED, SKIPPED),
        *lane(3, COMPLETED, FAILED),
        *reversed(lane(4, COMPLETED, CANCELLED)),
    )
    assert [(one["status"], one["output"]) for one in found["iterations"]] == [
        (COMPLETED, "z0"), (COMPLETED, "z1"), (COMPLETED, "y2"), (FAILED, None), (CANCELLED, None),
    ]  # fmt: skip
    assert (found["completed_count"], found["failed_count"]) == (3, 1)


@pytest.mark.parametrize("form", [JoinForm.ALL, JoinForm.COMPLETED])
async def test_what_a_branch_has_skipped_says_nothing_of_it(storage: Storage, form: JoinForm) -> None:
    rows = [
        iteration(0, COMPLETED, "x", ordinal=0, output="x"),
        iteration(0, COMPLETED, "y", ordinal=1, output="y"),
        iteration(0, SKIPPED, "z", ordinal=2),
        iteration(1, FAILED, "x", ordinal=0, error=ERROR),
        iteration(1, SKIPPED, "z", ordinal=2),
    ]
    await add_run(storage, loop(2), *rows, run_id=RUN)
    over = loop(2)._replace(status=COMPLETED)
    await write(storage, RUN, changes(changed=[over], joins=[(RUN, Join(LOOP, form, None))]))
    assert await output(storage) == ({"0": "y", "1": None} if form is JoinForm.ALL else {"0": "y"})


async def test_a_loop_within_a_loop_is_joined_before_that(storage: Storage) -> None:
    inner = [loop(2, step_id=f"in[{index}]", around=LOOP, position=index, branch_name=str(index)) for index in range(2)]
    leaves = [
        iteration(leaf, COMPLETED, f"x[{index}]", around=f"in[{index}]", output=[index, leaf])
        for index in range(2)
        for leaf in range(2)
    ]
    await add_run(storage, loop(2), *inner, *leaves, run_id=RUN)
    over = [row._replace(status=COMPLETED) for row in (*inner, loop(2))]
    joins = [
        *((RUN, Join(row.step_id, JoinForm.ITERATIONS, LOOP)) for row in inner),
        (RUN, Join(LOOP, JoinForm.ITERATIONS, None)),
    ]
    await write(storage, RUN, changes(changed=over, joins=joins))
    counts = {"total_count": 2, "completed_count": 2, "failed_count": 0}
    inner_outputs = [
        {"iterations": [entry(leaf, output=[index, leaf]) for leaf in range(2)], **counts} for index in range(2)
    ]
    assert (await output(storage))["iterations"] == [entry(index, output=inner_outputs[index]) for index in range(2)]


async def test_of_a_loop_within_that_failed_the_iteration_tells_the_error_and_no_output(storage: Storage) -> None:
    inner = loop(1, step_id="in[0]", around=LOOP, position=0, branch_name="0")
    leaf = iteration(0, FAILED, "x[0]", around="in[0]", error=ERROR)
    await add_run(storage, loop(1), inner, leaf, run_id=RUN)
    over = [inner._replace(status=FAILED, error=ERROR), loop(1)._replace(status=COMPLETED)]
    joins = [
        (RUN, Join("in[0]", JoinForm.ITERATIONS, LOOP)),
        (RUN, Join(LOOP, JoinForm.ITERATIONS, None)),
    ]
    await write(storage, RUN, changes(changed=over, joins=joins))
    assert (await output(storage))["iterations"] == [entry(0, FAILED, error=FAILURE)]
    assert (await output(storage, "in[0]"))["iterations"] == [entry(0, FAILED, error=FAILURE)]


async def test_an_iteration_that_never_had_a_row_counts_all_the_same(storage: Storage) -> None:
    found = await joined(storage, 3, iteration(0, COMPLETED, output=1))
    assert found == {"iterations": [entry(0, output=1)], "total_count": 3, "completed_count": 1, "failed_count": 0}


async def test_values_in_iterations_are_kept_to_the_letter(storage: Storage) -> None:
    value = {"z": 10**40, "a": 1.0, "": [[], {}, False, '\u2028 " \\']}
    found = await joined(storage, 1, iteration(0, COMPLETED, output=value))
    assert json.dumps(found["iterations"][0]["output"]) == json.dumps(value)


# Cancelling


async def test_cancelling_one_iteration_of_a_loop_leaves_the_others_alone(storage: Storage) -> None:
    rows = [
        loop(2),
        *(loop(1, step_id=f"in[{index}]", around=LOOP, position=index, branch_name=str(index)) for index in range(2)),
        *(iteration(0, QUEUED, f"x[{index}]", around=f"in[{index}]", task_id=uuid4()) for index in range(2)),
        *(iteration(1, PENDING, f"x[{index}]", around=f"in[{index}]") for index in range(2)),
    ]
    await add_run(storage, *rows, run_id=RUN)
    async with storage.session() as session:
        await look(session, RUN)
        cancelled = await session.cancel_open_steps(RUN, "in[1]", LATER)
    assert sorted(one.step_id for one in cancelled) == ["x[1][0]", "x[1][1]"]


async def test_cancelling_what_lies_in_a_loop_reaches_its_inner_loops_and_their_counters(storage: Storage) -> None:
    inner = loop(2, step_id="in[0]", around=LOOP, position=0, branch_name="0")
    counted = replace_counters(inner, dispatched=1, open=2, ready=1)
    leaves = [
        iteration(0, QUEUED, "x[0]", around="in[0]", task_id=uuid4()),
        iteration(1, PENDING, "x[0]", around="in[0]", ready_at=TIME),
    ]
    await add_run(storage, loop(1), inner, *leaves, run_id=RUN)
    await write(storage, RUN, changes(changed=[counted]))
    async with storage.session() as session:
        await look(session, RUN)
        cancelled = await session.cancel_open_steps(RUN, LOOP, LATER)
    assert sorted(one.step_id for one in cancelled) == ["in[0]", "x[0][0]", "x[0][1]"]
    state = await seen(storage, RUN, Wanted(steps=frozenset({"in[0]", "x[0][1]"})))
    row, leaf = state.steps["in[0]"], state.steps["x[0][1]"]
    assert row is not None
    assert row.branches is not None
    assert leaf is not None
    assert (row.status, row.branches.open, row.branches.dispatched, row.branches.ready) == (CANCELLED, 0, 0, 0)
    assert (leaf.status, leaf.ready_at) == (CANCELLED, None)


def replace_counters(row: StepExecution, **counters: int) -> StepExecution:
    assert row.branches is not None
    return row._replace(branches=row.branches._replace(**counters))
