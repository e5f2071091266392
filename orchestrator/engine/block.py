"""A block: fork its branches, count them down, join their outputs.

A branch is a row of steps, one after the other; it holds its slot from the start of the first to the end of the last,
and is over when the last step has completed or any step has failed.

The block's row carries counters, so each ending branch costs the same however many there are, and only the last one
pays for the join. Under the run's lock exactly one input sees that nothing is open, or that the rest is not waited for.
"""

from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from orchestrator.engine import codes
from orchestrator.engine.attempt import begun, dispatched, new_step, within_branch
from orchestrator.engine.decision import Decision, Send, SendCancellation, SendTask, SendTicket, Ticket, Verdict
from orchestrator.engine.inputs import BlockDrained, BlockForked, SlotsFree, StepEnded, StepReached
from orchestrator.engine.plan import BlockPlan, BranchStep
from orchestrator.engine.records import Branches, StepExecution
from orchestrator.engine.state import FailedBranch, RunState, Wanted
from orchestrator.engine.transitions import Trigger
from schemas.messages import ErrorInfo
from schemas.statuses import JoinPolicy, StepStatus

# So many failed branches are described in the block's error; the others are in their own rows.
DESCRIBED_FAILURES: Final = 20


def new_block(run_id: UUID, plan: BlockPlan, now: datetime) -> StepExecution:
    """Return the new row of a block: PENDING. Its counters hold from the moment when all its branches have rows."""
    total = len(plan.branches)
    return StepExecution(
        run_id=run_id,
        step_id=plan.id,
        status=StepStatus.PENDING,
        position=plan.position,
        ordinal=plan.ordinal,
        parent_step_id=plan.block_id,
        branch_name=plan.branch_name,
        branch_timeout_seconds=plan.branch_timeout,
        join_policy=plan.join_policy,
        branches=Branches(total, open=total, failed=0, dispatched=0, passed=0, max_parallelism=plan.max_parallelism),
        created_at=now,
    )


def entered(state: RunState, event: StepReached, plan: BlockPlan, now: datetime) -> Decision:
    """Fork a block, or go on with one that was taken over.

    One that is the first step of a branch behind a gate has a row already.
    """
    row = state.steps.get(plan.id) or new_block(event.run_id, plan, now)
    around = state.steps.get(plan.block_id) if plan.block_id is not None else None
    if around is not None and around.status.is_final:
        # It was cut short since, by another branch that came first in this transaction.
        unreached = () if row.status.is_final else (row.advanced(Trigger.CANCEL, finished_at=now),)
        return Decision(Verdict.APPLIED, steps=unreached)
    before = state.steps[event.after] if event.after is not None else None
    if before is not None:
        row = row._replace(branch_due_at=before.branch_due_at)
    row = begun(row, now)
    running = row.advanced(Trigger.START, started_at=now, due_at=within_branch(row, None), ready_at=None)
    counters = _counters(row)
    if not counters.is_taken_over:
        return Decision(Verdict.APPLIED, steps=(running,), fork=plan)
    then = (BlockDrained(event.run_id, plan.id),) if _is_over(plan, counters) else ()
    return Decision(Verdict.APPLIED, steps=(running,), wakes=plan, then=then)


def fork(
    state: RunState, plan: BlockPlan, now: datetime, new_id: Callable[[], UUID]
) -> Iterator[tuple[StepExecution, Send | None]]:
    """Yield the new row of each branch's first step with the message that it causes, in definition order.

    Lazy, so that a block of any size passes through memory in the caller's batches. A branch whose input cannot be
    made is FAILED and causes no message; the others go ahead. A block that comes first in its branch gets its row when
    it is entered, unless it waits at the gate.
    """
    assert state.run is not None
    scope = state.scope(plan.referenced_steps)
    for branch in plan.branches:
        if isinstance(branch, BlockPlan):
            if plan.is_gated:
                waiting = new_block(state.run.id, branch, now)
                yield waiting, SendTicket(waiting)
            continue
        step = new_step(state.run.id, branch, scope, now)
        if step.status is StepStatus.FAILED:
            yield step, None
        elif plan.is_gated:
            yield step, SendTicket(step)
        else:
            queued = dispatched(step, now, new_id)
            yield queued, SendTask(queued)


def forked(state: RunState, event: BlockForked, now: datetime) -> Decision | Wanted:
    """Count the branches that failed at once, which may end the block; enter the blocks that come first in others."""
    missing = state.missing(Wanted(plan=True))
    if missing:
        return missing
    block, plan = _known(state, event.block_id), _plan(state, event.block_id)
    counters = _counters(block)._replace(open=_counters(block).open - event.failed, failed=event.failed)
    counted = block._replace(branches=counters)
    inner = [] if plan.is_gated else [branch for branch in plan.branches if isinstance(branch, BlockPlan)]
    if not _is_over(plan, counters):
        then = tuple(StepReached(event.run_id, branch.id) for branch in inner)
        return Decision(Verdict.APPLIED, steps=(counted,), then=then)
    unreached = (new_block(event.run_id, branch, now).advanced(Trigger.CANCEL, finished_at=now) for branch in inner)
    return Decision(Verdict.APPLIED, steps=(counted, *unreached), then=(BlockDrained(event.run_id, event.block_id),))


