"""An attempt: how one starts, with the input that its template and the run so far give it."""

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from orchestrator.engine import codes
from orchestrator.engine.plan import AgentPlan
from orchestrator.engine.records import StepExecution
from orchestrator.engine.transitions import Trigger
from schemas.errors import ReferenceBroken
from schemas.messages import ErrorInfo
from schemas.references import Scope
from schemas.statuses import JoinPolicy, StepStatus

# A worker ends an overdue attempt itself; the orchestrator waits this much longer before it believes the worker lost.
TIMEOUT_GRACE: Final = timedelta(seconds=10)


def new_step(run_id: UUID, plan: AgentPlan, scope: Scope, now: datetime) -> StepExecution:
    """Return the new row of an agent step: PENDING with its input, or FAILED when the input cannot be made."""
    step = StepExecution(
        run_id=run_id,
        step_id=plan.id,
        status=StepStatus.PENDING,
        position=plan.position,
        parent_step_id=plan.block_id,
        branch_name=plan.id if plan.block_id is not None else None,
        join_policy=JoinPolicy.ALL if plan.block_id is not None else None,
        agent_name=plan.agent_name,
        timeout_seconds=plan.limits.attempt,
        queue_timeout_seconds=plan.limits.queue,
        heartbeat_timeout_seconds=plan.limits.heartbeat,
        created_at=now,
    )
    try:
        return step._replace(input=plan.template.resolve(scope))
    except ReferenceBroken as broken:
        error = ErrorInfo(code=codes.REFERENCE_BROKEN, message=str(broken), details={"reference": broken.reference})
        return step.advanced(Trigger.FAIL, error=error, finished_at=now)


def dispatched(step: StepExecution, now: datetime, new_id: Callable[[], UUID]) -> StepExecution:
    """Return the PENDING row with its next attempt under way: QUEUED, with a task id of its own."""
    return step.advanced(
        Trigger.DISPATCH,
        attempt=step.attempt + 1,
        task_id=new_id(),
        queued_at=now,
        due_at=_after(now, step.queue_timeout_seconds),
        ready_at=None,
    )


def due_time(step: StepExecution, started: datetime, heard: datetime) -> datetime | None:
    """Return when a running attempt counts as overdue; None where it may take for ever.

    Args:
        step: Its row.
        started: When it started.
        heard: When its last sign of life came.
    """
    end = _after(started + TIMEOUT_GRACE, step.timeout_seconds)
    silence = _after(heard, step.heartbeat_timeout_seconds)
    return min((time for time in (end, silence) if time is not None), default=None)


def _after(time: datetime, seconds: float | None) -> datetime | None:
    return time + timedelta(seconds=seconds) if seconds is not None else None
