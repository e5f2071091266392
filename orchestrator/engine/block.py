"""A block: fork its branches, count them down, join their outputs.

The block's row carries counters, so each ending branch costs the same however many there are, and only the last one
pays for the join. Under the run's lock exactly one input sees `open` reach zero.
"""

from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from orchestrator.engine import codes
from orchestrator.engine.attempt import dispatched, new_step
from orchestrator.engine.decision import Decision, Send, SendTask, SendTicket, Verdict
from orchestrator.engine.inputs import BlockDrained, BlockForked, FollowUp, StepEnded
from orchestrator.engine.plan import BlockPlan
from orchestrator.engine.records import Branches, StepExecution
from orchestrator.engine.state import FailedBranch, RunState, Wanted
from orchestrator.engine.transitions import Trigger
from schemas.messages import ErrorInfo
from schemas.statuses import JoinPolicy, StepStatus

# So many failed branches are described in the block's error; the others are in their own rows.
DESCRIBED_FAILURES: Final = 20


def new_block(run_id: UUID, plan: BlockPlan, now: datetime) -> StepExecution:
    """Return the new row of a block. Its counters hold from the moment when all its branches have rows."""
    total = len(plan.branches)
    return StepExecution(
        run_id=run_id,
        step_id=plan.id,
        status=StepStatus.RUNNING,
        join_policy=JoinPolicy.ALL,
        branches=Branches(total, open=total, failed=0, dispatched=0, passed=0, max_parallelism=plan.max_parallelism),
        created_at=now,
        started_at=now,
    )


def fork(
    state: RunState, plan: BlockPlan, now: datetime, new_id: Callable[[], UUID]
) -> Iterator[tuple[StepExecution, Send | None]]:
    """Yield each branch's new row with the message that it causes, in definition order.

    Lazy, so that a block of any size passes through memory in the caller's batches. A branch whose input cannot be
    made is FAILED and causes no message; the others go ahead.
    """
    assert state.run is not None
    scope = state.scope(plan.referenced_steps)
    for branch in plan.branches:
        step = new_step(state.run.id, branch, scope, now)
        if step.status is StepStatus.FAILED:
            yield step, None
        elif plan.is_gated:
            yield step, SendTicket(step)
        else:
            queued = dispatched(step, now, new_id)
            yield queued, SendTask(queued)


def forked(state: RunState, event: BlockForked) -> Decision:
    """Count the branches that failed at once; when all did, the block is drained already."""
    block = _known(state, event.block_id)
    counters = _counters(block)
    left = counters.open - event.failed
    changed = block._replace(branches=counters._replace(open=left, failed=event.failed))
    return Decision(Verdict.APPLIED, steps=(changed,), then=_drained_when(left, event))


def count_ended(block: StepExecution, before: StepExecution, after: StepExecution) -> StepExecution:
    """Return the block's row after one of its branches ended."""
    counters = _counters(block)
    freed = 1 if counters.is_gated and before.holds_slot else 0
    failed = 1 if after.status is StepStatus.FAILED else 0
    changed = counters._replace(
        open=counters.open - 1, failed=counters.failed + failed, dispatched=counters.dispatched - freed
    )
    return block._replace(branches=changed)


def drained(state: RunState, event: BlockDrained, now: datetime) -> Decision | Wanted:
    """Join: the block is COMPLETED when no branch failed, FAILED otherwise; its output is there either way."""
    block = _known(state, event.block_id)
    if _counters(block).failed == 0:
        ended = block.advanced(Trigger.COMPLETE, finished_at=now)
    else:
        missing = state.missing(Wanted(failures=frozenset({block.step_id})))
        if missing:
            return missing
        error = _block_error(block, state.failures[block.step_id])
        ended = block.advanced(Trigger.FAIL, finished_at=now, error=error)
    return Decision(Verdict.APPLIED, steps=(ended,), join=block.step_id, then=(StepEnded(block.run_id, block.step_id),))


def _block_error(block: StepExecution, failures: tuple[FailedBranch, ...]) -> ErrorInfo:
    described: list[dict[str, Any]] = [
        {"step_id": branch.step_id, "code": branch.error.code, "message": branch.error.message}
        for branch in failures[:DESCRIBED_FAILURES]
        if branch.error is not None
    ]
    reasons = "; ".join(f"{failure['step_id']}: {failure['message']}" for failure in described[:3])
    more = f"; and {len(failures) - 3} more" if len(failures) > 3 else ""
    return ErrorInfo(
        code=codes.BRANCHES_FAILED,
        message=f"{len(failures)} of {_counters(block).total} branches failed: {reasons}{more}",
        details={"failed_count": len(failures), "failed_steps": described},
    )


def _drained_when(open_branches: int, event: BlockForked) -> tuple[FollowUp, ...]:
    return (BlockDrained(event.run_id, event.block_id),) if open_branches == 0 else ()


def _known(state: RunState, block_id: str) -> StepExecution:
    block = state.steps[block_id]
    assert block is not None, f"the row of block {block_id} was loaded or created before"
    return block


def _counters(block: StepExecution) -> Branches:
    assert block.branches is not None, f"{block.step_id} is a block"
    return block.branches
