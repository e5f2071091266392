"""The status changes that people and programs follow, read off old and new records."""

from orchestrator.engine.records import Run, StepExecution
from schemas.messages import StepEvent
from schemas.statuses import StepStatus


def step_events(before: StepExecution | None, after: StepExecution) -> list[StepEvent]:
    """Return the status changes between two versions of a row; *before* is None for a new row.

    The report of a short attempt's end may be the first that is heard of it. Its start is told then too, so that
    whoever follows sees every step run.
    """
    moved = before is None or before.status is not after.status or before.worker_id != after.worker_id
    if not moved or (before is not None and before.status.is_final):
        return []
    started_unseen = before is not None and before.status is StepStatus.QUEUED and after.status in _ENDED
    if started_unseen and after.started_at is not None:
        return [_step_event(after, StepStatus.RUNNING), _step_event(after, after.status)]
    return [_step_event(after, after.status)]


def run_event(run: Run) -> StepEvent:
    """Return the status change of the run itself."""
    at = run.finished_at or run.started_at
    assert at is not None, "a run that is told of has started"
    return StepEvent(step_id=None, status=StepStatus(run.status.value), attempt=0, at=at, error=run.error)


_ENDED = frozenset({StepStatus.COMPLETED, StepStatus.FAILED})


def _step_event(step: StepExecution, status: StepStatus) -> StepEvent:
    times = {
        StepStatus.PENDING: step.created_at,
        StepStatus.QUEUED: step.queued_at,
        StepStatus.RUNNING: step.started_at,
    }
    at = times.get(status, step.finished_at)
    assert at is not None, "every status change sets its time"
    return StepEvent.model_construct(
        step_id=step.step_id,
        parent_step_id=step.parent_step_id,
        branch_name=step.branch_name,
        status=status,
        attempt=step.attempt,
        at=at,
        error=step.error if status.is_final else None,
    )
