"""A step that a run of another workflow carries out: how that starts, ends and is stopped."""

from dataclasses import replace
from typing import Any

import pytest

from orchestrator.engine import codes
from orchestrator.engine.decide import apply, first_wanted
from orchestrator.engine.decision import Decision, SendCancelRun, SendTask, Verdict
from orchestrator.engine.inputs import (
    AttemptOverdue,
    BlockForked,
    ChildEnded,
    ChildStarted,
    SlotsFree,
    StepReached,
    TaskReported,
)
from orchestrator.engine.moment import Moment
from orchestrator.engine.plan import Plan
from orchestrator.engine.records import Parent, Run, StepExecution
from orchestrator.engine.state import Line, RunState, Wanted
from schemas.messages import ErrorInfo, RunResult
from schemas.statuses import ResultStatus, RunStatus, StepStatus
from tests.unit.orchestrator.engine.scene import (
    ERROR,
    NOW,
    OTHER,
    REPLY,
    RUN,
    TASK,
    after,
    answer,
    block_row,
    branch_row,
    counted_ids,
    decided,
    known,
    parallel,
    plan_of,
    report,
    requested,
    run_row,
    step_row,
)

QUEUED, RUNNING, PENDING = StepStatus.QUEUED, StepStatus.RUNNING, StepStatus.PENDING
COMPLETED, FAILED, CANCELLED = StepStatus.COMPLETED, StepStatus.FAILED, StepStatus.CANCELLED
ABOVE = Parent(OTHER, "calls", ("top", "above"))


def starts(workflow_id: str = "below", **fields: Any) -> dict[str, Any]:
    return {"type": "sub_workflow", "workflow_id": workflow_id, **fields}


def calls(status: StepStatus = RUNNING, **fields: Any) -> StepExecution:
    return step_row("calls", status, **({"agent_name": None, "sub_workflow_id": "below"} | fields))


def open_attempt(plan: Plan | None = None, **fields: Any) -> RunState:
    return known(calls(**fields), plan=plan or plan_of(calls=starts()))


def ended(status: ResultStatus, output: Any = None, error: ErrorInfo | None = None) -> ChildEnded:
    return ChildEnded(RUN, TASK, RunResult(run_id=TASK, status=status, output=output, error=error))


FAILURE = ended(ResultStatus.FAILED, error=ErrorInfo(code="step_failed", message="no luck"))


def entered(run: Run, plan: Plan) -> Decision:
    return decided(known(run=run, plan=plan), StepReached(RUN, "calls"))


# Its start


def test_a_run_is_asked_for_whose_id_is_the_task_id() -> None:
    decision = entered(run_row(), plan_of(calls=starts(version="2.0", input_mapping={"n": 1}, timeout_seconds=5)))
    [step] = decision.steps
    assert decision.sends == (SendTask(step),)
    assert (step.status, step.attempt, step.child_run_id) == (QUEUED, 1, step.task_id)
    assert (step.agent_name, step.sub_workflow_id, step.sub_workflow_version) == (None, "below", "2.0")
    assert (step.input, step.timeout_seconds, step.due_at) == ({"n": 1}, 5, None)


@pytest.mark.parametrize("workflow_id", ["top", "above", "here"])
def test_a_workflow_that_led_to_the_run_is_not_started_again(workflow_id: str) -> None:
    decision = entered(run_row(workflow_id="here", parent=ABOVE), plan_of(calls=starts(workflow_id)))
    [step] = decision.steps
    assert (step.status, decision.sends) == (FAILED, ())
    assert step.error is not None
    assert step.error.code == codes.SUB_WORKFLOW_CYCLE
    assert step.error.message.endswith(f'"top" -> "above" -> "here" -> "{workflow_id}"')


@pytest.mark.parametrize(("above", "status"), [(6, QUEUED), (7, FAILED)])
def test_runs_go_eight_deep(above: int, status: StepStatus) -> None:
    run = run_row(parent=Parent(OTHER, "calls", tuple(f"w{number}" for number in range(above))))
    [step] = entered(run, plan_of(calls=starts())).steps
    assert step.status is status
    assert step.error is None or step.error.code == codes.SUB_WORKFLOW_TOO_DEEP


def test_a_branch_of_a_limited_block_asks_for_its_run_when_it_has_a_slot() -> None:
    plan = plan_of(block=parallel("a", "b", max_parallelism=1), a=starts(), b=starts())
    waiting = branch_row("a", PENDING, agent_name=None, sub_workflow_id="below", input={})
    block = block_row(total=2, open=2, max_parallelism=1)
    state = known(block, plan=plan)
    decision = answer(state, SlotsFree(RUN, "block"))
    assert isinstance(decision, Wanted)

    state.put_line("block", Line(0, 1, (waiting,)))
    decision = decided(state, SlotsFree(RUN, "block"))
    [_, sent] = decision.steps
    assert (sent.status, decision.sends, decision.then) == (QUEUED, (SendTask(sent),), ())


