"""Which status changes are told, and when each is said to have happened."""

from typing import Any

import pytest

from orchestrator.engine.events import StatusChange, run_change, step_changes
from orchestrator.engine.records import StepExecution
from orchestrator.engine.transitions import STEP_TRANSITIONS
from schemas.statuses import RunStatus, StepStatus
from tests.unit.orchestrator.engine.scene import ERROR, after, block_row, branch_row, run_row, step_row

TIMES: dict[str, Any] = {
    "created_at": after(1),
    "queued_at": after(2),
    "started_at": after(3),
    "finished_at": after(4),
}


def timed(status: StepStatus, **fields: Any) -> StepExecution:
    return step_row(status=status, **(TIMES | {"worker_id": "worker-1"} | fields))


def told(before: StepExecution | None, after_it: StepExecution) -> list[tuple[StepStatus, Any]]:
    return [(event.status, event.at) for event in step_changes(before, after_it)]


@pytest.mark.parametrize(
    ("status", "at"),
    [
        (StepStatus.PENDING, after(1)),
        (StepStatus.QUEUED, after(2)),
        (StepStatus.RUNNING, after(3)),
        (StepStatus.FAILED, after(4)),
    ],
)
def test_a_new_row_is_told_once_with_the_time_of_its_status(status: StepStatus, at: Any) -> None:
    assert told(None, timed(status)) == [(status, at)]


@pytest.mark.parametrize(("before", "changed"), sorted({(pair[0], to) for pair, to in STEP_TRANSITIONS.items()}))
def test_every_change_of_the_table_is_told_and_ends_with_the_status_it_led_to(
    before: StepStatus, changed: StepStatus
) -> None:
    old = timed(before, worker_id="worker-1" if before is not StepStatus.RUNNING else "worker-0")
    statuses = [status for status, _ in told(old, timed(changed))]
    short_attempt = before is StepStatus.QUEUED and changed in {StepStatus.COMPLETED, StepStatus.FAILED}
    assert statuses == ([StepStatus.RUNNING, changed] if short_attempt else [changed])


@pytest.mark.parametrize("status", StepStatus)
def test_a_row_whose_status_stays_is_not_told_again(status: StepStatus) -> None:
    assert told(timed(status), timed(status, heartbeat_at=after(9))) == []


def test_the_counters_of_a_block_are_not_told() -> None:
    assert told(block_row(open=2), block_row(open=1)) == []


def test_another_worker_on_the_same_attempt_is_told() -> None:
    before = timed(StepStatus.RUNNING)
    assert told(before, timed(StepStatus.RUNNING, worker_id="worker-2")) == [(StepStatus.RUNNING, after(3))]


@pytest.mark.parametrize("status", [status for status in StepStatus if status.is_final])
def test_nothing_is_told_after_the_end(status: StepStatus) -> None:
    assert told(timed(status), timed(status, worker_id="worker-2")) == []


@pytest.mark.parametrize("end", [StepStatus.COMPLETED, StepStatus.FAILED])
def test_a_short_attempt_is_told_as_running_then_as_ended(end: StepStatus) -> None:
    assert told(timed(StepStatus.QUEUED, worker_id=None), timed(end)) == [
        (StepStatus.RUNNING, after(3)),
        (end, after(4)),
    ]


def test_an_attempt_that_nobody_started_is_not_told_as_running() -> None:
    assert told(timed(StepStatus.QUEUED), timed(StepStatus.FAILED, started_at=None)) == [(StepStatus.FAILED, after(4))]
    assert told(timed(StepStatus.QUEUED), timed(StepStatus.CANCELLED)) == [(StepStatus.CANCELLED, after(4))]


def test_an_event_names_the_branch_its_attempt_and_only_at_the_end_its_error() -> None:
    running, failed = step_changes(
        branch_row(**TIMES), branch_row(status=StepStatus.FAILED, attempt=1, error=ERROR, **TIMES)
    )
    assert failed == StatusChange(
        step_id="a",
        parent_step_id="block",
        branch_name="a",
        status=StepStatus.FAILED,
        attempt=1,
        at=after(4),
        error=ERROR,
    )
    assert running.error is None


@pytest.mark.parametrize(
    ("status", "at"), [(RunStatus.RUNNING, after(1)), *((s, after(2)) for s in RunStatus if s.is_final)]
)
def test_the_run_itself_is_told_without_a_step(status: RunStatus, at: Any) -> None:
    run = run_row(status, started_at=after(1), finished_at=after(2) if status.is_final else None, error=ERROR)
    event = run_change(run)
    assert (event.step_id, event.status, event.at, event.error) == (None, status.value, at, ERROR)
