"""What workers report about attempts, what their silence means, and what comes with time."""

from datetime import datetime, timedelta
from typing import Final, assert_never

from orchestrator.engine import codes
from orchestrator.engine.attempt import due_time, is_branch_overdue
from orchestrator.engine.block import block_overdue
from orchestrator.engine.children import abandoned
from orchestrator.engine.decision import Decision, Verdict
from orchestrator.engine.ending import attempt_failed, attempt_was_last, ticket_of
from orchestrator.engine.inputs import AttemptOverdue, RetryDue, TaskReported, TaskUndeliverable
from orchestrator.engine.moment import Moment
from orchestrator.engine.plan import BlockPlan, LoopPlan
from orchestrator.engine.records import StepExecution
from orchestrator.engine.retries import Failure, start_next
from orchestrator.engine.silence import was_sent_again
from orchestrator.engine.state import RunState, Wanted
from orchestrator.engine.transitions import Trigger, next_step_status
from schemas.messages import AgentError, AgentResult, ErrorInfo
from schemas.statuses import ReportStatus, StepStatus
from schemas.worker_codes import WorkerErrorCode

_WORKER_CODES: Final = frozenset(code.value for code in WorkerErrorCode)


def task_reported(state: RunState, event: TaskReported, moment: Moment) -> Decision | Wanted:
    """Apply a worker's report. The task id fences: only the report of the current attempt has an effect."""
    report = event.report
    if state.run is None:
        return Decision(Verdict.REJECTED, codes.UNKNOWN_RUN)
    if report.task_id not in state.tasks:
        return Wanted(tasks=frozenset({report.task_id}))
    step_id = state.tasks[report.task_id]
    step = state.steps[step_id] if step_id is not None else None
    if step is None or step.task_id != report.task_id or step.agent_name is None:
        return Decision(Verdict.STALE, codes.UNKNOWN_TASK)
    if event.speaks_for is not None and step.agent_name not in event.speaks_for:
        return Decision(Verdict.REJECTED, codes.FORGED_RESULT)
    if report.status.ends_attempt:
        return _attempt_ended(state, step, report, moment)
    return _attempt_lives(step, report, moment.now)


def attempt_overdue(state: RunState, event: AttemptOverdue, moment: Moment) -> Decision | Wanted:
    """Fail an attempt whose time is up and whose worker did not say so."""
    missing = state.missing(Wanted(steps=frozenset({event.step_id})))
    if missing:
        return missing
    step = state.steps[event.step_id]
    if step is None or step.task_id != event.task_id or step.due_at is None or step.due_at > moment.now:
        return Decision(Verdict.STALE, codes.UNKNOWN_TASK)
    if is_branch_overdue(step, moment.now):
        return _branch_overdue(state, step, moment)
    failure = Failure(_overdue(step, moment.now))
    return _without_child(attempt_failed(state, step._replace(finished_at=moment.now), failure, moment), step)


def retry_due(state: RunState, event: RetryDue, moment: Moment) -> Decision | Wanted:
    """Start a step's next attempt, unless the time of its branch is up."""
    missing = state.missing(Wanted(steps=frozenset({event.step_id})))
    if missing:
        return missing
    step = state.steps[event.step_id]
    if step is None or step.status.is_final or step.due_at is None or step.due_at > moment.now:
        return Decision(Verdict.STALE, codes.NOT_WAITING)
    if is_branch_overdue(step, moment.now):
        return _branch_overdue(state, step, moment)
    if step.status is not StepStatus.PENDING:
        return Decision(Verdict.STALE, codes.NOT_WAITING)
    missing = state.missing(Wanted(plan=True))
    return missing or start_next(state, step, moment)


def _branch_overdue(state: RunState, step: StepExecution, moment: Moment) -> Decision | Wanted:
    """Fail the open step of a branch whose time is up; there is no other attempt."""
    missing = state.missing(Wanted(plan=True))
    if missing:
        return missing
    message = f'branch "{step.branch_name}" took longer than its timeout of {step.branch_timeout_seconds:g} s'
    error = ErrorInfo(code=codes.BRANCH_TIMEOUT, message=message)
    failed = step.advanced(Trigger.FAIL, error=error, finished_at=moment.now, due_at=None, ready_at=None)
    assert state.plan is not None
    plan = state.plan.step(step.step_id)
    if isinstance(plan, BlockPlan | LoopPlan):
        return block_overdue(plan, failed)
    return _without_child(attempt_was_last(state, step, failed), step)


def _without_child(decision: Decision | Wanted, step: StepExecution) -> Decision | Wanted:
    """Return the decision that ends an open attempt, and stop the run that carries it out."""
    if isinstance(decision, Wanted):
        return decision
    reason = f'step "{step.step_id}" of run {step.run_id} ran out of time'
    return decision._replace(sends=(*decision.sends, *abandoned(step, reason)))


def task_undeliverable(state: RunState, event: TaskUndeliverable, moment: Moment) -> Decision | Wanted:
    """Fail an attempt whose task cannot be worked on.

    A task that the broker gave up was in a worker's hands before. Where that was heard of lately, the attempt may well
    be under way: a broker whose consumer_timeout is too short gives such tasks up too.
    """
    missing = state.missing(Wanted(steps=frozenset({event.step_id})))
    if missing:
        return missing
    step = state.steps[event.step_id]
    if step is None or step.task_id != event.task_id:
        return Decision(Verdict.STALE, codes.UNKNOWN_TASK)
    if event.code == codes.WORKER_LOST and step.status is StepStatus.RUNNING:
        if step.heartbeat_at is not None and moment.now - step.heartbeat_at < event.silent_after:
            return Decision(Verdict.STALE, codes.HEARD_FROM)
    elif step.status is not StepStatus.QUEUED and not was_sent_again(step):
        return Decision(Verdict.STALE, codes.UNKNOWN_TASK)
    error = ErrorInfo(code=event.code, message=_why_undeliverable(step, event))
    return attempt_failed(state, step._replace(finished_at=moment.now), Failure(error), moment)