def test_a_block_does_not_enter_a_sub_workflow_as_it_enters_a_block() -> None:
    plan = plan_of(block=parallel("a", "b"), a=starts(), b=starts())
    decision = decided(known(block_row(total=2, open=2), plan=plan), BlockForked(RUN, "block", 0))
    assert decision.then == ()


def test_the_step_runs_when_its_run_does_and_has_its_time_from_there() -> None:
    state = open_attempt(status=QUEUED, timeout_seconds=5, queued_at=NOW)
    decision = decided(state, ChildStarted(RUN, TASK), after(2))
    assert decision.steps == (calls(RUNNING, timeout_seconds=5, queued_at=NOW, started_at=after(2), due_at=after(7)),)


@pytest.mark.parametrize(("status", "verdict"), [(RUNNING, Verdict.DUPLICATE), (CANCELLED, Verdict.STALE)])
def test_a_start_that_is_known_or_too_late_changes_nothing(status: StepStatus, verdict: Verdict) -> None:
    decision = decided(open_attempt(status=status), ChildStarted(RUN, TASK))
    assert (decision.verdict, decision.steps) == (verdict, ())


# The child's request


def asked_for(above: RunState) -> RunState:
    return RunState(None, plan=plan_of(step={"agent_name": "echo"}), parent=above)


CHILD = requested(run_id=TASK, workflow_id="below", parent_run_id=RUN, reply=REPLY)


def test_a_run_that_a_step_waits_for_knows_whose_it_is_and_tells_it() -> None:
    above = open_attempt(status=QUEUED)
    above.put_run(run_row(parent=ABOVE))
    decision = decided(asked_for(above), CHILD)
    assert decision.run is not None
    assert decision.run.parent == Parent(RUN, "calls", ("top", "above", "sample"))
    assert decision.run.lineage == ("top", "above", "sample", "below")
    assert decision.tells_parent == ChildStarted(RUN, TASK)


@pytest.mark.parametrize(
    "above",
    [
        known(run=None),
        RunState(None),
        open_attempt(status=CANCELLED),
        open_attempt(task_id=OTHER),
        known(step_row("calls", RUNNING), plan=plan_of(calls=starts())),
        known(calls(), run=run_row(RunStatus.CANCELLED), plan=plan_of(calls=starts())),
    ],
    ids=["no attempt", "no run", "attempt over", "another attempt", "of an agent", "run over"],
)
def test_a_run_that_no_step_waits_for_is_refused(above: RunState) -> None:
    assert decided(asked_for(above), CHILD) == Decision(Verdict.REJECTED, codes.NOT_AWAITED)


def test_a_child_that_is_requested_again_still_answers_its_parent() -> None:
    run = run_row(parent=ABOVE, reply=REPLY)
    again = requested(reply=replace(REPLY, queue="elsewhere"), parent_run_id=OTHER)
    assert decided(known(run=run), again) == Decision(Verdict.DUPLICATE)


# Its end


def test_the_step_comes_to_what_its_run_comes_to() -> None:
    decision = decided(open_attempt(due_at=after(9)), ended(ResultStatus.COMPLETED, {"n": 1}), after(3))
    [step] = decision.steps
    assert (step.status, step.output, step.finished_at, step.due_at) == (COMPLETED, {"n": 1}, after(3), None)


def test_it_wants_the_attempt_the_plan_and_who_is_next_in_line() -> None:
    task = frozenset({TASK})
    assert first_wanted(FAILURE) == Wanted(tasks=task, ending=task, plan=True)
    assert answer(RunState(run_row()), FAILURE) == Wanted(tasks=task, plan=True)


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (ResultStatus.FAILED, codes.SUB_WORKFLOW_FAILED),
        (ResultStatus.REJECTED, codes.SUB_WORKFLOW_FAILED),
        (ResultStatus.CANCELLED, codes.SUB_WORKFLOW_CANCELLED),
    ],
)
def test_a_run_that_does_not_complete_fails_the_step_with_its_error(status: ResultStatus, code: str) -> None:
    [step] = decided(open_attempt(), ended(status, error=ERROR)).steps
    assert step.error is not None
    assert (step.status, step.error.code) == (FAILED, code)
    assert step.error.message.endswith("no luck")
    told = {"code": "agent_error", "message": "no luck"}
    assert step.error.details == {"run_id": str(TASK), "workflow_id": "below", "error": told}


