"""What follows the end of an attempt: another one, or the end of its step and perhaps of its branch."""

from orchestrator.engine.block import branch_ended, ticket
from orchestrator.engine.decision import Decision, Ticket, Verdict
from orchestrator.engine.inputs import SlotsFree, StepEnded
from orchestrator.engine.moment import Moment
from orchestrator.engine.plan import AttemptPlan
from orchestrator.engine.records import StepExecution
from orchestrator.engine.retries import Failure, keeps_slot, next_try, pause_after
from orchestrator.engine.state import RunState, Wanted
from orchestrator.engine.transitions import Trigger
from schemas.statuses import StepStatus


def attempt_failed(state: RunState, step: StepExecution, failure: Failure, moment: Moment) -> Decision | Wanted:
    """Return what follows the failed attempt that *step* shows with its end: another one, or the step has failed."""
    missing = state.missing(Wanted(plan=True))
    if missing:
        return missing
    pause = pause_after(_plan(state, step).retry, failure, step.attempt - step.postponed, moment.draw)
    if pause is None:
        return attempt_was_last(state, step, step.advanced(Trigger.FAIL, error=failure.error, due_at=None))
    waiting, ended = next_try(step, failure, moment.now + pause)
    block = state.steps[step.parent_step_id] if step.parent_step_id is not None else None
    if block is None or block.branches is None or not block.branches.is_gated or keeps_slot(state, block):
        return Decision(Verdict.APPLIED, steps=(waiting,), ended=ended)
    freed = block._replace(branches=block.branches._replace(dispatched=block.branches.dispatched - 1))
    handed_on = SlotsFree(step.run_id, block.step_id)
    return Decision(Verdict.APPLIED, steps=(waiting, freed), ended=ended, afterwards=handed_on)


def attempt_was_last(state: RunState, before: StepExecution, after: StepExecution) -> Decision:
    """Return what follows the end of a step, which *after* shows; the plan is known."""
    plan = _plan(state, after)
    if plan.place is None or _goes_on(plan, after):
        return Decision(Verdict.APPLIED, steps=(after,), then=(StepEnded(after.run_id, after.step_id),))
    return branch_ended(state, plan, after, before=before)


def ticket_of(state: RunState, step: StepExecution) -> Ticket | None:
    """Return what stands for a branch at the gate, where the branch is over with this step; the plan is known."""
    assert state.plan is not None
    plan = _plan(state, step)
    return ticket(state.plan, plan, step) if plan.place is not None and not _goes_on(plan, step) else None


def _goes_on(plan: AttemptPlan, step: StepExecution) -> bool:
    """Whether another step follows in the branch."""
    return step.status is StepStatus.COMPLETED and plan.next_step is not None


def _plan(state: RunState, step: StepExecution) -> AttemptPlan:
    assert state.plan is not None, "it was asked for before"
    plan = state.plan.step(step.step_id)
    assert isinstance(plan, AttemptPlan), "no others have attempts"
    return plan