def _overdue(step: StepExecution, now: datetime) -> ErrorInfo:
    if step.status is StepStatus.QUEUED:
        message = f"no worker took the task within its queue timeout of {step.queue_timeout_seconds:g} s"
        return ErrorInfo(code=codes.QUEUE_TIMEOUT, message=message)
    if step.sub_workflow_id is not None:
        message = f"the run of the sub-workflow took longer than the step's timeout of {step.timeout_seconds:g} s"
        return ErrorInfo(code=codes.TIMEOUT, message=message)
    worker = f"worker {step.worker_id}" if step.worker_id else "its worker"
    patience, heard = step.heartbeat_timeout_seconds, step.heartbeat_at
    if patience is not None and heard is not None and now - heard >= timedelta(seconds=patience):
        message = f"{worker} showed no sign of life within the attempt's heartbeat timeout of {patience:g} s"
        return ErrorInfo(code=codes.HEARTBEAT_TIMEOUT, message=message)
    message = f"the attempt took longer than its timeout of {step.timeout_seconds:g} s, and {worker} did not end it"
    return ErrorInfo(code=codes.TIMEOUT, message=message)


def _why_undeliverable(step: StepExecution, event: TaskUndeliverable) -> str:
    match event.code:
        case "payload_too_large":
            return "the step's input makes a task larger than the broker takes: refer to less in its input_mapping"
        case "worker_lost":
            return (
                "the broker gave the task up after too many deliveries (the delivery-limit of its queue): each worker "
                "that took it was lost before it reported a result, as when the agent ends its own process"
            )
        case "unknown_agent" if step.worker_id is not None:
            return (
                f"worker {step.worker_id} has not been heard of since {step.heartbeat_at:%Y-%m-%d %H:%M:%S} UTC, and "
                f'the task cannot be sent again: the queue of agent "{step.agent_name}" does not exist any more'
            )
        case "unknown_agent":
            return f'no worker has ever offered the agent "{step.agent_name}": its queue does not exist'
        case _:
            assert_never(event.code)


def _attempt_lives(step: StepExecution, report: AgentResult, now: datetime) -> Decision:
    if next_step_status(step.status, Trigger.START) is None:
        return Decision(Verdict.STALE, codes.LATE_REPORT)
    seen = step._replace(heartbeat_at=now)
    # Only a start hands the step to another worker, and gives the attempt its full time again. Or else two workers that
    # both have the task, after a lost connection, would keep each other from ever being overdue.
    is_start = report.status is ReportStatus.STARTED and step.worker_id != report.worker_id
    if step.status is StepStatus.RUNNING and not is_start:
        if step.heartbeat_timeout_seconds is not None:
            seen = seen._replace(due_at=due_time(step, _began(step, now), now))
        return Decision(Verdict.APPLIED, steps=(seen,))
    started = seen.advanced(
        Trigger.START,
        worker_id=report.worker_id,
        started_at=report.started_at or now,
        due_at=due_time(step, now, now),
    )
    return Decision(Verdict.APPLIED, steps=(started,))


def _began(step: StepExecution, now: datetime) -> datetime:
    """Return when an attempt began: by the worker's clock, but not before its task was sent, by ours."""
    return max((at for at in (step.started_at, step.queued_at) if at is not None), default=now)


def _attempt_ended(state: RunState, step: StepExecution, report: AgentResult, moment: Moment) -> Decision | Wanted:
    missing = state.missing(Wanted(plan=True))
    if missing:
        return missing
    if step.status.is_final:
        repeated = _says_the_same(step, report)
        return Decision(
            Verdict.DUPLICATE if repeated else Verdict.STALE,
            codes.DUPLICATE_RESULT if repeated else codes.LATE_REPORT,
            released=ticket_of(state, step),
        )
    ended = step._replace(
        worker_id=report.worker_id,
        started_at=report.started_at or step.started_at,
        finished_at=report.finished_at or moment.now,
    )
    if report.status is ReportStatus.COMPLETED:
        return attempt_was_last(state, step, ended.advanced(Trigger.COMPLETE, output=report.output, due_at=None))
    assert report.error is not None, "the contract refuses a FAILED report without an error"
    after = report.error.retry_after_seconds
    pause = timedelta(seconds=after) if after is not None else None
    failure = Failure(_error_info(report.error), report.error.retryable, pause, kind=report.error.type)
    return attempt_failed(state, ended, failure, moment)


def _says_the_same(step: StepExecution, report: AgentResult) -> bool:
    """Return whether the step ended as *report* says; a failure that was decided here, as by a timeout, is another."""
    if step.status != report.status.value:
        return False
    if report.error is None or step.error is None:
        return True
    said = _error_info(report.error)
    return (step.error.code, step.error.message) == (said.code, said.message)


def _error_info(error: AgentError) -> ErrorInfo:
    details = dict(error.details or {})
    if error.type in _WORKER_CODES:
        return ErrorInfo(code=error.type, message=error.message, details=details or None)
    return ErrorInfo(code=codes.AGENT_ERROR, message=error.message, details={"type": error.type, **details})
