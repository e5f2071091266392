"""The gate: which branches of a limited block may run now.

All branches of a limited block are published at once to the block's own gate queue, each as a ticket. One replica
holds the gate and consumes that queue with prefetch = max_parallelism; the window is the pacing, for RabbitMQ delivers
the next ticket the moment an earlier one is acked, and a ticket is acked when its branch has ended.

But a queue is not a lock. When the holder's connection drops, everything it held is delivered again, to it or to
another holder, while the work still runs. So the count in Postgres is the truth: a slot is taken under the run's lock
and only while `dispatched < max_parallelism`, and given back when its branch ends. And slots are filled in one way
only, in the order of the definition (`slots_free`), whoever notices that one is free:

- a ticket arrived: the first `max_parallelism` branches start this way, and a gate that was taken over goes on
- a branch ended: the transaction that frees its slot hands it to the next in line. Waiting for the next ticket to
  arrive would leave the slot empty for one more trip to the broker and one more transaction
- the holder's reconciliation found free slots: tickets were lost with their queue
- the time of a branch's next attempt has come: those go before the line (see `retries`)

A ticket itself then needs one of three answers:

    STALE       its branch is over: ack it
    DUPLICATE   its branch runs: hold it
    NOT_YET     its branch waits for a slot: hold it
"""

from collections.abc import Callable, Sequence
from datetime import datetime
from uuid import UUID

from orchestrator.engine import codes
from orchestrator.engine.attempt import dispatched
from orchestrator.engine.decision import Decision, SendTask, Verdict
from orchestrator.engine.inputs import BranchArrived, SlotsFree, StepEnded, StepReached
from orchestrator.engine.records import Branches, StepExecution
from orchestrator.engine.state import RunState, Wanted
from orchestrator.engine.transitions import Trigger
from schemas.statuses import StepStatus


def branch_arrived(state: RunState, event: BranchArrived) -> Decision | Wanted:
    """Answer a ticket; its arrival is also an occasion to fill free slots."""
    missing = state.missing(Wanted(steps=frozenset({event.block_id, event.step_id})))
    if missing:
        return missing
    step, block = state.steps[event.step_id], state.steps[event.block_id]
    if step is None or block is None or step.parent_step_id != event.block_id or block.status.is_final:
        return Decision(Verdict.STALE, codes.BRANCH_IS_OVER)
    if step.status.is_final:
        return _first_step_over(state, step)
    if step.is_dispatched:
        return Decision(Verdict.DUPLICATE, codes.ALREADY_DISPATCHED)
    return Decision(Verdict.NOT_YET, codes.WAITS_FOR_SLOT, afterwards=SlotsFree(event.run_id, event.block_id))


def _first_step_over(state: RunState, first: StepExecution) -> Decision | Wanted:
    """Answer the ticket of a branch whose first step has ended: others may follow it."""
    missing = state.missing(Wanted(plan=True))
    if missing:
        return missing
    assert state.plan is not None
    following = state.plan.lane(first.step_id)
    missing = state.missing(Wanted(steps=frozenset(following)))
    if missing:
        return missing
    rows = (state.steps[step_id] for step_id in following)
    if any(row is not None and not row.status.is_final for row in rows):
        return Decision(Verdict.DUPLICATE, codes.ALREADY_DISPATCHED)
    return Decision(Verdict.STALE, codes.BRANCH_IS_OVER)


def slots_free(state: RunState, event: SlotsFree, now: datetime, new_id: Callable[[], UUID]) -> Decision | Wanted:
    """Let as many branches through as there are free slots, those that are next in line."""
    missing = state.missing(Wanted(steps=frozenset({event.block_id})))
    if missing:
        return missing
    block = state.steps[event.block_id]
    if block is None or block.status is not StepStatus.RUNNING or block.branches is None:
        return Decision(Verdict.STALE, codes.NO_FREE_SLOT)
    if block.branches.free_slots <= 0:
        return Decision(Verdict.STALE, codes.NO_FREE_SLOT)
    counters = block.branches
    ready = min(counters.free_slots, counters.ready)
    # A line that has been through has no one left to ask for.
    next_ones = min(counters.free_slots - ready, max(counters.total - counters.passed, 0))
    lacks_line = next_ones > 0 and state.next_in_line(block.step_id, counters.passed, next_ones) is None
    asked = (block.step_id, counters.passed, state.asked_in_line(block.step_id, next_ones))
    wanted = Wanted(
        ready=frozenset({(block.step_id, ready)} if ready else ()),
        waiting=frozenset({asked} if lacks_line else ()),
    )
    missing = state.missing(wanted)
    if missing:
        return missing
    again = state.ready_again(block.step_id, ready) or ()
    line = state.next_in_line(block.step_id, counters.passed, next_ones) or () if next_ones else ()
    first_time = _up_to_broken(line)
    through = (*again, *first_time)
    sent = tuple(dispatched(step, now, new_id) for step in through if _has_task(step))
    broken = tuple(
        step.advanced(Trigger.FAIL, error=step.error, finished_at=now) for step in through if step.error is not None
    )
    entered = tuple(StepReached(event.run_id, step.step_id) for step in through if not step.has_attempts)
    taken = counters._replace(
        dispatched=counters.dispatched + len(through),
        ready=counters.ready - len(again),
        passed=_passed(counters, first_time, next_ones if len(first_time) == len(line) else len(first_time)),
    )
    return Decision(
        Verdict.APPLIED,
        steps=(block._replace(branches=taken), *sent, *broken),
        sends=tuple(SendTask(step) for step in sent),
        then=(*(StepEnded(event.run_id, step.step_id) for step in broken), *entered),
    )


def _up_to_broken(line: Sequence[StepExecution]) -> Sequence[StepExecution]:
    """Return the line up to the first that fails at once: whether the others still start is seen after that."""
    for number, step in enumerate(line, 1):
        if step.error is not None:
            return line[:number]
    return line


def _has_task(step: StepExecution) -> bool:
    """Whether an attempt is to be made; not where no input could be made for it, as its error tells."""
    return step.has_attempts and step.error is None


def _passed(counters: Branches, sent: Sequence[StepExecution], asked: int) -> int:
    if not asked:
        return counters.passed
    # Fewer than asked for means that the line is empty.
    return sent[-1].position + 1 if len(sent) == asked else counters.total
