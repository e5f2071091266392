"""A run's way through its plan."""

from dataclasses import replace
from datetime import datetime
from typing import Any

import pytest

from orchestrator.engine import codes
from orchestrator.engine.decide import apply
from orchestrator.engine.decision import Decision, Fork, SendCancellation, SendResult, SendTask, Verdict
from orchestrator.engine.inputs import CancelRequested, RunOverdue, StepEnded, StepReached
from orchestrator.engine.moment import Moment
from orchestrator.engine.plan import Plan
from orchestrator.engine.records import ReplyAddress, Run, StepExecution
from orchestrator.engine.state import FailedBranch, RunState, RunValues, Wanted
from schemas.messages import ErrorInfo, RunResult
from schemas.scope import StepOutcome
from schemas.statuses import ResultStatus, RunStatus, StepStatus
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
    requested,
    run_row,
    step_row,
)

FINAL = pytest.mark.parametrize("status", [status for status in RunStatus if status.is_final])
ALONE = plan_of(step=agent(input_mapping={"about": "${workflow.input.topic}"}))
CANCEL = CancelRequested(RUN, None)

# Requests


def test_a_request_wants_to_see_the_plan_then_starts_the_run_at_its_first_step() -> None:
    event = requested(reply=REPLY)
    assert answer(RunState(None), event) == Wanted(plan=True)
    decision = decided(RunState(None, plan=ALONE), event)
    assert decision.verdict is Verdict.APPLIED
    assert decision.created_run is event
    assert decision.run == run_row(reply=REPLY)
    assert decision.then == (StepReached(RUN, "step"),)


@pytest.mark.parametrize("status", [RunStatus.RUNNING, RunStatus.COMPLETED])
def test_the_id_of_another_request_is_a_conflict(status: RunStatus) -> None:
    state = known(run=run_row(status, reply=REPLY))
    decision = decided(state, requested(request_digest="another", reply=ReplyAddress("mine", None)))
    assert decision == Decision(Verdict.REJECTED, codes.RUN_ID_CONFLICT)


@pytest.mark.parametrize("status", [RunStatus.RUNNING, RunStatus.COMPLETED])
def test_the_same_request_again_without_a_reply_address_changes_nothing(status: RunStatus) -> None:
    assert decided(known(run=run_row(status, reply=REPLY)), requested()) == Decision(Verdict.DUPLICATE)


def test_the_same_request_again_is_answered_where_it_asks_now() -> None:
    moved = ReplyAddress("replies-2", "c-2")
    decision = decided(known(run=run_row(reply=REPLY)), requested(reply=moved))
    assert decision == Decision(Verdict.DUPLICATE, run=run_row(reply=moved))


@FINAL
def test_a_request_for_a_run_that_has_ended_is_answered_with_its_result(status: RunStatus) -> None:
    state = RunState(run_row(status))
    assert answer(state, requested(reply=REPLY)) == Wanted(run_values=True)
    state.run_values = RunValues({}, {"n": 1}, ERROR)
    decision = decided(state, requested(reply=REPLY))
    result = RunResult(run_id=RUN, status=ResultStatus(status.value), output={"n": 1}, error=ERROR)
    assert decision == Decision(Verdict.DUPLICATE, sends=(SendResult(REPLY, result),))


def test_a_request_that_comes_again_in_the_transaction_that_ends_the_run_gets_the_whole_result() -> None:
    """What is stored is older than what was decided just now."""
    state = RunState(run_row(), run_values=RunValues({}, None, None))
    apply(state, decided(state, CancelRequested(RUN, "enough")), Moment(NOW, counted_ids(), lambda: 0.0))
    (send,) = decided(state, requested(reply=REPLY)).sends
    assert isinstance(send, SendResult)
    assert (send.result.status, send.result.error) == (
        ResultStatus.CANCELLED,
        ErrorInfo(code=codes.CANCELLED, message="enough"),
    )


def test_the_same_holds_where_its_values_were_not_loaded() -> None:
    state = RunState(run_row(), plan=ALONE)
    state.put_step(step_row(status=StepStatus.COMPLETED))
    state.outcomes["step"] = StepOutcome(StepStatus.COMPLETED, {"n": 1}, None)
    apply(state, decided(state, StepEnded(RUN, "step")), Moment(NOW, counted_ids(), lambda: 0.0))
    (send,) = decided(state, requested(reply=REPLY)).sends
    assert isinstance(send, SendResult)
    assert send.result.output == {"n": 1}


