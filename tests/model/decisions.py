"""What one transaction does to the rows, and the messages that it causes: the model's copy of `orchestrator/engine`.

    request()   lifecycle.request, block.fork
    reported()  reports.task_reported, block.count_ended, block.drained, lifecycle.step_ended
    fill()      gate.branch_arrived and gate.slots_free

Each returns an `Outcome`; an input without effect returns the rows as they are.
"""

from typing import NamedTuple, assert_never

from tests.model.state import NEXT, Kind, Message, Rows, Status, put
from tests.model.variants import Scope, Variant

HOLD_SLOT = (Status.QUEUED, Status.RUNNING)


class Outcome(NamedTuple):
    """What a decision changes, and what it sends."""

    rows: Rows
    messages: tuple[Message, ...] = ()
    accepted: int | None = None  # the step whose result had an effect


def decide(scope: Scope, rows: Rows, event: Message) -> Outcome:
    """Return what *event* does to *rows*."""
    match event.kind:
        case Kind.REQUEST:
            return request(scope, rows)
        case Kind.STARTED:
            return started(rows, event.step)
        case Kind.RESULT:
            return reported(scope, rows, event.step)
        case Kind.TICKET:
            return ticket_arrived(scope, rows, event.step)
        case Kind.FILL:
            return fill(scope, rows)
        case Kind.FOLLOW_UP:
            return follow_up(scope, rows)
        case Kind.TASK | Kind.REPLY | Kind.OPEN_GATE:
            raise AssertionError(f"no transaction is about a {event.kind}")
        case _:
            assert_never(event.kind)


def request(scope: Scope, rows: Rows) -> Outcome:
    """Start the run and fork its block; the same request again is the same run."""
    if rows.run is not Status.ABSENT:
        return Outcome(rows)
    branches = range(scope.branches)
    if scope.is_gated:
        born = Status.PENDING
        messages = (Message(Kind.OPEN_GATE), *(Message(Kind.TICKET, branch) for branch in branches))
    else:
        born = Status.QUEUED
        messages = tuple(Message(Kind.TASK, branch) for branch in branches)
    steps = (*(born for _ in branches), Status.ABSENT)
    return Outcome(Rows(Status.RUNNING, Status.RUNNING, steps, scope.branches, 0, 0), messages)


def started(rows: Rows, step: int) -> Outcome:
    """Note that a worker began; too late or too early, it has no effect."""
    if rows.run is Status.ABSENT or rows.steps[step] is not Status.QUEUED:
        return Outcome(rows)
    return Outcome(rows._replace(steps=put(rows.steps, step, Status.RUNNING)))


def reported(scope: Scope, rows: Rows, step: int) -> Outcome:
    """Apply a result: count its branch down, then join, or hand its slot on."""
    status = rows.steps[step]
    if status is Status.COMPLETED and step != NEXT:
        if Variant.FORWARD_REPEATED_RESULTS in scope.variants:
            return _forwarded(rows)
        if Variant.DUPLICATES_DRIVE_ON in scope.variants:
            return follow_up(scope, rows)
    if status not in HOLD_SLOT:
        return Outcome(rows)
    if step == NEXT:
        ended = rows._replace(run=Status.COMPLETED, steps=put(rows.steps, NEXT, Status.COMPLETED))
        return Outcome(ended, (Message(Kind.REPLY),), step)
    return _counted(scope, rows, step)


def follow_up(scope: Scope, rows: Rows) -> Outcome:
    """Join when no branch is open, else let branches into free slots. Whoever finds nothing due changes nothing."""
    if rows.block is not Status.RUNNING:
        return Outcome(rows)
    if rows.open <= 0:
        steps = put(rows.steps, NEXT, Status.QUEUED)
        return Outcome(rows._replace(block=Status.COMPLETED, steps=steps), (Message(Kind.TASK, NEXT),))
    return Outcome(rows) if Variant.LIMIT_BY_QUEUE_ONLY in scope.variants else fill(scope, rows)


def ticket_arrived(scope: Scope, rows: Rows, step: int) -> Outcome:
    """Answer a ticket in the variants where it means more than a free slot may."""
    if Variant.FORWARD_REPEATED_TICKETS in scope.variants and rows.steps[step] in HOLD_SLOT:
        return Outcome(rows, (Message(Kind.TASK, step),))
    if Variant.LIMIT_BY_QUEUE_ONLY in scope.variants and rows.steps[step] is Status.PENDING:
        return _dispatched(rows, (step,))
    return Outcome(rows)


def fill(scope: Scope, rows: Rows) -> Outcome:
    """Let as many branches through as there are free slots, in the order of the definition."""
    free = free_slots(scope, rows)
    if free <= 0:
        return Outcome(rows)
    # Where no lock holds, the branch that is next in line may have been let through meanwhile.
    waiting = [step for step in range(rows.passed, scope.branches) if rows.steps[step] is Status.PENDING]
    return _dispatched(rows, tuple(waiting[:free])) if waiting else Outcome(rows)


def free_slots(scope: Scope, rows: Rows) -> int:
    """Return how many more branches the gate may let through."""
    if not scope.is_gated or rows.block is not Status.RUNNING or rows.passed >= scope.branches:
        return 0
    return min(scope.limit - rows.dispatched, scope.branches - rows.passed)


def merged(before: Rows, after: Rows, now: Rows) -> Rows:
    """Return *now* after the UPDATEs of a transaction that read *before* and decided *after*, without a lock.

    Each UPDATE writes whole columns of the rows that it changes, and a block's counters are columns of one row.
    """
    steps = tuple(
        old if decided is read else decided
        for read, decided, old in zip(before.steps, after.steps, now.steps, strict=True)
    )
    block = after if (before.block, *before[3:]) != (after.block, *after[3:]) else now
    run = after.run if before.run is not after.run else now.run
    return block._replace(run=run, steps=steps)


def _counted(scope: Scope, rows: Rows, step: int) -> Outcome:
    freed = 1 if scope.is_gated else 0
    counted = rows._replace(
        steps=put(rows.steps, step, Status.COMPLETED), open=rows.open - 1, dispatched=rows.dispatched - freed
    )
    if Variant.FOLLOW_UP_APART in scope.variants:
        return Outcome(counted, (), step)
    return follow_up(scope, counted)._replace(accepted=step)


def _forwarded(rows: Rows) -> Outcome:
    if Status.PENDING in rows.steps:
        return _dispatched(rows, (rows.steps.index(Status.PENDING),))
    return Outcome(rows, (Message(Kind.TASK, NEXT),) if rows.steps[NEXT] in HOLD_SLOT else ())


def _dispatched(rows: Rows, steps: tuple[int, ...]) -> Outcome:
    changed = rows.steps
    for step in steps:
        changed = put(changed, step, Status.QUEUED)
    sent = rows._replace(
        steps=changed, dispatched=rows.dispatched + len(steps), passed=max(rows.passed, *(step + 1 for step in steps))
    )
    return Outcome(sent, tuple(Message(Kind.TASK, step) for step in steps))
