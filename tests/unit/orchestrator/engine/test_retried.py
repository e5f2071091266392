"""A run that is retried: when there is another one, what that takes over, and how it goes on."""

from dataclasses import replace
from uuid import UUID

import pytest

from orchestrator.engine import codes
from orchestrator.engine.decide import apply
from orchestrator.engine.decision import Fork, SendResult, SendTask, TakeOver, Verdict
from orchestrator.engine.inputs import BlockDrained, RetryDue, RetryRequested, SlotsFree, StepEnded, StepReached
from orchestrator.engine.moment import Moment
from orchestrator.engine.plan import Plan
from orchestrator.engine.records import Branches, ReplyAddress, Run, StepExecution
from orchestrator.engine.state import EarlierRun, RunState, RunValues, Wanted
from schemas.messages import ErrorInfo
from schemas.statuses import RunStatus, StepStatus
from tests.unit.orchestrator.engine.scene import (
    ERROR,
    NOW,
    REPLY,
    RUN,
    after,
    agent,
    answer,
    block_row,
    branch_row,
    counted_ids,
    decided,
    known,
    parallel,
    plan_of,
    run_row,
    three_branches,
)

EARLIER = UUID(int=9)
PLAN = plan_of(first=agent(next_step="second"), second=agent())
PENDING, RUNNING = StepStatus.PENDING, StepStatus.RUNNING
MOMENT = Moment(NOW, counted_ids(), lambda: 0.0)


def asked(digest: str = "digest", reply: ReplyAddress | None = None) -> RetryRequested:
    return RetryRequested(RUN, EARLIER, digest, reply)


def ended(status: RunStatus, error: ErrorInfo | None = None, interrupted: str | None = None) -> EarlierRun:
    return EarlierRun(replace(run_row(status, error=error), id=EARLIER), interrupted)


def failed_at(step_id: str) -> EarlierRun:
    return ended(RunStatus.FAILED, ErrorInfo(code=codes.STEP_FAILED, message="no", details={"step_id": step_id}))


def without_a_run(earlier: EarlierRun | None, plan: Plan = PLAN) -> RunState:
    return RunState(None, plan=plan, earlier={EARLIER: earlier})


def taken_over(total: int = 3, limit: int | None = None, **counters: int) -> StepExecution:
    """Return the row of a block of which an earlier run has left some branches."""
    given = {"open": 2, "failed": 0, "dispatched": 0, "passed": total} | counters
    return block_row(PENDING)._replace(branches=Branches(total, max_parallelism=limit, **given))


def in_a_retry(*rows: StepExecution, plan: Plan) -> RunState:
    return known(*rows, run=run_row(retry_of=EARLIER), plan=plan)


def test_a_retry_first_looks_at_the_run_that_it_retries_and_then_at_the_plan() -> None:
    assert answer(RunState(None), asked()) == Wanted(earlier=frozenset({EARLIER}))
    state = without_a_run(failed_at("second"))
    state.plan = None
    assert answer(state, asked()) == Wanted(plan=True)


def test_a_run_that_failed_goes_on_in_another_at_the_step_that_failed() -> None:
    decision = decided(without_a_run(failed_at("second")), asked(reply=REPLY))
    assert decision.run == Run(
        id=RUN,
        status=RunStatus.RUNNING,
        definition_id="d-1",
        workflow_id="sample",
        request_digest="digest",
        reply=REPLY,
        started_at=NOW,
        retry_of=EARLIER,
    )
    assert (decision.verdict, decision.created_run) == (Verdict.APPLIED, None)
    assert decision.takes_over == TakeOver(EARLIER, "second")
    assert decision.then == (StepReached(RUN, "second"),)


@pytest.mark.parametrize(
    "earlier",
    [
        ended(RunStatus.CANCELLED, ErrorInfo(code=codes.CANCELLED, message="enough"), "second"),
        ended(RunStatus.FAILED, ErrorInfo(code=codes.RUN_TIMEOUT, message="too long"), "second"),
    ],
)
def test_a_run_that_was_stopped_goes_on_at_the_step_that_was_open(earlier: EarlierRun) -> None:
    decision = decided(without_a_run(earlier), asked())
    assert decision.takes_over == TakeOver(EARLIER, "second")


def test_a_run_that_had_come_to_no_step_starts_at_the_start() -> None:
    decision = decided(without_a_run(ended(RunStatus.CANCELLED)), asked())
    assert decision.then == (StepReached(RUN, "first"),)


def test_the_time_of_the_run_counts_anew() -> None:
    decision = decided(without_a_run(failed_at("second"), replace(PLAN, timeout_seconds=60)), asked(), now=after(5))
    assert decision.run is not None
    assert (decision.run.started_at, decision.run.due_at) == (after(5), after(65))


@pytest.mark.parametrize(
    ("earlier", "code"),
    [
        (None, codes.UNKNOWN_RUN),
        (ended(RunStatus.PENDING), codes.RUN_GOES_ON),
        (ended(RunStatus.RUNNING), codes.RUN_GOES_ON),
        (ended(RunStatus.COMPLETED), codes.RUN_COMPLETED),
    ],
)
def test_what_cannot_be_retried_is_refused_with_a_code(earlier: EarlierRun | None, code: str) -> None:
    decision = decided(without_a_run(earlier), asked())
    assert (decision.verdict, decision.code) == (Verdict.REJECTED, code)
    assert (decision.run, decision.takes_over, decision.then) == (None, None, ())


