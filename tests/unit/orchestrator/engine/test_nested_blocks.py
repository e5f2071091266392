"""Blocks within blocks: each has its own gate, and counts as one step of the branch that it lies in."""

from typing import Any

from orchestrator.engine import codes
from orchestrator.engine.block import fork
from orchestrator.engine.decide import apply
from orchestrator.engine.decision import Fork, SendCancellation, SendTicket, Ticket
from orchestrator.engine.inputs import BlockDrained, BlockForked, RetryDue, SlotsFree, StepEnded, StepReached
from orchestrator.engine.moment import Moment
from orchestrator.engine.plan import Plan
from orchestrator.engine.records import Branches, StepExecution
from orchestrator.engine.state import FailedBranch, Line, RunState, Wanted
from schemas.statuses import StepStatus
from tests.unit.orchestrator.engine.scene import (
    ERROR,
    NOW,
    RUN,
    after,
    agent,
    answer,
    branch_row,
    counted_ids,
    decided,
    known,
    parallel,
    plan_of,
)

RUNNING, PENDING, COMPLETED, FAILED = StepStatus.RUNNING, StepStatus.PENDING, StepStatus.COMPLETED, StepStatus.FAILED


def nested(inner: dict[str, Any] | None = None, **outer: Any) -> Plan:
    """Return the plan of a block with the branches a (an agent step) and left (the block `inner` of two, then z)."""
    branches = {"left": {"steps": ["inner", "z"], "timeout_seconds": 50.0}, "a": {"steps": ["a"]}}
    block = {"type": "fork_join", "fork_join_config": {"branches": branches, **outer}}
    return plan_of(block=block, inner=parallel("x", "y", **(inner or {})), x=agent(), y=agent(), z=agent(), a=agent())


def outer_row(**counters: Any) -> StepExecution:
    given = {"total": 2, "open": 2, "failed": 0, "dispatched": 0, "passed": 0, "max_parallelism": None} | counters
    return StepExecution(RUN, "block", RUNNING, branches=Branches(**given))


def inner_row(status: StepStatus = RUNNING, **fields: Any) -> StepExecution:
    counters = Branches(2, open=2, failed=0, dispatched=0, passed=0, max_parallelism=None)
    place = {"parent_step_id": "block", "branch_name": "left", "branch_timeout_seconds": 50.0}
    return StepExecution(RUN, "inner", status, branches=counters, **(place | fields))


def test_without_a_limit_a_block_that_comes_first_is_entered_at_once() -> None:
    plan = nested()
    rows = [step.step_id for step, _ in fork(known(outer_row(), plan=plan), Fork("block"), NOW, counted_ids())]
    assert rows == ["a"]
    assert decided(known(outer_row(), plan=plan), BlockForked(RUN, "block", 0)).then == (StepReached(RUN, "inner"),)
    state = known(outer_row(), plan=plan)
    state.steps["inner"] = None
    decision = decided(state, StepReached(RUN, "inner"))
    (row,) = decision.steps
    assert (row.status, row.started_at, row.parent_step_id) == (RUNNING, NOW, "block")
    assert (row.branch_due_at, row.due_at) == (after(50), after(50))
    assert decision.fork == Fork("inner")


def test_behind_a_gate_it_waits_for_a_slot_like_any_branch() -> None:
    plan = nested(max_parallelism=1)
    outer = outer_row(max_parallelism=1)
    (waiting, send), _ = fork(known(outer, plan=plan), Fork("block"), NOW, counted_ids())
    assert (waiting.step_id, waiting.status, waiting.due_at) == ("inner", PENDING, None)
    assert send == SendTicket(waiting)
    state = known(outer, plan=plan)
    state.put_line("block", Line(0, 1, (waiting,)))
    decision = decided(state, SlotsFree(RUN, "block"))
    assert (decision.sends, decision.then) == ((), (StepReached(RUN, "inner"),))
    (outer,) = decision.steps
    assert outer.branches is not None
    assert (outer.branches.dispatched, outer.branches.passed) == (1, 1)
    (row,) = decided(state, StepReached(RUN, "inner")).steps
    assert (row.status, row.due_at) == (RUNNING, after(50))


def test_the_gate_of_a_block_that_was_not_entered_lets_nobody_through() -> None:
    plan = nested(inner={"max_parallelism": 1})
    waiting = inner_row(PENDING)._replace(branches=Branches(2, 2, 0, 0, 0, max_parallelism=1))
    assert decided(known(waiting, plan=plan), SlotsFree(RUN, "inner")).code == codes.NO_FREE_SLOT


