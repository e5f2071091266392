"""A conditional step: it asks the outcomes so far, and leads into one of its paths.

It is over as soon as it is reached. Its output tells what was found and which step was chosen. The first step of the
other path is SKIPPED, unless the run may still come to it by another way.
"""

from datetime import datetime
from uuid import UUID

from orchestrator.engine import codes
from orchestrator.engine.decision import Decision, Verdict
from orchestrator.engine.inputs import StepEnded, StepReached
from orchestrator.engine.plan import ConditionalPlan
from orchestrator.engine.records import StepExecution
from orchestrator.engine.state import RunState
from orchestrator.engine.transitions import Trigger
from schemas.errors import ExpressionFailed, ReferenceBroken
from schemas.messages import ErrorInfo
from schemas.statuses import StepStatus


def chosen(state: RunState, run_id: UUID, plan: ConditionalPlan, now: datetime) -> Decision:
    """Evaluate the condition, whose outcomes are known, and go on at the step that it leads to."""
    asked = StepExecution(run_id=run_id, step_id=plan.id, status=StepStatus.RUNNING, created_at=now, started_at=now)
    try:
        holds = plan.expression.evaluate(state.scope(plan.expression.steps))
    except ReferenceBroken as broken:
        details = {"reference": broken.reference}
        return _failed(asked, ErrorInfo(code=codes.REFERENCE_BROKEN, message=str(broken), details=details), now)
    except ExpressionFailed as failed:
        return _failed(asked, ErrorInfo(code=codes.CONDITION_FAILED, message=str(failed)), now)
    taken = plan.if_true if holds else plan.if_false
    skipped = plan.skipped_if_true if holds else plan.skipped_if_false
    answered = asked.advanced(Trigger.COMPLETE, output={"result": holds, "step": taken}, finished_at=now)
    steps = (answered, _skipped(run_id, skipped, now)) if skipped is not None else (answered,)
    then = StepReached(run_id, taken) if taken is not None else StepEnded(run_id, plan.id)
    return Decision(Verdict.APPLIED, steps=steps, then=(then,))


def _failed(asked: StepExecution, error: ErrorInfo, now: datetime) -> Decision:
    failed = asked.advanced(Trigger.FAIL, error=error, finished_at=now)
    return Decision(Verdict.APPLIED, steps=(failed,), then=(StepEnded(asked.run_id, asked.step_id),))


def _skipped(run_id: UUID, step_id: str, now: datetime) -> StepExecution:
    return StepExecution(run_id=run_id, step_id=step_id, status=StepStatus.SKIPPED, created_at=now, finished_at=now)