def branch_ended(state: RunState, branch: BranchStep, *ended: StepExecution, before: StepExecution) -> Decision:
    """Count a branch that is over.

    Args:
        state: Knows the plan and the block.
        branch: The plan of the branch's step that ended.
        ended: That step's new row, unless it is stored already.
        before: The row as it was, or as it is stored: it tells what the branch took of the block.
    """
    assert branch.block_id is not None, "it is a step of a branch"
    block, plan = _known(state, branch.block_id), _plan(state, branch.block_id)
    counters = _counters(block)
    last = ended[-1] if ended else before
    counted = counters._replace(
        open=counters.open - 1,
        failed=counters.failed + (last.status is StepStatus.FAILED),
        dispatched=counters.dispatched - (counters.is_gated and (before.holds_slot or not ended)),
        ready=counters.ready - (before.ready_at is not None),
    )
    is_over = _is_over(plan, counted)
    return Decision(
        Verdict.APPLIED,
        steps=(*ended, block._replace(branches=counted)),
        released=ticket(plan, branch),
        then=(BlockDrained(block.run_id, block.step_id),) if is_over else (),
        afterwards=SlotsFree(block.run_id, block.step_id) if counted.free_slots > 0 and not is_over else None,
    )


def ticket(plan: BlockPlan, branch: BranchStep) -> Ticket:
    """Return what stands at the gate for the branch of which *branch* is a step."""
    return Ticket(plan.id, plan.branches[branch.position].id)


def drained(state: RunState, event: BlockDrained, now: datetime) -> Decision | Wanted:
    """Join: the block is COMPLETED when enough branches have, FAILED otherwise; its output is there either way.

    Branches that are still open are not waited for: they are cancelled.
    """
    missing = state.missing(Wanted(plan=True))
    if missing:
        return missing
    block, plan = _known(state, event.block_id), _plan(state, event.block_id)
    counters = _counters(block)
    settled = block._replace(branches=counters._replace(open=0, dispatched=0, ready=0), due_at=None)
    if _completed(counters) >= plan.needed:
        ended = settled.advanced(Trigger.COMPLETE, finished_at=now)
    else:
        missing = state.missing(Wanted(failures=frozenset({block.step_id})))
        if missing:
            return missing
        error = _block_error(plan, block, state.failures[block.step_id])
        ended = settled.advanced(Trigger.FAIL, finished_at=now, error=error)
    is_cut_short = counters.open > 0
    return Decision(
        Verdict.APPLIED,
        steps=(ended,),
        join=plan,
        cancels_branches_of=block.step_id if is_cut_short else None,
        sends=(SendCancellation(block.run_id, block.step_id),) if is_cut_short else (),
        then=(StepEnded(block.run_id, block.step_id),),
    )


def block_overdue(plan: BlockPlan, failed: StepExecution) -> Decision:
    """End a block whose own branch has no time left, with all that is open in it."""
    settled = failed._replace(branches=_counters(failed)._replace(open=0, dispatched=0, ready=0))
    return Decision(
        Verdict.APPLIED,
        steps=(settled,),
        join=plan,
        cancels_branches_of=plan.id,
        sends=(SendCancellation(failed.run_id, plan.id),),
        then=(StepEnded(failed.run_id, plan.id),),
    )


def _completed(counters: Branches) -> int:
    return counters.total - counters.open - counters.failed


def _is_over(plan: BlockPlan, counters: Branches) -> bool:
    """Whether nothing is open, or nothing that is open matters and it is not waited for."""
    if counters.open == 0:
        return True
    succeeded = _completed(counters) >= plan.needed
    return plan.cancels_the_rest and (succeeded or counters.failed > counters.total - plan.needed)


def _block_error(plan: BlockPlan, block: StepExecution, failures: tuple[FailedBranch, ...]) -> ErrorInfo:
    described: list[dict[str, Any]] = [
        {"step_id": branch.step_id, "code": branch.error.code, "message": branch.error.message}
        for branch in failures[:DESCRIBED_FAILURES]
        if branch.error is not None
    ]
    total = _counters(block).total
    reasons = "; ".join(f"{failure['step_id']}: {failure['message']}" for failure in described[:3])
    more = f"; and {len(failures) - 3} more" if len(failures) > 3 else ""
    wanted = "" if plan.join_policy is JoinPolicy.ALL else f", and {plan.needed} had to complete"
    return ErrorInfo(
        code=codes.BRANCHES_FAILED,
        message=f"{len(failures)} of {total} branches failed{wanted}: {reasons}{more}",
        details={"failed_count": len(failures), "failed_steps": described},
    )


def _plan(state: RunState, block_id: str) -> BlockPlan:
    assert state.plan is not None, "it was asked for before"
    plan = state.plan.steps[block_id]
    assert isinstance(plan, BlockPlan), f"{block_id} is a block"
    return plan


def _known(state: RunState, block_id: str) -> StepExecution:
    block = state.steps[block_id]
    assert block is not None, f"the row of block {block_id} was loaded or created before"
    return block


def _counters(block: StepExecution) -> Branches:
    assert block.branches is not None, f"{block.step_id} is a block"
    return block.branches
