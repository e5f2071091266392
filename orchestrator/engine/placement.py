"""The new row of a step execution, at its place."""

from datetime import datetime
from uuid import UUID

from orchestrator.engine.executions import iterations_of
from orchestrator.engine.plan import StepPlan
from orchestrator.engine.records import StepExecution
from schemas.statuses import StepStatus


def new_row(
    run_id: UUID, step: StepPlan, execution: str, around: str | None, now: datetime, status: StepStatus
) -> StepExecution:
    """Return a row that says where the execution stands in its block, and nothing yet of what it does.

    Args:
        run_id: Its run.
        step: The step.
        execution: The id of this execution of it.
        around: The execution of the block or loop in whose branch it is.
        now: The time.
        status: What it begins with.
    """
    place = step.place
    if place is None:
        return StepExecution(run_id, execution, status, created_at=now)
    iteration = iterations_of(execution)[-1] if place.iterates else None
    return StepExecution(
        run_id,
        execution,
        status,
        position=place.position if iteration is None else iteration,
        ordinal=place.ordinal,
        parent_step_id=around,
        branch_name=place.branch_name if iteration is None else str(iteration),
        join_policy=place.join_policy,
        branch_timeout_seconds=place.branch_timeout,
        created_at=now,
    )
