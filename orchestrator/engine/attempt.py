"""An attempt: how one starts, with the input that its template and the run so far give it."""

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Final, assert_never
from uuid import UUID

from orchestrator.engine import codes
from orchestrator.engine.ancestry import why_forbidden
from orchestrator.engine.placement import new_row
from orchestrator.engine.plan import AgentPlan, AttemptPlan, SubWorkflowPlan
from orchestrator.engine.records import Run, StepExecution
from orchestrator.engine.transitions import Trigger
from schemas.errors import ReferenceBroken
from schemas.messages import ErrorInfo
from schemas.scope import Scope
from schemas.statuses import StepStatus

# A worker ends an overdue attempt itself; the orchestrator waits this much longer before it believes the worker lost.
TIMEOUT_GRACE: Final = timedelta(seconds=10)


def new_step(
    run: Run, plan: AttemptPlan, execution: str, around: str | None, scope: Scope, now: datetime
) -> StepExecution:
    """Return the new row of a step that has attempts: PENDING with its input, or FAILED when there cannot be one.

    Args:
        run: Its run.
        plan: The step.
        execution: The id of this execution of it.
        around: The execution of the block in whose branch it is.
        scope: What its input is made of.
        now: The time.
    """
    step = _carried_out(new_row(run.id, plan, execution, around, now, StepStatus.PENDING), plan)
    forbidden = why_forbidden(run, step.sub_workflow_id) if step.sub_workflow_id is not None else None
    if forbidden is not None:
        return step.advanced(Trigger.FAIL, error=forbidden, finished_at=now)
    try:
        return step._replace(input=plan.template.resolve(scope))
    except ReferenceBroken as broken:
        error = ErrorInfo(code=codes.REFERENCE_BROKEN, message=str(broken), details={"reference": broken.reference})
        return step.advanced(Trigger.FAIL, error=error, finished_at=now)


def _carried_out(step: StepExecution, plan: AttemptPlan) -> StepExecution:
    """Return the row with who carries it out, and how long that may take."""
    match plan:
        case AgentPlan():
            return step._replace(
                agent_name=plan.agent_name,
                timeout_seconds=plan.limits.attempt,
                queue_timeout_seconds=plan.limits.queue,
                heartbeat_timeout_seconds=plan.limits.heartbeat,
            )
        case SubWorkflowPlan():  # no worker takes it, and none gives signs of life
            return step._replace(
                sub_workflow_id=plan.workflow_id,
                sub_workflow_version=plan.version,
                timeout_seconds=plan.limits.attempt,
            )
        case _:
            assert_never(plan)


def dispatched(step: StepExecution, now: datetime, new_id: Callable[[], UUID]) -> StepExecution:
    """Return the PENDING row with its next attempt under way: QUEUED, with a task id of its own."""
    step = begun(step, now)
    return step.advanced(
        Trigger.DISPATCH,
        attempt=step.attempt + 1,
        task_id=new_id(),
        queued_at=now,
        due_at=within_branch(step, _after(now, step.queue_timeout_seconds)),
        ready_at=None,
    )


def begun(step: StepExecution, now: datetime) -> StepExecution:
    """Return the row of a step that starts; with the first one, the time of its branch begins."""
    if step.branch_due_at is None and step.branch_timeout_seconds is not None:
        return step._replace(branch_due_at=_after(now, step.branch_timeout_seconds))
    return step


def due_time(step: StepExecution, started: datetime, heard: datetime) -> datetime | None:
    """Return when a running attempt counts as overdue; None where it may take for ever.

    Args:
        step: Its row.
        started: When it started.
        heard: When its last sign of life came.
    """
    grace = TIMEOUT_GRACE if step.agent_name is not None else timedelta(0)  # nobody else ends a sub-workflow
    end = _after(started + grace, step.timeout_seconds)
    silence = _after(heard, step.heartbeat_timeout_seconds)
    return _earliest(end, silence, step.branch_due_at)


def within_branch(step: StepExecution, due_at: datetime | None) -> datetime | None:
    """Return *due_at*, or the time at which the branch of *step* counts as overdue, whichever is earlier."""
    return _earliest(due_at, step.branch_due_at)


def is_branch_overdue(step: StepExecution, now: datetime) -> bool:
    """Whether the branch has taken longer than it may."""
    return step.branch_due_at is not None and step.branch_due_at <= now


def _earliest(*times: datetime | None) -> datetime | None:
    return min((time for time in times if time is not None), default=None)


def _after(time: datetime, seconds: float | None) -> datetime | None:
    return time + timedelta(seconds=seconds) if seconds is not None else None