def test_when_it_is_completed_the_branch_goes_on() -> None:
    state = known(outer_row(), inner_row(COMPLETED), plan=nested())
    assert decided(state, StepEnded(RUN, "inner")).then == (StepReached(RUN, "z", after="inner"),)


def test_when_it_has_failed_its_branch_has_and_gives_its_slot_back() -> None:
    plan = nested(max_parallelism=1)
    outer = outer_row(max_parallelism=1, dispatched=1, passed=1)
    decision = decided(known(outer, inner_row(FAILED, error=ERROR), plan=plan), StepEnded(RUN, "inner"))
    (counted,) = decision.steps
    assert counted.branches is not None
    assert (counted.branches.open, counted.branches.failed, counted.branches.dispatched) == (1, 1, 0)
    assert (decision.released, decision.afterwards) == (Ticket("block", "inner"), SlotsFree(RUN, "block"))


def test_a_block_that_is_decided_before_an_inner_one_was_entered_shows_that_as_cancelled() -> None:
    plan = nested(on_decided="cancel")
    _, unreached = decided(known(outer_row(), plan=plan), BlockForked(RUN, "block", 1)).steps
    assert (unreached.step_id, unreached.status, unreached.finished_at) == ("inner", StepStatus.CANCELLED, NOW)


def test_cancelling_the_branches_of_a_block_reaches_what_lies_within() -> None:
    plan = nested(on_decided="cancel", join_policy="any")
    x = branch_row("x", parent_step_id="inner")
    state = known(outer_row(open=1), inner_row(), x, branch_row("a", COMPLETED), plan=plan)
    state.cancel_open_steps(NOW, of_block="block")
    assert {step_id: row.status for step_id, row in state.steps.items() if row is not None} == {
        "block": RUNNING, "inner": StepStatus.CANCELLED, "x": StepStatus.CANCELLED, "a": COMPLETED,
    }  # fmt: skip


def test_a_branch_may_run_out_of_time_while_a_block_of_it_runs() -> None:
    late = inner_row(branch_due_at=NOW, due_at=NOW)
    state = known(outer_row(), late, plan=nested())
    decision = decided(state, RetryDue(RUN, "inner"))
    (row,) = decision.steps
    assert row.error is not None
    assert (row.status, row.error.code, row.due_at) == (FAILED, codes.BRANCH_TIMEOUT, None)
    assert (decision.cancels_branches_of, decision.sends) == ("inner", (SendCancellation(RUN, "inner"),))
    assert decision.then == (StepEnded(RUN, "inner"),)
    apply(state, decision, Moment(NOW, counted_ids(), lambda: 0.0))
    assert decided(state, RetryDue(RUN, "inner")).code == codes.NOT_WAITING


def over(**counters: int) -> StepExecution:
    return outer_row(open=0, **counters)._replace(status=FAILED, error=ERROR)


def test_a_block_that_comes_first_in_a_branch_is_not_entered_once_the_block_around_it_was_cut_short() -> None:
    state = known(over(failed=1), plan=nested())
    state.steps["inner"] = None
    decision = decided(state, StepReached(RUN, "inner"))
    assert [(step.step_id, step.status) for step in decision.steps] == [("inner", StepStatus.CANCELLED)]
    assert (decision.fork, decision.then) == (None, ())


def test_nor_is_one_that_was_cancelled_while_it_had_its_slot_already() -> None:
    state = known(over(failed=1), inner_row(StepStatus.CANCELLED), plan=nested())
    decision = decided(state, StepReached(RUN, "inner"))
    assert (decision.steps, decision.fork, decision.then) == ((), None, ())


def test_the_error_of_an_inner_block_is_that_of_a_branch() -> None:
    state: RunState = known(outer_row(open=0, failed=1), plan=nested())
    state.failures["block"] = (FailedBranch("inner", ERROR),)
    error = decided(state, BlockDrained(RUN, "block")).steps[0].error
    assert error is not None
    assert error.message == "1 of 2 branches failed: inner: no luck"


def test_a_handler_deep_inside_counts_where_no_block_around_it_names_one() -> None:
    plan = plan_of(
        block=parallel("inner", "a"),
        inner=parallel("x", "y"),
        x=agent(),
        y=agent(on_failure="rescue"),
        a=agent(),
        rescue=agent(),
    )
    failed = outer_row(open=0, failed=1)._replace(status=FAILED, error=ERROR)
    state = known(failed, plan=plan)
    state.failures["block"] = (FailedBranch("inner", ERROR),)
    assert answer(state, StepEnded(RUN, "block")) == Wanted(failures=frozenset({"inner"}))
    state.failures["inner"] = (FailedBranch("x", ERROR), FailedBranch("y", ERROR))
    assert decided(state, StepEnded(RUN, "block")).then == (StepReached(RUN, "rescue"),)
