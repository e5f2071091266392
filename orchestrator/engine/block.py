"""A block or a loop: fork its branches, count them down, join their outputs.

A branch is a row of steps, one after the other; it holds its slot from the start of the first to the end of the last,
and is over when the last step has completed or any step has failed. In a loop each iteration is a branch.

The block's row carries counters, so each ending branch costs the same however many there are, and only the last one
pays for the join. Under the run's lock exactly one input sees that nothing is open, or that the rest is not waited for.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime
from itertools import islice
from typing import Any, Final, assert_never
from uuid import UUID

from orchestrator.engine import codes
from orchestrator.engine.attempt import begun, dispatched, new_step, within_branch
from orchestrator.engine.decision import (
    Decision,
    Fork,
    Join,
    JoinForm,
    Send,
    SendCancellation,
    SendTask,
    SendTicket,
    Ticket,
    Verdict,
)
from orchestrator.engine.executions import execution_id, iterations_of
from orchestrator.engine.inputs import BlockDrained, BlockForked, LineClosed, SlotsFree, StepEnded, StepReached
from orchestrator.engine.loop import collected
from orchestrator.engine.placement import new_row
from orchestrator.engine.plan import (
    AgentPlan,
    AttemptPlan,
    BlockPlan,
    ForkPlan,
    LoopPlan,
    Plan,
    StepPlan,
    SubWorkflowPlan,
)
from orchestrator.engine.records import Branches, StepExecution
from orchestrator.engine.sight import scope_of
from orchestrator.engine.state import FailedBranch, RunState, Wanted
from orchestrator.engine.transitions import Trigger
from schemas.messages import ErrorInfo
from schemas.scope import Iteration, Scope
from schemas.statuses import JoinPolicy, StepStatus

# So many failed branches are described in the block's error; the others are in their own rows.
DESCRIBED_FAILURES: Final = 20

# So many branches that begin with a step which needs no worker are entered in the transaction that forks their block:
# they go through memory together, with all that they lead to. The others are due, and the timers enter them by pages.
ENTERED_AT_ONCE: Final = 500


def new_block(run_id: UUID, plan: ForkPlan, execution: str, around: str | None, now: datetime) -> StepExecution:
    """Return the new row of a block: PENDING. Its counters hold from the moment when all its branches have rows."""
    total = len(plan.branches) if isinstance(plan, BlockPlan) else 0  # of a loop it is known once that is entered
    row = new_row(run_id, plan, execution, around, now, StepStatus.PENDING)
    counters = Branches(total, open=total, failed=0, dispatched=0, passed=0, max_parallelism=plan.max_parallelism)
    policy = plan.join_policy if isinstance(plan, BlockPlan) else None
    return row._replace(join_policy=policy, branches=counters)


def entered(state: RunState, event: StepReached, plan: ForkPlan, now: datetime) -> Decision:
    """Fork a block, or go on with one that was taken over.

    One that is the first step of a branch behind a gate has a row already.
    """
    around = _plan_of(state).around(event.step_id)
    row = state.steps.get(event.step_id) or new_block(event.run_id, plan, event.step_id, around, now)
    before = state.steps[event.after] if event.after is not None else None
    if before is not None:
        row = row._replace(branch_due_at=before.branch_due_at)
    row = begun(row, now)
    running = row.advanced(Trigger.START, started_at=now, due_at=within_branch(row, None), ready_at=None)
    counters = _counters(row)
    if counters.is_taken_over:
        return _gone_on(event, plan, running, counters)
    if isinstance(plan, BlockPlan):
        return Decision(Verdict.APPLIED, steps=(running,), fork=Fork(event.step_id))
    items = collected(plan, scope_of(state, event.step_id, plan.collection.reads))
    if isinstance(items, ErrorInfo):
        failed = running.advanced(Trigger.FAIL, error=items, finished_at=now, due_at=None)
        return Decision(Verdict.APPLIED, steps=(failed,), then=(StepEnded(event.run_id, event.step_id),))
    counted = counters._replace(total=len(items), open=len(items))
    fork_ = Fork(event.step_id, items, plan.keeps_items)
    return Decision(Verdict.APPLIED, steps=(running._replace(branches=counted),), fork=fork_)


def _gone_on(event: StepReached, plan: ForkPlan, running: StepExecution, counters: Branches) -> Decision:
    """Go on with a block that was taken over from an earlier run: the branches that have not completed start again.

    Behind a gate they stand in its line, in definition order, though nobody has tickets for them. Elsewhere they are
    due, all at once, and the timers start them.
    """
    if _is_over(plan, counters):
        return Decision(Verdict.APPLIED, steps=(running,), then=(BlockDrained(event.run_id, event.step_id),))
    if not counters.is_gated:
        return Decision(Verdict.APPLIED, steps=(running,), wakes=event.step_id)
    in_line = running._replace(branches=counters._replace(passed=0))
    then = (SlotsFree(event.run_id, event.step_id),)
    return Decision(Verdict.APPLIED, steps=(in_line,), opens_gate=event.step_id, then=then)


def fork(
    state: RunState, forking: Fork, now: datetime, new_id: Callable[[], UUID]
) -> Iterator[tuple[StepExecution, Send | None]]:
    """Yield the new row of each branch's first step with the message that it causes, in definition order.

    Lazy, so that a block of any size passes through memory in the caller's batches. A branch whose input cannot be
    made is FAILED and causes no message; the others go ahead. But in a loop that stops after a failure, and that does
    not run all at once, it fails when its turn comes. A step without attempts gets its row when it is entered,
    unless it waits until then: at the gate, or because there are many.
    """
    assert state.run is not None
    block, plan = _known(state, forking.block_id), _plan(state, forking.block_id)
    is_gated, at_once = _counters(block).is_gated, ENTERED_AT_ONCE
    for first, execution, scope in _branches(state, plan, forking):
        if not isinstance(first, AttemptPlan):
            if is_gated:
                waiting = waiting_row(state.run.id, first, execution, forking.block_id, now)
                yield waiting, SendTicket(waiting)
            elif at_once > 0:
                at_once -= 1  # `forked` enters it
            else:
                yield waiting_row(state.run.id, first, execution, forking.block_id, now)._replace(due_at=now), None
            continue
        step = new_step(state.run, first, execution, forking.block_id, scope, now)
        if step.status is StepStatus.FAILED and is_gated and isinstance(plan, LoopPlan) and plan.stops:
            waiting = step._replace(status=StepStatus.PENDING, finished_at=None)  # with its error
            yield waiting, SendTicket(waiting)
        elif step.status is StepStatus.FAILED:
            yield step, None
        elif is_gated:
            yield step, SendTicket(step)
        else:
            queued = dispatched(step, now, new_id)
            yield queued, SendTask(queued)


def waiting_row(run_id: UUID, step: StepPlan, execution: str, around: str, now: datetime) -> StepExecution:
    """Return the new row of a step that needs no worker, and waits for its turn."""
    if isinstance(step, BlockPlan | LoopPlan):
        return new_block(run_id, step, execution, around, now)
    return new_row(run_id, step, execution, around, now, StepStatus.PENDING)


def forked(state: RunState, event: BlockForked, now: datetime) -> Decision | Wanted:
    """Count the branches that failed at once, which may end the block; enter first steps of others without a worker."""
    missing = state.missing(Wanted(plan=True))
    if missing:
        return missing
    block, plan = _known(state, event.block_id), _plan(state, event.block_id)
    counters = _counters(block)._replace(open=_counters(block).open - event.failed, failed=event.failed)
    counted = block._replace(branches=counters)
    need_no_worker = _need_no_worker(_plan_of(state), block, plan)
    inner = [] if counters.is_gated else list(islice(need_no_worker, ENTERED_AT_ONCE))
    if not _is_over(plan, counters):
        then = tuple(StepReached(event.run_id, execution) for _, execution in inner)
        return Decision(Verdict.APPLIED, steps=(counted,), then=then)
    unreached = (
        waiting_row(event.run_id, step, execution, block.step_id, now).advanced(Trigger.CANCEL, finished_at=now)
        for step, execution in inner
    )
    return Decision(Verdict.APPLIED, steps=(counted, *unreached), then=(BlockDrained(event.run_id, event.block_id),))


def branch_ended(state: RunState, branch: StepPlan, *ended: StepExecution, before: StepExecution) -> Decision:
    """Count a branch that is over.

    Args:
        state: Knows the plan and the block.
        branch: The branch's step that ended.
        ended: That step's new row, unless it is stored already.
        before: The row as it was, or as it is stored: it tells what the branch took of the block.
    """
    assert before.parent_step_id is not None, "it is a step of a branch"
    block, plan = _known(state, before.parent_step_id), _plan(state, before.parent_step_id)
    if block.status.is_final:
        return Decision(Verdict.STALE, codes.BRANCH_IS_OVER, released=ticket(_plan_of(state), branch, before))
    counters = _counters(block)
    last = ended[-1] if ended else before
    counted = counters._replace(
        open=counters.open - 1,
        failed=counters.failed + (last.status is StepStatus.FAILED),
        dispatched=counters.dispatched - (counters.is_gated and (not ended or holds_slot(plan, before))),
        ready=counters.ready - (before.ready_at is not None),
    )
    is_over = _is_over(plan, counted)
    stops = isinstance(plan, LoopPlan) and plan.stops and last.status is StepStatus.FAILED
    return Decision(
        Verdict.APPLIED,
        steps=(*ended, block._replace(branches=counted)),
        released=ticket(_plan_of(state), branch, before),
        closes_line_of=block.step_id if stops and counted.is_gated and counted.passed < counted.total else None,
        then=(BlockDrained(block.run_id, block.step_id),) if is_over else (),
        afterwards=SlotsFree(block.run_id, block.step_id) if counted.free_slots > 0 and not is_over else None,
    )


def holds_slot(plan: ForkPlan, step: StepExecution) -> bool:
    """Whether a branch that has got to *step* takes one of the slots of its gated block."""
    keeps_it = isinstance(plan, LoopPlan) and plan.is_sequential and step.attempt > 0
    return step.is_dispatched or (keeps_it and step.status is StepStatus.PENDING)


def line_closed(state: RunState, event: LineClosed) -> Decision:
    """Count the iterations that do not start any more."""
    block = _known(state, event.block_id)
    counters = _counters(block)
    left = counters._replace(open=counters.open - event.cancelled, passed=counters.total)
    then = (BlockDrained(event.run_id, event.block_id),) if left.open == 0 and event.cancelled else ()
    return Decision(Verdict.APPLIED, steps=(block._replace(branches=left),), then=then)


def ticket(plan: Plan, branch: StepPlan, row: StepExecution) -> Ticket:
    """Return what stands at the gate for the branch of which *branch* is a step, and *row* its row."""
    assert row.parent_step_id is not None
    block = plan.step(row.parent_step_id)
    first = block.body if isinstance(block, LoopPlan) else _block_of(block).branches[row.position]
    return Ticket(row.parent_step_id, plan.beside(row.step_id, first.id) if branch.id != first.id else row.step_id)


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
    if _succeeded(plan, counters):
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
        join=join_of(plan, block),
        cancels_branches_of=block.step_id if is_cut_short else None,
        sends=(SendCancellation(block.run_id, block.step_id),) if is_cut_short else (),
        then=(StepEnded(block.run_id, block.step_id),),
    )


def block_overdue(plan: ForkPlan, failed: StepExecution) -> Decision:
    """End a block whose own branch has no time left, with all that is open in it."""
    settled = failed._replace(branches=_counters(failed)._replace(open=0, dispatched=0, ready=0))
    return Decision(
        Verdict.APPLIED,
        steps=(settled,),
        join=join_of(plan, failed),
        cancels_branches_of=failed.step_id,
        sends=(SendCancellation(failed.run_id, failed.step_id),),
        then=(StepEnded(failed.run_id, failed.step_id),),
    )


def join_of(plan: ForkPlan, block: StepExecution) -> Join:
    """Return how the output of a block is put together."""
    form = JoinForm.ITERATIONS
    if isinstance(plan, BlockPlan):
        form = JoinForm.ALL if plan.shows_failed else JoinForm.COMPLETED
    return Join(block.step_id, form, block.parent_step_id)


def _branches(state: RunState, plan: ForkPlan, forking: Fork) -> Iterator[tuple[StepPlan, str, Scope]]:
    """Yield the first step of each branch, the id of its execution, and what its input is made of."""
    block_id = forking.block_id
    if isinstance(plan, BlockPlan):
        scope, whole = scope_of(state, block_id, plan.reads), _plan_of(state)
        for branch in plan.branches:
            yield branch, whole.beside(block_id, branch.id), scope
        return
    items = forking.items or ()
    scope = scope_of(state, block_id, plan.reads)
    for index, execution in enumerate(_iterations(plan, block_id, len(items))):
        yield plan.body, execution, replace(scope, iteration=Iteration(index, len(items), items[index]))


def _iterations(plan: LoopPlan, block_id: str, total: int) -> Iterator[str]:
    around = iterations_of(block_id)
    return (execution_id(plan.body.id, (*around, index)) for index in range(total))


def _need_no_worker(whole: Plan, block: StepExecution, plan: ForkPlan) -> Iterator[tuple[StepPlan, str]]:
    """Yield the first steps of branches that need no worker, with the ids of their executions."""
    match plan:
        case BlockPlan():
            others = (branch for branch in plan.branches if not isinstance(branch, AttemptPlan))
            yield from ((branch, whole.beside(block.step_id, branch.id)) for branch in others)
        case LoopPlan(body=AgentPlan() | SubWorkflowPlan()):
            pass
        case LoopPlan():
            for execution in _iterations(plan, block.step_id, _counters(block).total):
                yield plan.body, execution
        case _:
            assert_never(plan)


def _completed(counters: Branches) -> int:
    return counters.total - counters.open - counters.failed


def _succeeded(plan: ForkPlan, counters: Branches) -> bool:
    if isinstance(plan, LoopPlan):
        return plan.tolerates or counters.failed == 0
    return _completed(counters) >= plan.needed


def _is_over(plan: ForkPlan, counters: Branches) -> bool:
    """Whether nothing is open, or nothing that is open matters and it is not waited for."""
    if counters.open == 0:
        return True
    if isinstance(plan, LoopPlan) or not plan.cancels_the_rest:
        return False
    return _succeeded(plan, counters) or counters.failed > counters.total - plan.needed


def _block_error(plan: ForkPlan, block: StepExecution, failures: tuple[FailedBranch, ...]) -> ErrorInfo:
    described: list[dict[str, Any]] = [
        {"step_id": branch.step_id, "code": branch.error.code, "message": branch.error.message}
        for branch in failures[:DESCRIBED_FAILURES]
        if branch.error is not None
    ]
    what, code, wanted = "branches", codes.BRANCHES_FAILED, ""
    if isinstance(plan, LoopPlan):
        what, code = "iterations", codes.ITERATIONS_FAILED
    elif plan.join_policy is not JoinPolicy.ALL:
        wanted = f", and {plan.needed} had to complete"
    reasons = "; ".join(f"{failure['step_id']}: {failure['message']}" for failure in described[:3])
    more = f"; and {len(failures) - 3} more" if len(failures) > 3 else ""
    return ErrorInfo(
        code=code,
        message=f"{len(failures)} of {_counters(block).total} {what} failed{wanted}: {reasons}{more}",
        details={"failed_count": len(failures), "failed_steps": described},
    )


def _plan(state: RunState, block_id: str) -> ForkPlan:
    plan = _plan_of(state).step(block_id)
    assert isinstance(plan, BlockPlan | LoopPlan), f"{block_id} is a block"
    return plan


def _block_of(plan: StepPlan) -> BlockPlan:
    assert isinstance(plan, BlockPlan), f"{plan.id} is a block"
    return plan


def _plan_of(state: RunState) -> Plan:
    assert state.plan is not None, "it was asked for before"
    return state.plan


def _known(state: RunState, block_id: str) -> StepExecution:
    block = state.steps[block_id]
    assert block is not None, f"the row of block {block_id} was loaded or created before"
    return block


def _counters(block: StepExecution) -> Branches:
    assert block.branches is not None, f"{block.step_id} is a block"
    return block.branches
