"""A task that neither its queue nor a worker seems to have: the same task goes out once more.

Whoever asks has looked at the queue, which no transaction can lock. So the attempt is judged again here: it must still
be open, and nobody may have heard of it since that look. Where the look was wrong, two workers have the same task; its
id makes one of the two results a duplicate.
"""

from datetime import datetime

from orchestrator.engine import codes
from orchestrator.engine.decision import Decision, SendTask, Verdict
from orchestrator.engine.inputs import TaskMissing
from orchestrator.engine.records import StepExecution
from orchestrator.engine.state import RunState, Wanted
from schemas.statuses import StepStatus


def task_missing(state: RunState, event: TaskMissing, now: datetime) -> Decision | Wanted:
    """Send the task of a silent attempt again, and count its silence from now on."""
    missing = state.missing(Wanted(steps=frozenset({event.step_id})))
    if missing:
        return missing
    step = state.steps[event.step_id]
    if step is None or step.task_id != event.task_id or not step.is_dispatched:
        return Decision(Verdict.STALE, codes.UNKNOWN_TASK)
    if last_sign(step) != event.last_sign:
        return Decision(Verdict.STALE, codes.HEARD_FROM)
    again = step._replace(queued_at=now)
    return Decision(Verdict.APPLIED, steps=(again,), sends=(SendTask(again),))


def last_sign(step: StepExecution) -> datetime | None:
    """Return when the attempt was sent or its worker last heard of, by the database's clock.

    `started_at` is not asked: it is the worker's clock that wrote it.
    """
    return max((at for at in (step.queued_at, step.heartbeat_at) if at is not None), default=None)


def was_sent_again(step: StepExecution) -> bool:
    """Whether the task of a running attempt was sent again, and nothing has been heard of the attempt since."""
    if step.status is not StepStatus.RUNNING or step.queued_at is None or step.heartbeat_at is None:
        return False
    return step.queued_at > step.heartbeat_at