def test_an_output_that_is_too_large_for_a_message_fails_the_step() -> None:
    error = ErrorInfo(code=codes.PAYLOAD_TOO_LARGE, message="more than the broker takes")
    [step] = decided(open_attempt(), ended(ResultStatus.COMPLETED, None, error)).steps
    assert step.error is not None
    assert (step.status, step.error.code) == (FAILED, codes.PAYLOAD_TOO_LARGE)


def test_another_run_follows_one_that_failed_but_none_that_was_cancelled() -> None:
    plan = plan_of(calls=starts(retry={"max_attempts": 2}))
    failed = decided(open_attempt(plan), FAILURE)
    assert failed.ended is not None
    assert (failed.steps[0].status, failed.steps[0].task_id, failed.ended.step.task_id) == (PENDING, None, TASK)
    [step] = decided(open_attempt(plan), ended(ResultStatus.CANCELLED, error=ERROR)).steps
    assert step.status is FAILED


def test_a_retry_may_leave_out_what_the_error_of_the_run_is_called() -> None:
    plan = plan_of(calls=starts(retry={"max_attempts": 2, "non_retryable": ["step_failed"]}))
    assert decided(open_attempt(plan), FAILURE).steps[0].status is FAILED


@pytest.mark.parametrize(
    ("status", "verdict", "code"),
    [
        (FAILED, Verdict.DUPLICATE, codes.DUPLICATE_RESULT),
        (COMPLETED, Verdict.STALE, codes.LATE_REPORT),
        (CANCELLED, Verdict.STALE, codes.LATE_REPORT),
    ],
)
def test_a_result_that_comes_again_or_too_late_changes_nothing(status: StepStatus, verdict: Verdict, code: str) -> None:
    assert decided(open_attempt(status=status), FAILURE) == Decision(verdict, code)


def test_results_count_for_the_attempt_that_they_are_of() -> None:
    for state in (open_attempt(task_id=OTHER), known(step_row("calls", RUNNING), plan=plan_of(calls=starts()))):
        state.tasks.setdefault(TASK, None)
        assert decided(state, FAILURE) == Decision(Verdict.STALE, codes.UNKNOWN_TASK)
    assert decided(RunState(None), FAILURE) == Decision(Verdict.REJECTED, codes.UNKNOWN_RUN)


def test_a_worker_cannot_report_for_a_run() -> None:
    assert decided(open_attempt(), TaskReported(report())) == Decision(Verdict.STALE, codes.UNKNOWN_TASK)


# Its run is stopped


def test_a_run_that_takes_too_long_is_stopped_and_so_the_attempt_has_failed() -> None:
    decision = decided(open_attempt(timeout_seconds=5, due_at=NOW), AttemptOverdue(RUN, "calls", TASK))
    [step] = decision.steps
    assert step.error is not None
    assert (step.status, step.error.code) == (FAILED, codes.TIMEOUT)
    assert step.error.message == "the run of the sub-workflow took longer than the step's timeout of 5 s"
    assert decision.sends == (SendCancelRun(TASK, f'step "calls" of run {RUN} ran out of time'),)


def test_where_another_run_follows_the_first_is_stopped_all_the_same() -> None:
    plan = plan_of(calls=starts(retry={"max_attempts": 2}))
    decision = decided(open_attempt(plan, timeout_seconds=5, due_at=NOW), AttemptOverdue(RUN, "calls", TASK))
    assert decision.steps[0].status is PENDING
    assert [type(send) for send in decision.sends] == [SendCancelRun]


def test_a_branch_that_takes_too_long_stops_its_run() -> None:
    plan = plan_of(block=parallel("a", "b"), a=starts(), b=starts())
    limits = {"branch_timeout_seconds": 5.0, "branch_due_at": NOW, "due_at": NOW}
    row = branch_row("a", RUNNING, agent_name=None, sub_workflow_id="below", **limits)
    decision = decided(known(block_row(total=2, open=2), row, plan=plan), AttemptOverdue(RUN, "a", TASK))
    assert [send.run_id for send in decision.sends if isinstance(send, SendCancelRun)] == [TASK]


def test_an_agent_that_takes_too_long_stops_no_run() -> None:
    state = known(step_row(status=RUNNING, timeout_seconds=5, due_at=NOW))
    assert decided(state, AttemptOverdue(RUN, "step", TASK)).sends == ()


def test_what_was_decided_is_seen_by_the_next_input_of_the_transaction() -> None:
    state = open_attempt(status=QUEUED)
    moment = Moment(NOW, counted_ids(), lambda: 0.0)
    apply(state, decided(state, ChildStarted(RUN, TASK)), moment)
    apply(state, decided(state, ended(ResultStatus.COMPLETED, 1)), moment)
    assert decided(state, FAILURE).verdict is Verdict.STALE
