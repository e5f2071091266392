"""What inputs that wait for their turn will want to see, as far as it shows before they are decided.

Inputs of a run are decided one after the other. If each stopped for the outcomes or the item that the next step of its
branch refers to, a batch of 200 results would make 200 trips to the database. So where one stops, whoever loads for it
asks here for the others, and loads all of it at once.

A guess may be wrong: the run may end first, or the branch. Then something was loaded in vain.
"""

from orchestrator.engine.inputs import ChildEnded, Input, RetryDue, StepEnded, StepReached, TaskReported
from orchestrator.engine.lifecycle import wanted_to_enter
from orchestrator.engine.plan import Plan
from orchestrator.engine.sight import wanted_by
from orchestrator.engine.state import RunState, Wanted
from schemas.statuses import ReportStatus


def foreseen(state: RunState, event: Input) -> Wanted:
    """Return what *event*, or what follows from it, will probably want; parts of it may be known already."""
    if state.plan is None:
        return Wanted()
    match event:
        case StepReached():
            return wanted_to_enter(state, state.plan, event)
        case StepEnded(step_id=step_id):
            return _wanted_after(state.plan, step_id)
        case TaskReported(report=report) if report.status is ReportStatus.COMPLETED:
            return _wanted_after(state.plan, state.tasks.get(report.task_id))
        case ChildEnded(task_id=task_id):
            return _wanted_after(state.plan, state.tasks.get(task_id))
        case RetryDue(run_id=run_id, step_id=step_id):
            step = state.steps.get(step_id)
            waits = step is not None and not step.status.is_final and not step.has_attempts
            return wanted_to_enter(state, state.plan, StepReached(run_id, step_id)) if waits else Wanted()
        case _:
            return Wanted()


def _wanted_after(plan: Plan, execution: str | None) -> Wanted:
    """Return what the step wants that follows within a branch; its predecessor's outcome is known once that ends."""
    if execution is None:
        return Wanted()
    ending = plan.step(execution)
    if ending.place is None or ending.next_step is None:
        return Wanted()
    following = plan.beside(execution, ending.next_step)
    wanted = wanted_by(plan, following, plan.step(following).reads)
    return wanted._replace(outcomes=wanted.outcomes - {execution})
