"""A run's way through its plan: how it starts, which step comes next, how it ends."""

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, assert_never
from uuid import UUID

from orchestrator.engine import codes
from orchestrator.engine.attempt import dispatched, new_step
from orchestrator.engine.block import branch_ended, entered, waiting_row
from orchestrator.engine.children import parent_of
from orchestrator.engine.conditional import chosen
from orchestrator.engine.decision import Decision, Send, SendCancellation, SendResult, SendTask, Verdict
from orchestrator.engine.inputs import (
    CancelRequested,
    ChildStarted,
    RetryRequested,
    RunRequested,
    StepEnded,
    StepReached,
)
from orchestrator.engine.plan import (
    AgentPlan,
    AttemptPlan,
    BlockPlan,
    ConditionalPlan,
    LoopPlan,
    Plan,
    StepPlan,
    SubWorkflowPlan,
)
from orchestrator.engine.records import Run, StepExecution
from orchestrator.engine.sight import scope_of, wanted_by
from orchestrator.engine.state import RunState, Wanted
from orchestrator.engine.transitions import Trigger, next_run_status
from schemas.messages import ErrorInfo, RunResult
from schemas.statuses import ResultStatus, RunStatus, StepStatus


def request(state: RunState, event: RunRequested, now: datetime) -> Decision | Wanted:
    """Start a run, unless its id is taken: by the same request (the same run) or by another (a conflict)."""
    if state.run is not None:
        return requested_again(state, state.run, event)
    parent = parent_of(state, event) if event.parent_run_id is not None else None
    if event.parent_run_id is not None and parent is None:
        return Decision(Verdict.REJECTED, codes.NOT_AWAITED)
    missing = state.missing(Wanted(plan=True))
    if missing:
        return missing
    assert state.plan is not None
    run = replace(new_run(event, event.definition_id, event.workflow_id, state.plan, now), parent=parent)
    return Decision(
        Verdict.APPLIED,
        created_run=event,
        run=run,
        then=(StepReached(event.run_id, state.plan.start),),
        tells_parent=ChildStarted(parent.run_id, run.id) if parent is not None else None,
    )


def new_run(
    event: RunRequested | RetryRequested, definition_id: str, workflow_id: str, plan: Plan, now: datetime
) -> Run:
    """Return the run that is asked for, as it starts."""
    return Run(
        id=event.run_id,
        status=RunStatus.PENDING,
        definition_id=definition_id,
        workflow_id=workflow_id,
        request_digest=event.request_digest,
        reply=event.reply,
        traceparent=event.traceparent,
        due_at=now + timedelta(seconds=plan.timeout_seconds) if plan.timeout_seconds is not None else None,
    ).advanced(Trigger.START, started_at=now)


def requested_again(state: RunState, run: Run, event: RunRequested | RetryRequested) -> Decision | Wanted:
    """Answer a request for a run that is there: it is the same request, or its id is taken."""
    if run.request_digest != event.request_digest:
        return Decision(Verdict.REJECTED, codes.RUN_ID_CONFLICT)
    if event.reply is None:
        return Decision(Verdict.DUPLICATE)
    if run.parent is not None and not run.status.is_final:
        return Decision(Verdict.DUPLICATE)  # it is the parent's step that must hear of its end
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
    missing = state.missing(Wanted(plan=True))
    if missing:
        return missing
    assert state.plan is not None
    plan, around = state.plan.step(event.step_id), _around_first(state.plan, event)
    missing = state.missing(wanted_to_enter(state, state.plan, event))
    if missing:
        return missing
    if around is not None:
        block = state.steps[around]
        if block is not None and block.status.is_final:
            return _too_late(state, event, plan, around, now)
    match plan:
        case BlockPlan() | LoopPlan():
            return entered(state, event, plan, now)
        case ConditionalPlan():
            return chosen(state, event, plan, now)
        case AgentPlan() | SubWorkflowPlan():
            return _attempt_reached(state, event, plan, now, new_id)
        case _:
            assert_never(plan)


