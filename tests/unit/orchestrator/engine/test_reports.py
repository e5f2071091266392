"""What workers report, in the order in which it goes right and in every other."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from orchestrator.engine import codes
from orchestrator.engine.attempt import TIMEOUT_GRACE
from orchestrator.engine.decide import apply
from orchestrator.engine.decision import Decision, Ticket, Verdict
from orchestrator.engine.inputs import (
    AttemptOverdue,
    BlockDrained,
    Input,
    SlotsFree,
    StepEnded,
    TaskReported,
    TaskUndeliverable,
)
from orchestrator.engine.moment import Moment
from orchestrator.engine.records import StepExecution
from orchestrator.engine.state import RunState, Wanted
from schemas.messages import AgentError
from schemas.statuses import ReportStatus, StepStatus
from schemas.worker_codes import WorkerErrorCode
from tests.unit.orchestrator.engine.scene import (
    NOW,
    OTHER,
    RUN,
    TASK,
    after,
    answer,
    block_row,
    branch_row,
    counted_ids,
    decided,
    known,
    report,
    step_row,
)

STARTED, HEARTBEAT = ReportStatus.STARTED, ReportStatus.HEARTBEAT
COMPLETED, FAILED = ReportStatus.COMPLETED, ReportStatus.FAILED
ENDS = pytest.mark.parametrize("end", [COMPLETED, FAILED])
OPEN = pytest.mark.parametrize("status", [StepStatus.QUEUED, StepStatus.RUNNING])
FINAL = [status for status in StepStatus if status.is_final]
UNKNOWN_TASK = Decision(Verdict.STALE, codes.UNKNOWN_TASK)


def reported(status: ReportStatus, **fields: Any) -> TaskReported:
    return TaskReported(report(status, **fields))


# Whose report counts


def test_a_report_for_a_run_that_does_not_exist_is_rejected() -> None:
    assert decided(RunState(None), reported(COMPLETED)) == Decision(Verdict.REJECTED, codes.UNKNOWN_RUN)


def test_a_report_wants_to_see_the_step_of_its_task() -> None:
    assert answer(known(), reported(STARTED)) == Wanted(tasks=frozenset({TASK}))


@pytest.mark.parametrize("status", ReportStatus)
def test_a_report_with_a_task_id_that_nobody_gave_out_is_stale(status: ReportStatus) -> None:
    state = known(step_row())
    state.tasks[OTHER] = None
    assert decided(state, reported(status, task_id=OTHER)) == UNKNOWN_TASK


@pytest.mark.parametrize("status", ReportStatus)
def test_a_report_of_an_earlier_attempt_is_stale(status: ReportStatus) -> None:
    state = known(step_row(task_id=OTHER), step_row(task_id=TASK, attempt=2))
    assert decided(state, reported(status, task_id=OTHER)) == UNKNOWN_TASK


@OPEN
@pytest.mark.parametrize("status_reported", ReportStatus)
def test_a_report_of_one_that_does_not_serve_the_agent_is_rejected(
    status: StepStatus, status_reported: ReportStatus
) -> None:
    state = known(step_row(status=status))
    forged = replace(reported(status_reported), speaks_for=frozenset({"another-agent"}))
    assert decided(state, forged) == Decision(Verdict.REJECTED, codes.FORGED_RESULT)


# An attempt that lives


@pytest.mark.parametrize("first", [STARTED, HEARTBEAT])
def test_the_first_sign_of_life_makes_the_step_run(first: ReportStatus) -> None:
    decision = decided(known(step_row(timeout_seconds=5.0)), reported(first), after(2))
    (step,) = decision.steps
    assert (decision.verdict, step.status, step.worker_id) == (Verdict.APPLIED, StepStatus.RUNNING, "worker-1")
    assert (step.started_at, step.heartbeat_at) == (after(2), after(2))
    assert step.due_at == after(2) + timedelta(seconds=5) + TIMEOUT_GRACE
    assert (decision.sends, decision.then, decision.released) == ((), (), None)


def test_the_worker_says_when_it_started_and_the_database_when_that_is_overdue() -> None:
    decision = decided(known(step_row(timeout_seconds=5.0)), reported(STARTED, started_at=NOW), after(60))
    (step,) = decision.steps
    assert step.started_at == NOW
    assert step.due_at == after(65) + TIMEOUT_GRACE


@pytest.mark.parametrize("again", [STARTED, HEARTBEAT])
def test_a_further_sign_of_life_moves_the_heartbeat_only(again: ReportStatus) -> None:
    row = running_row(due_at=after(15))
    (step,) = decided(known(row), reported(again), after(9)).steps
    assert step.heartbeat_at == after(9)
    assert (step.started_at, step.due_at, step.status) == (row.started_at, row.due_at, row.status)


def test_a_second_worker_takes_the_step_over_and_gets_its_full_time() -> None:
    decision = decided(known(running_row(due_at=after(15))), reported(STARTED, worker_id="worker-2"), after(9))
    (step,) = decision.steps
    assert (step.status, step.worker_id, step.started_at) == (StepStatus.RUNNING, "worker-2", after(9))
    assert step.due_at == after(14) + TIMEOUT_GRACE


def test_a_heartbeat_of_another_worker_does_not_give_the_attempt_more_time() -> None:
    """Or two workers that both believe they have the task would keep each other from ever being overdue."""
    row = running_row(due_at=after(15))
    (step,) = decided(known(row), reported(HEARTBEAT, worker_id="worker-2"), after(9)).steps
    assert (step.due_at, step.worker_id, step.started_at) == (row.due_at, row.worker_id, row.started_at)


@pytest.mark.parametrize("late", [STARTED, HEARTBEAT])
@pytest.mark.parametrize("status", FINAL)
def test_a_sign_of_life_after_the_end_has_no_effect(status: StepStatus, late: ReportStatus) -> None:
    decision = decided(known(step_row(status=status)), reported(late))
    assert decision == Decision(Verdict.STALE, codes.LATE_REPORT)


# An attempt that ends


@OPEN
def test_a_completed_step_holds_its_output_and_the_run_goes_on(status: StepStatus) -> None:
    row = step_row(status=status, due_at=after(9))
    decision = decided(known(row), reported(COMPLETED, output={"n": 1}, started_at=NOW), after(3))
    (step,) = decision.steps
    assert (decision.verdict, step.status, step.output) == (Verdict.APPLIED, StepStatus.COMPLETED, {"n": 1})
    assert (step.started_at, step.finished_at, step.due_at, step.worker_id) == (NOW, after(3), None, "worker-1")
    assert decision.then == (StepEnded(RUN, "step"),)


def test_the_worker_says_when_it_finished() -> None:
    (step,) = decided(known(running_row()), reported(COMPLETED, finished_at=after(1)), after(60)).steps
    assert (step.started_at, step.finished_at) == (NOW, after(1))


@OPEN
def test_an_exception_of_the_agent_is_an_agent_error_with_its_type(status: StepStatus) -> None:
    error = AgentError(type="ValueError", message="no luck", details={"traceback": "..."})
    decision = decided(known(step_row(status=status, due_at=after(9))), reported(FAILED, error=error))
    (step,) = decision.steps
    assert (step.status, step.due_at, decision.then) == (StepStatus.FAILED, None, (StepEnded(RUN, "step"),))
    assert step.error is not None
    assert (step.error.code, step.error.message) == (codes.AGENT_ERROR, "no luck")
    assert step.error.details == {"type": "ValueError", "traceback": "..."}


@pytest.mark.parametrize("code", WorkerErrorCode)
@pytest.mark.parametrize("details", [None, {"limit": 3}])
def test_the_own_codes_of_a_worker_stay_codes(code: WorkerErrorCode, details: dict[str, Any] | None) -> None:
    error = AgentError(type=code.value, message="too much", details=details)
    (step,) = decided(known(step_row()), reported(FAILED, error=error)).steps
    assert step.error is not None
    assert (step.error.code, step.error.message, step.error.details) == (code.value, "too much", details)


@ENDS
def test_the_same_result_a_hundred_times_has_one_effect_and_ninety_nine_duplicates(end: ReportStatus) -> None:
    state = known(step_row())
    answers = []
    for _ in range(100):
        decision = decided(state, reported(end))
        answers.append((decision.verdict, decision.code, bool(decision.steps), bool(decision.then)))
        apply(state, decision, Moment(NOW, counted_ids(), lambda: 0.0))
    assert answers[0] == (Verdict.APPLIED, "", True, True)
    assert answers[1:] == [(Verdict.DUPLICATE, codes.DUPLICATE_RESULT, False, False)] * 99


@ENDS
@pytest.mark.parametrize("status", FINAL)
def test_a_result_after_the_end_has_no_effect_but_frees_the_ticket_again(status: StepStatus, end: ReportStatus) -> None:
    row = branch_row(status=status)
    decision = decided(known(block_row(), row), reported(end))
    same = status.value == end.value
    assert decision.verdict is (Verdict.DUPLICATE if same else Verdict.STALE)
    assert decision.code == (codes.DUPLICATE_RESULT if same else codes.LATE_REPORT)
    assert (decision.steps, decision.sends, decision.then, decision.afterwards) == ((), (), (), None)
    assert decision.released == Ticket("block", "a"), "the notice of its end may have been lost: it is told once more"


@pytest.mark.parametrize(
    "said",
    [
        pytest.param(AgentError(type="timeout", message="the agent took longer than 5 s"), id="its own timeout"),
        pytest.param(AgentError(type="ValueError", message="no luck"), id="the agent's error"),
    ],
)
def test_a_failure_that_the_worker_tells_after_it_was_given_up_is_late_and_no_duplicate(said: AgentError) -> None:
    state = known(running_row(due_at=NOW))
    apply(state, decided(state, overdue()), Moment(NOW, counted_ids(), lambda: 0.0))
    decision = decided(state, reported(FAILED, error=said))
    assert (decision.verdict, decision.code, decision.steps) == (Verdict.STALE, codes.LATE_REPORT, ())


# A branch that ends


@ENDS
def test_a_branch_that_is_not_the_last_is_counted_and_the_block_goes_on(end: ReportStatus) -> None:
    decision = decided(known(block_row(open=2), branch_row()), reported(end))
    branch, block = decision.steps
    assert (branch.step_id, branch.status) == ("a", end.value)
    assert block.branches is not None
    assert (block.status, block.branches.open) == (StepStatus.RUNNING, 1)
    assert block.branches.failed == (end is FAILED)
    assert decision.then == ()


@ENDS
def test_the_last_branch_drains_the_block(end: ReportStatus) -> None:
    decision = decided(known(block_row(open=1), branch_row()), reported(end))
    assert decision.then == (BlockDrained(RUN, "block"),)


@ENDS
def test_an_ended_branch_releases_its_ticket_and_hands_its_slot_on(end: ReportStatus) -> None:
    block = block_row(max_parallelism=1, dispatched=1, passed=1)
    decision = decided(known(block, branch_row()), reported(end))
    branch, counted = decision.steps
    assert branch.status.is_final
    assert decision.released == Ticket("block", "a")
    assert counted.branches is not None
    assert counted.branches.dispatched == 0
    assert decision.afterwards == SlotsFree(RUN, "block")


@pytest.mark.parametrize(
    "block",
    [
        pytest.param(block_row(max_parallelism=2, dispatched=1, passed=3, open=1), id="nobody waits"),
        pytest.param(block_row(), id="no limit"),
        pytest.param(block_row(max_parallelism=3), id="a limit that holds nobody back"),
    ],
)
def test_nothing_is_handed_on_where_nobody_waits(block: StepExecution) -> None:
    assert decided(known(block, branch_row()), reported(COMPLETED)).afterwards is None


# Silence


def overdue(step_id: str = "step") -> AttemptOverdue:
    return AttemptOverdue(RUN, step_id, TASK)


def undeliverable() -> TaskUndeliverable:
    return TaskUndeliverable(RUN, "step", TASK, codes.UNKNOWN_AGENT)


@pytest.mark.parametrize("event", [overdue(), undeliverable()])
def test_silence_wants_to_see_the_step(event: Input) -> None:
    assert answer(known(), event) == Wanted(steps=frozenset({"step"}))


@pytest.mark.parametrize("late", [0, 0.001, 60])
def test_an_attempt_whose_time_is_up_fails_with_its_timeout_and_worker_named(late: float) -> None:
    decision = decided(known(running_row(due_at=after(15))), overdue(), after(15 + late))
    (step,) = decision.steps
    assert (step.status, step.finished_at, step.due_at) == (StepStatus.FAILED, after(15 + late), None)
    assert step.error is not None
    assert step.error.code == codes.TIMEOUT
    assert "timeout of 5 s" in step.error.message
    assert "worker worker-1" in step.error.message
    assert decision.then == (StepEnded(RUN, "step"),)


def test_a_task_that_no_worker_took_in_time_fails_with_its_own_code() -> None:
    (step,) = decided(known(step_row(due_at=after(7), queue_timeout_seconds=7.0)), overdue(), after(7)).steps
    assert step.error is not None
    assert (step.status, step.error.code) == (StepStatus.FAILED, codes.QUEUE_TIMEOUT)
    assert "within its queue timeout of 7 s" in step.error.message


def test_an_attempt_that_was_silent_for_too_long_fails_with_its_own_code() -> None:
    row = running_row(due_at=after(9), heartbeat_at=after(5), heartbeat_timeout_seconds=4.0)
    (step,) = decided(known(row), overdue(), after(9)).steps
    assert step.error is not None
    assert (step.error.code, step.error.message) == (
        codes.HEARTBEAT_TIMEOUT,
        "worker worker-1 showed no sign of life within the attempt's heartbeat timeout of 4 s",
    )


def test_an_attempt_that_speaks_and_takes_too_long_fails_with_its_timeout() -> None:
    row = running_row(due_at=after(15), heartbeat_at=after(14), heartbeat_timeout_seconds=4.0)
    (step,) = decided(known(row), overdue(), after(15)).steps
    assert step.error is not None
    assert step.error.code == codes.TIMEOUT


def test_each_sign_of_life_puts_off_the_end_of_a_patience_but_not_of_the_time() -> None:
    row = running_row(started_at=NOW, queued_at=NOW, heartbeat_timeout_seconds=4.0)
    assert [decided(known(row), reported(HEARTBEAT), after(at)).steps[0].due_at for at in (3, 14)] == [
        after(7),
        after(5) + TIMEOUT_GRACE,
    ]


def test_an_attempt_is_not_overdue_before_its_time() -> None:
    assert decided(known(running_row(due_at=after(15))), overdue(), after(14.999)) == UNKNOWN_TASK


@pytest.mark.parametrize(
    "row",
    [
        pytest.param(step_row(due_at=NOW, task_id=OTHER), id="another attempt"),
        pytest.param(step_row(status=StepStatus.RUNNING), id="may take for ever"),
        *(pytest.param(step_row(status=status), id=f"already {status}") for status in FINAL),
    ],
)
def test_what_is_not_under_way_cannot_be_overdue(row: StepExecution) -> None:
    assert decided(known(row), overdue(), after(60)) == UNKNOWN_TASK


def test_an_overdue_branch_is_counted_like_any_other() -> None:
    block = block_row(open=1, max_parallelism=1, dispatched=1, passed=3)
    branch = branch_row(status=StepStatus.RUNNING, due_at=NOW, timeout_seconds=5.0)
    decision = decided(known(block, branch), overdue(step_id="a"))
    assert decision.steps[1].branches is not None
    assert (decision.steps[1].branches.open, decision.steps[1].branches.failed) == (0, 1)
    assert decision.then == (BlockDrained(RUN, "block"),)
    assert decision.released == Ticket("block", "a")


def test_a_task_that_no_queue_takes_fails_with_its_agent_named() -> None:
    decision = decided(known(step_row(agent_name="nobody")), undeliverable())
    (step,) = decision.steps
    assert step.status is StepStatus.FAILED
    assert step.error is not None
    assert step.error.code == codes.UNKNOWN_AGENT
    assert '"nobody"' in step.error.message


@pytest.mark.parametrize(
    "row",
    [
        pytest.param(step_row(task_id=OTHER), id="another attempt"),
        *(
            pytest.param(step_row(status=status), id=f"is {status}")
            for status in StepStatus
            if status is not StepStatus.QUEUED
        ),
    ],
)
def test_only_a_task_that_nobody_has_taken_is_undeliverable(row: StepExecution) -> None:
    assert decided(known(row), undeliverable()) == UNKNOWN_TASK


SILENT_AFTER = timedelta(seconds=90)


def lost() -> TaskUndeliverable:
    return TaskUndeliverable(RUN, "step", TASK, codes.WORKER_LOST, SILENT_AFTER)


@pytest.mark.parametrize(
    "row",
    [
        pytest.param(step_row(), id="nobody reported on it"),
        pytest.param(step_row(status=StepStatus.RUNNING, heartbeat_at=NOW), id="silent for long"),
        pytest.param(step_row(status=StepStatus.RUNNING), id="never heard of"),
    ],
)
def test_a_task_that_the_broker_gave_up_fails_as_lost(row: StepExecution) -> None:
    decision = decided(known(row), lost(), NOW + SILENT_AFTER)
    (step,) = decision.steps
    assert (decision.verdict, step.status) == (Verdict.APPLIED, StepStatus.FAILED)
    assert step.error is not None
    assert step.error.code == "worker_lost"
    assert "delivery-limit" in step.error.message


def test_a_task_that_the_broker_gave_up_goes_on_while_its_worker_is_heard_of() -> None:
    row = step_row(status=StepStatus.RUNNING, heartbeat_at=NOW)
    almost = NOW + SILENT_AFTER - timedelta(milliseconds=1)
    assert decided(known(row), lost(), almost) == Decision(Verdict.STALE, codes.HEARD_FROM)


@pytest.mark.parametrize(
    "row",
    [
        pytest.param(step_row(task_id=OTHER), id="another attempt"),
        *(pytest.param(step_row(status=status), id=f"already {status}") for status in FINAL),
    ],
)
def test_a_task_that_is_over_is_not_lost(row: StepExecution) -> None:
    assert decided(known(row), lost(), NOW + SILENT_AFTER) == UNKNOWN_TASK


@pytest.mark.parametrize("event", [overdue(), undeliverable(), lost()])
def test_silence_about_a_step_that_does_not_exist_means_nothing(event: Input) -> None:
    state = RunState(None, steps={"step": None})
    assert decided(state, event) == UNKNOWN_TASK


def running_row(**fields: Any) -> StepExecution:
    given: dict[str, Any] = {
        "worker_id": "worker-1",
        "started_at": NOW,
        "heartbeat_at": NOW,
        "timeout_seconds": 5.0,
    }
    return step_row(status=StepStatus.RUNNING, **(given | fields))