def test_the_same_request_again_is_the_same_run_and_another_with_its_id_is_refused() -> None:
    over = known(run=run_row(RunStatus.FAILED, retry_of=EARLIER))
    over.run_values = RunValues(None, None, ERROR)
    decision = decided(over, asked(reply=REPLY))
    assert decision.verdict is Verdict.DUPLICATE
    [sent] = decision.sends
    assert isinstance(sent, SendResult)
    assert (sent.to, sent.result.error) == (REPLY, ERROR)
    assert decided(over, asked("another")).code == codes.RUN_ID_CONFLICT


def test_a_block_of_a_retry_may_have_a_row() -> None:
    state = in_a_retry(plan=three_branches())
    assert answer(state, StepReached(RUN, "block")) == Wanted(steps=frozenset({"block"}))


def test_a_block_that_was_taken_over_is_not_forked_but_wakes_its_branches() -> None:
    plan = three_branches()
    decision = decided(in_a_retry(taken_over(), plan=plan), StepReached(RUN, "block"), now=after(3))
    [row] = decision.steps
    assert (row.status, row.started_at, row.branches) == (RUNNING, after(3), taken_over().branches)
    assert (decision.wakes, decision.fork, decision.then) == ("block", None, ())


def test_a_block_that_was_taken_over_without_its_branches_is_forked() -> None:
    plan = three_branches()
    decision = decided(in_a_retry(taken_over(passed=0, open=3), plan=plan), StepReached(RUN, "block"))
    assert (decision.wakes, decision.fork) == (None, Fork("block"))


@pytest.mark.parametrize(
    ("plan", "counters"),
    [
        (three_branches(), {"open": 0}),
        (three_branches(), {"open": 0, "failed": 2}),
        (three_branches(on_decided="cancel"), {"open": 1, "failed": 1}),
    ],
)
def test_a_block_that_was_taken_over_ends_at_once_when_nothing_is_waited_for(
    plan: Plan, counters: dict[str, int]
) -> None:
    decision = decided(in_a_retry(taken_over(**counters), plan=plan), StepReached(RUN, "block"))
    assert decision.then == (BlockDrained(RUN, "block"),)


def test_a_branch_that_was_taken_over_starts_with_its_first_attempt() -> None:
    waiting = branch_row("a", PENDING, due_at=NOW, input={"n": 1})
    state = in_a_retry(taken_over()._replace(status=RUNNING), waiting, plan=three_branches())
    decision = decided(state, RetryDue(RUN, "a"))
    [row] = decision.steps
    assert (row.status, row.attempt, row.due_at) == (StepStatus.QUEUED, 1, None)
    assert decision.sends == (SendTask(row),)


def test_the_branches_of_a_limited_block_stand_in_its_line_again_and_its_gate_opens() -> None:
    plan = three_branches(max_parallelism=1)
    decision = decided(in_a_retry(taken_over(limit=1), plan=plan), StepReached(RUN, "block"))
    [row] = decision.steps
    assert row.branches == Branches(3, open=2, failed=0, dispatched=0, passed=0, max_parallelism=1)
    assert (decision.wakes, decision.opens_gate) == (None, "block")
    assert decision.then == (SlotsFree(RUN, "block"),)


def test_what_had_no_input_fails_again_when_its_turn_comes() -> None:
    waiting = branch_row("a", PENDING, due_at=NOW, error=ERROR)
    state = in_a_retry(taken_over()._replace(status=RUNNING), waiting, plan=three_branches())
    decision = decided(state, RetryDue(RUN, "a"))
    [row] = decision.steps
    assert (row.status, row.error, row.due_at, decision.sends) == (StepStatus.FAILED, ERROR, None, ())
    assert decision.then == (StepEnded(RUN, "a"),)


NESTED = plan_of(block=parallel("inner", "a", "b"), inner=parallel("x", "y"), **{name: agent() for name in "xyab"})
INNER = StepExecution(
    RUN,
    "inner",
    PENDING,
    parent_step_id="block",
    due_at=NOW,
    branches=Branches(2, open=1, failed=0, dispatched=0, passed=2, max_parallelism=None),
)


def test_a_block_in_a_branch_that_was_taken_over_is_entered_when_it_is_due() -> None:
    state = in_a_retry(taken_over()._replace(status=RUNNING), INNER, plan=NESTED)
    assert decided(state, RetryDue(RUN, "inner")).then == (StepReached(RUN, "inner"),)
    decision = decided(state, StepReached(RUN, "inner"))
    [row] = decision.steps
    assert (row.status, row.due_at, decision.wakes) == (RUNNING, None, "inner")


def test_in_a_limited_block_it_waits_for_a_slot_first() -> None:
    limited = taken_over(limit=1)._replace(status=RUNNING)
    state = in_a_retry(limited, INNER, plan=NESTED)
    decision = decided(state, RetryDue(RUN, "inner"))
    ready = decision.steps[0]
    assert (ready.status, ready.due_at, ready.ready_at) == (PENDING, None, NOW)
    apply(state, decision, MOMENT)
    state.put_ready("block", 1, [ready])
    decision = decided(state, SlotsFree(RUN, "block"))
    assert decision.then == (StepReached(RUN, "inner"),)
    apply(state, decision, MOMENT)
    [row] = decided(state, StepReached(RUN, "inner")).steps
    assert (row.status, row.ready_at) == (RUNNING, None)
