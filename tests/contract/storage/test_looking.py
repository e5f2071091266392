"""What a session shows to decisions: attempts and their blocks, who is next in line, failures, holders of gates."""

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest

from orchestrator.engine.block import DESCRIBED_FAILURES
from orchestrator.engine.records import StepExecution
from orchestrator.engine.state import Line, RunState, Wanted
from orchestrator.storage.changes import GateRow
from orchestrator.storage.port import Storage
from schemas.messages import ErrorInfo
from schemas.statuses import StepStatus
from schemas.stored_json import StoredJson
from tests.contract.storage.backends import Backend
from tests.contract.storage.rows import (
    BLOCK,
    NOTHING,
    TIME,
    add_run,
    block,
    branch,
    changes,
    look,
    queued,
    seen,
    step,
    write,
)

RUN, OTHER_RUN = UUID(int=1), UUID(int=2)


async def first_look(storage: Storage, wanted: Mapping[UUID, Wanted]) -> Mapping[UUID, RunState]:
    async with storage.session() as session:
        _, states = await session.first_look(wanted)
        return states


def task(step: StepExecution) -> UUID:
    assert step.task_id is not None
    return step.task_id


def tasks(*steps: StepExecution, ending: Sequence[StepExecution] = ()) -> Wanted:
    return Wanted(tasks=frozenset(map(task, steps)), ending=frozenset(map(task, ending)))


async def test_the_first_look_tells_the_time_of_the_storage(backend: Backend, storage: Storage) -> None:
    async with storage.session() as session:
        now, _ = await session.first_look({RUN: NOTHING})
    assert abs((now - backend.now()).total_seconds()) < 60
    assert now.tzinfo is not None


async def test_an_attempt_is_found_with_its_block_and_without_its_input(storage: Storage) -> None:
    one, alone = queued(RUN, 0, input={"large": True}), step(RUN, "alone", StepStatus.QUEUED, task_id=uuid4())
    await add_run(storage, block(RUN), one, queued(RUN, 1), alone, run_id=RUN)
    unknown = uuid4()
    wanted = Wanted.all_of([tasks(one, alone), Wanted(tasks=frozenset({unknown}))])
    state = (await first_look(storage, {RUN: wanted}))[RUN]
    assert state.steps == {one.step_id: one._replace(input=None), BLOCK: block(RUN), "alone": alone}
    assert state.tasks == {task(one): one.step_id, task(alone): "alone", unknown: None}
    assert state.waiting == {}


async def test_an_attempt_that_another_one_followed_is_not_found(storage: Storage) -> None:
    first = step(RUN, "one", StepStatus.QUEUED, attempt=1, task_id=uuid4())
    await add_run(storage, first, run_id=RUN)
    second = first._replace(attempt=2, task_id=uuid4())
    async with storage.session() as session:
        await look(session, RUN)
        await session.write(changes(changed=[second]))
    state = (await first_look(storage, {RUN: tasks(first, second)}))[RUN]
    assert state.tasks == {task(first): None, task(second): "one"}
    assert state.steps == {"one": second}


async def test_an_attempt_of_a_run_that_is_not_locked_is_not_found(storage: Storage) -> None:
    forged = step(OTHER_RUN, "one", StepStatus.QUEUED, task_id=uuid4())
    await add_run(storage, run_id=RUN)
    await add_run(storage, forged, run_id=OTHER_RUN)
    state = (await first_look(storage, {RUN: tasks(forged)}))[RUN]
    assert (state.steps, state.tasks) == ({}, {task(forged): None})


async def test_an_attempt_is_found_in_its_own_run_only(storage: Storage) -> None:
    forged = step(OTHER_RUN, "one", StepStatus.QUEUED, task_id=uuid4())
    await add_run(storage, run_id=RUN)
    await add_run(storage, forged, run_id=OTHER_RUN)
    states = await first_look(storage, {RUN: tasks(forged), OTHER_RUN: NOTHING})
    assert (states[RUN].steps, states[OTHER_RUN].steps) == ({}, {"one": forged})


async def test_with_attempts_that_end_come_those_who_are_next_in_line(storage: Storage) -> None:
    running = [queued(RUN, 0), queued(RUN, 2)]
    line = [branch(RUN, position, input=position) for position in (4, 5, 6, 7)]
    passed = [branch(RUN, 1, StepStatus.FAILED), branch(RUN, 3, StepStatus.CANCELLED)]
    counters = {"total": 8, "max_parallelism": 3, "dispatched": 2, "passed": 4}
    await add_run(storage, block(RUN, **counters), *running, *passed, *reversed(line), run_id=RUN)
    state = (await first_look(storage, {RUN: tasks(*running, ending=running)}))[RUN]
    assert state.waiting == {BLOCK: Line(first=4, asked=3, steps=tuple(line[:3]))}
    assert state.steps[line[0].step_id] == line[0]


@pytest.mark.parametrize(
    "counters",
    [
        pytest.param({"max_parallelism": None}, id="there is no gate"),
        pytest.param({"max_parallelism": 4}, id="the gate holds nobody back"),
        pytest.param({"passed": 4}, id="all have passed"),
        pytest.param({"passed": 2}, id="nobody waits behind them"),
    ],
)
async def test_nobody_is_next_in_line_where(storage: Storage, counters: dict[str, Any]) -> None:
    ending = queued(RUN, 0)
    await add_run(storage, block(RUN, dispatched=1, **counters), ending, branch(RUN, 1), run_id=RUN)
    assert (await first_look(storage, {RUN: tasks(ending, ending=[ending])}))[RUN].waiting == {}


