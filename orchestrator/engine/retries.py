"""Whether a failed attempt is followed by another, and when.

A step that waits for its next attempt is PENDING, with the time of that attempt as its due time, and without a task id:
whatever is still heard of the attempt that failed is about nothing. It holds no slot of its block meanwhile. When its
time has come and all slots are taken, it is *ready*: the next slots that are free go to those, before the line. Only in
a sequential loop the slot is kept, for the next iteration must not begin.

The attempt that failed is kept in the history of the step (`EndedAttempt`); the step's own row shows the last one.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, NamedTuple

from orchestrator.engine import codes
from orchestrator.engine.attempt import dispatched, within_branch
from orchestrator.engine.decision import Decision, EndedAttempt, SendTask, Verdict
from orchestrator.engine.inputs import SlotsFree, StepEnded, StepReached
from orchestrator.engine.moment import Moment
from orchestrator.engine.plan import LoopPlan, RetryPolicy
from orchestrator.engine.records import StepExecution
from orchestrator.engine.state import RunState
from orchestrator.engine.transitions import Trigger
from schemas.messages import ErrorInfo

# Another attempt cannot help, unless somebody says that it can.
_HOPELESS: Final = frozenset({codes.INVALID_INPUT, codes.PAYLOAD_TOO_LARGE, codes.UNKNOWN_AGENT})


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an attempt failed, and what whoever reported it says of another one."""

    error: ErrorInfo
    retryable: bool | None = None
    after: timedelta | None = None  # asked for by the agent: does not count as an attempt
    kind: str | None = None  # the exception's type; an agent's details may call something else so

    @property
    def names(self) -> frozenset[str]:
        """What `non_retryable` and `retry_on_errors` may call it: its code, or its type with or without its module."""
        return frozenset(
            {self.error.code, *((self.kind, self.kind.rpartition(".")[2]) if self.kind is not None else ())}
        )


def pause_after(
    policy: RetryPolicy | None, failure: Failure, attempts: int, draw: Callable[[], float]
) -> timedelta | None:
    """Return how long to wait before the next attempt; None where there is none.

    Args:
        policy: Of the step; None: it is tried once.
        failure: Of the attempt that ended now.
        attempts: How many have counted so far, this one included.
        draw: Gives a random number in [0, 1).
    """
    if failure.after is not None:
        return failure.after
    if policy is None or attempts >= policy.max_attempts or not _may_help(policy, failure):
        return None
    return policy.pause(attempts, jitter=draw())


def _may_help(policy: RetryPolicy, failure: Failure) -> bool:
    if failure.retryable is False or failure.names & policy.never_after:
        return False
    if policy.only_after:
        return bool(failure.names & policy.only_after)
    return failure.retryable is True or failure.error.code not in _HOPELESS


class NextTry(NamedTuple):
    """A step that waits for its next attempt, and its history's new entry."""

    step: StepExecution
    ended: EndedAttempt


def next_try(step: StepExecution, failure: Failure, due_at: datetime) -> NextTry:
    """Return the row of a step whose attempt has failed, and whose next one starts at *due_at*."""
    ended = EndedAttempt(step, failure.error, due_at)
    waiting = step.advanced(
        Trigger.RETRY,
        postponed=step.postponed + (failure.after is not None),
        task_id=None,
        worker_id=None,
        queued_at=None,
        started_at=None,
        heartbeat_at=None,
        finished_at=None,
        due_at=within_branch(step, due_at),
    )
    return NextTry(waiting, ended)


def keeps_slot(state: RunState, block: StepExecution) -> bool:
    """Whether a branch of the block has its slot for itself until it is over."""
    assert state.plan is not None, "it was asked for before"
    plan = state.plan.step(block.step_id)
    return isinstance(plan, LoopPlan) and plan.is_sequential


def start_next(state: RunState, step: StepExecution, moment: Moment) -> Decision:
    """Start the next attempt, or let the step be ready where its block has no slot for it.

    What was taken over from an earlier run waits in the same way: also a step that needs no worker, which is entered,
    and one whose input cannot be made, as its error tells, which fails once more.
    """
    block = state.steps[step.parent_step_id] if step.parent_step_id is not None else None
    if block is not None and block.branches is not None and block.branches.is_gated and not keeps_slot(state, block):
        # Handed on like any other slot: what is ready comes before the line.
        ready = step._replace(due_at=within_branch(step, None), ready_at=moment.now)
        counted = block._replace(branches=block.branches._replace(ready=block.branches.ready + 1))
        return Decision(Verdict.APPLIED, steps=(ready, counted), afterwards=SlotsFree(step.run_id, block.step_id))
    if not step.has_attempts:
        return Decision(Verdict.APPLIED, then=(StepReached(step.run_id, step.step_id),))
    if step.error is not None:
        failed = step.advanced(Trigger.FAIL, error=step.error, finished_at=moment.now, due_at=None)
        return Decision(Verdict.APPLIED, steps=(failed,), then=(StepEnded(step.run_id, step.step_id),))
    queued = dispatched(step, moment.now, moment.new_id)
    return Decision(Verdict.APPLIED, steps=(queued,), sends=(SendTask(queued),))