# Cancelling


def test_a_run_that_does_not_exist_cannot_be_cancelled() -> None:
    assert decided(RunState(None), CANCEL) == Decision(Verdict.REJECTED, codes.UNKNOWN_RUN)


@pytest.mark.parametrize("status", [RunStatus.PENDING, RunStatus.RUNNING])
@pytest.mark.parametrize(("reason", "message"), [("too dear", "too dear"), (None, "the run was cancelled on request")])
def test_a_cancelled_run_ends_at_once_with_the_reason_and_all_that_is_open(
    status: RunStatus, reason: str | None, message: str
) -> None:
    decision = decided(known(run=run_row(status, reply=REPLY)), CancelRequested(RUN, reason), after(3))
    assert decision.run is not None
    assert (decision.run.status, decision.run.finished_at) == (RunStatus.CANCELLED, after(3))
    assert decision.run.error == ErrorInfo(code=codes.CANCELLED, message=message)
    assert decision.cancels_open_steps
    assert results(decision) == [(REPLY, ResultStatus.CANCELLED, None, decision.run.error)]


@pytest.mark.parametrize("reply", [REPLY, None])
def test_the_workers_are_told_that_a_run_is_cancelled(reply: ReplyAddress | None) -> None:
    decision = decided(known(run=run_row(reply=reply)), CANCEL)
    assert decision.sends[-1] == SendCancellation(RUN)
    assert len(decision.sends) == len(results(decision)) + 1


def test_a_cancelled_run_is_not_cancelled_twice() -> None:
    decision = decided(known(run=run_row(RunStatus.CANCELLED, reply=REPLY)), CANCEL)
    assert decision == Decision(Verdict.DUPLICATE, codes.RUN_IS_FINAL)


@pytest.mark.parametrize("status", [RunStatus.COMPLETED, RunStatus.FAILED])
def test_a_run_that_ended_first_stays_as_it_is(status: RunStatus) -> None:
    decision = decided(known(run=run_row(status, reply=REPLY)), CANCEL)
    assert decision == Decision(Verdict.STALE, codes.RUN_IS_FINAL)


def test_after_cancelling_every_open_row_is_known_as_cancelled_and_final_ones_as_they_were() -> None:
    done = branch_row("c", StepStatus.COMPLETED)
    rows = [block_row(), branch_row("a", due_at=NOW), branch_row("b", StepStatus.PENDING), done]
    state = known(*rows)
    apply(state, decided(state, CANCEL), Moment(after(4), counted_ids(), lambda: 0.0))
    for row in rows[:3]:
        cancelled = state.steps[row.step_id]
        assert cancelled is not None
        assert (cancelled.status, cancelled.finished_at, cancelled.due_at) == (StepStatus.CANCELLED, after(4), None)
    assert state.steps["c"] is done


# Reaching a step


def test_a_step_wants_to_see_the_plan_and_what_it_refers_to() -> None:
    plan = plan_of(first=agent(next_step="then"), then=agent(input_mapping={"x": "${first.output}"}))
    reached = StepReached(RUN, "then")
    assert answer(RunState(run_row()), reached) == Wanted(plan=True)
    assert answer(known(plan=plan), reached) == Wanted(outcomes=frozenset({"first"}))


def test_a_reached_agent_step_is_sent_to_its_agent() -> None:
    state = known(plan=ALONE)
    state.run_values = RunValues({"topic": "rain"}, None, None)
    decision = decided(state, StepReached(RUN, "step"))
    (step,) = decision.steps
    assert (step.status, step.attempt, step.input) == (StepStatus.QUEUED, 1, {"about": "rain"})
    assert (decision.sends, decision.then) == ((SendTask(step),), ())


def test_a_reached_step_without_a_valid_input_has_ended_and_nothing_is_sent() -> None:
    decision = decided(known(plan=ALONE), StepReached(RUN, "step"))
    assert [step.status for step in decision.steps] == [StepStatus.FAILED]
    assert (decision.sends, decision.then) == ((), (StepEnded(RUN, "step"),))


