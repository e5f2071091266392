"""The gate: which branches of a limited block may run now.

All branches of a limited block are published at once to the block's own gate queue. One replica holds the gate and
consumes that queue with prefetch = max_parallelism; the window is the pacing, for RabbitMQ delivers the next branch
the moment an earlier delivery is acked, and a delivery is acked when its branch has ended.

But a queue is not a lock. When the holder's connection drops, everything it held is delivered again, to it or to
another holder, while the work still runs. So the count in Postgres is the truth: a branch takes a slot under the
run's lock and only while `dispatched < max_parallelism`, it gives the slot back when it ends, and a delivery whose
branch is dispatched already is held, not sent again.

That gives every delivery one of four answers:

    APPLIED     a slot was free: the task goes to the agent's queue; hold the delivery
    DUPLICATE   the branch runs already (redelivered after a lost connection); hold the delivery
    NOT_YET     all slots are taken; hold the delivery and ask again when one is free
    STALE       the branch is over; ack the delivery
"""

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from uuid import UUID

from orchestrator.engine import codes
from orchestrator.engine.attempt import dispatched
from orchestrator.engine.decision import Decision, SendTask, Verdict
from orchestrator.engine.inputs import BranchArrived
from orchestrator.engine.state import RunState, Wanted


def branch_arrived(
    state: RunState, event: BranchArrived, now: datetime, new_id: Callable[[], UUID]
) -> Decision | Wanted:
    """Let the branch through its gate if a slot is free."""
    missing = state.missing(Wanted(steps=frozenset({event.block_id, event.step_id})))
    if missing:
        return missing
    block, step = state.steps[event.block_id], state.steps[event.step_id]
    if block is None or block.branches is None or step is None or step.status.is_final:
        return Decision(Verdict.STALE, codes.BRANCH_IS_OVER)
    if step.holds_slot:
        return Decision(Verdict.DUPLICATE, codes.ALREADY_DISPATCHED)
    if not block.branches.has_free_slot:
        return Decision(Verdict.NOT_YET, codes.NO_FREE_SLOT)
    taken = replace(block, branches=replace(block.branches, dispatched=block.branches.dispatched + 1))
    sent = dispatched(step, now, new_id)
    return Decision(Verdict.APPLIED, steps=(taken, sent), sends=(SendTask(sent),))
