"""A conditional step: it asks the outcomes so far, and leads into one of its paths.

It is over as soon as it is reached. Its output tells what was found and which step was chosen. The first step of the
other path is SKIPPED, unless the run may still come to it by another way.
"""

from datetime import datetime

from orchestrator.engine import codes
from orchestrator.engine.attempt import begun
from orchestrator.engine.decision import Decision, Verdict
from orchestrator.engine.inputs import StepEnded, StepReached
from orchestrator.engine.placement import new_row
from orchestrator.engine.plan import ConditionalPlan, Plan
from orchestrator.engine.records import StepExecution
from orchestrator.engine.sight import scope_of
from orchestrator.engine.state import RunState
from orchestrator.engine.transitions import Trigger
from schemas.errors import ExpressionFailed, ReferenceBroken
from schemas.messages import ErrorInfo
from schemas.statuses import StepStatus


def chosen(state: RunState, event: StepReached, plan: ConditionalPlan, now: datetime) -> Decision:
    """Evaluate the condition, whose outcomes are known, and go on at the step that it leads to."""
    assert state.plan is not None
    asked = _asked(state, event, plan, now)
    try:
        holds = plan.expression.evaluate(scope_of(state, event.step_id, plan.reads))
    except ReferenceBroken as broken:
        details = {"reference": broken.reference}
        return _failed(asked, ErrorInfo(code=codes.REFERENCE_BROKEN, message=str(broken), details=details), now)
    except ExpressionFailed as failed:
        return _failed(asked, ErrorInfo(code=codes.CONDITION_FAILED, message=str(failed)), now)
    taken = plan.if_true if holds else plan.if_false
    skipped = plan.skipped_if_true if holds else plan.skipped_if_false
    answered = asked.advanced(Trigger.COMPLETE, output={"result": holds, "step": taken}, finished_at=now)
    steps = (answered, _skipped(state.plan, answered, skipped, now)) if skipped is not None else (answered,)
    if taken is None:
        return Decision(Verdict.APPLIED, steps=steps, then=(StepEnded(event.run_id, event.step_id),))
    following = state.plan.beside(event.step_id, taken)
    return Decision(Verdict.APPLIED, steps=steps, then=(StepReached(event.run_id, following, after=event.step_id),))


def _asked(state: RunState, event: StepReached, plan: ConditionalPlan, now: datetime) -> StepExecution:
    """Return the row as it begins. One that is the first step of a branch behind a gate has a row already."""
    assert state.plan is not None
    row = state.steps.get(event.step_id) or new_row(
        event.run_id, plan, event.step_id, state.plan.around(event.step_id), now, StepStatus.PENDING
    )
    before = state.steps[event.after] if event.after is not None else None
    if before is not None:
        row = row._replace(branch_due_at=before.branch_due_at)
    return begun(row, now).advanced(Trigger.START, started_at=now, due_at=None, ready_at=None)


def _failed(asked: StepExecution, error: ErrorInfo, now: datetime) -> Decision:
    failed = asked.advanced(Trigger.FAIL, error=error, finished_at=now)
    return Decision(Verdict.APPLIED, steps=(failed,), then=(StepEnded(asked.run_id, asked.step_id),))


def _skipped(plan: Plan, choice: StepExecution, step_id: str, now: datetime) -> StepExecution:
    execution = plan.beside(choice.step_id, step_id)
    row = new_row(choice.run_id, plan.step(execution), execution, choice.parent_step_id, now, StepStatus.SKIPPED)
    return row._replace(finished_at=now)
