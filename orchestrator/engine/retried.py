"""A run that is retried: another one does again what it has not completed.

A final status never changes, whoever asked was told it, and workers remember which runs were cancelled. So a retry is a
run of its own, under its own id, and the earlier run stays as it is: it is the history. The new one starts in the
middle. It takes over the steps of the earlier one as they ended, and goes on where that stopped, which is the step that
failed for want of a handler, or the one that was open when the run was cancelled or timed out. What failed before that
was handled, and stays so.

Where it stopped at a block, the branches that have completed are taken over as well. Each of the others waits at the
step at which it failed or was cancelled. Once its block is entered it stands in the line of the gate, or, where there
is none, it is due as a step is for its next attempt, and the timers start it, many in a transaction. No decision looks
at all branches here either.

A step whose input could not be made fails again when its turn comes: all that its references lead to has ended and is
taken over, so they would lead nowhere again. It keeps its error to tell of that.
"""

from dataclasses import replace
from datetime import datetime
from typing import Final

from orchestrator.engine import codes
from orchestrator.engine.decision import Decision, TakeOver, Verdict
from orchestrator.engine.inputs import RetryRequested, StepReached
from orchestrator.engine.lifecycle import new_run, requested_again
from orchestrator.engine.state import EarlierRun, RunState, Wanted
from schemas.statuses import RunStatus

# Why a step has failed before there was an input for it.
WITHOUT_INPUT: Final = frozenset({codes.REFERENCE_BROKEN, codes.SUB_WORKFLOW_CYCLE, codes.SUB_WORKFLOW_TOO_DEEP})


def retry(state: RunState, event: RetryRequested, now: datetime) -> Decision | Wanted:
    """Start a run where an earlier one stopped, unless that goes on, has completed, or the new id is taken."""
    if state.run is not None:
        return requested_again(state, state.run, event)
    missing = state.missing(Wanted(earlier=frozenset({event.retry_of})))
    if missing:
        return missing
    earlier = state.earlier[event.retry_of]
    if earlier is None:
        return Decision(Verdict.REJECTED, codes.UNKNOWN_RUN)
    if not earlier.run.status.is_final:
        return Decision(Verdict.REJECTED, codes.RUN_GOES_ON)
    if earlier.run.status is RunStatus.COMPLETED:
        return Decision(Verdict.REJECTED, codes.RUN_COMPLETED)
    missing = state.missing(Wanted(plan=True))
    if missing:
        return missing
    assert state.plan is not None
    run = new_run(event, earlier.run.definition_id, earlier.run.workflow_id, state.plan, now)
    stopped_at = _stopped_at(earlier) or state.plan.start
    return Decision(
        Verdict.APPLIED,
        takes_over=TakeOver(event.retry_of, stopped_at),
        run=replace(run, retry_of=event.retry_of),
        then=(StepReached(event.run_id, stopped_at),),
    )


def _stopped_at(earlier: EarlierRun) -> str | None:
    """Return the step that failed for want of a handler, or was open; None where the run had not come to any."""
    error = earlier.run.error
    if error is not None and error.code == codes.STEP_FAILED and error.details is not None:
        return str(error.details["step_id"])
    return earlier.interrupted
