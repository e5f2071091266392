"""One function that answers every input: what happens next.

An input meets the run's state; out comes a `Decision` (a verdict, row changes, messages, follow-up inputs) or a
`Wanted` (load this and ask again). The caller stores the decision, applies it to the state with `apply`, and decides
the follow-ups in the same transaction, until none is left.

How a run moves:

    RunRequested ──▶ StepReached ──▶ agent step: its task goes out ──▶ TaskReported ──┐
                        ▲    ├─────▶ sub-workflow: a run is asked for ──▶ ChildEnded ─┤
                        │    │                                                        ▼
                        │    └─────▶ block: fork, BlockForked ──▶ … ──▶ BlockDrained ──▶ StepEnded
                        │              each branch: (SlotsFree ──▶) TaskReported ─┘         │
                        │              (between its steps: StepEnded ──▶ StepReached)       │
                        └──────────────── next_step, or on_failure ─────────────────────────┤
                                                                            run ended ◀─────┘

An attempt that failed may be followed by another: its step waits, and goes on with RetryDue (see `retries`). Where the
rest of a block is not waited for, BlockDrained comes while branches are open, and cancels them. Where a loop stops
after a failure, those that wait at its gate are cancelled, and LineClosed says how many. RetryRequested starts a run in
the middle: where an earlier one stopped, with what that has completed (see `retried`).

Late and repeated inputs are normal and get a verdict; an exception from here means a bug.
"""

from typing import assert_never

from orchestrator.engine import block, children, gate, lifecycle, reports, retried, silence
from orchestrator.engine.decision import Decision
from orchestrator.engine.inputs import (
    AttemptOverdue,
    BlockDrained,
    BlockForked,
    BranchArrived,
    CancelRequested,
    ChildEnded,
    ChildStarted,
    Input,
    LineClosed,
    RetryDue,
    RetryRequested,
    RunOverdue,
    RunRequested,
    SlotsFree,
    StepEnded,
    StepReached,
    TaskMissing,
    TaskReported,
    TaskUndeliverable,
)
from orchestrator.engine.moment import Moment
from orchestrator.engine.records import StepExecution
from orchestrator.engine.state import RunState, RunValues, Wanted
from schemas.scope import StepOutcome
from schemas.statuses import StepStatus


def decide(state: RunState, event: Input, moment: Moment) -> Decision | Wanted:
    """Return what *event* does to the run, or what must be known first.

    Args:
        state: What is known of the run that the event names; not changed.
        event: What happened.
        moment: The time and a source of ids; a decision that is asked for again may get new ones.
    """
    match event:
        case RunRequested():
            return lifecycle.request(state, event, moment.now)
        case CancelRequested():
            return lifecycle.cancel(state, event, moment.now)
        case RetryRequested():
            return retried.retry(state, event, moment.now)
        case ChildStarted():
            return children.started(state, event, moment.now)
        case ChildEnded():
            return children.ended(state, event, moment)
        case TaskReported():
            return reports.task_reported(state, event, moment)
        case AttemptOverdue():
            return reports.attempt_overdue(state, event, moment)
        case TaskUndeliverable():
            return reports.task_undeliverable(state, event, moment)
        case RunOverdue():
            return lifecycle.overdue(state, moment.now)
        case RetryDue():
            return reports.retry_due(state, event, moment)
        case TaskMissing():
            return silence.task_missing(state, event, moment.now)
        case BranchArrived():
            return gate.branch_arrived(state, event)
        case SlotsFree():
            return gate.slots_free(state, event, moment.now, moment.new_id)
        case StepReached():
            return lifecycle.step_reached(state, event, moment.now, moment.new_id)
        case BlockForked():
            return block.forked(state, event, moment.now)
        case LineClosed():
            return block.line_closed(state, event)
        case BlockDrained():
            return block.drained(state, event, moment.now)
        case StepEnded():
            return lifecycle.step_ended(state, event, moment.now)
        case _:
            assert_never(event)


def apply(state: RunState, decision: Decision, moment: Moment) -> None:
    """Bring *state* up to date with a decision, so that the next input meets what this one left."""
    if decision.run is not None:
        state.put_run(decision.run)
    if decision.created_run is not None:
        state.run_values = RunValues(decision.created_run.input, None, None)
    if decision.run is not None and decision.run.status.is_final:
        # What is stored is older. Nobody asks for the input any more: no step of this run is entered again.
        state.run_values = RunValues(None, decision.run.output, decision.run.error)
    if decision.cancels_open_steps or decision.cancels_branches_of is not None:
        state.cancel_open_steps(moment.now, of_block=decision.cancels_branches_of)
    for step in decision.steps:
        has_ended = _has_completed(state.steps.get(step.step_id), step)
        state.put_step(step)
        if has_ended:
            state.outcomes[step.step_id] = StepOutcome(step.status, step.output, None)
    if decision.fork is not None and decision.fork.items is not None:
        state.collections[decision.fork.block_id] = decision.fork.items
    if decision.closes_line_of is not None:
        closing = state.steps[decision.closes_line_of]
        assert closing is not None, "whose gate it is has just been counted"
        assert closing.branches is not None, "a gate is of a block"
        state.cancel_line(closing.step_id, closing.branches.passed, moment.now)


def _has_completed(before: StepExecution | None, after: StepExecution) -> bool:
    """Whether a step has completed whose output its row tells; that of a block is put together where it is stored."""
    is_new = before is None or before.status is not StepStatus.COMPLETED
    return is_new and after.status is StepStatus.COMPLETED and after.branches is None


def first_wanted(event: Input) -> Wanted:
    """Return what deciding *event* will certainly want, so that a batch can load it all at once beforehand."""
    match event:
        case TaskReported():
            task = frozenset({event.report.task_id})
            ends = event.report.status.ends_attempt
            return Wanted(tasks=task, ending=task if ends else frozenset(), plan=ends)
        case ChildEnded():
            task = frozenset({event.task_id})
            return Wanted(tasks=task, ending=task, plan=True)
        case BranchArrived():
            return Wanted(steps=frozenset({event.block_id, event.step_id}))
        case SlotsFree():
            return Wanted(steps=frozenset({event.block_id}))
        case AttemptOverdue() | TaskUndeliverable() | TaskMissing() | RetryDue():
            return Wanted(steps=frozenset({event.step_id}))
        case _:
            return Wanted()