def test_a_reached_block_is_forked_when_all_that_its_branches_refer_to_is_known() -> None:
    plan = plan_of(
        first=agent(next_step="block"),
        block=parallel("a", "b"),
        a=agent(),
        b=agent(input_mapping={"x": "${first.output}"}),
    )
    state, reached = known(plan=plan), StepReached(RUN, "block")
    assert answer(state, reached) == Wanted(outcomes=frozenset({"first"}))
    state.outcomes["first"] = StepOutcome(StepStatus.COMPLETED, 1, None)
    decision = decided(state, reached)
    assert decision.fork == Fork("block")
    assert [(step.step_id, step.status) for step in decision.steps] == [("block", StepStatus.RUNNING)]
    assert (decision.sends, decision.then) == ((), ())


# Going on, and ending


def test_an_ended_step_wants_to_see_the_plan() -> None:
    state = known(step_row(status=StepStatus.COMPLETED))
    state.plan = None
    assert answer(state, StepEnded(RUN, "step")) == Wanted(plan=True)


def test_a_completed_step_leads_to_the_next_one() -> None:
    plan = plan_of(step=agent(next_step="then", on_failure="rescue"), then=agent(), rescue=agent())
    decision = ended(plan, step_row(status=StepStatus.COMPLETED))
    assert decision == Decision(Verdict.APPLIED, then=(StepReached(RUN, "then"),))


def test_a_completed_step_that_leads_nowhere_ends_the_run_with_its_output() -> None:
    state = known(step_row(status=StepStatus.COMPLETED), run=run_row(reply=REPLY), plan=ALONE)
    assert answer(state, StepEnded(RUN, "step")) == Wanted(outcomes=frozenset({"step"}))
    state.outcomes["step"] = StepOutcome(StepStatus.COMPLETED, {"n": 1}, None)
    decision = decided(state, StepEnded(RUN, "step"), after(7))
    assert decision.run is not None
    assert (decision.run.status, decision.run.output) == (RunStatus.COMPLETED, {"n": 1})
    assert decision.run.finished_at == after(7)
    assert results(decision) == [(REPLY, ResultStatus.COMPLETED, {"n": 1}, None)]
    assert decision.then == ()


def test_a_failed_step_leads_to_its_handler() -> None:
    plan = plan_of(step=agent(next_step="then", on_failure="rescue"), then=agent(), rescue=agent())
    decision = ended(plan, step_row(status=StepStatus.FAILED))
    assert decision == Decision(Verdict.APPLIED, then=(StepReached(RUN, "rescue"),))


def test_a_failed_step_without_a_handler_ends_the_run_though_it_has_a_next_step() -> None:
    plan = plan_of(step=agent(next_step="then"), then=agent())
    decision = ended(plan, step_row(status=StepStatus.FAILED), reply=REPLY)
    assert decision.run is not None
    assert (decision.run.status, decision.run.output, decision.run.finished_at) == (RunStatus.FAILED, None, NOW)
    error = ErrorInfo(
        code=codes.STEP_FAILED,
        message='step "step" failed: no luck',
        details={
            "step_id": "step",
            "failed_count": 1,
            "failed_steps": [{"step_id": "step", "code": "agent_error", "message": "no luck"}],
        },
    )
    assert decision.run.error == error
    assert results(decision) == [(REPLY, ResultStatus.FAILED, None, error)]


def test_nobody_is_told_of_a_run_without_a_reply_address() -> None:
    plan = plan_of(step=agent())
    assert ended(plan, step_row(status=StepStatus.FAILED)).sends == ()
    assert results(decided(known(run=run_row()), CANCEL)) == []


@pytest.mark.parametrize(
    ("handlers", "failed", "expected"),
    [
        pytest.param({"block": "x", "a": "y"}, "a", "x", id="the block's own comes first"),
        pytest.param({"b": "y"}, "ab", "y", id="the first branch that has one"),
        pytest.param({"a": "x", "b": "y"}, "ab", "x", id="in the order of the definition"),
        pytest.param({"a": "x", "b": "y"}, "b", "y", id="of those that failed"),
    ],
)
def test_a_failed_block_leads_to_its_handler_or_to_that_of_its_first_failed_branch(
    handlers: dict[str, str], failed: str, expected: str
) -> None:
    decision = block_ended(handlers, failed)
    assert decision == Decision(Verdict.APPLIED, then=(StepReached(RUN, expected),))


