"""A run's way through its plan: how it starts, which step comes next, how it ends."""

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from orchestrator.engine import codes
from orchestrator.engine.attempt import dispatched, new_step
from orchestrator.engine.block import branch_ended, entered
from orchestrator.engine.conditional import chosen
from orchestrator.engine.decision import Decision, Send, SendCancellation, SendResult, SendTask, Verdict
from orchestrator.engine.inputs import CancelRequested, RetryRequested, RunRequested, StepEnded, StepReached
from orchestrator.engine.plan import AgentPlan, BlockPlan, BranchStep, ConditionalPlan, Plan, StepPlan
from orchestrator.engine.records import Run, StepExecution
from orchestrator.engine.state import RunState, Wanted
from orchestrator.engine.transitions import Trigger, next_run_status
from schemas.messages import ErrorInfo, RunResult
from schemas.statuses import ResultStatus, RunStatus, StepStatus


def request(state: RunState, event: RunRequested, now: datetime) -> Decision | Wanted:
    """Start a run, unless its id is taken: by the same request (the same run) or by another (a conflict)."""
    if state.run is not None:
        return requested_again(state, state.run, event)
    missing = state.missing(Wanted(plan=True))
    if missing:
        return missing
    assert state.plan is not None
    run = new_run(event, event.definition_id, state.plan, now)
    return Decision(Verdict.APPLIED, created_run=event, run=run, then=(StepReached(event.run_id, state.plan.start),))


def new_run(event: RunRequested | RetryRequested, definition_id: str, plan: Plan, now: datetime) -> Run:
    """Return the run that is asked for, as it starts."""
    return Run(
        id=event.run_id,
        status=RunStatus.PENDING,
        definition_id=definition_id,
        request_digest=event.request_digest,
        reply=event.reply,
        due_at=now + timedelta(seconds=plan.timeout_seconds) if plan.timeout_seconds is not None else None,
    ).advanced(Trigger.START, started_at=now)


def requested_again(state: RunState, run: Run, event: RunRequested | RetryRequested) -> Decision | Wanted:
    """Answer a request for a run that is there: it is the same request, or its id is taken."""
    if run.request_digest != event.request_digest:
        return Decision(Verdict.REJECTED, codes.RUN_ID_CONFLICT)
    if event.reply is None:
        return Decision(Verdict.DUPLICATE)
    if not run.status.is_final:
        # A client that lost its connection asks again, from a new reply queue.
        return Decision(Verdict.DUPLICATE, run=replace(run, reply=event.reply))
    missing = state.missing(Wanted(run_values=True))
    if missing:
        return missing
    assert state.run_values is not None
    known = replace(run, reply=event.reply, output=state.run_values.output, error=state.run_values.error)
    return Decision(Verdict.DUPLICATE, sends=_reply(known))


def cancel(state: RunState, event: CancelRequested, now: datetime) -> Decision:
    """Stop a run: nothing of it is started any more, workers are told, and results that still come have no effect."""
    run = state.run
    if run is None:
        return Decision(Verdict.REJECTED, codes.UNKNOWN_RUN)
    if next_run_status(run.status, Trigger.CANCEL) is None:
        again = run.status is RunStatus.CANCELLED
        return Decision(Verdict.DUPLICATE if again else Verdict.STALE, codes.RUN_IS_FINAL)
    error = ErrorInfo(code=codes.CANCELLED, message=event.reason or "the run was cancelled on request")
    return _stopped(run.advanced(Trigger.CANCEL, error=error, finished_at=now, due_at=None))


def overdue(state: RunState, now: datetime) -> Decision | Wanted:
    """Fail a run whose time is up, with all that is open of it."""
    run = state.run
    if run is None or run.due_at is None or run.due_at > now or next_run_status(run.status, Trigger.FAIL) is None:
        return Decision(Verdict.STALE, codes.RUN_IS_FINAL)
    missing = state.missing(Wanted(plan=True))
    if missing:
        return missing
    assert state.plan is not None
    message = f"the run took longer than its timeout of {state.plan.timeout_seconds:g} s"
    error = ErrorInfo(code=codes.RUN_TIMEOUT, message=message)
    return _stopped(run.advanced(Trigger.FAIL, error=error, finished_at=now, due_at=None))


def step_reached(state: RunState, event: StepReached, now: datetime, new_id: Callable[[], UUID]) -> Decision | Wanted:
    """Enter a step: send its task, or fork its branches."""
    missing = state.missing(Wanted(plan=True, run_values=True))
    if missing:
        return missing
    assert state.plan is not None
    plan = state.plan.steps[event.step_id]
    missing = state.missing(_referenced(plan))
    if missing:
        return missing
    match plan:
        case BlockPlan():
            assert state.run is not None
            if plan.block_id is not None or state.run.retry_of is not None:
                missing = state.missing(Wanted(steps=frozenset({plan.id})))
                if missing:
                    return missing
            return entered(state, event, plan, now)
        case ConditionalPlan():
            return chosen(state, event.run_id, plan, now)
        case AgentPlan():
            return _agent_reached(state, event, plan, now, new_id)


