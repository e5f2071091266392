"""Every status change, in one table.

A step execution is born PENDING (a branch that waits at its gate), QUEUED (its task goes out at once), RUNNING (a
block, which runs as soon as its branches exist), COMPLETED (a conditional, which is over when it is reached), SKIPPED
or FAILED (its input could not be made). In a run that retries another it may also be born as it ended there, or PENDING
to be done again. From there only the changes below exist; what is not in the table does not happen, and the decisions
turn such an input into a verdict instead.

START on a PENDING step enters a block that waited at a gate, or was taken over from an earlier run. It is allowed on a
RUNNING step because a task may be delivered again after its worker died: the second worker reports that it started, and
the row shows who works on it now. COMPLETE, FAIL and RETRY are allowed on a QUEUED step because a worker need not
report the start of a short attempt. RETRY leads back to PENDING, where the step waits for its next attempt, which
DISPATCH starts.

A final status has no way out. That is promise O7, and the reason why late and repeated messages are harmless.
"""

from enum import StrEnum
from typing import Final

from schemas.statuses import RunStatus, StepStatus


class Trigger(StrEnum):
    """What makes a status change."""

    DISPATCH = "dispatch"  # the gate lets a branch through
    START = "start"  # a worker began an attempt
    COMPLETE = "complete"
    FAIL = "fail"
    RETRY = "retry"  # the attempt failed, and another one follows
    CANCEL = "cancel"


STEP_TRANSITIONS: Final = {
    (StepStatus.PENDING, Trigger.DISPATCH): StepStatus.QUEUED,
    (StepStatus.PENDING, Trigger.START): StepStatus.RUNNING,
    (StepStatus.PENDING, Trigger.FAIL): StepStatus.FAILED,
    (StepStatus.PENDING, Trigger.CANCEL): StepStatus.CANCELLED,
    (StepStatus.QUEUED, Trigger.START): StepStatus.RUNNING,
    (StepStatus.QUEUED, Trigger.COMPLETE): StepStatus.COMPLETED,
    (StepStatus.QUEUED, Trigger.FAIL): StepStatus.FAILED,
    (StepStatus.QUEUED, Trigger.RETRY): StepStatus.PENDING,
    (StepStatus.QUEUED, Trigger.CANCEL): StepStatus.CANCELLED,
    (StepStatus.RUNNING, Trigger.START): StepStatus.RUNNING,
    (StepStatus.RUNNING, Trigger.COMPLETE): StepStatus.COMPLETED,
    (StepStatus.RUNNING, Trigger.FAIL): StepStatus.FAILED,
    (StepStatus.RUNNING, Trigger.RETRY): StepStatus.PENDING,
    (StepStatus.RUNNING, Trigger.CANCEL): StepStatus.CANCELLED,
}

RUN_TRANSITIONS: Final = {
    (RunStatus.PENDING, Trigger.START): RunStatus.RUNNING,
    (RunStatus.PENDING, Trigger.CANCEL): RunStatus.CANCELLED,
    (RunStatus.RUNNING, Trigger.COMPLETE): RunStatus.COMPLETED,
    (RunStatus.RUNNING, Trigger.FAIL): RunStatus.FAILED,
    (RunStatus.RUNNING, Trigger.CANCEL): RunStatus.CANCELLED,
}


def next_step_status(status: StepStatus, trigger: Trigger) -> StepStatus | None:
    """Return the status that *trigger* leads to, or None where the table knows no such change."""
    return STEP_TRANSITIONS.get((status, trigger))


def next_run_status(status: RunStatus, trigger: Trigger) -> RunStatus | None:
    """Return the status that *trigger* leads to, or None where the table knows no such change."""
    return RUN_TRANSITIONS.get((status, trigger))
