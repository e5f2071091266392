"""The status changes that people and programs follow, read off old and new records."""

from datetime import datetime
from typing import NamedTuple

from orchestrator.engine.decision import EndedAttempt
from orchestrator.engine.records import Run, StepExecution
from schemas.messages import ErrorInfo
from schemas.statuses import StepStatus


class StatusChange(NamedTuple):
    """What a `schemas.messages.StepEvent` tells; of the run itself where *step_id* is None."""

    step_id: str | None
    parent_step_id: str | None
    branch_name: str | None
    status: StepStatus
    attempt: int
    at: datetime
    error: ErrorInfo | None


def step_changes(
    before: StepExecution | None, after: StepExecution, ended: EndedAttempt | None = None
) -> list[StatusChange]:
    """Return the status changes between two versions of a row; *before* is None for a new row.

    A step that goes back to PENDING tells of the attempt that has *ended*: its start, its end and its error.

    The report of a short attempt's end may be the first that is heard of it. Its start is told then too, so that
    whoever follows sees every step run.
    """
    if ended is not None and ended.step.step_id == after.step_id:
        return _retried(before, after, ended)
    moved = before is None or before.status is not after.status or before.worker_id != after.worker_id
    if not moved or (before is not None and before.status.is_final):
        return []
    started_unseen = before is not None and before.status is StepStatus.QUEUED and after.status in _ENDED
    if started_unseen and after.started_at is not None:
        return [_change(after, StepStatus.RUNNING), _change(after, after.status)]
    return [_change(after, after.status)]


def _retried(before: StepExecution | None, after: StepExecution, ended: EndedAttempt) -> list[StatusChange]:
    at = ended.step.finished_at
    assert at is not None, "an attempt that has ended has an end"
    waits = StatusChange(
        after.step_id, after.parent_step_id, after.branch_name, after.status, after.attempt, at, ended.error
    )
    unseen = before is not None and before.status is StepStatus.QUEUED and ended.step.started_at is not None
    return [_change(ended.step, StepStatus.RUNNING), waits] if unseen else [waits]


def run_change(run: Run) -> StatusChange:
    """Return the status change of the run itself."""
    at = run.finished_at or run.started_at
    assert at is not None, "a run that is told of has started"
    return StatusChange(None, None, None, StepStatus(run.status.value), attempt=0, at=at, error=run.error)


_ENDED = frozenset({StepStatus.COMPLETED, StepStatus.FAILED})


def _change(step: StepExecution, status: StepStatus) -> StatusChange:
    at = _time(step, status)
    assert at is not None, "every status change sets its time"
    error = step.error if status in _ENDED else None
    return StatusChange(step.step_id, step.parent_step_id, step.branch_name, status, step.attempt, at, error)


def _time(step: StepExecution, status: StepStatus) -> datetime | None:
    match status:
        case StepStatus.PENDING:
            return step.created_at
        case StepStatus.QUEUED:
            return step.queued_at
        case StepStatus.RUNNING:
            return step.started_at
        case _:
            return step.finished_at