@pytest.mark.parametrize("handlers", [{}, {"c": "x"}])
def test_a_failed_block_without_a_handler_ends_the_run_with_its_failed_branches(handlers: dict[str, str]) -> None:
    details = {"failed_count": 2, "failed_steps": [{"step_id": "a"}, {"step_id": "b"}]}
    error = ErrorInfo(code=codes.BRANCHES_FAILED, message="2 of 3 branches failed: ...", details=details)
    decision = block_ended(handlers, "ab", error)
    assert decision.run is not None
    assert decision.run.error == ErrorInfo(
        code=codes.STEP_FAILED,
        message='step "block" failed: 2 of 3 branches failed: ...',
        details={"step_id": "block", **details},
    )


def test_a_completed_block_leads_on_whatever_handlers_there_are() -> None:
    plan = plan_of(block=parallel("a", next_step="then", on_failure="x"), a=agent(), then=agent(), x=agent())
    decision = ended(plan, block_row(StepStatus.COMPLETED, total=1, open=0))
    assert decision.then == (StepReached(RUN, "then"),)


def ended(plan: Plan, row: StepExecution, reply: ReplyAddress | None = None) -> Decision:
    return decided(known(row, run=run_row(reply=reply), plan=plan), StepEnded(RUN, row.step_id))


def block_ended(handlers: dict[str, str], failed: str, error: ErrorInfo = ERROR) -> Decision:
    """Return what follows the end of a block of a, b and c, of which *failed* failed."""

    def handler(step_id: str) -> dict[str, Any]:
        return {"on_failure": handlers[step_id]} if step_id in handlers else {}

    branches = {name: agent(**handler(name)) for name in "abc"}
    targets = {target: agent() for target in handlers.values()}
    plan = plan_of(block=parallel("a", "b", "c", **handler("block")), **branches, **targets)
    block = step_row("block", StepStatus.FAILED, task_id=None, error=error, branches=block_row().branches)
    state = known(block, plan=plan)
    state.failures["block"] = tuple(FailedBranch(name, ERROR) for name in failed)
    return decided(state, StepEnded(RUN, "block"))


def results(decision: Decision) -> list[tuple[ReplyAddress, ResultStatus, Any, ErrorInfo | None]]:
    sends = [send for send in decision.sends if isinstance(send, SendResult)]
    return [(send.to, send.result.status, send.result.output, send.result.error) for send in sends]


# A run that takes too long

TIMED = plan_of(step=agent())


def timed(run: Run) -> RunState:
    return known(step_row(), run=run, plan=replace(TIMED, timeout_seconds=30.0))


def test_a_run_gets_its_due_time_when_it_starts() -> None:
    state = RunState(None, plan=replace(TIMED, timeout_seconds=30.0))
    assert decided(state, requested()).run == replace(run_row(), due_at=after(30))
    assert decided(RunState(None, plan=TIMED), requested()).run == run_row()


def test_a_run_whose_time_is_up_fails_with_all_that_is_open() -> None:
    decision = decided(timed(run_row(due_at=after(30), reply=REPLY)), RunOverdue(RUN), after(30))
    run = decision.run
    assert run is not None
    assert run.error is not None
    assert (run.status, run.finished_at, run.due_at) == (RunStatus.FAILED, after(30), None)
    assert (run.error.code, run.error.message) == (codes.RUN_TIMEOUT, "the run took longer than its timeout of 30 s")
    assert decision.cancels_open_steps
    told, cancellation = decision.sends
    assert isinstance(told, SendResult)
    assert cancellation == SendCancellation(RUN)


@pytest.mark.parametrize(
    ("run", "now"),
    [
        (run_row(due_at=after(30)), after(29.999)),
        (run_row(), after(60)),
        (run_row(status=RunStatus.COMPLETED), after(60)),
        (run_row(status=RunStatus.CANCELLED), after(60)),
    ],
)
def test_a_run_is_not_overdue_before_its_time_or_after_its_end(run: Run, now: datetime) -> None:
    assert decided(timed(run), RunOverdue(RUN), now) == Decision(Verdict.STALE, codes.RUN_IS_FINAL)


def test_a_run_that_ends_is_not_due_any_more() -> None:
    state = timed(run_row(due_at=after(30)))
    state.put_step(step_row(status=StepStatus.COMPLETED))
    state.outcomes["step"] = StepOutcome(StepStatus.COMPLETED, 1, None)
    run = decided(state, StepEnded(RUN, "step")).run
    assert run is not None
    assert run.due_at is None