def step_ended(state: RunState, event: StepEnded, now: datetime) -> Decision | Wanted:
    """Go on at the next step or the failure handler; without one, the run has ended."""
    missing = state.missing(Wanted(plan=True))
    if missing:
        return missing
    assert state.plan is not None
    step, plan = state.steps[event.step_id], state.plan.steps[event.step_id]
    assert step is not None, "a step that ended is known"
    if not isinstance(plan, ConditionalPlan) and plan.block_id is not None:
        return _branch_goes_on(state, event, plan, step)
    if step.status is StepStatus.COMPLETED:
        following = plan.next_step
        return _go_on(event, following) if following is not None else _complete_run(state, step, now)
    handler = _failure_handler(state, plan)
    if isinstance(handler, Wanted):
        return handler
    return _go_on(event, handler) if handler is not None else _fail_run(state, step, now)


def _branch_goes_on(state: RunState, event: StepEnded, plan: BranchStep, step: StepExecution) -> Decision | Wanted:
    if step.status is StepStatus.COMPLETED and plan.next_step is not None:
        return Decision(Verdict.APPLIED, then=(StepReached(event.run_id, plan.next_step, after=step.step_id),))
    assert plan.block_id is not None, "it is a step of a branch"
    missing = state.missing(Wanted(steps=frozenset({plan.block_id})))
    if missing:
        return missing
    return branch_ended(state, plan, before=step)


def _stopped(run: Run) -> Decision:
    """End a run with all that is open of it."""
    sends = (*_reply(run), SendCancellation(run.id))
    return Decision(Verdict.APPLIED, run=run, sends=sends, cancels_open_steps=True)


def _agent_reached(
    state: RunState, event: StepReached, plan: AgentPlan, now: datetime, new_id: Callable[[], UUID]
) -> Decision:
    step = new_step(event.run_id, plan, state.scope(plan.template.steps), now)
    before = state.steps[event.after] if event.after is not None else None
    if before is not None:
        step = step._replace(branch_due_at=before.branch_due_at)
    if step.status is StepStatus.FAILED:
        return Decision(Verdict.APPLIED, steps=(step,), then=(StepEnded(event.run_id, step.step_id),))
    queued = dispatched(step, now, new_id)
    return Decision(Verdict.APPLIED, steps=(queued,), sends=(SendTask(queued),))


def _referenced(plan: StepPlan) -> Wanted:
    if isinstance(plan, BlockPlan):
        return Wanted(outcomes=plan.referenced_steps, errors=plan.referenced_blocks)
    if isinstance(plan, ConditionalPlan):
        return Wanted(outcomes=plan.expression.steps, errors=plan.referenced_blocks)
    return Wanted(outcomes=plan.template.steps, errors=plan.template.blocks)


def _failure_handler(state: RunState, plan: StepPlan) -> str | Wanted | None:
    if plan.on_failure is not None or not isinstance(plan, BlockPlan):
        return plan.on_failure
    # The block itself names no handler: that of its first failed branch, in definition order, is used.
    missing = state.missing(Wanted(failures=frozenset({plan.id})))
    if missing:
        return missing
    assert state.plan is not None
    for branch in state.failures[plan.id]:
        handler = _failure_handler(state, state.plan.steps[branch.step_id])
        if handler is not None:
            return handler
    return None


def _go_on(event: StepEnded, step_id: str) -> Decision:
    return Decision(Verdict.APPLIED, then=(StepReached(event.run_id, step_id),))


def _complete_run(state: RunState, step: StepExecution, now: datetime) -> Decision | Wanted:
    missing = state.missing(Wanted(outcomes=frozenset({step.step_id})))
    if missing:
        return missing
    assert state.run is not None
    outcome = state.outcomes[step.step_id]
    output = outcome.output if outcome is not None else None
    return _run_ended(state.run.advanced(Trigger.COMPLETE, output=output, finished_at=now, due_at=None))


def _fail_run(state: RunState, step: StepExecution, now: datetime) -> Decision:
    assert state.run is not None
    assert step.error is not None, "a failed step has an error"
    details: dict[str, Any] = {"step_id": step.step_id}
    if step.branches is not None:
        details |= step.error.details or {}
    else:
        failure = {"step_id": step.step_id, "code": step.error.code, "message": step.error.message}
        details |= {"failed_count": 1, "failed_steps": [failure]}
    error = ErrorInfo(
        code=codes.STEP_FAILED, message=f'step "{step.step_id}" failed: {step.error.message}', details=details
    )
    return _run_ended(state.run.advanced(Trigger.FAIL, error=error, finished_at=now, due_at=None))


def _run_ended(run: Run) -> Decision:
    return Decision(Verdict.APPLIED, run=run, sends=_reply(run))


def _reply(run: Run) -> tuple[Send, ...]:
    if run.reply is None:
        return ()
    result = RunResult(run_id=run.id, status=ResultStatus(run.status.value), output=run.output, error=run.error)
    return (SendResult(run.reply, result),)
