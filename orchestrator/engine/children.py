"""Sub-workflows: a step that a run of another workflow, its child, carries out.

An attempt of such a step is what any attempt is: it has a task id, a limit of time, perhaps a slot, and others may
follow it. Only what goes out is a RunRequest, and the task id is the child's own id. So a request that comes twice asks
for one run, parent and child find each other, and the child's RunResult counts by the task id, as a worker's report.

The transaction that starts a child holds the lock on the parent's run as well, and starts it only while the attempt is
open. Whoever ends the attempt otherwise holds that lock too, and sends a CancelRun. So that command finds a child that
runs, or one that never will: it cannot be too early.
"""

from datetime import datetime
from typing import assert_never
from uuid import UUID

from orchestrator.engine import codes
from orchestrator.engine.attempt import due_time
from orchestrator.engine.decision import Decision, SendCancelRun, Verdict
from orchestrator.engine.ending import attempt_failed, attempt_was_last, ticket_of
from orchestrator.engine.inputs import ChildEnded, ChildStarted, RunRequested
from orchestrator.engine.moment import Moment
from orchestrator.engine.records import Parent, StepExecution
from orchestrator.engine.retries import Failure
from orchestrator.engine.state import RunState, Wanted
from orchestrator.engine.transitions import Trigger
from schemas.display import quoted
from schemas.messages import ErrorInfo, RunResult
from schemas.statuses import ResultStatus, StepStatus


def parent_of(state: RunState, event: RunRequested) -> Parent | None:
    """Return whose child a requested run is; None where no open attempt waits for it."""
    above = state.parent
    step = _attempt(above, event.run_id) if above is not None else None
    if above is None or above.run is None or above.run.status.is_final or step is None or not step.is_dispatched:
        return None
    return Parent(above.run.id, step.step_id, above.run.lineage)


def started(state: RunState, event: ChildStarted, now: datetime) -> Decision | Wanted:
    """Show that the child runs, and give it its time."""
    missing = state.missing(Wanted(tasks=frozenset({event.task_id})))
    if missing:
        return missing
    step = _attempt(state, event.task_id)
    if step is None or step.status.is_final:
        return Decision(Verdict.STALE, codes.UNKNOWN_TASK)
    if step.status is not StepStatus.QUEUED:
        return Decision(Verdict.DUPLICATE)
    running = step.advanced(Trigger.START, started_at=now, due_at=due_time(step, now, now))
    return Decision(Verdict.APPLIED, steps=(running,))


def ended(state: RunState, event: ChildEnded, moment: Moment) -> Decision | Wanted:
    """End the attempt as its child has ended."""
    if state.run is None:
        return Decision(Verdict.REJECTED, codes.UNKNOWN_RUN)
    missing = state.missing(Wanted(tasks=frozenset({event.task_id}), plan=True))
    if missing:
        return missing
    step = _attempt(state, event.task_id)
    if step is None:
        return Decision(Verdict.STALE, codes.UNKNOWN_TASK)
    if step.status.is_final:
        repeated = step.status.value == event.result.status.value
        return Decision(
            Verdict.DUPLICATE if repeated else Verdict.STALE,
            codes.DUPLICATE_RESULT if repeated else codes.LATE_REPORT,
            released=ticket_of(state, step),
        )
    over = step._replace(finished_at=moment.now)
    if event.result.status is ResultStatus.COMPLETED and event.result.error is None:
        completed = over.advanced(Trigger.COMPLETE, output=event.result.output, due_at=None)
        return attempt_was_last(state, step, completed)
    return attempt_failed(state, over, _failure(step, event.result), moment)


def abandoned(step: StepExecution, reason: str) -> tuple[SendCancelRun, ...]:
    """Return what is sent when an open attempt ends before its child has; nothing where it has none."""
    return (SendCancelRun(step.child_run_id, reason),) if step.child_run_id is not None and step.is_dispatched else ()


def _attempt(state: RunState, task_id: UUID) -> StepExecution | None:
    """Return the step whose current attempt this is, if runs carry it out."""
    step_id = state.tasks.get(task_id)
    step = state.steps.get(step_id) if step_id is not None else None
    return step if step is not None and step.child_run_id == task_id else None


def _failure(step: StepExecution, result: RunResult) -> Failure:
    error = result.error or ErrorInfo(code=codes.SUB_WORKFLOW_FAILED, message="it says nothing of why")
    what = f"the run of sub-workflow {quoted(step.sub_workflow_id or '')}"
    told = error.model_dump(exclude_none=True)
    details = {"run_id": str(step.child_run_id), "workflow_id": step.sub_workflow_id, "error": told}
    match result.status:
        case ResultStatus.COMPLETED:  # what it came to was too large for a message
            return Failure(ErrorInfo(code=error.code, message=f"{what}: {error.message}", details=details))
        case ResultStatus.CANCELLED:
            message = f"{what} was cancelled: {error.message}"
            cancelled = ErrorInfo(code=codes.SUB_WORKFLOW_CANCELLED, message=message, details=details)
            return Failure(cancelled, retryable=False)
        case ResultStatus.REJECTED | ResultStatus.FAILED:
            became = "failed" if result.status is ResultStatus.FAILED else "was refused"
            message = f"{what} {became}: {error.message}"
            failed = ErrorInfo(code=codes.SUB_WORKFLOW_FAILED, message=message, details=details)
            return Failure(failed, kind=error.code)
        case _:
            assert_never(result.status)