def wanted_to_enter(state: RunState, plan: Plan, event: StepReached) -> Wanted:
    """Return what must be known before a step is entered: its row where it may have one, and what it refers to."""
    wanted, around = wanted_by(plan, event.step_id, plan.step(event.step_id).reads), _around_first(plan, event)
    if around is not None:
        # As the first step of its branch it may have waited at the gate, and another may have ended the block since.
        return wanted._replace(steps=wanted.steps | {event.step_id, around})
    if state.run is not None and state.run.retry_of is not None:
        return wanted._replace(steps=wanted.steps | {event.step_id})  # it may have been taken over
    return wanted


def _around_first(plan: Plan, event: StepReached) -> str | None:
    """Return the block around a step that is reached as the first of its branch."""
    return plan.around(event.step_id) if event.after is None else None


def _too_late(state: RunState, event: StepReached, plan: StepPlan, around: str, now: datetime) -> Decision:
    """Return what becomes of the first step of a branch whose block has not waited for it."""
    if state.steps[event.step_id] is not None:
        return Decision(Verdict.STALE, codes.BRANCH_IS_OVER)
    row = waiting_row(event.run_id, plan, event.step_id, around, now)
    return Decision(Verdict.APPLIED, steps=(row.advanced(Trigger.CANCEL, finished_at=now),))


def step_ended(state: RunState, event: StepEnded, now: datetime) -> Decision | Wanted:
    """Go on at the next step or the failure handler; without one, the run has ended."""
    missing = state.missing(Wanted(plan=True))
    if missing:
        return missing
    assert state.plan is not None
    step, plan = state.steps[event.step_id], state.plan.step(event.step_id)
    assert step is not None, "a step that ended is known"
    if plan.place is not None:
        return _branch_goes_on(state, event, plan, step)
    if step.status is StepStatus.COMPLETED:
        following = plan.next_step
        return _go_on(event, following) if following is not None else _complete_run(state, step, now)
    handler = _failure_handler(state, step.step_id)
    if isinstance(handler, Wanted):
        return handler
    return _go_on(event, handler) if handler is not None else _fail_run(state, step, now)


def _branch_goes_on(state: RunState, event: StepEnded, plan: StepPlan, step: StepExecution) -> Decision | Wanted:
    assert state.plan is not None
    if step.status is StepStatus.COMPLETED and plan.next_step is not None:
        following = state.plan.beside(step.step_id, plan.next_step)
        return Decision(Verdict.APPLIED, then=(StepReached(event.run_id, following, after=step.step_id),))
    assert step.parent_step_id is not None, "it is a step of a branch"
    missing = state.missing(Wanted(steps=frozenset({step.parent_step_id})))
    if missing:
        return missing
    return branch_ended(state, plan, before=step)


def _stopped(run: Run) -> Decision:
    """End a run with all that is open of it."""
    sends = (*_reply(run), SendCancellation(run.id))
    return Decision(Verdict.APPLIED, run=run, sends=sends, cancels_open_steps=True)


def _attempt_reached(
    state: RunState, event: StepReached, plan: AttemptPlan, now: datetime, new_id: Callable[[], UUID]
) -> Decision:
    assert state.plan is not None
    assert state.run is not None
    around = state.plan.around(event.step_id)
    scope = scope_of(state, event.step_id, plan.reads)
    step = new_step(state.run, plan, event.step_id, around, scope, now)
    before = state.steps[event.after] if event.after is not None else None
    if before is not None:
        step = step._replace(branch_due_at=before.branch_due_at)
    if step.status is StepStatus.FAILED:
        return Decision(Verdict.APPLIED, steps=(step,), then=(StepEnded(event.run_id, step.step_id),))
    queued = dispatched(step, now, new_id)
    return Decision(Verdict.APPLIED, steps=(queued,), sends=(SendTask(queued),))


def _failure_handler(state: RunState, execution: str) -> str | Wanted | None:
    assert state.plan is not None
    plan = state.plan.step(execution)
    if plan.on_failure is not None or not isinstance(plan, BlockPlan | LoopPlan):
        return plan.on_failure
    # The block itself names no handler: that of its first failed branch, in definition order, is used.
    missing = state.missing(Wanted(failures=frozenset({execution})))
    if missing:
        return missing
    for branch in state.failures[execution]:
        handler = _failure_handler(state, branch.step_id)
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
    if step.error.code in {codes.BRANCHES_FAILED, codes.ITERATIONS_FAILED}:
        details |= step.error.details or {}
    else:  # a loop too may fail by itself, before it has iterations
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