async def test_nobody_comes_forward_for_an_attempt_that_goes_on(storage: Storage) -> None:
    running = queued(RUN, 0)
    await add_run(storage, block(RUN, dispatched=1), running, branch(RUN, 1), run_id=RUN)
    assert (await first_look(storage, {RUN: tasks(running)}))[RUN].waiting == {}


async def test_a_line_is_known_even_where_nobody_stands_in_it(storage: Storage) -> None:
    waiting = [branch(RUN, position, input=[position]) for position in range(4)]
    await add_run(storage, block(RUN), *waiting, run_id=RUN)
    keys = frozenset({(BLOCK, 1, 2)})
    assert (await seen(storage, RUN, Wanted(waiting=keys))).waiting == {BLOCK: Line(1, 2, tuple(waiting[1:3]))}
    assert (await seen(storage, RUN, Wanted(waiting=frozenset({(BLOCK, 4, 2)})))).waiting == {BLOCK: Line(4, 2, ())}


async def test_those_who_are_ready_again_come_in_the_order_in_which_they_were(storage: Storage) -> None:
    moments = {0: 30, 1: None, 2: 10, 3: 20}
    rows = {
        position: branch(RUN, position, input=[position], attempt=1)._replace(
            ready_at=TIME + timedelta(seconds=after) if after is not None else None
        )
        for position, after in moments.items()
    }
    await add_run(storage, block(RUN), *(row._replace(ready_at=None) for row in rows.values()), run_id=RUN)
    await write(storage, RUN, changes(changed=rows.values()))
    state = await seen(storage, RUN, Wanted(ready=frozenset({(BLOCK, 2)})))
    assert state.ready == {BLOCK: (2, (rows[2], rows[3]))}
    assert state.ready_again(BLOCK, 3) is None
    assert (await seen(storage, RUN, Wanted(ready=frozenset({("other", 2)})))).ready == {"other": (2, ())}


async def test_steps_come_with_their_inputs_and_their_blocks(storage: Storage) -> None:
    wanted = branch(RUN, 1, input=[1])
    await add_run(storage, block(RUN), wanted, branch(RUN, 2, input=[2]), run_id=RUN)
    state = await seen(storage, RUN, Wanted(steps=frozenset({wanted.step_id})))
    assert state.steps == {BLOCK: block(RUN), wanted.step_id: wanted}


async def test_failures_come_in_the_order_of_the_definition_and_the_first_ones_are_described(
    storage: Storage,
) -> None:
    count = DESCRIBED_FAILURES + 2
    errors = [ErrorInfo(code="agent_error", message=f"number {position}") for position in range(count)]
    failed = [branch(RUN, position, StepStatus.FAILED, error=error) for position, error in enumerate(errors)]
    await add_run(storage, block(RUN, total=count + 1), *reversed(failed), branch(RUN, count), run_id=RUN)
    failures = (await seen(storage, RUN, Wanted(failures=frozenset({BLOCK, "none"})))).failures
    assert [failure.step_id for failure in failures[BLOCK]] == [step.step_id for step in failed]
    assert [failure.error for failure in failures[BLOCK]] == [*errors[:DESCRIBED_FAILURES], None, None]
    assert failures["none"] == ()


async def test_the_errors_of_a_block_come_by_branch_and_are_all_there(storage: Storage) -> None:
    count = DESCRIBED_FAILURES + 1
    failed = [
        branch(RUN, position, StepStatus.FAILED, error=ErrorInfo(code="agent_error", message=f"number {position}"))
        for position in range(count)
    ]
    await add_run(storage, block(RUN), *reversed(failed), branch(RUN, count, StepStatus.COMPLETED), run_id=RUN)
    errors = (await seen(storage, RUN, Wanted(errors=frozenset({BLOCK, "none"})))).errors
    assert list(errors[BLOCK]) == [step.branch_name for step in failed]
    assert [error["message"] for error in errors[BLOCK].values()] == [f"number {position}" for position in range(count)]
    assert errors["none"] == {}


async def test_a_session_tells_who_holds_the_gates_of_the_blocks_that_it_has_seen(storage: Storage) -> None:
    one = queued(RUN, 0)
    await add_run(storage, block(RUN), one, run_id=RUN, gate=GateRow(RUN, BLOCK, 2, "holder"))
    await add_run(storage, block(OTHER_RUN), run_id=OTHER_RUN, gate=GateRow(OTHER_RUN, BLOCK, 2, "another"))
    async with storage.session() as session:
        _, states = await session.first_look({RUN: tasks(one), OTHER_RUN: NOTHING})
        assert session.gate_holders == {(RUN, BLOCK): "holder"}
        await session.load(states, {OTHER_RUN: Wanted(steps=frozenset({BLOCK}))})
        assert session.gate_holders == {(RUN, BLOCK): "holder", (OTHER_RUN, BLOCK): "another"}


async def test_an_outcome_is_the_status_the_output_and_the_error(storage: Storage) -> None:
    one = queued(RUN, 0)
    await add_run(storage, block(RUN), one, run_id=RUN)
    await write(storage, RUN, changes(changed=[one._replace(status=StepStatus.COMPLETED, output=3)]))
    state = await seen(storage, RUN, Wanted(outcomes=frozenset({one.step_id, "none"})))
    found = state.outcomes[one.step_id]
    assert found is not None
    assert (found.status, found.output, found.error) == (StepStatus.COMPLETED, StoredJson("3"), None)
    assert state.outcomes["none"] is None
