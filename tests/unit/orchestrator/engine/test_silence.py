"""A task that seems lost: it goes out again, unless the attempt turns out to live."""

from datetime import datetime

import pytest

from orchestrator.engine import codes
from orchestrator.engine.decide import first_wanted
from orchestrator.engine.decision import Decision, SendTask, Verdict
from orchestrator.engine.inputs import TaskMissing, TaskUndeliverable
from orchestrator.engine.records import StepExecution
from orchestrator.engine.state import RunState, Wanted
from schemas.statuses import StepStatus
from tests.unit.orchestrator.engine.scene import NOW, OTHER, RUN, TASK, after, answer, decided, known, run_row, step_row

OPEN = [StepStatus.QUEUED, StepStatus.RUNNING]


def missing(last_sign: datetime = NOW) -> TaskMissing:
    return TaskMissing(RUN, "step", TASK, last_sign)


def silent_row(status: StepStatus = StepStatus.QUEUED, **fields: object) -> StepExecution:
    return step_row(status=status, **({"queued_at": NOW, "input": {"n": 1}} | fields))


def test_it_wants_to_see_the_step_with_its_input() -> None:
    wanted = Wanted(steps=frozenset({"step"}))
    assert answer(RunState(run_row()), missing()) == wanted
    assert first_wanted(missing()) == wanted


@pytest.mark.parametrize("status", OPEN)
def test_the_same_task_of_the_same_attempt_is_sent_again_and_its_silence_starts_anew(status: StepStatus) -> None:
    row = silent_row(status)
    decision = decided(known(row), missing(), after(60))
    again = row._replace(queued_at=after(60))
    assert decision == Decision(Verdict.APPLIED, steps=(again,), sends=(SendTask(again),))
    assert (again.task_id, again.attempt, again.status, again.input) == (TASK, 1, status, {"n": 1})


def test_a_second_replica_that_missed_the_same_task_sends_nothing() -> None:
    resent = silent_row(queued_at=after(60))
    assert decided(known(resent), missing(), after(60.1)) == Decision(Verdict.STALE, codes.HEARD_FROM)


def test_a_worker_that_has_spoken_meanwhile_keeps_its_task() -> None:
    row = silent_row(StepStatus.RUNNING, heartbeat_at=after(59))
    assert decided(known(row), missing(), after(60)) == Decision(Verdict.STALE, codes.HEARD_FROM)


def test_the_last_sign_of_a_worker_counts_and_not_when_it_says_that_it_started() -> None:
    row = silent_row(StepStatus.RUNNING, heartbeat_at=after(5), started_at=after(900))
    assert decided(known(row), missing(after(5)), after(600)).verdict is Verdict.APPLIED


@pytest.mark.parametrize(
    "row",
    [
        pytest.param(silent_row(task_id=OTHER), id="another attempt"),
        *(pytest.param(silent_row(status), id=f"is {status}") for status in StepStatus if status not in OPEN),
    ],
)
def test_what_is_not_under_way_is_not_missing(row: StepExecution) -> None:
    assert decided(known(row), missing(), after(60)) == Decision(Verdict.STALE, codes.UNKNOWN_TASK)


def test_a_step_that_does_not_exist_has_no_task() -> None:
    assert decided(RunState(None, steps={"step": None}), missing()) == Decision(Verdict.STALE, codes.UNKNOWN_TASK)


def undeliverable() -> TaskUndeliverable:
    return TaskUndeliverable(RUN, "step", TASK, codes.UNKNOWN_AGENT)


def running_row(sent: datetime) -> StepExecution:
    return silent_row(StepStatus.RUNNING, worker_id="worker-1", heartbeat_at=after(5), queued_at=sent)


def test_a_running_attempt_whose_task_was_sent_again_to_no_queue_fails_with_its_lost_worker_named() -> None:
    decision = decided(known(running_row(sent=after(60))), undeliverable(), after(120))
    (step,) = decision.steps
    assert step.status is StepStatus.FAILED
    assert step.error is not None
    assert step.error.code == codes.UNKNOWN_AGENT
    assert "worker worker-1 has not been heard of since 2026-01-01 00:00:05 UTC" in step.error.message


def test_a_worker_that_has_spoken_since_its_task_was_sent_again_goes_on() -> None:
    decision = decided(known(running_row(sent=after(4))), undeliverable(), after(120))
    assert decision == Decision(Verdict.STALE, codes.UNKNOWN_TASK)
